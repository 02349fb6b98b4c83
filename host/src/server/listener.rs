//! Accepts connections, and keeps accepting whatever happens.

use std::{future::poll_fn, io, sync::Arc, task::Poll, time::Duration};

use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::net::TcpListener;

use super::{
    connection::Requests,
    count::Connections,
    head_timer::{HeadTimer, HeadWatch},
    open::OpenConnections,
};
use crate::{
    dispatch::{Origin, Routes},
    generation::{Cut, Order},
};

/// Runs the requests of an HTTP/2 connection, each as a task of its own, for that connection.
#[derive(Clone, Copy, Debug)]
struct Streams;

impl<F: Future<Output: Send + 'static> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        tokio::spawn(Cut::pass_on(stream));
    }
}

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
    let mut builder = auto::Builder::new(Streams);
    builder.http2().timer(TokioTimer::new());
    let connections = OpenConnections::default();
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
        let requests = Requests {
            routes: Arc::clone(&routes),
            origin: Origin {
                peer: Some(peer),
                name_version: settings.version_header,
            },
        };
        let (timer, mut heads) = HeadWatch::new();
        let connection = timed(&builder, timer)
            .serve_connection_with_upgrades(TokioIo::new(stream), requests)
            .into_owned();
        let counted = counted.accepted();
        let open = connections.add();
        tokio::spawn(Cut::scope(Arc::clone(open.cut()), async move {
            let _counted = counted;
            let mut connection = std::pin::pin!(connection);
            let mut followed = None;
            let ended = poll_fn(|cx| {
                if followed.is_none() {
                    // Once: a task has one waker for all its life.
                    open.cut().wakes(cx.waker());
                }
                let order = open.cut().order();
                if followed != Some(order) {
                    followed = Some(order);
                    match order {
                        Order::GoOn => {}
                        Order::Finish => connection.as_mut().graceful_shutdown(),
                        Order::End => {
                            let reason = "it streamed what had reached its drain deadline";
                            return Poll::Ready(Err(reason.to_owned()));
                        }
                    }
                }
                heads
                    .poll(connection.as_mut(), cx)
                    .map_err(|error| error.to_string())
            });
            if let Err(reason) = ended.await {
                tracing::debug!(%peer, "a connection ended: {reason}");
            }
        }));
    }
    drop(listener);
    connections.finish().await;
}

/// The same with the timer of one connection.
fn timed(builder: &auto::Builder<Streams>, timer: HeadTimer) -> auto::Builder<Streams> {
    let mut builder = builder.clone();
    builder.http1().timer(timer);
    builder
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
