//! An app with work that outlives it: each handler is one habit of a job.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    extract::{Path, Query, State as Shared},
    http::StatusCode,
    response::IntoResponse,
    routing::{get, post},
};
use handover_plugin::{Context, Error, JobContext, JobError, JobId, StateError};
use serde::{Deserialize, Serialize};

/// What a job of this fixture is told.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Task {
    /// Where its effect is counted.
    key: String,
    /// How long it takes.
    #[serde(default)]
    ms: u64,
}

/// Leaves its effect in the commit that ends it: exactly once.
#[handover_plugin::job]
async fn effect(cx: JobContext, task: Task) -> Result<i64, JobError> {
    tokio::time::sleep(Duration::from_millis(task.ms)).await;
    cx.complete_with(|tx| {
        let key = format!("effect/{}", task.key);
        async move { Ok(tx.add(key, 1).await?) }
    })
    .await
}

/// Tells how far it is, and on which version it ends.
#[handover_plugin::job]
async fn slow(cx: JobContext, task: Task) -> Result<String, JobError> {
    cx.progress(0.5, "half of it");
    tokio::select! {
        () = tokio::time::sleep(Duration::from_millis(task.ms)) => {}
        () = cx.cancelled() => return Err(JobError::msg("told to end")),
    }
    Ok(format!("{} by {}", task.key, cx.context().version()))
}

/// Fails on its first attempts.
#[handover_plugin::job(max_attempts = 3, backoff = "10ms")]
async fn failing(cx: JobContext, times: u32) -> Result<u32, JobError> {
    match cx.attempt() {
        attempt if attempt > times => Ok(attempt),
        2 => panic!("the second attempt panics"),
        attempt => Err(JobError::msg(format_args!("attempt {attempt} failed"))),
    }
}

/// Nothing would help it.
#[handover_plugin::job]
async fn fatal(_cx: JobContext, (): ()) -> Result<(), JobError> {
    Err(JobError::fatal("nothing would help"))
}

/// Takes longer than it may.
#[handover_plugin::job(timeout = "100ms", max_attempts = 1)]
async fn late(_cx: JobContext, (): ()) -> Result<(), JobError> {
    std::future::pending().await
}

/// One at a time, and one of a tenant.
#[handover_plugin::job(concurrency = 3, tenant_concurrency = 1)]
async fn narrow(cx: JobContext, task: Task) -> Result<(), JobError> {
    static RUNNING: AtomicU64 = AtomicU64::new(0);
    let running = RUNNING.fetch_add(1, Ordering::SeqCst) + 1;
    tokio::time::sleep(Duration::from_millis(task.ms)).await;
    RUNNING.fetch_sub(1, Ordering::SeqCst);
    let most = cx.state().namespace("most");
    if most.get::<u64>("running").await?.unwrap_or(0) < running {
        most.put("running", &running).await?;
    }
    Ok(())
}

/// Due each second.
#[handover_plugin::schedule(every = "1s")]
async fn tick(cx: JobContext) -> Result<(), JobError> {
    let due = cx.due().duration_since(UNIX_EPOCH)?.as_millis();
    cx.complete_with(|tx| async move {
        tx.namespace("ticks").add(due.to_string(), 1).await?;
        Ok(())
    })
    .await
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Options {
    key: Option<String>,
    tenant: Option<String>,
    delay_ms: u64,
    priority: i32,
}

struct Failed(StateError);

impl From<StateError> for Failed {
    fn from(error: StateError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> axum::response::Response {
        (StatusCode::SERVICE_UNAVAILABLE, self.0.to_string()).into_response()
    }
}

async fn enqueue(
    Shared(cx): Shared<Context>,
    Path(name): Path<String>,
    Query(options): Query<Options>,
    Json(payload): Json<serde_json::Value>,
) -> Result<String, Failed> {
    let mut job = cx
        .jobs()
        .enqueue(&name, &payload)
        .priority(options.priority)
        .delay(Duration::from_millis(options.delay_ms));
    if let Some(key) = options.key {
        job = job.key(key);
    }
    if let Some(tenant) = options.tenant {
        job = job.tenant(tenant);
    }
    Ok(job.await?.to_string())
}

/// A record and its job: both, or neither.
async fn order(
    Shared(cx): Shared<Context>,
    Path((key, fails)): Path<(String, bool)>,
) -> Result<String, Failed> {
    let state = cx.state();
    let ordered = state.transaction(async |tx| {
        let seen: i64 = tx.get(format!("order/{key}")).await?.unwrap_or(0);
        tx.put(format!("order/{key}"), &(seen + 1))?;
        let task = Task {
            key: key.clone(),
            ms: 0,
        };
        let id = tx.enqueue("effect", &task).await?;
        if fails {
            return Err(StateError::Busy);
        }
        Ok(id)
    });
    Ok(ordered.await?.to_string())
}

async fn find(Shared(cx): Shared<Context>, Path(id): Path<String>) -> Result<String, Failed> {
    let found = cx.jobs().find(&JobId::from(id)).await?;
    Ok(found.map_or_else(
        || "unknown".to_owned(),
        |job| match job.result::<serde_json::Value>() {
            Ok(Some(result)) => format!("{} {result}", job.state),
            _ => job.state,
        },
    ))
}

async fn value(Shared(cx): Shared<Context>, Path(key): Path<String>) -> Result<String, Failed> {
    let value: Option<i64> = cx.state().get(&key).await?;
    Ok(value.unwrap_or(0).to_string())
}

/// What the handlers have counted below a prefix.
async fn counted(
    Shared(cx): Shared<Context>,
    Path(namespace): Path<String>,
) -> Result<Json<Vec<(String, i64)>>, Failed> {
    let prefix = if namespace == "default" {
        "effect/"
    } else {
        ""
    };
    let found = cx.state().namespace(&namespace).scan::<i64>(prefix);
    let mut found = found;
    let entries = found.take(usize::MAX).await?;
    let text = |key: Vec<u8>| String::from_utf8_lossy(&key).into_owned();
    Ok(Json(
        entries.into_iter().map(|(key, n)| (text(key), n)).collect(),
    ))
}

/// The time of the machine, which all processes share, in microseconds.
fn micros() -> i64 {
    let now = UNIX_EPOCH.elapsed().unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}

#[handover_plugin::app]
async fn app(cx: Context) -> Result<Router, Error> {
    let poller = cx.clone();
    cx.worker("poller", async move |stop| {
        while !stop.is_requested() {
            let Ok(mut lease) = poller.lease("poller").await else {
                return;
            };
            let began = micros();
            let log = poller.state().namespace("holders");
            let key = format!("{:08}", lease.fence());
            // Held by one at a time: whoever comes finds nobody inside.
            let inside = log.add("inside", 1).await.unwrap_or(0);
            let _ = log.put(&key, &i64::from(inside == 1)).await;
            lease.asked_back().await;
            let _ = log.add("inside", -1).await;
            let ended = micros();
            drop(lease);
            let times = poller.state().namespace("times");
            let _ = times.put(format!("{key} began"), &began).await;
            let _ = times.put(format!("{key} ended"), &ended).await;
        }
    });
    Ok(Router::new()
        .route("/", get(|| async { env!("CARGO_PKG_VERSION") }))
        .route("/enqueue/{name}", post(enqueue))
        .route("/order/{key}/{fails}", post(order))
        .route("/job/{id}", get(find))
        .route("/value/{*key}", get(value))
        .route("/counted/{namespace}", get(counted))
        .with_state(cx))
}
