//! How a service becomes an app: calls, answers, and the constructor.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    task::{self, Poll, Waker},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http::{HeaderValue, Request, Response, StatusCode, header, response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::runtime::Handle;
use tower_service::Service;

use super::{
    body::Body,
    context::{self, Context},
    db_revision,
    error::Error,
    log, migration, on_live, program,
    runtime::{self, AppRuntime},
    state::StateError,
    upgrade::{PendingUpgrade, Upgrading},
    writes::Durable,
};
use crate::abi::{
    body::BodyStream,
    call::{OwnedBody, Responder},
    export::{Answering, FirstPoll, HostHandle, Plugin, Polled},
    head::RequestHead,
    lent::Lent,
    poll::PollState,
    root::Settings,
};

/// What answers requests: any `tower::Service` over `http` types. `axum::Router` is one.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no app",
    label = "not a `tower::Service<http::Request<handover_plugin::Body>>` that is `Clone`, `Send`, `Sync` and `'static`",
    note = "an app answers `http::Request` of the crate http 1 and implements `tower::Service`, as `Router` of axum 0.8 and 0.7 does; axum 0.6 and others on http 0.2 have to be upgraded",
    note = "its answer is an `http::Response` of any body that is `Send` and `Unpin`, and its error can be displayed"
)]
pub trait App:
    Service<
        Request<Body>,
        Response = Response<Self::ResponseBody>,
        Error: fmt::Display,
        Future: Send,
    > + Clone
    + Send
    + Sync
    + 'static
{
    /// The body of its responses. One that is not `Unpin` becomes so by
    /// `http_body_util::BodyExt::boxed_unsync`.
    type ResponseBody: HttpBody<Data: Buf + Send, Error: fmt::Display> + Send + Unpin + 'static;
}

#[diagnostic::do_not_recommend]
impl<S, B> App for S
where
    S: Service<Request<Body>, Response = Response<B>, Error: fmt::Display, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
    B: HttpBody<Data: Buf + Send, Error: fmt::Display> + Send + Unpin + 'static,
{
    type ResponseBody = B;
}

/// Runs the constructor `make` on a new runtime.
///
/// # Errors
/// The constructor's own, or that the runtime could not be made.
pub fn start<A: App, E: Into<Error>, F>(
    host: HostHandle,
    settings: Lent<'_, Settings<'_>>,
    make: impl FnOnce(Context) -> F,
) -> Result<Box<dyn Plugin>, String>
where
    F: Future<Output = Result<A, E>>,
{
    if let Some(migrated) = migration::asked_for(host, settings) {
        return migrated;
    }
    let (runtime, context) = prepare(host, settings)?;
    let made = runtime.block_on(log::constructing(async { make(context.clone()).await }));
    log::settle();
    match made {
        Ok(app) => Ok(Box::new(Running {
            app,
            context,
            runtime,
        })),
        Err(error) => {
            context.close_settings();
            {
                let _entered = runtime.handle().enter();
                context.forget_settings();
            }
            // Nothing is served yet, so nothing is worth waiting for longer.
            runtime.stop(Duration::from_secs(1));
            context::forget_current();
            Err(error.into().to_string())
        }
    }
}

/// Has this copy of the SDK belong to `host`, and makes what every app has.
///
/// # Errors
/// When its runtime cannot be made.
pub(super) fn prepare(
    host: HostHandle,
    settings: Lent<'_, Settings<'_>>,
) -> Result<(AppRuntime, Context), String> {
    log::forward_to(host);
    let threads = settings.runtime_threads as usize;
    let runtime = AppRuntime::start(settings.app.as_str(), settings.generation, threads).map_err(
        |error| format!("its runtime of {threads} threads could not be started: {error}"),
    )?;
    let context = Context::new(settings, runtime.handle().clone(), host);
    context.make_current();
    Ok((runtime, context))
}

/// The runtime and the context of a load that was to do something else than answer requests.
pub(super) struct Only {
    pub(super) context: Context,
    pub(super) runtime: AppRuntime,
}

impl Plugin for Only {
    fn enter(&self) {
        runtime::enter(self.runtime.handle());
    }

    fn call(
        &self,
        _: Lent<'_, RequestHead<'_>>,
        _: Option<BodyStream>,
        _: bool,
        _: FirstPoll<'_>,
    ) -> Option<Polled> {
        None
    }

    fn drain(&self) {
        self.context.start_draining();
    }

    fn expire(&self, jobs: bool) -> u64 {
        self.context.cancel_work(jobs)
    }

    fn stop(self: Box<Self>, deadline: Duration) {
        let Self { context, runtime } = *self;
        runtime.tell_tasks_left(&context);
        runtime.stop(deadline);
        context::forget_current();
        drop(context);
    }
}

/// An app that answers.
pub(super) struct Running<A> {
    pub(super) app: A,
    pub(super) context: Context,
    pub(super) runtime: AppRuntime,
}

impl<A: App> Plugin for Running<A> {
    fn enter(&self) {
        runtime::enter(self.runtime.handle());
    }

    fn call(
        &self,
        head: Lent<'_, RequestHead<'_>>,
        body: Option<BodyStream>,
        upgrade: bool,
        first: FirstPoll<'_>,
    ) -> Option<Polled> {
        let mut request = Request::new(Body::of(body));
        told(head.fill(&mut request))?;
        self.context.tell_client(head, &mut request);
        let mut app = self.app.clone();
        if upgrade {
            let pending = PendingUpgrade::to(&mut request, head.protocol());
            return Some(
                first.poll(|| Upgrading::new(Durable::new(when_ready(app, request)), pending)),
            );
        }
        // Almost every service is ready at once, and then needs no state to wait in. One that is
        // not is asked again, with a waker.
        let ready = app.poll_ready(&mut task::Context::from_waker(Waker::noop()));
        Some(match ready {
            Poll::Ready(Ok(())) => first.poll(|| Calling {
                future: Durable::new(app.call(request)),
            }),
            Poll::Ready(Err(_)) | Poll::Pending => first.poll(|| Calling {
                future: Durable::new(when_ready(app, request)),
            }),
        })
    }

    fn on_live(&self) -> Result<bool, String> {
        on_live::run_all(&self.context, self.runtime.handle())
    }

    fn db_revision(&self) -> Result<Option<u64>, String> {
        db_revision::ask(&self.context, self.runtime.handle())
    }

    fn hand_over(&self) -> Result<Option<String>, String> {
        self.context.hand_over()
    }

    fn activate(&self) {
        self.context.activate();
    }

    fn drain(&self) {
        self.context.start_draining();
    }

    fn expire(&self, jobs: bool) -> u64 {
        self.context.cancel_work(jobs)
    }

    fn cancel_work(&self, number: u64) -> bool {
        self.context.cancel_one(number)
    }

    fn stop(self: Box<Self>, deadline: Duration) {
        let Self {
            app,
            context,
            runtime,
        } = *self;
        {
            let _entered = runtime.handle().enter();
            context.forget_hand_over();
            drop(app);
        }
        context.close_settings();
        let left = program::finish(deadline);
        runtime.tell_tasks_left(&context);
        {
            let _entered = runtime.handle().enter();
            context.forget_settings();
        }
        runtime.stop(left);
        context::forget_current();
        drop(context);
    }
}

pin_project! {
    /// A request that the app answers.
    struct Calling<F, R> {
        #[pin]
        future: Durable<F, R>,
    }
}

impl<F, B, E> Answering for Calling<F, Response<B>>
where
    F: Future<Output = Result<Response<B>, E>> + Send,
    B: HttpBody<Data: Buf + Send, Error: fmt::Display> + Send + Unpin + 'static,
    E: fmt::Display,
{
    fn poll(
        self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        responder: &Responder<'_>,
    ) -> PollState {
        match self.project().future.poll(cx) {
            Poll::Pending => PollState::Pending,
            Poll::Ready(Ok(outcome)) => match told(outcome) {
                Some(response) => {
                    answer(response, cx, responder);
                    PollState::Ready
                }
                None => PollState::Failed,
            },
            Poll::Ready(Err(error)) => {
                not_written(&error, responder);
                PollState::Ready
            }
        }
    }
}

/// Asks `app` as soon as it is ready for it.
pub(super) async fn when_ready<A: App>(
    mut app: A,
    request: Request<Body>,
) -> Result<Response<A::ResponseBody>, A::Error> {
    poll_fn(|cx| app.poll_ready(cx)).await?;
    app.call(request).await
}

/// Logs a failure; the host answers for the app.
#[inline]
pub(super) fn told<T>(outcome: Result<T, impl fmt::Display>) -> Option<T> {
    outcome
        .inspect_err(|error| log::error(&format!("a request failed: {error}")))
        .ok()
}

/// Answers a request whose writes failed: what it answered itself is not true.
#[cold]
pub(super) fn not_written(error: &StateError, responder: &Responder<'_>) {
    log::error(&format!(
        "a request was answered with 503, for what it wrote is not on the disk: {error}"
    ));
    let text = "503 Service Unavailable: what this request wrote could not be kept\n";
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = StatusCode::SERVICE_UNAVAILABLE;
    parts.headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    responder.respond(
        parts,
        &[],
        OwnedBody::Full(Bytes::from_static(text.as_bytes())),
    );
}

/// Gives a response to the host. A body that is whole at once crosses with the head, all others as
/// a stream.
pub(super) fn answer<B>(
    response: Response<B>,
    cx: &mut task::Context<'_>,
    responder: &Responder<'_>,
) where
    B: HttpBody<Data: Buf + Send, Error: fmt::Display> + Send + Unpin + 'static,
{
    let (mut parts, body) = response.into_parts();
    let reason = reason(&mut parts);
    responder.respond(
        parts,
        reason.as_deref().unwrap_or_default(),
        payload(body, cx),
    );
}

/// The reason phrase that the app has chosen, or taken over from somebody it asked.
#[inline]
pub(super) fn reason(parts: &mut response::Parts) -> Option<Bytes> {
    if parts.extensions.is_empty() {
        return None;
    }
    parts
        .extensions
        .remove::<hyper::ext::ReasonPhrase>()
        .map(Bytes::from)
}

fn payload<B>(mut body: B, cx: &mut task::Context<'_>) -> OwnedBody
where
    B: HttpBody<Data: Buf + Send, Error: fmt::Display> + Send + Unpin + 'static,
{
    if body.is_end_stream() {
        return OwnedBody::Empty;
    }
    if body.size_hint().exact().is_none() {
        return stream(None, body);
    }
    match Pin::new(&mut body).poll_frame(cx) {
        Poll::Pending => stream(None, body),
        Poll::Ready(None) => OwnedBody::Empty,
        Poll::Ready(Some(Ok(frame))) if frame.is_data() && body.is_end_stream() => frame
            .into_data()
            .map_or(OwnedBody::Empty, |data| OwnedBody::Full(flat(data))),
        Poll::Ready(first) => stream(first, body),
    }
}

fn flat(mut data: impl Buf) -> Bytes {
    data.copy_to_bytes(data.remaining())
}

fn stream<B>(first: Option<Result<Frame<B::Data>, B::Error>>, body: B) -> OwnedBody
where
    B: HttpBody<Data: Buf + Send, Error: fmt::Display> + Send + Unpin + 'static,
{
    let first = first.map(|first| {
        first
            .map(|frame| frame.map_data(flat))
            .map_err(|error| error.to_string())
    });
    OwnedBody::Stream(BodyStream::new(Streamed {
        first,
        body,
        runtime: Handle::current(),
    }))
}

/// A response body that is polled by host threads, within the runtime's context.
struct Streamed<B> {
    /// What was polled already when the head crossed.
    first: Option<Result<Frame<Bytes>, String>>,
    body: B,
    runtime: Handle,
}

impl<B: HttpBody<Data: Buf, Error: fmt::Display> + Unpin> HttpBody for Streamed<B> {
    type Data = Bytes;
    type Error = String;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, String>>> {
        runtime::enter(&self.runtime);
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        Pin::new(&mut self.body).poll_frame(cx).map(|next| {
            next.map(|next| {
                next.map(|frame| frame.map_data(flat))
                    .map_err(|error| error.to_string())
            })
        })
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        if let Some(data) = self
            .first
            .as_ref()
            .and_then(|first| first.as_ref().ok())
            .and_then(Frame::data_ref)
        {
            let length = data.len() as u64;
            if let Some(upper) = hint.upper() {
                hint.set_upper(upper + length);
            }
            hint.set_lower(hint.lower() + length);
        }
        hint
    }
}

impl<B> Drop for Streamed<B> {
    fn drop(&mut self) {
        // The body's destructors may spawn, log or use timers.
        runtime::enter(&self.runtime);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_is_whole_crosses_with_the_head() {
        let mut cx = task::Context::from_waker(Waker::noop());
        let whole = payload(
            http_body_util::Full::new(Bytes::from_static(b"hello")),
            &mut cx,
        );
        assert!(matches!(whole, OwnedBody::Full(bytes) if bytes == "hello"));
        assert!(matches!(
            payload(http_body_util::Empty::<Bytes>::new(), &mut cx),
            OwnedBody::Empty
        ));
    }
}
