//! How what is live changes: an artifact's way to being live, and a generation's way out.
//!
//! - [`deploy`]: an artifact's way to being live, step by step
//! - [`drain`]: a replaced generation finishing what it has
//! - [`retained`]: its end, and the retry of what stays mapped
//! - [`rollback`], [`reload`], [`drop_folder`]: the other ways in
//! - [`labels`]: versions beside the live one
//! - [`canary`]: one of them that gets a share of the requests
//! - [`availability`]: whether an app answers: stop, start, restart, pause, resume
//! - [`tenants`]: generations that stay for the tenants that have something there
//! - [`settings`]: what an operator changes and asks while an app runs
//! - [`triggers`]: commands that are given by a file in the drop folder
//! - [`hooks`]: the operator's programs at a deploy
//! - [`rejected`]: uploads that were not taken
//! - [`copy`]: copies of the state of an app, for what is tried in a child process
//! - [`verify`]: whether a restart would bring what is live
//! - [`verdict`]: whose verdict of preflight counts
//! - [`crash`]: who is to blame when the host crashed, and what is trusted
//! - [`culprit`]: what the last words of a host say about that
//! - [`restore`]: what was live is live again after a restart
//! - [`shutdown`]: the end of all generations

pub(crate) mod availability;
pub(crate) mod canary;
mod copy;
pub(crate) mod crash;
pub(crate) mod culprit;
pub(crate) mod deploy;
pub(crate) mod drain;
pub(crate) mod drop_folder;
mod hooks;
pub(crate) mod labels;
pub(crate) mod rejected;
pub(crate) mod reload;
pub(crate) mod restore;
pub(crate) mod retained;
pub(crate) mod rollback;
pub(crate) mod settings;
pub(crate) mod shutdown;
pub(crate) mod tenants;
mod triggers;
pub(crate) mod verdict;
pub(crate) mod verify;

use std::sync::Arc;

use tokio::sync::watch;

use self::{drain::Departures, reload::Reloads, retained::RetainedLibraries};
use crate::{
    apps::registry::Registry,
    artifact::Store,
    operations::operation::Operations,
    records::{audit::Audit, journal::Journal},
    report::leaks::Leaks,
};

/// What the steps of a rollout work on. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Rollout {
    pub(crate) registry: Registry,
    pub(crate) store: Store,
    pub(crate) operations: Arc<Operations>,
    pub(crate) journal: Journal,
    pub(crate) audit: Audit,
    pub(crate) leaks: Arc<Leaks>,
    pub(crate) retained: RetainedLibraries,
    pub(crate) reloads: Arc<Reloads>,
    pub(crate) departures: Departures,
    /// Set when the host ends: what is being deployed is cut, and nothing new is activated.
    closing: Arc<watch::Sender<bool>>,
}

impl Rollout {
    /// Creates the rollout of the apps of `registry`.
    pub(crate) fn new(registry: Registry, store: Store, journal: Journal, audit: Audit) -> Self {
        Self {
            registry,
            store,
            journal,
            audit,
            operations: Arc::default(),
            leaks: Arc::default(),
            retained: RetainedLibraries::default(),
            reloads: Arc::default(),
            departures: Departures::default(),
            closing: Arc::default(),
        }
    }

    /// Has what is being deployed cut, and nothing new activated any more, for the host ends.
    fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Returns whether the host ends.
    fn is_closing(&self) -> bool {
        *self.closing.borrow()
    }

    /// Waits until the host ends.
    async fn closing(&self) {
        let mut closing = self.closing.subscribe();
        // The sender is in `self`, so this cannot fail.
        let _ = closing.wait_for(|closing| *closing).await;
    }
}
