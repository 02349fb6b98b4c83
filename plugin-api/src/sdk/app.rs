//! How a service becomes an app: calls, answers, and the constructor.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    task,
    time::Duration,
};

use bytes::{Buf, Bytes};
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::runtime::Handle;
use tower_service::Service;

use super::{body::Body, context::Context, error::Error, log, runtime::{self, AppRuntime}, upgrade};
use crate::abi::{
    body::BodyStream,
    call::{Answer, Payload},
    export::{Answering, HostHandle, Plugin},
    root::Settings,
};

/// What answers requests: any `tower::Service` over `http` types. `axum::Router` is one.
pub trait App:
    Service<Request<Body>, Response = Response<Self::ResponseBody>, Error: fmt::Display, Future: Send> + Clone + Send + Sync + 'static
{
    /// The body of its responses.
    type ResponseBody: HttpBody<Data: Buf + Send, Error: fmt::Display> + Send + 'static;
}

impl<S, B> App for S
where
    S: Service<Request<Body>, Response = Response<B>, Error: fmt::Display, Future: Send> + Clone + Send + Sync + 'static,
    B: HttpBody<Data: Buf + Send, Error: fmt::Display> + Send + 'static,
{
    type ResponseBody = B;
}

/// Runs the constructor `make` on a new runtime.
///
/// # Errors
/// The constructor's own, or that the runtime could not be made.
pub fn start<A: App, E: Into<Error>, F>(
    host: HostHandle,
    settings: &Settings<'_>,
    make: impl FnOnce(Context) -> F,
) -> Result<Box<dyn Plugin>, String>
where
    F: Future<Output = Result<A, E>>,
{
    log::forward_to(host);
    let threads = settings.runtime_threads as usize;
    let runtime = AppRuntime::start(settings.app.as_str(), settings.generation, threads)
        .map_err(|error| format!("its runtime of {threads} threads could not be started: {error}"))?;
    let context = Context::new(settings, runtime.handle().clone(), host);
    match runtime.block_on(async { make(context.clone()).await }) {
        Ok(app) => Ok(Box::new(Running { app, context, runtime })),
        Err(error) => {
            // Nothing is served yet, so nothing is worth waiting for longer.
            runtime.stop(Duration::from_secs(1));
            Err(error.into().to_string())
        }
    }
}

struct Running<A> {
    app: A,
    context: Context,
    runtime: AppRuntime,
}

impl<A: App> Plugin for Running<A> {
    fn enter(&self) {
        runtime::enter(self.runtime.handle());
    }

    fn call(&self, request: Request<Option<BodyStream>>, upgrade: bool) -> Answering {
        let app = self.app.clone();
        let request = request.map(Body::of);
        if upgrade {
            let runtime = self.runtime.handle().clone();
            return Box::pin(async move { told(upgrade::call(app, request, runtime).await) });
        }
        Box::pin(async move {
            let response = told(oneshot(app, request).await.map_err(|error| error.to_string()))?;
            Some(answer(response).await)
        })
    }

    fn drain(&self) {
        self.context.start_draining();
    }

    fn expire(&self, jobs: bool) -> u64 {
        self.context.cancel_work(jobs)
    }

    fn stop(self: Box<Self>, deadline: Duration) {
        let Self { app, context, runtime } = *self;
        {
            let _entered = runtime.handle().enter();
            drop(app);
        }
        runtime.stop(deadline);
        drop(context);
    }
}

/// Asks `app` once.
pub(super) async fn oneshot<A: App>(mut app: A, request: Request<Body>) -> Result<Response<A::ResponseBody>, A::Error> {
    poll_fn(|cx| app.poll_ready(cx)).await?;
    app.call(request).await
}

/// Logs a failure; the host answers for the app.
fn told<T>(outcome: Result<T, String>) -> Option<T> {
    outcome.inspect_err(|error| log::error(&format!("a request failed: {error}"))).ok()
}

/// A response as it crosses. A body that is whole at once crosses with the head, all others as a stream.
pub(super) async fn answer<B>(response: Response<B>) -> Answer
where
    B: HttpBody<Data: Buf + Send, Error: fmt::Display> + Send + 'static,
{
    let (parts, body) = response.into_parts();
    let body = match body.size_hint().exact() {
        Some(0) if body.is_end_stream() => Payload::Empty,
        Some(_) => {
            let mut body = Box::pin(body);
            let first = poll_fn(|cx| task::Poll::Ready(body.as_mut().poll_frame(cx))).await;
            match first {
                task::Poll::Pending => stream(None, body),
                task::Poll::Ready(None) => Payload::Empty,
                task::Poll::Ready(Some(Ok(frame))) if body.is_end_stream() && frame.is_data() => {
                    Payload::Full(frame.into_data().map_or_else(|_| Bytes::new(), flat))
                }
                task::Poll::Ready(Some(first)) => stream(Some(first), body),
            }
        }
        None => stream(None, Box::pin(body)),
    };
    Answer { parts, body }
}

fn flat(mut data: impl Buf) -> Bytes {
    data.copy_to_bytes(data.remaining())
}

fn stream<B>(first: Option<Result<Frame<B::Data>, B::Error>>, body: Pin<Box<B>>) -> Payload
where
    B: HttpBody<Data: Buf + Send, Error: fmt::Display> + Send + 'static,
{
    let first = first.map(|first| first.map(|frame| frame.map_data(flat)).map_err(|error| error.to_string()));
    Payload::Stream(BodyStream::new(Streamed { first, body, runtime: Handle::current() }))
}

/// A response body that is polled by host threads, within the runtime's context.
struct Streamed<B> {
    /// What was polled already when the head crossed.
    first: Option<Result<Frame<Bytes>, String>>,
    body: Pin<Box<B>>,
    runtime: Handle,
}

impl<B: HttpBody<Data: Buf, Error: fmt::Display>> HttpBody for Streamed<B> {
    type Data = Bytes;
    type Error = String;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> task::Poll<Option<Result<Frame<Bytes>, String>>> {
        runtime::enter(&self.runtime);
        if let Some(first) = self.first.take() {
            return task::Poll::Ready(Some(first));
        }
        self.body
            .as_mut()
            .poll_frame(cx)
            .map(|next| next.map(|next| next.map(|frame| frame.map_data(flat)).map_err(|error| error.to_string())))
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        if let Some(data) = self.first.as_ref().and_then(|first| first.as_ref().ok()).and_then(Frame::data_ref) {
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

    #[tokio::test]
    async fn a_body_that_is_whole_crosses_with_the_head() {
        let whole = answer(Response::new(http_body_util::Full::new(Bytes::from_static(b"hello")))).await;
        assert!(matches!(whole.body, Payload::Full(bytes) if bytes == "hello"));
        let none = answer(Response::new(http_body_util::Empty::<Bytes>::new())).await;
        assert!(matches!(none.body, Payload::Empty));
    }
}
