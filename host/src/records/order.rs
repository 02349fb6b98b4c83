//! The order of what happened, which outlives the process and which no clock can change.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

/// The place of an entry in the history of all apps. What an older host wrote has none, and comes
/// first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Order(u64);

/// The last that was given or seen.
static LAST: AtomicU64 = AtomicU64::new(0);

impl Order {
    /// A place after all others.
    pub(crate) fn next() -> Self {
        Self(LAST.fetch_add(1, Relaxed).saturating_add(1))
    }

    /// Takes note of one that was read: those to come are after it.
    pub(crate) fn seen(self) {
        LAST.fetch_max(self.0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_is_after_what_was_read() {
        let first = Order::next();
        Order(first.0 + 1000).seen();
        assert!(Order::next() > Order(first.0 + 1000));
        assert!(Order::default() < first);
    }
}
