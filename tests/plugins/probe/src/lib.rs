//! One route for each thing that a plugin can do with a request.

use std::{
    convert::Infallible,
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    task::Poll,
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{
        ConnectInfo, Query, Request, State, WebSocketUpgrade,
        ws::{Message, WebSocket},
    },
    response::{IntoResponse, Response, Sse, sse::Event},
    routing::{any, get, post},
};
use bytes::Bytes;
use futures_util::stream::poll_fn;
use handover_plugin::{Connection, Context, Error};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

/// Compiled in, so that an answer proves which code made it.
const VERSION: &str = match option_env!("HANDOVER_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

#[handover_plugin::app]
async fn app(cx: Context) -> Result<Router, Error> {
    tracing::info!(version = VERSION, "probe starts");
    let config = cx.config::<Config>()?;
    if let Some(gate) = config.gate.filter(|gate| gate.exists()) {
        return Err(Error::msg(format_args!(
            "the gate {} is closed",
            gate.display()
        )));
    }
    cx.client_address_as(ConnectInfo);
    cx.connection_as(|connection| connection);
    Ok(Router::new()
        .route("/version", get(async || VERSION))
        .route("/client", get(client))
        .route("/connection", get(connection))
        .route("/slow", get(slow))
        .route("/yield", get(yields))
        .route("/stream", any(stream))
        .route("/echo", post(echo))
        .route("/tag", post(tag))
        .route("/sink", post(sink))
        .route("/download", get(download))
        .route("/whole", get(whole))
        .route("/head", any(head))
        .route("/trailers", get(trailers))
        .route("/about", get(about))
        .route("/keep", get(keep))
        .route("/env", get(env))
        .route("/fields", get(fields))
        .route("/fails", get(fails))
        .route("/chance", get(chance))
        .route("/panic", get(panics))
        .route("/panic-with-panic", get(panics_with_panic))
        .route("/panic-in-body", get(panics_in_body))
        .route("/panic-in-spawn", get(panics_in_spawn))
        .route("/spawn", get(spawn))
        .route("/job", get(job))
        .route("/ws", any(websocket))
        .route("/events", get(events))
        .route("/endless", get(endless))
        .route("/reason", get(reason))
        .route("/not-modified", get(not_modified))
        .route("/until-draining", get(until_draining))
        .route("/panic-in-job", get(panics_in_job))
        .route("/panic-when-dropped", get(panics_when_dropped))
        .route("/panic-when-body-dropped", get(panics_when_body_dropped))
        .route("/panic-when-draining", get(panics_when_draining))
        .route("/spin", get(spin))
        .route("/block", get(block))
        .route("/backtrace", get(backtrace))
        .route("/log", get(logs))
        .route("/log-in-thread-local", get(logs_in_thread_local))
        .route("/segfault", get(segfault))
        .route("/abort", get(abort))
        .route("/overflow", get(overflow))
        .route("/exit", get(exit))
        .fallback(elsewhere)
        .with_state(cx))
}

/// What is done before the first request.
#[handover_plugin::on_live]
async fn becomes_live(cx: Context) -> Result<(), Error> {
    let config = cx.config::<Config>()?;
    if let Some(gate) = config.live_gate.filter(|gate| gate.exists()) {
        let said = std::fs::read_to_string(&gate)?;
        match said.trim() {
            "panic" => panic!("it is told to"),
            "hang" => std::future::pending::<()>().await,
            _ => {}
        }
        return Err(Error::msg(format_args!("{} is closed", gate.display())));
    }
    if let Some(path) = config.live {
        use std::io::Write;
        let mut file = std::fs::File::options()
            .append(true)
            .create(true)
            .open(path)?;
        writeln!(file, "{VERSION}")?;
    }
    Ok(())
}

/// What the operator may set.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    /// While this file is there, nothing starts.
    gate: Option<PathBuf>,
    /// Where it is written down that a version becomes live.
    live: Option<PathBuf>,
    /// While this file is there, no version becomes live.
    live_gate: Option<PathBuf>,
}

/// What the routes may be told.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Told {
    /// Milliseconds that it takes.
    ms: u64,
    /// How many pieces.
    n: u64,
    /// Milliseconds between pieces.
    every_ms: u64,
    /// Bytes.
    bytes: u64,
    /// A name.
    name: String,
    /// The version that is meant.
    version: String,
    /// Whose it is.
    tenant: String,
}

impl Default for Told {
    fn default() -> Self {
        Self {
            ms: 0,
            n: 1,
            every_ms: 0,
            bytes: 0,
            name: "work".to_owned(),
            version: VERSION.to_owned(),
            tenant: String::new(),
        }
    }
}

/// Answers after `ms`.
async fn slow(Query(told): Query<Told>) -> &'static str {
    tokio::time::sleep(Duration::from_millis(told.ms)).await;
    VERSION
}

/// Answers 500 each `n`th time, and at the beginning, where this is the `version`.
async fn fails(Query(told): Query<Told>) -> (StatusCode, &'static str) {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let fails =
        told.version == VERSION && CALLS.fetch_add(1, Ordering::Relaxed).is_multiple_of(told.n);
    let status = if fails {
        StatusCode::INTERNAL_SERVER_ERROR
    } else {
        StatusCode::OK
    };
    (status, VERSION)
}

/// Answers 500 by chance: in as many of a million requests as `n` says for version 2.0.0, and
/// `bytes` for the others.
async fn chance(Query(told): Query<Told>) -> (StatusCode, &'static str) {
    static STATE: AtomicU64 = AtomicU64::new(0);
    if STATE.load(Ordering::Relaxed) == 0 {
        STATE.store(RandomState::new().hash_one(0), Ordering::Relaxed);
    }
    // One step of splitmix64.
    let mut mixed = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    let rate = if VERSION == "2.0.0" {
        told.n
    } else {
        told.bytes
    };
    let status = if mixed % 1_000_000 < rate {
        StatusCode::INTERNAL_SERVER_ERROR
    } else {
        StatusCode::OK
    };
    (status, VERSION)
}

/// Answers when it was polled `n` times more, which it wakes itself for.
async fn yields(Query(told): Query<Told>) -> &'static str {
    let mut left = told.n;
    std::future::poll_fn(|task| {
        if left == 0 {
            return Poll::Ready(VERSION);
        }
        left -= 1;
        task.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// A body that a task writes.
fn written<F: Future<Output = ()> + Send + 'static>(
    cx: &Context,
    write: impl FnOnce(mpsc::Sender<Frame<Bytes>>) -> F,
) -> Body {
    let (sender, mut receiver) = mpsc::channel(1);
    cx.spawn(write(sender));
    let frames = poll_fn(move |task| {
        receiver
            .poll_recv(task)
            .map(|frame| frame.map(Ok::<_, Infallible>))
    });
    Body::new(StreamBody::new(frames))
}

/// `n` lines that name the version, one every `every_ms`.
async fn stream(State(cx): State<Context>, Query(told): Query<Told>) -> Body {
    written(&cx, async move |lines| {
        for _ in 0..told.n {
            if lines
                .send(Frame::data(format!("{VERSION}\n").into()))
                .await
                .is_err()
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(told.every_ms)).await;
        }
    })
}

/// What the app knows of the connection, and what extractors look for in the headers.
async fn connection(
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    Extension(connection): Extension<Connection>,
    headers: HeaderMap,
) -> Json<serde_json::Value> {
    let said: std::collections::BTreeMap<_, _> = headers
        .iter()
        .filter(|(name, _)| name.as_str().contains("forwarded") || *name == "x-real-ip")
        .map(|(name, value)| {
            (
                name.to_string(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        })
        .collect();
    Json(serde_json::json!({
        "client": client,
        "local": connection.local,
        "tls": connection.tls.map(|tls| serde_json::json!({
            "version": tls.version,
            "server_name": tls.server_name,
            "client_certificate": tls.client_certificate.map(|der| der.len()),
        })),
        "said": said,
    }))
}

/// Who asks.
async fn client(ConnectInfo(address): ConnectInfo<SocketAddr>) -> String {
    address.to_string()
}

/// The body and the trailers that came, as they come.
async fn echo(request: Request) -> Response {
    let mut response = Response::new(Body::new(request.into_body()));
    response
        .headers_mut()
        .insert("trailer", HeaderValue::from_static("x-checksum"));
    response
}

/// Each piece that came, with the version before it: a stream whose pace and end the client
/// decides.
async fn tag(request: Request) -> Body {
    let tagged = request.into_body().map_frame(|frame| {
        frame.map_data(|data| [VERSION.as_bytes(), b" ", &data].concat().into())
    });
    Body::new(tagged)
}

/// How many bytes came, and with which trailers.
async fn sink(request: Request) -> Result<Json<serde_json::Value>, String> {
    let (mut bytes, mut trailers) = (0, Vec::new());
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| error.to_string())?;
        if let Some(data) = frame.data_ref() {
            bytes += data.len();
        } else if let Some(fields) = frame.trailers_ref() {
            trailers.extend(fields.iter().map(|(name, value)| {
                format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))
            }));
        }
    }
    Ok(Json(
        serde_json::json!({ "bytes": bytes, "trailers": trailers, "version": VERSION }),
    ))
}

/// `bytes` ones in one piece, which takes as much memory until the client has them.
async fn whole(Query(told): Query<Told>) -> Vec<u8> {
    vec![1; usize::try_from(told.bytes).unwrap_or_default()]
}

/// `bytes` zeroes, in pieces of 64 KiB.
async fn download(Query(told): Query<Told>) -> Body {
    static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];
    let mut left = told.bytes;
    let frames = poll_fn(move |_| {
        let now = left.min(ZEROES.len() as u64);
        left -= now;
        let piece = &ZEROES[..usize::try_from(now).unwrap_or_default()];
        Poll::Ready((now > 0).then(|| Ok::<_, Infallible>(Frame::data(Bytes::from_static(piece)))))
    });
    Body::new(StreamBody::new(frames))
}

/// What came of the request's head.
async fn head(request: Request) -> Json<serde_json::Value> {
    let headers: Vec<_> = request
        .headers()
        .iter()
        .map(|(name, value)| {
            (
                name.to_string(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        })
        .collect();
    Json(serde_json::json!({
        "method": request.method().as_str(),
        "uri": request.uri().to_string(),
        "path": request.uri().path(),
        "query": request.uri().query(),
        "http": format!("{:?}", request.version()),
        "headers": headers,
    }))
}

/// A body that ends with trailers.
async fn trailers(State(cx): State<Context>) -> Response {
    let body = written(&cx, async |frames| {
        let mut fields = HeaderMap::new();
        fields.insert("x-checksum", HeaderValue::from_static("4711"));
        let _ = frames.send(Frame::data(Bytes::from_static(b"body"))).await;
        let _ = frames.send(Frame::trailers(fields)).await;
    });
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert("trailer", HeaderValue::from_static("x-checksum"));
    response
}

/// A name with `n` values.
async fn fields(Query(told): Query<Told>) -> Response {
    let mut response = VERSION.into_response();
    for _ in 0..told.n {
        let field = HeaderValue::from_static("v");
        response.headers_mut().append("x-many", field);
    }
    response
}

/// What the plugin knows of itself.
async fn about(State(cx): State<Context>) -> Json<serde_json::Value> {
    let config = cx.config::<serde_json::Value>();
    Json(serde_json::json!({
        "app": cx.app(),
        "version": cx.version(),
        "generation": cx.generation(),
        "config": config.unwrap_or_default(),
        "draining": cx.is_draining(),
        "preflight": cx.is_preflight(),
        "compiled": VERSION,
        "base_path": cx.base_path(),
    }))
}

/// Adds its version to a file of the app, and gives what is in it.
async fn keep(State(cx): State<Context>) -> Result<String, String> {
    use std::io::Write;
    let path = cx
        .data_dir()
        .map_err(|error| error.to_string())?
        .join("kept");
    let mut options = std::fs::File::options();
    let mut file = options
        .append(true)
        .create(true)
        .open(&path)
        .map_err(|error| error.to_string())?;
    writeln!(file, "{VERSION}").map_err(|error| error.to_string())?;
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

/// The variable `name` as the plugin may read it.
async fn env(State(cx): State<Context>, Query(told): Query<Told>) -> Json<serde_json::Value> {
    Json(serde_json::json!(
        cx.env(&told.name).map(|value| value.to_string())
    ))
}

async fn panics() -> &'static str {
    panic!("the handler panics");
}

/// Panics with something that panics.
async fn panics_with_panic() -> &'static str {
    std::panic::panic_any(Mine)
}

/// One piece, then a panic.
async fn panics_in_body() -> Body {
    let mut first = true;
    let frames = poll_fn(move |_| {
        assert!(std::mem::take(&mut first), "the body panics");
        Poll::Ready(Some(Ok::<_, Infallible>(Frame::data(Bytes::from_static(
            b"so far, so good",
        )))))
    });
    Body::new(StreamBody::new(frames))
}

async fn panics_in_spawn(State(cx): State<Context>) -> &'static str {
    cx.spawn(async { panic!("the spawned work panics") });
    VERSION
}

async fn panics_in_job(State(cx): State<Context>, Query(told): Query<Told>) -> &'static str {
    cx.jobs()
        .spawn(&told.name, "", async { panic!("the job panics") });
    VERSION
}

/// Panics when it is dropped.
struct Mine;

impl Drop for Mine {
    fn drop(&mut self) {
        panic!("the destructor panics");
    }
}

/// Never answers, and panics when it is given up.
async fn panics_when_dropped() -> &'static str {
    let _mine = Mine;
    std::future::pending::<()>().await;
    VERSION
}

/// Answers in two pieces, and panics when the body is dropped.
async fn panics_when_body_dropped() -> Body {
    let (mine, mut left) = (Mine, 2);
    let frames = poll_fn(move |_| {
        let _mine = &mine;
        let now = left;
        left = now.max(1) - 1;
        Poll::Ready(
            (now > 0).then(|| Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"piece")))),
        )
    });
    Body::new(StreamBody::new(frames))
}

/// Leaves work that panics when the generation drains.
async fn panics_when_draining(State(cx): State<Context>) -> &'static str {
    cx.clone().spawn(async move {
        cx.draining().await;
        panic!("the goodbye panics");
    });
    VERSION
}

/// Holds its worker for `ms`, busy.
async fn spin(Query(told): Query<Told>) -> &'static str {
    let until = std::time::Instant::now() + Duration::from_millis(told.ms);
    while std::time::Instant::now() < until {
        std::hint::spin_loop();
    }
    VERSION
}

/// Holds its worker for `ms`, asleep.
async fn block(Query(told): Query<Told>) -> &'static str {
    std::thread::sleep(Duration::from_millis(told.ms));
    VERSION
}

/// A backtrace with its names, for which std maps the file of the plugin and never unmaps it.
async fn backtrace() -> String {
    std::backtrace::Backtrace::force_capture().to_string()
}

/// Logs as it is dropped.
struct Flushes;

impl Drop for Flushes {
    fn drop(&mut self) {
        tracing::info!("flushed");
    }
}

thread_local! {
    static SINK: Flushes = const { Flushes };
}

/// Logs `n` events with `name` in them, each of at least so many `bytes`.
async fn logs(Query(told): Query<Told>) -> &'static str {
    let padding = "x".repeat(usize::try_from(told.bytes).unwrap_or(0));
    for number in 0..told.n {
        tracing::info!("{} {number} {padding}", told.name);
    }
    VERSION
}

/// A thread whose thread-local logs in its destructor, as those of buffered sinks do.
async fn logs_in_thread_local() -> &'static str {
    let thread = std::thread::spawn(|| {
        // Before the log has anything on this thread, so that it is dropped after that.
        SINK.with(|_| ());
        tracing::info!("a thread of the plugin works");
    });
    thread.join().expect("the destructor does not abort");
    VERSION
}

/// Work of `ms` that outlives its request.
async fn spawn(State(cx): State<Context>, Query(told): Query<Told>) -> &'static str {
    cx.spawn(async move { tokio::time::sleep(Duration::from_millis(told.ms)).await });
    VERSION
}

/// The same as a job.
async fn job(State(cx): State<Context>, Query(told): Query<Told>) -> &'static str {
    cx.jobs().spawn(&told.name, &told.tenant, async move {
        tokio::time::sleep(Duration::from_millis(told.ms)).await
    });
    VERSION
}

/// Answers each text with the version and the text, and `who?` with the client's address.
async fn websocket(
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    upgrade: WebSocketUpgrade,
) -> Response {
    upgrade.on_upgrade(async move |mut socket: WebSocket| {
        while let Some(Ok(message)) = socket.recv().await {
            if let Message::Text(text) = message {
                let answer = match text.as_str() {
                    "who?" => address.to_string(),
                    text => format!("{VERSION} {text}"),
                };
                if socket.send(Message::Text(answer.into())).await.is_err() {
                    return;
                }
            }
        }
    })
}

/// Where no route is: the tunnel of a CONNECT, which answers in capitals, or 404 with what came of
/// the head.
async fn elsewhere(mut request: Request) -> Response {
    if request.method() != Method::CONNECT {
        return (StatusCode::NOT_FOUND, head(request).await).into_response();
    }
    let on_upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async { shout(on_upgrade.await?).await.map_err(Error::from) });
    StatusCode::OK.into_response()
}

async fn shout(tunnel: Upgraded) -> std::io::Result<()> {
    let mut tunnel = TokioIo::new(tunnel);
    let mut buffer = [0; 1024];
    loop {
        let read = tunnel.read(&mut buffer).await?;
        if read == 0 {
            return tunnel.shutdown().await;
        }
        buffer[..read].make_ascii_uppercase();
        tunnel.write_all(&buffer[..read]).await?;
    }
}

/// The version as an event every `every_ms`, and a goodbye when the generation drains.
async fn events(State(cx): State<Context>, Query(told): Query<Told>) -> impl IntoResponse {
    let (sender, mut receiver) = mpsc::channel::<Result<Event, Infallible>>(1);
    cx.clone().spawn(async move {
        let every = Duration::from_millis(told.every_ms.max(1));
        loop {
            tokio::select! {
                () = cx.draining() => break,
                () = tokio::time::sleep(every) => if sender.send(Ok(Event::default().data(VERSION))).await.is_err() { return },
            }
        }
        let _ = sender.send(Ok(Event::default().event("bye").data(VERSION))).await;
    });
    Sse::new(poll_fn(move |task| receiver.poll_recv(task)))
}

/// A piece, and then nothing more for ever, as the content type `name`.
async fn endless(Query(told): Query<Told>) -> Response {
    let mut pieces = Some(Bytes::from_static(b"data: 1\n\n"));
    let frames = poll_fn(move |_| match pieces.take() {
        Some(piece) => Poll::Ready(Some(Ok::<_, Infallible>(Frame::data(piece)))),
        None => Poll::Pending,
    });
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    if let Ok(kind) = HeaderValue::from_str(&told.name) {
        response.headers_mut().insert("content-type", kind);
    }
    response
}

/// An answer with words of its own.
async fn reason() -> Response {
    let mut response = Response::new(Body::from(VERSION));
    response
        .extensions_mut()
        .insert(hyper::ext::ReasonPhrase::from_static(b"Very well"));
    response
}

/// What a client has already, with its length.
async fn not_modified() -> (StatusCode, &'static str) {
    (StatusCode::NOT_MODIFIED, VERSION)
}

/// Answers when the generation drains.
async fn until_draining(State(cx): State<Context>) -> &'static str {
    cx.draining().await;
    VERSION
}

/// Writes where nothing may be written.
async fn segfault() -> &'static str {
    // SAFETY: there is none, which is the point.
    unsafe { std::ptr::dangling_mut::<u8>().write_volatile(1) };
    VERSION
}

async fn abort() -> &'static str {
    std::process::abort()
}

/// Recurses until there is no stack left.
async fn overflow() -> String {
    fn deeper(depth: u64) -> u64 {
        let room = std::hint::black_box([depth; 64]);
        if std::hint::black_box(depth) == u64::MAX {
            return depth;
        }
        deeper(depth + 1) + room[63]
    }
    deeper(0).to_string()
}

async fn exit() -> &'static str {
    std::process::exit(0)
}
