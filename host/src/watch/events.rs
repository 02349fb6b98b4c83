//! The watched folders, and what their events hint at.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::mpsc,
    time::{Instant, SystemTime},
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind, RenameMode},
};

use super::{answer, scan::Message};

/// The folders under watch. A folder that was deleted and made again, or reached over a link that
/// was swapped, is watched anew.
pub(super) struct Folders {
    watcher: Option<RecommendedWatcher>,
    armed: BTreeMap<PathBuf, Identity>,
    complained: bool,
}

/// Which folder it is, whatever its path. The time of birth tells apart what got the inode of a
/// deleted one.
#[derive(PartialEq, Eq)]
struct Identity(u64, u64, Option<SystemTime>);

/// Watches the folder at `path` for a moment, to find out whether that can be done.
///
/// # Errors
/// What the kernel says.
pub(crate) fn try_to_watch(path: &Path) -> notify::Result<()> {
    let mut watcher = notify::recommended_watcher(|_| {})?;
    watcher.watch(path, RecursiveMode::NonRecursive)
}

impl Folders {
    /// Watches nothing yet. Without `events` it never will, and rescans must do.
    pub(super) fn new(messages: mpsc::Sender<Message>, events: bool) -> Self {
        let tell = move |event: notify::Result<Event>| {
            // Opening and reading is most of what is told, our own too.
            let reading = event.as_ref().is_ok_and(|event| {
                matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write))
            });
            if !reading {
                let _ = messages.send(Message::Event(event)); // the scanner has ended
            }
        };
        let watcher = events.then(|| notify::recommended_watcher(tell));
        let watcher = watcher.and_then(|made| {
            made.inspect_err(|error| {
                tracing::warn!(%error, "no file system events: drop folders are only looked at every two seconds");
            })
            .ok()
        });
        Self {
            watcher,
            armed: BTreeMap::new(),
            complained: false,
        }
    }

    /// Watches the folder at `path` if it is not watched yet. Done before its files are listed, so
    /// that nothing falls in between.
    pub(super) fn arm(&mut self, path: &Path) {
        let (Some(watcher), Ok(facts)) = (&mut self.watcher, fs::metadata(path)) else {
            return;
        };
        let identity = Identity(facts.dev(), facts.ino(), facts.created().ok());
        if self.armed.get(path) == Some(&identity) {
            return;
        }
        let _ = watcher.unwatch(path); // not watched, or the old one is gone already
        match watcher.watch(path, RecursiveMode::NonRecursive) {
            Ok(()) => {
                self.armed.insert(path.to_owned(), identity);
            }
            Err(error) => {
                self.armed.remove(path);
                if !self.complained {
                    tracing::warn!(folder = %path.display(), %error, "cannot watch a folder: it is only looked at every two seconds");
                    self.complained = true;
                }
            }
        }
    }

    /// Arms the folder at `path` anew at the next scan.
    fn disarm(&mut self, path: &Path) {
        self.armed.remove(path);
    }
}

/// Whether a file of this name is a plugin to be offered. Names need not be text.
pub(super) fn is_plugin(name: &OsStr) -> bool {
    name.as_bytes().ends_with(b".so") && !name.as_bytes().starts_with(b".")
}

/// What events hinted at since the last scan.
#[derive(Default)]
pub(super) struct Hints {
    /// Something happened that a rescan could see.
    pub(super) look: bool,
    /// When the first of it was told.
    pub(super) since: Option<Instant>,
    /// Files closed after writing, or renamed in.
    closed: HashSet<PathBuf>,
    /// Whatever was made: links matter.
    made: HashSet<PathBuf>,
    /// What was renamed in and is no plugin: folders matter.
    renamed: HashSet<PathBuf>,
    /// The folders in which something was renamed that is no plugin itself, e.g. `..data`.
    turned: HashSet<PathBuf>,
    /// Files made or written to, and not closed since; whether they were written to.
    writing: HashMap<PathBuf, bool>,
}

impl Hints {
    /// Takes an event of a watcher of `root` and its parent.
    pub(super) fn take(
        &mut self,
        event: notify::Result<Event>,
        root: &Path,
        folders: &mut Folders,
    ) {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::debug!(%error, "the watcher of the drop folders reports an error: everything is looked at");
                folders.armed.clear();
                self.look = true;
                return;
            }
        };
        if event.need_rescan() {
            folders.armed.clear();
            self.writing.clear();
            self.look = true;
        }
        for path in event.paths {
            let name = path.file_name().unwrap_or_default();
            if !path.starts_with(root) || answer::is_ours(name) {
                continue;
            }
            let plugin = is_plugin(name);
            match event.kind {
                EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                    self.writing.remove(&path);
                    if plugin {
                        self.closed.insert(path);
                    }
                }
                EventKind::Access(_) => continue,
                EventKind::Modify(ModifyKind::Name(RenameMode::To)) => {
                    self.writing.remove(&path);
                    if plugin {
                        self.closed.insert(path);
                    } else {
                        self.turned.extend(path.parent().map(Path::to_owned));
                        self.renamed.insert(path);
                    }
                }
                EventKind::Modify(ModifyKind::Name(RenameMode::From)) | EventKind::Remove(_) => {
                    self.writing.remove(&path);
                    folders.disarm(&path);
                }
                EventKind::Modify(ModifyKind::Data(_)) => {
                    if plugin {
                        self.writing.insert(path, true);
                    }
                    continue; // nothing can be said of it before it is closed or quiet
                }
                EventKind::Create(_) => {
                    if plugin {
                        self.writing.entry(path.clone()).or_insert(false);
                    }
                    self.made.insert(path);
                }
                _ => {}
            }
            self.look = true;
            self.since.get_or_insert_with(Instant::now);
        }
    }

    /// Whether the file at `path`, directly in `folder` of the drop folder `root`, is whole as far
    /// as events can tell.
    pub(super) fn is_whole(&self, path: &Path, folder: &Path, root: &Path) -> bool {
        let is_link =
            |path: &Path| fs::symlink_metadata(path).is_ok_and(|facts| facts.is_symlink());
        let linked = |path: &Path, folder: &Path| {
            (self.made.contains(path) || self.turned.contains(folder)) && is_link(path)
        };
        self.closed.contains(path)
            || linked(path, folder)
            || folder != root && (self.renamed.contains(folder) || linked(folder, root))
    }

    /// Whether the file at `path` was written to and not closed since.
    pub(super) fn is_being_written(&self, path: &Path) -> bool {
        self.writing.get(path) == Some(&true)
    }

    /// Whether a closed file may soon be joined by another one of its folder.
    pub(super) fn may_be_joined(&self) -> bool {
        self.closed.iter().any(|closed| {
            self.writing
                .keys()
                .any(|writing| writing.parent() == closed.parent())
        })
    }

    /// The hints for one scan. What is being written stays known.
    pub(super) fn for_scan(&mut self) -> Self {
        let writing = std::mem::take(&mut self.writing);
        let hints = std::mem::take(self);
        self.writing = writing;
        hints
    }
}
