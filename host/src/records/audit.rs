//! The audit log: who asked the host for which change, and how it ended.
//!
//! One line of JSON for each, in a file that is only appended to and rotated by its size. A thread
//! of its own writes it, so that no call waits for the disk. What cannot be written is kept in
//! memory and written when there is room; with a supervisor it outlives a crash of the host, as
//! what was under way then does.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use handover_api::{AuditEntry, AuditSource, OperationResult, Outcome, query};
use parking_lot::{Condvar, Mutex};

use crate::{clock, config, ownership, records::room::Room, telemetry};

/// How many lines wait in memory for a disk that takes none. What comes beyond that is counted.
const WAITING: usize = 1_000;

/// How long a file that could not be written is left alone.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// How long somebody who reads waits for what was asked for right before.
const READ_WITHIN: Duration = Duration::from_secs(1);

/// How long calls have to end when the host does.
const END_WITHIN: Duration = Duration::from_millis(250);

/// How many lines are read where nobody said how many.
const LINES: usize = 100;

/// How many arguments are written, and how long each is at most, in characters.
const ARGUMENTS: usize = 32;
const ARGUMENT: usize = 256;

/// How long the sentence about a failure is at most, in characters.
const SENTENCE: usize = 1_024;

/// Arguments whose values are nobody's business but the app's.
const SECRET: [&str; 1] = ["value"];

/// The audit log of a host. Cheap to clone; every clone is the same. That of [`Default`] records
/// nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Audit(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    keep: usize,
    max_size: Option<u64>,
    room: Arc<Room>,
    state: Mutex<State>,
    /// There is something to do.
    work: Condvar,
    /// Everything is done that can be.
    idle: Condvar,
    /// Held while lines go to the file and out of the memory, and while the files are renamed.
    files: Mutex<()>,
}

/// The entries at one instant.
struct Snapshot {
    /// The files, the oldest first, each with how much of it counts.
    files: Vec<(File, u64)>,
    /// What is in none of them.
    unwritten: Vec<AuditEntry>,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    /// What is under way.
    begun: BTreeMap<u64, AuditEntry>,
    /// What has ended and is not written.
    waiting: VecDeque<AuditEntry>,
    /// Lines that found no room since that was last written.
    lost: u64,
    /// Whether the thread has not seen all of it.
    is_new: bool,
    /// Whether the last write failed.
    fails: bool,
    is_busy: bool,
    is_closed: bool,
}

/// A change that was asked for and has not ended. One that is dropped broke off.
#[derive(Debug)]
#[must_use = "a change that is dropped broke off"]
pub(crate) struct Begun {
    audit: Audit,
    number: u64,
}

/// A change that somebody asks for now.
pub(crate) fn asked(source: AuditSource, call: impl Into<String>) -> AuditEntry {
    AuditEntry {
        at_ms: clock::now_ms(),
        source,
        call: call.into(),
        app: None,
        arguments: BTreeMap::new(),
        by: None,
        user: None,
        uid: None,
        pid: None,
        status: None,
        operation: None,
        outcome: None,
        artifact: None,
        error: None,
    }
}

/// Writes the arguments of a query into `entry`: the app and who asks at their own places, secrets
/// nowhere.
pub(crate) fn read_arguments(entry: &mut AuditEntry, query: &str) {
    let pairs: Vec<(String, String)> = serde_urlencoded::from_str(query).unwrap_or_default();
    for (name, value) in pairs {
        match name.as_str() {
            "app" => entry.app = value.parse().ok(),
            "by" => entry.by = Some(cut(value, ARGUMENT)),
            secret if SECRET.contains(&secret) => {}
            _ if entry.arguments.len() < ARGUMENTS => {
                entry
                    .arguments
                    .insert(cut(name, ARGUMENT), cut(value, ARGUMENT));
            }
            _ => {}
        }
    }
}

/// Writes into `entry` how its operation ended.
pub(crate) fn ended_as(entry: &mut AuditEntry, result: &OperationResult) {
    entry.outcome = Some(result.outcome);
    if entry.app.is_none() {
        entry.app.clone_from(&result.app);
    }
    entry.artifact.clone_from(&result.artifact);
    if result.outcome.exit_code() != 0 {
        entry.error = Some(result.message.clone());
    }
}

/// The beginning of a text that may be of any length.
fn cut(mut text: String, most: usize) -> String {
    if let Some((at, _)) = text.char_indices().nth(most) {
        text.truncate(at);
        text.push('…');
    }
    text
}

impl Audit {
    /// Starts to write the log of a host with this state directory. What the host before could not
    /// write is written first.
    ///
    /// # Errors
    /// When there is no thread to be had. A file that cannot be written is no error: it is tried
    /// again.
    pub(crate) fn open(
        settings: &config::Audit,
        state: &Path,
        room: Arc<Room>,
    ) -> io::Result<Self> {
        let path = settings.path(state);
        let left = room.kept(&path).unwrap_or_default();
        let waiting: VecDeque<_> = left
            .lines()
            .filter_map(|line| parse(line.as_bytes()))
            .collect();
        let inner = Arc::new(Inner {
            path,
            keep: settings.keep,
            max_size: settings.max_size,
            room,
            state: Mutex::new(State {
                is_new: !waiting.is_empty(),
                waiting,
                ..State::default()
            }),
            work: Condvar::new(),
            idle: Condvar::new(),
            files: Mutex::default(),
        });
        let writes = Arc::clone(&inner);
        thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writes.write_all())?;
        Ok(Self(Some(inner)))
    }

    /// Takes down that `entry` is under way.
    pub(crate) fn begin(&self, entry: AuditEntry) -> Begun {
        let mut number = 0;
        if let Some(inner) = &self.0 {
            let mut state = inner.state.lock();
            state.last += 1;
            number = state.last;
            state.begun.insert(number, entry);
            state.is_new = true;
            drop(state);
            inner.work.notify_one();
        }
        Begun {
            audit: self.clone(),
            number,
        }
    }

    /// Takes down something that has ended as soon as it was asked for.
    pub(crate) fn record(&self, entry: AuditEntry) {
        self.begin(entry)
            .ended(|entry| entry.outcome = Some(Outcome::Done));
    }

    /// Returns the newest entries that are asked for, the newest last. Blocks.
    ///
    /// # Errors
    /// When a file is there and cannot be read.
    pub(crate) fn read(&self, asked: &query::Audit) -> io::Result<Vec<AuditEntry>> {
        let Some(inner) = &self.0 else {
            return Ok(Vec::new());
        };
        inner.settle(READ_WITHIN);
        let Snapshot { files, unwritten } = inner.snapshot()?;
        let limit = asked.limit.unwrap_or(LINES);
        let mut found = VecDeque::new();
        let mut take = |entry: AuditEntry| {
            let is_of_app = asked.app.is_none() || asked.app == entry.app;
            let is_recent = asked.since_ms.is_none_or(|since| entry.at_ms >= since);
            if limit == 0 || !is_of_app || !is_recent {
                return;
            }
            if found.len() == limit {
                found.pop_front();
            }
            found.push_back(entry);
        };
        for (file, length) in files {
            let mut lines = BufReader::new(file.take(length));
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line)? > 0 {
                // Half a line, or somebody else's.
                if let Some(entry) = parse(&line) {
                    take(entry);
                }
                line.clear();
            }
        }
        unwritten.into_iter().for_each(take);
        Ok(found.into())
    }

    /// Writes what is left, for the host ends: what is under way then broke off. Blocks.
    pub(crate) fn close(&self) {
        let Some(inner) = &self.0 else { return };
        let by = Instant::now() + END_WITHIN;
        let mut state = inner.state.lock();
        while !state.begun.is_empty() && !inner.idle.wait_until(&mut state, by).timed_out() {}
        let broken: Vec<_> = std::mem::take(&mut state.begun).into_values().collect();
        for entry in broken {
            state.put(broke_off(entry));
        }
        state.is_new = true;
        state.is_closed = true;
        drop(state);
        inner.work.notify_one();
        inner.settle(READ_WITHIN);
    }
}

impl Begun {
    /// Takes down how it ended.
    pub(crate) fn ended(self, how: impl FnOnce(&mut AuditEntry)) {
        self.finish(how);
    }

    fn finish(&self, how: impl FnOnce(&mut AuditEntry)) {
        let Some(inner) = &self.audit.0 else { return };
        let mut state = inner.state.lock();
        // What has ended twice, or after the log was closed, is not there.
        let Some(mut entry) = state.begun.remove(&self.number) else {
            return;
        };
        how(&mut entry);
        entry.error = entry.error.map(|error| cut(error, SENTENCE));
        state.put(entry);
        state.is_new = true;
        drop(state);
        inner.work.notify_one();
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.finish(|entry| {
            entry.outcome = Some(Outcome::Failed);
            entry.error = Some("it broke off inside the host".to_owned());
        });
    }
}

/// What is said of what was under way when the host ended.
fn broke_off(mut entry: AuditEntry) -> AuditEntry {
    entry.outcome = Some(Outcome::Failed);
    entry.error = Some("the host ended before this had".to_owned());
    entry
}

fn parse(line: &[u8]) -> Option<AuditEntry> {
    serde_json::from_slice(line).ok()
}

fn line(entry: &AuditEntry) -> Vec<u8> {
    // Our own type of strings and numbers: this cannot fail.
    let mut line = serde_json::to_vec(entry).unwrap_or_default();
    line.push(b'\n');
    line
}

impl State {
    fn put(&mut self, entry: AuditEntry) {
        if self.waiting.len() < WAITING {
            self.waiting.push_back(entry);
        } else {
            self.lost += 1;
        }
    }

    fn is_settled(&self) -> bool {
        !self.is_new && !self.is_busy && (self.waiting.is_empty() || self.fails)
    }

    /// The entries whose user has no name yet.
    fn nameless(&mut self) -> impl Iterator<Item = &mut AuditEntry> {
        let all = self.begun.values_mut().chain(&mut self.waiting);
        all.filter(|entry| entry.user.is_none() && entry.uid.is_some())
    }
}

impl Inner {
    fn write_all(&self) {
        let mut names = HashMap::new();
        while self.wait_for_work() {
            self.name_users(&mut names);
            self.write();
            let mut state = self.state.lock();
            state.is_busy = false;
            drop(state);
            self.idle.notify_all();
        }
    }

    /// Waits for something to do; returns whether there is anything to come.
    fn wait_for_work(&self) -> bool {
        let mut state = self.state.lock();
        while !state.is_new {
            if state.is_closed {
                return false;
            }
            if state.waiting.is_empty() {
                self.work.wait(&mut state);
            } else if self.work.wait_for(&mut state, TRY_AGAIN).timed_out() {
                break;
            }
        }
        state.is_new = false;
        state.is_busy = true;
        true
    }

    /// Finds the names of users. The system's list of them may be a server far away.
    fn name_users(&self, names: &mut HashMap<u32, String>) {
        let unknown: Vec<u32> = {
            let mut state = self.state.lock();
            let uids = state.nameless().filter_map(|entry| entry.uid);
            uids.filter(|uid| !names.contains_key(uid)).collect()
        };
        for uid in unknown {
            names
                .entry(uid)
                .or_insert_with(|| ownership::user_name(uid));
        }
        for entry in self.state.lock().nameless() {
            entry.user = entry.uid.and_then(|uid| names.get(&uid).cloned());
        }
    }

    fn write(&self) {
        let _files = self.files.lock();
        let (mut lines, count, lost) = {
            let state = self.state.lock();
            let lines: Vec<u8> = state.waiting.iter().flat_map(line).collect();
            (lines, state.waiting.len(), state.lost)
        };
        if lost > 0 {
            let mut told = asked(AuditSource::Host, "audit");
            told.error = Some(format!(
                "{lost} changes are not in this log: it could not be written for too long"
            ));
            lines.extend(line(&told));
        }
        let written = if lines.is_empty() {
            Ok(())
        } else {
            self.append(&lines)
        };
        let mut state = self.state.lock();
        let failed_before = state.fails;
        state.fails = written.is_err();
        if written.is_ok() {
            state.waiting.drain(..count);
            state.lost -= lost;
        }
        // For the host after a crash: what is not written, and what would have broken off.
        let waiting = state.waiting.iter().flat_map(line);
        let begun = state.begun.values().cloned();
        let broken = begun.flat_map(|entry| line(&broke_off(entry)));
        let left: Vec<u8> = waiting.chain(broken).collect();
        drop(state);
        self.room
            .keep(&self.path, (!left.is_empty()).then_some(&left));
        let file = self.path.display();
        match written {
            Err(error) if !failed_before => {
                tracing::error!(
                    "the audit log {file} cannot be written: {error}; what is asked of the host is kept in memory until it can (audit.file)"
                );
            }
            Ok(()) if failed_before => tracing::info!("the audit log {file} is written again"),
            _ => {}
        }
    }

    /// Appends `lines` as a whole, onto the disk, or nothing of them.
    ///
    /// The file is not kept open: a file system is made read-only while nobody has a file of it
    /// open for writing, and somebody may rename this one.
    fn append(&self, lines: &[u8]) -> io::Result<()> {
        let mut file = self.open()?;
        let before = file.metadata()?.len();
        let written = file.write_all(lines).and_then(|()| file.sync_data());
        if let Err(error) = written {
            // Where this fails as well, half a line is left, which nobody reads.
            let _ = file.set_len(before);
            return Err(error);
        }
        let length = before + lines.len() as u64;
        if self.max_size.is_some_and(|most| length >= most) {
            // What cannot be renamed is written on.
            let _ = telemetry::rotate(&self.path, self.keep);
        }
        Ok(())
    }

    fn open(&self) -> io::Result<File> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)?;
        if file.metadata()?.len() > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            // The machine went down in the middle of a line.
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        Ok(file)
    }

    /// Waits until everything is written that can be, for `deadline` at the longest. Blocks.
    fn settle(&self, deadline: Duration) {
        let by = Instant::now() + deadline;
        let mut state = self.state.lock();
        while !state.is_settled() && !self.idle.wait_until(&mut state, by).timed_out() {}
    }

    /// What there is now.
    fn snapshot(&self) -> io::Result<Snapshot> {
        let _files = self.files.lock();
        let old = (1..=self.keep).rev();
        let paths = old.map(|number| telemetry::rotated(&self.path, number));
        let mut files = Vec::new();
        for path in paths.chain([self.path.clone()]) {
            match File::open(&path) {
                Ok(file) => {
                    let length = file.metadata()?.len();
                    files.push((file, length));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let state = self.state.lock();
        let unwritten = state.waiting.iter().chain(state.begun.values());
        Ok(Snapshot {
            files,
            unwritten: unwritten.cloned().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::spill::{Spill, SpillFile};

    fn open(folder: &Path, max_size: u64, spill: Option<&SpillFile>) -> Audit {
        let settings = config::Audit {
            max_size: Some(max_size),
            keep: 2,
            ..config::Audit::default()
        };
        let spill = spill.map(|file| Spill::of(std::process::id(), file.number()).unwrap());
        let room = Arc::new(Room::in_state(folder, spill));
        Audit::open(&settings, folder, room).unwrap()
    }

    fn change(call: &str) -> AuditEntry {
        asked(AuditSource::Control, call)
    }

    fn calls(audit: &Audit) -> Vec<String> {
        let entries = audit.read(&query::Audit::default()).unwrap();
        entries.into_iter().map(|entry| entry.call).collect()
    }

    #[test]
    fn lines_are_read_across_the_files_and_the_oldest_file_goes() {
        let folder = tempfile::tempdir().unwrap();
        let audit = open(folder.path(), 1, None);
        for call in ["a", "b", "c", "d"] {
            audit.record(change(call));
            // Each is the only line of its file.
            audit.0.as_ref().unwrap().settle(Duration::from_secs(60));
        }
        assert_eq!(calls(&audit), ["c", "d"]);
        let newest = folder.path().join("audit.jsonl.1");
        let mode = fs::metadata(&newest).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(fs::read_to_string(&newest).unwrap().contains("\"d\""));
    }

    #[test]
    fn what_cannot_be_written_is_kept_and_written_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        // Nothing is appended to a folder.
        fs::create_dir(&path).unwrap();
        let settings = config::Audit::default();
        let room = Arc::new(Room::in_state(folder.path(), None));
        let audit = Audit::open(&settings, folder.path(), room).unwrap();
        for call in ["a", "b"] {
            audit.record(change(call));
        }
        audit.0.as_ref().unwrap().settle(Duration::from_secs(60));
        fs::remove_dir(&path).unwrap();
        audit.record(change("c"));
        assert_eq!(calls(&audit), ["a", "b", "c"]);
        audit.close();
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 3);
    }

    #[test]
    fn half_a_line_costs_itself_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("audit.jsonl"), "{\"at_ms\":1,\"so").unwrap();
        let audit = open(folder.path(), 1 << 20, None);
        audit.record(change("a"));
        assert_eq!(calls(&audit), ["a"]);
    }

    #[test]
    fn what_was_under_way_in_a_crash_is_written_by_the_next_host() {
        let folder = tempfile::tempdir().unwrap();
        let spill = SpillFile::create().unwrap();
        let crashed = open(folder.path(), 1 << 20, Some(&spill));
        let begun = crashed.begin(change("deploy"));
        crashed.0.as_ref().unwrap().settle(Duration::from_secs(60));
        let next = open(folder.path(), 1 << 20, Some(&spill));
        let entries = next.read(&query::Audit::default()).unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].outcome, Some(Outcome::Failed));
        let why = entries[0].error.as_deref();
        assert_eq!(why, Some("the host ended before this had"));
        drop(begun);
    }

    #[test]
    fn arguments_are_short_and_no_secrets() {
        let mut entry = change("PUT /v1/settings");
        let long = "x".repeat(1000);
        read_arguments(
            &mut entry,
            &format!("app=shop&by=ann&key=theme&value=secret&message={long}"),
        );
        assert_eq!(entry.app.unwrap().as_str(), "shop");
        assert_eq!(entry.by.as_deref(), Some("ann"));
        assert_eq!(
            entry.arguments.keys().collect::<Vec<_>>(),
            ["key", "message"]
        );
        assert_eq!(entry.arguments["message"].chars().count(), ARGUMENT + 1);
    }

    #[test]
    fn only_what_is_asked_for_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let audit = open(folder.path(), 1 << 20, None);
        for (at_ms, app) in [(1, "shop"), (2, "blog"), (3, "shop"), (4, "shop")] {
            audit.record(AuditEntry {
                at_ms,
                app: app.parse().ok(),
                ..change("a")
            });
        }
        let read = |asked: query::Audit| -> Vec<u64> {
            let entries = audit.read(&asked).unwrap();
            entries.into_iter().map(|entry| entry.at_ms).collect()
        };
        let of_shop = query::Audit {
            app: "shop".parse().ok(),
            ..query::Audit::default()
        };
        assert_eq!(read(of_shop.clone()), [1, 3, 4]);
        let since_ms = Some(2);
        let limit = Some(1);
        assert_eq!(
            read(query::Audit {
                since_ms,
                ..of_shop.clone()
            }),
            [3, 4]
        );
        assert_eq!(read(query::Audit { limit, ..of_shop }), [4]);
    }
}
