//! The files of one app: those of its generations, and those of the versions before.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use handover_api::{AppName, AssetsStatus, GenerationId};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::{
    collection::Collection,
    file::File,
    kept::{self, Kept},
    name,
    served::{Counters, Served},
};
use crate::{artifact::Sha256, clock};

/// How many names a sentence has.
const NAMED: usize = 3;

/// What is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// Those of how many versions before the live one.
    pub(crate) keep: usize,
    /// Those of older ones as well, for how long after they were replaced.
    pub(crate) keep_for: Option<Duration>,
    /// How large they may be together, and those of one version.
    pub(crate) max_size: u64,
}

/// The files of one app.
#[derive(Debug)]
pub(crate) struct AppAssets {
    app: AppName,
    /// Where they are kept, and where that is done; none where they are thrown away.
    disk: Option<(PathBuf, Handle)>,
    settings: Mutex<Settings>,
    inner: Mutex<Inner>,
    /// Held while the disk is written to.
    writing: Mutex<()>,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Those of the generations that there are.
    collections: Vec<Weak<Collection>>,
    /// Which of them is live.
    live: Option<GenerationId>,
    /// The immutable ones of the live version and of those before, the newest first.
    kept: Vec<Kept>,
    /// All in memory, so that each is there once.
    files: HashMap<(Sha256, &'static str, bool), Weak<File>>,
}

impl Inner {
    fn file(&mut self, path: &str, sha256: Sha256, bytes: impl Into<Bytes>) -> Arc<File> {
        let is_immutable = name::has_hash(path);
        let key = (sha256, name::content_type(path).0, is_immutable);
        if let Some(known) = self.files.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        self.files.retain(|_, file| file.strong_count() > 0);
        let file = Arc::new(File::new(path, sha256, bytes.into(), is_immutable));
        self.files.insert(key, Arc::downgrade(&file));
        file
    }

    fn collection(&self, generation: GenerationId) -> Option<Arc<Collection>> {
        let mut collections = self.collections.iter().filter_map(Weak::upgrade);
        collections.find(|collection| collection.generation == generation)
    }
}

impl AppAssets {
    /// Those of `app`, of which some are kept in `dir`. Blocks on the disk. To be called within the
    /// host's runtime.
    pub(crate) fn open(app: AppName, dir: PathBuf, settings: Settings) -> Arc<Self> {
        let mut inner = Inner::default();
        let making = Mutex::new(&mut inner);
        let (kept, trouble) = kept::read(&dir, |path, sha256, bytes| {
            making.lock().file(path, sha256, bytes)
        });
        for why in trouble {
            tracing::warn!(%app, "an asset of a version before cannot be served: {why}");
        }
        inner.kept = kept;
        Arc::new(Self {
            app,
            disk: Some((dir, Handle::current())),
            settings: Mutex::new(settings),
            inner: Mutex::new(inner),
            writing: Mutex::default(),
            counters: Arc::default(),
        })
    }

    /// Those of an app in preflight, which are thrown away.
    pub(crate) fn scratch(app: AppName, max_size: u64) -> Arc<Self> {
        let settings = Settings {
            keep: 0,
            keep_for: None,
            max_size,
        };
        Arc::new(Self {
            app,
            disk: None,
            settings: Mutex::new(settings),
            inner: Mutex::default(),
            writing: Mutex::default(),
            counters: Arc::default(),
        })
    }

    /// Goes by `settings` from the next publication on.
    pub(crate) fn retune(&self, settings: Settings) {
        *self.settings.lock() = settings;
    }

    pub(super) fn max_size(&self) -> u64 {
        self.settings.lock().max_size
    }

    /// A generation begins, which hands over `collection`.
    pub(super) fn begin(&self, collection: &Arc<Collection>) {
        let mut inner = self.inner.lock();
        inner.collections.retain(|one| one.strong_count() > 0);
        inner.collections.push(Arc::downgrade(collection));
    }

    /// The file of `bytes`, which are copied where they are not known.
    pub(super) fn file(&self, path: &str, bytes: &[u8]) -> Arc<File> {
        let sha256 = Sha256::of(bytes);
        let bytes = Bytes::copy_from_slice(bytes);
        self.inner.lock().file(path, sha256, bytes)
    }

    /// Returns what requests find while `live` answers and `others` beside it; none where there is
    /// nothing. Those of `live` are kept from now on, and what is not kept any more is deleted.
    pub(crate) fn publish(
        self: &Arc<Self>,
        live: Option<GenerationId>,
        others: &[GenerationId],
    ) -> Option<Arc<Served>> {
        // While nothing answers, nothing does for the files either.
        let live = live?;
        let settings = *self.settings.lock();
        let is_changed = {
            let mut inner = self.inner.lock();
            let is_new = inner.live != Some(live) && inner.went_live(live);
            kept::prune(&mut inner.kept, &settings, clock::now_ms()) || is_new
        };
        let order: Vec<_> = [live].into_iter().chain(others.iter().copied()).collect();
        let served = self.served(&order);
        let is_to_compress = served.iter().flat_map(|served| served.files.values());
        let mut is_to_compress =
            is_to_compress.filter(|file| file.is_compressible && file.variants.get().is_none());
        if is_changed || is_to_compress.next().is_some() {
            self.save(served.clone());
        }
        served
    }

    /// Returns what requests find: the files of the generations in `order`, then those that are
    /// kept, the newest first.
    pub(crate) fn served(&self, order: &[GenerationId]) -> Option<Arc<Served>> {
        let inner = self.inner.lock();
        let mut served = Served {
            prefixes: Vec::new(),
            files: HashMap::new(),
            counters: Arc::clone(&self.counters),
        };
        for generation in order {
            if let Some(collection) = inner.collection(*generation) {
                let (prefixes, files) = collection.seal();
                served.add(&prefixes, files);
            }
        }
        for kept in &inner.kept {
            served.add(&kept.prefixes, kept.files.clone());
        }
        (!served.files.is_empty()).then(|| Arc::new(served))
    }

    /// Writes what is kept, and compresses what is served, on a thread where that may take long.
    fn save(self: &Arc<Self>, served: Option<Arc<Served>>) {
        let Some((dir, runtime)) = self.disk.clone() else {
            return;
        };
        let this = Arc::clone(self);
        runtime.spawn_blocking(move || {
            let _alone = this.writing.lock();
            let kept = this.inner.lock().kept.clone();
            if let Err(error) = kept::write(&dir, &kept) {
                let dir = dir.display();
                tracing::error!(app = %this.app, "its assets cannot be kept for a restart: {dir}: {error}");
            }
            for file in served.iter().flat_map(|served| served.files.values()) {
                kept::compress(&dir, file);
            }
        });
    }

    /// The names without a hash of what the generations hand over, as a sentence; none where all
    /// have one.
    pub(crate) fn without_hash(&self) -> Option<String> {
        let collections: Vec<_> = {
            let inner = self.inner.lock();
            inner.collections.iter().filter_map(Weak::upgrade).collect()
        };
        let files = collections.iter().map(|collection| collection.seal().1);
        let names = files.flat_map(|files| files.into_keys());
        let names: Vec<_> = names.filter(|path| !name::has_hash(path)).collect();
        let (first, more) = (names.iter().take(NAMED), names.len().saturating_sub(NAMED));
        let first: Vec<_> = first.map(|path| format!("`{path}`")).collect();
        match (first.is_empty(), more) {
            (true, _) => None,
            (false, 0) => Some(first.join(", ")),
            (false, more) => Some(format!("{} and {more} more", first.join(", "))),
        }
    }

    /// How they are; none where there is nothing and was nothing.
    pub(crate) fn status(&self) -> Option<AssetsStatus> {
        let requests = self.counters.requests.load(Ordering::Relaxed);
        let skewed = self.counters.skewed.load(Ordering::Relaxed);
        let inner = self.inner.lock();
        let live = inner.live.and_then(|live| inner.collection(live));
        let live = live.map_or_else(Default::default, |live| live.seal().1);
        let kept = inner.kept.iter().filter(|kept| kept.replaced_ms.is_some());
        let versions: Vec<_> = kept.clone().map(|kept| kept.version.clone()).collect();
        let all = live
            .values()
            .chain(kept.flat_map(|kept| kept.files.values()));
        let mut known = HashSet::new();
        let all = all.filter(|file| known.insert(file.sha256));
        let bytes = all.map(|file| file.bytes.len() as u64).sum();
        let is_nothing = bytes == 0 && versions.is_empty() && requests + skewed == 0;
        (!is_nothing).then(|| AssetsStatus {
            files: live.len() as u64,
            kept: versions,
            bytes,
            requests,
            skewed,
        })
    }
}

impl Inner {
    /// `generation` is live from now on. Returns whether what is kept is something else now.
    fn went_live(&mut self, generation: GenerationId) -> bool {
        self.live = Some(generation);
        let now = clock::now_ms();
        let mut is_changed = false;
        for kept in &mut self.kept {
            if kept.replaced_ms.is_none() {
                kept.replaced_ms = Some(now);
                is_changed = true;
            }
        }
        let Some(collection) = self.collection(generation) else {
            return is_changed;
        };
        let (prefixes, files) = collection.seal();
        let files = kept::immutable(&files);
        self.kept
            .retain(|kept| kept.artifact != collection.artifact);
        if files.is_empty() {
            return is_changed;
        }
        let kept = Kept {
            artifact: collection.artifact,
            version: collection.version.clone(),
            replaced_ms: None,
            prefixes,
            files,
        };
        self.kept.insert(0, kept);
        true
    }
}

impl Served {
    /// Adds files at paths where there are none.
    fn add(&mut self, prefixes: &[String], files: impl IntoIterator<Item = (String, Arc<File>)>) {
        for prefix in prefixes {
            if !self.prefixes.contains(prefix) {
                self.prefixes.push(prefix.clone());
            }
        }
        for (path, file) in files {
            self.files.entry(path).or_insert(file);
        }
    }
}
