//! The switch that ends a connection whatever it is doing.
//!
//! A connection whose client does not read is not polled, so what it streams would hold its generation for as long as the client
//! likes. Everything that is streamed therefore leaves the switch of its connection with its generation, which throws it some time
//! after the drain deadline.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;

/// The switch of one connection.
#[derive(Debug, Default)]
pub struct Cut {
    /// Whether anybody may throw it, which only then costs the connection more than one look.
    armed: AtomicBool,
    thrown: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Cut {
    /// From now on it may be thrown.
    pub(super) fn arm(&self) {
        self.armed.store(true, Ordering::Release);
    }

    /// Ends the connection.
    pub(super) fn throw(&self) {
        self.thrown.store(true, Ordering::Release);
        let waker = self.waker.lock().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ends when it was thrown.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.armed.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        let mut waker = self.waker.lock();
        if self.thrown.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

/// The switches of the connections that stream something of a generation.
#[derive(Debug, Default)]
pub(super) struct Streams(Mutex<Vec<Arc<Cut>>>);

impl Streams {
    pub(super) fn add(&self, cut: &Arc<Cut>) {
        cut.arm();
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
