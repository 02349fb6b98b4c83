//! Entries as JSON lines: for export and import, and with a header and a digest at the end as a
//! backup.
//!
//! Keys and values that are text are JSON strings, others are base64, so every byte comes back as
//! it was.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use sha2::Digest;

use super::{
    clock::now_ms,
    commit::{Commit, Mutation, StateError},
    engine::Record,
    partition::{Entries, Query, Snapshot},
    place::{Bounds, Namespace, Place, split},
    store::Store,
};

/// The format of a backup.
const FORMAT: u32 = 1;
/// How the first and the last line of a backup begin, as no entry does.
const HEADER: &[u8] = b"{\"handover_state\"";
const FOOTER: &[u8] = b"{\"footer\"";
/// The longest line: a value in base64, or in JSON where each byte is escaped.
const LONGEST_LINE: u64 = 120 << 20;
/// Entries that are imported in one commit.
const AT_ONCE: usize = 500;
/// Bytes of them.
const BYTES_AT_ONCE: usize = 4 << 20;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// The namespace.
    namespace: String,
    /// The key, if it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// The key, if it is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    /// The value, if it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// The value, if it is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    /// When it expires, in milliseconds since 1970; never without this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<u64>,
}

/// The first line of a backup.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    handover_state: u32,
    app: String,
    at_ms: u64,
}

/// The last line of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Footer {
    /// How many entries there are.
    pub entries: u64,
    /// The digest of their lines.
    pub sha256: String,
}

#[derive(Serialize, Deserialize)]
struct FooterLine {
    footer: Footer,
}

/// Why a dump is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DumpError {
    /// It could not be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// A line is none.
    #[error("line {line} is no entry: {reason}")]
    Line {
        /// The line.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// It is no backup, or one that was cut.
    #[error("{0}")]
    NoBackup(String),
    /// The store does not take it.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Bytes as text where they are text, else as base64.
pub(crate) fn text_or_base64(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

impl Entry {
    fn of(memory: bool, place: &[u8], record: Record<'_>) -> Self {
        let (name, key) = split(place);
        let (key, key_base64) = text_or_base64(key);
        let (value, value_base64) = text_or_base64(record.value);
        Self {
            namespace: if memory {
                format!("memory:{name}")
            } else {
                name.to_owned()
            },
            key,
            key_base64,
            value,
            value_base64,
            expires_at_ms: (record.expires_ms != 0).then_some(record.expires_ms),
        }
    }

    /// Its place, its value, when it expires (0 is never), and whether it is kept in memory.
    fn parts(self) -> Result<(bool, Place, Vec<u8>, u64), String> {
        let bytes = |what: &str, text: Option<String>, base64: Option<String>| match (text, base64)
        {
            (Some(text), None) => Ok(text.into_bytes()),
            (None, Some(base64)) => STANDARD
                .decode(base64)
                .map_err(|error| format!("its {what}_base64 is none: {error}")),
            _ => Err(format!(
                "it has to have one of `{what}` and `{what}_base64`"
            )),
        };
        let namespace =
            Namespace::of_backup(&self.namespace).map_err(|error| format!("{error}"))?;
        let key = bytes("key", self.key, self.key_base64)?;
        let value = bytes("value", self.value, self.value_base64)?;
        let place = namespace.place(&key).map_err(|error| error.to_string())?;
        let expires_ms = self.expires_at_ms.unwrap_or(0);
        Ok((namespace.is_memory(), place, value, expires_ms))
    }
}

fn line(value: &impl Serialize) -> Vec<u8> {
    // Our own types of strings and numbers: this cannot fail.
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    text
}

/// Gives the lines of all in `bounds` to `take`, until that says no; with `backup_of`, the name of
/// an app, as a backup. Blocks.
///
/// # Errors
/// When the store cannot be read.
pub(crate) fn write_dump(
    snapshot: &Snapshot,
    memory: bool,
    mut bounds: Bounds,
    backup_of: Option<&str>,
    mut take: impl FnMut(Vec<u8>) -> bool,
) -> Result<Option<Footer>, StateError> {
    let mut digest = sha2::Sha256::new();
    let mut entries = 0;
    if let Some(app) = backup_of {
        let header = Header {
            handover_state: FORMAT,
            app: app.to_owned(),
            at_ms: now_ms(),
        };
        if !take(line(&header)) {
            return Ok(None);
        }
    }
    loop {
        let query = Query {
            bounds: bounds.clone(),
            reverse: false,
            limit: usize::MAX,
        };
        let mut lines = Vec::new();
        let mut last = Vec::new();
        let page = snapshot.scan(&query, |place, record| {
            lines.extend_from_slice(&line(&Entry::of(memory, place, record)));
            last.clear();
            last.extend_from_slice(place);
            entries += 1;
        })?;
        digest.update(&lines);
        if !lines.is_empty() && !take(lines) {
            return Ok(None);
        }
        if !page.more {
            break;
        }
        bounds.resume_behind(&last, false);
    }
    let footer = Footer {
        entries,
        sha256: crate::artifact::Sha256(digest.finalize().into()).to_string(),
    };
    if backup_of.is_some() {
        let last = FooterLine {
            footer: footer.clone(),
        };
        take(line(&last));
    }
    Ok(Some(footer))
}

/// The lines of `from`, each at most as long as an entry can be.
fn next_line(from: &mut impl BufRead, text: &mut Vec<u8>) -> Result<bool, io::Error> {
    text.clear();
    let length = io::Read::take(from, LONGEST_LINE).read_until(b'\n', text)?;
    if length as u64 == LONGEST_LINE {
        return Err(io::Error::other("a line is longer than an entry can be"));
    }
    Ok(length > 0)
}

/// Reads a backup, and gives its entries to `take`. Only at the end it is known whether it is
/// whole. Blocks.
///
/// # Errors
/// When it is no backup, was cut or changed, or when `take` says no.
pub(crate) fn read_dump(
    mut from: impl BufRead,
    mut take: impl FnMut(bool, Place, Vec<u8>, u64) -> Result<(), StateError>,
) -> Result<Footer, DumpError> {
    let mut text = Vec::new();
    let no_backup = |what: &str| DumpError::NoBackup(what.to_owned());
    if !next_line(&mut from, &mut text)? {
        return Err(no_backup("it is empty"));
    }
    let header: Header = serde_json::from_slice(&text)
        .map_err(|_| no_backup("its first line is not that of a backup: `handover state import` takes what `export` gives"))?;
    if header.handover_state != FORMAT {
        return Err(DumpError::NoBackup(format!(
            "it has format {}, and this host knows {FORMAT}",
            header.handover_state
        )));
    }
    let mut digest = sha2::Sha256::new();
    let (mut entries, mut number) = (0, 1);
    while next_line(&mut from, &mut text)? {
        number += 1;
        if text.starts_with(FOOTER) {
            let FooterLine { footer } =
                serde_json::from_slice(&text).map_err(|error| DumpError::Line {
                    line: number,
                    reason: error.to_string(),
                })?;
            let found = Footer {
                entries,
                sha256: crate::artifact::Sha256(digest.finalize().into()).to_string(),
            };
            if found != footer {
                return Err(no_backup("it was changed: its digest is another one"));
            }
            return Ok(footer);
        }
        digest.update(&text);
        entries += 1;
        let (memory, place, value, expires_ms) = parse(&text, number)?;
        take(memory, place, value, expires_ms)?;
    }
    Err(no_backup(
        "it was cut: its last line is not that of a backup",
    ))
}

fn parse(text: &[u8], line: u64) -> Result<(bool, Place, Vec<u8>, u64), DumpError> {
    serde_json::from_slice::<Entry>(text)
        .map_err(|error| error.to_string())
        .and_then(Entry::parts)
        .map_err(|reason| DumpError::Line { line, reason })
}

/// The entries of a backup, for a store that is to become it. Those that have expired since are
/// left out.
pub(super) fn entries_of(file: File) -> Box<Entries> {
    let mut from = BufReader::new(file);
    let mut text = Vec::new();
    let (mut number, mut ended) = (0, false);
    // Its end and its digest were looked at by who asked; here it must not end before that.
    Box::new(std::iter::from_fn(move || {
        while !ended {
            let refuse = |error: DumpError| Some(Err(StateError::Unavailable(error.to_string())));
            match next_line(&mut from, &mut text) {
                Err(error) => return refuse(error.into()),
                Ok(false) => {
                    ended = true;
                    return refuse(DumpError::NoBackup("it was cut".to_owned()));
                }
                Ok(true) => {}
            }
            number += 1;
            if text.starts_with(HEADER) {
                continue;
            }
            if text.starts_with(FOOTER) {
                ended = true;
                break;
            }
            match parse(&text, number) {
                Ok((_, _, _, expires_ms)) if expires_ms != 0 && expires_ms <= now_ms() => {}
                Ok((_, place, value, expires_ms)) => return Some(Ok((place, value, expires_ms))),
                Err(error) => return refuse(error),
            }
        }
        None
    }))
}

/// Looks whether all entries of a backup are in `store`, and nothing else; gives how many. Blocks.
///
/// # Errors
/// What is not as it should be.
pub(crate) fn verify_dump(store: &Store, from: impl BufRead) -> Result<u64, DumpError> {
    let snapshot = store.snapshot(false)?;
    let mut there = 0;
    let mut differs = None;
    read_dump(from, |_, place, value, expires_ms| {
        let (mut same, mut is_there) = (false, false);
        snapshot.get(&place, |record| {
            is_there = true;
            same = record.value == value && record.expires_ms == expires_ms;
        })?;
        there += u64::from(is_there);
        // One that has its time may have had it.
        if !same && (is_there || expires_ms == 0) {
            differs.get_or_insert_with(|| {
                let key = String::from_utf8_lossy(split(place.as_bytes()).1).into_owned();
                format!("restored, the key `{key}` is another one than it was")
            });
        }
        Ok(())
    })?;
    if let Some(differs) = differs {
        return Err(DumpError::NoBackup(differs));
    }
    Ok(there)
}

/// Puts the entries of an export into `store`, some at a time; gives how many. Those before a wrong
/// line stay. Blocks.
///
/// # Errors
/// When a line is none, or the store does not take it.
pub(crate) fn restore_entries(
    store: &Store,
    runtime: &tokio::runtime::Handle,
    mut from: impl BufRead,
) -> Result<u64, DumpError> {
    let mut text = Vec::new();
    let (mut number, mut entries) = (0, 0);
    let mut batches = [Commit::default(), Commit::default()];
    let mut bytes = 0;
    let flush = |batches: &mut [Commit; 2]| -> Result<(), StateError> {
        for (memory, batch) in batches.iter_mut().enumerate() {
            if !batch.mutations.is_empty() {
                let pending = store.commit(memory == 1, std::mem::take(batch));
                runtime.block_on(pending)?;
            }
        }
        Ok(())
    };
    while next_line(&mut from, &mut text)? {
        number += 1;
        if text.starts_with(HEADER) || text.starts_with(FOOTER) {
            continue; // a backup is an export, too
        }
        if text.trim_ascii().is_empty() {
            continue;
        }
        let (memory, place, value, expires_ms) = match parse(&text, number) {
            Ok(parts) => parts,
            Err(error) => {
                flush(&mut batches)?;
                return Err(error);
            }
        };
        let ttl_ms = match expires_ms {
            0 => None,
            at => match at.saturating_sub(now_ms()) {
                0 => continue, // it has expired since
                left => Some(left),
            },
        };
        bytes += value.len();
        entries += 1;
        batches[usize::from(memory)].mutations.push(Mutation::Put {
            place,
            value: value.into(),
            ttl_ms,
        });
        if entries % AT_ONCE as u64 == 0 || bytes > BYTES_AT_ONCE {
            flush(&mut batches)?;
            bytes = 0;
        }
    }
    flush(&mut batches)?;
    Ok(entries)
}
