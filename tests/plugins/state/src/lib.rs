//! An app that keeps everything in the host: each route is one habit of an app with state.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, Query, State as Shared},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use bytes::Bytes;
use handover_plugin::{Cache, Context, Error, RateLimiter, Sessions, State, StateError};
use serde::Deserialize;
use tower_sessions_core::{
    SessionStore,
    session::{Id, Record},
};

#[derive(Clone)]
struct App {
    cx: Context,
    state: State,
    cache: Cache,
    limiter: RateLimiter,
    sessions: Sessions,
    /// What the next bench request takes.
    next: Arc<AtomicU64>,
    /// Changes that a task of this generation was told of: one that never ends by itself.
    told: Arc<AtomicU64>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Settings {
    /// The constructor puts this at `started`, which is refused where nothing may be written.
    start_with: Option<String>,
}

#[handover_plugin::app]
async fn app(cx: Context) -> Result<Router, Error> {
    let settings: Settings = cx.config()?;
    let state = cx.state();
    if let Some(text) = settings.start_with {
        state.put("started", &text).await?;
    }
    let live = cx.settings();
    live.validate(|setting| match setting.key() {
        "theme" => match setting.value::<String>()?.as_deref() {
            Some("plaid") => Err(Error::msg("plaid is no theme")),
            _ => Ok(()),
        },
        "rate" => setting.value::<u32>().map(drop),
        "panics" => panic!("this check is broken"),
        key => Err(Error::msg(format_args!("there is no setting `{key}`"))),
    })?;
    let changes = Arc::new(AtomicU64::new(0));
    let (mut subscribed, count) = (live.subscribe(), Arc::clone(&changes));
    cx.worker("settings", async move |stop| {
        while stop.or(subscribed.changed()).await.is_some() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let own = cx.version().to_owned();
    cx.on_message(move |message| {
        let own = own.clone();
        async move {
            match message.text() {
                "version" => Ok(serde_json::json!(own)),
                "never" => std::future::pending().await,
                "panic" => panic!("told to"),
                text => match message.json::<serde_json::Value>() {
                    Ok(value) => Ok(serde_json::json!({ "got": value })),
                    Err(_) => Err(Error::msg(format_args!("there is no command `{text}`"))),
                },
            }
        }
    });
    let told = Arc::new(AtomicU64::new(0));
    let mut watch = state.watch("");
    let count = Arc::clone(&told);
    // Not counted by anybody, and waiting for ever when the generation ends.
    tokio::spawn(async move {
        while let Ok(changes) = watch.next().await {
            count.fetch_add(changes.changes.len() as u64, Ordering::Relaxed);
        }
    });
    let app = App {
        cache: Cache::new(state.memory("cache")),
        limiter: RateLimiter::new(state.memory("limits"), 5, Duration::from_secs(86_400)),
        sessions: Sessions::new(state.namespace("sessions")),
        cx,
        state,
        next: Arc::default(),
        told,
    };
    Ok(Router::new()
        .route("/", get(version))
        .route("/version", get(version))
        .route(
            "/setting/{key}",
            get(
                async move |Path(key): Path<String>| match live.get::<serde_json::Value>(&key) {
                    Ok(value) => value.map_or_else(|| "none".to_owned(), |value| value.to_string()),
                    Err(error) => error.to_string(),
                },
            ),
        )
        .route(
            "/settings-changed",
            get(async move || changes.load(Ordering::Relaxed).to_string()),
        )
        .route("/kv/{key}", put(put_value).get(get_value).delete(delete))
        .route("/left/{key}", put(put_and_leave))
        .route("/add/{key}", post(add))
        .route("/spawned/{key}", post(add_in_a_task))
        .route("/transaction/{key}", post(add_in_transaction))
        .route("/append", post(append))
        .route("/move", post(move_between))
        .route("/panic/{key}", post(panic_in_transaction))
        .route("/scan", get(scan))
        .route("/watch", get(watch_once))
        .route("/told", get(count_told))
        .route("/large/{length}", put(put_large).get(get_large))
        .route("/cached/{key}", get(cached))
        .route("/limited/{key}", get(limited))
        .route("/sessions", post(begin_session))
        .route("/sessions/{id}", get(read_session).delete(end_session))
        .route("/bench/read", get(bench_read))
        .route("/bench/write", get(bench_write))
        .route("/bench/transaction", get(bench_transaction))
        .route("/bench/fill", post(bench_fill))
        .with_state(app))
}

/// What a failure is answered with.
struct Failed(StateError);

impl From<StateError> for Failed {
    fn from(error: StateError) -> Self {
        Self(error)
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let status = match self.0 {
            StateError::Unavailable(_) | StateError::Busy | StateError::Ended => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            StateError::Conflict => StatusCode::CONFLICT,
            StateError::Quota(_) => StatusCode::INSUFFICIENT_STORAGE,
            StateError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            StateError::Invalid(_) | StateError::NoCounter => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, self.0.to_string()).into_response()
    }
}

#[derive(Deserialize)]
struct Options {
    namespace: Option<String>,
    ttl_ms: Option<u64>,
}

impl App {
    fn of(&self, options: &Options) -> State {
        match &options.namespace {
            Some(name) => self.state.namespace(name),
            None => self.state.clone(),
        }
    }
}

async fn version(Shared(app): Shared<App>) -> String {
    app.cx.version().to_owned()
}

async fn put_value(
    Shared(app): Shared<App>,
    Path(key): Path<String>,
    Query(options): Query<Options>,
    value: String,
) -> Result<(), Failed> {
    let state = app.of(&options);
    match options.ttl_ms {
        Some(ttl) => {
            let ttl = Duration::from_millis(ttl);
            state.put_ttl(&key, &value, ttl).await?;
        }
        None => state.put(&key, &value).await?,
    }
    Ok(())
}

async fn get_value(
    Shared(app): Shared<App>,
    Path(key): Path<String>,
    Query(options): Query<Options>,
) -> Result<Response, Failed> {
    let value: Option<String> = app.of(&options).get(&key).await?;
    Ok(value.map_or_else(
        || StatusCode::NOT_FOUND.into_response(),
        IntoResponse::into_response,
    ))
}

async fn delete(
    Shared(app): Shared<App>,
    Path(key): Path<String>,
    Query(options): Query<Options>,
) -> Result<(), Failed> {
    Ok(app.of(&options).delete(&key).await?)
}

/// Begins to write, and answers.
async fn put_and_leave(
    Shared(app): Shared<App>,
    Path(key): Path<String>,
    Query(options): Query<Options>,
    value: String,
) {
    let _left = app.of(&options).put(&key, &value);
}

async fn add(
    Shared(app): Shared<App>,
    Path(key): Path<String>,
    Query(options): Query<Options>,
) -> Result<String, Failed> {
    Ok(app.of(&options).add(&key, 1).await?.to_string())
}

/// The same in a task of the runtime, whose waker is the plugin's own.
async fn add_in_a_task(
    Shared(app): Shared<App>,
    Path(key): Path<String>,
) -> Result<String, Failed> {
    let write = app.state.add(&key, 1);
    let sum = tokio::spawn(write).await;
    Ok(sum.unwrap_or(Err(StateError::Ended))?.to_string())
}

async fn add_in_transaction(
    Shared(app): Shared<App>,
    Path(key): Path<String>,
) -> Result<String, Failed> {
    let key = &key;
    let add = |tx: handover_plugin::Transaction| async move {
        let before: i64 = tx.get(key).await?.unwrap_or(0);
        // Others have time to be faster.
        tokio::task::yield_now().await;
        tx.put(key, &(before + 1))?;
        Ok::<_, StateError>(before + 1)
    };
    Ok(app.state.transaction(add).await?.to_string())
}

#[derive(Deserialize)]
struct Append {
    reads: Vec<String>,
    appends: Vec<(String, u64)>,
    /// Lists whose names begin with this are read as a range.
    range: Option<String>,
}

/// Reads some lists and appends to others, in one transaction; gives what it read.
async fn append(
    Shared(app): Shared<App>,
    Json(ask): Json<Append>,
) -> Result<Json<BTreeMap<String, Vec<u64>>>, Failed> {
    let ask = &ask;
    let lists = app.state.namespace("lists");
    let work = |tx: handover_plugin::Transaction| async move {
        let mut read = BTreeMap::new();
        for key in &ask.reads {
            let list: Vec<u64> = tx.get(key).await?.unwrap_or_default();
            read.insert(key.clone(), list);
        }
        if let Some(prefix) = &ask.range {
            for (key, list) in tx.scan::<Vec<u64>>(prefix).await? {
                read.insert(String::from_utf8_lossy(&key).into_owned(), list);
            }
        }
        tokio::task::yield_now().await;
        for (key, number) in &ask.appends {
            let mut list: Vec<u64> = tx.get(key).await?.unwrap_or_default();
            list.push(*number);
            tx.put(key, &list)?;
        }
        Ok::<_, StateError>(read)
    };
    Ok(Json(lists.transaction(work).await?))
}

#[derive(Deserialize)]
struct Move {
    from: String,
    to: String,
    amount: i64,
}

async fn move_between(Shared(app): Shared<App>, Query(ask): Query<Move>) -> Result<(), Failed> {
    let ask = &ask;
    let work = |tx: handover_plugin::Transaction| async move {
        tx.add(&ask.from, -ask.amount).await?;
        tx.add(&ask.to, ask.amount).await?;
        Ok::<_, StateError>(())
    };
    Ok(app.state.transaction(work).await?)
}

async fn panic_in_transaction(
    Shared(app): Shared<App>,
    Path(key): Path<String>,
) -> Result<(), Failed> {
    let key = &key;
    let work = |tx: handover_plugin::Transaction| async move {
        tx.put(key, &1)?;
        if key.len() < 1000 {
            panic!("in the middle of a transaction");
        }
        Ok::<_, StateError>(())
    };
    Ok(app.state.transaction(work).await?)
}

#[derive(Deserialize)]
struct ScanOptions {
    namespace: Option<String>,
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    reverse: bool,
    after: Option<String>,
    limit: Option<usize>,
}

async fn scan(
    Shared(app): Shared<App>,
    Query(ask): Query<ScanOptions>,
) -> Result<Json<Vec<String>>, Failed> {
    let state = match &ask.namespace {
        Some(name) => app.state.namespace(name),
        None => app.state.clone(),
    };
    let mut scan = state.scan::<serde_json::Value>(&ask.prefix);
    if ask.reverse {
        scan = scan.reverse();
    }
    if let Some(after) = ask.after {
        scan = scan.after(after);
    }
    let entries = scan.take(ask.limit.unwrap_or(usize::MAX)).await?;
    let keys = entries
        .iter()
        .map(|(key, _)| String::from_utf8_lossy(key).into_owned());
    Ok(Json(keys.collect()))
}

#[derive(Deserialize)]
struct WatchOptions {
    prefix: String,
    after: Option<u64>,
}

/// The next changes, with the token to go on from.
async fn watch_once(
    Shared(app): Shared<App>,
    Query(ask): Query<WatchOptions>,
) -> Result<Json<serde_json::Value>, Failed> {
    let mut watch = match ask.after {
        Some(token) => app.state.watch_after(&ask.prefix, token),
        None => app.state.watch(&ask.prefix),
    };
    let changes = watch.next().await?;
    let keys: Vec<_> = changes
        .changes
        .iter()
        .map(|change| {
            let mark = if change.is_there { '+' } else { '-' };
            format!("{mark}{}", String::from_utf8_lossy(&change.key))
        })
        .collect();
    Ok(Json(serde_json::json!({
        "changes": keys, "token": changes.token, "missed": changes.missed,
    })))
}

async fn count_told(Shared(app): Shared<App>) -> String {
    app.told.load(Ordering::Relaxed).to_string()
}

async fn put_large(Shared(app): Shared<App>, Path(length): Path<usize>) -> Result<(), Failed> {
    let value: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
    Ok(app.state.put_bytes("large", &value).await?)
}

async fn get_large(Shared(app): Shared<App>, Path(length): Path<usize>) -> Result<String, Failed> {
    let value = app
        .state
        .get_bytes("large")
        .await?
        .unwrap_or_else(Bytes::new);
    let right = value
        .iter()
        .enumerate()
        .all(|(at, byte)| *byte == (at % 251) as u8);
    Ok((right && value.len() == length).to_string())
}

/// The routes of the bench: the same as in tests/benches/contenders/state-twin.
const KEYS: u64 = 1000;

impl App {
    fn key(&self) -> u64 {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
    }
}

async fn bench_fill(Shared(app): Shared<App>) -> Result<(), Failed> {
    for key in 0..KEYS {
        app.state
            .put_bytes(format!("key-{key:04}"), &[b'x'; 100])
            .await?;
    }
    Ok(())
}

async fn bench_read(Shared(app): Shared<App>) -> Result<Bytes, Failed> {
    let key = format!("key-{:04}", app.key() % KEYS);
    Ok(app.state.get_bytes(key).await?.unwrap_or_default())
}

async fn bench_write(Shared(app): Shared<App>) -> Result<(), Failed> {
    let number = app.key();
    let key = format!("key-{:04}", number % KEYS);
    // Another value each time: SQLite writes none that is there already.
    let value = format!("{number:0100}");
    Ok(app.state.put_bytes(key, value.as_bytes()).await?)
}

async fn bench_transaction(Shared(app): Shared<App>) -> Result<(), Failed> {
    let name = |number: u64| format!("account-{:04}", number % KEYS);
    let (from, to) = (&name(app.key()), &name(app.key()));
    let work = |tx: handover_plugin::Transaction| async move {
        tx.add(from, -1).await?;
        tx.add(to, 1).await?;
        Ok::<_, StateError>(())
    };
    Ok(app.state.transaction(work).await?)
}

/// How often it was computed, which takes a while.
async fn cached(Shared(app): Shared<App>, Path(key): Path<String>) -> Result<String, Failed> {
    let computed = app.state.namespace("computed");
    let ttl = Duration::from_secs(3600);
    let compute = || async {
        let times = computed.add(&key, 1).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok::<_, Failed>(times)
    };
    let times: i64 = app.cache.get_or(&key, ttl, compute).await?;
    Ok(times.to_string())
}

async fn limited(Shared(app): Shared<App>, Path(key): Path<String>) -> Result<Response, Failed> {
    let decision = app.limiter.check(&key).await?;
    let status = if decision.is_allowed {
        StatusCode::OK
    } else {
        StatusCode::TOO_MANY_REQUESTS
    };
    Ok((status, decision.remaining.to_string()).into_response())
}

fn session_failed(error: impl fmt::Display) -> Failed {
    Failed(StateError::Unavailable(error.to_string()))
}

async fn begin_session(Shared(app): Shared<App>, name: String) -> Result<String, Failed> {
    let mut record = Record {
        id: Id::default(),
        data: [("name".to_owned(), serde_json::json!(name))].into(),
        expiry_date: time::OffsetDateTime::now_utc() + Duration::from_secs(3600),
    };
    app.sessions
        .create(&mut record)
        .await
        .map_err(session_failed)?;
    Ok(record.id.to_string())
}

async fn read_session(
    Shared(app): Shared<App>,
    Path(id): Path<String>,
) -> Result<Response, Failed> {
    let id: Id = id.parse().map_err(session_failed)?;
    let found = app.sessions.load(&id).await.map_err(session_failed)?;
    Ok(match found {
        Some(record) => record.data["name"].to_string().into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    })
}

async fn end_session(Shared(app): Shared<App>, Path(id): Path<String>) -> Result<(), Failed> {
    let id: Id = id.parse().map_err(session_failed)?;
    app.sessions.delete(&id).await.map_err(session_failed)
}
