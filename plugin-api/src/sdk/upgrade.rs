//! The upgrade of a connection: WebSockets, CONNECT tunnels and others.
//!
//! Frameworks look for an `OnUpgrade` of hyper's in the extensions of a request, and only a
//! connection of hyper's can make one. So a request that may be upgraded gets that of a connection
//! which exists for nothing else: it has read a request of ours, waits for its answer, and nothing
//! polls it. The app's own request and answer never pass through it. Only when the app takes the
//! upgrade is it told to answer 101, and what hyper then gives to the `OnUpgrade` is a pipe, whose
//! other end the host joins with the client.

use std::{
    convert::Infallible,
    fmt, io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::{Buf, Bytes};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as HttpBody;
use http_body_util::Empty;
use hyper::{
    body::Incoming,
    rt::ReadBufCursor,
    server::conn::http1::{Builder, UpgradeableConnection},
    service::Service,
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::io::{DuplexStream, ReadBuf};

use super::{
    app::{answer, not_written, reason, told},
    writes::Durable,
};
use crate::abi::{
    call::{OwnedBody, Responder},
    export::Answering,
    poll::PollState,
    upgrade::{IoStream, PollIo},
};

/// What may wait in memory in each direction, in bytes.
const BUFFER: usize = 64 * 1024;

/// What the connection reads, so that it makes an `OnUpgrade`.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nupgrade: x\r\n\r\n";

/// An upgrade that the app may take: whoever drops it has refused it, which the `OnUpgrade` then
/// says.
pub(super) struct PendingUpgrade {
    connection: UpgradeableConnection<Near, Ask>,
    taken: Arc<AtomicBool>,
    far: DuplexStream,
    /// A tunnel is opened by any success; all else by 101 only.
    is_connect: bool,
}

impl PendingUpgrade {
    /// Puts the `OnUpgrade` into the extensions of `request`, and the `protocol` of an extended
    /// CONNECT, which is else empty.
    pub(super) fn to<B>(request: &mut Request<B>, protocol: &str) -> Self {
        if !protocol.is_empty() {
            request
                .extensions_mut()
                .insert(hyper::ext::Protocol::from(protocol));
        }
        let (near, far) = tokio::io::duplex(BUFFER);
        let ask = Ask::default();
        let (taken, made) = (Arc::clone(&ask.taken), Arc::clone(&ask.made));
        let near = Near {
            request: REQUEST,
            answered: false,
            pipe: TokioIo::new(near),
        };
        let mut connection = Builder::new()
            .auto_date_header(false)
            .serve_connection(near, ask)
            .with_upgrades();
        // Everything that it waits for is in memory, so it is polled when there is something to do,
        // and wakes nobody.
        let _ = Pin::new(&mut connection).poll(&mut Context::from_waker(Waker::noop()));
        if let Some(on_upgrade) = made.lock().take() {
            request.extensions_mut().insert(on_upgrade);
        }
        Self {
            connection,
            taken,
            far,
            is_connect: request.method() == Method::CONNECT,
        }
    }

    fn is_taken_by(&self, status: StatusCode) -> bool {
        status == StatusCode::SWITCHING_PROTOCOLS || self.is_connect && status.is_success()
    }

    /// Has the `OnUpgrade` give its end of the pipe, and gives the other one.
    fn take(mut self) -> DuplexStream {
        self.taken.store(true, Ordering::Relaxed);
        let _ = Pin::new(&mut self.connection).poll(&mut Context::from_waker(Waker::noop()));
        self.far
    }
}

pin_project! {
    /// A request that the app may answer with an upgrade.
    pub(super) struct Upgrading<F, R> {
        #[pin]
        future: Durable<F, R>,
        pending: Option<PendingUpgrade>,
    }
}

impl<F, R> Upgrading<F, R> {
    pub(super) fn new(future: Durable<F, R>, pending: PendingUpgrade) -> Self {
        Self {
            future,
            pending: Some(pending),
        }
    }
}

impl<F, B, E> Answering for Upgrading<F, Response<B>>
where
    F: Future<Output = Result<Response<B>, E>> + Send,
    B: HttpBody<Data: Buf + Send, Error: fmt::Display> + Send + Unpin + 'static,
    E: fmt::Display,
{
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>, responder: &Responder<'_>) -> PollState {
        let this = self.project();
        let outcome = match this.future.poll(cx) {
            Poll::Pending => return PollState::Pending,
            Poll::Ready(Ok(outcome)) => outcome,
            Poll::Ready(Err(error)) => {
                not_written(&error, responder);
                return PollState::Ready;
            }
        };
        let Some(response) = told(outcome) else {
            return PollState::Failed;
        };
        match this.pending.take() {
            Some(pending) if pending.is_taken_by(response.status()) => {
                let io = IoStream::new(Far(pending.take()));
                let (mut parts, _) = response.into_parts();
                let reason = reason(&mut parts);
                responder.respond(
                    parts,
                    reason.as_deref().unwrap_or_default(),
                    OwnedBody::Upgrade(io),
                );
            }
            _ => answer(response, cx, responder),
        }
        PollState::Ready
    }
}

/// The service of the connection: it keeps the `OnUpgrade` that came with the request, and answers
/// 101 once that is taken.
#[derive(Default)]
struct Ask {
    made: Arc<Mutex<Option<OnUpgrade>>>,
    taken: Arc<AtomicBool>,
}

impl Service<Request<Incoming>> for Ask {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = Taken;

    fn call(&self, mut request: Request<Incoming>) -> Taken {
        *self.made.lock() = Some(hyper::upgrade::on(&mut request));
        Taken(Arc::clone(&self.taken))
    }
}

/// The answer 101, once the upgrade is taken. Whoever takes it polls again, so nobody is woken.
struct Taken(Arc<AtomicBool>);

impl Future for Taken {
    type Output = Result<Response<Empty<Bytes>>, Infallible>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        if !self.0.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        let mut response = Response::new(Empty::new());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        Poll::Ready(Ok(response))
    }
}

/// The connection's bytes: our request, the answer to it, which nobody reads, and from then on the
/// pipe.
struct Near {
    /// What is still to be read of the request.
    request: &'static [u8],
    answered: bool,
    pipe: TokioIo<DuplexStream>,
}

impl hyper::rt::Read for Near {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.request.is_empty() {
            return Pin::new(&mut self.pipe).poll_read(cx, buffer);
        }
        let (now, later) = self
            .request
            .split_at(self.request.len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.request = later;
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Near {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.answered {
            return Pin::new(&mut self.pipe).poll_write(cx, bytes);
        }
        // The head is written in one piece, since all of it is taken.
        self.answered = bytes.ends_with(b"\r\n\r\n");
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

/// The host's end of the pipe.
struct Far(DuplexStream);

impl PollIo for Far {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        tokio::io::AsyncRead::poll_read(Pin::new(&mut self.0), cx, &mut buffer)
            .map_ok(|()| buffer.filled().len())
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        tokio::io::AsyncWrite::poll_write(Pin::new(&mut self.0), cx, buffer)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        tokio::io::AsyncWrite::poll_flush(Pin::new(&mut self.0), cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        tokio::io::AsyncWrite::poll_shutdown(Pin::new(&mut self.0), cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pending_pair() -> (PendingUpgrade, OnUpgrade) {
        let mut request = Request::new(());
        let pending = PendingUpgrade::to(&mut request, "");
        let on_upgrade = request.extensions_mut().remove().expect("it was put there");
        (pending, on_upgrade)
    }

    #[tokio::test]
    async fn what_is_taken_is_a_pipe_from_its_first_byte() {
        let (pending, on_upgrade) = pending_pair();
        let mut far = pending.take();
        let mut near = TokioIo::new(on_upgrade.await.expect("it was taken"));
        near.write_all(b"from the app").await.expect("room");
        far.write_all(b"from the client").await.expect("room");
        let mut came = [0; 15];
        near.read_exact(&mut came).await.expect("all of it");
        assert_eq!(&came, b"from the client");
        drop(near);
        let mut came = Vec::new();
        far.read_to_end(&mut came).await.expect("all of it");
        assert_eq!(came, b"from the app");
    }

    #[tokio::test]
    async fn what_is_not_taken_ends_its_future() {
        let (pending, on_upgrade) = pending_pair();
        drop(pending);
        assert!(on_upgrade.await.is_err());
    }
}
