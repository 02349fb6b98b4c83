//! The last records of the log, in memory: for who asks the host instead of looking for its log.
//!
//! Who logs puts a record in and touches nothing else: no waker of a reader, no queue that could be
//! full. Readers come back for what is new, from the number that they know.

use std::{collections::VecDeque, mem, sync::Arc, time::UNIX_EPOCH};

use handover_api::{AppName, GenerationId, LogLevel, LogRecord};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tracing::Level;

use super::line::{Entry, Line};
use crate::{clock, shown};

/// How many bytes of records are kept at most: some thousand of them.
const MOST_BYTES: usize = 2 << 20;

/// The longest text of a record, in bytes. A record with more has the beginning of each, so that
/// one does not take the place of all others.
const LONGEST: usize = 16 << 10;

/// The last records of the log. Cheap to clone; every clone is the same.
#[derive(Clone, Debug)]
pub(crate) struct Recent(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Tells the records of this run of the host from those of another.
    run: String,
    ring: Mutex<Ring>,
}

/// Records with numbers that follow on each other, up to `last`.
#[derive(Debug, Default)]
struct Ring {
    last: u64,
    bytes: usize,
    records: VecDeque<Arc<Line>>,
}

/// Some records, in order.
#[derive(Debug)]
pub(crate) struct Batch {
    /// How many there were between the number that was asked for and the first of these.
    pub(crate) lost: u64,
    /// The number of the first of these; without any, of the next one to come.
    pub(crate) first: u64,
    /// The records.
    pub(crate) records: Vec<Kept>,
}

/// One record.
#[derive(Clone, Debug)]
pub(crate) struct Kept(Arc<Line>);

impl Recent {
    /// None so far.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            run: format!("{}.{}", std::process::id(), clock::now_ms()),
            ring: Mutex::default(),
        }))
    }

    /// Keeps `line`; the oldest make room for it.
    pub(super) fn keep(&self, mut line: Line) {
        shorten(&mut line);
        let size = size(&line);
        let line = Arc::new(line);
        // What is dropped is dropped behind the lock.
        let mut removed = Vec::new();
        let mut ring = self.0.ring.lock();
        ring.last += 1;
        ring.bytes += size;
        ring.records.push_back(line);
        while ring.bytes > MOST_BYTES
            && let Some(oldest) = ring.records.pop_front()
        {
            ring.bytes -= self::size(&oldest);
            removed.push(oldest);
        }
        drop(ring);
    }

    /// The run of the host that the numbers are of.
    pub(crate) fn run(&self) -> &str {
        &self.0.run
    }

    /// The number of the last record.
    pub(crate) fn last(&self) -> u64 {
        self.0.ring.lock().last
    }

    /// The records after the number `since`, at most `most` of them.
    pub(crate) fn after(&self, since: u64, most: usize) -> Batch {
        let ring = self.0.ring.lock();
        let gone = ring.last - ring.records.len() as u64;
        let skipped = since.min(ring.last).saturating_sub(gone);
        let records = ring.records.iter();
        Batch {
            lost: gone.saturating_sub(since),
            first: gone + skipped + 1,
            // As many as there are in memory fit into a usize.
            records: records
                .skip(skipped as usize)
                .take(most)
                .map(|line| Kept(Arc::clone(line)))
                .collect(),
        }
    }
}

impl Kept {
    /// How much it matters.
    pub(crate) fn level(&self) -> LogLevel {
        match self.0.level {
            Level::ERROR => LogLevel::Error,
            Level::WARN => LogLevel::Warn,
            Level::INFO => LogLevel::Info,
            Level::DEBUG => LogLevel::Debug,
            Level::TRACE => LogLevel::Trace,
        }
    }

    /// The name of the app that it is about, as it was logged.
    pub(crate) fn app(&self) -> Option<&str> {
        self.field("app")?.as_str()
    }

    /// The generation that it is about.
    pub(crate) fn generation(&self) -> Option<u64> {
        match self.field("generation")? {
            Value::Number(number) => number.as_u64(),
            // By its `Display`.
            Value::String(text) => text.parse().ok(),
            _ => None,
        }
    }

    fn field(&self, name: &str) -> Option<&Value> {
        let field = self.0.fields.iter().find(|field| field.name == name);
        field.map(|field| &field.value)
    }

    /// The record as others read it, with its number in `run`.
    pub(crate) fn record(&self, seq: u64, run: &str) -> LogRecord {
        let line = &self.0;
        let app: Option<AppName> = self.app().and_then(|name| name.parse().ok());
        let generation = self.generation().map(GenerationId);
        let is_told = |field: &&Entry| {
            field.name == "app" && app.is_some()
                || field.name == "generation" && generation.is_some()
        };
        let fields = line.fields.iter().filter(|field| !is_told(field));
        let fields: Map<String, Value> = fields
            .map(|field| (field.name.to_owned(), field.value.clone()))
            .collect();
        let since_1970 = line.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        LogRecord {
            seq,
            run: run.to_owned(),
            at_ms: clock::millis(since_1970),
            level: self.level(),
            app,
            generation,
            target: line.target.clone(),
            message: line.message.clone(),
            fields,
            lost: None,
        }
    }
}

/// Cuts what is too long, which says so.
fn shorten(line: &mut Line) {
    let fields = line.fields.iter_mut();
    let texts = fields.filter_map(|field| match &mut field.value {
        Value::String(text) => Some(text),
        _ => None,
    });
    for text in texts.chain([&mut line.message, &mut line.target]) {
        if text.len() > LONGEST {
            *text = shown::truncate(mem::take(text), LONGEST);
            text.shrink_to_fit();
        }
    }
}

/// About how many bytes of memory a record takes.
fn size(line: &Line) -> usize {
    let text = |value: &Value| value.as_str().map_or(0, str::len);
    let fields = line.fields.iter().map(|field| text(&field.value));
    size_of::<Line>()
        + line.target.len()
        + line.message.len()
        + line.fields.capacity() * size_of::<Entry>()
        + fields.sum::<usize>()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use std::time::SystemTime;

    use super::*;

    fn line(message: impl Into<String>) -> Line {
        Line {
            at: SystemTime::now(),
            level: Level::INFO,
            target: "handover::apps".to_owned(),
            message: message.into(),
            fields: Vec::new(),
        }
    }

    #[test]
    fn each_record_is_read_once_from_where_one_was() {
        let recent = Recent::new();
        assert_eq!(recent.after(0, 10).records.len(), 0);
        for number in 1..=5 {
            recent.keep(line(number.to_string()));
        }
        let batch = recent.after(2, 2);
        assert_eq!((batch.lost, batch.first), (0, 3));
        let messages: Vec<_> = batch.records.iter().map(|one| &*one.0.message).collect();
        assert_eq!(messages, ["3", "4"]);
        let end = recent.after(5, 2);
        assert_eq!((end.lost, end.first, end.records.len()), (0, 6, 0));
        // A number that there is not yet is that of the last.
        assert_eq!(recent.after(9, 2).first, 6);
    }

    #[test]
    fn memory_is_bounded_and_what_made_room_is_counted() {
        let recent = Recent::new();
        let written = 4 * MOST_BYTES / (1 << 10);
        for _ in 0..written {
            recent.keep(line("x".repeat(1 << 10)));
        }
        let batch = recent.after(7, usize::MAX);
        let kept: usize = batch.records.iter().map(|one| size(&one.0)).sum();
        assert!(kept <= MOST_BYTES && kept > MOST_BYTES / 2, "{kept}");
        assert_eq!(7 + batch.lost + batch.records.len() as u64, written as u64);
        assert_eq!(batch.first, 7 + batch.lost + 1);
    }

    #[test]
    fn one_long_record_does_not_take_the_place_of_the_others() {
        let recent = Recent::new();
        recent.keep(line("first"));
        recent.keep(line("é".repeat(MOST_BYTES)));
        let batch = recent.after(0, 10);
        assert_eq!((batch.lost, batch.records.len()), (0, 2));
        let record = batch.records[1].record(2, recent.run());
        assert!(record.message.len() < LONGEST + 100);
        assert!(record.message.ends_with(" more bytes)"));
    }
}
