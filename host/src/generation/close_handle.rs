//! The switch that ends a connection whatever it is doing.
//!
//! A connection whose client does not read is not polled, so what it streams would hold its
//! generation for as long as the client likes. Everything that is streamed therefore leaves the
//! switch of its connection with its generation, which throws it some time after the drain
//! deadline. When the host ends, the same switch asks a connection to finish what it has.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering, fence},
    },
    task::Waker,
};

use parking_lot::Mutex;

/// The switch of one connection.
#[derive(Debug, Default)]
pub struct CloseHandle {
    /// An [`CloseRequest`].
    request: AtomicU8,
    waker: OnceLock<Waker>,
}

/// What a connection is to do. Each goes further than the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CloseRequest {
    /// Go on.
    None,
    /// Finish what it has, take nothing more, and close.
    Graceful,
    /// End at once.
    Immediate,
}

impl CloseHandle {
    /// Wakes `waker`, the connection's, at each order from now on. To be called before the first
    /// look at [`requested`](Self::requested), and once: a task has one waker for all its life.
    pub fn wakes(&self, waker: &Waker) {
        self.waker.get_or_init(|| waker.clone());
        // With the one of `give`: either the order is seen when it is looked for next, or it is
        // given to this waker.
        fence(Ordering::SeqCst);
    }

    /// The waker of the connection's task, if that was polled before.
    #[inline]
    pub fn waker(&self) -> Option<&Waker> {
        self.waker.get()
    }

    /// What the connection is to do.
    #[inline]
    pub fn requested(&self) -> CloseRequest {
        match self.request.load(Ordering::Acquire) {
            0 => CloseRequest::None,
            1 => CloseRequest::Graceful,
            _ => CloseRequest::Immediate,
        }
    }

    /// Asks the connection to finish.
    pub fn close_gracefully(&self) {
        self.request(CloseRequest::Graceful);
    }

    /// Ends the connection.
    pub fn close_now(&self) {
        self.request(CloseRequest::Immediate);
    }

    fn request(&self, request: CloseRequest) {
        self.request.fetch_max(request as u8, Ordering::Release);
        fence(Ordering::SeqCst);
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }
}

/// The switches of the connections that stream something of a generation.
#[derive(Debug, Default)]
pub(super) struct Streams(Mutex<Vec<Arc<CloseHandle>>>);

impl Streams {
    pub(super) fn add(&self, handle: &Arc<CloseHandle>) {
        self.0.lock().push(Arc::clone(handle));
    }

    /// Takes one entry of `cut` away: a connection may stream several things.
    pub(super) fn remove(&self, handle: &Arc<CloseHandle>) {
        let mut streams = self.0.lock();
        if let Some(at) = streams
            .iter()
            .position(|stream| Arc::ptr_eq(stream, handle))
        {
            streams.swap_remove(at);
        }
    }

    pub(super) fn close_all_now(&self) -> usize {
        let streams = self.0.lock().clone();
        streams.iter().for_each(|handle| handle.close_now());
        streams.len()
    }
}
