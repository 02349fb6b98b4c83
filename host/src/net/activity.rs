//! What a connection is doing: whether its client is waited for, since when, and for what.
//!
//! Written by the task of the connection and those of its HTTP/2 streams, read by whoever ends
//! connections. A request costs it a few plain stores; the clock is read when a wait begins, which
//! hyper does anyway.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper::rt::Executor;
use tokio::time::Instant;

/// What one connection is doing.
#[derive(Debug)]
pub(super) struct Activity {
    began: Instant,
    /// A [`Doing`].
    doing: AtomicU8,
    /// Since when, in nanoseconds from there.
    since: AtomicU64,
    /// What HTTP/2 still has to send or to answer: tasks of streams, and pieces of answers that
    /// wait for the client.
    streams: AtomicUsize,
    /// Since when the socket takes no more bytes, in nanoseconds from there; 0 while it does.
    blocked_since: AtomicU64,
}

/// What a connection is doing, as far as its client is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Doing {
    /// No byte has come yet.
    Opening,
    /// A part of a head has come in this turn, and nobody has looked at the clock.
    NewHead,
    /// Waits for the rest of a head, or for what HTTP/2 begins with.
    Head,
    /// Has a request under way. HTTP/2 counts its streams instead.
    Request,
    /// Waits for the next request.
    Idle,
}

/// Something of an HTTP/2 stream that is not done yet. Dropping it says that it is.
#[derive(Debug)]
pub(super) struct OpenStream(Arc<Activity>);

/// Runs the tasks of HTTP/2 streams, and counts them.
#[derive(Clone, Debug)]
pub(super) struct StreamTasks(pub(super) Arc<Activity>);

impl Activity {
    /// Of a new connection.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            doing: AtomicU8::new(Doing::Opening as u8),
            since: AtomicU64::new(0),
            streams: AtomicUsize::new(0),
            blocked_since: AtomicU64::new(0),
        })
    }

    #[inline]
    pub(super) fn doing(&self) -> Doing {
        match self.doing.load(Ordering::Relaxed) {
            0 => Doing::Opening,
            1 => Doing::NewHead,
            2 => Doing::Head,
            3 => Doing::Request,
            _ => Doing::Idle,
        }
    }

    #[inline]
    fn set(&self, doing: Doing) {
        self.doing.store(doing as u8, Ordering::Relaxed);
    }

    /// Since when it does that.
    pub(super) fn since(&self) -> Instant {
        self.began + Duration::from_nanos(self.since.load(Ordering::Relaxed))
    }

    fn nanos(&self, at: Instant) -> u64 {
        let passed = at.saturating_duration_since(self.began).as_nanos();
        u64::try_from(passed).unwrap_or(u64::MAX)
    }

    /// Whether something is under way: a request, its answer, a stream.
    pub(super) fn is_busy(&self) -> bool {
        self.doing() == Doing::Request || self.streams.load(Ordering::Relaxed) > 0
    }

    /// Bytes came.
    #[inline]
    pub(super) fn read(&self) {
        if matches!(self.doing(), Doing::Opening | Doing::Idle) {
            self.set(Doing::NewHead);
        }
    }

    /// The head whose first bytes came in this turn is not whole at its end.
    pub(super) fn head_is_late(&self, now: Instant) {
        self.since.store(self.nanos(now), Ordering::Relaxed);
        self.set(Doing::Head);
    }

    /// A request has come.
    #[inline]
    pub(super) fn begins(&self) {
        self.set(Doing::Request);
    }

    /// From `now` on, the next request is waited for.
    #[inline]
    pub(super) fn waits(&self, now: Instant) {
        if self.doing() == Doing::Request {
            self.is_idle(now);
        }
    }

    /// Nothing is under way from `now` on.
    #[inline]
    pub(super) fn is_idle(&self, now: Instant) {
        self.since.store(self.nanos(now), Ordering::Relaxed);
        self.set(Doing::Idle);
    }

    /// Whether the socket took the bytes that it was given, all or some.
    #[inline]
    pub(super) fn wrote(&self, taken: bool) {
        if taken == (self.blocked_since.load(Ordering::Relaxed) == 0) {
            return;
        }
        self.blocks(taken);
    }

    #[cold]
    fn blocks(&self, taken: bool) {
        let now = Instant::now();
        let since = if taken { 0 } else { self.nanos(now).max(1) };
        self.blocked_since.store(since, Ordering::Relaxed);
        // Who reads an answer slowly has waited for nothing meanwhile.
        if self.doing() == Doing::Idle {
            self.since.store(self.nanos(now), Ordering::Relaxed);
        }
    }

    /// Since when the client takes no bytes that are there for it, if it does not.
    pub(super) fn blocked_since(&self) -> Option<Instant> {
        match self.blocked_since.load(Ordering::Relaxed) {
            0 => None,
            since => Some(self.began + Duration::from_nanos(since)),
        }
    }

    /// Something more of a stream.
    pub(super) fn stream(self: &Arc<Self>) -> OpenStream {
        self.streams.fetch_add(1, Ordering::Relaxed);
        OpenStream(Arc::clone(self))
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        if self.0.streams.fetch_sub(1, Ordering::Relaxed) == 1 {
            // Before the next one begins, or too early, and then that one says it again.
            let now = self.0.nanos(Instant::now());
            self.0.since.store(now, Ordering::Relaxed);
        }
    }
}

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for StreamTasks {
    fn execute(&self, task: F) {
        let stream = self.0.stream();
        tokio::spawn(async move {
            let _stream = stream;
            task.await
        });
    }
}
