//! Wakers of plugins that the host keeps, and what is promised to those who wait.
//!
//! Waking or dropping a waker of a plugin runs code of that. So it is never touched on a thread
//! that is not a worker of the host, which the ledger can visit: it is woken there, and is counted
//! until that is done.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use handover_plugin::abi::waker::is_foreign;
use parking_lot::Mutex;
use tokio::runtime::Handle;

/// How often it is looked whether the last waker is gone.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// How many wakers of a generation the host has.
#[derive(Clone, Debug, Default)]
pub(crate) struct WakerCount(Arc<AtomicU64>);

impl WakerCount {
    /// How many there are.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Waits until there is none any more, for `deadline` at the longest; gives how many are left.
    pub(crate) async fn none_left(&self, deadline: Duration) -> u64 {
        let by = Instant::now() + deadline;
        while self.get() > 0 && Instant::now() < by {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.get()
    }

    /// Keeps `waker`, counted.
    pub(crate) fn park(&self, waker: Waker) -> Parked {
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
pub(crate) struct Parked {
    // Dropped before it is counted out.
    waker: Waker,
    _counted: Counted,
}

impl Parked {
    /// Whether it wakes the same task.
    pub(crate) fn will_wake(&self, waker: &Waker) -> bool {
        self.waker.will_wake(waker)
    }
}

/// Wakes all of `parked`: those of the host at once, those of plugins on a worker of `runtime`.
pub(crate) fn wake_all(parked: Vec<Parked>, runtime: &Handle) {
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

/// Something that will be known, for one who waits for it.
#[derive(Debug)]
pub(crate) struct Promise<T>(Mutex<Progress<T>>);

#[derive(Debug)]
enum Progress<T> {
    Waiting(Option<Parked>),
    Ended(T),
}

impl<T> Default for Promise<T> {
    fn default() -> Self {
        Self(Mutex::new(Progress::Waiting(None)))
    }
}

impl<T: Clone> Promise<T> {
    /// What is known already.
    pub(crate) fn ended(outcome: T) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Progress::Ended(outcome))))
    }

    /// Its end, now: who waits is to be woken by the caller.
    #[must_use]
    pub(crate) fn end(&self, outcome: T) -> Option<Parked> {
        match std::mem::replace(&mut *self.0.lock(), Progress::Ended(outcome)) {
            Progress::Waiting(parked) => parked,
            Progress::Ended(_) => None,
        }
    }

    /// What it ended with. Else `waker` is woken at its end, and is counted by `count` until then.
    pub(crate) fn poll(&self, waker: &Waker, count: &WakerCount) -> Poll<T> {
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
    pub(crate) fn forget(&self) {
        let _before = match &mut *self.0.lock() {
            Progress::Waiting(parked) => parked.take(),
            Progress::Ended(_) => None,
        };
    }
}
