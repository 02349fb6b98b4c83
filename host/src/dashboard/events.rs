//! Server-sent events: the status when it has changed, what was counted, and what happens, from
//! where the browser lost its connection.

use std::{convert::Infallible, fmt::Write as _, time::Duration};

use bytes::Bytes;
use handover_api::Event;
use http::{HeaderMap, HeaderValue, header};
use serde::Serialize;
use serde_json::Value;
use tokio::{
    sync::{broadcast, mpsc},
    time::{Instant, MissedTickBehavior},
};

use super::{answer::Who, listen::Page};
use crate::{
    access::Peer,
    control::{self, Backend, Caller, ControlResponse, Shutdown},
};

/// How many pieces may wait for a slow browser.
const WAITING: usize = 32;

/// How often the status is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How often it is sent though nothing but time has changed it: ages are read off it, and a browser
/// knows by it that the host is there.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// What changes in a status by itself.
const OF_TIME: [&str; 5] = ["age_ms", "ends_in_ms", "left_ms", "rss_bytes", "uptime_ms"];

/// Answers with a stream for a browser of the session `id`. It ends with the session.
pub(super) fn stream<B: Backend>(
    headers: &HeaderMap,
    (who, peer): (Who, Peer),
    id: &str,
    page: Page<B>,
) -> ControlResponse {
    let last = headers.get("last-event-id");
    let last = last.and_then(|id| {
        id.to_str()
            .ok()?
            .strip_prefix(&*page.run)?
            .strip_prefix('-')
    });
    let last = last.and_then(|seq| seq.parse().ok()).unwrap_or(0);
    let (tx, rx) = mpsc::channel(WAITING);
    let id = id.to_owned();
    tokio::spawn(async move {
        // Only the browser's end of it ends a stream early.
        let _ = follow(&tx, last, (&who, peer), &id, &page).await;
    });
    let mut response = control::lines(rx);
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    response
}

/// Nobody reads any more.
struct Left;

type Lines = mpsc::Sender<Result<Bytes, Infallible>>;

async fn follow<B: Backend>(
    to: &Lines,
    mut last: u64,
    (who, peer): (&Who, Peer),
    id: &str,
    page: &Page<B>,
) -> Result<(), Left> {
    let (past, mut coming) = page.backend.events();
    send(to, "who", None, who).await?;
    let run = &*page.run;
    let known = last;
    for event in past.into_iter().filter(|event| event.seq > known) {
        last = event.seq;
        happened(to, run, &event).await?;
    }
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = (Value::Null, Instant::now());
    let mut last_sample = None;
    loop {
        tokio::select! {
            next = coming.recv() => {
                let event = match next {
                    Ok(event) if event.seq <= last => continue,
                    Ok(event) => event,
                    Err(broadcast::error::RecvError::Lagged(missed)) => control::missed_events(last, missed),
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                };
                last = event.seq;
                happened(to, run, &event).await?;
            }
            _ = look.tick() => {
                if !page.sessions.goes_on(id) {
                    return Ok(());
                }
                if let Some(told) = page.samples.behind(&mut last_sample, page.measures) {
                    send(to, "figures", None, &told).await?;
                }
                let Ok(status) = serde_json::to_value(page.backend.status()) else { continue };
                let mut lasting = status.clone();
                without_time(&mut lasting);
                if lasting != before.0 || before.1.elapsed() >= SAY_EVERY {
                    // Who has lost the role meanwhile sees no more.
                    let caller = Caller::admitted(peer, page.access.load_full()).await;
                    if !caller.observes() {
                        return Ok(());
                    }
                    send(to, "status", None, &status).await?;
                    before = (lasting, Instant::now());
                }
            }
            () = to.closed() => return Err(Left),
            _ = page.shutdown.requested(Shutdown::Ended) => return Ok(()),
        }
    }
}

async fn happened(to: &Lines, run: &str, event: &Event) -> Result<(), Left> {
    send(to, "event", Some(format!("{run}-{}", event.seq)), event).await
}

/// Sends one event of the stream. JSON has no line breaks of its own.
async fn send(
    to: &Lines,
    kind: &str,
    id: Option<String>,
    data: &impl Serialize,
) -> Result<(), Left> {
    let Ok(data) = serde_json::to_string(data) else {
        return Ok(()); // our own types of strings and numbers: this cannot fail
    };
    let mut text = String::with_capacity(data.len() + 64);
    if let Some(id) = id {
        let _ = writeln!(text, "id: {id}"); // writing to a string does not fail
    }
    let _ = write!(text, "event: {kind}\ndata: {data}\n\n");
    to.send(Ok(text.into())).await.map_err(|_| Left)
}

/// Takes out what changes by itself.
fn without_time(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !OF_TIME.contains(&name.as_str()));
            fields.values_mut().for_each(without_time);
        }
        Value::Array(all) => all.iter_mut().for_each(without_time),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use serde_json::json;

    use super::*;

    #[test]
    fn time_alone_is_no_change() {
        let mut status = json!({"apps": [{"generations": [{"age_ms": 1, "requests": 2}]}], "host": {"uptime_ms": 3}});
        without_time(&mut status);
        assert_eq!(
            status,
            json!({"apps": [{"generations": [{"requests": 2}]}], "host": {}})
        );
    }
}
