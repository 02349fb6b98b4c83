//! `logs`: the last records of the host's log, and with `-f` those to come.

use std::{
    fmt::Write as _,
    io,
    time::{Duration, UNIX_EPOCH},
};

use handover_api::{ClientError, LogLevel, LogRecord, query};
use serde_json::Value;

use super::{
    args::{self, Global},
    exit::{Failure, may_come_back},
    output::{self, Paint, paint},
};
use crate::shown::{harmless, push_harmless};

/// How many records of the past who follows is shown, unless it says otherwise.
const BEFORE_FOLLOWING: usize = 10;

/// How often a host that has ended is asked whether it is there again.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// The same by ssh, which logs in each time and says each time that there is none.
const ASK_REMOTE_AGAIN_AFTER: Duration = Duration::from_secs(3);

/// `handover logs`
pub(super) async fn logs(global: &Global, args: args::Logs) -> Result<(), Failure> {
    let shown = Shown {
        json: global.json,
        colour: output::colour(&io::stdout(), global),
    };
    let lines = args.lines.or_else(|| {
        let is_short = args.follow && args.since.is_none();
        is_short.then_some(BEFORE_FOLLOWING)
    });
    let mut asked = query::Logs {
        app: args.app,
        generation: args.generation,
        level: args.level,
        lines,
        since: args.since,
        run: None,
        follow: args.follow,
    };
    let client = global.client();
    let mut records = client.logs(&asked).await?;
    loop {
        match records.next().await {
            Ok(Some(line)) => {
                let record = line.value;
                if asked.run.as_ref().is_some_and(|run| *run != record.run)
                    && !shown.note("another run of the host begins")
                {
                    return Ok(());
                }
                let told = if shown.json {
                    line.text
                } else {
                    text(&record, shown.colour)
                };
                if !output::is_read(&told) {
                    return Ok(()); // the reader left, as `head` does
                }
                asked.since = Some(record.seq);
                asked.run = Some(record.run);
                // What comes after that record is wanted whole.
                asked.lines = None;
                continue;
            }
            Ok(None) if !args.follow => return Ok(()),
            Err(ClientError::Broken(_)) if !args.follow => {
                return Err(Failure::new("the host ended before all of it was told"));
            }
            Ok(None) | Err(ClientError::Broken(_)) => {}
            Err(error) => return Err(error.into()),
        }
        if !shown.note("the host has ended; waiting for the next one") {
            return Ok(());
        }
        records = loop {
            match client.logs(&asked).await {
                Ok(records) => break records,
                Err(error) if may_come_back(&error) => {
                    tokio::time::sleep(match error {
                        ClientError::Program(..) => ASK_REMOTE_AGAIN_AFTER,
                        _ => ASK_AGAIN_AFTER,
                    })
                    .await;
                }
                Err(error) => return Err(error.into()),
            }
        };
    }
}

/// How records are shown.
#[derive(Clone, Copy)]
struct Shown {
    json: bool,
    colour: bool,
}

impl Shown {
    /// Tells a person, among the records, what is no record. Whether somebody reads it: programs
    /// know by `run`.
    fn note(self, text: &str) -> bool {
        let note = format!("-- {text} --");
        self.json || output::is_read(&paint(self.colour, Paint::Dim, &note))
    }
}

/// A record as a line, like those of the log itself.
fn text(record: &LogRecord, colour: bool) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(record.at_ms);
    let at = humantime::format_rfc3339_millis(at).to_string();
    let level = record.level.as_str().to_uppercase();
    let how = match record.level {
        LogLevel::Error => Paint::Red,
        LogLevel::Warn => Paint::Yellow,
        LogLevel::Info => Paint::Green,
        LogLevel::Debug | LogLevel::Trace | LogLevel::Unknown => Paint::Dim,
    };
    let mut line = format!(
        "{} {} {}",
        paint(colour, Paint::Dim, &at),
        paint(colour, how, &format!("{level:>5}")),
        harmless(&record.message)
    );
    let app = record.app.as_ref().map(|app| Value::from(app.as_str()));
    let generation = record.generation.map(|id| Value::from(id.0));
    let about = [("app", &app), ("generation", &generation)];
    let about = about
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_ref()?)));
    let fields = record.fields.iter();
    for (name, value) in about.chain(fields.map(|(name, value)| (&**name, value))) {
        let name = format!(" {}=", harmless(name));
        line.push_str(&paint(colour, Paint::Dim, &name));
        match value.as_str() {
            Some(text) if !text.contains([' ', '"', '=']) => push_harmless(text, &mut line),
            // Writing to a string does not fail.
            _ => drop(write!(line, "{value}")),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use handover_api::GenerationId;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_is_a_line_like_those_of_the_log() {
        let Value::Object(fields) = json!({ "kind": "active", "path": "/a b", "took_ms": 7 })
        else {
            panic!()
        };
        let record = LogRecord {
            seq: 1,
            run: "1.1".to_owned(),
            at_ms: 1_790_000_000_012,
            level: LogLevel::Warn,
            app: Some("shop".parse().unwrap()),
            generation: Some(GenerationId(7)),
            target: "handover::records::events".to_owned(),
            message: "it is live\n2026 \x1b[31m".to_owned(),
            fields,
            lost: None,
        };
        assert_eq!(
            text(&record, false),
            "2026-09-21T14:13:20.012Z  WARN it is live\n    2026 \\u{1b}[31m app=shop generation=7 kind=active path=\"/a b\" took_ms=7"
        );
    }
}
