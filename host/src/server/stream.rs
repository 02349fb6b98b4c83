//! The bytes of a connection, asked for once a turn.
//!
//! In one turn of its task, hyper asks for the head of a request, then whether the client is still there while it is answered, and then for the
//! next head. Who found nothing to read has left the waker of the task there, so until the next turn there is nothing for him.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use hyper::rt::{Read, ReadBufCursor, Write};

/// The bytes of a connection.
#[derive(Debug)]
pub(super) struct Stream<T> {
    bytes: T,
    turn: Turn,
}

/// The turn of the task that a connection is polled in.
#[derive(Clone, Debug, Default)]
pub(super) struct Turn(Arc<Shared>);

/// Written by the task of the connection only, so it needs no order with anything else.
#[derive(Debug, Default)]
struct Shared {
    /// Whose turn it is, by its waker; 0 between turns. An upgraded connection is read by another task, which may begin in the last turn.
    task: AtomicUsize,
    /// Whether there was nothing to read in this turn.
    was_empty: AtomicBool,
}

/// Never 0.
fn task_of(waker: &Waker) -> usize {
    waker.data().addr() | 1
}

impl Turn {
    /// Takes a turn of the task that `cx` wakes.
    #[inline]
    pub(super) fn take<R>(
        &self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> R,
    ) -> R {
        self.0.was_empty.store(false, Ordering::Relaxed);
        self.0.task.store(task_of(cx.waker()), Ordering::Relaxed);
        let polled = poll(cx);
        self.0.task.store(0, Ordering::Relaxed);
        polled
    }
}

impl<T> Stream<T> {
    /// The bytes of a connection, and its turns.
    pub(super) fn new(bytes: T) -> (Self, Turn) {
        let turn = Turn::default();
        let stream = Self {
            bytes,
            turn: turn.clone(),
        };
        (stream, turn)
    }
}

impl<T: Read + Unpin> Read for Stream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let Shared { task, was_empty } = &*self.turn.0;
        let in_turn = task.load(Ordering::Relaxed) == task_of(cx.waker());
        if in_turn && was_empty.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        let read = Pin::new(&mut self.bytes).poll_read(cx, buffer);
        if in_turn && read.is_pending() {
            self.turn.0.was_empty.store(true, Ordering::Relaxed);
        }
        read
    }
}

impl<T: Write + Unpin> Write for Stream<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.bytes).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.bytes.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.bytes).poll_write_vectored(cx, bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::{mem::MaybeUninit, task::Wake};

    use hyper::rt::ReadBuf;

    use super::*;

    /// Nothing, and how often it was asked for.
    struct Asked(usize);

    impl Read for Asked {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: ReadBufCursor<'_>,
        ) -> Poll<io::Result<()>> {
            self.0 += 1;
            Poll::Pending
        }
    }

    struct Task;

    impl Wake for Task {
        fn wake(self: Arc<Self>) {}
    }

    fn ask(stream: &mut Stream<Asked>, cx: &mut Context<'_>) {
        let mut room = [MaybeUninit::uninit(); 8];
        let mut buffer = ReadBuf::uninit(&mut room);
        assert!(
            Pin::new(stream)
                .poll_read(cx, buffer.unfilled())
                .is_pending()
        );
    }

    #[test]
    fn what_was_empty_is_asked_again_in_the_next_turn() {
        let (mut stream, turn) = Stream::new(Asked(0));
        let own = Waker::from(Arc::new(Task));
        for turns in 1..4 {
            turn.take(&mut Context::from_waker(&own), |cx| {
                ask(&mut stream, cx);
                ask(&mut stream, cx);
                ask(&mut stream, cx);
            });
            assert_eq!(stream.bytes.0, turns);
        }
    }

    #[test]
    fn another_task_is_always_let_through() {
        let (mut stream, turn) = Stream::new(Asked(0));
        let (own, other) = (Arc::new(Task).into(), Arc::new(Task).into());
        turn.take(&mut Context::from_waker(&own), |cx| {
            ask(&mut stream, cx);
            ask(&mut stream, &mut Context::from_waker(&other));
            ask(&mut stream, &mut Context::from_waker(&other));
            assert_eq!(stream.bytes.0, 3);
            ask(&mut stream, cx);
            assert_eq!(stream.bytes.0, 3);
        });
        for waker in [&own, &other, Waker::noop()] {
            let before = stream.bytes.0;
            ask(&mut stream, &mut Context::from_waker(waker));
            ask(&mut stream, &mut Context::from_waker(waker));
            assert_eq!(stream.bytes.0, before + 2);
        }
    }
}
