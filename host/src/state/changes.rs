//! What was committed last: for those who watch, and for checks of ranges.
//!
//! It lies in memory and is bounded. Who asks for what is no longer there is told so, and reads
//! anew.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
    task::Waker,
};

use parking_lot::Mutex;

use super::place::Bounds;
use crate::wakers::{Parked, WakerCount};

/// How many changes are kept.
const MOST: usize = 1 << 16;
/// How many bytes their places may have.
const MOST_BYTES: usize = 16 << 20;

/// A change of one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// The version of its commit.
    pub(super) version: u64,
    pub(super) place: Arc<[u8]>,
    /// Whether something is there now.
    pub(super) is_there: bool,
}

/// What was committed last.
#[derive(Debug)]
pub(super) struct Changes(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    log: VecDeque<Change>,
    bytes: usize,
    /// Everything after this version is in the log.
    since: u64,
    /// The version of the last commit.
    last: u64,
    watchers: Vec<Weak<Watcher>>,
}

/// Somebody who watches.
#[derive(Debug)]
pub(super) struct Watcher {
    bounds: Bounds,
    state: Mutex<Watching>,
}

#[derive(Debug)]
struct Watching {
    /// The version up to which it knows everything.
    seen: u64,
    parked: Option<Parked>,
}

/// What a watcher is given.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// The changes, in order; whole commits.
    pub(super) changes: Vec<Change>,
    /// Whether there were others before them that are no longer known.
    pub(super) missed: bool,
    /// The version to resume from.
    pub(super) token: u64,
}

impl Changes {
    /// Nothing is known of what was committed up to `version`.
    pub(super) fn since(version: u64) -> Self {
        Self(Mutex::new(Inner {
            log: VecDeque::new(),
            bytes: 0,
            since: version,
            last: version,
            watchers: Vec::new(),
        }))
    }

    /// Whether anything in `bounds` changed after `version`, or that is not known.
    pub(super) fn has_changed(&self, bounds: &Bounds, version: u64) -> bool {
        let inner = self.0.lock();
        if version < inner.since {
            return true;
        }
        let first = inner
            .log
            .partition_point(|change| change.version <= version);
        inner
            .log
            .range(first..)
            .any(|change| bounds.contains(&change.place))
    }

    /// Adds what was committed, and gives those who are to be woken.
    #[must_use]
    pub(super) fn add(&self, version: u64, changes: Vec<Change>) -> Vec<Parked> {
        let mut inner = self.0.lock();
        let inner = &mut *inner;
        inner.last = version;
        let mut woken = Vec::new();
        inner.watchers.retain(|watcher| {
            let Some(watcher) = watcher.upgrade() else {
                return false;
            };
            let concerned = |change: &Change| watcher.bounds.contains(&change.place);
            if changes.iter().any(concerned) {
                woken.extend(watcher.state.lock().parked.take());
            }
            true
        });
        for change in changes {
            inner.bytes += change.place.len();
            inner.log.push_back(change);
        }
        while inner.log.len() > MOST || inner.bytes > MOST_BYTES {
            let Some(first) = inner.log.pop_front() else {
                break;
            };
            inner.bytes -= first.place.len();
            // The rest of its commit is not all there any more.
            inner.since = first.version;
        }
        woken
    }

    /// Forgets everything: what was known is not how it came to be. All who watch are told that
    /// they missed something.
    #[must_use]
    pub(super) fn reset(&self, version: u64) -> Vec<Parked> {
        let mut inner = self.0.lock();
        inner.log.clear();
        inner.bytes = 0;
        inner.since = version;
        inner.last = version;
        let watchers: Vec<_> = inner.watchers.iter().filter_map(Weak::upgrade).collect();
        drop(inner);
        watchers
            .iter()
            .filter_map(|watcher| watcher.state.lock().parked.take())
            .collect()
    }

    /// Begins to watch `bounds`, after the version `token`, or from now on.
    pub(super) fn watch(&self, bounds: Bounds, token: Option<u64>) -> Arc<Watcher> {
        let mut inner = self.0.lock();
        let watcher = Arc::new(Watcher {
            bounds,
            state: Mutex::new(Watching {
                seen: token.unwrap_or(inner.last),
                parked: None,
            }),
        });
        inner.watchers.push(Arc::downgrade(&watcher));
        watcher
    }

    /// What `watcher` has not seen yet, at most about `limit` of it. None when there is nothing:
    /// `waker` is woken then when there is.
    pub(super) fn poll(
        &self,
        watcher: &Watcher,
        limit: usize,
        waker: &Waker,
        count: &WakerCount,
    ) -> Option<Seen> {
        let (seen, _before) = {
            let inner = self.0.lock();
            let mut watching = watcher.state.lock();
            let seen = inner.unseen(&watcher.bounds, watching.seen, limit);
            let before = match &seen {
                Some(seen) => {
                    watching.seen = seen.token;
                    watching.parked.take()
                }
                None => {
                    // Nothing of what it watches has happened so far.
                    watching.seen = inner.last;
                    match &watching.parked {
                        Some(parked) if parked.will_wake(waker) => None,
                        _ => watching.parked.replace(count.park(waker.clone())),
                    }
                }
            };
            (seen, before)
        };
        seen
    }
}

impl Inner {
    fn unseen(&self, bounds: &Bounds, seen: u64, limit: usize) -> Option<Seen> {
        // A token of another store, or of one that was restored: what it knows of never was.
        let missed = seen < self.since || seen > self.last;
        if missed {
            return Some(Seen {
                changes: Vec::new(),
                missed,
                token: self.last,
            });
        }
        let first = self.log.partition_point(|change| change.version <= seen);
        let mut changes: Vec<Change> = Vec::new();
        let mut token = self.last;
        for change in self.log.range(first..) {
            let full = changes.len() >= limit;
            if full
                && changes
                    .last()
                    .is_some_and(|last| last.version < change.version)
            {
                token = change.version - 1;
                break;
            }
            if bounds.contains(&change.place) {
                changes.push(change.clone());
            }
        }
        (!changes.is_empty()).then_some(Seen {
            changes,
            missed,
            token,
        })
    }
}

impl Watcher {
    /// Nobody waits any more.
    pub(super) fn forget(&self) {
        let _before = self.state.lock().parked.take();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn change(version: u64, place: &str) -> Change {
        Change {
            version,
            place: place.as_bytes().into(),
            is_there: true,
        }
    }

    fn bounds(from: &str, to: &str) -> Bounds {
        Bounds {
            from: from.into(),
            to: Some(to.into()),
        }
    }

    #[test]
    fn a_watcher_sees_each_commit_whole_and_once() {
        let changes = Changes::since(7);
        let count = WakerCount::default();
        let watcher = changes.watch(bounds("a", "b"), None);
        let poll = |limit| changes.poll(&watcher, limit, Waker::noop(), &count);
        assert_eq!(poll(10), None);
        assert_eq!(count.get(), 1);
        let woken = changes.add(8, vec![change(8, "a1"), change(8, "a2"), change(8, "c")]);
        assert_eq!(woken.len(), 1);
        drop(woken);
        assert_eq!(count.get(), 0);
        assert!(changes.add(9, vec![change(9, "a1")]).is_empty());
        let first = poll(1).unwrap();
        assert_eq!(first.changes.len(), 2, "both of the commit");
        assert_eq!((first.token, first.missed), (8, false));
        let second = poll(1).unwrap();
        assert_eq!((second.changes, second.token), (vec![change(9, "a1")], 9));
        assert_eq!(poll(1), None);
        watcher.forget();
        assert_eq!(count.get(), 0);
        // The same again from a token.
        let again = changes.watch(bounds("a", "b"), Some(8));
        let seen = changes.poll(&again, 10, Waker::noop(), &count).unwrap();
        assert_eq!(seen.changes, [change(9, "a1")]);
        assert!(changes.has_changed(&bounds("a", "b"), 8));
        assert!(!changes.has_changed(&bounds("a", "b"), 9));
        assert!(!changes.has_changed(&bounds("d", "e"), 7));
    }

    #[test]
    fn who_comes_too_late_is_told_so() {
        let changes = Changes::since(0);
        let count = WakerCount::default();
        for version in 1..=(MOST as u64 + 10) {
            assert!(changes.add(version, vec![change(version, "a")]).is_empty());
        }
        let late = changes.watch(bounds("a", "b"), Some(3));
        let seen = changes.poll(&late, 10, Waker::noop(), &count).unwrap();
        assert!(seen.missed && seen.changes.is_empty());
        assert!(changes.has_changed(&bounds("x", "y"), 3), "it is not known");
        let of_another = changes.watch(bounds("a", "b"), Some(u64::MAX));
        assert!(
            changes
                .poll(&of_another, 10, Waker::noop(), &count)
                .unwrap()
                .missed
        );
        assert!(changes.reset(5).is_empty());
    }
}
