//! `history`: what was deployed, and how it ended.

use std::{fmt::Write as _, io, time::Duration};

use handover_api::{History, HistoryEntry, Outcome, Served, StepTook};

use super::{
    args::{self, Global},
    exit::Failure,
    output::{self, Cell, Paint, Row},
    status::check_known,
};
use crate::{human, shown::harmless};

/// `handover history`
pub(super) async fn history(global: &Global, args: args::History) -> Result<(), Failure> {
    let client = global.client();
    let history = client.history(args.app.as_ref()).await?;
    if let (true, Some(app)) = (history.history.is_empty(), &args.app) {
        check_known(&client.status().await?, app)?;
    }
    output::line(&if global.json {
        // Our own type of strings and numbers: this cannot fail.
        serde_json::to_string(&history).unwrap_or_default()
    } else {
        text(
            &history,
            output::colour(&io::stdout(), global),
            output::width(),
        )
    });
    Ok(())
}

fn text(history: &History, colour: bool, width: Option<usize>) -> String {
    if history.history.is_empty() {
        return "Nothing has been deployed.".to_owned();
    }
    let rows: Vec<_> = history.history.iter().flat_map(rows).collect();
    output::table(
        &[
            "TIME", "APP", "GEN>", "VERSION", "ARTIFACT", "CAUSE", "OUTCOME",
        ],
        &rows,
        colour,
        width,
    )
}

fn rows(entry: &HistoryEntry) -> Vec<Row> {
    let (word, paint) = match entry.outcome {
        Outcome::Done => ("done", Paint::Green),
        Outcome::Unchanged => ("unchanged", Paint::Dim),
        Outcome::Staged => ("staged", Paint::Yellow),
        Outcome::Failed => ("failed", Paint::Red),
        Outcome::Rejected => ("rejected", Paint::Red),
        Outcome::Unhealthy => ("unhealthy", Paint::Red),
        Outcome::RolledBack => ("rolled back", Paint::Red),
        Outcome::DeadlinePassed => ("done, cut", Paint::Yellow),
        Outcome::Conflict => ("conflict", Paint::Yellow),
        Outcome::Denied => ("denied", Paint::Red),
    };
    let mut rows = vec![Row::Cells(vec![
        human::timestamp(entry.at_ms).into(),
        entry.app.as_str().into(),
        entry
            .generation
            .map_or_else(|| "-".to_owned(), |generation| generation.to_string())
            .into(),
        entry
            .version
            .as_ref()
            .map_or_else(|| "-".to_owned(), ToString::to_string)
            .into(),
        output::short(&entry.artifact).into(),
        entry.cause.as_str().into(),
        Cell::painted(word, paint),
    ])];
    rows.extend(
        entry
            .reason
            .as_ref()
            .map(|reason| Row::Note(Cell::painted(reason, Paint::Dim))),
    );
    if !entry.steps.is_empty() {
        let steps: Vec<_> = entry.steps.iter().map(step).collect();
        rows.push(Row::Note(Cell::painted(steps.join(", "), Paint::Dim)));
    }
    let commit = entry.commit.as_deref().map(|commit| {
        let (name, rest) = commit.split_at(commit.len().min(12));
        let dirty = if rest.ends_with("-dirty") {
            "-dirty"
        } else {
            ""
        };
        format!("commit {}{dirty}", harmless(name))
    });
    let facts: Vec<_> = commit.into_iter().chain(entry.served.map(served)).collect();
    if !facts.is_empty() {
        rows.push(Row::Note(Cell::painted(facts.join("; "), Paint::Dim)));
    }
    let by = entry.by.as_ref().map(|by| format!("by {}", harmless(by)));
    let told = [by, entry.message.as_deref().map(harmless)];
    let told: Vec<_> = told.into_iter().flatten().collect();
    if !told.is_empty() {
        rows.push(Row::Note(Cell::painted(told.join(": "), Paint::Dim)));
    }
    rows.extend(
        entry
            .warnings
            .iter()
            .map(|warning| Row::Note(Cell::painted(format!("warning: {warning}"), Paint::Yellow))),
    );
    rows
}

fn step(step: &StepTook) -> String {
    let took = human::duration(Duration::from_micros(step.took_us));
    format!("{} {took}", harmless(&step.step))
}

/// What a generation has done, as a sentence.
fn served(served: Served) -> String {
    let mut text = format!(
        "served {} in {}",
        human::pluralize(served.requests, "request"),
        human::duration(Duration::from_millis(served.for_ms))
    );
    if served.server_errors > 0 {
        let _ = write!(text, ", {} of them with 5xx", served.server_errors);
    }
    if served.panics > 0 {
        let _ = write!(text, ", {}", human::pluralize(served.panics, "panic"));
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn history_fits_a_terminal_and_gives_reasons() {
        let history = serde_json::from_str(
            r#"{"history":[
              {"at_ms":1790000000000,"app":"shop","generation":7,"version":"1.1.0","artifact":"0123456789abcdef","cause":"deploy",
               "outcome":"done","reason":null,"commit":"89abcdef0123456789abcdef0123456789abcdef-dirty",
               "steps":[{"step":"load","took_us":31000},{"step":"cutover","took_us":60}],
               "served":{"requests":1200,"server_errors":3,"panics":1,"for_ms":7200000}},
              {"at_ms":1790000060000,"app":"shop","generation":null,"version":"1.2.0","artifact":"fedcba9876543210","cause":"rollback",
               "outcome":"rejected","reason":"the constructor panicked: no database"}]}"#,
        )
        .unwrap();
        let expected = "\
TIME                  APP   GEN  VERSION  ARTIFACT      CAUSE     OUTCOME
2026-09-21T14:13:20Z  shop    7  1.1.0    0123456789ab  deploy    done
  load 31 ms, cutover 60 µs
  commit 89abcdef0123-dirty; served 1200 requests in 2h 0m, 3 of them with 5xx,
    1 panic
2026-09-21T14:14:20Z  shop    -  1.2.0    fedcba987654  rollback  rejected
  the constructor panicked: no database";
        assert_eq!(text(&history, false, Some(80)), expected);
    }
}
