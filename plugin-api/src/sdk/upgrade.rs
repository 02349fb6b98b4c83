//! WebSockets and other upgraded connections.
//!
//! The upgrade of a connection is hyper's: only a hyper connection can make the `OnUpgrade` that axum's `WebSocketUpgrade` and others
//! look for in a request. So a request that asks for an upgrade is sent through a hyper connection of the plugin's own, in memory, and what
//! comes out at its client's end after `101 Switching Protocols` is the byte stream that the host joins with the real connection.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Buf;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper::{service::service_fn, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use tokio::{io::ReadBuf, runtime::Handle};

use super::{
    app::{App, answer, oneshot},
    body::Body,
};
use crate::abi::{
    body::BodyStream,
    call::{Answer, Payload},
    upgrade::{IoStream, PollIo},
};

/// What may wait in memory in each direction, in bytes.
const BUFFER: usize = 64 * 1024;

/// Asks `app` through a connection in memory.
pub(super) async fn call<A: App>(app: A, request: Request<Body>, runtime: Handle) -> Result<Answer, String> {
    let (client, server) = tokio::io::duplex(BUFFER);
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let app = app.clone();
        async move {
            let request = request.map(|body| Body::of(Some(BodyStream::new(body))));
            let response = oneshot(app, request).await.map_err(|error| io::Error::other(error.to_string()))?;
            io::Result::Ok(response.map(|body| {
                let body = body.map_frame(|frame| frame.map_data(|mut data| data.copy_to_bytes(data.remaining())));
                body.map_err(|error| io::Error::other(error.to_string())).boxed_unsync()
            }))
        }
    });
    runtime.spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service).with_upgrades());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(client)).await.map_err(|error| error.to_string())?;
    runtime.spawn(connection.with_upgrades());
    let mut response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer(response).await);
    }
    let upgraded = hyper::upgrade::on(&mut response).await.map_err(|error| error.to_string())?;
    let (parts, _) = response.into_parts();
    Ok(Answer { parts, body: Payload::Upgrade(IoStream::new(Stream(TokioIo::new(upgraded)))) })
}

/// The client's end of the connection in memory.
struct Stream(TokioIo<Upgraded>);

impl PollIo for Stream {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        tokio::io::AsyncRead::poll_read(Pin::new(&mut self.0), cx, &mut buffer).map_ok(|()| buffer.filled().len())
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
