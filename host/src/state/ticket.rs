//! A commit on its way, and who waits for it.
//!
//! A waker may belong to a plugin, and waking or dropping it then runs code of that. So it is never
//! touched on a thread of the store: it is woken on a worker of the host, which the ledger can
//! visit, and its session counts it until that is done.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

use handover_plugin::abi::waker::is_foreign;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::commit::{Committed, StateError};

/// How many wakers of a generation the host has.
#[derive(Clone, Debug, Default)]
pub(super) struct WakerCount(Arc<AtomicU64>);

impl WakerCount {
    /// How many there are.
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Keeps `waker`, counted.
    pub(super) fn park(&self, waker: Waker) -> Parked {
        self.0.fetch_add(1, Ordering::AcqRel);
        Parked {
            waker,
            _counted: Counted(Arc::clone(&self.0)),
        }
    }
}

#[derive(Debug)]
struct Counted(Arc<AtomicU64>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A waker that somebody left, counted until it is gone.
#[derive(Debug)]
pub(super) struct Parked {
    // Dropped before it is counted out.
    waker: Waker,
    _counted: Counted,
}

impl Parked {
    /// Whether it wakes the same task.
    pub(super) fn will_wake(&self, waker: &Waker) -> bool {
        self.waker.will_wake(waker)
    }
}

/// Wakes all of `parked`: those of the host at once, those of plugins on a worker of `runtime`.
pub(super) fn wake_all(parked: Vec<Parked>, runtime: &Handle) {
    let mut foreign = Vec::new();
    for parked in parked {
        if is_foreign(&parked.waker) {
            foreign.push(parked);
        } else {
            parked.waker.wake_by_ref();
        }
    }
    if !foreign.is_empty() {
        runtime.spawn(async move {
            for parked in foreign {
                parked.waker.wake_by_ref();
            }
        });
    }
}

/// What a commit ends with.
pub(super) type Outcome = Result<Committed, StateError>;

/// A commit on its way.
#[derive(Debug, Default)]
pub(super) struct Ticket(Mutex<Progress>);

#[derive(Debug)]
enum Progress {
    Waiting(Option<Parked>),
    Ended(Outcome),
}

impl Default for Progress {
    fn default() -> Self {
        Self::Waiting(None)
    }
}

impl Ticket {
    /// A commit that has ended already.
    pub(super) fn ended(outcome: Outcome) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Progress::Ended(outcome))))
    }

    /// Its end, now: who waits is to be woken by the caller.
    #[must_use]
    pub(super) fn end(&self, outcome: Outcome) -> Option<Parked> {
        match std::mem::replace(&mut *self.0.lock(), Progress::Ended(outcome)) {
            Progress::Waiting(parked) => parked,
            Progress::Ended(_) => None,
        }
    }

    /// What it ended with. Else `waker` is woken at its end, and is counted by `count` until then.
    pub(super) fn poll(&self, waker: &Waker, count: &WakerCount) -> Poll<Outcome> {
        // What was there before is dropped without the lock.
        let _before = {
            let mut progress = self.0.lock();
            match &mut *progress {
                Progress::Ended(outcome) => return Poll::Ready(outcome.clone()),
                Progress::Waiting(Some(parked)) if parked.will_wake(waker) => None,
                Progress::Waiting(parked) => parked.replace(count.park(waker.clone())),
            }
        };
        Poll::Pending
    }

    /// Nobody waits any more.
    pub(super) fn forget(&self) {
        let _before = match &mut *self.0.lock() {
            Progress::Waiting(parked) => parked.take(),
            Progress::Ended(_) => None,
        };
    }
}

/// A commit that somebody in the host waits for. Dropping it leaves the commit on its way.
#[derive(Debug)]
pub struct Pending {
    pub(super) ticket: Arc<Ticket>,
    count: WakerCount,
}

impl Pending {
    pub(super) fn new(ticket: Arc<Ticket>) -> Self {
        Self {
            ticket,
            count: WakerCount::default(),
        }
    }
}

impl Future for Pending {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        self.ticket.poll(cx.waker(), &self.count)
    }
}
