//! `audit`: who asked the host for which change.

use std::io;

use handover_api::{AuditEntry, AuditList, Outcome, query};
use jiff::Timestamp;

use super::{
    args::{self, Global},
    exit::Failure,
    output::{self, Cell, Paint, Row},
};
use crate::{clock, human, shown::harmless, values};

/// `handover audit`
pub(super) async fn audit(global: &Global, args: args::Audit) -> Result<(), Failure> {
    let asked = query::Audit {
        app: args.app,
        since_ms: args.since,
        limit: Some(args.number),
    };
    let list = global.client().audit(&asked).await?;
    output::line(&if global.json {
        // Our own type of strings and numbers: this cannot fail.
        serde_json::to_string(&list).unwrap_or_default()
    } else {
        let colour = output::colour(&io::stdout(), global);
        text(&list, colour, output::width())
    });
    Ok(())
}

/// Reads `--since`: a time, or how long ago it was; in milliseconds since 1970.
pub(super) fn since(text: &str) -> Result<u64, String> {
    if let Ok(ago) = values::duration(text) {
        let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        return Ok(clock::now_ms().saturating_sub(ago));
    }
    let time: Timestamp = text.parse().map_err(|_| {
        format!(
            "`{text}` is neither a time nor how long ago: write e.g. 2026-11-28T08:00:00Z or 2h"
        )
    })?;
    Ok(u64::try_from(time.as_millisecond()).unwrap_or_default())
}

fn text(list: &AuditList, colour: bool, width: Option<usize>) -> String {
    if list.entries.is_empty() {
        return "Nothing of that kind was asked for.".to_owned();
    }
    let rows: Vec<_> = list.entries.iter().flat_map(rows).collect();
    output::table(
        &["TIME", "WHO", "WHERE", "WHAT", "APP", "OUTCOME"],
        &rows,
        colour,
        width,
    )
}

fn rows(entry: &AuditEntry) -> Vec<Row> {
    let user = entry.user.as_deref().map(harmless);
    let who = match (entry.by.as_deref().map(harmless), user) {
        (Some(by), Some(user)) if by != user => format!("{by} ({user})"),
        (Some(one), _) | (None, Some(one)) => one,
        (None, None) => "-".to_owned(),
    };
    let (word, paint) = match entry.outcome {
        None => ("under way", Paint::Yellow),
        Some(one) if one.exit_code() == 0 => (one.as_str(), Paint::Green),
        Some(one @ (Outcome::DeadlinePassed | Outcome::Conflict)) => (one.as_str(), Paint::Yellow),
        Some(one) => (one.as_str(), Paint::Red),
    };
    let app = entry.app.as_ref().map_or("-", |app| app.as_str());
    let mut rows = vec![Row::Cells(vec![
        human::timestamp(entry.at_ms).into(),
        who.into(),
        entry.source.as_str().into(),
        harmless(&entry.call).into(),
        app.into(),
        Cell::painted(word, paint),
    ])];
    let arguments = entry.arguments.iter();
    let arguments =
        arguments.map(|(name, value)| format!("{}={}", harmless(name), harmless(value)));
    let artifact = entry.artifact.as_deref();
    let artifact = artifact.map(|sha| format!("artifact={}", output::short(sha)));
    let said: Vec<_> = arguments.chain(artifact).collect();
    if !said.is_empty() {
        rows.push(Row::Note(Cell::painted(said.join(" "), Paint::Dim)));
    }
    let error = entry.error.as_deref().map(harmless);
    rows.extend(error.map(|error| Row::Note(Cell::painted(error, Paint::Dim))));
    rows
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_change_has_who_and_why_not() {
        let list = serde_json::from_str(
            r#"{"entries":[
              {"at_ms":1790000000000,"source":"control","call":"POST /v1/deploy","app":"shop","by":"ci","user":"ops","uid":7,"pid":12,
               "arguments":{"name":"shop.so"},"artifact":"0123456789abcdef","status":200,"operation":"op-1","outcome":"rejected",
               "error":"it is no ELF file"},
              {"at_ms":1790000060000,"source":"signal","call":"SIGHUP","outcome":"done"}]}"#,
        )
        .unwrap();
        let expected = "\
TIME                  WHO       WHERE    WHAT             APP   OUTCOME
2026-09-21T14:13:20Z  ci (ops)  control  POST /v1/deploy  shop  rejected
  name=shop.so artifact=0123456789ab
  it is no ELF file
2026-09-21T14:14:20Z  -         signal   SIGHUP           -     done";
        assert_eq!(text(&list, false, Some(80)), expected);
    }

    #[test]
    fn a_time_is_one_or_how_long_ago() {
        assert_eq!(since("1970-01-01T00:00:01Z"), Ok(1000));
        assert!(since("2h").unwrap() <= clock::now_ms() - 7_200_000);
        assert!(since("yesterday").unwrap_err().contains("2h"));
    }
}
