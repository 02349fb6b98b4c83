//! How what is live changes: an artifact's way to being live, and a generation's way out.
//!
//! - [`deploy`]: an artifact's way to being live, step by step
//! - [`drain`]: a replaced generation finishing what it has
//! - [`retained`]: its end, and the retry of what stays mapped
//! - [`rollback`], [`reload`], [`drop_folder`]: the other ways in
//! - [`rejected`]: uploads that were not taken
//! - [`verdict`]: whose verdict of preflight counts
//! - [`crash`]: who is to blame when the host crashed, and what is trusted
//! - [`culprit`]: what the last words of a host say about that
//! - [`restore`]: what was live is live again after a restart
//! - [`shutdown`]: the end of all generations

pub(crate) mod crash;
pub(crate) mod culprit;
pub(crate) mod deploy;
pub(crate) mod drain;
pub(crate) mod drop_folder;
pub(crate) mod rejected;
pub(crate) mod reload;
pub(crate) mod restore;
pub(crate) mod retained;
pub(crate) mod rollback;
pub(crate) mod shutdown;
pub(crate) mod verdict;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use self::{drain::Departures, reload::Reloads, retained::RetainedLibraries};
use crate::{
    apps::registry::Registry, artifact::Store, operations::operation::Operations,
    records::journal::Journal, report::leaks::Leaks,
};

/// What the steps of a rollout work on. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Rollout {
    pub(crate) registry: Registry,
    pub(crate) store: Store,
    pub(crate) operations: Arc<Operations>,
    pub(crate) journal: Journal,
    pub(crate) leaks: Arc<Leaks>,
    pub(crate) retained: RetainedLibraries,
    pub(crate) reloads: Arc<Reloads>,
    pub(crate) departures: Departures,
    is_closing: Arc<AtomicBool>,
}

impl Rollout {
    /// Creates the rollout of the apps of `registry`.
    pub(crate) fn new(registry: Registry, store: Store, journal: Journal) -> Self {
        Self {
            registry,
            store,
            journal,
            operations: Arc::default(),
            leaks: Arc::default(),
            retained: RetainedLibraries::default(),
            reloads: Arc::default(),
            departures: Departures::default(),
            is_closing: Arc::default(),
        }
    }

    /// Has nothing new activated any more, for the host ends.
    fn close(&self) {
        self.is_closing.store(true, Ordering::Release);
    }

    /// Returns whether the host ends.
    fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }
}
