//! One connection. It belongs to no generation: each of its requests finds its own.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{self, Poll, ready},
};

use http::{Method, Request, Response};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::Service,
};
use hyper_util::rt::{TokioIo, TokioTimer};

use super::{
    activity::{Activity, StreamTasks},
    challenges::Challenges,
    connections::{Connections, OpenConnection, Place},
    ended::Ended,
    middleware::{Middleware, Pending, Verdict},
    patience::{self, HeadTimer, Patience},
    proxy_protocol,
    stream::{PollCycle, Stream, Version},
    streamed::{StreamAnswering, StreamBody},
    tls::TlsListener,
    transport::{Accepted, Transport},
};
use crate::{
    config::{self, TrustedProxies},
    dispatch::{
        ConnectionInfo, Dispatched, ResponseBody, Routes, Tls, bad_request, dispatch, malformed,
    },
    generation::CloseRequest,
};

/// How connections are served, whichever listener they came through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// Whether answers carry `handover-version` and `handover-generation`.
    pub version_header: bool,
    /// Whether the host answers for its health.
    pub health_routes: bool,
    /// Whether requests have an id.
    pub request_id: bool,
    /// How long clients are waited for.
    pub timeouts: config::Timeouts,
}

/// What all connections of a listener are served with.
#[derive(Debug)]
pub(super) struct Protocols {
    routes: Arc<Routes>,
    settings: Settings,
    listener: Arc<ListenerSettings>,
    connections: Connections,
}

/// How the connections of one listener are served.
#[derive(Debug)]
pub(crate) struct ListenerSettings {
    /// Which versions of HTTP they may speak.
    pub(crate) protocols: config::Protocols,
    /// Who may connect, where each connection begins with a header of the PROXY protocol; none: it
    /// does not.
    pub(crate) proxies: Option<TrustedProxies>,
    /// Its TLS, if it has any.
    pub(crate) tls: Option<Arc<TlsListener>>,
    /// What authorities may look for in a handshake. None: no certificate is ordered.
    pub(crate) challenges: Option<Challenges>,
    /// What is done with each request beside giving it to its app. None: nothing.
    pub(crate) middleware: Option<Middleware>,
}

/// A connection that is served. In this order: who waits for it to be gone waits for its
/// descriptor.
struct Serving {
    // In a box, so that no future that this one becomes part of has room for it twice.
    http: Pin<Box<Http>>,
    patience: Patience,
    cycle: PollCycle,
    settings: Settings,
    requests: Requests,
    followed: Option<CloseRequest>,
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
    /// Its bytes are not there yet: a header of the PROXY protocol comes first, or a handshake.
    Greeting(Option<Greeting>),
    /// Nobody knows yet.
    Opening(Option<Bytes>),
    One(http1::UpgradeableConnection<Bytes, Requests>),
    Two(http2::Connection<Bytes, StreamRequests, StreamTasks>),
}

/// The client, and where it connected to.
type Addresses = (Option<SocketAddr>, Option<SocketAddr>);

impl Settings {
    /// Those of `[server]`.
    pub(crate) fn of(server: &config::Server) -> Self {
        Self {
            version_header: server.version_header,
            health_routes: server.health_routes,
            request_id: server.request_id,
            timeouts: server.timeouts(),
        }
    }
}

impl ListenerSettings {
    /// Whether something comes before HTTP.
    fn is_greeted(&self) -> bool {
        self.proxies.is_some() || self.tls.is_some()
    }

    /// Reads the header of the PROXY protocol, and makes the handshake of TLS, where they are asked
    /// for.
    async fn greet(
        &self,
        mut transport: Transport,
        mut addresses: Addresses,
    ) -> Result<(Transport, Addresses, Option<Tls>), Unserved> {
        if self.proxies.is_some() {
            let proxied = proxy_protocol::read(&mut transport)
                .await
                .map_err(|error| Unserved(Some(Ended::NoProxyHeader), error.to_string()))?;
            if let Some((client, destination)) = proxied {
                addresses = (Some(client), Some(destination));
            }
        }
        let Some(tls) = &self.tls else {
            return Ok((transport, addresses, None));
        };
        let (transport, known) = tls
            .accept(transport, self.challenges.as_ref())
            .await
            .map_err(|error| Unserved(Some(Ended::NoHandshake), error.to_string()))?
            .ok_or_else(|| Unserved(None, "it was an authority with a challenge".to_owned()))?;
        Ok((transport, addresses, Some(known)))
    }
}

/// What comes before HTTP, and becomes the bytes of HTTP and what is known of the connection.
type Greeting = Pin<Box<dyn Future<Output = Result<(Bytes, ConnectionInfo), Unserved>> + Send>>;

/// Why a connection ended, and as what that counts, if the host ended it.
struct Unserved(Option<Ended>, String);

impl Protocols {
    pub(super) fn new(
        routes: Arc<Routes>,
        settings: Settings,
        listener: Arc<ListenerSettings>,
        connections: Connections,
    ) -> Self {
        Self {
            routes,
            settings,
            listener,
            connections,
        }
    }

    /// Whether `client` may connect at all.
    pub(super) fn welcomes(&self, client: Option<SocketAddr>) -> bool {
        let proxies = self.listener.proxies.as_ref();
        proxies.is_none_or(|proxies| proxies.trusts(client.map(|address| address.ip())))
    }

    /// Serves a client until it leaves, is waited for too long, or what `open` is the place of
    /// orders an end.
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
        let (name_version, close_handle) = (
            self.settings.version_header,
            Arc::clone(open.close_handle()),
        );
        let middleware = self.listener.middleware.as_ref();
        let is_observed = middleware.is_some_and(|middleware| middleware.observer.is_some());
        let info = move |peer, local, tls| {
            let info = ConnectionInfo::new(peer, local, tls, name_version, Some(close_handle));
            if is_observed {
                info.telling_generation()
            } else {
                info
            }
        };
        let cycle = PollCycle::default();
        let stream = {
            let (cycle, activity) = (cycle.clone(), Arc::clone(activity));
            move |transport| Stream::new(TokioIo::new(transport), cycle, activity, Some(place))
        };
        let Accepted {
            transport,
            peer,
            local,
        } = accepted;
        let (http, known) = if self.listener.is_greeted() {
            let before = info.clone()(peer, local, None);
            let listener = Arc::clone(&self.listener);
            let greeting = async move {
                let greeted = listener.greet(transport, (peer, local)).await?;
                let (transport, (peer, local), tls) = greeted;
                Ok((stream(transport), info(peer, local, tls)))
            };
            (Http::Greeting(Some(Box::pin(greeting))), before)
        } else {
            let known = info(peer, local, None);
            (Http::Opening(Some(stream(transport))), known)
        };
        let requests = Requests {
            routes: Arc::clone(&self.routes),
            connection: Arc::new(known),
            listener: Arc::clone(&self.listener),
            activity: Arc::clone(activity),
        };
        Serving {
            http: Box::pin(http),
            patience: Patience::new(
                Arc::clone(activity),
                Arc::clone(open.close_handle()),
                self.settings.timeouts,
            ),
            cycle,
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
            this.open.close_handle().wakes(cx.waker());
        }
        let request = this.open.close_handle().requested();
        if this.followed != Some(request) {
            this.followed = Some(request);
            match request {
                CloseRequest::None => {}
                CloseRequest::Graceful => {
                    this.http.as_mut().finish();
                    this.patience.leaves();
                }
                CloseRequest::Immediate => return Poll::Ready(Err("the host cut it".to_owned())),
            }
        }
        loop {
            let polled = this.cycle.take(cx, |cx| {
                this.http
                    .as_mut()
                    .poll(cx, &mut this.requests, &this.settings, &mut this.patience)
            });
            if let Poll::Ready(ended) = polled {
                return Poll::Ready(ended.map_err(|Unserved(why, reason)| {
                    if let Some(why) = why {
                        this.connections.ended(why);
                    }
                    reason
                }));
            }
            match ready!(this.patience.poll(cx)) {
                patience::Verdict::Leave(why) => {
                    this.connections.ended(why);
                    this.http.as_mut().finish();
                    this.patience.leaves();
                }
                patience::Verdict::End(why) => {
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
        requests: &mut Requests,
        settings: &Settings,
        patience: &mut Patience,
    ) -> Poll<Result<(), Unserved>> {
        loop {
            let told = match &mut *self {
                Self::One(connection) => Pin::new(connection).poll(cx),
                Self::Two(connection) => Pin::new(connection).poll(cx),
                Self::Opening(None) | Self::Greeting(None) => return Poll::Ready(Ok(())),
                Self::Greeting(Some(greeting)) => {
                    let (stream, known) = ready!(greeting.as_mut().poll(cx))?;
                    requests.connection = Arc::new(known);
                    self.set(Self::Opening(Some(stream)));
                    continue;
                }
                Self::Opening(Some(stream)) => {
                    let version = ready!(stream.poll_version(cx));
                    let version = version.map_err(|error| Unserved(None, error.to_string()))?;
                    let protocols = requests.listener.protocols;
                    let is_spoken = match version {
                        Version::Http1 => protocols.http1,
                        Version::Http2 => protocols.http2,
                    };
                    if !is_spoken {
                        let reason = format!("{version:?} is not spoken here");
                        return Poll::Ready(Err(Unserved(None, reason)));
                    }
                    self.as_mut().begin(version, requests.clone(), settings);
                    if version == Version::Http2 {
                        patience.is_http2();
                    }
                    continue;
                }
            };
            return told.map_err(|error| Unserved(None, error.to_string()));
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
            Self::Greeting(greeting) => drop(greeting.take()),
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
    listener: Arc<ListenerSettings>,
    activity: Arc<Activity>,
}

impl Requests {
    #[inline]
    fn answer(&self, request: Request<Incoming>) -> Answering {
        if let Some(middleware) = &self.listener.middleware {
            return self.answer_within(middleware, request);
        }
        if let Some(why) = malformed(&request) {
            let answer = bad_request(request.version(), why);
            return Answering {
                dispatched: Dispatched::answered(answer),
                completed_by: None,
            };
        }
        Answering {
            dispatched: dispatch(&self.routes, request, &self.connection),
            completed_by: None,
        }
    }

    /// Answers where more is to be done than to give the request to its app.
    fn answer_within(&self, middleware: &Middleware, mut request: Request<Incoming>) -> Answering {
        match middleware.admit(&mut request, &self.connection) {
            Verdict::Dispatch(connection, pending) => Answering {
                dispatched: dispatch(&self.routes, request, &connection),
                completed_by: Some((Arc::clone(&self.listener), pending)),
            },
            Verdict::Answer(answer, pending) => Answering {
                dispatched: Dispatched::answered(*answer),
                completed_by: Some((Arc::clone(&self.listener), pending)),
            },
        }
    }
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Answering;

    #[inline]
    fn call(&self, request: Request<Incoming>) -> Answering {
        self.activity.begins();
        self.answer(request)
    }
}

/// A request on its way; there is always an answer.
#[derive(Debug)]
pub(super) struct Answering {
    dispatched: Dispatched<Incoming>,
    /// What completes the answer.
    completed_by: Option<(Arc<ListenerSettings>, Pending)>,
}

impl Future for Answering {
    type Output = Result<Response<ResponseBody>, Infallible>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        let answer = Pin::new(&mut self.dispatched).poll(cx);
        if self.completed_by.is_some() {
            return self.complete(answer);
        }
        answer.map(Ok)
    }
}

impl Answering {
    #[cold]
    fn complete(
        &mut self,
        answer: Poll<Response<ResponseBody>>,
    ) -> Poll<Result<Response<ResponseBody>, Infallible>> {
        let mut answer = ready!(answer);
        if let Some((listener, pending)) = self.completed_by.take()
            && let Some(middleware) = &listener.middleware
        {
            middleware.complete(pending, &mut answer);
        }
        Poll::Ready(Ok(answer))
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
        let is_head = request.method() == Method::HEAD;
        let answering = self.0.answer(request);
        StreamAnswering::new(answering, is_head, &self.0.activity)
    }
}
