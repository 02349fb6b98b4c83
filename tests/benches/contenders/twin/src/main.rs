//! The app of the hello fixture, linked statically into the same hyper server that the host has:
//! the limit to measure against.
//!
//! `twin ADDRESS WORKERS` serves the app; `twin ADDRESS WORKERS bare` answers its greeting from a
//! hyper service, without axum.

#[path = "../../../../plugins/hello/src/router.rs"]
mod router;

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::Service};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::net::TcpListener;

const USAGE: &str = "usage: twin ADDRESS WORKERS [bare]";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().ok_or(USAGE)?;
    let workers = arguments.next().ok_or(USAGE)?.parse()?;
    let bare = match arguments.next().as_deref() {
        None => false,
        Some("bare") => true,
        Some(_) => return Err(USAGE.into()),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await?;
        if bare {
            serve(listener, || hyper::service::service_fn(greet)).await
        } else {
            let app = router::router("1.0.0");
            serve(listener, || TowerToHyperService::new(app.clone())).await
        }
    })
}

/// Serves as the host does: the same builder, with timeouts and a graceful end, spawned just so.
/// Timers and the watch over connections are those of hyper-util, as anybody takes them; the host
/// has its own, which is said where the two are compared.
async fn serve<S, B>(
    listener: TcpListener,
    service: impl Fn() -> S,
) -> Result<(), Box<dyn std::error::Error>>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send,
    B: hyper::body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder.http2().timer(TokioTimer::new());
    let connections = GracefulShutdown::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let connection = builder
            .serve_connection_with_upgrades(TokioIo::new(stream), service())
            .into_owned();
        tokio::spawn(connections.watch(connection));
    }
}

/// What the app answers at `/`.
async fn greet(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::new(Bytes::from_static(b"hello 1.0.0")));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    Ok(response)
}
