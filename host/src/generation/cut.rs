//! The switch that ends a connection whatever it is doing.
//!
//! A connection whose client does not read is not polled, so what it streams would hold its generation for as long as the client
//! likes. Everything that is streamed therefore leaves the switch of its connection with its generation, which throws it some time
//! after the drain deadline. When the host ends, the same switch asks a connection to finish what it has.
//!
//! Whatever works on requests of a connection has its switch at hand as a task-local: most answers are no streams and never look.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::Waker,
};

use parking_lot::Mutex;

tokio::task_local! {
    /// The switch of the connection that this task works for, if it works for one.
    static OWN: Option<Arc<Cut>>;
}

/// The switch of one connection.
#[derive(Debug, Default)]
pub struct Cut {
    /// An [`Order`].
    order: AtomicU8,
    waker: Mutex<Option<Waker>>,
}

/// What a connection is to do. Each goes further than the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Order {
    /// Go on.
    GoOn,
    /// Finish what it has, take nothing more, and close.
    Finish,
    /// End at once.
    End,
}

impl Cut {
    /// Runs `work` for the connection of `cut`.
    pub fn scope<F: Future>(cut: Arc<Self>, work: F) -> impl Future<Output = F::Output> {
        OWN.scope(Some(cut), work)
    }

    /// Passes the switch of the current task on to `work`, which is for another task.
    pub fn pass_on<F: Future>(work: F) -> impl Future<Output = F::Output> {
        OWN.scope(Self::own(), work)
    }

    /// The switch of the connection that the current task works for; none if it works for none.
    pub fn own() -> Option<Arc<Self>> {
        OWN.try_with(Clone::clone).ok().flatten()
    }

    /// Wakes `waker`, the connection's, at each order from now on. To be called before the first look at [`order`](Self::order).
    pub fn wakes(&self, waker: &Waker) {
        *self.waker.lock() = Some(waker.clone());
    }

    /// What the connection is to do.
    #[inline]
    pub fn order(&self) -> Order {
        match self.order.load(Ordering::Acquire) {
            0 => Order::GoOn,
            1 => Order::Finish,
            _ => Order::End,
        }
    }

    /// Asks the connection to finish.
    pub fn finish(&self) {
        self.give(Order::Finish);
    }

    /// Ends the connection.
    pub(super) fn throw(&self) {
        self.give(Order::End);
    }

    fn give(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::Release);
        if let Some(waker) = &*self.waker.lock() {
            waker.wake_by_ref();
        }
    }
}

/// The switches of the connections that stream something of a generation.
#[derive(Debug, Default)]
pub(super) struct Streams(Mutex<Vec<Arc<Cut>>>);

impl Streams {
    pub(super) fn add(&self, cut: &Arc<Cut>) {
        self.0.lock().push(Arc::clone(cut));
    }

    /// Takes one entry of `cut` away: a connection may stream several things.
    pub(super) fn remove(&self, cut: &Arc<Cut>) {
        let mut streams = self.0.lock();
        if let Some(at) = streams.iter().position(|stream| Arc::ptr_eq(stream, cut)) {
            streams.swap_remove(at);
        }
    }

    pub(super) fn throw_all(&self) -> usize {
        let streams = self.0.lock().clone();
        streams.iter().for_each(|cut| cut.throw());
        streams.len()
    }
}
