//! What shows a swap from outside: who answers, whether it is well, and answers that take their
//! time.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::HeaderName;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::stream;
use serde::Deserialize;

use crate::site::{Identity, Site};

const MAX_WAIT_MS: u64 = 60_000;
const MAX_LINES: u64 = 100_000;

/// `/version`, `/healthz`, `/slow` and `/stream`.
pub(crate) fn router() -> Router<Arc<Site>> {
    Router::new()
        .route("/version", get(version))
        .route("/healthz", get(healthz))
        .route("/slow", get(slow))
        .route("/stream", get(lines))
}

const NOT_CACHED: [(HeaderName, &str); 1] = [(CACHE_CONTROL, "no-store")];

async fn version(State(site): State<Arc<Site>>) -> Response {
    (NOT_CACHED, Json(&site.identity)).into_response()
}

async fn healthz() -> &'static str {
    "ok\n"
}

#[derive(Deserialize)]
#[serde(default)]
struct Wait {
    ms: u64,
}

impl Default for Wait {
    fn default() -> Self {
        Self { ms: 2000 }
    }
}

/// Answers after `ms` milliseconds: with the version that it began on, however many came since.
async fn slow(State(site): State<Arc<Site>>, Query(wait): Query<Wait>) -> Response {
    let ms = wait.ms.min(MAX_WAIT_MS);
    tokio::time::sleep(Duration::from_millis(ms)).await;
    let Identity {
        version,
        generation,
        ..
    } = &site.identity;
    (
        NOT_CACHED,
        format!("{version} (generation {generation}) answered after {ms} ms\n"),
    )
        .into_response()
}

#[derive(Deserialize)]
#[serde(default)]
struct Lines {
    lines: u64,
    every_ms: u64,
}

impl Default for Lines {
    fn default() -> Self {
        Self {
            lines: 10,
            every_ms: 500,
        }
    }
}

/// `lines` lines of text, one each `every_ms` milliseconds, all of the version that it began on: a
/// drain waits for it.
async fn lines(State(site): State<Arc<Site>>, Query(wanted): Query<Lines>) -> Response {
    let total = wanted.lines.min(MAX_LINES);
    let pause = Duration::from_millis(wanted.every_ms.min(MAX_WAIT_MS));
    let body = stream::unfold((site, 0), move |(site, sent)| async move {
        if sent == total {
            return None;
        }
        if sent > 0 && !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let sent = sent + 1;
        let line = format!("{} line {sent} of {total}\n", site.identity.version);
        Some((
            Ok::<_, std::convert::Infallible>(Bytes::from(line)),
            (site, sent),
        ))
    });
    (
        [
            (CONTENT_TYPE, "text/plain; charset=utf-8"),
            (CACHE_CONTROL, "no-store"),
        ],
        Body::from_stream(body),
    )
        .into_response()
}
