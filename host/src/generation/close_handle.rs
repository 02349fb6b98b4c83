//! The switch that ends a connection whatever it is doing.
//!
//! A connection whose client does not read is not polled, so what it streams would hold its
//! generation for as long as the client likes. Everything that is streamed therefore leaves the
//! switch of its connection with its generation, which throws it some time after the drain
//! deadline. When the host ends, the same switch asks a connection to finish what it has.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering, fence},
    },
    task::Waker,
};

/// The switch of one connection.
#[derive(Debug, Default)]
pub struct CloseHandle {
    /// An [`CloseRequest`].
    request: AtomicU8,
    waker: OnceLock<Waker>,
    /// Bodies of requests that have not come whole and whose answers have not begun.
    uploads: AtomicUsize,
    /// Those of them that an app waits for.
    awaited: AtomicUsize,
    /// How often something came that was waited for. May begin again at 0.
    came: AtomicU32,
}

/// The body of a request, until it has come whole or the answer begins: from then on it is a
/// stream, and may be silent for as long as both sides like. Each half is held by one who may see
/// its end; the first that is dropped ends it.
#[derive(Debug)]
pub(crate) struct Upload(Arc<UploadState>);

#[derive(Debug)]
struct UploadState {
    handle: Arc<CloseHandle>,
    /// One of [`FLOWS`], [`AWAITED`], [`DONE`].
    state: AtomicU8,
}

/// Its bytes are there, or nobody asks for them.
const FLOWS: u8 = 0;
/// Its app waits for the client.
const AWAITED: u8 = 1;
/// Nothing more is expected of the client.
const DONE: u8 = 2;

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

    /// Whether the body of a request is on its way.
    #[inline]
    pub fn has_uploads(&self) -> bool {
        self.uploads.load(Ordering::Relaxed) > 0
    }

    /// How often something has come, if an app waits for more of a body.
    pub fn awaits_upload(&self) -> Option<u32> {
        (self.awaited.load(Ordering::Relaxed) > 0).then(|| self.came.load(Ordering::Relaxed))
    }

    fn request(&self, request: CloseRequest) {
        self.request.fetch_max(request as u8, Ordering::Release);
        fence(Ordering::SeqCst);
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }
}

impl Upload {
    /// Both halves of one over the connection of `cut`.
    pub(crate) fn over(handle: &Arc<CloseHandle>) -> (Self, Self) {
        handle.uploads.fetch_add(1, Ordering::Relaxed);
        let state = Arc::new(UploadState {
            handle: Arc::clone(handle),
            state: AtomicU8::new(FLOWS),
        });
        (Self(Arc::clone(&state)), Self(state))
    }

    /// Its app waits for more of it, or does no longer.
    #[inline]
    pub(crate) fn is_awaited(&self, awaited: bool) {
        let UploadState { handle, state } = &*self.0;
        let (from, to) = if awaited {
            (FLOWS, AWAITED)
        } else {
            (AWAITED, FLOWS)
        };
        let relaxed = Ordering::Relaxed;
        if state.load(relaxed) != from
            || state.compare_exchange(from, to, relaxed, relaxed).is_err()
        {
            return;
        }
        if awaited {
            handle.awaited.fetch_add(1, relaxed);
        } else {
            handle.awaited.fetch_sub(1, relaxed);
            handle.came.fetch_add(1, relaxed);
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let UploadState { handle, state } = &*self.0;
        let before = state.swap(DONE, Ordering::Relaxed);
        if before == DONE {
            return;
        }
        handle.uploads.fetch_sub(1, Ordering::Relaxed);
        if before == AWAITED {
            handle.awaited.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_is_awaited_until_something_comes_or_one_half_is_gone() {
        let handle = Arc::new(CloseHandle::default());
        let (body, answer) = Upload::over(&handle);
        assert!(handle.has_uploads());
        assert_eq!(handle.awaits_upload(), None);
        for came in 0..3 {
            body.is_awaited(true);
            body.is_awaited(true);
            assert_eq!(handle.awaits_upload(), Some(came));
            body.is_awaited(false);
            assert_eq!(handle.awaits_upload(), None);
        }
        body.is_awaited(true);
        drop(answer);
        assert_eq!(
            (handle.has_uploads(), handle.awaits_upload()),
            (false, None)
        );
        body.is_awaited(true);
        drop(body);
        assert_eq!(
            (handle.has_uploads(), handle.awaits_upload()),
            (false, None)
        );
    }
}
