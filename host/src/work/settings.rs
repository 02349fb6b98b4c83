//! The live settings of an app, as its generations have them, and how those are asked.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::runtime::Handle;

use super::inbox::Inbox;

/// The values of settings, by key.
pub(crate) type Values = BTreeMap<String, Value>;

/// The live settings of one app.
#[derive(Debug)]
pub(crate) struct LiveSettings {
    runtime: Handle,
    values: Mutex<Arc<Values>>,
    inboxes: Mutex<Vec<(u64, Weak<Inbox>)>>,
    /// Held by who changes them.
    pub(crate) changing: tokio::sync::Mutex<()>,
}

impl LiveSettings {
    pub(super) fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            values: Mutex::default(),
            inboxes: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
        }
    }

    /// Returns the values.
    pub(crate) fn values(&self) -> Arc<Values> {
        Arc::clone(&self.values.lock())
    }

    /// Has generations that ask from now on get `values`.
    pub(crate) fn replace(&self, values: Values) {
        *self.values.lock() = Arc::new(values);
    }

    /// Makes the inbox of a generation.
    pub(super) fn inbox_of(&self, generation: u64) -> Arc<Inbox> {
        let inbox = Arc::new(Inbox::new(self.runtime.clone()));
        let mut inboxes = self.inboxes.lock();
        inboxes.retain(|(_, inbox)| inbox.strong_count() > 0);
        inboxes.push((generation, Arc::downgrade(&inbox)));
        inbox
    }

    /// Returns the inboxes of the generations that there are, with their numbers.
    pub(crate) fn inboxes(&self) -> Vec<(u64, Arc<Inbox>)> {
        let inboxes = self.inboxes.lock();
        let inboxes = inboxes.iter();
        inboxes
            .filter_map(|(generation, inbox)| Some((*generation, inbox.upgrade()?)))
            .collect()
    }
}
