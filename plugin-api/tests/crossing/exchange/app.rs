//! The plugin's side: an app that does what a script says, and remembers what came.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    sync::{Arc, LazyLock, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use abi_stable::library::LibHeader;
use arbitrary::{Result, Unstructured};
use http_body::Body;

use super::{
    head::{CameRequest, KnownConnection},
    script::{Answer, Ending, Part, PlayedIo, Wakes, panics},
};
use crate::theirs::{
    body::{BodyError, BodyStream, Imported},
    call::{OwnedBody, Responder},
    export::{Answering, Entry, FirstPoll, HostHandle, Plugin, Polled, header},
    head::RequestHead,
    lent::Lent,
    poll::PollState,
    root::Settings,
    upgrade::{IoStream, PollIo},
};

/// What an app does with a request.
#[derive(Debug)]
pub(super) struct Task {
    /// How often it is pending, its body aside.
    waits: Vec<Wakes>,
    /// Whether it reads the body at all.
    pub(super) reads: bool,
    pub(super) answer: Answer,
}

/// What an app saw of a request.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) request: CameRequest,
    /// None when there was no body.
    pub(super) body: Option<Vec<Part>>,
}

/// What the next call is about.
#[derive(Clone)]
struct Given {
    task: Arc<Task>,
    seen: Arc<Mutex<Option<Seen>>>,
}

thread_local! {
    static GIVEN: RefCell<Option<Given>> = const { RefCell::new(None) };
}

impl Task {
    pub(super) fn make(u: &mut Unstructured<'_>) -> Result<Arc<Self>> {
        let waits = (0..u.int_in_range(0..=3)?)
            .map(|_| Wakes::make(u))
            .collect::<Result<_>>()?;
        Ok(Arc::new(Self {
            waits,
            reads: u.ratio(7, 8)?,
            answer: Answer::make(u)?,
        }))
    }

    /// Gives it to the app for the next call of this thread.
    pub(super) fn give(self: &Arc<Self>) -> Arc<Mutex<Option<Seen>>> {
        let seen = Arc::default();
        let given = Given {
            task: Arc::clone(self),
            seen: Arc::clone(&seen),
        };
        GIVEN.set(Some(given));
        seen
    }
}

/// The table of the app, as a host finds it in a library.
pub(super) fn root() -> handover_plugin::abi::root::RootRef {
    static HEADER: LazyLock<LibHeader> = LazyLock::new(header::<Scripted>);
    // SAFETY: the two halves are compiled from one source.
    unsafe { HEADER.unchecked_layout() }.unwrap()
}

struct Scripted;

impl Entry for Scripted {
    fn start(
        _host: HostHandle,
        _settings: Lent<'_, Settings<'_>>,
    ) -> std::result::Result<Box<dyn Plugin>, String> {
        Ok(Box::new(Self))
    }
}

impl Plugin for Scripted {
    fn enter(&self) {}

    fn call(
        &self,
        head: Lent<'_, RequestHead<'_>>,
        body: Option<BodyStream>,
        upgrade: bool,
        first: FirstPoll<'_>,
    ) -> Option<Polled> {
        let given = GIVEN.take().unwrap();
        assert_eq!(upgrade, matches!(given.task.answer, Answer::Upgrade(..)));
        let mut request = http::Request::new(());
        head.fill(&mut request).unwrap();
        *given.seen.lock().unwrap() = Some(Seen {
            request: (
                request.into_parts().0,
                head.peer(),
                head.protocol().to_owned(),
                head.connection()
                    .map(|connection| KnownConnection::of(&connection)),
            ),
            body: body.as_ref().map(|_| Vec::new()),
        });
        Some(first.poll(|| Working {
            body: body.map(|body| body.import(())),
            given,
            waits: 0,
            kept: Vec::new(),
        }))
    }

    fn drain(&self) {}

    fn expire(&self, _jobs: bool) -> u64 {
        0
    }

    fn stop(self: Box<Self>, _deadline: Duration) {}
}

struct Working {
    /// None when it was read to its end.
    body: Option<Imported<()>>,
    given: Given,
    waits: usize,
    kept: Vec<std::task::Waker>,
}

impl Working {
    /// Reads the body to its end.
    fn read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut seen = self.given.seen.lock().unwrap();
        let Some((body, came)) = self
            .body
            .as_mut()
            .zip(seen.as_mut().and_then(|seen| seen.body.as_mut()))
        else {
            return Poll::Ready(());
        };
        loop {
            let hint = body.size_hint();
            let end = match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => {
                    came.push(Part::of(frame, &hint));
                    continue;
                }
                Poll::Ready(Some(Err(BodyError::Failed(why)))) => Ending::Failed(why),
                Poll::Ready(Some(Err(BodyError::Panicked))) => Ending::Panicked,
                Poll::Ready(None) => Ending::Whole,
            };
            came.push(Part::End(end));
            self.body = None;
            return Poll::Ready(());
        }
    }
}

impl Answering for Working {
    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        responder: &Responder<'_>,
    ) -> PollState {
        let task = Arc::clone(&self.given.task);
        if task.reads && self.read(cx).is_pending() {
            return PollState::Pending;
        }
        if let Some(wakes) = task.waits.get(self.waits) {
            self.waits += 1;
            wakes.wake(cx.waker(), &mut self.kept);
            return PollState::Pending;
        }
        let (head, body) = match &task.answer {
            Answer::Failed => return PollState::Failed,
            Answer::Panicked => panics(),
            Answer::Empty(head) => (head, OwnedBody::Empty),
            Answer::Full(head, bytes) => (head, OwnedBody::Full(bytes.clone())),
            Answer::Stream(head, frames) => {
                (head, OwnedBody::Stream(BodyStream::new(frames.play(()))))
            }
            Answer::Upgrade(head, io) => (head, OwnedBody::Upgrade(IoStream::new(io.play()))),
        };
        responder.respond(head.0.clone(), b"", body);
        PollState::Ready
    }
}

impl PollIo for PlayedIo {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        self.read(cx, buffer)
    }

    fn poll_write(&mut self, _cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        self.write(buffer)
    }

    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end()
    }
}
