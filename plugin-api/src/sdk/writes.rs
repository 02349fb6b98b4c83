//! Answers wait for their writes: what a request has begun to write and left is on the disk before
//! its answer leaves.
//!
//! A plugin that never asked for its state pays one look at a flag for it.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    mem,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll},
};

use pin_project_lite::pin_project;

use super::state::{StateError, poll_commit};
use crate::abi::state::{ANSWERS_WAIT, StateCall};

/// Whether answers wait: the app asked for its state, and the operator did not switch that off.
static WAIT: AtomicBool = AtomicBool::new(false);

/// What a request has left.
#[derive(Debug, Default)]
struct Left {
    calls: Vec<StateCall>,
    error: Option<StateError>,
}

thread_local! {
    /// What the request that is polled on this thread leaves; none outside of such a poll.
    static LEFT: RefCell<Option<Left>> = const { RefCell::new(None) };
    /// The numbers of this thread.
    static RANDOM: Cell<u64> = const { Cell::new(0) };
}

/// The app asked for its state, which is set up like this.
pub(super) fn used(settings: u64) {
    if settings & ANSWERS_WAIT != 0 {
        WAIT.store(true, Ordering::Relaxed);
    }
}

/// Nobody waits for `call` any more: the answer does, if a request has left it.
pub(super) fn leave(call: StateCall) {
    let mut call = Some(call);
    // A thread that ends has no request.
    let _ = LEFT.try_with(|left| {
        if let Ok(mut left) = left.try_borrow_mut()
            && let Some(left) = &mut *left
        {
            left.calls.extend(call.take());
        }
    });
}

/// The same for a write that could not even begin.
pub(super) fn leave_failed(error: StateError) {
    let _ = LEFT.try_with(|left| {
        if let Ok(mut left) = left.try_borrow_mut()
            && let Some(left) = &mut *left
        {
            left.error.get_or_insert(error);
        }
    });
}

/// A number from a half to one, so that those who were in each other's way do not come back at the
/// same time.
pub(super) fn fraction() -> f64 {
    RANDOM.with(|random| {
        let mut x = random.get();
        if x == 0 {
            // Different on each thread.
            x = std::ptr::from_ref(random) as u64 | 1;
        }
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        random.set(x);
        0.5 + (x >> 12) as f64 / (1_u64 << 53) as f64
    })
}

pin_project! {
    /// The future of a request that ends when what it has left is written, too. One that failed is
    /// not waited for: nobody is told a lie.
    pub(super) struct Durable<F, R> {
        #[pin]
        future: F,
        // Most requests have none.
        waiting: Option<Box<Waiting<R>>>,
    }
}

struct Waiting<R> {
    left: Left,
    /// What the future ended with.
    ended: Option<R>,
}

impl<F, R> Durable<F, R> {
    #[inline]
    pub(super) fn new(future: F) -> Self {
        Self {
            future,
            waiting: None,
        }
    }
}

impl<F: Future<Output = Result<R, E>>, R, E> Future for Durable<F, R> {
    /// The outer error is why what it has left was not written.
    type Output = Result<Result<R, E>, StateError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if WAIT.load(Ordering::Relaxed) {
            return self.poll_and_wait(cx);
        }
        self.project().future.poll(cx).map(Ok)
    }
}

impl<F: Future<Output = Result<R, E>>, R, E> Durable<F, R> {
    fn poll_and_wait(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Result<R, E>, StateError>> {
        let this = self.project();
        if this.waiting.as_ref().is_none_or(|it| it.ended.is_none()) {
            let before = this.waiting.take().map(|it| it.left).unwrap_or_default();
            let (polled, left) = collect(before, || this.future.poll(cx));
            let ended = match polled {
                Poll::Ready(Err(error)) => return Poll::Ready(Ok(Err(error))),
                Poll::Ready(Ok(ended)) => Some(ended),
                Poll::Pending => None,
            };
            if left.calls.is_empty() && left.error.is_none() {
                return ended.map_or(Poll::Pending, |ended| Poll::Ready(Ok(Ok(ended))));
            }
            let has_ended = ended.is_some();
            *this.waiting = Some(Box::new(Waiting { left, ended }));
            if !has_ended {
                return Poll::Pending;
            }
        }
        let Some(waiting) = this.waiting else {
            return Poll::Pending;
        };
        let Left { calls, error } = &mut waiting.left;
        calls.retain_mut(|call| match poll_commit(call, cx) {
            Poll::Pending => true,
            Poll::Ready(ended) => {
                if let Err(why) = ended {
                    error.get_or_insert(why);
                }
                false
            }
        });
        if !calls.is_empty() {
            return Poll::Pending;
        }
        match (error.take(), waiting.ended.take()) {
            (Some(error), _) => Poll::Ready(Err(error)),
            (None, Some(ended)) => Poll::Ready(Ok(Ok(ended))),
            // It was polled after its end.
            (None, None) => Poll::Pending,
        }
    }
}

/// Runs `poll`, and gives what was left meanwhile, behind what was `before`.
fn collect<R>(before: Left, poll: impl FnOnce() -> R) -> (R, Left) {
    /// A panic leaves nothing behind for the next request.
    struct Clear;
    impl Drop for Clear {
        fn drop(&mut self) {
            let _ = LEFT.try_with(|left| mem::take(&mut *left.borrow_mut()));
        }
    }
    let _ = LEFT.try_with(|left| *left.borrow_mut() = Some(before));
    let clear = Clear;
    let polled = poll();
    let left = LEFT.try_with(|left| left.borrow_mut().take());
    drop(clear);
    (polled, left.ok().flatten().unwrap_or_default())
}
