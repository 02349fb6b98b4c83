//! The bytes of a connection, asked for once a turn.
//!
//! In one turn of its task, hyper asks for the head of a request, then whether the client is still
//! there while it is answered, and then for the next head. Who found nothing to read has left the
//! waker of the task there, so until the next turn there is nothing for him.
//!
//! The first of them say which version of HTTP it is, and are read again by whoever speaks that.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use tokio::time::Instant;

use super::{activity::Activity, connections::Place};

/// What a client begins with that speaks HTTP/2 without having been asked to.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The head of the frame that follows it: the client's settings.
const FRAME_HEAD: usize = 9;

/// The bytes of a connection.
#[derive(Debug)]
pub(super) struct Stream<T> {
    bytes: T,
    cycle: PollCycle,
    activity: Arc<Activity>,
    first: First,
    speaks: Speaks,
    /// Its place among the connections, which an upgraded one keeps.
    _place: Option<Place>,
}

/// The first bytes, until they are read again.
#[derive(Debug, Default)]
struct First {
    bytes: [u8; PREFACE.len()],
    read: usize,
    given: usize,
}

/// What the client speaks.
#[derive(Debug)]
enum Speaks {
    /// HTTP/1.1, or nobody knows yet.
    Http1,
    /// HTTP/2, and so many bytes are missing until the head of its first frame is there.
    Http2 { missing: usize },
}

/// A version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// 1.1 or 1.0.
    Http1,
    /// 2.
    Http2,
}

/// The turn of the task that a connection is polled in.
#[derive(Clone, Debug, Default)]
pub(super) struct PollCycle(Arc<Shared>);

/// Written by the task of the connection only, so it needs no order with anything else.
#[derive(Debug, Default)]
struct Shared {
    /// Whose turn it is, by its waker; 0 between turns. An upgraded connection is read by another
    /// task, which may begin in the last turn.
    task: AtomicUsize,
    /// Whether there was nothing to read in this turn.
    was_empty: AtomicBool,
}

/// Never 0.
fn task_of(waker: &Waker) -> usize {
    waker.data().addr() | 1
}

impl PollCycle {
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
    /// The bytes of a connection that does what `activity` says, in the turns of `turn`.
    pub(super) fn new(
        bytes: T,
        cycle: PollCycle,
        activity: Arc<Activity>,
        place: Option<Place>,
    ) -> Self {
        Self {
            bytes,
            cycle,
            activity,
            first: First::default(),
            speaks: Speaks::Http1,
            _place: place,
        }
    }
}

impl<T: Read + Unpin> Stream<T> {
    /// Reads what says which version of HTTP the client speaks. It is read again by who speaks
    /// that.
    pub(super) fn poll_version(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Version>> {
        loop {
            let First { bytes, read, .. } = &mut self.first;
            if bytes[..*read] != PREFACE[..*read] {
                return Poll::Ready(Ok(Version::Http1));
            }
            if *read == PREFACE.len() {
                let missing = FRAME_HEAD;
                self.speaks = Speaks::Http2 { missing };
                return Poll::Ready(Ok(Version::Http2));
            }
            let mut room = ReadBuf::new(&mut bytes[*read..]);
            ready!(Pin::new(&mut self.bytes).poll_read(cx, room.unfilled()))?;
            match room.filled().len() {
                // It has closed its side: there is nothing more to be told by.
                0 => return Poll::Ready(Ok(Version::Http1)),
                some => *read += some,
            }
            self.activity.read();
        }
    }

    /// The first bytes once more, as many as there is room for.
    #[cold]
    fn read_again(&mut self, mut buffer: ReadBufCursor<'_>) {
        let First { bytes, read, given } = &mut self.first;
        let number = buffer.remaining().min(*read - *given);
        buffer.put_slice(&bytes[*given..*given + number]);
        *given += number;
    }

    /// Reads until the first frame of HTTP/2 has begun: from then on its streams say what is under
    /// way.
    #[cold]
    fn poll_first_frame(
        &mut self,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; 64];
        let room = bytes.len().min(buffer.remaining());
        let mut read = ReadBuf::new(&mut bytes[..room]);
        ready!(Pin::new(&mut self.bytes).poll_read(cx, read.unfilled()))?;
        buffer.put_slice(read.filled());
        if let Speaks::Http2 { missing } = &mut self.speaks {
            *missing = missing.saturating_sub(read.filled().len());
            if *missing == 0 {
                self.activity.is_idle(Instant::now());
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: Read + Unpin> Read for Stream<T> {
    #[inline]
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.given < self.first.read {
            self.read_again(buffer);
            return Poll::Ready(Ok(()));
        }
        let Shared { task, was_empty } = &*self.cycle.0;
        let in_turn = task.load(Ordering::Relaxed) == task_of(cx.waker());
        if in_turn && was_empty.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        let read = match self.speaks {
            Speaks::Http2 { missing: 1.. } => self.poll_first_frame(cx, buffer),
            Speaks::Http1 | Speaks::Http2 { .. } => Pin::new(&mut self.bytes).poll_read(cx, buffer),
        };
        if read.is_pending() {
            if in_turn {
                self.cycle.0.was_empty.store(true, Ordering::Relaxed);
            }
        } else if matches!(self.speaks, Speaks::Http1) {
            // Whether a client of HTTP/2 is idle is known by its streams.
            self.activity.read();
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
        let written = Pin::new(&mut self.bytes).poll_write(cx, bytes);
        self.activity.wrote(written.is_ready());
        written
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
        let written = Pin::new(&mut self.bytes).poll_write_vectored(cx, bytes);
        self.activity.wrote(written.is_ready());
        written
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
        let cycle = PollCycle::default();
        let mut stream = Stream::new(Asked(0), cycle.clone(), Activity::new(), None);
        let own = Waker::from(Arc::new(Task));
        for cycles in 1..4 {
            cycle.take(&mut Context::from_waker(&own), |cx| {
                ask(&mut stream, cx);
                ask(&mut stream, cx);
                ask(&mut stream, cx);
            });
            assert_eq!(stream.bytes.0, cycles);
        }
    }

    #[test]
    fn another_task_is_always_let_through() {
        let cycle = PollCycle::default();
        let mut stream = Stream::new(Asked(0), cycle.clone(), Activity::new(), None);
        let (own, other) = (Arc::new(Task).into(), Arc::new(Task).into());
        cycle.take(&mut Context::from_waker(&own), |cx| {
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
