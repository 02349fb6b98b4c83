//! Workers: work that goes on for as long as a generation is live.

use std::{
    fmt,
    future::{Future, poll_fn},
    mem,
    pin::pin,
    sync::LazyLock,
    task::Poll,
};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{context::Context, log};

/// The workers of a generation that is not live yet, or not any more.
#[derive(Default)]
pub(super) struct Workers(Mutex<State>);

enum State {
    /// Nobody asks it yet: these begin when it is live.
    Waiting(Vec<Box<dyn FnOnce() + Send>>),
    Live,
    Draining,
}

impl Default for State {
    fn default() -> Self {
        Self::Waiting(Vec::new())
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Workers")
    }
}

impl Workers {
    /// Calls `begin` once the generation is live; never if it does not become so, or was.
    pub(super) fn begin(&self, begin: impl FnOnce() + Send + 'static) {
        match &mut *self.0.lock() {
            State::Waiting(waiting) => return waiting.push(Box::new(begin)),
            State::Live => {}
            State::Draining => return,
        }
        begin();
    }

    pub(super) fn activate(&self) {
        let waiting = {
            let mut state = self.0.lock();
            match &*state {
                State::Waiting(_) => mem::replace(&mut *state, State::Live),
                State::Live | State::Draining => return,
            }
        };
        if let State::Waiting(waiting) = waiting {
            waiting.into_iter().for_each(|begin| begin());
        }
    }

    pub(super) fn drain(&self) {
        // What never began is dropped outside of the lock: its destructors are the app's.
        let before = mem::replace(&mut *self.0.lock(), State::Draining);
        drop(before);
    }
}

/// Tells a worker to stop: see [`Context::worker`].
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    pub(super) fn new(stopped: watch::Receiver<bool>) -> Self {
        Self(stopped)
    }

    /// Whether the worker is to stop.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the worker is to stop.
    pub async fn requested(&self) {
        let mut stopped = self.0.clone();
        // Its sender is gone when everything is over.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }

    /// Waits for `next`; returns none if the worker is to stop before that. `next` is dropped then,
    /// so it should lose nothing by that, as reading from a queue does not.
    pub async fn or<T>(&self, next: impl Future<Output = T>) -> Option<T> {
        let (mut requested, mut next) = (pin!(self.requested()), pin!(next));
        poll_fn(|cx| {
            // Asked first: what is there already waits for the next generation.
            if requested.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            next.as_mut().poll(cx).map(Some)
        })
        .await
    }
}

/// The stop of the workers of a program, which has no generations.
static PROGRAM: LazyLock<watch::Sender<bool>> = LazyLock::new(|| watch::Sender::new(false));

/// Runs `work`, called `name`, for as long as this code is live: in a plugin as [`Context::worker`]
/// does, which says more; in a program from now on, and until what [`serve`](crate::serve) serves
/// has ended.
///
/// # Panics
/// Outside of a tokio runtime, and in a plugin whose generation is over.
pub fn worker<F, W>(name: &str, work: F)
where
    F: FnOnce(Stop) -> W + Send + 'static,
    W: Future<Output = ()> + Send + 'static,
{
    if !log::is_hosted() {
        let stop = Stop::new(PROGRAM.subscribe());
        tokio::spawn(async move { work(stop).await });
        return;
    }
    match Context::current() {
        Some(context) => context.worker(name, work),
        None => panic!("the worker `{name}` came when its generation was over"),
    }
}

/// Tells the workers of a program to stop.
pub(super) fn stop_program() {
    PROGRAM.send_replace(true);
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[test]
    fn a_worker_begins_when_its_generation_is_live_and_never_after_that() {
        let begun = Arc::new(AtomicUsize::new(0));
        let begin = || {
            let begun = Arc::clone(&begun);
            move || {
                begun.fetch_add(1, Ordering::Relaxed);
            }
        };
        let workers = Workers::default();
        workers.begin(begin());
        assert_eq!(begun.load(Ordering::Relaxed), 0);
        workers.activate();
        workers.activate();
        assert_eq!(begun.load(Ordering::Relaxed), 1);
        workers.begin(begin());
        assert_eq!(begun.load(Ordering::Relaxed), 2);
        workers.drain();
        workers.begin(begin());
        workers.activate();
        assert_eq!(begun.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn stop_comes_before_what_is_there_already() {
        let sender = watch::Sender::new(false);
        let stop = Stop::new(sender.subscribe());
        assert_eq!(stop.or(std::future::ready(1)).await, Some(1));
        sender.send_replace(true);
        assert_eq!(stop.or(std::future::ready(1)).await, None);
        assert!(stop.is_requested());
    }
}
