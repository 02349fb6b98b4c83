//! A request as a future: through the table, polled on this worker.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use handover_plugin::abi::{
    body::{BodyStream, Guard},
    bytes::Chunk,
    call::{AnswerBody as Crossing, TakeAnswer},
    head::{RequestHead, ResponseHead},
    import::RunningCall,
    keep::keep_map,
    poll::PollState,
};
use http::{HeaderValue, Request, Response, Uri, Version, header, request};
use http_body::Body;
use hyper::upgrade::OnUpgrade;

use super::{
    body::{AnswerBody, Expiry, RequestBody},
    limits::Limited,
    own,
    route::{Chosen, Routes, target},
    upgrade,
};
use crate::{
    generation::{Generation, InFlight},
    ledger,
};

/// A request on its way.
#[derive(Debug)]
pub struct Dispatched<B>(Step<B>);

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "boxing the common case would cost each request an allocation"
)]
enum Step<B> {
    /// Counted in, and not yet given to the app.
    New(New<B>),
    /// The app works on it.
    Running(Box<Running>),
    /// The same, within the limits of its app.
    Limited(Box<Limited<B>>),
    /// The host itself answers.
    Own(Box<Option<Response<AnswerBody>>>),
    /// It was answered.
    Done,
}

/// What a request needs to know of the connection that it came on.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The address of the client.
    pub peer: Option<SocketAddr>,
    /// Whether answers name the version that they are from.
    pub name_version: bool,
}

#[derive(Debug)]
struct New<B> {
    head: request::Parts,
    body: Option<B>,
    on_upgrade: Option<OnUpgrade>,
    /// Bytes of the path that the app does not see.
    strip: usize,
    peer: Option<SocketAddr>,
    answer: Answer,
}

/// Field order is drop order: the call goes before the guard that keeps its code mapped.
#[derive(Debug)]
struct Running {
    call: RunningCall,
    expiry: Expiry,
    on_upgrade: Option<OnUpgrade>,
    /// For people, when it holds its worker for too long.
    uri: Uri,
    answer: Answer,
}

/// What the answer is made with.
#[derive(Debug)]
struct Answer {
    name_version: bool,
    in_flight: InFlight,
}

/// Chooses where `request` goes, and counts it in there.
pub fn dispatch<B>(routes: &Arc<Routes>, request: Request<B>, origin: Origin) -> Dispatched<B>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Send + Unpin + 'static,
{
    Dispatched::choose(routes, request, origin, false)
}

/// Where the answer of the app arrives.
struct Slot<'a> {
    answer: &'a Answer,
    on_upgrade: &'a mut Option<OnUpgrade>,
    response: &'a mut Option<Response<AnswerBody>>,
}

impl TakeAnswer for Slot<'_> {
    fn take(&mut self, head: &ResponseHead<'_>, body: Crossing<'_>) {
        let in_flight = &self.answer.in_flight;
        let response = self.response.insert(Response::new(AnswerBody::empty()));
        match body {
            Crossing::Full(Chunk::Borrowed(bytes)) => {
                return head.fill_whole(response, bytes.as_slice(), AnswerBody::full);
            }
            Crossing::Full(owned) => {
                *response.body_mut() = AnswerBody::full(owned.into_bytes(|| in_flight.hold()));
            }
            Crossing::Stream(stream) => {
                *response.body_mut() = AnswerBody::stream(stream, in_flight.clone());
            }
            Crossing::Upgrade(io) => {
                if let Some(on_upgrade) = self.on_upgrade.take() {
                    let seat = upgrade::join(on_upgrade, io, in_flight.clone());
                    response.extensions_mut().insert(seat);
                }
            }
            Crossing::Empty => {}
        }
        head.fill(response);
    }
}

impl Answer {
    /// Completes the response to a call that ended with `state`. It is left where it lies, as it is large.
    fn ended(&self, state: PollState, response: &mut Option<Response<AnswerBody>>) {
        let core = self.in_flight.core();
        let spec = core.spec();
        if state == PollState::Panicked {
            core.count_panic();
            *response = Some(own::panicked(spec));
        } else if state != PollState::Ready {
            *response = Some(own::no_answer(spec));
        }
        let response = response.get_or_insert_with(|| own::no_answer(spec));
        if self.name_version {
            let headers = response.headers_mut();
            if let Ok(version) = HeaderValue::from_str(&spec.version.to_string()) {
                headers.insert("handover-version", version);
            }
            headers.insert("handover-generation", spec.id.0.into());
        }
    }
}

/// Whether the client asks for another protocol on this connection. Hyper has put down how it is upgraded, then.
fn asks_for_upgrade<B>(request: &Request<B>) -> bool {
    request.extensions().get::<OnUpgrade>().is_some()
        && request.version() == Version::HTTP_11
        && request.headers().contains_key(header::UPGRADE)
}

impl<B> Dispatched<B>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Send + Unpin + 'static,
{
    /// [`dispatch`] when the limits of the app have admitted it.
    pub(super) fn admitted(routes: &Arc<Routes>, request: Request<B>, origin: Origin) -> Self {
        Self::choose(routes, request, origin, true)
    }

    fn choose(
        routes: &Arc<Routes>,
        mut request: Request<B>,
        origin: Origin,
        admitted: bool,
    ) -> Self {
        let (in_flight, strip) = match routes.choose(request.uri(), request.headers(), admitted) {
            Chosen::Generation(in_flight, strip) => (in_flight, strip),
            Chosen::Limited(limits) => {
                let limited = Limited::new(limits, routes, request, origin);
                return Self(Step::Limited(Box::new(limited)));
            }
            Chosen::Empty(app) => return Self(Step::Own(Box::new(Some(own::empty(&app))))),
            Chosen::NoApp => return Self(Step::Own(Box::new(Some(own::no_app())))),
        };
        let on_upgrade = asks_for_upgrade(&request).then(|| hyper::upgrade::on(&mut request));
        let answer = Answer {
            name_version: origin.name_version,
            in_flight,
        };
        Self::new(request, on_upgrade, strip, origin.peer, answer)
    }

    fn new(
        request: Request<B>,
        on_upgrade: Option<OnUpgrade>,
        strip: usize,
        peer: Option<SocketAddr>,
        answer: Answer,
    ) -> Self {
        let (head, body) = request.into_parts();
        Self(Step::New(New {
            head,
            body: Some(body),
            on_upgrade,
            strip,
            peer,
            answer,
        }))
    }
}

impl<B> Future for Dispatched<B>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Send + Unpin + 'static,
{
    type Output = Response<AnswerBody>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response<AnswerBody>> {
        let step = &mut self.0;
        let mut response = None;
        match step {
            Step::New(new) => match new.call(cx, &mut response) {
                (PollState::Pending, Some(call)) => {
                    if let Step::New(New {
                        head,
                        on_upgrade,
                        answer,
                        ..
                    }) = std::mem::replace(step, Step::Done)
                    {
                        let mut running = Box::new(Running {
                            call,
                            expiry: Expiry::default(),
                            on_upgrade,
                            uri: head.uri,
                            answer,
                        });
                        if !running.expired(cx, &mut response) {
                            *step = Step::Running(running);
                            return Poll::Pending;
                        }
                    }
                }
                (state, _) => new.answer.ended(state, &mut response),
            },
            Step::Running(running) => {
                if !running.poll(cx, &mut response) {
                    return Poll::Pending;
                }
            }
            Step::Limited(limited) => match limited.poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(answer) => response = Some(answer),
            },
            Step::Own(own) => response = own.take(),
            Step::Done => {}
        }
        *step = Step::Done;
        // None only if it is polled again after its end, which no caller does.
        response.map_or(Poll::Pending, Poll::Ready)
    }
}

impl<B> New<B>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Send + Unpin + 'static,
{
    /// Gives it to the app, and polls the app for the first time.
    fn call(
        &mut self,
        cx: &Context<'_>,
        response: &mut Option<Response<AnswerBody>>,
    ) -> (PollState, Option<RunningCall>) {
        let in_flight = &self.answer.in_flight;
        let body = self
            .body
            .take_if(|body| !body.is_end_stream())
            .map(|body| BodyStream::new(RequestBody::new(body, in_flight.hold())));
        let upgrade = self.on_upgrade.is_some();
        let mut slot = Slot {
            answer: &self.answer,
            on_upgrade: &mut self.on_upgrade,
            response,
        };
        let uri = &self.head.uri;
        let core = in_flight.core();
        let called = RequestHead::lend(&self.head, &target(uri, self.strip), self.peer, |head| {
            ledger::inside(&core.call_of(uri.path()), || {
                core.call(head, body, upgrade, cx.waker(), &mut slot)
            })
        });
        // The plugin has its copy.
        keep_map(&mut self.head.headers);
        called
    }
}

impl Running {
    /// Whether it ended, with a response.
    fn poll(&mut self, cx: &mut Context<'_>, response: &mut Option<Response<AnswerBody>>) -> bool {
        let mut slot = Slot {
            answer: &self.answer,
            on_upgrade: &mut self.on_upgrade,
            response,
        };
        let what = self.answer.in_flight.core().call_of(self.uri.path());
        let call = &mut self.call;
        let state = ledger::inside(&what, || call.poll(cx.waker(), &mut slot));
        if state == PollState::Pending {
            return self.expired(cx, response);
        }
        self.answer.ended(state, response);
        true
    }

    /// Whether the drain deadline has passed; the response is the host's then.
    fn expired(
        &mut self,
        cx: &mut Context<'_>,
        response: &mut Option<Response<AnswerBody>>,
    ) -> bool {
        let in_flight = &self.answer.in_flight;
        let expired = self.expiry.poll(in_flight, cx);
        if expired {
            in_flight.core().count_cut();
            *response = Some(own::expired(in_flight.core().spec()));
        }
        expired
    }
}

/// Asks `generation` for `GET path`, as a client would, and gives the status and what the body began with. For smoke requests.
///
/// # Errors
/// When the generation takes no requests, or the path is none.
pub async fn smoke(generation: &Arc<Generation>, path: &str) -> Result<http::StatusCode, String> {
    let request = Request::get(path)
        .header(header::HOST, "localhost")
        .header(header::USER_AGENT, "handover-check")
        .body(http_body_util::Empty::<Bytes>::new())
        .map_err(|error| format!("{path} is not a path: {error}"))?;
    let in_flight = generation
        .enter()
        .ok_or("the generation takes no requests")?;
    let answer = Answer {
        name_version: false,
        in_flight,
    };
    let response = Dispatched::new(request, None, 0, None, answer).await;
    let status = response.status();
    // An answer that breaks off is no good answer.
    http_body_util::BodyExt::collect(response.into_body())
        .await
        .map_err(|error| format!("GET {path}: {error}"))?;
    Ok(status)
}
