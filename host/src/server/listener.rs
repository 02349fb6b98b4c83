//! Accepts connections, and keeps accepting whatever happens.

use std::{future::poll_fn, io, sync::Arc, task::Poll, time::Duration};

use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::net::TcpListener;

use super::{connection::Requests, count::Connections};
use crate::{dispatch::Routes, generation::Cut};

/// How connections are served.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Whether answers carry `handover-version` and `handover-generation`.
    pub version_header: bool,
}

/// Serves until `stop` ends; then accepts no more, and waits until the open connections have ended what they have.
pub async fn serve(
    listener: TcpListener,
    routes: Arc<Routes>,
    settings: Settings,
    counted: Connections,
    stop: impl Future<Output = ()>,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder.http2().timer(TokioTimer::new());
    let connections = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let (stream, peer) = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    refused(error).await;
                    continue;
                }
            },
        };
        // A socket whose peer is gone already fails here, and is found gone when it is read.
        let _ = stream.set_nodelay(true);
        let cut = Arc::new(Cut::default());
        let requests = Requests {
            routes: Arc::clone(&routes),
            peer: Some(peer),
            cut: Arc::clone(&cut),
            name_version: settings.version_header,
        };
        let connection = builder
            .serve_connection_with_upgrades(TokioIo::new(stream), requests)
            .into_owned();
        let connection = connections.watch(connection);
        let open = counted.accepted();
        tokio::spawn(async move {
            let _open = open;
            let mut connection = std::pin::pin!(connection);
            let ended = poll_fn(|cx| match connection.as_mut().poll(cx) {
                Poll::Ready(ended) => Poll::Ready(ended.map_err(|error| error.to_string())),
                Poll::Pending => cut
                    .poll(cx)
                    .map(|()| Err("it streamed what had reached its drain deadline".to_owned())),
            });
            if let Err(reason) = ended.await {
                tracing::debug!(%peer, "a connection ended: {reason}");
            }
        });
    }
    drop(listener);
    connections.shutdown().await;
}

/// What to do when a connection could not be accepted.
async fn refused(error: io::Error) {
    match error.kind() {
        // The client left while it waited in the queue.
        io::ErrorKind::ConnectionAborted
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionRefused => {}
        _ => {
            // Out of descriptors or memory: trying again at once would only burn the processor.
            tracing::error!(
                "no connection can be accepted: {error}; raise the limit of open files (ulimit -n) if this goes on"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
