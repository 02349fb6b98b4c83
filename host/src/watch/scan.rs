//! The thread that looks, remembers and decides what is worth an offer.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs::{self, Metadata},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use handover_api::AppName;
use tokio::{
    sync::{Semaphore, oneshot},
    task,
};

use super::{
    DropTarget, Timing, WatcherHandle,
    answer::{self, Verdict},
    batch::{self, Candidate, End, Report},
    events::{Folders, Hints, is_plugin},
    sidecar,
    trigger::{self, TriggerFile},
};
use crate::{
    artifact::{
        Sha256, Signature, Store,
        store::{is_truncated, peek},
    },
    shown,
    writers::{Writers, writers},
};

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Message {
    /// By the watcher.
    Event(notify::Result<notify::Event>),
    /// By [`super::WatcherHandle::rescan`].
    Rescan {
        app: Option<AppName>,
        again: bool,
        reply: oneshot::Sender<usize>,
    },
    /// By a batch that ended.
    Report(Report),
    /// By the end of the runtime.
    Stop,
}

impl std::fmt::Debug for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Report")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// Whose queue: an app's, or that of files that name none and will be refused.
pub(super) type Key = Option<AppName>;

/// What `stat` says of a file: when nothing of it has changed, nobody touched the bytes. The change
/// time is the kernel's own and cannot be set back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(facts: &Metadata) -> Self {
        Self {
            device: facts.dev(),
            inode: facts.ino(),
            size: facts.size(),
            modified: (facts.mtime(), facts.mtime_nsec()),
            changed: (facts.ctime(), facts.ctime_nsec()),
        }
    }

    /// Whether somebody wrote or replaced the file in between. A change of its attributes alone is
    /// none of the bytes.
    fn rewritten_since(&self, before: &Self) -> bool {
        (self.device, self.inode, self.size, self.modified)
            != (before.device, before.inode, before.size, before.modified)
    }

    /// How long nobody has touched it, by the clock of the file system; none if that is ahead of
    /// ours.
    fn age(&self) -> Option<Duration> {
        let (seconds, nanos) = self.changed;
        let changed = u64::try_from(seconds)
            .ok()
            .map(|seconds| UNIX_EPOCH + Duration::new(seconds, nanos as u32));
        changed.and_then(|changed| SystemTime::now().duration_since(changed).ok())
    }
}

/// What is remembered of a path.
struct Seen {
    stamp: Stamp,
    /// Since when it has had this stamp.
    since: Instant,
    /// When an event told of it, or a scan found it.
    noticed: Instant,
    /// An event told that it is whole.
    whole: bool,
    /// Found by the first scan, and not touched since.
    lay_there: bool,
    /// The states of what lay beside it when it was queued last.
    companions: Companions,
    /// It waits for or is in a batch.
    busy: bool,
    /// Somebody has it open for writing, which was told.
    open: bool,
    /// It could not be tried in this state.
    retry: Option<Stamp>,
    known: Option<Known>,
    /// The app that its manifest names, for files without a folder.
    named: Option<(Stamp, Key)>,
}

/// The answer to a state of a path.
struct Known {
    stamp: Stamp,
    sha256: Sha256,
    verdict: Verdict,
    /// Hashed so soon after the last change that a later one may have left the same stamp.
    racy: bool,
}

/// The batches of one app.
#[derive(Default)]
struct Queue {
    running: bool,
    running_for: Vec<Arc<Waiter>>,
    /// Who asked for `handover reload` while it was running: what it fails is tried again for them,
    /// since they may have asked because they saw it fail, which is known to them a moment before
    /// it is known here.
    again_for: Vec<Arc<Waiter>>,
    /// The paths of the next batch: their state when they were put here, and whether `handover
    /// reload` asks.
    pending: BTreeMap<PathBuf, (Stamp, bool)>,
    pending_for: Vec<Arc<Waiter>>,
}

/// Somebody who waits for batches to end: answered when the last of them lets go.
struct Waiter {
    dropped_count: AtomicUsize,
    reply: Option<oneshot::Sender<usize>>,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Some(reply) = self.reply.take() {
            let _ = reply.send(*self.dropped_count.get_mut()); // nobody waits any more
        }
    }
}

/// Why a scan is made.
enum Reason {
    Hint,
    Clock,
    Asked {
        app: Option<AppName>,
        again: bool,
        waiter: Arc<Waiter>,
    },
}

/// A file that a scan found.
struct Found {
    path: PathBuf,
    folder: PathBuf,
    app: Key,
    facts: Metadata,
    companions: Companions,
}

/// What belongs to a file and lies beside it: its signature and its sidecar.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Companions([Option<Stamp>; 2]);

impl Companions {
    fn of(path: &Path) -> Self {
        let files = [Signature::beside(path), sidecar::beside(path)];
        Self(files.map(|file| fs::metadata(file).ok().as_ref().map(Stamp::of)))
    }
}

/// What a scan found, and where it could not look.
#[derive(Default)]
struct Listing {
    files: Vec<Found>,
    triggers: Vec<TriggerFile>,
    blind: HashSet<PathBuf>,
}

pub(super) struct Scanner<T> {
    root: PathBuf,
    store: Store,
    target: Arc<T>,
    timing: Timing,
    runtime: tokio::runtime::Handle,
    messages: mpsc::Sender<Message>,
    folders: Folders,
    hints: Hints,
    files: BTreeMap<PathBuf, Seen>,
    queues: HashMap<Key, Queue>,
    readers: Arc<Semaphore>,
    /// The store was empty at start, so no `.deployed` file is about this host's life.
    fresh_state: bool,
    /// Folders already complained of.
    complained: BTreeSet<PathBuf>,
    /// When a file that must be quiet first is due.
    due: Option<Instant>,
    /// No scan was made yet.
    first: bool,
}

impl<T: DropTarget> Scanner<T> {
    pub(super) fn new(
        dir: PathBuf,
        store: Store,
        target: Arc<T>,
        timing: Timing,
        events: bool,
        runtime: tokio::runtime::Handle,
        messages: mpsc::Sender<Message>,
    ) -> Self {
        let root = std::path::absolute(&dir).unwrap_or(dir);
        if let Err(error) = fs::create_dir_all(&root) {
            tracing::warn!(folder = %root.display(), %error, "cannot make the drop folder: make it, or name another one with --plugins");
        }
        Self {
            fresh_state: store.is_empty().unwrap_or(false),
            folders: Folders::new(messages.clone(), events),
            root,
            store,
            target,
            timing,
            runtime,
            messages,
            hints: Hints::default(),
            files: BTreeMap::new(),
            queues: HashMap::new(),
            readers: Arc::new(Semaphore::new(8)),
            complained: BTreeSet::new(),
            due: None,
            first: true,
        }
    }

    /// Works until told to stop.
    pub(super) fn run(mut self, inbox: &mpsc::Receiver<Message>) {
        self.scan(&Reason::Clock);
        let mut next = Instant::now() + self.timing.rescan;
        loop {
            let until = self.due.map_or(next, |due| due.min(next));
            match inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(message) => {
                    if !self.take(message) || !self.gather(inbox) {
                        return;
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            let now = Instant::now();
            if now >= next {
                self.scan(&Reason::Clock);
                next = Instant::now() + self.timing.rescan;
            } else if self.hints.look || self.due.is_some_and(|due| now >= due) {
                self.scan(&Reason::Hint);
            }
        }
    }

    /// Takes everything that is there already, and what arrives together with a file that was just
    /// closed.
    fn gather(&mut self, inbox: &mpsc::Receiver<Message>) -> bool {
        let limit = Instant::now() + self.timing.gather;
        loop {
            let left = limit.saturating_duration_since(Instant::now());
            let wait = if self.hints.may_be_joined() {
                left
            } else if self.hints.look {
                left.min(self.timing.quiet)
            } else {
                Duration::ZERO
            };
            match inbox.recv_timeout(wait) {
                Ok(message) => {
                    if !self.take(message) {
                        return false;
                    }
                    if left.is_zero() {
                        return true;
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => return true,
                Err(mpsc::RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    /// Whether to go on.
    fn take(&mut self, message: Message) -> bool {
        match message {
            Message::Event(event) => self.hints.take(event, &self.root, &mut self.folders),
            Message::Rescan { app, again, reply } => {
                let waiter = Arc::new(Waiter {
                    dropped_count: AtomicUsize::new(0),
                    reply: Some(reply),
                });
                self.scan(&Reason::Asked { app, again, waiter });
            }
            Message::Report(report) => self.close(report),
            Message::Stop => return false,
        }
        true
    }

    /// Takes the result of a batch, and starts the next one of its queue.
    fn close(&mut self, report: Report) {
        for outcome in report.outcomes {
            let Some(seen) = self.files.get_mut(&outcome.path) else {
                continue; // deleted meanwhile
            };
            seen.busy = false;
            // What was told or seen of it while it was busy.
            self.hints.look |=
                seen.whole || seen.stamp != outcome.stamp || matches!(outcome.end, End::Changed);
            if outcome.racy {
                self.due = earlier(self.due, Instant::now() + self.timing.tick);
            }
            match outcome.end {
                End::Answered(sha256, verdict) => {
                    seen.known = Some(Known {
                        stamp: outcome.stamp,
                        sha256,
                        verdict,
                        racy: outcome.racy,
                    });
                }
                End::Later => seen.retry = Some(outcome.stamp),
                End::Changed => {}
            }
        }
        if let Some(queue) = self.queues.get_mut(&report.key) {
            queue.running = false;
            for waiter in queue.running_for.drain(..) {
                waiter
                    .dropped_count
                    .fetch_add(report.dropped_count, Ordering::Relaxed);
            }
            for waiter in std::mem::take(&mut queue.again_for) {
                let (app, again) = (report.key.clone(), true);
                self.scan(&Reason::Asked { app, again, waiter });
            }
        }
        self.start(&report.key);
    }

    /// Looks at everything.
    fn scan(&mut self, reason: &Reason) {
        self.due = None;
        let hints = self.hints.for_scan();
        let mut keys = BTreeSet::new();
        if let Some(listing) = self.list() {
            let present: HashSet<&Path> = listing.files.iter().map(|f| f.path.as_path()).collect();
            self.files.retain(|path, _| {
                present.contains(path.as_path())
                    || path.parent().is_some_and(|p| listing.blind.contains(p))
            });
            for found in &listing.files {
                keys.extend(self.look_at(found, &hints, reason));
            }
            for file in listing.triggers {
                self.pull(file);
            }
            self.first = false;
        }
        if let Reason::Asked { app, again, waiter } = reason {
            for (key, queue) in &mut self.queues {
                if app.is_some() && app != key {
                    continue;
                }
                if queue.running {
                    queue.running_for.push(Arc::clone(waiter));
                    if *again && key.is_some() {
                        queue.again_for.push(Arc::clone(waiter));
                    }
                }
                if !queue.pending.is_empty() {
                    queue.pending_for.push(Arc::clone(waiter));
                }
            }
        }
        for key in keys {
            self.start(&key);
        }
    }

    /// Has done what a file stands for, unless somebody still writes it.
    fn pull(&mut self, file: TriggerFile) {
        if !self.target.knows(&file.app) {
            let error = io::Error::other("there is no app of that name, so it commands nothing");
            return self.complain(&file.path.clone(), &error);
        }
        if matches!(writers(&file.path), Ok(Writers::Somebody)) {
            return; // its closing is told
        }
        let refused = if self.first {
            Some(
                "it lay there when the host was started, so it may be of long ago: touch it again"
                    .to_owned(),
            )
        } else if !self.target.watches(&file.app) {
            Some("the drop folder of this app is switched off (watch = \"off\")".to_owned())
        } else {
            self.target.admits(&file.path).err()
        };
        let path = file.path.clone();
        let trigger = match file.take() {
            Ok(trigger) => trigger,
            Err(error) => return self.complain(&path, &error),
        };
        if let Some(reason) = refused {
            let reason = format!("nothing was done: {reason}");
            self.target.refused(Some(&trigger.app), &path, &reason);
            return trigger::answer(&path, &Err(reason));
        }
        let target = Arc::clone(&self.target);
        let watcher = WatcherHandle {
            messages: self.messages.clone(),
        };
        self.runtime.spawn(async move {
            let ended = target.triggered(trigger, watcher).await;
            let answering = task::spawn_blocking(move || trigger::answer(&path, &ended));
            let _ = answering.await; // the runtime ends
        });
    }

    /// Decides about one file; gives the queue that it was put into.
    fn look_at(&mut self, found: &Found, hints: &Hints, reason: &Reason) -> Option<Key> {
        let now = Instant::now();
        let stamp = Stamp::of(&found.facts);
        let seen = self.files.entry(found.path.clone()).or_insert(Seen {
            stamp,
            since: now,
            noticed: now,
            whole: false,
            lay_there: self.first,
            companions: found.companions,
            busy: false,
            open: false,
            retry: None,
            known: None,
            named: None,
        });
        if seen.stamp != stamp {
            (seen.stamp, seen.since, seen.whole, seen.lay_there) = (stamp, now, false, false);
        }
        seen.whole |= hints.is_whole(&found.path, &found.folder, &self.root);
        if seen.busy {
            return None; // looked at again when its batch ends
        }
        // Refused for want of one of them, perhaps.
        let accompanied = seen.companions != found.companions
            && seen
                .known
                .as_ref()
                .is_some_and(|known| known.stamp == stamp && known.verdict == Verdict::Failed);
        let again = accompanied || matches!(reason, Reason::Asked { again: true, .. });
        let retry = seen.retry == Some(stamp);
        let ticked = stamp.age().is_none_or(|age| age >= self.timing.tick);
        let wanted = match &seen.known {
            Some(known) if known.stamp == stamp => {
                if known.racy && !ticked {
                    self.due = earlier(self.due, now + self.timing.tick);
                }
                seen.whole
                    || known.racy && ticked
                    || again && may_be_tried_again(&known.verdict, &found.folder)
            }
            _ if retry && !seen.whole => !matches!(reason, Reason::Hint),
            _ => true,
        };
        if !wanted {
            return None;
        }
        let answered = seen.known.as_ref().is_some_and(|k| k.stamp == stamp);
        if !answered && !retry && !seen.whole {
            let quiet = stamp.age().unwrap_or_default().max(now - seen.since);
            let needed = if again || quiet >= self.timing.settle {
                // By its headers only, so it is cheap.
                if is_truncated(&found.path) {
                    self.timing.stale
                } else {
                    Duration::ZERO
                }
            } else {
                self.timing.settle
            };
            if quiet < needed {
                self.due = earlier(self.due, now + (needed - quiet));
                return None;
            }
        }
        let key = match &found.app {
            Some(app) => Some(app.clone()),
            None => match &seen.named {
                Some((named, key)) if *named == stamp && !seen.whole => key.clone(),
                _ => {
                    let key = peek(&found.path).map(|manifest| manifest.app);
                    seen.named = Some((stamp, key.clone()));
                    key
                }
            },
        };
        if key.as_ref().is_some_and(|app| !self.target.watches(app)) {
            return None;
        }
        if let Reason::Asked { app: Some(app), .. } = reason
            && key.as_ref() != Some(app)
            && (again || retry)
            && !seen.whole
        {
            return None; // not what was asked for
        }
        let asked = matches!(reason, Reason::Asked { again: true, .. });
        let open = match writers(&found.path) {
            Ok(Writers::Nobody(_)) => false,
            Ok(Writers::Somebody) => true,
            // Events know less than the kernel: who only changed its length never closes it.
            Ok(Writers::Unknown) | Err(_) => self.hints.is_being_written(&found.path) && !asked,
        };
        if open {
            if asked || !seen.open {
                self.target.waits(key.as_ref(), &found.path, asked);
            }
            seen.open = true;
            return None;
        }
        (seen.busy, seen.whole, seen.open) = (true, false, false);
        seen.noticed = hints.since.unwrap_or(now);
        seen.companions = found.companions;
        let queue = self.queues.entry(key.clone()).or_default();
        queue.pending.insert(found.path.clone(), (stamp, again));
        Some(key)
    }

    /// Starts the next batch of a queue if none is running.
    fn start(&mut self, key: &Key) {
        let Some(queue) = self.queues.get_mut(key) else {
            return;
        };
        if queue.running {
            return;
        }
        let waiters = std::mem::take(&mut queue.pending_for);
        let mut candidates = Vec::new();
        for (path, (decided, again)) in std::mem::take(&mut queue.pending) {
            let Some(seen) = self.files.get_mut(&path) else {
                continue; // deleted meanwhile
            };
            let facts = fs::metadata(&path).ok();
            let stamp = facts.as_ref().map(Stamp::of);
            let told = seen.whole && stamp == Some(seen.stamp); // closed again while it waited
            let (Some(facts), Some(stamp)) = (facts, stamp.filter(|s| told || *s == decided))
            else {
                seen.busy = false; // what it is now has to be decided anew
                self.hints.look = true;
                continue;
            };
            seen.whole = false;
            candidates.push(Candidate {
                stamp,
                racy: stamp.age().is_some_and(|age| age < self.timing.tick),
                modified: facts.modified().unwrap_or(UNIX_EPOCH),
                by_folder: path.parent() != Some(&self.root),
                again,
                retried: seen.retry.take() == Some(stamp),
                known: (seen.known.as_ref()).map(|k| (k.sha256, k.verdict.clone())),
                touched_only: (seen.known.as_ref()).is_some_and(|k| k.stamp == stamp),
                rewritten: (seen.known.as_ref()).is_some_and(|k| stamp.rewritten_since(&k.stamp)),
                lay_there: seen.lay_there && stamp == decided,
                noticed: seen.noticed,
                path,
            });
        }
        if candidates.is_empty() {
            return;
        }
        queue.running = true;
        queue.running_for = waiters;
        let batch = batch::run(
            key.clone(),
            candidates,
            self.fresh_state,
            self.store.clone(),
            Arc::clone(&self.target),
            Arc::clone(&self.readers),
        );
        let messages = self.messages.clone();
        self.runtime.spawn(async move {
            let _ = messages.send(Message::Report(batch.await)); // the scanner has ended
        });
    }

    /// Everything that could be a plugin; none when the drop folder itself cannot be read now.
    fn list(&mut self) -> Option<Listing> {
        let root = self.root.clone();
        if let Some(parent) = root.parent() {
            self.folders.arm(parent);
        }
        self.folders.arm(&root);
        let mut listing = Listing::default();
        let mut folders = Vec::new();
        match self.list_folder(&root, &None, &mut listing, Some(&mut folders)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(listing),
            Err(error) => {
                self.complain(&root, &error);
                return None;
            }
        }
        for (folder, app) in folders {
            self.folders.arm(&folder);
            match self.list_folder(&folder, &Some(app), &mut listing, None) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    self.complain(&folder, &error);
                    listing.blind.insert(folder);
                }
                _ => {}
            }
        }
        Some(listing)
    }

    fn list_folder(
        &mut self,
        folder: &Path,
        app: &Key,
        listing: &mut Listing,
        mut folders: Option<&mut Vec<(PathBuf, AppName)>>,
    ) -> io::Result<()> {
        let mut names = BTreeSet::new();
        let mut answers = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.as_bytes().starts_with(b".") {
                continue;
            }
            let path = folder.join(&name);
            if answer::subject(&name).is_some() {
                answers.push((path, name));
                continue;
            }
            let is_plugin = is_plugin(&name);
            if !is_plugin && trigger::is_one(&name) {
                let facts = fs::symlink_metadata(&path).ok();
                let file = facts.and_then(|facts| TriggerFile::at(&path, &facts, app.as_ref()));
                listing.triggers.extend(file);
                continue;
            }
            if !is_plugin && folders.is_none() {
                continue;
            }
            if is_plugin {
                names.insert(answer::shortened(&name).into_owned());
            }
            let Ok(facts) = fs::metadata(&path) else {
                continue; // gone, or a link into nowhere
            };
            if facts.is_file() && is_plugin {
                listing.files.push(Found {
                    companions: Companions::of(&path),
                    path,
                    folder: folder.to_owned(),
                    app: app.clone(),
                    facts,
                });
            } else if facts.is_dir()
                && let Some(folders) = &mut folders
            {
                match name.to_string_lossy().parse() {
                    Ok(app) => folders.push((path, app)),
                    Err(error) => self.complain(&path, &io::Error::other(format!("{error}"))),
                }
            } else if is_plugin && !facts.is_dir() && self.complained.insert(path.clone()) {
                let what = match facts.file_type() {
                    kind if kind.is_fifo() => "a pipe",
                    kind if kind.is_socket() => "a socket",
                    _ => "a device",
                };
                let reason = format!("it is {what}, not a file, and is not read");
                self.target.refused(app.as_ref(), &path, &reason);
            }
        }
        for (path, name) in answers {
            if answer::subject(&name).is_none_or(|subject| !names.contains(subject)) {
                answer::clear_orphan(&path);
            }
        }
        Ok(())
    }

    fn complain(&mut self, folder: &Path, error: &io::Error) {
        if self.complained.insert(folder.to_owned()) {
            tracing::warn!(folder = %folder.display(), %error, "cannot look into a drop folder");
        }
    }
}

/// What was superseded has its turn when what was offered instead is gone.
fn may_be_tried_again(verdict: &Verdict, folder: &Path) -> bool {
    match verdict {
        Verdict::Deployed => false,
        Verdict::Failed => true,
        Verdict::Superseded(by) => !has(folder, by),
    }
}

/// Whether a file in `folder` has a name that is shown as `name`.
fn has(folder: &Path, name: &str) -> bool {
    let is_it = |entry: fs::DirEntry| shown::path(Path::new(&entry.file_name())) == name;
    folder.join(name).exists() || fs::read_dir(folder).is_ok_and(|list| list.flatten().any(is_it))
}

fn earlier(due: Option<Instant>, other: Instant) -> Option<Instant> {
    Some(due.map_or(other, |due| due.min(other)))
}
