//! The journal of the running host, for the one after it: what is live, what is being made live,
//! and the crashes of late.
//!
//! The file, `<state>/running.json`, is there while the host runs. It goes at a clean end, so a
//! start that finds it knows that the host before did not end cleanly. It is replaced as a whole,
//! but not synced: it is about crashes of the process, which the kernel's memory survives.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    ops::Range,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use handover_api::{AppName, Cause, GenerationId};
use parking_lot::Mutex;
use rustix::fs::FallocateFlags;
use semver::Version;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::{
    artifact::Sha256,
    clock::{self, since_boot_ms},
    generation::Generation,
    ledger::{self, AccountId, LastWords},
    origin::origin,
    records::room::Room,
    shortage,
};

/// The file in the state directory by which systemd says how the host ended: see
/// docs/systemd/handover.service.
const SAID_BY_SYSTEMD: &str = "crashed";

/// The file in the state directory with the last words of a host that has no supervisor.
const LAST_WORDS: &str = "last-words";

/// How many replaced generations the journal knows, which is more than there are between two that
/// are mapped at one place.
const REPLACED: usize = 64;

/// The journal of the running host.
#[derive(Clone, Debug)]
pub(crate) struct Journal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    written: Mutex<Written>,
    room: Arc<Room>,
    /// Whether the file says less than that. Changed while `written` is locked.
    is_behind: AtomicBool,
    /// A clean end was written down: nothing else is.
    ended: AtomicBool,
}

/// What the journal says.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Written {
    /// The host.
    pub(crate) pid: u32,
    /// The host before it whose crash has been seen to.
    pub(crate) answered: Option<u32>,
    /// The boot of the machine that the times here count from, in milliseconds.
    pub(crate) boot: String,
    /// When it started.
    pub(crate) since_ms: u64,
    /// What is live.
    pub(crate) live: BTreeMap<AppName, Lived>,
    /// What was replaced, oldest first.
    pub(crate) replaced: Vec<Replaced>,
    /// Crashes that count, oldest first.
    pub(crate) crashes: Vec<Crash>,
    /// What is being made live.
    pub(crate) trying: BTreeMap<AppName, Tried>,
    /// What crashed the host when it was started again, and has not come up since.
    pub(crate) left_out: BTreeMap<AppName, LeftOut>,
}

/// How a host crashed.
#[derive(Clone, Debug, Default)]
pub struct Crashed {
    /// `SIGSEGV`, or an exit code.
    pub how: String,
    /// Which process it was, where that is known.
    pub pid: Option<u32>,
    /// What it said of it.
    pub last_words: Option<LastWords>,
}

/// How far an artifact is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Step {
    /// None of its code runs in this process.
    Checked,
    /// Its code runs for the first time in this process.
    Loaded,
    /// It takes requests, which is not written down yet.
    Live,
}

/// An artifact that is being made live.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Tried {
    /// How far it is.
    pub(crate) step: Step,
    /// Its identity.
    pub(crate) artifact: Sha256,
    /// The version of its manifest.
    pub(crate) version: Version,
    /// The generation that it was to be, once it has one.
    pub(crate) generation: Option<GenerationId>,
    /// Why it was tried, as the history has it.
    pub(crate) cause: Cause,
    /// Where it came from.
    pub(crate) source: Option<String>,
}

/// An artifact that crashed the host when it was started again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeftOut {
    /// Its identity.
    pub(crate) artifact: Sha256,
    /// How often.
    pub(crate) crashes: u32,
    /// Why, for people.
    pub(crate) reason: String,
}

/// What was live of an app.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Lived {
    pub(crate) artifact: Sha256,
    pub(crate) generation: GenerationId,
    pub(crate) version: Version,
    pub(crate) since_ms: u64,
    /// Where its library is mapped.
    range: Range<u64>,
    /// The name of its library in the ledger.
    account: AccountId,
    /// The bytes of its heap when it became live, and when it was measured last.
    pub(crate) heap: (u64, u64),
}

impl Lived {
    /// Whether its library is, or was, mapped at `address`.
    pub(crate) fn is_mapped_at(&self, address: u64) -> bool {
        self.range.contains(&address)
    }

    /// The name of its library in the ledger.
    pub(crate) fn account(&self) -> Option<AccountId> {
        (self.account != 0).then_some(self.account)
    }

    #[cfg(test)]
    pub(crate) fn mapped_at(
        generation: GenerationId,
        range: Range<u64>,
        account: AccountId,
    ) -> Self {
        Self {
            artifact: Sha256([1; 32]),
            generation,
            version: Version::new(1, 0, 0),
            since_ms: 0,
            range,
            account,
            heap: (0, 0),
        }
    }
}

/// A generation that was replaced.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Replaced {
    pub(crate) app: AppName,
    pub(crate) lived: Lived,
    /// When its library was unmapped, or its end began, in milliseconds, as [`Written::boot`] says.
    /// It may have been retained since.
    pub(crate) left_at_ms: Option<u64>,
}

/// A crash of the host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Crash {
    /// In milliseconds, as [`Written::boot`] says.
    pub(crate) at_ms: u64,
    pub(crate) how: String,
}

impl Written {
    /// How long ago the time `at_ms` of this journal is; none when the machine was booted in
    /// between.
    pub(crate) fn age_ms(&self, at_ms: u64) -> Option<u64> {
        (self.boot == clock::boot()).then(|| since_boot_ms().saturating_sub(at_ms))
    }
}

impl Lived {
    fn of(generation: &Generation, heap: Option<u64>) -> Self {
        let spec = generation.spec();
        let range = generation.range();
        Self {
            artifact: spec.artifact,
            generation: spec.id,
            version: spec.version.clone(),
            since_ms: since_boot_ms(),
            range: range.start as u64..range.end as u64,
            account: generation.account(),
            heap: (heap.unwrap_or_default(), heap.unwrap_or_default()),
        }
    }
}

impl Replaced {
    /// Whether its library was mapped elsewhere than that of `lived`.
    fn is_elsewhere(&self, lived: &Lived) -> bool {
        let own = &self.lived.range;
        own.end <= lived.range.start || lived.range.end <= own.start
    }
}

impl Journal {
    /// The journal in `state`, which is not touched before [`Journal::open`].
    pub(crate) fn new(state: &Path, room: Arc<Room>) -> Self {
        Self(Arc::new(Inner {
            path: state.join("running.json"),
            written: Mutex::default(),
            room,
            is_behind: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        }))
    }

    /// Begins the journal of this host. Gives what the host before left, if it did not end cleanly.
    pub(crate) fn open(&self) -> Option<Written> {
        let kept = self.0.room.kept(&self.0.path).map(String::into_bytes);
        let before = kept
            .or_else(|| fs::read(&self.0.path).ok())
            // What cannot be read blames nobody.
            .map(|bytes| serde_json::from_slice::<Written>(&bytes).unwrap_or_default())
            .map(|mut before| {
                if before.boot != clock::boot() {
                    // No time of it can be compared with one of this boot.
                    before.crashes.clear();
                }
                before
            });
        self.change(|written| {
            written.pid = std::process::id();
            written.boot = clock::boot();
            written.since_ms = since_boot_ms();
            written.crashes = before
                .as_ref()
                .map(|before| before.crashes.clone())
                .unwrap_or_default();
            written.left_out = before
                .as_ref()
                .map(|before| before.left_out.clone())
                .unwrap_or_default();
        });
        before
    }

    /// `generation` is about to be up beside what is live. It is among those that were replaced, of
    /// which none has left.
    pub(crate) fn beside(&self, generation: &Generation, heap: Option<u64>) {
        let lived = Lived::of(generation, heap);
        let app = generation.spec().app.clone();
        self.change(|written| {
            if let Some(tried) = written.trying.get_mut(&app) {
                tried.step = Step::Live;
            }
            let is_elsewhere = |old: &Replaced| old.is_elsewhere(&lived);
            written.replaced.retain(is_elsewhere);
            written.replaced.push(Replaced {
                app,
                lived,
                left_at_ms: None,
            });
            let beyond = written.replaced.len().saturating_sub(REPLACED);
            written.replaced.drain(..beyond);
        });
    }

    /// `generation` is about to be live.
    pub(crate) fn live(&self, generation: &Generation, heap: Option<u64>) {
        let spec = generation.spec();
        let lived = Lived::of(generation, heap);
        self.change(|written| {
            let left_out = written.left_out.get(&spec.app);
            if left_out.is_some_and(|left_out| left_out.artifact == spec.artifact) {
                written.left_out.remove(&spec.app);
            }
            if let Some(tried) = written.trying.get_mut(&spec.app) {
                tried.step = Step::Live;
            }
            let is_elsewhere = |old: &Replaced| old.is_elsewhere(&lived);
            written.replaced.retain(is_elsewhere);
            if let Some(lived) = written.live.insert(spec.app.clone(), lived) {
                written.replaced.push(Replaced {
                    app: spec.app.clone(),
                    lived,
                    left_at_ms: None,
                });
            }
            let beyond = written.replaced.len().saturating_sub(REPLACED);
            written.replaced.drain(..beyond);
        });
    }

    /// Has the last words of this host written to `supervisor`, or without one into a file. Gives
    /// what the host before has written there.
    pub(crate) fn hear_last_words(&self, supervisor: Option<OwnedFd>) -> Option<Crashed> {
        if let Some(supervisor) = supervisor {
            ledger::tell_last_words(supervisor);
            return None;
        }
        let path = self.0.path.with_file_name(LAST_WORDS);
        let before = fs::read_to_string(&path).ok();
        match File::create(&path) {
            Ok(file) => {
                // So that there is room for it on a disk that is full by then.
                let _ = rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 4096);
                ledger::tell_last_words(file.into());
            }
            Err(error) => {
                tracing::warn!(%error, "where a fault is will not be known: {} cannot be written", path.display());
            }
        }
        let last_words = LastWords::parse(&before?)?;
        Some(Crashed {
            how: last_words.end.to_string(),
            pid: None,
            last_words: Some(last_words),
        })
    }

    /// A clean end.
    pub(crate) fn end(&self) {
        let _written = self.0.written.lock();
        self.0.ended.store(true, Ordering::Relaxed);
        // What stays is read at the next start, and blames nobody without a crash that was seen.
        let _ = fs::remove_file(&self.0.path);
        self.0.room.forget(&self.0.path);
    }

    /// How the host before ended, as systemd says: `killed SEGV`, `dumped ABRT`, `exited 3`.
    pub(crate) fn said_by_systemd(&self) -> Option<String> {
        let path = self.0.path.with_file_name(SAID_BY_SYSTEMD);
        let said = fs::read_to_string(&path).ok()?;
        // Read once: the next start is about another end.
        let _ = fs::remove_file(&path);
        let (code, status) = said.trim().split_once(' ')?;
        let status_only = status.split(' ').next().unwrap_or_default();
        Some(match code {
            _ if status.ends_with(" oom-kill") => shortage::OUT_OF_MEMORY.to_owned(),
            "exited" => format!("exit with code {status_only}"),
            _ => format!("SIG{status_only}"),
        })
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Written)) {
        let mut written = self.0.written.lock();
        change(&mut written);
        if self.0.ended.load(Ordering::Relaxed) {
            return;
        }
        self.write(&written);
    }

    /// Writes what could not be written. Whether it is written now. Blocks.
    pub(crate) fn again(&self) -> bool {
        let written = self.0.written.lock();
        self.0.is_behind.load(Ordering::Relaxed) && self.write(&written)
    }

    fn write(&self, written: &Written) -> bool {
        let text = serde_json::to_vec_pretty(written);
        let done = text.map_err(io::Error::from).and_then(|text| {
            let write = || write(&self.0.path, &text);
            self.0.room.write(&self.0.path, &text, write)
        });
        let was_behind = self.0.is_behind.swap(done.is_err(), Ordering::Relaxed);
        if let Err(error) = &done
            && !was_behind
        {
            tracing::warn!(
                %error,
                "the crash journal {} cannot be written: it is kept in memory",
                self.0.path.display()
            );
        }
        done.is_ok()
    }

    /// Writes down how far `tried` is. Where its code is about to run in this process, the end of
    /// the process is its fault from then on.
    pub(crate) async fn trying(&self, app: &AppName, tried: Tried) {
        let app = app.clone();
        self.change_off_worker(move |written| {
            written.trying.insert(app, tried);
        })
        .await;
    }

    /// Writes down that a generation that was replaced is about to end.
    pub(crate) async fn leaves(&self, app: &AppName, id: GenerationId) {
        let app = app.clone();
        let now = since_boot_ms();
        self.change_off_worker(move |written| {
            let mut all = written.replaced.iter_mut();
            if let Some(old) = all.find(|old| old.app == app && old.lived.generation == id) {
                old.left_at_ms = Some(now);
            }
        })
        .await;
    }

    /// Changes the journal, not on a worker: it is a file.
    async fn change_off_worker(&self, change: impl FnOnce(&mut Written) + Send + 'static) {
        let journal = self.clone();
        let written = tokio::task::spawn_blocking(move || journal.change(change));
        if let Err(broken) = written.await {
            tracing::warn!(%broken, "the crash journal was not written");
        }
    }
}

fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("json.new");
    let done = fs::write(&fresh, text)
        .and_then(|()| fs::set_permissions(&fresh, origin().permissions())) // whatever mask a plugin has set
        .and_then(|()| fs::rename(&fresh, path));
    if done.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    done
}

/// What is written down of an artifact that is made live stays there as long as this lives.
#[derive(Debug)]
pub(crate) struct Trying {
    journal: Journal,
    app: AppName,
}

impl Drop for Trying {
    fn drop(&mut self) {
        let (journal, app) = (self.journal.clone(), self.app.clone());
        let write = move || {
            if journal.0.written.lock().trying.contains_key(&app) {
                journal.change(|written| {
                    written.trying.remove(&app);
                });
            }
        };
        // It is a file.
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(write)),
            // The runtime ends, and drops what it still had.
            Err(_) => write(),
        }
    }
}

impl Trying {
    /// Takes what is written down of an app from now on ([`Journal::trying`]) back when it is
    /// dropped.
    pub(crate) fn of(journal: &Journal, app: &AppName) -> Self {
        Self {
            journal: journal.clone(),
            app: app.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    fn journal_in(state: &Path) -> Journal {
        Journal::new(state, Arc::new(Room::in_state(state, None)))
    }

    #[test]
    fn only_a_host_that_did_not_end_cleanly_leaves_something() {
        let dir = tempfile::tempdir().unwrap();
        assert!(journal_in(dir.path()).open().is_none());
        let left = journal_in(dir.path()).open().unwrap();
        assert_eq!(left.pid, std::process::id());
        let journal = journal_in(dir.path());
        journal.open();
        journal.end();
        assert!(journal_in(dir.path()).open().is_none());
    }

    #[test]
    fn a_journal_that_cannot_be_read_blames_nobody() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("running.json"), "{\"pid\": ").unwrap();
        let left = journal_in(dir.path()).open().unwrap();
        assert!(left.live.is_empty() && left.crashes.is_empty());
    }

    #[test]
    fn systemd_is_heard_once() {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal_in(dir.path());
        assert_eq!(journal.said_by_systemd(), None);
        fs::write(dir.path().join("crashed"), "dumped SEGV\n").unwrap();
        assert_eq!(journal.said_by_systemd().as_deref(), Some("SIGSEGV"));
        assert_eq!(journal.said_by_systemd(), None);
        for (said, how) in [
            ("killed KILL oom-kill\n", shortage::OUT_OF_MEMORY),
            ("killed KILL signal\n", "SIGKILL"),
            ("exited 70 exit-code\n", "exit with code 70"),
        ] {
            fs::write(dir.path().join("crashed"), said).unwrap();
            assert_eq!(journal.said_by_systemd().as_deref(), Some(how));
        }
    }
}
