//! What it answers. The benches link this very file into a server without plugins.

use std::{convert::Infallible, task::Poll, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    response::sse::{Event, KeepAlive, Sse},
    routing::{get, post},
};
use futures_util::stream::{self, Stream};
use serde::{Deserialize, Serialize};

/// What `/page` answers, 100 KiB.
static PAGE: [u8; 100 * 1024] = [b'.'; 100 * 1024];

/// How many frames `/events` sends.
const FRAMES: usize = 100;

/// What `/json` reads and answers.
#[derive(Deserialize, Serialize)]
struct Order {
    id: u64,
    customer: String,
    lines: Vec<Line>,
}

#[derive(Deserialize, Serialize)]
struct Line {
    article: String,
    pieces: u32,
    price: f64,
}

/// Greets with the version at `/`; beside it one route for each thing that a request or an answer
/// can be made of.
pub(crate) fn router(version: &str) -> Router {
    let greeting = format!("hello {version}");
    Router::new()
        .route("/", get(async move || greeting))
        .route("/page", get(async || Bytes::from_static(&PAGE)))
        .route("/echo", post(async |body: Bytes| body))
        .route("/json", post(async |Json(order): Json<Order>| Json(order)))
        .route("/events", get(async || events()))
        .route("/ticks", get(async || ticks()))
}

/// One that never ends, and says a word twice a second so that its client knows that it is there.
fn ticks() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let word = KeepAlive::new()
        .interval(Duration::from_millis(500))
        .text("tick");
    Sse::new(stream::pending()).keep_alive(word)
}

/// Each frame takes a poll of its own, as those of a source that waits for something do.
fn events() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let (mut left, mut waited) = (FRAMES, false);
    Sse::new(stream::poll_fn(move |cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        waited = !waited;
        if waited {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        left -= 1;
        Poll::Ready(Some(Ok(Event::default().data("tick"))))
    }))
}
