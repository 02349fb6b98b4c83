//! Crashes: what was live when the host died, who is to blame for it, and what has served long
//! enough to be trusted.
//!
//! The journal, `<state>/running.json`, is there while the host runs: it says what is live and
//! since when, and remembers the crashes of late. It goes at a clean end, so a start that finds it
//! knows that the host before did not end cleanly. It is replaced as a whole, but not synced: it is
//! about crashes of the process, which the kernel's memory survives.
//!
//! Who crashed the process is not known, only who was in it. So blame goes by what is new:
//! - an artifact that has not yet served for the app's `bake` without a break is on probation, and
//!   one crash is enough
//! - after `max_crashes` within `crash_window` the app that was changed last goes back, whatever it
//!   has proven
//!
//! The last words of the host, where there are some, say more ([`culprit`](super::culprit)): of
//! several on probation only the one whose code ran is taken back, and what a replaced generation
//! had left behind is no fault of its successor: its artifact is never unmapped again.
//!
//! But where an artifact was being loaded or constructed at that moment, that one is to blame and
//! nobody else: the journal names it before any of its code runs. What was being deployed has
//! failed. What was being started again is left out of the next start, which serves what was good
//! before it, and is tried again after a pause that grows. Where several were in it, the next start
//! begins them one after the other, so that a second crash names one.
//!
//! A process that was killed from outside (SIGKILL, a power cut) is nobody's fault.

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
    time::Duration,
};

use handover_api::{AppName, Cause, EventKind, GenerationId};
use parking_lot::Mutex;
use rustix::fs::FallocateFlags;
use semver::Version;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::{
    Apps,
    app::App,
    clock::{self, since_boot_ms},
    culprit::{self, Culprit},
    growth,
    room::Room,
    status::millis,
};
use crate::{
    artifact::Sha256,
    generation::{Generation, Spec},
    human,
    ledger::{self, AccountId, LastWords},
    origin::origin,
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
#[derive(Debug)]
pub(super) struct Journal {
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
pub(super) struct Written {
    /// The host.
    pub(super) pid: u32,
    /// The host before it whose crash has been seen to.
    pub(super) answered: Option<u32>,
    /// The boot of the machine that the times here count from, in milliseconds.
    pub(super) boot: String,
    /// When it started.
    pub(super) since_ms: u64,
    /// What is live.
    pub(super) live: BTreeMap<AppName, Lived>,
    /// What was replaced, oldest first.
    pub(super) replaced: Vec<Replaced>,
    /// Crashes that count, oldest first.
    pub(super) crashes: Vec<Crash>,
    /// What is being made live.
    pub(super) trying: BTreeMap<AppName, Tried>,
    /// What crashed the host when it was started again, and has not come up since.
    pub(super) left_out: BTreeMap<AppName, LeftOut>,
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
pub(super) enum Step {
    /// None of its code runs in this process.
    Checked,
    /// Its code runs for the first time in this process.
    Loaded,
    /// It takes requests, which is not written down yet.
    Live,
}

/// An artifact that is being made live.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Tried {
    /// How far it is.
    pub(super) step: Step,
    /// Its identity.
    pub(super) artifact: Sha256,
    /// The version of its manifest.
    pub(super) version: Version,
    /// The generation that it was to be, once it has one.
    pub(super) generation: Option<GenerationId>,
    /// Why it was tried, as the history has it.
    pub(super) cause: Cause,
    /// Where it came from.
    pub(super) source: Option<String>,
}

/// An artifact that crashed the host when it was started again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeftOut {
    /// Its identity.
    pub(super) artifact: Sha256,
    /// How often.
    pub(super) crashes: u32,
    /// Why, for people.
    pub(super) reason: String,
}

/// What is written down of an artifact that is made live stays there as long as this lives.
#[derive(Debug)]
pub(super) struct Trying {
    apps: Apps,
    app: AppName,
}

impl Drop for Trying {
    fn drop(&mut self) {
        let (apps, app) = (self.apps.clone(), self.app.clone());
        let write = move || {
            let journal = &apps.0.journal;
            if journal.written.lock().trying.contains_key(&app) {
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
    /// Takes what is written down of an app from now on ([`trying`]) back when it is dropped.
    pub(super) fn of(apps: &Apps, app: &AppName) -> Self {
        Self {
            apps: apps.clone(),
            app: app.clone(),
        }
    }
}

/// Writes down how far `tried` is. Where its code is about to run in this process, the end of the
/// process is its fault from then on.
pub(super) async fn trying(apps: &Apps, app: &AppName, tried: Tried) {
    let app = app.clone();
    journal(apps, move |written| {
        written.trying.insert(app, tried);
    })
    .await;
}

/// Writes down that a generation that was replaced is about to end.
pub(super) async fn leaves(apps: &Apps, app: &AppName, id: GenerationId) {
    let app = app.clone();
    let now = since_boot_ms();
    journal(apps, move |written| {
        let mut all = written.replaced.iter_mut();
        if let Some(old) = all.find(|old| old.app == app && old.lived.generation == id) {
            old.left_at_ms = Some(now);
        }
    })
    .await;
}

/// Changes the journal, not on a worker: it is a file.
async fn journal(apps: &Apps, change: impl FnOnce(&mut Written) + Send + 'static) {
    let apps = apps.clone();
    let written = tokio::task::spawn_blocking(move || apps.0.journal.change(change));
    if let Err(broken) = written.await {
        tracing::warn!(%broken, "the crash journal was not written");
    }
}

/// What the end of the host before means for this start.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Apps that go back to what they were before.
    pub(super) blamed: BTreeMap<AppName, Blame>,
    /// Artifacts that are left out.
    pub(super) left_out: BTreeMap<AppName, LeftOut>,
    /// Apps one of which crashed the host when it was started again: begun one after the other.
    pub(super) suspects: Vec<AppName>,
    /// What was being deployed, and why that has failed.
    pub(super) failed: Vec<(AppName, Tried, String)>,
    /// What was under way when the host ended for another reason, and that reason.
    pub(super) interrupted: Vec<(AppName, Tried, String)>,
    /// Artifacts that are never unmapped again, and why.
    pub(super) staying: Vec<(AppName, Lived, String)>,
}

/// What was live of an app.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Lived {
    pub(super) artifact: Sha256,
    pub(super) generation: GenerationId,
    pub(super) version: Version,
    since_ms: u64,
    /// Where its library is mapped.
    range: Range<u64>,
    /// The name of its library in the ledger.
    account: AccountId,
    /// The bytes of its heap when it became live, and when it was measured last.
    pub(super) heap: (u64, u64),
}

impl Lived {
    /// Whether its library is, or was, mapped at `address`.
    pub(super) fn is_mapped_at(&self, address: u64) -> bool {
        self.range.contains(&address)
    }

    /// The name of its library in the ledger.
    pub(super) fn account(&self) -> Option<AccountId> {
        (self.account != 0).then_some(self.account)
    }

    #[cfg(test)]
    pub(super) fn mapped_at(
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
pub(super) struct Replaced {
    pub(super) app: AppName,
    pub(super) lived: Lived,
    /// When its library was unmapped, or its end began, in milliseconds, as [`Written::boot`] says.
    /// It may have been retained since.
    pub(super) left_at_ms: Option<u64>,
}

/// A crash of the host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Crash {
    /// In milliseconds, as [`Written::boot`] says.
    at_ms: u64,
    how: String,
}

/// An app that goes back to what it was before.
#[derive(Clone, Debug)]
pub(super) struct Blame {
    /// The generation that crashed, or was there.
    pub(super) generation: GenerationId,
    /// Why, for people.
    pub(super) reason: String,
}

impl Written {
    /// How long ago the time `at_ms` of this journal is; none when the machine was booted in
    /// between.
    fn age_ms(&self, at_ms: u64) -> Option<u64> {
        (self.boot == clock::boot()).then(|| since_boot_ms().saturating_sub(at_ms))
    }
}

impl Journal {
    /// The journal in `state`, which is not touched before [`Journal::begin`].
    pub(super) fn new(state: &Path, room: Arc<Room>) -> Self {
        Self {
            path: state.join("running.json"),
            written: Mutex::default(),
            room,
            is_behind: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        }
    }

    /// Begins the journal of this host. Gives what the host before left, if it did not end cleanly.
    fn open_journal(&self) -> Option<Written> {
        let before = fs::read(&self.path)
            .ok()
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

    /// `generation` is about to be live.
    pub(super) fn live(&self, generation: &Generation, heap: Option<u64>) {
        let spec = generation.spec();
        let range = generation.range();
        let lived = Lived {
            artifact: spec.artifact,
            generation: spec.id,
            version: spec.version.clone(),
            since_ms: since_boot_ms(),
            range: range.start as u64..range.end as u64,
            account: generation.account(),
            heap: (heap.unwrap_or_default(), heap.unwrap_or_default()),
        };
        self.change(|written| {
            let left_out = written.left_out.get(&spec.app);
            if left_out.is_some_and(|left_out| left_out.artifact == spec.artifact) {
                written.left_out.remove(&spec.app);
            }
            if let Some(tried) = written.trying.get_mut(&spec.app) {
                tried.step = Step::Live;
            }
            let is_elsewhere = |old: &Replaced| {
                old.lived.range.end <= lived.range.start || lived.range.end <= old.lived.range.start
            };
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
    pub(super) fn hear_last_words(&self, supervisor: Option<OwnedFd>) -> Option<Crashed> {
        if let Some(supervisor) = supervisor {
            ledger::tell_last_words(supervisor);
            return None;
        }
        let path = self.path.with_file_name(LAST_WORDS);
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
    pub(super) fn end(&self) {
        let _written = self.written.lock();
        self.ended.store(true, Ordering::Relaxed);
        // What stays is read at the next start, and blames nobody without a crash that was seen.
        let _ = fs::remove_file(&self.path);
    }

    /// How the host before ended, as systemd says: `killed SEGV`, `dumped ABRT`, `exited 3`.
    fn said_by_systemd(&self) -> Option<String> {
        let path = self.path.with_file_name(SAID_BY_SYSTEMD);
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

    pub(super) fn change(&self, change: impl FnOnce(&mut Written)) {
        let mut written = self.written.lock();
        change(&mut written);
        if self.ended.load(Ordering::Relaxed) {
            return;
        }
        self.write(&written);
    }

    /// Writes what could not be written. Whether it is written now. Blocks.
    pub(super) fn again(&self) -> bool {
        let written = self.written.lock();
        self.is_behind.load(Ordering::Relaxed) && self.write(&written)
    }

    fn write(&self, written: &Written) -> bool {
        let done = self.room.write_in(|| write(&self.path, written));
        let was_behind = self.is_behind.swap(done.is_err(), Ordering::Relaxed);
        if let Err(error) = &done
            && !was_behind
        {
            tracing::warn!(
                %error,
                "the crash journal {} cannot be written: it is kept in memory, and a crash blames nobody meanwhile",
                self.path.display()
            );
        }
        done.is_ok()
    }
}

fn write(path: &Path, written: &Written) -> io::Result<()> {
    let fresh = path.with_extension("json.new");
    let done = fs::write(&fresh, serde_json::to_vec_pretty(written)?)
        .and_then(|()| fs::set_permissions(&fresh, origin().permissions())) // whatever mask a plugin has set
        .and_then(|()| fs::rename(&fresh, path));
    if done.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    done
}

/// Begins the journal, tells how the host before ended, and finds what follows from it. `crashed`
/// is what the supervisor saw.
pub(super) fn take_findings(apps: &Apps, crashed: Option<Crashed>) -> Findings {
    let said_by_systemd = apps.0.journal.said_by_systemd();
    let crashed = match (crashed, said_by_systemd) {
        (Some(crashed), Some(how)) if crashed.pid.is_none() => Some(Crashed { how, ..crashed }),
        (None, Some(how)) => Some(Crashed {
            how,
            ..Crashed::default()
        }),
        (crashed, _) => crashed,
    };
    let Some(before) = apps.0.journal.open_journal() else {
        return Findings::default();
    };
    // A host that has begun and did not come up has seen to the one before it, and the supervisor
    // tells of that one again.
    let crashed = crashed.filter(|crashed| crashed.pid.is_none() || crashed.pid != before.answered);
    let pid = before.pid;
    let since = match before.age_ms(before.since_ms) {
        Some(age) => format!(
            "started {} ago",
            human::duration(Duration::from_millis(age))
        ),
        None => "before the machine was booted".to_owned(),
    };
    let how = crashed
        .as_ref()
        .map_or("without notice", |crashed| crashed.how.as_str());
    let words = crashed
        .as_ref()
        .and_then(|crashed| crashed.last_words.as_ref());
    let eater = growth::eater(&before).filter(|_| how == shortage::OUT_OF_MEMORY);
    let (culprit, place) = match words {
        _ if how == shortage::OUT_OF_MEMORY => match eater {
            Some((app, place)) => (Culprit::Live(app), place),
            None => (Culprit::Unknown, String::new()),
        },
        Some(words) => culprit::find(&before, words, before.age_ms(0).unwrap_or(u64::MAX)),
        None => (Culprit::Unknown, String::new()),
    };
    let during: Vec<_> = before
        .trying
        .iter()
        .filter(|(_, tried)| tried.step == Step::Loaded)
        .map(|(app, tried)| format!("{app} {} ({})", tried.version, tried.artifact.short()))
        .collect();
    let while_it_started = if during.is_empty() {
        String::new()
    } else {
        format!(" while it started {}", during.join(", "))
    };
    let message = format!(
        "the host before this one (process {pid}, {since}) ended: {how}{while_it_started}{place}"
    );
    apps.0.events.record(EventKind::Crash, None, None, message);
    let is_own_fault = crashed
        .as_ref()
        .is_some_and(|crashed| match crashed.how.as_str() {
            // Somebody else may have eaten it.
            shortage::OUT_OF_MEMORY => matches!(culprit, Culprit::Live(_)),
            how => is_own_fault(how),
        });
    let mut findings = match &culprit {
        _ if !is_own_fault => Findings::default(),
        Culprit::Left(left) => Findings {
            staying: staying(left, how),
            ..Findings::default()
        },
        Culprit::Unknown if !during.is_empty() => tried(apps, &before, how),
        _ => Findings {
            blamed: blame(apps, &before, &format!("{how}{place}"), &culprit),
            ..Findings::default()
        },
    };
    if matches!(culprit, Culprit::Left(_)) || !is_own_fault {
        // It says nothing of what is live.
        apps.0
            .journal
            .change(|written| written.crashes.clone_from(&before.crashes));
    }
    for (app, tried) in &before.trying {
        let is_failed = findings.failed.iter().any(|(failed, ..)| failed == app);
        if !is_failed && !tried.is_start() {
            let during = match tried.step {
                Step::Checked => "was checked",
                Step::Loaded => "was loaded or constructed",
                Step::Live => "took its first requests, before that was written down",
            };
            let reason = format!("the host ended ({how}{place}) while it {during}");
            findings
                .interrupted
                .push((app.clone(), tried.clone(), reason));
        }
    }
    // What was left out of the start before has not come up since.
    for (app, known) in before.left_out {
        findings.left_out.entry(app).or_insert(known);
    }
    let left_out = findings.left_out.clone();
    let answered = crashed.and_then(|crashed| crashed.pid);
    apps.0.journal.change(|written| {
        written.left_out = left_out;
        written.answered = answered;
    });
    findings
}

/// What was left behind of generations that had ended, with the reason why they stay mapped from
/// now on.
fn staying(left: &[(AppName, Lived, String)], how: &str) -> Vec<(AppName, Lived, String)> {
    let reason = |lived: &Lived, sentence: &str| {
        format!(
            "the host crashed ({how}) after {} ({}) was unloaded, and {sentence}; it is never unmapped again",
            lived.version,
            lived.artifact.short()
        )
    };
    left.iter()
        .map(|(app, lived, sentence)| (app.clone(), lived.clone(), reason(lived, sentence)))
        .collect()
}

impl Tried {
    /// Whether it was live before, and is started again.
    fn is_start(&self) -> bool {
        matches!(self.cause, Cause::Start | Cause::Crash)
    }
}

/// What follows from a crash while artifacts were being started.
fn tried(apps: &Apps, before: &Written, how: &str) -> Findings {
    let mut findings = Findings::default();
    let loaded = || {
        before
            .trying
            .iter()
            .filter(|(_, tried)| tried.step == Step::Loaded)
    };
    let started = loaded().filter(|(_, tried)| tried.is_start()).count();
    for (app, tried) in loaded() {
        let (app, tried) = (app.clone(), tried.clone());
        let reason = format!("the host crashed ({how}) while it was loaded or constructed");
        if !tried.is_start() {
            findings.failed.push((app, tried, reason));
        } else if started > 1 {
            findings.suspects.push(app);
        } else {
            let known = before.left_out.get(&app);
            let crashes = known
                .filter(|known| known.artifact == tried.artifact)
                .map_or(0, |known| known.crashes);
            let left_out = LeftOut {
                artifact: tried.artifact,
                crashes: crashes + 1,
                reason,
            };
            findings.left_out.insert(app, left_out);
        }
    }
    // They say nothing of what is live.
    apps.0
        .journal
        .change(|written| written.crashes.clone_from(&before.crashes));
    findings
}

/// Whether a crash like this comes from inside. What the kernel or somebody else kills is not to
/// blame.
fn is_own_fault(how: &str) -> bool {
    !matches!(how, "SIGKILL" | "SIGTERM" | "SIGINT" | "SIGHUP")
}

fn blame(apps: &Apps, before: &Written, how: &str, culprit: &Culprit) -> BTreeMap<AppName, Blame> {
    let settings = &apps.0.config.server;
    let (now, window) = (since_boot_ms(), settings.crash_window);
    let mut crashes = before.crashes.clone();
    crashes.retain(|crash| now.saturating_sub(crash.at_ms) < millis(window));
    crashes.push(Crash {
        at_ms: now,
        how: how.to_owned(),
    });

    // What was live is HEAD, unless the host died in the instant between.
    let was_live = |app: &Arc<App>| {
        let head = app.saved.read(|record| record.head.clone())?;
        let lived = before.live.get(&app.name)?;
        (lived.artifact == head.artifact).then(|| lived.clone())
    };
    let suspects: Vec<_> = apps
        .all()
        .into_iter()
        .filter_map(|app| was_live(&app).map(|lived| (app, lived)))
        .collect();

    let mut blamed: BTreeMap<AppName, Blame> = suspects
        .iter()
        .filter(|(app, _)| match culprit {
            Culprit::Unknown => true,
            Culprit::Live(name) => app.name == *name,
            Culprit::Draining | Culprit::Left(_) => false,
        })
        .filter_map(|(app, lived)| {
            let bake = app.settings.bake?;
            let proven = app.saved.read(|record| record.is_proven(lived.artifact));
            let reason = format!(
                "the host crashed ({how}) while {} was on probation{} of {}",
                lived.version,
                match before.age_ms(lived.since_ms) {
                    Some(age) =>
                        format!(": live for {}", human::duration(Duration::from_millis(age))),
                    None => String::new(),
                },
                humantime::format_duration(bake),
            );
            (!proven).then(|| {
                (
                    app.name.clone(),
                    Blame {
                        generation: lived.generation,
                        reason,
                    },
                )
            })
        })
        .collect();
    if blamed.is_empty() && crashes.len() >= settings.max_crashes.get() {
        let newest = suspects
            .iter()
            .filter(|(app, _)| match culprit {
                Culprit::Live(name) => app.name == *name,
                _ => true,
            })
            .max_by_key(|(app, _)| app.saved.read(|record| record.changed_at()));
        if let Some((app, lived)) = newest {
            let count = human::pluralize(crashes.len() as u64, "time");
            let reason = format!(
                "the host crashed {count} within {} (last: {how}), and {} is what was changed last",
                humantime::format_duration(window),
                lived.version,
            );
            let generation = lived.generation;
            blamed.insert(app.name.clone(), Blame { generation, reason });
        }
    }
    if !blamed.is_empty() {
        // Something is done about them.
        crashes.clear();
    }
    apps.0.journal.change(|written| written.crashes = crashes);
    blamed
}

/// Ends the probation of `spec` when it has served for the app's `bake` without a break.
pub(super) fn prove_later(apps: &Apps, app: &Arc<App>, spec: &Spec) {
    let Some(bake) = app.settings.bake else {
        return;
    };
    let (id, artifact, version) = (spec.id, spec.artifact, spec.version.clone());
    if app.saved.read(|record| record.is_proven(artifact)) {
        return;
    }
    let (apps, app) = (apps.clone(), Arc::clone(app));
    tokio::spawn(async move {
        tokio::time::sleep(bake).await;
        if app.live().is_none_or(|live| live.id != id) {
            return;
        }
        let (_, saved) = app.saved.change(|record| record.proves(artifact)).await;
        let message = match saved {
            Ok(()) => format!(
                "{} {version} has served for {}: a crash no longer takes it back at once",
                app.name,
                humantime::format_duration(bake)
            ),
            Err(cause) => format!("the end of the probation could not be saved: {cause}"),
        };
        apps.record_event(EventKind::Proven, &app, Some(id), message);
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    fn journal_in(state: &Path) -> Journal {
        Journal::new(state, Arc::new(Room::in_state(state)))
    }

    #[test]
    fn only_a_host_that_did_not_end_cleanly_leaves_something() {
        let dir = tempfile::tempdir().unwrap();
        assert!(journal_in(dir.path()).open_journal().is_none());
        let left = journal_in(dir.path()).open_journal().unwrap();
        assert_eq!(left.pid, std::process::id());
        let journal = journal_in(dir.path());
        journal.open_journal();
        journal.end();
        assert!(journal_in(dir.path()).open_journal().is_none());
    }

    #[test]
    fn a_journal_that_cannot_be_read_blames_nobody() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("running.json"), "{\"pid\": ").unwrap();
        let left = journal_in(dir.path()).open_journal().unwrap();
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

    #[test]
    fn who_kills_from_outside_blames_nobody() {
        assert!(is_own_fault("SIGSEGV"));
        assert!(is_own_fault("exit with code 0"));
        assert!(!is_own_fault("SIGKILL"));
    }
}
