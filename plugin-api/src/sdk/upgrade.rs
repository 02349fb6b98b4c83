//! WebSockets and other upgraded connections.
//!
//! The upgrade of a connection is hyper's: only a hyper connection can make the `OnUpgrade` that axum's `WebSocketUpgrade` and others
//! look for in a request. So a request that asks for an upgrade is sent through a hyper connection of the plugin's own, in memory, and what
//! comes out at its client's end after `101 Switching Protocols` is the byte stream that the host joins with the real connection.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Buf;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::{body::Incoming, service::service_fn, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use tokio::{io::ReadBuf, runtime::Handle};

use super::{
    app::{App, answer, told},
    body::Body,
};
use crate::abi::{
    body::BodyStream,
    call::{Payload, Responder},
    export::Answering,
    poll::PollState,
    upgrade::{IoStream, PollIo},
};

/// What may wait in memory in each direction, in bytes.
const BUFFER: usize = 64 * 1024;

/// Asks `app` through a connection in memory.
pub(super) fn call<A: App>(app: A, request: Request<Body>, runtime: Handle) -> impl Answering {
    Upgrading(Box::pin(ask(app, request, runtime)))
}

type Asked = Result<(Response<Incoming>, Option<Upgraded>), String>;

struct Upgrading(Pin<Box<dyn Future<Output = Asked> + Send>>);

impl Answering for Upgrading {
    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        responder: &Responder<'_>,
    ) -> PollState {
        match self.0.as_mut().poll(cx) {
            Poll::Pending => PollState::Pending,
            Poll::Ready(asked) => match told(asked) {
                None => PollState::Failed,
                Some((response, None)) => {
                    answer(response, cx, responder);
                    PollState::Ready
                }
                Some((response, Some(upgraded))) => {
                    let io = IoStream::new(Stream(TokioIo::new(upgraded)));
                    responder.respond(response.into_parts().0, Payload::Upgrade(io));
                    PollState::Ready
                }
            },
        }
    }
}

async fn ask<A: App>(app: A, request: Request<Body>, runtime: Handle) -> Asked {
    let (client, server) = tokio::io::duplex(BUFFER);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut app = app.clone();
        async move {
            let request = request.map(|body| Body::of(Some(BodyStream::new(body))));
            let failed = |error: A::Error| io::Error::other(error.to_string());
            poll_fn(|cx| app.poll_ready(cx)).await.map_err(failed)?;
            let response = app.call(request).await.map_err(failed)?;
            io::Result::Ok(response.map(|body| {
                let body = body.map_frame(|frame| {
                    frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))
                });
                body.map_err(|error| io::Error::other(error.to_string()))
                    .boxed_unsync()
            }))
        }
    });
    let text = |error: hyper::Error| error.to_string();
    runtime.spawn(
        hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(server), service)
            .with_upgrades(),
    );
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(client))
        .await
        .map_err(text)?;
    runtime.spawn(connection.with_upgrades());
    let mut response = sender.send_request(request).await.map_err(text)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok((response, None));
    }
    let upgraded = hyper::upgrade::on(&mut response).await.map_err(text)?;
    Ok((response, Some(upgraded)))
}

/// The client's end of the connection in memory.
struct Stream(TokioIo<Upgraded>);

impl PollIo for Stream {
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
