//! What is watched: the folders that a crate is built from, and when they have changed.

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::artifact::{Hasher, Sha256};

/// How long it must be quiet after a change: an editor that saves all files makes one build.
const QUIET: Duration = Duration::from_millis(50);
/// How long quiet is waited for.
const IMPATIENCE: Duration = Duration::from_secs(1);

/// The watched folders. Each is watched by itself, so that what is ignored costs nothing, as a
/// target folder inside would.
#[derive(Debug)]
pub(super) struct Sources {
    watcher: RecommendedWatcher,
    changes: mpsc::UnboundedReceiver<PathBuf>,
    /// Covered with all that is in them.
    trees: BTreeSet<PathBuf>,
    watched: BTreeSet<PathBuf>,
    /// What there was at each path that changed, when it was told last. The build that followed has
    /// read that or something newer.
    told: HashMap<PathBuf, Option<Sha256>>,
    target: PathBuf,
}

impl Sources {
    /// Watches nothing yet. `target` is cargo's target folder, which is never source.
    pub(super) fn new(target: &Path) -> Result<Self, String> {
        let (tx, changes) = mpsc::unbounded_channel();
        let ours = target.to_owned();
        let watcher =
            notify::recommended_watcher(move |event: notify::Result<Event>| match event {
                Ok(event) if matches!(event.kind, EventKind::Access(_)) => {}
                Ok(event) => {
                    for path in event
                        .paths
                        .into_iter()
                        .filter(|path| is_source(path, &ours))
                    {
                        // Nobody listens any more: the session is over.
                        let _ = tx.send(path);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a change may have been missed: save a file again")
                }
            })
            .map_err(|error| format!("the source cannot be watched: {error}"))?;
        Ok(Self {
            watcher,
            changes,
            trees: BTreeSet::new(),
            watched: BTreeSet::new(),
            told: HashMap::new(),
            target: target.to_owned(),
        })
    }

    /// Watches `folders` with all that is in them.
    pub(super) fn cover(&mut self, folders: &BTreeSet<PathBuf>) {
        self.trees.extend(folders.iter().cloned());
        self.cover_new();
    }

    /// Watches the folders of `files`, where they are not covered already.
    pub(super) fn cover_files(&mut self, files: &[PathBuf]) {
        for file in files {
            let Some(folder) = file.parent() else {
                continue;
            };
            // What a build script wrote into the target folder is made from what is watched.
            if !folder.starts_with(&self.target) && !self.watched.contains(folder) {
                self.watch(folder);
            }
        }
    }

    /// Waits for a change, and for the quiet after it. Gives the paths that changed, in their
    /// order.
    ///
    /// Changes since the last call count, so none during a build is missed. What was written anew
    /// with the same content has not changed: else a build script that writes beside its sources
    /// would cause the next build, for ever.
    pub(super) async fn changed(&mut self) -> Vec<PathBuf> {
        loop {
            let mut changed = self.touched().await;
            self.cover_new();
            changed.retain(|path| self.is_news(path));
            if !changed.is_empty() {
                return changed;
            }
        }
    }

    /// Waits until something is touched, and for the quiet after it.
    async fn touched(&mut self) -> Vec<PathBuf> {
        let Some(first) = self.changes.recv().await else {
            // The watcher is ours and keeps the sender.
            return std::future::pending().await;
        };
        let mut touched = vec![first];
        let quiet = async {
            while let Ok(Some(path)) = tokio::time::timeout(QUIET, self.changes.recv()).await {
                if !touched.contains(&path) {
                    touched.push(path);
                }
            }
        };
        let _ = tokio::time::timeout(IMPATIENCE, quiet).await;
        touched
    }

    /// Whether there is something else at `path` than was told last. Remembers it as told.
    fn is_news(&mut self, path: &Path) -> bool {
        let mut hasher = Hasher::default();
        let there = digest(path, &self.target, &mut hasher).then(|| hasher.finish().0);
        self.told.insert(path.to_owned(), there) != Some(there)
    }

    /// Folders that were made since.
    fn cover_new(&mut self) {
        self.watched.retain(|folder| folder.is_dir());
        let mut to_visit: Vec<_> = self.trees.iter().cloned().collect();
        while let Some(folder) = to_visit.pop() {
            let Ok(entries) = fs::read_dir(&folder) else {
                continue;
            };
            to_visit.extend(
                entries
                    .flatten()
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.path())
                    .filter(|path| is_source(path, &self.target)),
            );
            if !self.watched.contains(&folder) {
                self.watch(&folder);
            }
        }
    }

    fn watch(&mut self, folder: &Path) {
        match self.watcher.watch(folder, RecursiveMode::NonRecursive) {
            Ok(()) => {
                self.watched.insert(folder.to_owned());
            }
            Err(error) => tracing::warn!("changes in {} are not seen: {error}", folder.display()),
        }
    }
}

/// Feeds what is at `path` to `hasher`: the bytes of a file, or all sources of a folder with their
/// names. False when nothing can be read there.
fn digest(path: &Path, target: &Path, hasher: &mut Hasher) -> bool {
    if let Ok(entries) = fs::read_dir(path) {
        let mut sources: Vec<_> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| is_source(path, target))
            .collect();
        sources.sort();
        for source in sources {
            hasher.update(source.as_os_str().as_encoded_bytes());
            digest(&source, target, hasher);
        }
        return true;
    }
    fs::read(path).is_ok_and(|bytes| {
        hasher.update(&bytes.len().to_le_bytes());
        hasher.update(&bytes);
        true
    })
}

/// Whether a change of `path`, which lies in a watched folder, can change the build.
fn is_source(path: &Path, target: &Path) -> bool {
    let Some(name) = path.file_name().and_then(OsStr::to_str) else {
        return true;
    };
    let ignored = name.starts_with('.')
        // What cargo and other tools make. A lock file is written by the build itself.
        || matches!(name, "target" | "node_modules" | "Cargo.lock")
        || path == target
        // What editors leave for a moment: vim, emacs, JetBrains, and others.
        || name.ends_with('~')
        || (name.starts_with('#') && name.ends_with('#'))
        || name == "4913"
        || [".swp", ".swx", ".swo", ".tmp", ".bak", ".orig", "___jb_tmp___", "___jb_old___"]
            .iter()
            .any(|suffix| name.ends_with(suffix));
    !ignored
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn what_tools_leave_behind_is_no_source() {
        let target = Path::new("/w/out");
        for ignored in [
            "/w/target",
            "/w/out",
            "/w/.git",
            "/w/src/.lib.rs.swp",
            "/w/src/lib.rs~",
            "/w/src/4913",
            "/w/src/#lib.rs#",
            "/w/Cargo.lock",
            "/w/node_modules",
            "/w/src/lib.rs.tmp",
            "/w/src/lib.rs___jb_tmp___",
        ] {
            assert!(!is_source(Path::new(ignored), target), "{ignored}");
        }
        for source in [
            "/w/src/lib.rs",
            "/w/Cargo.toml",
            "/w/build.rs",
            "/w/templates/a.html",
            "/w/assets/a.css",
        ] {
            assert!(is_source(Path::new(source), target), "{source}");
        }
    }

    #[tokio::test]
    async fn a_change_is_seen_also_in_a_folder_that_is_new() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let mut sources = Sources::new(&root.join("target")).unwrap();
        sources.cover(&[root.clone()].into());

        fs::write(root.join("lib.rs~"), "").unwrap();
        fs::write(root.join("lib.rs"), "").unwrap();
        seen(&mut sources, &root.join("lib.rs")).await;

        fs::create_dir_all(root.join("pages/deep")).unwrap();
        seen(&mut sources, &root.join("pages")).await;
        fs::write(root.join("pages/deep/index.html"), "").unwrap();
        seen(&mut sources, &root.join("pages/deep/index.html")).await;
    }

    #[tokio::test]
    async fn what_is_written_anew_as_it_was_has_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let mut sources = Sources::new(&root.join("target")).unwrap();
        sources.cover(&[root.clone()].into());
        let (made, other) = (root.join("made.rs"), root.join("other.rs"));
        fs::write(&made, "1").unwrap();
        seen(&mut sources, &made).await;
        for n in 0..3 {
            fs::write(&made, "1").unwrap();
            fs::write(&other, format!("{n}")).unwrap();
            // It may come in two bursts, and none of them is about the first one.
            let changed = sources.changed().await;
            assert_eq!(changed, std::slice::from_ref(&other));
        }
        fs::write(&made, "2").unwrap();
        seen(&mut sources, &made).await;
        fs::remove_file(&made).unwrap();
        seen(&mut sources, &made).await;
        fs::write(&made, "2").unwrap();
        seen(&mut sources, &made).await;
    }

    async fn seen(sources: &mut Sources, path: &Path) {
        loop {
            let changed = sources.changed().await;
            assert!(changed.iter().all(|path| !path.ends_with("lib.rs~")));
            if changed.iter().any(|changed| changed == path) {
                return;
            }
        }
    }
}
