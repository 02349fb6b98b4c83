//! `GET /v1/logs`: the last records of the host's log, and those to come.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use bytes::Bytes;
use handover_api::{LogLevel, LogRecord, query};
use http::StatusCode;
use tokio::sync::mpsc;

use super::{
    calls::{ControlResponse, Refusal, WAITING, line, lines},
    shutdown::{Shutdown, ShutdownHandle},
};
use crate::{
    clock,
    telemetry::{Kept, Recent},
};

/// How often who follows looks for new records. Who logs wakes nobody: it may be a destructor of a
/// thread-local, or hold what a waker wants.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How many records are taken at a time.
const BATCH: usize = 256;

type Lines = mpsc::Sender<Result<Bytes, Infallible>>;

/// Nobody reads any more.
struct Left;

/// Answers with the records that are asked for, and with those to come until `following` is at its
/// end.
///
/// # Errors
/// When this host keeps none, or the query names no level.
pub(super) fn logs(
    recent: Option<Recent>,
    asked: query::Logs,
    following: Option<ShutdownHandle>,
) -> Result<ControlResponse, Refusal> {
    let refused = |status, code, why: &str| Err(Refusal::new(status, code, why));
    let Some(recent) = recent else {
        return refused(
            StatusCode::NOT_FOUND,
            1,
            "this host keeps no log: it is part of a program, and logs where that one does",
        );
    };
    if asked.level == Some(LogLevel::Unknown) {
        return refused(
            StatusCode::BAD_REQUEST,
            2,
            "the level is not understood: it is error, warn, info, debug or trace",
        );
    }
    let (tx, rx) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        // Only the reader's end of it ends the answer early.
        let _ = tell(&tx, &recent, &asked, following).await;
    });
    Ok(lines(rx))
}

async fn tell(
    to: &Lines,
    recent: &Recent,
    asked: &query::Logs,
    mut following: Option<ShutdownHandle>,
) -> Result<(), Left> {
    // Without `follow`, what comes meanwhile is not waited for.
    let mut end = recent.last();
    let is_of_this_run = asked.run.as_deref().is_none_or(|run| run == recent.run());
    let known = match asked.since {
        // A number that this run has not come to is of the one before.
        Some(since) if is_of_this_run && since <= end => Some(since),
        Some(_) => Some(0),
        None => None,
    };
    // Who has read before is told of a gap; who has not has missed nothing.
    let mut is_resumed = known.is_some();
    let mut at = known.unwrap_or(0);
    if let Some(most) = asked.lines {
        (at, is_resumed) = (before_the_last(recent, asked, at, most), false);
    }
    loop {
        let batch = recent.after(at, BATCH);
        if batch.lost > 0 && is_resumed {
            send(to, &lost(batch.lost, batch.first - 1, recent.run())).await?;
        }
        is_resumed = true;
        at = batch.first - 1;
        for (seq, kept) in (batch.first..).zip(&batch.records) {
            at = seq;
            if is_asked_for(kept, asked) {
                send(to, &kept.record(seq, recent.run())).await?;
            }
        }
        let Some(shutdown) = &following else {
            if at >= end {
                return Ok(());
            }
            continue;
        };
        if !batch.records.is_empty() {
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = to.closed() => return Err(Left),
            _ = shutdown.requested(Shutdown::Ended) => {
                // What was said on the way there is there by now.
                following = None;
                end = recent.last();
            }
        }
    }
}

/// The number before the last `most` records that are asked for.
fn before_the_last(recent: &Recent, asked: &query::Logs, since: u64, most: usize) -> u64 {
    let end = recent.last();
    let mut last = VecDeque::new();
    let mut at = since;
    while at < end && most > 0 {
        let batch = recent.after(at, BATCH);
        at = batch.first - 1;
        for (seq, kept) in (batch.first..).zip(&batch.records) {
            at = seq;
            if is_asked_for(kept, asked) {
                if last.len() == most {
                    last.pop_front();
                }
                last.push_back(seq);
            }
        }
    }
    last.front().map_or(end, |first| first - 1)
}

fn is_asked_for(kept: &Kept, asked: &query::Logs) -> bool {
    asked.level.is_none_or(|level| kept.level() <= level)
        && (asked.app.as_ref()).is_none_or(|app| kept.app() == Some(app.as_str()))
        && (asked.generation).is_none_or(|number| kept.generation() == Some(number))
}

/// Stands for records that made room for newer ones before they were sent. It has the number of the
/// last of them.
fn lost(number: u64, last: u64, run: &str) -> LogRecord {
    let records = if number == 1 { "record" } else { "records" };
    LogRecord {
        seq: last,
        run: run.to_owned(),
        at_ms: clock::now_ms(),
        level: LogLevel::Warn,
        app: None,
        generation: None,
        target: module_path!().to_owned(),
        message: format!("{number} {records} of this log made room for newer ones, and are lost"),
        fields: serde_json::Map::default(),
        lost: Some(number),
    }
}

async fn send(to: &Lines, record: &LogRecord) -> Result<(), Left> {
    to.send(Ok(line(record))).await.map_err(|_| Left)
}
