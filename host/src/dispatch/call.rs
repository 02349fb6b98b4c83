//! A request as a future: through the table, polled on this worker.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use handover_plugin::abi::{
    body::BodyStream,
    bytes::Chunk,
    call::{ReceiveResponse, ReceivedBody},
    head::{RequestHead, ResponseHead},
    import::RunningCall,
    lent::Lent,
    poll::PollState,
    pool::return_map,
};
use http::{HeaderName, HeaderValue, Request, Response, Version};
use http_body::Body;
use hyper::ext::ReasonPhrase;

use super::{
    asked::Asked,
    body::{RequestBody, ResponseBody},
    connection::ConnectionInfo,
    error_response,
    limits::Limited,
    mirror::Mirrored,
    route::{Chosen, Routes, target, told_target, whole_target},
    sampled::Sampled,
    targets::Watched,
    upgrade::{self, Upgrade},
};
use crate::{
    assets::{self, Found},
    canary::Sample,
    generation::{Generation, HolderKind, InFlight, Registration, TenantPlace, Upload},
};

/// A request on its way.
#[derive(Debug)]
pub(crate) struct Dispatched<B>(Step<B>);

#[derive(Debug)]
enum Step<B> {
    /// It is answered already, by its app or by the host. None only once that was taken.
    Answered(Option<Response<ResponseBody>>),
    /// Counted in, and not yet given to the app.
    New(New<B>),
    /// The app works on it.
    Running(Box<Running>),
    /// The same, within the limits of its app.
    Limited(Box<Limited<B>>),
    /// The same, while a version of its app is on trial.
    Sampled(Box<Sampled<B>>),
    /// The same, of which there is a copy.
    Mirrored(Box<Mirrored<B>>),
}

/// Counted in, and left to its first poll.
#[derive(Debug)]
struct New<B> {
    request: Request<()>,
    body: Option<B>,
    call: Call,
    connection: Arc<ConnectionInfo>,
}

/// What is needed to call the app, beside the request and its connection.
#[derive(Debug)]
struct Call {
    upgrade: Option<Upgrade>,
    /// Bytes of the path that the app does not see.
    strip: usize,
    /// That its tenant has it, where tenants move each by itself.
    place: Option<Arc<TenantPlace>>,
    in_flight: InFlight,
}

/// The call goes before the guard that keeps its code mapped.
#[derive(Debug)]
struct Running {
    /// None once it has ended.
    call: Option<RunningCall>,
    upgrade: Option<Upgrade>,
    /// For people, when it holds its worker or its generation for too long.
    asked: Arc<Asked>,
    registration: Registration,
    in_flight: InFlight,
    connection: Arc<ConnectionInfo>,
    /// The body of the request, where it has one.
    upload: Option<Upload>,
    /// Whether it was polled when it was dispatched. The next poll with the same waker has nothing
    /// to add.
    just_polled: bool,
}

/// Chooses where `request` goes, and counts it in there.
///
/// One of HTTP/1 without a body is given to its app at once. Hyper looks next whether the client is
/// still there, and takes a new buffer for that as long as the head of this request is in use.
pub(crate) fn dispatch<B>(
    routes: &Arc<Routes>,
    request: Request<B>,
    connection: &Arc<ConnectionInfo>,
) -> Dispatched<B>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Send + Unpin + 'static,
{
    Dispatched::choose(routes, request, connection, false)
}

impl ConnectionInfo {
    /// The waker that `request` will be polled with, if it may be polled at once: with HTTP/1 that
    /// of the connection, with HTTP/2 each is a task of its own. What has a body waits for some of
    /// it anyway.
    fn waker_of<B: Body>(&self, request: &Request<B>) -> Option<&Waker> {
        let close_handle = self.close_handle.as_deref()?;
        let at_once = request.version() < Version::HTTP_2 && request.body().is_end_stream();
        close_handle.waker().filter(|_| at_once)
    }
}

/// Where the answer of the app arrives.
struct Slot<'a> {
    answer: AnswerContext<'a>,
    /// What is told of the request where more than a whole answer comes.
    asked: &'a dyn Fn() -> Arc<Asked>,
    upgrade: &'a mut Option<Upgrade>,
    response: &'a mut Option<Response<ResponseBody>>,
}

/// What an answer is made with.
#[derive(Clone, Copy)]
struct AnswerContext<'a> {
    in_flight: &'a InFlight,
    connection: &'a ConnectionInfo,
}

impl ReceiveResponse for Slot<'_> {
    fn take(&mut self, head: Lent<'_, ResponseHead<'_>>, body: ReceivedBody<'_>) {
        let AnswerContext {
            in_flight,
            connection,
        } = self.answer;
        if self.response.is_some() {
            return; // its first answer counts
        }
        let response = self.response.insert(Response::new(ResponseBody::empty()));
        let borrowed = match &body {
            ReceivedBody::Full(Chunk::Borrowed(bytes)) => bytes.as_slice(),
            _ => &[],
        };
        let copied = head.fill(response, borrowed);
        let reason = head.reason();
        if !reason.is_empty() {
            name_reason(reason, response);
        }
        match body {
            ReceivedBody::Full(Chunk::Borrowed(_)) => {
                *response.body_mut() = ResponseBody::full(copied)
            }
            ReceivedBody::Full(owned) => {
                *response.body_mut() =
                    ResponseBody::full(owned.into_bytes(|| in_flight.keep_alive()));
            }
            ReceivedBody::Stream(stream) => {
                *response.body_mut() = ResponseBody::stream(
                    stream,
                    response.headers(),
                    in_flight.clone(),
                    (self.asked)(),
                    connection.close_handle.clone(),
                );
            }
            ReceivedBody::Upgrade(io) => {
                if let Some(upgrade) = self.upgrade.take() {
                    let permit = upgrade::join(upgrade, io, in_flight.clone(), (self.asked)());
                    response.extensions_mut().insert(permit);
                }
            }
            ReceivedBody::Empty => {}
        }
    }
}

/// Has hyper write the reason phrase of the app. One that HTTP does not allow is left out.
#[cold]
fn name_reason(reason: &[u8], response: &mut Response<ResponseBody>) {
    if let Ok(reason) = ReasonPhrase::try_from(reason) {
        response.extensions_mut().insert(reason);
    }
}

impl AnswerContext<'_> {
    /// Completes the response to a call that ended with `state`. It is left where it lies, as it is
    /// large.
    #[inline]
    fn ended(self, state: PollState, response: &mut Option<Response<ResponseBody>>) {
        if state != PollState::Ready || response.is_none() {
            *response = Some(self.instead(state));
        }
        if let Some(response) = response
            && response.status().is_server_error()
        {
            self.in_flight.shared().count_server_error();
        }
        if self.connection.is_marked
            && let Some(response) = response
        {
            self.mark(response);
        }
    }

    /// What the host answers where the app has not.
    #[cold]
    fn instead(self, state: PollState) -> Response<ResponseBody> {
        let shared = self.in_flight.shared();
        if state == PollState::Panicked {
            shared.count_panic();
            error_response::panicked(shared.spec())
        } else {
            error_response::no_answer(shared.spec())
        }
    }

    /// Says which generation has answered, to the client or to the connection.
    fn mark(self, response: &mut Response<ResponseBody>) {
        if self.connection.tells_generation {
            let answered_by = self.in_flight.shared().answered_by();
            response.extensions_mut().insert(answered_by);
        }
        if self.connection.name_version {
            self.name_version(response);
        }
    }

    fn name_version(self, response: &mut Response<ResponseBody>) {
        const VERSION: HeaderName = HeaderName::from_static("handover-version");
        const GENERATION: HeaderName = HeaderName::from_static("handover-generation");
        let label = self.in_flight.shared().label();
        let headers = response.headers_mut();
        for (name, text) in [(VERSION, &label.version), (GENERATION, &label.number)] {
            // Shared, not copied. A version is ASCII without control characters, so it is a value.
            if let Ok(value) = HeaderValue::from_maybe_shared(text.clone()) {
                headers.insert(name, value);
            }
        }
    }
}

impl<B> Step<B>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Send + Unpin + 'static,
{
    fn new(request: Request<B>, call: Call, connection: Arc<ConnectionInfo>) -> Self {
        let (head, body) = request.into_parts();
        Self::New(New {
            request: Request::from_parts(head, ()),
            body: Some(body),
            call,
            connection,
        })
    }
}

impl<B> Dispatched<B>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Send + Unpin + 'static,
{
    /// What the host has answered already.
    pub(crate) fn answered(response: Response<ResponseBody>) -> Self {
        Self(Step::Answered(Some(response)))
    }

    /// What asks a generation that was not chosen for `request`.
    pub(super) fn copied(
        mut request: Request<B>,
        strip: usize,
        in_flight: InFlight,
        connection: Arc<ConnectionInfo>,
    ) -> Self {
        let call = Call::new(&mut request, strip, in_flight);
        Self(Step::new(request, call, connection))
    }

    /// Returns who is to be told how it ends, while a version of its app is on trial.
    pub(super) fn sample(&self) -> Option<Arc<Sample>> {
        match &self.0 {
            Step::Sampled(sampled) => Some(Arc::clone(sampled.sample())),
            _ => None,
        }
    }

    /// [`dispatch`] when the limits of the app have admitted it.
    pub(super) fn admitted(
        routes: &Arc<Routes>,
        request: Request<B>,
        connection: &Arc<ConnectionInfo>,
    ) -> Self {
        Self::choose(routes, request, connection, true)
    }

    fn choose(
        routes: &Arc<Routes>,
        mut request: Request<B>,
        connection: &Arc<ConnectionInfo>,
        admitted: bool,
    ) -> Self {
        // Request and response are large: the one moves only if it is kept, the other is made where
        // it will be taken from.
        let mut this = Self(Step::Answered(None));
        match routes.choose(
            request.uri(),
            request.headers(),
            &connection.client,
            admitted,
        ) {
            Chosen::Generation(in_flight, strip) => {
                let call = Call::new(&mut request, strip, in_flight);
                match connection.waker_of(&request) {
                    // What its limits have admitted may be polled on threads of its app.
                    Some(waker) if !admitted => this.begin(call, &mut request, connection, waker),
                    _ => this.0 = Step::new(request, call, Arc::clone(connection)),
                }
            }
            Chosen::Watched(chosen) => {
                let (in_flight, strip, watched) = *chosen;
                let Watched {
                    sample,
                    mirror,
                    place,
                } = watched;
                let copy = mirror.and_then(|mirror| mirror.copy(&request, strip, connection));
                let mut call = Call::new(&mut request, strip, in_flight);
                call.place = place;
                let step = Step::new(request, call, Arc::clone(connection));
                this.0 = match (sample, copy) {
                    (None, None) => step,
                    (Some(sample), _) => Step::Sampled(Box::new(Sampled::new(Self(step), sample))),
                    (None, Some(copy)) => Step::Mirrored(Box::new(Mirrored::new(Self(step), copy))),
                };
            }
            Chosen::Limited(limits) => {
                let limited = Limited::new(limits, routes, request, connection);
                this.0 = Step::Limited(Box::new(limited));
            }
            Chosen::Empty(what) => {
                let (app, down) = *what;
                this.0 = Step::Answered(Some(error_response::empty(&app, &down)));
            }
            Chosen::Asset(found) => {
                let (method, headers) = (request.method(), request.headers());
                let response = match found {
                    Found::File(file) => assets::answer(&file, method, headers),
                    Found::Skewed => assets::skewed(method),
                };
                this.0 = Step::Answered(Some(response.map(ResponseBody::full)));
            }
            Chosen::NoApp => this.0 = Step::Answered(Some(error_response::no_app())),
        }
        this
    }

    /// Gives `request`, which has no body, to the app now.
    #[inline]
    fn begin(
        &mut self,
        mut call: Call,
        request: &mut Request<B>,
        connection: &Arc<ConnectionInfo>,
        waker: &Waker,
    ) {
        if let Step::Answered(response) = &mut self.0
            && let Some(running) = call.begin(request, None, connection, waker, response)
        {
            let connection = Arc::clone(connection);
            let mut running = Box::new(call.running(running, request, connection));
            if !running.expired(&mut Context::from_waker(waker), response) {
                running.just_polled = true;
                self.0 = Step::Running(running);
            }
        }
    }
}

impl<B> Future for Dispatched<B>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Send + Unpin + 'static,
{
    type Output = Response<ResponseBody>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response<ResponseBody>> {
        match &mut self.0 {
            Step::Answered(response) => match response.take() {
                Some(response) => Poll::Ready(response),
                None => Poll::Pending, // it was polled again after its end
            },
            _ => self.work(cx),
        }
    }
}

impl<B> Dispatched<B>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Send + Unpin + 'static,
{
    /// Polls what has not answered yet.
    fn work(&mut self, cx: &mut Context<'_>) -> Poll<Response<ResponseBody>> {
        let step = &mut self.0;
        let mut response = None;
        match step {
            Step::Answered(_) => {}
            Step::New(new) => {
                let mut upload = None;
                let body = new.body.take_if(|body| !body.is_end_stream()).map(|body| {
                    let of_body = new.connection.close_handle.as_ref().map(|close_handle| {
                        let (of_body, of_answer) = Upload::over(close_handle);
                        upload = Some(of_answer);
                        of_body
                    });
                    let hold = new.call.in_flight.keep_alive();
                    BodyStream::new(RequestBody::new(body, hold, of_body))
                });
                let begun = new.call.begin(
                    &mut new.request,
                    body,
                    &new.connection,
                    cx.waker(),
                    &mut response,
                );
                if let Some(running) = begun
                    && let Step::New(new) = std::mem::replace(step, Step::Answered(None))
                {
                    let New {
                        call,
                        request,
                        connection,
                        ..
                    } = new;
                    let mut running = Box::new(call.running(running, &request, connection));
                    running.upload = upload;
                    if !running.expired(cx, &mut response) {
                        *step = Step::Running(running);
                        return Poll::Pending;
                    }
                }
            }
            Step::Running(running) => {
                let just_polled = std::mem::take(&mut running.just_polled);
                let is_known = just_polled && running.registration.is_known(cx.waker());
                if is_known || !running.poll(cx, &mut response) {
                    return Poll::Pending;
                }
            }
            Step::Limited(limited) => response = Some(std::task::ready!(limited.poll(cx))),
            Step::Sampled(sampled) => response = Some(std::task::ready!(sampled.poll(cx))),
            Step::Mirrored(mirrored) => response = Some(std::task::ready!(mirrored.poll(cx))),
        }
        *step = Step::Answered(None);
        response.map_or(Poll::Pending, Poll::Ready)
    }
}

impl Call {
    #[inline]
    fn new<B: Body>(request: &mut Request<B>, strip: usize, in_flight: InFlight) -> Self {
        Self {
            upgrade: Upgrade::of(request),
            strip,
            place: None,
            in_flight,
        }
    }

    /// Gives `request` to the app, and polls the app for the first time. There is a response then,
    /// or a call that goes on.
    #[inline]
    fn begin<B>(
        &mut self,
        request: &mut Request<B>,
        body: Option<BodyStream>,
        connection: &Arc<ConnectionInfo>,
        waker: &Waker,
        response: &mut Option<Response<ResponseBody>>,
    ) -> Option<RunningCall> {
        let upgrade = self.upgrade.is_some();
        let in_flight = &self.in_flight;
        let answer = AnswerContext {
            in_flight,
            connection,
        };
        let (asked_for, place) = (&*request, &self.place);
        let mut slot = Slot {
            answer,
            asked: &|| Asked::of(asked_for, connection, place),
            upgrade: &mut self.upgrade,
            response,
        };
        let shared = in_flight.shared();
        let target = target(whole_target(request.uri()), self.strip);
        let protocol = upgrade::protocol(request, upgrade);
        let (state, running) = RequestHead::lend(
            request,
            &target,
            protocol,
            connection.peer,
            &connection.crossing(),
            |head| {
                shared.inside(told_target(request.uri()), || {
                    shared.call(head, body, upgrade, waker, &mut slot)
                })
            },
        );
        drop(target);
        // The plugin has its copy.
        return_map(request.headers_mut());
        if state == PollState::Pending && running.is_some() {
            return running;
        }
        answer.ended(state, response);
        None
    }

    /// Goes on with `call`, which is for `request`.
    fn running<B>(
        self,
        call: RunningCall,
        request: &Request<B>,
        connection: Arc<ConnectionInfo>,
    ) -> Running {
        let asked = Asked::of(request, &connection, &self.place);
        let shared = self.in_flight.shared();
        let registration = shared.register(HolderKind::Request, Arc::clone(&asked) as _, None);
        Running {
            call: Some(call),
            upgrade: self.upgrade,
            asked,
            registration,
            in_flight: self.in_flight,
            connection,
            upload: None,
            just_polled: false,
        }
    }
}

impl Drop for Running {
    #[inline]
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            let shared = self.in_flight.shared();
            shared.dropping(told_target(&self.asked.uri), || drop(call));
        }
    }
}

impl Running {
    /// Whether it ended, with a response.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        response: &mut Option<Response<ResponseBody>>,
    ) -> bool {
        let answer = AnswerContext {
            in_flight: &self.in_flight,
            connection: &self.connection,
        };
        let asked = &self.asked;
        let mut slot = Slot {
            answer,
            asked: &|| Arc::clone(asked),
            upgrade: &mut self.upgrade,
            response,
        };
        let call = &mut self.call;
        let poll = || match call {
            Some(running) => {
                let state = running.poll(cx.waker(), &mut slot);
                if state != PollState::Pending {
                    // Within the same call: its drop may block as well.
                    *call = None;
                }
                state
            }
            None => PollState::Pending, // it was polled again after its end
        };
        let shared = self.in_flight.shared();
        let state = shared.inside(told_target(&asked.uri), poll);
        if state == PollState::Pending {
            return self.expired(cx, response);
        }
        answer.ended(state, response);
        true
    }

    /// Whether it has to end now; the response is the host's then.
    fn expired(
        &mut self,
        cx: &mut Context<'_>,
        response: &mut Option<Response<ResponseBody>>,
    ) -> bool {
        let shared = self.in_flight.shared();
        let expired = shared.has_to_end(&self.registration, cx);
        if expired {
            shared.count_aborted();
            *response = Some(if self.registration.is_cancelled() {
                error_response::cancelled(shared.spec())
            } else {
                error_response::expired(shared.spec())
            });
        }
        expired
    }
}

/// Asks `generation` for `GET path` with `fields`, as a client would, and returns the whole answer.
/// For smoke requests.
///
/// # Errors
/// When the generation takes no requests, the path or a field is none, or the answer breaks off.
pub(crate) async fn smoke(
    generation: &Arc<Generation>,
    path: &str,
    fields: &BTreeMap<String, String>,
) -> Result<Response<Bytes>, String> {
    let mut request = Request::get(path);
    for (name, value) in [("host", "localhost"), ("user-agent", "handover-check")] {
        if !fields.keys().any(|field| field.eq_ignore_ascii_case(name)) {
            request = request.header(name, value);
        }
    }
    for (name, value) in fields {
        request = request.header(name, value);
    }
    let request = request
        .body(http_body_util::Empty::<Bytes>::new())
        .map_err(|error| format!("{path} makes no request: {error}"))?;
    let in_flight = generation
        .enter()
        .ok_or("the generation takes no requests")?;
    let call = Call {
        upgrade: None,
        strip: 0,
        place: None,
        in_flight,
    };
    let connection = Arc::new(ConnectionInfo::new(None, None, None, false, None));
    let response = Dispatched(Step::new(request, call, connection)).await;
    let (head, body) = response.into_parts();
    // An answer that breaks off is no good answer.
    let body = http_body_util::BodyExt::collect(body)
        .await
        .map_err(|error| format!("GET {path}: {error}"))?;
    Ok(Response::from_parts(head, body.to_bytes()))
}
