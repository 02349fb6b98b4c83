//! What a body and an upgraded connection do, and what must come of it on the other side.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::head::{self, ResponseHead};

/// What an app gives back.
#[derive(Debug)]
pub(super) enum Answer {
    Failed,
    Panicked,
    Empty(ResponseHead),
    Full(ResponseHead, Bytes),
    Stream(ResponseHead, Frames),
    Upgrade(ResponseHead, Io),
}

impl Answer {
    pub(super) fn make(u: &mut Unstructured<'_>) -> Result<Self> {
        Ok(match u.int_in_range(0..=9)? {
            0 => Self::Failed,
            1 => Self::Panicked,
            2 => Self::Empty(ResponseHead::make(u)?),
            3 | 4 => Self::Full(ResponseHead::make(u)?, data(u)?),
            5 => Self::Upgrade(ResponseHead::make(u)?, Io::make(u)?),
            _ => Self::Stream(ResponseHead::make(u)?, Frames::make(u)?),
        })
    }
}

/// A panic that the hook does not tell, so that it does not look like a fault. What it panics with
/// panics when it is dropped.
pub(super) fn panics() -> ! {
    struct Again;
    impl Drop for Again {
        fn drop(&mut self) {
            std::panic::resume_unwind(Box::new("and again"));
        }
    }
    std::panic::resume_unwind(Box::new(Again))
}

/// How somebody who is pending wakes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wakes {
    ByRef,
    ByValue,
    AndKeepsIt,
    FromAnotherThread,
}

impl Wakes {
    pub(super) fn make(u: &mut Unstructured<'_>) -> Result<Self> {
        Ok(match u.arbitrary::<u8>()? {
            0..100 => Self::ByRef,
            100..180 => Self::ByValue,
            180..250 => Self::AndKeepsIt,
            250.. => Self::FromAnotherThread,
        })
    }

    pub(super) fn wake(self, waker: &Waker, kept: &mut Vec<Waker>) {
        match self {
            Self::ByRef => waker.wake_by_ref(),
            Self::ByValue => {
                let waker = waker.clone();
                waker.wake();
            }
            Self::AndKeepsIt => {
                kept.push(waker.clone());
                kept.iter().for_each(Waker::wake_by_ref);
            }
            Self::FromAnotherThread => {
                let waker = waker.clone();
                std::thread::spawn(move || waker.wake()).join().unwrap();
            }
        }
    }
}

/// What a body does.
#[derive(Clone, Debug)]
pub(super) struct Frames {
    steps: Vec<Step>,
    ending: Ending,
    /// Whether it says beforehand how long it is.
    knows_length: bool,
}

#[derive(Clone, Debug)]
enum Step {
    Wait(Wakes),
    Data(Bytes),
    Trailers(HeaderMap),
}

/// How a body ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Whole,
    Failed(String),
    Panicked,
}

/// What came of a body: in order, the end last.
#[derive(Debug)]
pub(super) enum Part {
    Data(Bytes, (u64, Option<u64>)),
    Trailers(HeaderMap),
    End(Ending),
}

impl Part {
    /// `hint` is what was said before `frame` came.
    pub(super) fn of(frame: Frame<Bytes>, hint: &SizeHint) -> Self {
        match frame.into_data() {
            Ok(data) => Self::Data(data, (hint.lower(), hint.upper())),
            Err(frame) => Self::Trailers(frame.into_trailers().unwrap()),
        }
    }
}

impl Frames {
    pub(super) fn make(u: &mut Unstructured<'_>) -> Result<Self> {
        let mut steps = Vec::new();
        for _ in 0..u.int_in_range(0..=12)? {
            steps.push(match u.int_in_range(0..=7)? {
                0 | 1 => Step::Wait(Wakes::make(u)?),
                2 => Step::Trailers(head::map(u)?),
                _ => Step::Data(data(u)?),
            });
        }
        Ok(Self {
            steps,
            ending: match u.int_in_range(0..=5)? {
                0 => Ending::Failed(String::from_utf8_lossy(head::bytes(u)?).into_owned()),
                1 => Ending::Panicked,
                _ => Ending::Whole,
            },
            knows_length: u.arbitrary()?,
        })
    }

    /// A body that does it, and holds `guard`.
    pub(super) fn play<G>(&self, guard: G) -> Played<G> {
        Played {
            left: self.clone(),
            kept: Vec::new(),
            _guard: guard,
        }
    }

    pub(super) fn came_as(&self, came: &[Part]) {
        let mut left = self.clone();
        let mut came = came.iter();
        while !left.steps.is_empty() {
            let hint = left.hint();
            match (left.steps.remove(0), hint) {
                (Step::Wait(_), _) => {}
                (Step::Data(sent), hint) => match came.next() {
                    Some(Part::Data(data, said)) => {
                        assert_eq!(sent, data);
                        assert_eq!((hint.lower(), hint.upper()), *said);
                    }
                    other => panic!("data was sent, {other:?} came"),
                },
                (Step::Trailers(sent), _) => match came.next() {
                    Some(Part::Trailers(trailers)) => head::same(&sent, trailers),
                    other => panic!("trailers were sent, {other:?} came"),
                },
            }
        }
        match came.next() {
            Some(Part::End(ending)) => assert_eq!(left.ending, *ending),
            other => panic!("it ended, {other:?} came"),
        }
        assert_eq!(came.len(), 0);
    }

    fn hint(&self) -> SizeHint {
        if !self.knows_length {
            return SizeHint::default();
        }
        SizeHint::with_exact(
            self.steps
                .iter()
                .map(|step| match step {
                    Step::Data(data) => data.len() as u64,
                    Step::Wait(_) | Step::Trailers(_) => 0,
                })
                .sum(),
        )
    }
}

/// A body that does what a script says.
pub(super) struct Played<G> {
    left: Frames,
    kept: Vec<Waker>,
    _guard: G,
}

impl<G: Unpin> Body for Played<G> {
    type Data = Bytes;
    type Error = String;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, String>>> {
        let this = &mut *self;
        if this.left.steps.is_empty() {
            return match &this.left.ending {
                Ending::Whole => Poll::Ready(None),
                Ending::Failed(why) => Poll::Ready(Some(Err(why.clone()))),
                Ending::Panicked => panics(),
            };
        }
        Poll::Ready(Some(Ok(match this.left.steps.remove(0) {
            Step::Wait(wakes) => {
                wakes.wake(cx.waker(), &mut this.kept);
                return Poll::Pending;
            }
            Step::Data(data) => Frame::data(data),
            Step::Trailers(trailers) => Frame::trailers(trailers),
        })))
    }

    fn size_hint(&self) -> SizeHint {
        self.left.hint()
    }
}

/// What an upgraded connection does: what it gives to readers before its end, and how much it takes
/// at once of writers.
#[derive(Clone, Debug)]
pub(super) struct Io {
    reads: Vec<IoStep>,
    takes: usize,
}

#[derive(Clone, Debug)]
enum IoStep {
    Wait(Wakes),
    Data(Bytes),
    Failed,
    Panicked,
}

impl Io {
    fn make(u: &mut Unstructured<'_>) -> Result<Self> {
        let mut reads = Vec::new();
        for _ in 0..u.int_in_range(0..=8)? {
            reads.push(match u.int_in_range(0..=7)? {
                0 | 1 => IoStep::Wait(Wakes::make(u)?),
                2 => IoStep::Failed,
                3 => IoStep::Panicked,
                _ => IoStep::Data(data(u)?),
            });
        }
        Ok(Self {
            reads,
            takes: u.int_in_range(1..=300)?,
        })
    }

    pub(super) fn play(&self) -> PlayedIo {
        PlayedIo {
            left: self.clone(),
            kept: Vec::new(),
            ended: false,
        }
    }

    /// Reads, writes and ends `came`, which the other side made of [`Io::play`].
    pub(super) fn is_played_by(
        &self,
        came: &mut impl handover_plugin::abi::upgrade::PollIo,
        waker: &Waker,
        mut pending: impl FnMut(),
    ) {
        let cx = &mut Context::from_waker(waker);
        let mut buffer = [0; 100];
        for step in &self.reads {
            match step {
                IoStep::Wait(_) => {
                    assert!(came.poll_read(cx, &mut buffer).is_pending());
                    pending();
                }
                IoStep::Failed | IoStep::Panicked => {
                    assert!(matches!(
                        came.poll_read(cx, &mut buffer),
                        Poll::Ready(Err(_))
                    ));
                }
                IoStep::Data(data) => {
                    for piece in data.chunks(buffer.len()) {
                        match came.poll_read(cx, &mut buffer) {
                            Poll::Ready(Ok(n)) => assert_eq!(buffer[..n], *piece),
                            other => panic!("{piece:?} was sent, {other:?} came"),
                        }
                    }
                }
            }
        }
        assert!(matches!(
            came.poll_read(cx, &mut buffer),
            Poll::Ready(Ok(0))
        ));
        let mut rest = &[7; 1_000][..];
        while !rest.is_empty() {
            match came.poll_write(cx, rest) {
                Poll::Ready(Ok(n)) => {
                    assert_eq!(n, rest.len().min(self.takes));
                    rest = &rest[n..];
                }
                other => panic!("{} bytes were written: {other:?}", rest.len()),
            }
        }
        assert!(matches!(came.poll_flush(cx), Poll::Ready(Ok(()))));
        assert!(matches!(came.poll_shutdown(cx), Poll::Ready(Ok(()))));
        assert!(matches!(came.poll_write(cx, b"x"), Poll::Ready(Err(_))));
    }
}

/// An upgraded connection that does what a script says.
pub(super) struct PlayedIo {
    left: Io,
    kept: Vec<Waker>,
    ended: bool,
}

impl PlayedIo {
    pub(super) fn read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        while let Some(step) = self.left.reads.first_mut() {
            let answer = match step {
                IoStep::Data(data) if data.is_empty() => {
                    self.left.reads.remove(0);
                    continue;
                }
                IoStep::Data(data) => {
                    let piece = data.split_to(data.len().min(buffer.len()));
                    buffer[..piece.len()].copy_from_slice(&piece);
                    return Poll::Ready(Ok(piece.len()));
                }
                IoStep::Wait(wakes) => {
                    wakes.wake(cx.waker(), &mut self.kept);
                    Poll::Pending
                }
                IoStep::Failed => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                IoStep::Panicked => {
                    self.left.reads.remove(0);
                    panics()
                }
            };
            self.left.reads.remove(0);
            return answer;
        }
        Poll::Ready(Ok(0))
    }

    pub(super) fn write(&mut self, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(match self.ended {
            false => Ok(buffer.len().min(self.left.takes)),
            true => Err(io::ErrorKind::BrokenPipe.into()),
        })
    }

    pub(super) fn end(&mut self) -> Poll<io::Result<()>> {
        self.ended = true;
        Poll::Ready(Ok(()))
    }
}

/// Bytes of a body or a connection: mostly few, sometimes more than are copied.
fn data(u: &mut Unstructured<'_>) -> Result<Bytes> {
    Ok(match u.arbitrary::<u8>()? {
        0..4 => vec![u.arbitrary()?; usize::from(u.arbitrary::<u16>()?)].into(),
        _ => Bytes::copy_from_slice(head::bytes(u)?),
    })
}
