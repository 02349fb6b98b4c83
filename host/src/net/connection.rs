//! One connection. It belongs to no generation: each of its requests finds its own.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{self, Poll, ready},
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::Service,
};
use hyper_util::rt::{TokioIo, TokioTimer};

use super::{
    activity::{Activity, StreamTasks},
    connections::{Connections, OpenConnection, Place},
    patience::{HeadTimer, Patience, Verdict},
    stream::{Stream, Turn, Version},
    streamed::{StreamAnswering, StreamBody},
    transport::{Accepted, Transport},
};
use crate::{
    config,
    dispatch::{AnswerBody, ConnectionInfo, Dispatched, Routes, dispatch},
    generation::Order,
};

/// How connections are served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// Whether answers carry `handover-version` and `handover-generation`.
    pub version_header: bool,
    /// How long clients are waited for.
    pub timeouts: config::Timeouts,
}

/// What all connections are served with.
#[derive(Debug)]
pub(super) struct Protocols {
    routes: Arc<Routes>,
    settings: Settings,
    connections: Connections,
}

/// A connection that is served. In this order: who waits for it to be gone waits for its descriptor.
struct Serving {
    // In a box, so that no future that this one becomes part of has room for it twice.
    http: Pin<Box<Http>>,
    patience: Patience,
    turn: Turn,
    settings: Settings,
    requests: Requests,
    followed: Option<Order>,
    connections: Connections,
    open: OpenConnection,
}

type Bytes = Stream<TokioIo<Transport>>;

/// What a connection speaks.
#[expect(
    clippy::large_enum_variant,
    reason = "it is in a box, and becomes the larger one mostly"
)]
enum Http {
    /// Nobody knows yet.
    Opening(Option<Bytes>),
    One(http1::UpgradeableConnection<Bytes, Requests>),
    Two(http2::Connection<Bytes, StreamRequests, StreamTasks>),
}

impl Protocols {
    pub(super) fn new(routes: Arc<Routes>, settings: Settings, connections: Connections) -> Self {
        Self {
            routes,
            settings,
            connections,
        }
    }

    /// Serves a client until it leaves, is waited for too long, or what `open` is the place of orders an end.
    ///
    /// # Errors
    /// Why the connection ended, if it broke.
    pub(super) fn serve(
        &self,
        accepted: Accepted,
        open: OpenConnection,
        place: Place,
    ) -> impl Future<Output = Result<(), String>> + Send + 'static {
        let activity = open.activity();
        let requests = Requests {
            routes: Arc::clone(&self.routes),
            connection: Arc::new(ConnectionInfo {
                peer: accepted.peer.into(),
                local: accepted.local,
                name_version: self.settings.version_header,
                cut: Some(Arc::clone(open.cut())),
            }),
            activity: Arc::clone(activity),
        };
        let bytes = TokioIo::new(accepted.transport);
        let (stream, turn) = Stream::new(bytes, Arc::clone(activity), Some(place));
        Serving {
            http: Box::pin(Http::Opening(Some(stream))),
            patience: Patience::new(Arc::clone(activity), self.settings.timeouts),
            turn,
            settings: self.settings,
            requests,
            followed: None,
            connections: self.connections.clone(),
            open,
        }
    }
}

impl Future for Serving {
    type Output = Result<(), String>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if this.followed.is_none() {
            this.open.cut().wakes(cx.waker());
        }
        let order = this.open.cut().order();
        if this.followed != Some(order) {
            this.followed = Some(order);
            match order {
                Order::GoOn => {}
                Order::Finish => {
                    this.http.as_mut().finish();
                    this.patience.leaves();
                }
                Order::End => return Poll::Ready(Err("the host cut it".to_owned())),
            }
        }
        loop {
            let polled = this.turn.take(cx, |cx| {
                this.http
                    .as_mut()
                    .poll(cx, &this.requests, &this.settings, &mut this.patience)
            });
            if polled.is_ready() {
                return polled;
            }
            match ready!(this.patience.poll(cx)) {
                Verdict::Leave(why) => {
                    this.connections.ended(why);
                    this.http.as_mut().finish();
                    this.patience.leaves();
                }
                Verdict::End(why) => {
                    if let Some(why) = why {
                        this.connections.ended(why);
                    }
                    return Poll::Ready(Err("its client was waited for in vain".to_owned()));
                }
            }
        }
    }
}

impl Http {
    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        requests: &Requests,
        settings: &Settings,
        patience: &mut Patience,
    ) -> Poll<Result<(), String>> {
        loop {
            let told = match &mut *self {
                Self::One(connection) => Pin::new(connection).poll(cx),
                Self::Two(connection) => Pin::new(connection).poll(cx),
                Self::Opening(None) => return Poll::Ready(Ok(())),
                Self::Opening(Some(stream)) => {
                    let version = ready!(stream.poll_version(cx));
                    let version = version.map_err(|error| error.to_string())?;
                    self.as_mut().begin(version, requests.clone(), settings);
                    if version == Version::Http2 {
                        patience.is_http2();
                    }
                    continue;
                }
            };
            return told.map_err(|error| error.to_string());
        }
    }

    fn begin(mut self: Pin<&mut Self>, version: Version, requests: Requests, settings: &Settings) {
        let Self::Opening(stream) = &mut *self else {
            return;
        };
        let Some(stream) = stream.take() else { return };
        let http = match version {
            Version::Http1 => Self::One(
                http1::Builder::new()
                    .timer(HeadTimer(Arc::clone(&requests.activity)))
                    .header_read_timeout(HeadTimer::SPAN)
                    .serve_connection(stream, requests)
                    .with_upgrades(),
            ),
            Version::Http2 => {
                let tasks = StreamTasks(Arc::clone(&requests.activity));
                let mut builder = http2::Builder::new(tasks);
                builder.timer(TokioTimer::new()).enable_connect_protocol();
                if let Some(interval) = settings.timeouts.http2_ping {
                    builder
                        .keep_alive_interval(interval)
                        .keep_alive_timeout(settings.timeouts.http2_pong);
                }
                Self::Two(builder.serve_connection(stream, StreamRequests(requests)))
            }
        };
        self.set(http);
    }

    /// Takes nothing more, and ends with what it has.
    fn finish(mut self: Pin<&mut Self>) {
        match &mut *self {
            Self::Opening(stream) => drop(stream.take()),
            Self::One(connection) => Pin::new(connection).graceful_shutdown(),
            Self::Two(connection) => Pin::new(connection).graceful_shutdown(),
        }
    }
}

/// Answers the requests of one connection.
#[derive(Clone, Debug)]
struct Requests {
    routes: Arc<Routes>,
    connection: Arc<ConnectionInfo>,
    activity: Arc<Activity>,
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = Answering;

    #[inline]
    fn call(&self, request: Request<Incoming>) -> Answering {
        self.activity.begins();
        Answering(dispatch(&self.routes, request, &self.connection))
    }
}

/// A request on its way; there is always an answer.
#[derive(Debug)]
pub(super) struct Answering(Dispatched<Incoming>);

impl Future for Answering {
    type Output = Result<Response<AnswerBody>, Infallible>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(Ok)
    }
}

/// Answers those of HTTP/2, each a stream that is counted until its client has all of it.
#[derive(Clone, Debug)]
struct StreamRequests(Requests);

impl Service<Request<Incoming>> for StreamRequests {
    type Response = Response<StreamBody>;
    type Error = Infallible;
    type Future = StreamAnswering;

    #[inline]
    fn call(&self, request: Request<Incoming>) -> StreamAnswering {
        let Requests {
            routes,
            connection,
            activity,
        } = &self.0;
        StreamAnswering::new(Answering(dispatch(routes, request, connection)), activity)
    }
}
