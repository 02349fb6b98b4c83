//! What holds a library, as far as can be seen without asking anybody to do anything.
//!
//! A library that is retained is looked at so again and again, for as long as the host lives; only
//! when something has changed is it tried to unload it, which has the workers come by.

use super::tls_destructors;

/// What holds a library at one moment. Two of them are equal when nothing has changed in between
/// that can be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// The threads that it started.
    pub(super) threads: Vec<i32>,
    /// Threads of the host that have something of it.
    pub(super) owing: Vec<Owing>,
    /// The signals that it handles, and whether a handler of it runs.
    pub(super) signals: Vec<(i32, bool)>,
    /// What libc does for it, for people.
    pub(super) requests: Vec<String>,
    /// The threads that nobody can account for and that hold it.
    pub(super) strangers: Vec<i32>,
}

/// A thread of the host that has something of a library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owing {
    tid: i32,
    is_worker: bool,
    /// Destructors and values that wait for the thread to be visited.
    waiting: usize,
    /// A destructor of the library is running on it.
    running: bool,
}

impl Owing {
    /// Whether a visit of the thread may end what it has.
    pub(super) fn can_be_visited(&self) -> bool {
        self.is_worker && self.waiting > 0 && !self.running
    }

    pub(super) fn of(holder: &tls_destructors::BlockingThread) -> Self {
        Self {
            tid: holder.tid,
            is_worker: holder.worker.is_some(),
            waiting: holder.waiting,
            running: holder.running,
        }
    }
}

impl Look {
    /// Whether nothing was seen.
    pub fn is_quiet(&self) -> bool {
        self.threads.is_empty()
            && self.owing.is_empty()
            && self.signals.is_empty()
            && self.requests.is_empty()
            && self.strangers.is_empty()
    }

    /// Whether there is something that a visit of the workers may end.
    pub fn can_be_visited(&self) -> bool {
        self.owing.iter().any(Owing::can_be_visited)
    }
}
