//! Whose turn it is to change what is live of an app: one operation at a time. The others are told
//! so, or wait, first come first served.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::watch;

use handover_api::OperationStatus;

/// The turns of one app.
#[derive(Debug)]
pub(crate) struct OperationQueue {
    state: Mutex<State>,
    /// Told whenever somebody's turn may have come, or the number of those ahead has changed.
    moved: watch::Sender<()>,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// Whose turn it is.
    taken: Option<OperationStatus>,
    /// How many hold it: the operation, and one that it lent its turn to.
    holders: usize,
    /// Whether that is a reload, which lends its turn to the operations that it causes, one at a
    /// time.
    admits_caused: bool,
    /// Those who wait.
    waiting: VecDeque<OperationStatus>,
}

/// The right to change what is live. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct OperationLock(Arc<OperationQueue>);

/// A place in the queue. Dropping it gives it up.
#[derive(Debug)]
pub(crate) struct Place {
    queue: Arc<OperationQueue>,
    id: String,
}

/// The host ends: nobody's turn comes any more.
#[derive(Debug)]
pub(crate) struct Closed;

impl OperationQueue {
    /// Nobody's turn.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            moved: watch::Sender::new(()),
            closed: AtomicBool::new(false),
        })
    }

    /// Takes the turn for `operation`; `of_reload`: also one that a reload has and lends.
    ///
    /// # Errors
    /// The operation that has it, or that waits first.
    pub(crate) fn take(
        self: &Arc<Self>,
        operation: OperationStatus,
        of_reload: bool,
    ) -> Result<OperationLock, OperationStatus> {
        let mut state = self.state.lock();
        if of_reload && state.admits_caused && state.holders == 1 {
            state.holders = 2;
            return Ok(OperationLock(Arc::clone(self)));
        }
        match state.taken.as_ref().or(state.waiting.front()) {
            Some(other) => Err(other.clone()),
            None => {
                state.begin(operation);
                Ok(OperationLock(Arc::clone(self)))
            }
        }
    }

    /// Waits in the queue from now on.
    pub(crate) fn enqueue(self: &Arc<Self>, operation: OperationStatus) -> Place {
        let id = operation.id.clone();
        self.state.lock().waiting.push_back(operation);
        Place {
            queue: Arc::clone(self),
            id,
        }
    }

    /// Whether an operation that comes now would have to wait.
    pub(crate) fn under_way(&self, of_reload: bool) -> Option<OperationStatus> {
        let state = self.state.lock();
        if of_reload && state.admits_caused && state.holders == 1 {
            return None;
        }
        state.taken.as_ref().or(state.waiting.front()).cloned()
    }

    /// Whose turn it is, and who waits.
    pub(crate) fn seen(&self) -> (Option<OperationStatus>, Vec<OperationStatus>) {
        let state = self.state.lock();
        (state.taken.clone(), state.waiting.iter().cloned().collect())
    }

    /// Sends those away who wait, and those who will.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.moved.send_replace(());
    }
}

impl State {
    fn begin(&mut self, operation: OperationStatus) {
        self.taken = Some(operation);
        self.holders = 1;
        self.admits_caused = false;
    }
}

impl OperationLock {
    /// Lends it to the operations that this one causes.
    pub(crate) fn admit_caused(&self) {
        self.0.state.lock().admits_caused = true;
    }
}

impl Drop for OperationLock {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.holders -= 1;
        if state.holders == 0 {
            state.taken = None;
            drop(state);
            self.0.moved.send_replace(());
        }
    }
}

impl Place {
    /// Waits for the turn, and tells `waits` what for whenever that changes: the operation right
    /// ahead, and how many are ahead.
    ///
    /// # Errors
    /// When the host ends.
    pub(crate) async fn acquire(
        self,
        mut waits: impl FnMut(&OperationStatus, usize),
    ) -> Result<OperationLock, Closed> {
        let mut moved = self.queue.moved.subscribe();
        let mut told = None;
        loop {
            if self.queue.closed.load(Ordering::Acquire) {
                return Err(Closed);
            }
            let ahead = {
                let mut state = self.queue.state.lock();
                let waiting = state.waiting.iter();
                let place = waiting.take_while(|other| other.id != self.id).count();
                if place == 0 && state.taken.is_none() {
                    if let Some(own) = state.waiting.pop_front() {
                        state.begin(own);
                    }
                    drop(state);
                    let lock = OperationLock(Arc::clone(&self.queue));
                    return Ok(lock);
                }
                let number = place + usize::from(state.taken.is_some());
                let right_ahead = match place.checked_sub(1) {
                    Some(at) => state.waiting.get(at),
                    None => state.taken.as_ref(),
                };
                right_ahead.cloned().map(|other| (other, number))
            };
            if let Some((other, number)) = ahead
                && told.replace((other.id.clone(), number)) != Some((other.id.clone(), number))
            {
                waits(&other, number);
            }
            // The sender is in `turns`.
            let _ = moved.changed().await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.queue.state.lock();
        let before = state.waiting.len();
        state.waiting.retain(|other| other.id != self.id);
        // Those behind have moved up.
        if state.waiting.len() != before {
            drop(state);
            self.queue.moved.send_replace(());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use std::task::{Context, Poll, Waker};

    use super::*;

    fn operation(id: &str) -> OperationStatus {
        OperationStatus {
            id: id.to_owned(),
            what: "deploy of 1.0.0".to_owned(),
        }
    }

    fn take(queue: &Arc<OperationQueue>, id: &str) -> Result<OperationLock, String> {
        queue.take(operation(id), false).map_err(|other| other.id)
    }

    type Told = Arc<Mutex<Vec<(String, usize)>>>;
    type Waits = std::pin::Pin<Box<dyn Future<Output = Result<OperationLock, Closed>>>>;

    fn wait(queue: &Arc<OperationQueue>, id: &str) -> (Waits, Told) {
        let told = Told::default();
        let (place, tell) = (queue.enqueue(operation(id)), Arc::clone(&told));
        let lock = place.acquire(move |other, ahead| tell.lock().push((other.id.clone(), ahead)));
        (Box::pin(lock), told)
    }

    fn poll(waits: &mut Waits) -> Poll<Result<OperationLock, Closed>> {
        waits.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn turns_come_in_order_and_nobody_jumps_the_queue() {
        let queue = OperationQueue::new();
        let first = take(&queue, "1").unwrap();
        let (mut second, told_second) = wait(&queue, "2");
        let (mut third, told_third) = wait(&queue, "3");
        assert!(poll(&mut second).is_pending() && poll(&mut third).is_pending());
        assert_eq!(take(&queue, "4").unwrap_err(), "1");
        drop(first);
        // Even before the second has looked, the turn is nobody else's.
        assert_eq!(take(&queue, "4").unwrap_err(), "2");
        assert!(poll(&mut third).is_pending());
        let Poll::Ready(Ok(lock)) = poll(&mut second) else {
            panic!("its turn has come")
        };
        assert!(poll(&mut third).is_pending());
        drop(lock);
        assert!(matches!(poll(&mut third), Poll::Ready(Ok(_))));
        drop((second, third));
        take(&queue, "4").unwrap();
        let told = |told: &Mutex<Vec<(String, usize)>>| told.lock().clone();
        assert_eq!(told(&told_second), [("1".to_owned(), 1)]);
        assert_eq!(
            told(&told_third),
            [("2".to_owned(), 2), ("2".to_owned(), 1)]
        );
    }

    #[test]
    fn who_leaves_the_queue_is_forgotten() {
        let queue = OperationQueue::new();
        let first = take(&queue, "1").unwrap();
        let (mut second, _) = wait(&queue, "2");
        let (mut third, _) = wait(&queue, "3");
        assert!(poll(&mut second).is_pending() && poll(&mut third).is_pending());
        drop(second);
        drop(first);
        assert!(matches!(poll(&mut third), Poll::Ready(Ok(_))));
    }

    #[test]
    fn the_end_of_the_host_ends_the_waiting() {
        let queue = OperationQueue::new();
        let _first = take(&queue, "1").unwrap();
        let (mut second, _) = wait(&queue, "2");
        assert!(poll(&mut second).is_pending());
        queue.close();
        assert!(matches!(poll(&mut second), Poll::Ready(Err(Closed))));
    }

    #[test]
    fn a_reload_lends_its_turn_to_one_operation_at_a_time() {
        let queue = OperationQueue::new();
        let reload = take(&queue, "1").unwrap();
        let of_reload = |id: &str| queue.take(operation(id), true);
        assert!(of_reload("2").is_err());
        reload.admit_caused();
        assert!(take(&queue, "2").is_err());
        let caused = of_reload("2").unwrap();
        assert!(of_reload("3").is_err());
        drop(caused);
        let caused = of_reload("3").unwrap();
        // It is given back when both have ended.
        drop(reload);
        assert!(take(&queue, "4").is_err());
        drop(caused);
        take(&queue, "4").unwrap();
    }
}
