//! How a line of the log looks: as text, as JSON, or as an entry of the journal.

use std::{
    fmt::{self, Write as _},
    time::SystemTime,
};

use serde_json::Value;
use tracing::{
    Event, Level,
    field::{Field, Visit},
};

use crate::shown::push_harmless;

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// For people.
    Text {
        /// With colours.
        colour: bool,
    },
    /// One JSON object a line.
    Json,
    /// The fields of an entry, as systemd's journal takes them in a datagram.
    Journal,
}

/// What one event says.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) at: SystemTime,
    pub(super) level: Level,
    pub(super) target: String,
    pub(super) message: String,
    pub(super) fields: Vec<Entry>,
}

/// One field of an event.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: &'static str,
    pub(super) value: Value,
    kind: Kind,
}

/// How the value of a field was given.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// As a number, a truth, or a text, which is quoted.
    Value,
    /// By its own `Display` or `Debug`.
    Shown,
}

/// What `event` says, now.
pub(super) fn of(event: &Event<'_>) -> Line {
    let mut line = Line {
        at: SystemTime::now(),
        level: *event.metadata().level(),
        target: event.metadata().target().to_owned(),
        message: String::new(),
        fields: Vec::new(),
    };
    event.record(&mut line);
    line
}

/// The line in which the log itself says `message`.
pub(super) fn of_log(message: &str, style: Style) -> Vec<u8> {
    Line {
        at: SystemTime::now(),
        level: Level::WARN,
        target: module_path!().to_owned(),
        message: message.to_owned(),
        fields: Vec::new(),
    }
    .write(style)
}

impl Line {
    /// The bytes of the line, with its end.
    pub(super) fn write(&self, style: Style) -> Vec<u8> {
        match style {
            Style::Text { colour } => self.text(colour),
            Style::Json => self.json(),
            Style::Journal => self.journal(),
        }
    }

    fn text(&self, colour: bool) -> Vec<u8> {
        let (dim, italic, end) = if colour {
            ("\x1b[2m", "\x1b[3m", "\x1b[0m")
        } else {
            ("", "", "")
        };
        let level = match (colour, self.level) {
            (false, _) => "",
            (true, Level::ERROR) => "\x1b[31m",
            (true, Level::WARN) => "\x1b[33m",
            (true, Level::INFO) => "\x1b[32m",
            (true, Level::DEBUG) => "\x1b[34m",
            (true, _) => "\x1b[35m",
        };
        let now = humantime::format_rfc3339_micros(self.at);
        let mut text = format!("{dim}{now}{end} {level}{:>5}{end} ", self.level);
        push_harmless(&self.message, &mut text);
        for Entry { name, value, kind } in &self.fields {
            // Writing to a string does not fail.
            let _ = write!(text, " {italic}{name}{end}{dim}={end}");
            match (kind, value.as_str()) {
                (Kind::Shown, Some(value)) => push_harmless(value, &mut text),
                (Kind::Value, _) | (Kind::Shown, None) => {
                    let _ = write!(text, "{value}");
                }
            }
        }
        text.push('\n');
        text.into_bytes()
    }

    fn json(&self) -> Vec<u8> {
        let now = humantime::format_rfc3339_micros(self.at).to_string();
        let mut line = String::from("{");
        let mut put = |name: &str, value: &Value| {
            let comma = if line.len() > 1 { "," } else { "" };
            let _ = write!(line, "{comma}{}:{value}", Value::from(name));
        };
        put("timestamp", &now.into());
        put("level", &self.level.as_str().into());
        put("message", &self.message.as_str().into());
        for Entry { name, value, .. } in &self.fields {
            put(name, value);
        }
        put("target", &self.target.as_str().into());
        line.push_str("}\n");
        line.into_bytes()
    }

    /// See `systemd.journal-fields(7)` and the journal's native protocol.
    fn journal(&self) -> Vec<u8> {
        let priority = match self.level {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            _ => "7",
        };
        let mut entry = Vec::new();
        let mut put = |name: &str, value: &str| {
            entry.extend_from_slice(name.as_bytes());
            if value.contains('\n') {
                entry.push(b'\n');
                entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
            } else {
                entry.push(b'=');
            }
            entry.extend_from_slice(value.as_bytes());
            entry.push(b'\n');
        };
        put("MESSAGE", &self.message);
        put("PRIORITY", priority);
        put("SYSLOG_IDENTIFIER", "handover");
        put("TARGET", &self.target);
        for Entry { name, value, .. } in &self.fields {
            let name: String = name
                .chars()
                .map(|letter| match letter.to_ascii_uppercase() {
                    letter @ ('A'..='Z' | '0'..='9') => letter,
                    _ => '_',
                })
                .collect();
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            put(&format!("HANDOVER_{name}"), &value);
        }
        entry
    }

    fn add(&mut self, field: &Field, value: Value, kind: Kind) {
        match (field.name(), value) {
            ("message", Value::String(message)) => self.message = message,
            ("message", value) => self.message = value.to_string(),
            // Records of the `log` crate bring what is theirs along as fields.
            ("log.target", Value::String(target)) => self.target = target,
            (name, _) if name.starts_with("log.") => {}
            (name, value) => self.fields.push(Entry {
                name: name.trim_start_matches("r#"),
                value,
                kind,
            }),
        }
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // A value whose own formatting fails is told as far as it came: `to_string` would panic.
        let mut text = String::new();
        if write!(text, "{value:?}").is_err() {
            text.push_str(" (its formatting failed)");
        }
        self.add(field, text.into(), Kind::Shown);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.into(), Kind::Value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into(), Kind::Value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into(), Kind::Value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into(), Kind::Value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.into(), Kind::Value);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    fn line() -> Line {
        Line {
            at: SystemTime::now(),
            level: Level::WARN,
            target: "handover::apps".to_owned(),
            message: "one\ntwo \x1b[31m".to_owned(),
            fields: vec![
                Entry {
                    name: "app",
                    value: "shop\u{7}\n2026-01-01 ERROR forged".into(),
                    kind: Kind::Shown,
                },
                Entry {
                    name: "path",
                    value: "/a b".into(),
                    kind: Kind::Value,
                },
                Entry {
                    name: "took-ms",
                    value: 7.into(),
                    kind: Kind::Value,
                },
            ],
        }
    }

    #[test]
    fn no_text_forges_a_line_or_steers_a_terminal() {
        let text = String::from_utf8(line().write(Style::Text { colour: false })).unwrap();
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(humantime::parse_rfc3339(time).is_ok(), "{time}");
        assert_eq!(
            rest,
            " WARN one\n    two \\u{1b}[31m app=shop\\u{7}\n    2026-01-01 ERROR forged path=\"/a b\" took-ms=7\n"
        );
    }

    #[test]
    fn json_is_one_object_in_one_line() {
        let text = String::from_utf8(line().write(Style::Json)).unwrap();
        assert_eq!(text.matches('\n').count(), 1);
        let object: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["level"], "WARN");
        assert_eq!(object["message"], "one\ntwo \x1b[31m");
        assert_eq!(object["took-ms"], 7);
        assert_eq!(object["target"], "handover::apps");
    }

    #[test]
    fn a_value_of_several_lines_goes_to_the_journal_with_its_length() {
        let entry = line().write(Style::Journal);
        let mut expected = b"MESSAGE\n\x0d\0\0\0\0\0\0\0one\ntwo \x1b[31m\nPRIORITY=4\n".to_vec();
        expected.extend_from_slice(b"SYSLOG_IDENTIFIER=handover\nTARGET=handover::apps\n");
        assert!(entry.starts_with(&expected), "{entry:?}");
        assert!(entry.ends_with(b"HANDOVER_PATH=/a b\nHANDOVER_TOOK_MS=7\n"));
    }
}
