//! What the host remembers of an app over restarts: `<state>/apps/NAME.json`, replaced as a whole
//! and synced.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use handover_api::{AppName, Cause, GenerationId, Label};
use parking_lot::Mutex;
use semver::Version;
use serde::{Deserialize, Serialize};

use crate::{
    artifact::{AbiVersion, Sha256},
    loader::Companion,
    origin::origin,
    records::{
        history::{self, Entry},
        order::Order,
        room::Room,
        settings::AppSettings,
    },
    replace::replace,
};

/// How many entries the history keeps.
const HISTORY: usize = 200;
/// How many failing artifacts are remembered.
const FAILING: usize = 100;
/// How many proven artifacts are remembered.
const PROVEN: usize = 100;
/// How many verdicts of preflight are remembered: more than there are artifacts that may come back.
const CHECKED: usize = 200;
/// When a record that cannot be read is tried again before the host starts without it.
const READ_AGAIN_AFTER: [Duration; 3] = [
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(200),
];
/// How many files of the drop folder are remembered.
const ANSWERED: usize = 100;

/// What is remembered.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Record {
    /// The last number that a generation was given.
    pub(crate) last_generation: u64,
    /// What a restart serves.
    pub(crate) head: Option<Head>,
    /// What waits for `handover reload`.
    pub(crate) staged: Option<Head>,
    /// What is up beside what is live, under labels of the operator's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) labels: Vec<LabelledHead>,
    /// Those of them that were up under the host before, and are not yet again.
    #[serde(skip)]
    pub(crate) returning: Vec<LabelledHead>,
    /// What its clients are told, while somebody has stopped it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stopped: Option<String>,
    /// The answer to "where does it serve" that the host gave when the configuration gave none.
    pub(crate) assigned: Option<Assigned>,
    /// Artifacts that failed by their own fault.
    pub(crate) failing: Vec<Failing>,
    /// Artifacts that are never unmapped, with the reason.
    pub(crate) staying: Vec<Failing>,
    /// Artifacts that served for the app's `bake` without a break.
    pub(crate) proven: Vec<Sha256>,
    /// Artifacts that passed preflight, with the host that said so.
    pub(crate) checked: Vec<Checked>,
    /// Files of the drop folder that were answered, with the bytes they held.
    pub(crate) answered: Vec<Answered>,
    /// What was deployed, newest last.
    pub(crate) history: Vec<Entry>,
    /// What an operator has set.
    #[serde(skip_serializing_if = "AppSettings::is_empty")]
    pub(crate) settings: AppSettings,
}

/// An artifact that was chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// Its identity.
    pub(crate) artifact: Sha256,
    /// The version its manifest names.
    pub(crate) version: Version,
    /// The file of the drop folder that it came from.
    pub(crate) source: Option<String>,
}

/// An artifact that is up under a label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LabelledHead {
    /// The label.
    pub(crate) label: Label,
    /// The artifact.
    #[serde(flatten)]
    pub(crate) head: Head,
    /// When its time is over, in milliseconds since 1970; none: when somebody promotes or aborts
    /// it.
    pub(crate) until_ms: Option<u64>,
}

/// Where an app without configured routes answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Assigned {
    /// At `/`.
    Root,
    /// At `/NAME`.
    Name,
}

/// An artifact that failed by its own fault, or caused a crash after it was replaced.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Failing {
    /// Its identity.
    pub(crate) artifact: Sha256,
    /// What was said then.
    pub(crate) reason: String,
}

/// The verdict of preflight on an artifact that passed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Checked {
    /// Its identity.
    pub(crate) artifact: Sha256,
    /// The host that gave it: its version, and the build id of its program.
    pub(crate) host: String,
    /// The ABI that this host offers, as `major.minor`.
    pub(crate) abi: String,
    /// The libraries that were mapped beside it.
    #[serde(default)]
    pub(crate) companions: Vec<Companion>,
}

/// A file of the drop folder that was answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Answered {
    /// The file.
    pub(crate) path: String,
    /// The bytes it held.
    pub(crate) artifact: Sha256,
}

/// Notes `reason` for `artifact` in place of what was noted for it, and forgets the oldest beyond
/// [`FAILING`].
fn note(list: &mut Vec<Failing>, artifact: Sha256, reason: String) {
    list.retain(|known| known.artifact != artifact);
    list.push(Failing { artifact, reason });
    let beyond = list.len().saturating_sub(FAILING);
    list.drain(..beyond);
}

/// What is noted for `artifact`.
fn reason(list: &[Failing], artifact: Sha256) -> Option<&str> {
    let known = list.iter().find(|known| known.artifact == artifact)?;
    Some(&known.reason)
}

impl Record {
    /// Adds to the history.
    pub(crate) fn remember(&mut self, entry: Entry) {
        self.history.push(entry);
        let beyond = self.history.len().saturating_sub(HISTORY);
        self.history.drain(..beyond);
    }

    /// Remembers that an artifact failed by its own fault.
    pub(crate) fn failed(&mut self, artifact: Sha256, reason: String) {
        note(&mut self.failing, artifact, reason);
    }

    /// Why an artifact failed, if it did.
    pub(crate) fn why_failing(&self, artifact: Sha256) -> Option<&str> {
        reason(&self.failing, artifact)
    }

    /// Remembers that an artifact is never unmapped again.
    pub(crate) fn stays(&mut self, artifact: Sha256, reason: String) {
        note(&mut self.staying, artifact, reason);
    }

    /// Why an artifact is never unmapped, if it is not.
    pub(crate) fn why_staying(&self, artifact: Sha256) -> Option<&str> {
        reason(&self.staying, artifact)
    }

    /// Remembers that an artifact is no longer on probation.
    pub(crate) fn proves(&mut self, artifact: Sha256) {
        self.proven.retain(|known| *known != artifact);
        self.proven.push(artifact);
        let beyond = self.proven.len().saturating_sub(PROVEN);
        self.proven.drain(..beyond);
    }

    /// Whether an artifact is no longer on probation.
    pub(crate) fn is_proven(&self, artifact: Sha256) -> bool {
        self.proven.contains(&artifact)
    }

    /// Remembers that an artifact passed the preflight of `host`, which offers `abi`.
    pub(crate) fn passed(
        &mut self,
        artifact: Sha256,
        host: &str,
        abi: AbiVersion,
        companions: Vec<Companion>,
    ) {
        self.checked.retain(|known| known.artifact != artifact);
        self.checked.push(Checked {
            artifact,
            host: host.to_owned(),
            abi: abi.to_string(),
            companions,
        });
        let beyond = self.checked.len().saturating_sub(CHECKED);
        self.checked.drain(..beyond);
    }

    /// The last verdict on an artifact, if it ever passed.
    pub(crate) fn verdict(&self, artifact: Sha256) -> Option<&Checked> {
        self.checked.iter().find(|known| known.artifact == artifact)
    }

    /// When what is live was chosen, in the order of the history: restarts choose nothing.
    pub(crate) fn changed_at(&self) -> (Order, u64) {
        self.history
            .iter()
            .rev()
            .find(|entry| entry.was_active() && entry.cause != Cause::Start)
            .map(Entry::place)
            .unwrap_or_default()
    }

    /// Remembers which bytes a file of the drop folder held when it was answered.
    pub(crate) fn answered(&mut self, path: &str, artifact: Sha256) {
        self.answered.retain(|known| known.path != path);
        self.answered.push(Answered {
            path: path.to_owned(),
            artifact,
        });
        let beyond = self.answered.len().saturating_sub(ANSWERED);
        self.answered.drain(..beyond);
    }

    /// Whether the file held these bytes when it was answered last.
    pub(crate) fn was_answered(&self, path: &str, artifact: Sha256) -> bool {
        self.answered
            .iter()
            .any(|known| known.path == path && known.artifact == artifact)
    }

    /// The number of the next generation.
    pub(crate) fn next_generation(&mut self) -> GenerationId {
        self.last_generation += 1;
        GenerationId(self.last_generation)
    }

    /// Gives back the last number, which no generation was given.
    pub(crate) fn give_back(&mut self, id: GenerationId) {
        if self.last_generation == id.0 {
            self.last_generation -= 1;
        }
    }

    /// The artifacts that must stay in the store: HEAD, staged, and of the older ones the last
    /// `keep` that were active, and as many that a rollback or a crash goes back to. Those are
    /// others where something was taken back.
    pub(crate) fn wanted(&self, keep: usize) -> Vec<Sha256> {
        let head = self.head.as_ref().map(|head| head.artifact);
        let staged = self.staged.as_ref().map(|head| head.artifact);
        let labelled = self.labels.iter().map(|labelled| labelled.head.artifact);
        let active = history::once_active(&self.history);
        let active = active.into_iter().map(|entry| entry.artifact);
        let before = head.map_or_else(Vec::new, |head| history::before(&self.history, head));
        let before = before.into_iter().map(|entry| entry.artifact);
        head.into_iter()
            .chain(staged)
            .chain(labelled)
            .chain(active.filter(|artifact| Some(*artifact) != head).take(keep))
            .chain(before.take(keep))
            .collect()
    }
}

/// The record of one app, in memory and on disk.
#[derive(Debug)]
pub(crate) struct Saved {
    path: PathBuf,
    record: Mutex<Record>,
    room: Arc<Room>,
    /// Held while the file is written, so that an older record never replaces a newer one.
    /// Why it is behind, if it is.
    disk: Mutex<Disk>,
}

/// How the file of a record is.
#[derive(Debug, Default)]
enum Disk {
    /// It holds the record.
    #[default]
    UpToDate,
    /// The last change could not be written.
    Behind(String),
    /// It is there and could not be read, though it may be another time: it is not replaced before
    /// that.
    Unread(String),
}

/// What came of another try with a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// There was nothing to do, or it failed again.
    Nothing,
    /// What was kept in memory is on disk.
    Written,
    /// The record is read now.
    Read,
}

impl Saved {
    /// Reads the record of `app` in `dir`, or begins an empty one. A record that makes no sense is
    /// set aside, one that cannot be read stays where it is and is [tried again](Self::again); the
    /// sentence about it is returned: the host starts without it rather than not at all. Blocks.
    pub(crate) fn open(dir: &Path, app: &AppName, room: Arc<Room>) -> (Arc<Self>, Option<String>) {
        let path = dir.join(format!("{app}.json"));
        let kept = room
            .kept(&path)
            .and_then(|text| serde_json::from_str::<Record>(&text).ok());
        let read = match kept {
            Some(record) => {
                let why = format!(
                    "{} is behind: the host before could not write it",
                    path.display()
                );
                Ok((record, Disk::Behind(why)))
            }
            None => read_patiently(&path).map(|record| (record, Disk::UpToDate)),
        };
        let (record, disk, trouble) = match read {
            Ok((record, disk)) => (record, disk, None),
            Err(ReadError::Corrupt(why)) => {
                let trouble = set_aside(&path, &why);
                (Record::default(), Disk::UpToDate, Some(trouble))
            }
            Err(ReadError::Io(cause)) => {
                let why = format!("{} cannot be read: {cause}", path.display());
                let trouble = format!("{why}; it stays where it is and is tried again");
                (Record::default(), Disk::Unread(why), Some(trouble))
            }
        };
        record.history.iter().for_each(|entry| entry.order.seen());
        let saved = Self {
            path,
            record: Mutex::new(record),
            room,
            disk: Mutex::new(disk),
        };
        (Arc::new(saved), trouble)
    }

    /// Looks at the record.
    pub(crate) fn read<R>(&self, look: impl FnOnce(&Record) -> R) -> R {
        look(&self.record.lock())
    }

    /// Changes the record in memory. The next [`Saved::change`] takes it to the disk.
    pub(crate) fn edit<R>(&self, edit: impl FnOnce(&mut Record) -> R) -> R {
        edit(&mut self.record.lock())
    }

    /// Changes the record, and returns when it is on disk. The change holds in memory even when the
    /// disk fails, and is written when there is room for it.
    pub(crate) async fn change<R>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Record) -> R,
    ) -> (R, io::Result<()>) {
        let changed = self.edit(change);
        let saved = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || saved.write(&mut saved.disk.lock()))
            .await
            .unwrap_or_else(|broken| Err(io::Error::other(broken)));
        (changed, written)
    }

    /// Why the disk does not have what is in memory, if it does not.
    pub(crate) fn not_durable(&self) -> Option<String> {
        match &*self.disk.lock() {
            Disk::UpToDate => None,
            Disk::Behind(why) | Disk::Unread(why) => Some(why.clone()),
        }
    }

    /// Writes what could not be written, or reads what could not be read. Blocks.
    pub(crate) fn again(&self) -> Again {
        let mut disk = self.disk.lock();
        match &*disk {
            Disk::UpToDate => Again::Nothing,
            Disk::Behind(_) => match self.write(&mut disk) {
                Ok(()) => Again::Written,
                Err(_) => Again::Nothing,
            },
            Disk::Unread(_) => match read(&self.path) {
                Ok(record) => {
                    *self.record.lock() = record;
                    *disk = Disk::UpToDate;
                    Again::Read
                }
                Err(_) => Again::Nothing,
            },
        }
    }

    fn write(&self, disk: &mut Disk) -> io::Result<()> {
        if let Disk::Unread(why) = disk {
            return Err(io::Error::other(why.clone()));
        }
        let text = serde_json::to_vec_pretty(&*self.record.lock())?;
        let written = self.room.write(&self.path, &text, || {
            replace(&self.path, &text, origin().permissions())
        });
        let written = written.map_err(|cause| {
            io::Error::new(cause.kind(), format!("{}: {cause}", self.path.display()))
        });
        *disk = match &written {
            Ok(()) => Disk::UpToDate,
            Err(cause) => Disk::Behind(cause.to_string()),
        };
        written
    }
}

/// The apps that `dir` has a record of.
pub(crate) fn known(dir: &Path) -> io::Result<Vec<AppName>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if let Some(app) = name.to_str().and_then(|n| n.strip_suffix(".json"))
            && let Ok(app) = app.parse()
        {
            found.push(app);
        }
    }
    found.sort();
    Ok(found)
}

/// Why there is no record.
enum ReadError {
    /// There is a file, and it makes no sense.
    Corrupt(String),
    /// It could not be read, this time: EIO, EMFILE, a file system that is gone.
    Io(io::Error),
}

fn read(path: &Path) -> Result<Record, ReadError> {
    match fs::read(path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map_err(|cause| ReadError::Corrupt(cause.to_string()))
        }
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(Record::default()),
        Err(cause) => Err(ReadError::Io(cause)),
    }
}

/// [`read`], a few times if need be: what passes at once need not be told.
fn read_patiently(path: &Path) -> Result<Record, ReadError> {
    for pause in READ_AGAIN_AFTER {
        match read(path) {
            Err(ReadError::Io(_)) => thread::sleep(pause),
            read => return read,
        }
    }
    read(path)
}

fn set_aside(path: &Path, why: &str) -> String {
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".corrupt-{}", crate::clock::now_ms()));
    match fs::rename(path, &aside) {
        Ok(()) => format!(
            "{} cannot be read ({why}); it was set aside as {} and the app starts with no memory of its past: deploy it again",
            path.display(),
            Path::new(&aside).display()
        ),
        Err(cause) => format!(
            "{} cannot be read ({why}) nor set aside ({cause}); the app starts with no memory of its past: deploy it again",
            path.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;
    use handover_api::Outcome;

    fn app() -> AppName {
        "shop".parse().unwrap()
    }

    fn room(dir: &Path) -> Arc<Room> {
        Arc::new(Room::in_state(dir, None))
    }

    #[tokio::test]
    async fn a_record_that_cannot_be_read_stays_and_is_read_later() {
        let dir = tempfile::tempdir().unwrap();
        let (saved, _) = Saved::open(dir.path(), &app(), room(dir.path()));
        let (id, written) = saved.change(Record::next_generation).await;
        written.unwrap();
        // A folder in its place cannot be read as a file, by nobody.
        let (path, aside) = (dir.path().join("shop.json"), dir.path().join("aside"));
        fs::rename(&path, &aside).unwrap();
        fs::create_dir(&path).unwrap();
        let (saved, trouble) = Saved::open(dir.path(), &app(), room(dir.path()));
        assert!(trouble.unwrap().contains("tried again"));
        assert!(saved.change(Record::next_generation).await.1.is_err());
        assert!(saved.not_durable().is_some());
        assert_eq!(saved.again(), Again::Nothing);
        fs::remove_dir(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
        assert_eq!(saved.again(), Again::Read);
        assert_eq!(saved.read(|record| record.last_generation), id.0);
        assert_eq!(saved.not_durable(), None);
    }

    fn entry(generation: u64, byte: u8, outcome: Outcome) -> Entry {
        Entry {
            at_ms: 1,
            order: Order::default(),
            generation: Some(GenerationId(generation)),
            version: Some("1.0.0".parse().unwrap()),
            ..Entry::new(Sha256([byte; 32]), Cause::Deploy, outcome)
        }
    }

    #[tokio::test]
    async fn what_was_saved_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (saved, trouble) = Saved::open(dir.path(), &app(), room(dir.path()));
        assert!(trouble.is_none());
        let (id, written) = saved
            .change(|record| {
                record.remember(entry(1, 7, Outcome::Done));
                record.failed(Sha256([9; 32]), "it exits".into());
                record.assigned = Some(Assigned::Root);
                record.next_generation()
            })
            .await;
        written.unwrap();
        assert_eq!(id, GenerationId(1));
        drop(saved);

        assert_eq!(known(dir.path()).unwrap(), [app()]);
        let (saved, trouble) = Saved::open(dir.path(), &app(), room(dir.path()));
        assert!(trouble.is_none());
        saved.read(|record| {
            assert_eq!(record.last_generation, 1);
            assert_eq!(record.assigned, Some(Assigned::Root));
            assert_eq!(record.history.len(), 1);
            assert_eq!(record.why_failing(Sha256([9; 32])), Some("it exits"));
            assert_eq!(record.why_failing(Sha256([7; 32])), None);
        });
    }

    #[tokio::test]
    async fn a_corrupt_record_is_set_aside_and_said() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("shop.json"), b"{\"last_generation\": ").unwrap();
        let (saved, trouble) = Saved::open(dir.path(), &app(), room(dir.path()));
        assert!(trouble.unwrap().contains("set aside"));
        assert_eq!(saved.read(|record| record.last_generation), 0);
        let aside = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap();
        assert!(
            aside
                .file_name()
                .to_string_lossy()
                .starts_with("shop.json.corrupt-")
        );
        saved
            .change(|record| record.next_generation())
            .await
            .1
            .unwrap();
        assert_eq!(known(dir.path()).unwrap(), [app()]);
    }

    #[tokio::test]
    async fn the_last_of_many_changes_is_what_is_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (saved, _) = Saved::open(dir.path(), &app(), room(dir.path()));
        let changes: Vec<_> = (0..50)
            .map(|_| {
                let saved = Arc::clone(&saved);
                tokio::spawn(async move { saved.change(Record::next_generation).await.1.unwrap() })
            })
            .collect();
        for change in changes {
            change.await.unwrap();
        }
        let (again, _) = Saved::open(dir.path(), &app(), room(dir.path()));
        assert_eq!(again.read(|record| record.last_generation), 50);
    }

    #[test]
    fn memory_is_bounded() {
        let mut record = Record::default();
        for n in 0..1_000_u64 {
            let artifact = Sha256([(n % 251) as u8; 32]);
            record.remember(entry(n, 1, Outcome::Done));
            record.failed(artifact, "no".into());
            record.passed(artifact, "0.1.0", AbiVersion(1, 0), Vec::new());
            record.answered(&format!("/drop/{n}.so"), artifact);
        }
        assert_eq!(record.history.len(), HISTORY);
        assert_eq!(
            record.history[HISTORY - 1].generation,
            Some(GenerationId(999))
        );
        assert_eq!(record.failing.len(), FAILING);
        assert_eq!(record.checked.len(), CHECKED);
        assert_eq!(record.answered.len(), ANSWERED);
    }

    #[test]
    fn rollback_targets_head_and_staged_stay_in_the_store() {
        let head = |byte| Head {
            artifact: Sha256([byte; 32]),
            version: "1.0.0".parse().unwrap(),
            source: None,
        };
        let mut record = Record {
            head: Some(head(1)),
            staged: Some(head(2)),
            ..Record::default()
        };
        let wanted = |record: &Record| {
            let mut wanted = record.wanted(2);
            wanted.sort();
            wanted.dedup();
            wanted
        };
        for (generation, byte) in [(1, 3), (2, 4), (3, 5), (4, 1)] {
            record.remember(entry(generation, byte, Outcome::Done));
        }
        record.remember(entry(5, 6, Outcome::Rejected));
        assert_eq!(wanted(&record), [1, 2, 4, 5].map(|byte| Sha256([byte; 32])));
        // What was taken back since does not push out what is gone back to.
        for (generation, byte) in [(6, 7), (7, 8)] {
            record.remember(entry(generation, byte, Outcome::Done));
            record.remember(entry(generation, byte, Outcome::RolledBack));
        }
        assert_eq!(
            wanted(&record),
            [1, 2, 4, 5, 7, 8].map(|byte| Sha256([byte; 32]))
        );
    }
}
