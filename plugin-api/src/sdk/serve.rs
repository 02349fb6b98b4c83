//! `serve`: one line that serves an app in a program of its own, and gives it to the host in a
//! plugin.

use std::{
    convert::Infallible,
    fmt,
    future::{Future, IntoFuture, Pending, pending, poll_fn},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{self, Poll},
    time::Duration,
};

use bytes::Buf;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto::Builder, graceful::GracefulShutdown},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::watch,
};
use tower_service::Service;

use super::{
    app::{App, when_ready},
    body::Body,
    context::Context,
    log, program, worker,
};

/// How long the first request of a connection that was just accepted may be on its way.
const ON_ITS_WAY: Duration = Duration::from_millis(250);

/// How long nothing is accepted after an error that another try would meet as well.
const PAUSE: Duration = Duration::from_secs(1);

/// Serves `app`, in place of `axum::serve`: in a program of its own the connections of `listener`,
/// in a plugin those of the host.
///
/// In a plugin whose constructor is made of `main` (see [`main`](macro@crate::main)) the first call
/// gives the app to the host and lets go of `listener`. The future ends when the generation is
/// over: it was told to drain, and nothing is in flight any more. So what stands after it, as
/// closing a pool, is done then. What is for another port than the host's is marked by
/// [`Serve::with_own_port`].
///
/// `app` is any [`App`], or a service that makes one for each connection
/// (`Router::into_make_service_with_connect_info`, for which this crate's feature `axum` is
/// needed).
pub fn serve<L: Listener, A: IntoApp<How>, How>(listener: L, app: A) -> Serve<L, A::App> {
    Serve {
        listener,
        app: app.into_app(),
        names_peers: A::NAMES_PEERS,
        own_port: false,
        signal: pending(),
    }
}

/// What [`serve`] returns: to be awaited.
#[must_use = "nothing is served until this is awaited"]
pub struct Serve<L, A, S = Pending<()>> {
    listener: L,
    app: A,
    names_peers: bool,
    own_port: bool,
    signal: S,
}

impl<L, A, S> fmt::Debug for Serve<L, A, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Serve")
    }
}

impl<L, A> Serve<L, A> {
    /// Ends when `signal` does: takes no more connections, and waits for the answers that are under
    /// way. In a plugin `signal` runs as well, but only the host ends a generation.
    pub fn with_graceful_shutdown<S>(self, signal: S) -> Serve<L, A, S>
    where
        S: Future<Output = ()> + Send + 'static,
    {
        Serve {
            listener: self.listener,
            app: self.app,
            names_peers: self.names_peers,
            own_port: self.own_port,
            signal,
        }
    }
}

impl<L, A, S> Serve<L, A, S> {
    /// Serves it on its own listener in a plugin as well, where the host has no part in it: for
    /// metrics or an admin's pages beside the app. It is served until the generation drains; the
    /// answers that are under way then count as in flight.
    pub fn with_own_port(self) -> Self {
        Self {
            own_port: true,
            ..self
        }
    }
}

impl<L, A, S> IntoFuture for Serve<L, A, S>
where
    L: Listener,
    A: App,
    S: Future<Output = ()> + Send + 'static,
{
    type Output = io::Result<()>;
    type IntoFuture = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let Self {
                listener,
                app,
                names_peers,
                own_port,
                signal,
            } = self;
            if !log::is_hosted() {
                accept(listener, app, signal).await;
                if !own_port {
                    worker::stop_program();
                }
                return Ok(());
            }
            let app = if own_port {
                app
            } else {
                match program::give(app, names_peers) {
                    Ok(over) => {
                        drop(listener);
                        // Its side effects are wanted, its end decides nothing here.
                        let signal = async {
                            signal.await;
                            pending().await
                        };
                        either(signal, over).await;
                        return Ok(());
                    }
                    Err(app) => app,
                }
            };
            let Some(context) = Context::current() else {
                return Err(io::Error::other("this generation is over"));
            };
            if context.is_preflight() {
                // Whoever finds it would be asking code that is not live.
                drop(listener);
                context.draining().await;
                return Ok(());
            }
            let until = either(signal, context.draining());
            // It ends with its signal, or by panicking, which was told.
            let _ = context.spawn(accept(listener, app, until)).await;
            Ok(())
        })
    }
}

/// Ends when one of both does.
async fn either(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    let (mut one, mut other) = (pin!(one), pin!(other));
    poll_fn(|cx| {
        if one.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        other.as_mut().poll(cx)
    })
    .await;
}

/// Serves what comes on `listener` until `signal` ends, and then waits for the answers that are
/// under way.
async fn accept<L: Listener>(mut listener: L, app: impl App, signal: impl Future<Output = ()>) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http2().enable_connect_protocol();
    let builder = Arc::new(builder);
    let graceful = GracefulShutdown::new();
    let silent = watch::Sender::new(0);
    let mut signal = pin!(signal);
    loop {
        let accepted = {
            let mut accepting = pin!(listener.accept());
            poll_fn(|cx| {
                if signal.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                accepting.as_mut().poll(cx).map(Some)
            })
            .await
        };
        let (io, peer) = match accepted {
            None => break,
            Some(Ok(accepted)) => accepted,
            Some(Err(error)) => {
                if !is_of_one_connection(&error) {
                    tracing::error!("no connection can be accepted: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
                continue;
            }
        };
        let answers = Answers {
            app: app.clone(),
            peer,
            silent: Silent::new(silent.clone()),
        };
        let (builder, watcher) = (Arc::clone(&builder), graceful.watcher());
        tokio::spawn(async move {
            let connection = builder.serve_connection_with_upgrades(TokioIo::new(io), answers);
            if let Err(error) = watcher.watch(connection.into_owned()).await {
                tracing::debug!("a connection ended: {error}");
            }
        });
    }
    drop(listener);
    // A connection that is told to end before its first request is closed without an answer.
    let mut heard = silent.subscribe();
    let heard = heard.wait_for(|silent| *silent == 0);
    // An error means that time is up: who has said nothing by then expects nothing.
    let _ = tokio::time::timeout(ON_ITS_WAY, heard).await;
    graceful.shutdown().await;
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

/// Answers the requests of one connection.
struct Answers<A> {
    app: A,
    peer: Option<SocketAddr>,
    silent: Silent,
}

/// A connection on which no request has come yet, counted until one has.
struct Silent {
    count: watch::Sender<usize>,
    is_over: AtomicBool,
}

impl Silent {
    fn new(count: watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self {
            count,
            is_over: AtomicBool::new(false),
        }
    }

    fn end(&self) {
        if !self.is_over.swap(true, Ordering::Relaxed) {
            self.count.send_modify(|count| *count -= 1);
        }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.end();
    }
}

type Answering<B> = Pin<Box<dyn Future<Output = Result<Response<Readable<B>>, Failed>> + Send>>;

impl<A: App> hyper::service::Service<Request<Incoming>> for Answers<A> {
    type Response = Response<Readable<A::ResponseBody>>;
    type Error = Failed;
    type Future = Answering<A::ResponseBody>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.silent.end();
        let mut request = request.map(Body::own);
        request.extensions_mut().insert(Peer(self.peer));
        let answer = when_ready(self.app.clone(), request);
        Box::pin(async {
            match answer.await {
                Ok(response) => Ok(response.map(Readable)),
                Err(error) => Err(Failed::of(error)),
            }
        })
    }
}

/// Why a service or a body failed, as text.
#[derive(Debug)]
pub struct Failed(String);

impl Failed {
    fn of(error: impl fmt::Display) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

/// A body whose error is one.
#[allow(unreachable_pub, reason = "it is part of what `serve` is generic in")]
pub struct Readable<B>(B);

impl<B: HttpBody<Data: Buf, Error: fmt::Display> + Unpin> HttpBody for Readable<B> {
    type Data = B::Data;
    type Error = Failed;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, Failed>>> {
        Pin::new(&mut self.0)
            .poll_frame(cx)
            .map(|next| next.map(|next| next.map_err(Failed::of)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// What connections are taken from: a TCP or a Unix listener of tokio's.
pub trait Listener: sealed::Sealed + Send + 'static {
    /// A connection.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for the next connection. Gives the address of its client where it has one.
    fn accept(&mut self)
    -> impl Future<Output = io::Result<(Self::Io, Option<SocketAddr>)>> + Send;
}

impl Listener for TcpListener {
    type Io = tokio::net::TcpStream;

    async fn accept(&mut self) -> io::Result<(Self::Io, Option<SocketAddr>)> {
        let (stream, peer) = Self::accept(self).await?;
        Ok((stream, Some(peer)))
    }
}

#[cfg(unix)]
impl Listener for tokio::net::UnixListener {
    type Io = tokio::net::UnixStream;

    async fn accept(&mut self) -> io::Result<(Self::Io, Option<SocketAddr>)> {
        let (stream, _) = Self::accept(self).await?;
        Ok((stream, None))
    }
}

mod sealed {
    #[allow(unnameable_types, reason = "that is the point")]
    pub trait Sealed {}
    impl Sealed for tokio::net::TcpListener {}
    #[cfg(unix)]
    impl Sealed for tokio::net::UnixListener {}
}

/// Who sent a request, on its way from the connection to [`ForEach`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) Option<SocketAddr>);

/// What [`serve`] takes: an [`App`], or what makes one for each connection. `How` tells these
/// apart, and is always inferred.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no app that can be served",
    label = "neither a `tower::Service<http::Request<handover_plugin::Body>>` nor what makes one",
    note = "an app answers `http::Request` of the crate http 1 and implements `tower::Service`, as `Router` of axum 0.8 and 0.7 does; axum 0.6 and others on http 0.2 have to be upgraded",
    note = "for `into_make_service_with_connect_info` enable the feature `axum` of handover-plugin"
)]
pub trait IntoApp<How> {
    /// What answers.
    type App: App;
    /// Whether it wants to know who asks.
    const NAMES_PEERS: bool;

    /// Makes it.
    fn into_app(self) -> Self::App;
}

/// The [`IntoApp`] of an app.
#[derive(Debug)]
pub struct Itself;

#[diagnostic::do_not_recommend]
impl<A: App> IntoApp<Itself> for A {
    type App = A;
    const NAMES_PEERS: bool = false;

    fn into_app(self) -> A {
        self
    }
}

#[diagnostic::do_not_recommend]
impl<M, A> IntoApp<IncomingConnection> for M
where
    M: Service<IncomingConnection, Response = A, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
    A: App,
{
    type App = ForEach<M>;
    const NAMES_PEERS: bool = true;

    fn into_app(self) -> ForEach<M> {
        ForEach(self)
    }
}

/// A connection, as those see it that make a service for each. In a plugin, where connections
/// outlive generations, one is made for each request.
#[derive(Clone, Copy, Debug)]
pub struct IncomingConnection {
    peer: Option<SocketAddr>,
}

impl IncomingConnection {
    /// The address of the client; none over a Unix socket.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }
}

#[cfg(feature = "axum")]
impl axum::extract::connect_info::Connected<IncomingConnection> for SocketAddr {
    fn connect_info(connection: IncomingConnection) -> Self {
        let unknown = (std::net::Ipv4Addr::UNSPECIFIED, 0).into();
        connection.peer.unwrap_or(unknown)
    }
}

/// An app out of what makes one for each connection.
#[derive(Clone, Debug)]
pub struct ForEach<M>(M);

type Made<A> =
    Pin<Box<dyn Future<Output = Result<Response<<A as App>::ResponseBody>, Failed>> + Send>>;

impl<M, A> Service<Request<Body>> for ForEach<M>
where
    M: Service<IncomingConnection, Response = A, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
    A: App,
{
    type Response = Response<A::ResponseBody>;
    type Error = Failed;
    type Future = Made<A>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Made<A> {
        let mut make = self.0.clone();
        let peer = request.extensions_mut().remove::<Peer>();
        let connection = IncomingConnection {
            peer: peer.and_then(|Peer(peer)| peer),
        };
        Box::pin(async move {
            let ready = poll_fn(|cx| make.poll_ready(cx)).await;
            let Ok(app) = async {
                ready?;
                make.call(connection).await
            }
            .await;
            when_ready(app, request).await.map_err(Failed::of)
        })
    }
}
