//! Bodies in both directions, each with the guard that counts it as in flight.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker, ready},
};

use bytes::Bytes;
use handover_plugin::abi::{
    body::{BodyError, BodyStream, Guard, Imported},
    bytes as crossing, waker,
};
use http::{HeaderMap, HeaderValue, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use parking_lot::Mutex;
use tokio::{sync::mpsc, time::Sleep};

use super::{asked::Asked, limits::RequestPermit};
use crate::generation::{CloseHandle, HolderKind, InFlight, KeepAlive, Registration, Upload};

/// The body of an answer.
#[derive(Debug)]
pub(crate) struct ResponseBody(Kind);

#[derive(Debug)]
enum Kind {
    Full(Option<Bytes>),
    Stream(Box<Streaming>),
    Limited(Box<Permitted>),
    Pumped(Box<Pumped>),
    Made(UnsyncBoxBody<Bytes, ResponseBodyError>),
}

/// A body that is polled on the threads of its app, and comes from there frame by frame. None is
/// its end.
#[derive(Debug)]
struct Pumped {
    frames: mpsc::Receiver<Option<Result<Frame<Bytes>, ResponseBodyError>>>,
    /// As long as nothing was taken of it.
    hint: SizeHint,
    ended: bool,
}

impl Pumped {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = std::task::ready!(self.frames.poll_recv(cx));
        self.hint = SizeHint::default();
        self.ended = !matches!(frame, Some(Some(Ok(_))));
        // Cut off without its end, it is not whole.
        Poll::Ready(frame.unwrap_or(Some(Err(ResponseBodyError::Expired))))
    }
}

/// The body of an answer that counts against `max_concurrent` until it has ended.
#[derive(Debug)]
struct Permitted {
    body: ResponseBody,
    _permit: RequestPermit,
}

/// Counts a stream as one that can be ended without a loss.
#[derive(Debug)]
pub(super) struct Endable(KeepAlive);

impl Endable {
    pub(super) fn new(in_flight: &InFlight) -> Self {
        in_flight.shared().opens_endable();
        Self(in_flight.keep_alive())
    }
}

impl Drop for Endable {
    fn drop(&mut self) {
        self.0.shared().closes_endable();
    }
}

/// A stream whose client understands that it ends at any time, and comes back.
#[derive(Debug)]
struct Ending {
    is_grpc: bool,
    /// When it ends; none before the deadline.
    at: Option<Pin<Box<Sleep>>>,
    /// Whether its end was said: in trailers, by the app or by us.
    said: bool,
    _endable: Endable,
}

impl Ending {
    /// That of an answer with these headers, if it is such a stream. A body with a length can only
    /// be broken off, and of any other one nobody knows whether a part of it looks like the whole.
    fn of(headers: &HeaderMap, in_flight: &InFlight) -> Option<Box<Self>> {
        let kind = headers.get(header::CONTENT_TYPE)?.as_bytes();
        let is = |name: &[u8]| {
            kind.get(..name.len())
                .is_some_and(|kind| kind.eq_ignore_ascii_case(name))
        };
        let is_grpc = is(b"application/grpc");
        let ends = is_grpc || is(b"text/event-stream") || is(b"multipart/x-mixed-replace");
        (ends && !headers.contains_key(header::CONTENT_LENGTH)).then(|| {
            Box::new(Self {
                is_grpc,
                at: None,
                said: false,
                _endable: Endable::new(in_flight),
            })
        })
    }

    /// The end, once its time has come after the deadline.
    fn poll(
        &mut self,
        in_flight: &InFlight,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        let at = self
            .at
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(in_flight.shared().end_after())));
        ready!(at.as_mut().poll(cx));
        Poll::Ready(self.end())
    }

    /// The last frame, then none.
    fn end(&mut self) -> Option<Result<Frame<Bytes>, ResponseBodyError>> {
        if !self.is_grpc || std::mem::replace(&mut self.said, true) {
            return None;
        }
        let mut trailers = HeaderMap::with_capacity(2);
        trailers.insert("grpc-status", HeaderValue::from_static("14")); // UNAVAILABLE
        trailers.insert(
            "grpc-message",
            HeaderValue::from_static("the server is restarting"),
        );
        Some(Ok(Frame::trailers(trailers)))
    }
}

/// A body that the plugin streams.
#[derive(Debug)]
struct Streaming {
    /// How it may be ended without a loss; none when it can only be broken off.
    ending: Option<Box<Ending>>,
    body: Imported<InFlight>,
    /// Goes before the body, and with it the generation that it is written down at.
    registration: Registration,
}

impl Guard for InFlight {
    type KeepAlive = KeepAlive;

    fn keep_alive(&self) -> KeepAlive {
        Self::keep_alive(self)
    }

    fn inside<R>(&self, call: impl FnOnce() -> R) -> R {
        self.shared().inside(ANSWER, call)
    }

    fn dropping(&self, drop: impl FnOnce()) {
        self.shared().dropping(ANSWER, drop);
    }
}

impl crossing::KeepAlive for KeepAlive {
    fn dropping(&self, drop: impl FnOnce()) {
        self.shared().dropping("bytes of an answer", drop);
    }
}

/// What the body of an answer is to the watchdog.
const ANSWER: &str = "the body of an answer";

/// Why the body of an answer ended before its end.
#[derive(Debug)]
pub(crate) enum ResponseBodyError {
    /// The plugin's body failed or panicked.
    Plugin(BodyError),
    /// The drain deadline passed.
    Expired,
}

impl fmt::Display for ResponseBodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plugin(error) => write!(f, "the app's response body failed: {error}"),
            Self::Expired => f.write_str("the drain deadline of the generation passed"),
        }
    }
}

impl std::error::Error for ResponseBodyError {}

impl ResponseBody {
    /// None.
    pub(crate) fn empty() -> Self {
        Self(Kind::Full(None))
    }

    /// One that the host makes.
    pub(crate) fn made(
        body: impl Body<Data = Bytes, Error = ResponseBodyError> + Send + 'static,
    ) -> Self {
        Self(Kind::Made(UnsyncBoxBody::new(body)))
    }

    pub(crate) fn full(bytes: Bytes) -> Self {
        Self(Kind::Full(Some(bytes).filter(|bytes| !bytes.is_empty())))
    }

    /// The same, holding `permit` until it has ended.
    pub(super) fn with_permit(self, permit: Option<RequestPermit>) -> Self {
        match permit {
            Some(permit) if !self.is_end_stream() => Self(Kind::Limited(Box::new(Permitted {
                body: self,
                _permit: permit,
            }))),
            _ => self,
        }
    }

    /// The same, polled on the runtime that this is called on. A frame is made ready ahead.
    pub(super) fn pumped(self) -> Self {
        if !matches!(self.0, Kind::Stream(_)) || self.is_end_stream() {
            return self;
        }
        let hint = self.size_hint();
        let (to, frames) = mpsc::channel(1);
        let mut body = self;
        tokio::spawn(async move {
            loop {
                let next = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
                let frame = tokio::select! {
                    biased;
                    () = to.closed() => return,
                    frame = next => frame,
                };
                let last = !matches!(frame, Some(Ok(_)));
                if to.send(frame).await.is_err() || last {
                    return;
                }
            }
        });
        Self(Kind::Pumped(Box::new(Pumped {
            frames,
            hint,
            ended: false,
        })))
    }

    /// What the plugin streams below `headers` for what was asked, over the connection of that
    /// switch if there is one.
    pub(super) fn stream(
        stream: BodyStream,
        headers: &HeaderMap,
        in_flight: InFlight,
        asked: Arc<Asked>,
        connection: Option<Arc<CloseHandle>>,
    ) -> Self {
        let shared = in_flight.shared();
        let registration = shared.register(HolderKind::Stream, asked, connection);
        Self(Kind::Stream(Box::new(Streaming {
            ending: Ending::of(headers, &in_flight),
            registration,
            body: stream.import(in_flight),
        })))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = ResponseBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        match &mut self.get_mut().0 {
            Kind::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Stream(streaming) => streaming.poll_frame(cx),
            Kind::Limited(limited) => Pin::new(&mut limited.body).poll_frame(cx),
            Kind::Pumped(pumped) => pumped.poll_frame(cx),
            Kind::Made(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Kind::Stream(streaming) => streaming.body.size_hint(),
            Kind::Limited(limited) => limited.body.size_hint(),
            Kind::Pumped(pumped) => pumped.hint,
            Kind::Made(body) => body.size_hint(),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Full(bytes) => bytes.is_none(),
            Kind::Stream(streaming) => streaming.body.is_end_stream(),
            Kind::Limited(limited) => limited.body.is_end_stream(),
            Kind::Pumped(pumped) => pumped.ended,
            Kind::Made(body) => body.is_end_stream(),
        }
    }
}

impl Streaming {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        if let Some(ending) = &mut self.ending
            && ending.said
        {
            // Nothing follows trailers, whoever wrote them.
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(ending) = &mut self.ending {
                    ending.said = frame.is_trailers();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                if matches!(error, BodyError::Panicked) {
                    self.body.guard().shared().count_panic();
                }
                Poll::Ready(Some(Err(ResponseBodyError::Plugin(error))))
            }
            // What fed it may have been cancelled at the deadline just before: an end then is none.
            Poll::Ready(None) if self.has_to_end(cx) => match &mut self.ending {
                Some(ending) => Poll::Ready(ending.end()),
                None => self.broken_off(),
            },
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending if self.has_to_end(cx) => match &mut self.ending {
                // Only where many end at a time is one of them to wait for its turn.
                Some(ending) if self.registration.is_cancelled() => Poll::Ready(ending.end()),
                Some(ending) => ending.poll(self.body.guard(), cx),
                None => self.broken_off(),
            },
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Streaming {
    /// Whether it has to end now; if not, the task is woken when it may have to.
    fn has_to_end(&self, cx: &Context<'_>) -> bool {
        let shared = self.body.guard().shared();
        shared.has_to_end(&self.registration, cx)
    }

    /// The end of what is not whole.
    fn broken_off(&self) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        self.body.guard().shared().count_aborted();
        Poll::Ready(Some(Err(ResponseBodyError::Expired)))
    }
}

/// The body of a request, as it is given to the plugin. The plugin may keep it for longer than its
/// answer takes.
#[derive(Debug)]
pub(super) struct RequestBody<B> {
    body: B,
    relay: Option<(Arc<Relay>, Waker)>,
    hold: KeepAlive,
    /// What its connection is told of it.
    upload: Option<Upload>,
}

impl<B> RequestBody<B> {
    pub(super) fn new(body: B, hold: KeepAlive, upload: Option<Upload>) -> Self {
        Self {
            body,
            relay: None,
            hold,
            upload,
        }
    }
}

/// Polls `body`, and says whether it is waited for.
fn poll_upload<B: Body<Data = Bytes> + Unpin>(
    body: &mut B,
    upload: &mut Option<Upload>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
    let polled = Pin::new(body).poll_frame(cx);
    if let Some(known) = upload {
        match polled {
            Poll::Pending => known.is_awaited(true),
            Poll::Ready(Some(Ok(_))) => known.is_awaited(false),
            Poll::Ready(None | Some(Err(_))) => *upload = None,
        }
    }
    polled
}

/// Stands between a waker of the plugin and whoever keeps a waker for longer than this body lives.
///
/// The waker has a hold with it, in this order: whoever wakes may be the last to have something of
/// the plugin.
#[derive(Debug, Default)]
struct Relay(Mutex<Option<(Waker, KeepAlive)>>);

impl Wake for Relay {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Taken out first: no lock is held while code of the plugin runs. The body's next poll puts
        // a waker back.
        let waker = self.0.lock().take();
        if let Some((waker, hold)) = waker {
            hold.shared().inside("a waker of its own", || waker.wake());
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for RequestBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        if !waker::is_foreign(cx.waker()) {
            return poll_upload(&mut this.body, &mut this.upload, cx);
        }
        let (relay, relaying) = this.relay.get_or_insert_with(|| {
            let relay = Arc::new(Relay::default());
            (Arc::clone(&relay), Waker::from(relay))
        });
        let waker = (cx.waker().clone(), this.hold.clone());
        let replaced = relay.0.lock().replace(waker);
        drop(replaced);
        let cx = &mut Context::from_waker(relaying);
        poll_upload(&mut this.body, &mut this.upload, cx)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

impl<B> Drop for RequestBody<B> {
    fn drop(&mut self) {
        if let Some((relay, _)) = &self.relay {
            let waker = relay.0.lock().take();
            drop(waker);
        }
    }
}
