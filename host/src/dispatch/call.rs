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
use http::{HeaderName, HeaderValue, Request, Response, Uri, Version};
use http_body::Body;
use hyper::ext::ReasonPhrase;

use super::{
    body::{DrainDeadline, RequestBody, ResponseBody},
    connection::ConnectionInfo,
    error_response,
    limits::Limited,
    route::{Chosen, Routes, target, told_target, whole_target},
    upgrade::{self, Upgrade},
};
use crate::generation::{Generation, InFlight, Upload};

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
    in_flight: InFlight,
}

/// The call goes before the guard that keeps its code mapped.
#[derive(Debug)]
struct Running {
    /// None once it has ended.
    call: Option<RunningCall>,
    expiry: DrainDeadline,
    upgrade: Option<Upgrade>,
    /// For people, when it holds its worker for too long.
    uri: Uri,
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
                let connection = connection.close_handle.clone();
                *response.body_mut() =
                    ResponseBody::stream(stream, response.headers(), in_flight.clone(), connection);
            }
            ReceivedBody::Upgrade(io) => {
                if let Some(upgrade) = self.upgrade.take() {
                    let permit = upgrade::join(upgrade, io, in_flight.clone());
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
        if self.connection.name_version
            && let Some(response) = response
        {
            self.name_version(response);
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
            Chosen::Limited(limits) => {
                let limited = Limited::new(limits, routes, request, connection);
                this.0 = Step::Limited(Box::new(limited));
            }
            Chosen::Empty(what) => {
                let (app, down) = *what;
                this.0 = Step::Answered(Some(error_response::empty(&app, down.as_ref())));
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
            let mut running = Box::new(call.running(running, request, Arc::clone(connection)));
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
                    && let Step::New(mut new) = std::mem::replace(step, Step::Answered(None))
                {
                    let mut running =
                        Box::new(new.call.running(running, &mut new.request, new.connection));
                    running.upload = upload;
                    if !running.expired(cx, &mut response) {
                        *step = Step::Running(running);
                        return Poll::Pending;
                    }
                }
            }
            Step::Running(running) => {
                let just_polled = std::mem::take(&mut running.just_polled);
                let is_known = just_polled && running.expiry.wakes(cx.waker());
                if is_known || !running.poll(cx, &mut response) {
                    return Poll::Pending;
                }
            }
            Step::Limited(limited) => response = Some(std::task::ready!(limited.poll(cx))),
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
        let mut slot = Slot {
            answer,
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
        request: &mut Request<B>,
        connection: Arc<ConnectionInfo>,
    ) -> Running {
        Running {
            call: Some(call),
            expiry: DrainDeadline::default(),
            upgrade: self.upgrade,
            uri: std::mem::take(request.uri_mut()),
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
            shared.dropping(told_target(&self.uri), || drop(call));
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
        let mut slot = Slot {
            answer,
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
        let state = shared.inside(told_target(&self.uri), poll);
        if state == PollState::Pending {
            return self.expired(cx, response);
        }
        answer.ended(state, response);
        true
    }

    /// Whether the drain deadline has passed; the response is the host's then.
    fn expired(
        &mut self,
        cx: &mut Context<'_>,
        response: &mut Option<Response<ResponseBody>>,
    ) -> bool {
        let in_flight = &self.in_flight;
        let expired = self.expiry.poll(in_flight, cx);
        if expired {
            in_flight.shared().count_aborted();
            *response = Some(error_response::expired(in_flight.shared().spec()));
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
