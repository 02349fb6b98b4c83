//! One connection. It belongs to no generation: each of its requests finds its own.

use std::{
    convert::Infallible,
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{self, Poll},
};

use http::{Request, Response};
use hyper::{body::Incoming, service::Service};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::net::TcpStream;

use super::{head_timer::HeadWatch, open::OpenConnection, stream::Stream};
use crate::{
    dispatch::{AnswerBody, Dispatched, Origin, Routes, dispatch},
    generation::Order,
};

/// How connections are served.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Whether answers carry `handover-version` and `handover-generation`.
    pub version_header: bool,
}

/// What all connections are served with.
#[derive(Debug)]
pub(super) struct Protocols {
    builder: auto::Builder<TokioExecutor>,
    routes: Arc<Routes>,
    settings: Settings,
}

impl Protocols {
    pub(super) fn new(routes: Arc<Routes>, settings: Settings) -> Self {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http2()
            .timer(TokioTimer::new())
            .enable_connect_protocol();
        Self {
            builder,
            routes,
            settings,
        }
    }

    /// Serves the client at `peer` until it leaves, or what `open` is the place of orders an end.
    ///
    /// # Errors
    /// Why the connection ended, if it broke.
    pub(super) fn serve(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        open: OpenConnection,
    ) -> impl Future<Output = Result<(), String>> + Send + 'static {
        let requests = Requests {
            routes: Arc::clone(&self.routes),
            origin: Origin {
                peer: Some(peer).into(),
                name_version: self.settings.version_header,
                cut: Some(Arc::clone(open.cut())),
            },
        };
        let (timer, mut heads) = HeadWatch::new();
        let mut builder = self.builder.clone();
        builder.http1().timer(timer);
        let (stream, turn) = Stream::new(TokioIo::new(stream));
        let connection = builder
            .serve_connection_with_upgrades(stream, requests)
            .into_owned();
        // In a box, so that no future that this one becomes part of has room for it twice.
        let mut connection = Box::pin(connection);
        let mut followed = None;
        poll_fn(move |cx| {
            if followed.is_none() {
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
            turn.take(cx, |cx| heads.poll(connection.as_mut(), cx))
                .map_err(|error| error.to_string())
        })
    }
}

/// Answers the requests of one connection.
#[derive(Clone, Debug)]
struct Requests {
    routes: Arc<Routes>,
    origin: Origin,
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = Answering;

    #[inline]
    fn call(&self, request: Request<Incoming>) -> Answering {
        Answering(dispatch(&self.routes, request, &self.origin))
    }
}

/// A request on its way; there is always an answer.
#[derive(Debug)]
struct Answering(Dispatched<Incoming>);

impl Future for Answering {
    type Output = Result<Response<AnswerBody>, Infallible>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(Ok)
    }
}
