//! `set`, `settings`, `send`: what an operator changes and asks while an app runs.

use std::{io, time::Duration};

use handover_api::{MessageAnswer, SettingChange, SettingInfo, SettingsList, query};
use serde_json::Value;

use super::{
    args::{self, Global},
    exit::Failure,
    output::{self, Cell, Paint, Row},
};
use crate::{human, shown::harmless};

/// `handover set`
pub(super) async fn set(global: &Global, args: args::Set) -> Result<(), Failure> {
    let value = args.value.map(|text| read(&text));
    let query = query::Set {
        app: Some(args.app),
        key: args.key,
        unset: args.unset,
        by: args.by,
    };
    let done = global.client().set(&query, value.as_ref()).await?;
    output::line(&if global.json {
        // Our own types of strings and numbers: this cannot fail.
        serde_json::to_string(&done).unwrap_or_default()
    } else {
        let message = harmless(&done.message);
        output::done(&message, output::colour(&io::stdout(), global))
    });
    Ok(())
}

/// JSON where it is some, and else a text.
fn read(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

/// `handover settings`
pub(super) async fn settings(global: &Global, args: args::Settings) -> Result<(), Failure> {
    let list = global
        .client()
        .settings(&query::OfApp { app: args.app })
        .await?;
    let colour = output::colour(&io::stdout(), global);
    output::line(&if global.json {
        serde_json::to_string(&list).unwrap_or_default()
    } else if args.history {
        changes(&list.history, colour)
    } else {
        text(&list, colour)
    });
    Ok(())
}

fn text(list: &SettingsList, colour: bool) -> String {
    if list.settings.is_empty() {
        return format!("Nothing of {} is set.", list.app);
    }
    let rows = list.settings.iter().map(|one: &SettingInfo| {
        let changed = one.at_ms.map_or_else(String::new, human::timestamp);
        row(&one.key, Some(&one.value), changed, one.by.as_deref())
    });
    let head = ["KEY", "VALUE", "CHANGED", "BY"];
    output::table(&head, &rows.collect::<Vec<_>>(), colour, output::width())
}

fn changes(history: &[SettingChange], colour: bool) -> String {
    if history.is_empty() {
        return "Nothing was changed.".to_owned();
    }
    let rows = history.iter().map(|one| {
        let changed = human::timestamp(one.at_ms);
        row(&one.key, one.value.as_ref(), changed, one.by.as_deref())
    });
    let head = ["KEY", "VALUE", "CHANGED", "BY"];
    output::table(&head, &rows.collect::<Vec<_>>(), colour, output::width())
}

fn row(key: &str, value: Option<&Value>, changed: String, by: Option<&str>) -> Row {
    let value = match value {
        Some(value) => Cell::from(harmless(&value.to_string())),
        None => Cell::painted("taken away", Paint::Dim),
    };
    Row::Cells(vec![
        harmless(key).into(),
        value,
        changed.into(),
        harmless(by.unwrap_or("-")).into(),
    ])
}

/// `handover send`
pub(super) async fn send(global: &Global, args: args::Send) -> Result<(), Failure> {
    let timeout = args.timeout.max(Duration::from_millis(1)).as_millis();
    let query = query::Send {
        app: Some(args.app),
        timeout_ms: u64::try_from(timeout).ok(),
        by: args.by,
    };
    let sent = global.client().send(&query, args.text).await?;
    let failed: Vec<_> = sent
        .answers
        .iter()
        .filter(|one| one.error.is_some())
        .collect();
    if global.json {
        output::line(&serde_json::to_string(&sent).unwrap_or_default());
    } else {
        for one in &sent.answers {
            if let Some(line) = answer(one, sent.answers.len() == 1) {
                output::line(&line);
            }
        }
    }
    match failed.first() {
        None => Ok(()),
        Some(first) => Err(Failure::new(format!(
            "generation {} ({}) gave no answer: {}",
            first.generation,
            first.version,
            harmless(first.error.as_deref().unwrap_or_default())
        ))),
    }
}

/// What a version answered; after its number, unless it is the only one.
fn answer(one: &MessageAnswer, is_only: bool) -> Option<String> {
    let answer = match one.answer.as_ref()? {
        Value::String(text) => harmless(text),
        other => harmless(&other.to_string()),
    };
    Some(match is_only {
        true => answer,
        false => format!("generation {} ({}): {answer}", one.generation, one.version),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_is_json_or_a_text() {
        assert_eq!(read("250"), json!(250));
        assert_eq!(read("[1,true]"), json!([1, true]));
        assert_eq!(read("dark"), json!("dark"));
        assert_eq!(read("\"250\""), json!("250"));
    }

    #[test]
    fn settings_are_shown_with_who_changed_them() {
        let list = serde_json::from_value(json!({
            "app": "shop",
            "settings": [{"key": "rate", "value": 250, "at_ms": 1_790_000_000_000_u64, "by": "ann"}],
            "history": [{"key": "theme", "at_ms": 1_790_000_000_000_u64}],
        }));
        let list: SettingsList = list.unwrap();
        let expected =
            "KEY   VALUE  CHANGED               BY\nrate  250    2026-09-21T14:13:20Z  ann";
        assert_eq!(text(&list, false), expected);
        assert!(changes(&list.history, false).contains("taken away"));
    }

    #[test]
    fn an_answer_that_is_the_only_one_stands_alone() {
        let one = MessageAnswer {
            generation: handover_api::GenerationId(7),
            version: "1.0.0".parse().unwrap(),
            answer: Some(json!("done")),
            error: None,
        };
        assert_eq!(answer(&one, true).unwrap(), "done");
        assert_eq!(answer(&one, false).unwrap(), "generation 7 (1.0.0): done");
    }
}
