//! What is watched: the folders that a crate is built from, and when they have changed.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::beside;
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
    /// What was touched and has not been told yet.
    touched: Vec<PathBuf>,
    /// Covered with all that is in them.
    trees: BTreeSet<PathBuf>,
    watched: BTreeSet<PathBuf>,
    /// What there was at each path that changed, when it was told last. The build that followed has
    /// read that or something newer.
    told: HashMap<PathBuf, Option<Sha256>>,
    target: PathBuf,
    /// Files that count whatever their names are.
    settings: Arc<[PathBuf]>,
    /// What the last build that ended well read, as cargo says; none before the first one.
    built_from: Option<BTreeSet<PathBuf>>,
    /// What is known to change nothing.
    idle: HashSet<PathBuf>,
}

/// What has changed.
#[derive(Debug)]
pub(super) struct Changed {
    /// In the order of the changes.
    pub(super) paths: Vec<PathBuf>,
    /// Whether a build reads one of them. Otherwise only a build can tell.
    pub(super) is_source: bool,
}

impl Sources {
    /// Watches the files of `settings` only. `target` is cargo's target folder, which is never
    /// source.
    pub(super) fn new(target: &Path, settings: Vec<PathBuf>) -> Result<Self, String> {
        let (tx, changes) = mpsc::unbounded_channel();
        let ours = target.to_owned();
        let settings: Arc<[PathBuf]> = settings.into();
        let counts = Arc::clone(&settings);
        let watcher =
            notify::recommended_watcher(move |event: notify::Result<Event>| match event {
                Ok(event) if matches!(event.kind, EventKind::Access(_)) => {}
                Ok(event) => {
                    for path in event
                        .paths
                        .into_iter()
                        .filter(|path| is_source(path, &ours) || counts.contains(path))
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
        let mut sources = Self {
            watcher,
            changes,
            touched: Vec::new(),
            trees: BTreeSet::new(),
            watched: BTreeSet::new(),
            told: HashMap::new(),
            target: target.to_owned(),
            settings: Arc::clone(&settings),
            built_from: None,
            idle: HashSet::new(),
        };
        sources.cover_files(&settings);
        Ok(sources)
    }

    /// Whether one of `changed` holds settings.
    pub(super) fn any_setting(&self, changed: &[PathBuf]) -> bool {
        changed.iter().any(|path| self.settings.contains(path))
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

    /// Notes that a build read `files`, and watches their folders.
    pub(super) fn built_from(&mut self, files: Vec<PathBuf>) {
        self.cover_files(&files);
        self.built_from = Some(files.into_iter().collect());
    }

    /// Forgets what a build read: anything may be what the next one needs.
    pub(super) fn forget_built(&mut self) {
        self.built_from = None;
        self.idle.clear();
    }

    /// Notes that a build after the change of `paths` made what there was before: they are of no
    /// interest any more.
    pub(super) fn change_nothing(&mut self, paths: &[PathBuf]) {
        self.idle.extend(paths.iter().cloned());
    }

    /// Waits for a change, and for the quiet after it.
    ///
    /// Changes since the last call count, so none during a build is missed. What was written anew
    /// with the same content has not changed: else a build script that writes beside its sources
    /// would cause the next build, for ever.
    ///
    /// What git ignores and what the app writes does not count, unless a build reads it. May be
    /// dropped and called again.
    pub(super) async fn changed(&mut self) -> Changed {
        loop {
            self.be_touched().await;
            let mut paths = self.touched.clone();
            self.cover_new();
            paths.retain(|path| self.is_read(path) || !self.idle.contains(path));
            if paths.iter().any(|path| !self.is_read(path)) {
                let ignored = beside::ignored_by_git(&paths).await;
                let written = beside::open_for_writing();
                paths.retain(|path| {
                    let is_beside =
                        ignored.contains(path) || written.contains(path) || beside::is_data(path);
                    self.is_read(path) || !is_beside
                });
            }
            self.touched.clear();
            paths.retain(|path| self.is_news(path));
            if !paths.is_empty() {
                let is_source =
                    self.built_from.is_none() || paths.iter().any(|path| self.is_read(path));
                return Changed { paths, is_source };
            }
        }
    }

    /// Whether it is settings, a manifest, or what the last build read: a file, or all in a folder
    /// that a build script names.
    fn is_read(&self, path: &Path) -> bool {
        let is_built_from = self
            .built_from
            .as_ref()
            .is_some_and(|files| path.ancestors().any(|path| files.contains(path)));
        is_built_from || self.settings.iter().any(|one| one == path) || path.ends_with("Cargo.toml")
    }

    /// Waits until something is touched, and for the quiet after it.
    async fn be_touched(&mut self) {
        if self.touched.is_empty() {
            let Some(first) = self.changes.recv().await else {
                // The watcher is ours and keeps the sender.
                return std::future::pending().await;
            };
            self.touched.push(first);
        }
        let quiet = async {
            while let Ok(Some(path)) = tokio::time::timeout(QUIET, self.changes.recv()).await {
                if !self.touched.contains(&path) {
                    self.touched.push(path);
                }
            }
        };
        let _ = tokio::time::timeout(IMPATIENCE, quiet).await;
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
        let mut sources = Sources::new(&root.join("target"), Vec::new()).unwrap();
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
        let mut sources = Sources::new(&root.join("target"), Vec::new()).unwrap();
        sources.cover(&[root.clone()].into());
        let (made, other) = (root.join("made.rs"), root.join("other.rs"));
        fs::write(&made, "1").unwrap();
        seen(&mut sources, &made).await;
        for n in 0..3 {
            fs::write(&made, "1").unwrap();
            fs::write(&other, format!("{n}")).unwrap();
            // It may come in two bursts, and none of them is about the first one.
            let changed = sources.changed().await.paths;
            assert_eq!(changed, std::slice::from_ref(&other));
        }
        fs::write(&made, "2").unwrap();
        seen(&mut sources, &made).await;
        fs::remove_file(&made).unwrap();
        seen(&mut sources, &made).await;
        fs::write(&made, "2").unwrap();
        seen(&mut sources, &made).await;
    }

    #[tokio::test]
    async fn what_the_app_writes_has_not_changed_unless_a_build_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let mut sources = Sources::new(&root.join("target"), vec![root.join(".env")]).unwrap();
        sources.cover(&[root.clone()].into());
        let path = |name: &str| root.join(name);
        sources.built_from(vec![path("lib.rs"), path("cities.db"), path("pages")]);
        fs::create_dir(path("pages")).unwrap();
        let mut held = fs::File::create(path("held")).unwrap();
        let mut turn = 0;
        for (source, is_source) in [
            ("lib.rs", true),
            ("cities.db", true),
            ("pages/a.html", true),
            (".env", true),
            ("Cargo.toml", true),
            ("notes.txt", false),
        ] {
            turn += 1;
            std::io::Write::write_all(&mut held, b"more").unwrap();
            fs::write(path("shop.db"), [turn]).unwrap();
            fs::write(path("shop.db-wal"), [turn]).unwrap();
            fs::write(path(source), [turn]).unwrap();
            // It may come in two bursts.
            let changed = loop {
                let changed = sources.changed().await;
                let others = changed.paths.iter().filter(|path| !path.ends_with("pages"));
                if others.count() > 0 {
                    break changed;
                }
            };
            let of = changed.paths.iter().filter(|path| !path.ends_with("pages"));
            assert_eq!(of.collect::<Vec<_>>(), [&path(source)]);
            assert_eq!(changed.is_source, is_source, "{source}");
        }
        sources.change_nothing(&[path("notes.txt")]);
        fs::write(path("notes.txt"), "other").unwrap();
        fs::write(path("lib.rs"), "other").unwrap();
        assert_eq!(sources.changed().await.paths, [path("lib.rs")]);
    }

    async fn seen(sources: &mut Sources, path: &Path) {
        loop {
            let changed = sources.changed().await.paths;
            assert!(changed.iter().all(|path| !path.ends_with("lib.rs~")));
            if changed.iter().any(|changed| changed == path) {
                return;
            }
        }
    }
}
