//! Requests of an app that is paused: they wait, so many and so long, and go on when it is resumed.
//!
//! What waits belongs to no generation, as what waits for its turn: what is active then answers.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

/// How many requests of an app may wait at a time; those beyond are answered at once.
const MOST: usize = 10_000;

/// What holds the requests of an app back.
#[derive(Debug)]
pub(crate) struct Pause {
    max_wait: Duration,
    waiting: AtomicUsize,
    released: watch::Sender<bool>,
}

/// A request that waits.
pub(super) type Wait = Pin<Box<dyn Future<Output = Released> + Send>>;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Released {
    /// It may go on.
    GoesOn,
    /// It waited for too long, or too many do.
    Refused,
}

impl Pause {
    /// Holds requests back, each for `max_wait` at the longest.
    pub(crate) fn new(max_wait: Duration) -> Arc<Self> {
        Arc::new(Self {
            max_wait,
            waiting: AtomicUsize::new(0),
            released: watch::Sender::new(false),
        })
    }

    /// Returns how long a request waits at the longest.
    pub(crate) fn max_wait(&self) -> Duration {
        self.max_wait
    }

    /// Returns how many requests wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Lets all go on, those that come later as well.
    pub(crate) fn release(&self) {
        self.released.send_replace(true);
    }

    /// Has a request wait.
    pub(super) fn wait(self: &Arc<Self>) -> Wait {
        let place = Place::take(self);
        let mut released = self.released.subscribe();
        let max_wait = self.max_wait;
        Box::pin(async move {
            if place.is_none() {
                return Released::Refused;
            }
            // The sender is in the pause, which the place has.
            let wait = released.wait_for(|released| *released);
            match tokio::time::timeout(max_wait, wait).await {
                Ok(_) => Released::GoesOn,
                Err(_) => Released::Refused,
            }
        })
    }
}

/// A place among those that wait. Dropping it gives it up, also when the client has left.
struct Place(Arc<Pause>);

impl Place {
    fn take(pause: &Arc<Pause>) -> Option<Self> {
        let more = |waiting| (waiting < MOST).then_some(waiting + 1);
        let taken = pause
            .waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.is_ok().then(|| Self(Arc::clone(pause)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_until_it_may_go_on_or_for_the_longest_time() {
        let pause = Pause::new(Duration::from_secs(5));
        let (goes_on, too_long) = (pause.wait(), pause.wait());
        assert_eq!(pause.waiting(), 2);
        assert_eq!(too_long.await, Released::Refused);
        assert_eq!(pause.waiting(), 1);
        pause.release();
        assert_eq!(goes_on.await, Released::GoesOn);
        assert_eq!(pause.wait().await, Released::GoesOn);
        assert_eq!(pause.waiting(), 0);
    }

    #[tokio::test]
    async fn so_many_wait_and_no_more() {
        let pause = Pause::new(Duration::from_secs(5));
        let waits: Vec<_> = (0..MOST).map(|_| pause.wait()).collect();
        assert_eq!(pause.wait().await, Released::Refused);
        drop(waits);
        assert_eq!(pause.waiting(), 0);
    }
}
