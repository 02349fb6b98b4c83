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
    call::{AnswerBody as Crossing, TakeAnswer},
    head::{RequestHead, ResponseHead},
    import::RunningCall,
    poll::PollState,
};
use http::{HeaderValue, Request, Response, Version, header};
use http_body::Body;
use hyper::upgrade::OnUpgrade;

use super::{
    body::{AnswerBody, Expiry, RequestBody},
    own,
    route::{Chosen, Routes, target},
    upgrade,
};
use crate::generation::{Generation, InFlight};

/// A request on its way.
#[derive(Debug)]
pub struct Dispatched<B>(Step<B>);

#[derive(Debug)]
enum Step<B> {
    /// Counted in, and not yet given to the app.
    New { in_flight: InFlight, request: Request<B>, strip: usize, peer: Option<SocketAddr>, name_version: bool },
    /// The app works on it.
    Running(Box<Running>),
    /// The host itself answers.
    Own(Box<Response<AnswerBody>>),
    /// It was answered.
    Done,
}

/// Field order is drop order: the call goes before the guard that keeps its code mapped.
#[derive(Debug)]
struct Running {
    call: RunningCall,
    expiry: Expiry,
    on_upgrade: Option<OnUpgrade>,
    name_version: bool,
    in_flight: InFlight,
}

/// Chooses where `request` goes, and counts it in there.
pub fn dispatch<B>(
    routes: &Routes,
    request: Request<B>,
    peer: Option<SocketAddr>,
    name_version: bool,
) -> Dispatched<B> {
    let (parts, body) = request.into_parts();
    let chosen = routes.choose(&parts);
    let request = Request::from_parts(parts, body);
    Dispatched(match chosen {
        Chosen::Generation(in_flight, strip) => Step::New { in_flight, request, strip, peer, name_version },
        Chosen::Empty(app) => Step::Own(Box::new(own::empty(&app))),
        Chosen::NoApp => Step::Own(Box::new(own::no_app())),
    })
}

/// Where the answer of the app arrives.
struct Slot<'a> {
    in_flight: &'a InFlight,
    on_upgrade: &'a mut Option<OnUpgrade>,
    response: Option<Response<AnswerBody>>,
}

impl TakeAnswer for Slot<'_> {
    fn take(&mut self, head: &ResponseHead<'_>, body: Crossing<'_>) {
        let body = match body {
            Crossing::Empty => AnswerBody::empty(),
            Crossing::Full(chunk) => AnswerBody::full(chunk.into_bytes(|| self.in_flight.clone())),
            Crossing::Stream(stream) => AnswerBody::stream(stream, self.in_flight.clone()),
            Crossing::Upgrade(io) => {
                if let Some(on_upgrade) = self.on_upgrade.take() {
                    upgrade::join(on_upgrade, io, self.in_flight.clone());
                }
                AnswerBody::empty()
            }
        };
        self.response = Some(head.to_response(body));
    }
}

/// The response to a call that ended with `state`.
fn ended(state: PollState, response: Option<Response<AnswerBody>>, in_flight: &InFlight, name_version: bool) -> Response<AnswerBody> {
    let core = in_flight.core();
    let mut response = match (state, response) {
        (PollState::Ready, Some(response)) => response,
        (PollState::Panicked, _) => {
            core.count_panic();
            own::panicked(core.spec())
        }
        _ => own::no_answer(core.spec()),
    };
    if name_version {
        let spec = core.spec();
        let headers = response.headers_mut();
        if let Ok(version) = HeaderValue::from_str(&spec.version.to_string()) {
            headers.insert("handover-version", version);
        }
        headers.insert("handover-generation", spec.id.0.into());
    }
    response
}

/// Whether the client asks for another protocol on this connection.
fn asks_for_upgrade<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_11 && request.headers().contains_key(header::UPGRADE)
}

impl<B> Future for Dispatched<B>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Send + Unpin + 'static,
{
    type Output = Response<AnswerBody>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response<AnswerBody>> {
        let step = &mut self.0;
        match std::mem::replace(step, Step::Done) {
            Step::New { in_flight, mut request, strip, peer, name_version } => {
                let upgrade = asks_for_upgrade(&request);
                let mut on_upgrade = upgrade.then(|| hyper::upgrade::on(&mut request));
                let (parts, body) = request.into_parts();
                let body = (!body.is_end_stream())
                    .then(|| BodyStream::new(RequestBody::new(body, in_flight.hold())));
                let mut slot = Slot { in_flight: &in_flight, on_upgrade: &mut on_upgrade, response: None };
                let target = target(&parts.uri, strip);
                let (state, call) = RequestHead::lend(&parts, &target, peer, |head| {
                    in_flight.core().call(head, body, upgrade, cx.waker(), &mut slot)
                });
                let response = slot.response.take();
                match call {
                    Some(call) if state == PollState::Pending => {
                        let mut running = Running { call, expiry: Expiry::default(), on_upgrade, name_version, in_flight };
                        if let Some(response) = running.expired(cx) {
                            return Poll::Ready(response);
                        }
                        *step = Step::Running(Box::new(running));
                        Poll::Pending
                    }
                    _ => Poll::Ready(ended(state, response, &in_flight, name_version)),
                }
            }
            Step::Running(mut running) => match running.poll(cx) {
                Poll::Pending => {
                    *step = Step::Running(running);
                    Poll::Pending
                }
                ready => ready,
            },
            Step::Own(response) => Poll::Ready(*response),
            Step::Done => Poll::Pending,
        }
    }
}

impl Running {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Response<AnswerBody>> {
        let mut slot = Slot { in_flight: &self.in_flight, on_upgrade: &mut self.on_upgrade, response: None };
        let state = self.call.poll(cx.waker(), &mut slot);
        if state == PollState::Pending {
            return self.expired(cx).map_or(Poll::Pending, Poll::Ready);
        }
        let response = slot.response.take();
        Poll::Ready(ended(state, response, &self.in_flight, self.name_version))
    }

    /// The host's answer, if the drain deadline has passed.
    fn expired(&mut self, cx: &mut Context<'_>) -> Option<Response<AnswerBody>> {
        let expired = self.expiry.poll(&self.in_flight, cx);
        expired.then(|| {
            self.in_flight.core().count_cut();
            own::expired(self.in_flight.core().spec())
        })
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
    let in_flight = generation.enter().ok_or("the generation takes no requests")?;
    let step = Step::New { in_flight, request, strip: 0, peer: None, name_version: false };
    let response = Dispatched(step).await;
    let status = response.status();
    // An answer that breaks off is no good answer.
    http_body_util::BodyExt::collect(response.into_body()).await.map_err(|error| format!("GET {path}: {error}"))?;
    Ok(status)
}
