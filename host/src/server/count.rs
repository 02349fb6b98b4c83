//! How many connections there are, and were.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::telemetry::exposition::{Exposition, Kind};

/// Counts connections. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Connections(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    accepted: AtomicU64,
    ended: AtomicU64,
}

/// An open connection. Dropping it counts it out.
#[derive(Debug)]
pub(super) struct Open(Arc<Counts>);

impl Connections {
    /// Counts a connection in.
    pub(super) fn accepted(&self) -> Open {
        self.0.accepted.fetch_add(1, Ordering::Relaxed);
        Open(Arc::clone(&self.0))
    }

    /// Writes the metrics.
    pub fn write_metrics(&self, to: &mut Exposition) {
        // In this order: what ends in between is open for this reader, and the difference is never negative.
        let ended = self.0.ended.load(Ordering::Acquire);
        let accepted = self.0.accepted.load(Ordering::Acquire);
        to.one(
            "handover_connections_total",
            Kind::Counter,
            "Connections that were accepted.",
            accepted,
        );
        to.one(
            "handover_connections_open",
            Kind::Gauge,
            "Connections that are open, upgraded ones not included.",
            accepted.saturating_sub(ended),
        );
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Release);
    }
}
