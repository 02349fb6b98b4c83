//! The host's side of the control socket: one HTTP call for each command, long operations as lines
//! that stream.
//!
//! A client is only an ear. One that is killed never stops what it asked for; only an upload that
//! it had not finished is dropped.

use std::{
    convert::Infallible,
    fmt, io,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Either, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{broadcast, mpsc},
    task::JoinSet,
    time::{Interval, MissedTickBehavior},
};

use super::{
    access::{Access, Peer, Role},
    api::{
        Event, History, HistoryEntry, OperationResult, Outcome, Problem, Progress, SIGNATURE,
        ShuttingDown, Status,
    },
    body::ChannelBody,
    shutdown::{Shutdown, ShutdownHandle},
    socket::ControlSocket,
};
use crate::{
    apps::{Apps, Cause, Operation, Wait},
    artifact::{Artifact, Signature, Store, StoreError, store::Writer},
    background,
    names::AppName,
    net::accept::{Accept, Serve, accept},
    telemetry::{Gather, exposition},
};

/// How many lines or pieces may wait for a slow other side.
const WAITING: usize = 32;
/// How often the file of the socket is looked for: whoever cleans up folders may delete it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long the bytes of a caller that is refused are read.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the calls are answered from. The host is one; tests put another in its place.
pub trait Backend: Clone + Send + Sync + 'static {
    /// Bytes on their way in.
    type Upload: Upload<Artifact = Self::Artifact>;
    /// What they become.
    type Artifact: Send + 'static;

    /// For `GET /v1/status`.
    fn status(&self) -> Status;
    /// For `GET /v1/history`.
    fn history(&self, app: Option<&AppName>) -> Vec<HistoryEntry>;
    /// For `GET /v1/events`: those so far, and those to come.
    fn events(&self) -> (Vec<Event>, broadcast::Receiver<Event>);
    /// Begins an upload. Blocks on the file system.
    fn upload(&self) -> Result<Self::Upload, StoreError>;
    /// For `POST /v1/deploy`, with the whole upload, the signature that came with it, and how long
    /// it took to be stored.
    fn deploy(
        &self,
        artifact: Self::Artifact,
        signature: Option<Signature>,
        stored_in: Duration,
        app: Option<AppName>,
        timeout: Option<Duration>,
        wait: Wait,
    ) -> Operation;
    /// For `POST /v1/deploy`, with an upload that the store did not take.
    fn not_taken(
        &self,
        file: &str,
        app: Option<AppName>,
        error: &StoreError,
    ) -> impl Future<Output = OperationResult> + Send;
    /// For `POST /v1/reload`.
    fn reload(&self, app: Option<AppName>, wait: Wait) -> Operation;
    /// For `POST /v1/rollback`.
    fn rollback(&self, app: Option<AppName>, to: Option<String>, wait: Wait) -> Operation;
    /// For `GET /v1/operations/ID`.
    fn operation(&self, id: &str) -> Option<Operation>;
    /// For `GET /metrics`.
    fn metrics(&self) -> Gather;
}

/// Bytes on their way in. Dropping it forgets them. Every method blocks on the file system.
pub trait Upload: Send + 'static {
    /// What they become.
    type Artifact;
    /// Takes the next bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError>;
    /// All bytes are in.
    fn finish(self) -> Result<Self::Artifact, StoreError>;
}

impl Upload for Writer {
    type Artifact = Artifact;

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        Self::write(self, bytes)
    }

    fn finish(self) -> Result<Artifact, StoreError> {
        Self::finish(self)
    }
}

/// The host as the calls see it.
#[derive(Clone)]
struct Host {
    apps: Apps,
    store: Store,
    metrics: Gather,
}

impl Backend for Host {
    type Upload = Writer;
    type Artifact = Artifact;

    fn status(&self) -> Status {
        self.apps.status()
    }

    fn history(&self, app: Option<&AppName>) -> Vec<HistoryEntry> {
        self.apps.history(app)
    }

    fn events(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        self.apps.events()
    }

    fn upload(&self) -> Result<Writer, StoreError> {
        self.store.writer()
    }

    fn deploy(
        &self,
        mut artifact: Artifact,
        signature: Option<Signature>,
        stored_in: Duration,
        app: Option<AppName>,
        timeout: Option<Duration>,
        wait: Wait,
    ) -> Operation {
        artifact.signature = signature;
        self.apps
            .deploy(artifact, stored_in, app, Cause::Deploy, timeout, wait)
    }

    async fn not_taken(
        &self,
        file: &str,
        app: Option<AppName>,
        error: &StoreError,
    ) -> OperationResult {
        self.apps.not_taken(file, app, error).await
    }

    fn reload(&self, app: Option<AppName>, wait: Wait) -> Operation {
        self.apps.reload(app, wait)
    }

    fn rollback(&self, app: Option<AppName>, to: Option<String>, wait: Wait) -> Operation {
        self.apps.rollback(app, to, wait)
    }

    fn operation(&self, id: &str) -> Option<Operation> {
        self.apps.operation(id)
    }

    fn metrics(&self) -> Gather {
        self.metrics.clone()
    }
}

/// Serves the control socket for as long as the future lives; dropping it cuts the connections and
/// no operation.
///
/// `shutdown` is asked for only when the caller's answer is out, so that even `handover shutdown
/// --now` gets one.
pub async fn serve(
    listener: (UnixListener, ControlSocket),
    access: Access,
    apps: Apps,
    store: Store,
    metrics: Gather,
    shutdown: ShutdownHandle,
) {
    let host = Host {
        apps,
        store,
        metrics,
    };
    serve_backend(listener, access, host, shutdown).await;
}

/// [`serve`] for any backend.
pub async fn serve_backend<B: Backend>(
    (listener, socket): (UnixListener, ControlSocket),
    access: Access,
    backend: B,
    shutdown: ShutdownHandle,
) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let listener = ControlListener {
        listener,
        socket,
        look,
        cannot_be_made: false,
    };
    let calls = Calls {
        access: Arc::new(access),
        backend,
        shutdown,
        connections: JoinSet::new(),
    };
    accept(listener, calls, std::future::pending()).await;
}

/// The control socket, which is made again when its file is gone.
struct ControlListener {
    listener: UnixListener,
    socket: ControlSocket,
    look: Interval,
    cannot_be_made: bool,
}

impl Accept for ControlListener {
    type Connection = UnixStream;

    async fn accept(&mut self) -> io::Result<UnixStream> {
        loop {
            tokio::select! {
                _ = self.look.tick() => self.look_for_file(),
                accepted = self.listener.accept() => return accepted.map(|(stream, _)| stream),
            }
        }
    }
}

impl ControlListener {
    fn look_for_file(&mut self) {
        if !self.socket.is_gone() {
            return;
        }
        match self.socket.bind_again() {
            Ok(again) => {
                tracing::warn!(path = %self.socket.path().display(), "the control socket was deleted, and is made again");
                self.listener = again;
                self.cannot_be_made = false;
            }
            Err(error) if !self.cannot_be_made => {
                tracing::error!("the control socket was deleted: {error}; it is tried again");
                self.cannot_be_made = true;
            }
            Err(_) => {}
        }
    }
}

/// Serves the calls of each connection. Dropping it cuts them.
struct Calls<B> {
    access: Arc<Access>,
    backend: B,
    shutdown: ShutdownHandle,
    connections: JoinSet<()>,
}

impl<B: Backend> Serve<UnixStream> for Calls<B> {
    async fn serve(&mut self, stream: UnixStream) -> Result<(), String> {
        // What has ended is forgotten.
        while self.connections.try_join_next().is_some() {}
        self.connections.spawn(connection(
            stream,
            Arc::clone(&self.access),
            self.backend.clone(),
            self.shutdown.clone(),
        ));
        Ok(())
    }

    fn not_accepted(&self, error: &io::Error) -> String {
        format!("the control socket cannot accept a connection: {error}")
    }
}

/// Who is calling: its role, and the sentence about it.
#[derive(Clone, Copy)]
struct Caller {
    uid: u32,
    role: Role,
}

impl Caller {
    async fn of(stream: &UnixStream, access: Arc<Access>) -> Result<Self, String> {
        let peer = stream.peer_cred().map_err(|error| {
            format!("the host cannot see who is calling ({error}), so it takes no command")
        })?;
        let peer = Peer {
            uid: peer.uid(),
            gid: peer.gid(),
        };
        // The system's list of users may be a server far away.
        let role = tokio::task::spawn_blocking(move || access.role(peer))
            .await
            .unwrap_or(Role::None);
        Ok(Self {
            uid: peer.uid,
            role,
        })
    }

    /// Whether this call is open to the caller.
    fn may(self, path: &str) -> Result<(), Refusal> {
        let own = rustix::process::geteuid().as_raw();
        let uid = self.uid;
        match self.role {
            Role::Operate => Ok(()),
            Role::Observe if OBSERVING.contains(&path) => Ok(()),
            Role::Observe => Err(Refusal::denied(format!(
                "user {uid} may observe this host (status, history, events, metrics) and not operate it: run as user {own} or root, or have \
                 control.operate name you"
            ))),
            Role::None => Err(Refusal::denied(format!(
                "user {uid} may not command a host of user {own}: run as that user or as root, or have control.operate or \
                 control.observe name you"
            ))),
        }
    }
}

async fn connection<B: Backend>(
    stream: UnixStream,
    access: Arc<Access>,
    backend: B,
    shutdown: ShutdownHandle,
) {
    let caller = Caller::of(&stream, access).await;
    let asked = Arc::new(OnceLock::new());
    let service = service_fn(|request| {
        let (backend, caller, asked) = (backend.clone(), caller.clone(), Arc::clone(&asked));
        async move {
            let allowed = caller
                .map_err(Refusal::denied)
                .and_then(|caller| caller.may(request.uri().path()));
            let answer = match allowed {
                Err(refusal) => {
                    discard(request.into_body()).await;
                    Err(refusal)
                }
                Ok(()) => answer(request, backend, &asked).await,
            };
            Ok::<_, Infallible>(answer.unwrap_or_else(Refusal::into_response))
        }
    });
    // A client that leaves is its own affair: the error has nobody to interest.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Some(request) = asked.get() {
        shutdown.request(*request);
    }
}

type ControlResponse = Response<Either<Full<Bytes>, ChannelBody<Infallible>>>;

/// A call that is not taken.
struct Refusal {
    status: StatusCode,
    allow: Option<&'static str>,
    problem: Problem,
}

impl Refusal {
    fn new(status: StatusCode, exit_code: u8, error: impl fmt::Display) -> Self {
        Self {
            status,
            allow: None,
            problem: Problem {
                error: error.to_string(),
                exit_code,
            },
        }
    }

    fn denied(error: String) -> Self {
        Self::new(StatusCode::FORBIDDEN, Outcome::Denied.exit_code(), error)
    }

    fn into_response(self) -> ControlResponse {
        let mut response = json(&self.problem);
        *response.status_mut() = self.status;
        if let Some(allow) = self.allow {
            response
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

/// The calls, by path, each with its method.
const CALLS: [(&str, &str); 8] = [
    ("/v1/status", "GET"),
    ("/v1/history", "GET"),
    ("/v1/events", "GET"),
    ("/v1/deploy", "POST"),
    ("/v1/reload", "POST"),
    ("/v1/rollback", "POST"),
    ("/v1/shutdown", "POST"),
    ("/metrics", "GET"),
];
const OPERATIONS: &str = "/v1/operations/";
/// Those that change nothing: open to observers.
const OBSERVING: [&str; 4] = ["/v1/status", "/v1/history", "/v1/events", "/metrics"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoQuery {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AppQuery {
    app: Option<AppName>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    #[serde(default)]
    follow: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeployQuery {
    name: Option<String>,
    app: Option<AppName>,
    timeout_ms: Option<u64>,
    #[serde(default)]
    queue: bool,
    #[serde(default)]
    detach: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReloadQuery {
    app: Option<AppName>,
    #[serde(default)]
    queue: bool,
    #[serde(default)]
    detach: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RollbackQuery {
    app: Option<AppName>,
    to: Option<String>,
    #[serde(default)]
    queue: bool,
    #[serde(default)]
    detach: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShutdownQuery {
    #[serde(default)]
    now: bool,
}

fn query<Q: DeserializeOwned>(request: &Request<Incoming>) -> Result<Q, Refusal> {
    let text = request.uri().query().unwrap_or_default();
    serde_urlencoded::from_str(text).map_err(|error| {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            2,
            format_args!(
                "the query of {} is not understood: {error}",
                request.uri().path()
            ),
        )
    })
}

/// The signature that came with the artifact.
fn signature(request: &Request<Incoming>) -> Result<Option<Signature>, Refusal> {
    let Some(value) = request.headers().get(SIGNATURE) else {
        return Ok(None);
    };
    Signature::from_header(value.as_bytes())
        .map(Some)
        .map_err(|error| {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                Outcome::Rejected.exit_code(),
                format_args!("the signature is not understood: {error}; {SIGNATURE} takes the base64 of FILE.so.minisig"),
            )
        })
}

async fn answer<B: Backend>(
    request: Request<Incoming>,
    backend: B,
    asked: &OnceLock<Shutdown>,
) -> Result<ControlResponse, Refusal> {
    let path = request.uri().path().to_owned();
    check_method(request.method(), &path)?;
    match path.as_str() {
        "/v1/status" => {
            let NoQuery {} = query(&request)?;
            Ok(json(&backend.status()))
        }
        "/v1/history" => {
            let AppQuery { app } = query(&request)?;
            Ok(json(&History {
                history: backend.history(app.as_ref()),
            }))
        }
        "/v1/events" => {
            let EventsQuery { follow } = query(&request)?;
            Ok(events(backend.events(), follow))
        }
        "/metrics" => {
            let NoQuery {} = query(&request)?;
            metrics(backend.metrics()).await
        }
        "/v1/deploy" => {
            let asked = query(&request).and_then(|query| Ok((query, signature(&request)?)));
            match asked {
                Ok((query, signature)) => {
                    deploy(request.into_body(), query, signature, backend).await
                }
                Err(refusal) => {
                    discard(request.into_body()).await;
                    Err(refusal)
                }
            }
        }
        "/v1/reload" => {
            let ReloadQuery { app, queue, detach } = query(&request)?;
            Ok(progress(backend.reload(app, Wait::asked(queue, detach))))
        }
        "/v1/rollback" => {
            let RollbackQuery {
                app,
                to,
                queue,
                detach,
            } = query(&request)?;
            Ok(progress(backend.rollback(
                app,
                to,
                Wait::asked(queue, detach),
            )))
        }
        "/v1/shutdown" => {
            let ShutdownQuery { now } = query(&request)?;
            // Takes effect when this connection has ended, which the header makes happen right
            // after the answer.
            let _ = asked.set(if now { Shutdown::Now } else { Shutdown::Drain });
            let mut response = json(&ShuttingDown {
                pid: std::process::id(),
            });
            response
                .headers_mut()
                .insert(header::CONNECTION, HeaderValue::from_static("close"));
            Ok(response)
        }
        _ => {
            let id = path.strip_prefix(OPERATIONS).unwrap_or_default();
            backend.operation(id).map(progress).ok_or_else(|| {
                Refusal::new(
                    StatusCode::NOT_FOUND,
                    1,
                    format_args!(
                        "there is no operation `{id}`: it ended too long ago, or before the host was started; `handover history` \
                         shows what became of it"
                    ),
                )
            })
        }
    }
}

/// 404 and 405.
fn check_method(method: &Method, path: &str) -> Result<(), Refusal> {
    let allowed = CALLS
        .iter()
        .find(|(known, _)| *known == path)
        .map(|(_, method)| *method)
        .or_else(|| {
            path.strip_prefix(OPERATIONS)
                .filter(|id| !id.is_empty())
                .map(|_| "GET")
        });
    match allowed {
        None => {
            let calls: Vec<_> = CALLS
                .iter()
                .map(|(path, method)| format!("{method} {path}"))
                .collect();
            Err(Refusal::new(
                StatusCode::NOT_FOUND,
                1,
                format_args!(
                    "there is no call {path}: this host knows {}, GET {OPERATIONS}ID",
                    calls.join(", ")
                ),
            ))
        }
        Some(allowed) if method.as_str() != allowed => Err(Refusal {
            allow: Some(allowed),
            ..Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                1,
                format_args!("{path} takes {allowed}, and this was {method}"),
            )
        }),
        Some(_) => Ok(()),
    }
}

fn json(value: &impl Serialize) -> ControlResponse {
    let mut response = Response::new(Either::Left(Full::new(line(value))));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

fn line(value: &impl Serialize) -> Bytes {
    // These are our own types of strings and numbers: serialising them cannot fail, and if it ever
    // did, an empty line is what a reader skips.
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

async fn metrics(gather: Gather) -> Result<ControlResponse, Refusal> {
    let text = gather.text().await.map_err(|error| {
        Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            1,
            format_args!("the metrics could not be gathered: {error}"),
        )
    })?;
    let mut response = Response::new(Either::Left(Full::new(text.into())));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(exposition::CONTENT_TYPE),
    );
    Ok(response)
}

fn lines(lines: mpsc::Receiver<Result<Bytes, Infallible>>) -> ControlResponse {
    let mut response = Response::new(Either::Right(ChannelBody(lines)));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/x-ndjson"),
    );
    response
}

/// The lines of an operation until its end. Only one that waits for its turn depends on somebody
/// reading them: with the task its interest is dropped.
fn progress(operation: Operation) -> ControlResponse {
    let Operation {
        lines: mut said,
        interest,
        ..
    } = operation;
    let (tx, rx) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let _interest = interest;
        loop {
            tokio::select! {
                next = said.recv() => match next {
                    Some(next) => if tx.send(Ok(line(&next))).await.is_err() { break },
                    None => break,
                },
                () = tx.closed() => break,
            }
        }
    });
    lines(rx)
}

/// The events so far, and with `follow` those to come, for ever.
fn events(
    (past, mut coming): (Vec<Event>, broadcast::Receiver<Event>),
    follow: bool,
) -> ControlResponse {
    let (tx, rx) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let mut last = 0;
        for event in past {
            last = event.seq;
            if tx.send(Ok(line(&event))).await.is_err() {
                return;
            }
        }
        if !follow {
            return;
        }
        loop {
            let next = tokio::select! {
                next = coming.recv() => next,
                () = tx.closed() => return,
            };
            let event = match next {
                Ok(event) if event.seq <= last => continue,
                Ok(event) => event,
                Err(broadcast::error::RecvError::Lagged(missed)) => missed_events(last, missed),
                Err(broadcast::error::RecvError::Closed) => return,
            };
            last = event.seq;
            if tx.send(Ok(line(&event))).await.is_err() {
                return;
            }
        }
    });
    lines(rx)
}

/// Stands for the events that a slow reader missed. It has the number of the last of them.
fn missed_events(last: u64, missed: u64) -> Event {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    Event {
        seq: last.saturating_add(missed),
        at_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        kind: "missed".to_owned(),
        app: None,
        generation: None,
        message: format!("{missed} events were missed: this reader is slower than they come"),
        leaked_bytes: None,
        leaked_descriptors: None,
    }
}

async fn deploy<B: Backend>(
    body: Incoming,
    query: DeployQuery,
    signature: Option<Signature>,
    backend: B,
) -> Result<ControlResponse, Refusal> {
    let timeout = query.timeout_ms.map(Duration::from_millis);
    let (told, app) = (backend.clone(), query.app.clone());
    // On a task of its own: when the last byte is in, the deploy happens, even if the client dies
    // in that moment.
    let deploying = tokio::spawn(async move {
        let began = Instant::now();
        let artifact = receive(body, backend.clone()).await?;
        Ok(backend.deploy(
            artifact,
            signature,
            began.elapsed(),
            query.app,
            timeout,
            Wait::asked(query.queue, query.detach),
        ))
    });
    let error = match deploying.await {
        Ok(Ok(operation)) => return Ok(progress(operation)),
        Ok(Err(ReceiveError::Aborted(error))) => {
            return Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                1,
                format_args!(
                    "the upload ended before it was whole ({error}): nothing was deployed"
                ),
            ));
        }
        Ok(Err(ReceiveError::Store(error))) => error,
        Err(_) => {
            return Err(Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                1,
                "the host failed in taking the upload: nothing was deployed, its log says more",
            ));
        }
    };
    let name = query.name.as_deref().unwrap_or("the upload");
    Ok(ended(told.not_taken(name, app, &error).await))
}

/// Reads what a refused caller still sends, for a while: closing on it would take the answer away
/// from it.
async fn discard(mut body: Incoming) {
    let read = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = tokio::time::timeout(PATIENCE, read).await; // then it has to do without
}

/// An operation that ended before it had an id.
fn ended(result: OperationResult) -> ControlResponse {
    let mut response = Response::new(Either::Left(Full::new(line(&Progress::Result(result)))));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/x-ndjson"),
    );
    response
}

enum ReceiveError {
    /// The client left, or lied about the length.
    Aborted(hyper::Error),
    Store(StoreError),
}

/// The next piece for the writer, or the word that there are no more: a closed channel alone means
/// the upload was cut.
enum Piece {
    Bytes(Bytes),
    End,
}

/// Streams `body` into the store: never more than a few pieces are in memory.
async fn receive<B: Backend>(mut body: Incoming, backend: B) -> Result<B::Artifact, ReceiveError> {
    let (tx, mut rx) = mpsc::channel(WAITING);
    let writing = tokio::spawn(background::run("upload", move || {
        let mut upload = backend.upload()?;
        loop {
            match rx.blocking_recv() {
                Some(Piece::Bytes(bytes)) => upload.write(&bytes)?,
                Some(Piece::End) => return upload.finish().map(Some),
                None => return Ok(None),
            }
        }
    }));
    while let Some(frame) = body.frame().await {
        // Read to its end even when the writer gave up: a client that still writes could not read
        // why.
        if let Ok(bytes) = frame.map_err(ReceiveError::Aborted)?.into_data() {
            let _ = tx.send(Piece::Bytes(bytes)).await;
        }
    }
    let _ = tx.send(Piece::End).await;
    drop(tx);
    match writing.await {
        Ok(Ok(Ok(Some(artifact)))) => Ok(artifact),
        Ok(Ok(Err(error))) => Err(ReceiveError::Store(error)),
        Ok(Ok(Ok(None)) | Err(_)) | Err(_) => Err(ReceiveError::Store(StoreError::Io {
            path: "the upload".into(),
            source: io::Error::other("the writer of the store failed"),
        })),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::path::PathBuf;

    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::{control::client::Client, names::GenerationId};

    /// A host that remembers what it was told.
    #[derive(Clone)]
    struct Fake(Arc<Inner>);

    struct Inner {
        calls: Mutex<Vec<String>>,
        /// Every change of `calls`.
        called: tokio::sync::Notify,
        /// Where a deploy that is under way takes its lines from.
        lines: Mutex<Option<mpsc::UnboundedReceiver<Progress>>>,
        events: broadcast::Sender<Event>,
        past: Mutex<Vec<Event>>,
    }

    impl Fake {
        fn call(&self, text: String) {
            self.0.calls.lock().push(text);
            self.0.called.notify_one();
        }

        async fn wait_for(&self, text: &str) {
            loop {
                if self.0.calls.lock().iter().any(|call| call == text) {
                    return;
                }
                self.0.called.notified().await;
            }
        }

        fn operation(&self) -> Operation {
            let lines = self.0.lines.lock().take().unwrap_or_else(|| {
                let (tx, rx) = mpsc::unbounded_channel();
                tx.send(Progress::Accepted {
                    operation: "op-1".into(),
                })
                .unwrap();
                tx.send(done("it is live")).unwrap();
                rx
            });
            Operation {
                id: "op-1".into(),
                lines,
                interest: None,
            }
        }
    }

    struct FakeUpload(Vec<u8>, Fake);

    impl Drop for FakeUpload {
        fn drop(&mut self) {
            self.1.call(format!("upload of {} closed", self.0.len()));
        }
    }

    impl Upload for FakeUpload {
        type Artifact = Vec<u8>;

        fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
            if bytes.starts_with(b"full") {
                return Err(StoreError::Io {
                    path: "store".into(),
                    source: io::ErrorKind::StorageFull.into(),
                });
            }
            self.0.extend_from_slice(bytes);
            self.1.call(format!("has {}", self.0.len()));
            Ok(())
        }

        fn finish(self) -> Result<Vec<u8>, StoreError> {
            if self.0.starts_with(b"\x7fELF") {
                Ok(self.0.clone())
            } else {
                Err(StoreError::Refused {
                    reason: "it is not an ELF file".into(),
                    sha256: None,
                    manifest: None,
                })
            }
        }
    }

    impl Backend for Fake {
        type Upload = FakeUpload;
        type Artifact = Vec<u8>;

        fn status(&self) -> Status {
            Status {
                apps: Vec::new(),
                host: crate::control::api::HostStatus {
                    version: "0".into(),
                    pid: 7,
                    uptime_ms: 0,
                    rss_bytes: 0,
                    max_open_files: None,
                    listen: Vec::new(),
                    connections: Default::default(),
                    metrics: None,
                    abi: "1.1".into(),
                    leaks: Default::default(),
                    leak_budget: Default::default(),
                },
            }
        }

        fn history(&self, app: Option<&AppName>) -> Vec<HistoryEntry> {
            self.call(format!("history {app:?}"));
            Vec::new()
        }

        fn events(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
            (self.0.past.lock().clone(), self.0.events.subscribe())
        }

        fn upload(&self) -> Result<FakeUpload, StoreError> {
            Ok(FakeUpload(Vec::new(), self.clone()))
        }

        fn deploy(
            &self,
            artifact: Vec<u8>,
            signature: Option<Signature>,
            _stored_in: Duration,
            app: Option<AppName>,
            timeout: Option<Duration>,
            wait: Wait,
        ) -> Operation {
            let app = app.map(String::from).unwrap_or_default();
            if let Some(signature) = signature {
                self.call(format!("signed {}", signature.as_str()));
            }
            let length = artifact.len();
            self.call(format!("deploy {length} {app} {timeout:?} {wait:?}"));
            self.operation()
        }

        async fn not_taken(
            &self,
            file: &str,
            app: Option<AppName>,
            error: &StoreError,
        ) -> OperationResult {
            OperationResult {
                outcome: match error {
                    StoreError::Refused { .. } => Outcome::Rejected,
                    StoreError::Io { .. } => Outcome::Failed,
                },
                message: format!("{file} was not taken: {error}"),
                app,
                generation: None,
                version: None,
                artifact: None,
                notes: Vec::new(),
            }
        }

        fn reload(&self, _app: Option<AppName>, _wait: Wait) -> Operation {
            self.operation()
        }

        fn rollback(&self, _app: Option<AppName>, to: Option<String>, wait: Wait) -> Operation {
            self.call(format!("rollback {} {wait:?}", to.unwrap_or_default()));
            self.operation()
        }

        fn operation(&self, id: &str) -> Option<Operation> {
            (id == "op-1").then(|| self.operation())
        }

        fn metrics(&self) -> Gather {
            Gather::new(|to| to.one("up", exposition::Kind::Gauge, "It is.", 1))
        }
    }

    fn done(message: &str) -> Progress {
        Progress::Result(OperationResult {
            outcome: Outcome::Done,
            message: message.into(),
            app: None,
            generation: None,
            version: None,
            artifact: None,
            notes: Vec::new(),
        })
    }

    fn event(seq: u64) -> Event {
        Event {
            seq,
            at_ms: 0,
            kind: "active".into(),
            app: None,
            generation: Some(GenerationId(1)),
            message: String::new(),
            leaked_bytes: None,
            leaked_descriptors: None,
        }
    }

    struct Running {
        fake: Fake,
        path: PathBuf,
        shutdown: ShutdownHandle,
        _folder: tempfile::TempDir,
    }

    impl Running {
        fn start() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("control.sock");
            let socket = ControlSocket::bind(&path, None).unwrap();
            let fake = Fake(Arc::new(Inner {
                calls: Mutex::default(),
                called: tokio::sync::Notify::new(),
                lines: Mutex::default(),
                events: broadcast::channel(4).0,
                past: Mutex::default(),
            }));
            let shutdown = ShutdownHandle::new();
            tokio::spawn(serve_backend(
                socket,
                Access::default(),
                fake.clone(),
                shutdown.clone(),
            ));
            Self {
                fake,
                path,
                shutdown,
                _folder: folder,
            }
        }

        fn client(&self) -> Client {
            Client::new(&self.path)
        }

        /// Sends `request` as it is and gives the whole answer.
        async fn raw(&self, request: &str) -> String {
            let mut stream = UnixStream::connect(&self.path).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        }
    }

    async fn outcome(mut lines: crate::control::client::Lines<Progress>) -> OperationResult {
        while let Some(line) = lines.next().await.unwrap() {
            if let Progress::Result(result) = line.value {
                return result;
            }
        }
        panic!("the operation had no result");
    }

    #[tokio::test]
    async fn bad_calls_are_told_what_to_do() {
        let host = Running::start();
        for (request, status, text) in [
            ("GET /v2/status", "404", "this host knows GET /v1/status"),
            (
                "GET /v1/operations/",
                "404",
                "there is no call /v1/operations/",
            ),
            (
                "GET /v1/operations/op-9",
                "404",
                "there is no operation `op-9`",
            ),
            (
                "GET /v1/deploy",
                "405",
                "/v1/deploy takes POST, and this was GET",
            ),
            ("POST /v1/status", "405", "/v1/status takes GET"),
            (
                "GET /v1/history?app=No%20Name",
                "400",
                "`No Name` is not an app name",
            ),
            (
                "GET /v1/history?ap=a",
                "400",
                "unknown field `ap`, expected `app`",
            ),
            (
                "GET /v1/events?follow=perhaps",
                "400",
                "the query of /v1/events is not understood",
            ),
            (
                "POST /v1/deploy?timeout_ms=soon",
                "400",
                "the query of /v1/deploy is not understood",
            ),
        ] {
            let answer = host
                .raw(&format!(
                    "{request} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"
                ))
                .await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")),
                "{request}: {answer}"
            );
            assert!(answer.contains(text), "{request}: {answer}");
            assert!(answer.contains("\"exit_code\":"), "{request}: {answer}");
        }
    }

    #[tokio::test]
    async fn an_upload_is_deployed_with_what_the_query_says() {
        let host = Running::start();
        let file = host.path.with_file_name("it works & more.so");
        std::fs::write(&file, [b"\x7fELF".as_slice(), &[7; 300_000]].concat()).unwrap();
        let app = "shop".parse().unwrap();
        let pair = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
        let text = minisign::sign(None, &pair.sk, [7_u8].as_slice(), None, None)
            .unwrap()
            .into_string();
        let signature = text.parse().unwrap();
        let lines = host
            .client()
            .deploy(
                &file,
                Some(&app),
                Some(Duration::from_secs(60)),
                Some(&signature),
                Wait::Detached,
            )
            .await
            .unwrap();
        assert_eq!(outcome(lines).await.message, "it is live");
        host.fake.wait_for(&format!("signed {text}")).await;
        host.fake
            .wait_for("deploy 300004 shop Some(60s) Detached")
            .await;
    }

    #[tokio::test]
    async fn bytes_that_are_no_artifact_are_rejected() {
        let host = Running::start();
        let file = host.path.with_file_name("notes.txt");
        std::fs::write(&file, "hello").unwrap();
        let result = outcome(
            host.client()
                .deploy(&file, None, None, None, Wait::No)
                .await
                .unwrap(),
        )
        .await;
        assert_eq!(result.outcome, Outcome::Rejected);
        assert_eq!(
            result.message,
            "notes.txt was not taken: it is not an ELF file"
        );
    }

    #[tokio::test]
    async fn a_full_disk_fails_the_deploy_and_the_client_learns_why() {
        let host = Running::start();
        let file = host.path.with_file_name("big.so");
        std::fs::write(&file, b"full".repeat(1 << 18)).unwrap();
        let result = outcome(
            host.client()
                .deploy(&file, None, None, None, Wait::No)
                .await
                .unwrap(),
        )
        .await;
        assert_eq!(result.outcome, Outcome::Failed);
    }

    #[tokio::test]
    async fn a_half_uploaded_artifact_is_dropped() {
        let host = Running::start();
        for head in [
            "content-length: 100\r\n\r\n\x7fELFhalf",
            "transfer-encoding: chunked\r\n\r\n8\r\n\x7fELFhalf\r\n",
        ] {
            host.fake.0.calls.lock().clear();
            let mut stream = UnixStream::connect(&host.path).await.unwrap();
            stream
                .write_all(
                    format!("POST /v1/deploy?name=x.so HTTP/1.1\r\nhost: h\r\n{head}").as_bytes(),
                )
                .await
                .unwrap();
            host.fake.wait_for("has 8").await;
            drop(stream);
            host.fake.wait_for("upload of 8 closed").await;
            assert!(
                !host
                    .fake
                    .0
                    .calls
                    .lock()
                    .iter()
                    .any(|call| call.starts_with("deploy"))
            );
        }
    }

    #[tokio::test]
    async fn lines_come_at_once_and_a_client_that_leaves_stops_nothing() {
        let host = Running::start();
        let (tx, rx) = mpsc::unbounded_channel();
        *host.fake.0.lines.lock() = Some(rx);
        tx.send(Progress::Accepted {
            operation: "op-1".into(),
        })
        .unwrap();
        let mut lines = host
            .client()
            .rollback(None, Some("1.0.0"), Wait::WhileWanted)
            .await
            .unwrap();
        let first = lines.next().await.unwrap().unwrap();
        assert_eq!(first.text, r#"{"type":"accepted","operation":"op-1"}"#);
        host.fake.wait_for("rollback 1.0.0 WhileWanted").await;
        drop(lines);
        tx.closed().await;
        // The host lives on, and the operation can be heard again from its beginning.
        let result = outcome(host.client().operation("op-1").await.unwrap()).await;
        assert_eq!(result.outcome, Outcome::Done);
    }

    #[tokio::test]
    async fn events_are_told_once_and_a_slow_reader_learns_how_many_it_missed() {
        let host = Running::start();
        *host.fake.0.past.lock() = vec![event(1), event(2)];
        let mut past = host.client().events(false).await.unwrap();
        assert_eq!(past.next().await.unwrap().unwrap().value.seq, 1);
        assert_eq!(past.next().await.unwrap().unwrap().value.seq, 2);
        assert!(past.next().await.unwrap().is_none());

        let mut following = host.client().events(true).await.unwrap();
        following.next().await.unwrap().unwrap();
        following.next().await.unwrap().unwrap();
        // This test and the server share one thread: it hears of these together, when four of the
        // six are left.
        for seq in 2..=7 {
            host.fake.0.events.send(event(seq)).unwrap();
        }
        let missed = following.next().await.unwrap().unwrap().value;
        assert_eq!((missed.kind.as_str(), missed.seq), ("missed", 4));
        assert_eq!(following.next().await.unwrap().unwrap().value.seq, 5);
    }

    #[tokio::test]
    async fn shutdown_is_answered_before_it_happens() {
        let host = Running::start();
        assert_eq!(
            host.client().shutdown(true).await.unwrap().pid,
            std::process::id()
        );
        assert_eq!(
            host.shutdown.requested(Shutdown::Drain).await,
            Shutdown::Now
        );
    }

    #[test]
    fn observers_see_and_change_nothing() {
        let caller = |role| Caller { uid: 7, role };
        for (path, _) in CALLS {
            let open = OBSERVING.contains(&path);
            assert_eq!(caller(Role::Observe).may(path).is_ok(), open, "{path}");
            assert!(caller(Role::Operate).may(path).is_ok());
            let refusal = caller(Role::None).may(path).unwrap_err();
            assert_eq!(
                (refusal.status, refusal.problem.exit_code),
                (StatusCode::FORBIDDEN, 9)
            );
        }
        let refusal = caller(Role::Observe).may("/v1/operations/1").unwrap_err();
        assert!(refusal.problem.error.contains("may observe"));
    }

    #[tokio::test]
    async fn metrics_are_the_text_of_prometheus() {
        let host = Running::start();
        let answer = host
            .raw("GET /metrics HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
            .await;
        assert!(answer.contains("text/plain; version=0.0.4"), "{answer}");
        assert!(
            answer.ends_with("# HELP up It is.\n# TYPE up gauge\nup 1\n"),
            "{answer}"
        );
    }

    #[tokio::test]
    async fn a_signature_that_is_none_is_refused_before_the_upload() {
        let host = Running::start();
        let answer = host
            .raw("POST /v1/deploy HTTP/1.1\r\nhost: h\r\nconnection: close\r\nhandover-signature: aGVsbG8=\r\n\r\n")
            .await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        assert!(
            answer.contains("the signature is not understood"),
            "{answer}"
        );
    }
}
