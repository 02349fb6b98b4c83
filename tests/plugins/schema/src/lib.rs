//! An app that keeps links in the state, as each of its versions has them: their targets, then with
//! how often each was followed, then in a namespace of their own; and that counts in memory. A file
//! says what its migrations and its constructor do instead of going well.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{Path, State as Given},
    routing::get,
};
use handover_plugin::{Context, Error, State, StateError};
use serde::Deserialize;
#[cfg(feature = "second")]
use serde::Serialize;
use serde_json::Value;

/// What the operator sets.
#[derive(Debug, Deserialize)]
struct Config {
    /// What goes wrong, and where: `migrate fail`.
    how: PathBuf,
}

/// A link from the second version on.
#[cfg(feature = "second")]
#[derive(Debug, Serialize, Deserialize)]
struct Link {
    target: String,
    hits: u64,
}

/// What is to go wrong in `place`; with `live` before it in the host only.
fn how(place: &str) -> Option<String> {
    let cx = Context::current()?;
    let config: Config = cx.config().ok()?;
    let text = fs::read_to_string(config.how).ok()?;
    let text = match text.strip_prefix("live ") {
        Some(_) if cx.is_preflight() => return None,
        Some(live) => live,
        None => &text,
    };
    Some(text.strip_prefix(place)?.trim().to_owned())
}

/// Does what is to go wrong in `place`.
async fn trouble(place: &str) -> Result<(), Error> {
    match how(place).as_deref() {
        Some("fail") => Err(Error::msg("it fails as it was told to")),
        Some("panic") => panic!("it panics as it was told to"),
        Some("hang") => std::future::pending().await,
        Some("crash") => std::process::abort(),
        Some("wait") => {
            tokio::time::sleep(Duration::from_millis(300)).await;
            Ok(())
        }
        _ => Ok(()),
    }
}

#[cfg(feature = "second")]
#[handover_plugin::migration(from = 1, to = 2)]
async fn with_hits(
    old: handover_plugin::Snapshot,
    new: &mut handover_plugin::Batch,
) -> Result<(), Error> {
    let mut links = old.scan::<String>("");
    while let Some((key, target)) = links.next().await? {
        new.put(key, &Link { target, hits: 0 }).await?;
    }
    trouble("migrate").await
}

#[cfg(feature = "second")]
#[handover_plugin::migration(from = 2, to = 1)]
async fn without_hits(
    old: handover_plugin::Snapshot,
    new: &mut handover_plugin::Batch,
) -> Result<(), Error> {
    let mut links = old.scan::<Link>("");
    while let Some((key, link)) = links.next().await? {
        new.put(key, &link.target).await?;
    }
    trouble("back").await
}

#[cfg(feature = "third")]
#[handover_plugin::migration(from = 2, to = 3)]
async fn apart(
    old: handover_plugin::Snapshot,
    new: &mut handover_plugin::Batch,
) -> Result<(), Error> {
    let mut links = old.scan::<Link>("");
    while let Some((key, link)) = links.next().await? {
        new.namespace("links").put(&key, &link).await?;
        new.delete(&key).await?;
    }
    trouble("apart").await
}

fn links(cx: &Context) -> State {
    if cfg!(feature = "third") {
        cx.state().namespace("links")
    } else {
        cx.state()
    }
}

async fn all(Given(cx): Given<Context>) -> Result<String, String> {
    let found = links(&cx).scan::<Value>("").take(usize::MAX).await;
    let found = found.map_err(|error| error.to_string())?.into_iter();
    let text = |key: Vec<u8>| String::from_utf8_lossy(&key).into_owned();
    let found: serde_json::Map<_, _> = found.map(|(key, value)| (text(key), value)).collect();
    Ok(Value::Object(found).to_string())
}

async fn put_link(
    Given(cx): Given<Context>,
    Path((key, target)): Path<(String, String)>,
) -> Result<(), String> {
    #[cfg(feature = "second")]
    let link = Link { target, hits: 0 };
    #[cfg(not(feature = "second"))]
    let link = target;
    let written: Result<(), StateError> = links(&cx).put(key, &link).await;
    written.map_err(|error| error.to_string())
}

#[cfg_attr(not(feature = "second"), handover_plugin::app(schema = 1))]
#[cfg_attr(
    all(feature = "second", not(feature = "third")),
    handover_plugin::app(schema = 2)
)]
#[cfg_attr(
    feature = "third",
    handover_plugin::app(schema = 3, compatible_with = 2)
)]
async fn app(cx: Context) -> Result<Router, Error> {
    if cfg!(feature = "second") {
        trouble("start").await?;
    }
    let version = cx.version().to_owned();
    let warm = Arc::new(AtomicU64::new(cx.handed_over()?.unwrap_or(0)));
    let given = Arc::clone(&warm);
    cx.on_handover(move || {
        let given = given.load(Ordering::Relaxed);
        async move {
            // What goes wrong here is not told by an error.
            let _ = trouble("hand-over").await;
            match how("hand-over").as_deref() {
                Some("much") => Value::from("x".repeat(1 << 20)),
                Some("another") => Value::from("no number"),
                _ => Value::from(given),
            }
        }
    });
    Ok(Router::new()
        .route("/version", get(move || async move { version }))
        .route(
            "/warm",
            get(move || async move { (warm.fetch_add(1, Ordering::Relaxed) + 1).to_string() }),
        )
        .route("/all", get(all))
        .route("/put/{key}/{target}", get(put_link))
        .route(
            "/slow",
            get(|| async { tokio::time::sleep(Duration::from_millis(300)).await }),
        )
        .with_state(cx))
}
