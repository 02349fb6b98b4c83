//! How many connections there are and were, and why the host ended or refused some.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::telemetry::exposition::{Exposition, Kind};

/// Why the host ended a connection whose client did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// No byte of it came.
    NoByte,
    /// The head of a request did not, or what HTTP/2 begins with.
    NoHead,
    /// No more of the body of a request did.
    NoBody,
    /// No other request came.
    Idle,
    /// It did not take what was sent to it.
    NotRead,
    /// Another one needed its place, and this one had been idle for the longest time.
    ForAnother,
}

/// Why the host took no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// There are `max_connections`, and none of them is idle.
    Connections,
    /// The client has `max_connections_per_address`, and none of them is idle.
    PerAddress,
    /// What descriptors are left are kept for the host itself.
    Descriptors,
}

/// What is counted.
#[derive(Debug, Default)]
pub(super) struct Counts {
    accepted: AtomicU64,
    closed: AtomicU64,
    ended: [AtomicU64; Ended::ALL.len()],
    refused: [AtomicU64; Refused::ALL.len()],
}

impl Ended {
    const ALL: [Self; 6] = [
        Self::NoByte,
        Self::NoHead,
        Self::NoBody,
        Self::Idle,
        Self::NotRead,
        Self::ForAnother,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::NoByte => "first_byte_timeout",
            Self::NoHead => "head_timeout",
            Self::NoBody => "body_timeout",
            Self::Idle => "idle_timeout",
            Self::NotRead => "write_timeout",
            Self::ForAnother => "for_another",
        }
    }
}

impl Refused {
    const ALL: [Self; 3] = [Self::Connections, Self::PerAddress, Self::Descriptors];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "max_connections",
            Self::PerAddress => "max_connections_per_address",
            Self::Descriptors => "descriptors",
        }
    }
}

impl Counts {
    pub(super) fn accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn closed(&self) {
        self.closed.fetch_add(1, Ordering::Release);
    }

    pub(super) fn ended(&self, why: Ended) {
        self.ended[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self, why: Refused) {
        self.refused[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Those that are open, and how many there ever were.
    pub(super) fn open(&self) -> (u64, u64) {
        // In this order: what ends in between is open for this reader, and the difference is never
        // negative.
        let closed = self.closed.load(Ordering::Acquire);
        let accepted = self.accepted.load(Ordering::Acquire);
        (accepted.saturating_sub(closed), accepted)
    }

    /// How many the host ended, by reason.
    pub(super) fn all_ended(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let count = |why: Ended| self.ended[why as usize].load(Ordering::Relaxed);
        Ended::ALL
            .into_iter()
            .map(move |why| (why.as_str(), count(why)))
    }

    /// How many the host refused, by reason.
    pub(super) fn all_refused(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let count = |why: Refused| self.refused[why as usize].load(Ordering::Relaxed);
        Refused::ALL
            .into_iter()
            .map(move |why| (why.as_str(), count(why)))
    }

    /// Writes the metrics.
    pub(super) fn write_metrics(&self, to: &mut Exposition) {
        let (open, accepted) = self.open();
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
            open,
        );
        let mut ended = to.family(
            "handover_connections_ended_total",
            Kind::Counter,
            "Connections that the host ended because their clients did nothing.",
        );
        for (why, number) in self.all_ended() {
            ended.sample(&[("reason", &why)], number);
        }
        let mut refused = to.family(
            "handover_connections_refused_total",
            Kind::Counter,
            "Connections that the host closed as soon as they came.",
        );
        for (why, number) in self.all_refused() {
            refused.sample(&[("reason", &why)], number);
        }
    }
}
