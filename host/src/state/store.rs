//! The state of one app, and the stores of all apps.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{DirBuilder, File},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use handover_api::{AppName, StateStats};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;

use super::{
    clock::{self, now_ms},
    commit::{Commit, Committed, StateError},
    dump::entries_of,
    engine::{Engine, Record},
    partition::{Entries, Marking, Partition, Settings, Snapshot},
    place::{Namespace, Place},
    redb::Redb,
    ticket::{Pending, Ticket},
};

/// The stores of all apps. Cheap to clone.
#[derive(Clone)]
pub struct Stores(Arc<StoresInner>);

struct StoresInner {
    folder: PathBuf,
    settings: Box<dyn Fn(&AppName) -> Settings + Send + Sync>,
    runtime: Handle,
    /// None once the host ends.
    open: Mutex<Option<BTreeMap<AppName, Arc<Store>>>>,
}

impl fmt::Debug for Stores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stores").field(&self.0.folder).finish()
    }
}

impl Stores {
    /// Those whose files lie in `folder`, each app with its `settings`. Nothing is opened yet. To
    /// be called within the host's runtime.
    pub fn new(
        folder: PathBuf,
        settings: impl Fn(&AppName) -> Settings + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(StoresInner {
            folder,
            settings: Box::new(settings),
            runtime: Handle::current(),
            open: Mutex::new(Some(BTreeMap::new())),
        }))
    }

    /// The store of `app`. Nothing is opened yet.
    pub fn of(&self, app: &AppName) -> Arc<Store> {
        let make = || {
            Arc::new(Store {
                name: app.to_string(),
                file: Some(self.0.folder.join(format!("{app}.redb"))),
                settings: Arc::new(RwLock::new((self.0.settings)(app))),
                runtime: self.0.runtime.clone(),
                disk: Slot::default(),
                memory: Slot::default(),
                _folder: None,
            })
        };
        match &mut *self.0.open.lock() {
            Some(open) => Arc::clone(open.entry(app.clone()).or_insert_with(make)),
            None => {
                let store = make();
                store.close();
                store
            }
        }
    }

    /// Gives each store that was asked for the settings of its app as they are now.
    pub fn retune(&self) {
        for (app, store) in self.0.open.lock().iter().flatten() {
            *store.settings.write() = (self.0.settings)(app);
        }
    }

    /// A store beside that of `app`, whose file is gone when it is dropped. To be called where
    /// blocking is allowed.
    ///
    /// # Errors
    /// When no file can be made.
    pub fn scratch(&self, app: &AppName) -> std::io::Result<Store> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0.folder)?;
        let folder = tempfile::Builder::new()
            .prefix(".trying-")
            .tempdir_in(&self.0.folder)?;
        Ok(Store {
            name: format!("{app}-trial"),
            file: Some(folder.path().join("trial.redb")),
            settings: Arc::new(RwLock::new(Settings {
                max_size: u64::MAX,
                ..Settings::default()
            })),
            runtime: self.0.runtime.clone(),
            disk: Slot::default(),
            memory: Slot::default(),
            _folder: Some(folder),
        })
    }

    /// The file for a backup of what the state of `app` was before it was migrated from `schema`.
    pub(crate) fn backup_file(&self, app: &AppName, schema: u32) -> PathBuf {
        self.0.folder.join(format!("{app}.schema-{schema}.backup"))
    }

    /// The backups that there are of the state of `app`, as [`backup_file`](Self::backup_file)
    /// names them. Blocks on the disk.
    pub(crate) fn backup_files(&self, app: &AppName) -> Vec<PathBuf> {
        let begins = format!("{app}.schema-");
        let files = std::fs::read_dir(&self.0.folder).into_iter().flatten();
        let paths = files.flatten().map(|file| file.path());
        paths
            .filter(|path| {
                let name = path.file_name().and_then(|name| name.to_str());
                name.is_some_and(|name| name.starts_with(&begins) && name.ends_with(".backup"))
            })
            .collect()
    }

    /// Whether there is anything of `app` on the disk.
    pub fn is_known(&self, app: &AppName) -> bool {
        self.0.folder.join(format!("{app}.redb")).exists()
    }

    /// Writes what was handed over, and closes all files. Nothing can be read or written any more.
    /// Blocks on the disk.
    pub fn close(&self) {
        let open = self.0.open.lock().take();
        for store in open.into_iter().flatten().map(|(_, store)| store) {
            store.close();
        }
    }
}

/// The state of one app: what is kept on the disk, and what is kept in memory. Each is opened when
/// it is first asked for.
pub struct Store {
    name: String,
    /// None: all of it is in memory, as for a preflight check.
    file: Option<PathBuf>,
    settings: Arc<RwLock<Settings>>,
    runtime: Handle,
    disk: Slot,
    memory: Slot,
    /// That of its file, which goes with it, after that is closed.
    _folder: Option<tempfile::TempDir>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.name).finish()
    }
}

/// A partition that is opened when it is first asked for.
#[derive(Default)]
struct Slot {
    /// Read on each call, without a lock.
    open: arc_swap::ArcSwapOption<Partition>,
    /// RetainReasons while it is opened. True when it is closed for good.
    opening: Mutex<bool>,
}

impl Store {
    /// One that is kept in memory and forgotten with it: for a preflight check, or to try a backup.
    /// To be called within a runtime.
    pub fn scratch(name: &str, settings: Settings) -> Self {
        Self {
            name: name.to_owned(),
            file: None,
            settings: Arc::new(RwLock::new(settings)),
            runtime: Handle::current(),
            disk: Slot::default(),
            memory: Slot::default(),
            _folder: None,
        }
    }

    fn slot(&self, memory: bool) -> &Slot {
        if memory { &self.memory } else { &self.disk }
    }

    /// Runs `f` on a partition, which is opened first where it is not. Blocks on the disk then.
    pub(super) fn with<R>(
        &self,
        memory: bool,
        f: impl FnOnce(&Partition) -> R,
    ) -> Result<R, StateError> {
        let slot = self.slot(memory);
        if let Some(open) = &*slot.open.load() {
            return Ok(f(open));
        }
        self.open(memory, slot)?;
        match &*slot.open.load() {
            Some(open) => Ok(f(open)),
            None => Err(StateError::Unavailable("the host ends".to_owned())),
        }
    }

    #[cold]
    fn open(&self, memory: bool, slot: &Slot) -> Result<(), StateError> {
        let closed = slot.opening.lock();
        if *closed {
            return Err(StateError::Unavailable("the host ends".to_owned()));
        }
        if slot.open.load().is_some() {
            return Ok(());
        }
        let file = self.file.clone().filter(|_| !memory);
        if let Some(folder) = file.as_deref().and_then(Path::parent) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(|cause| {
                    StateError::Unavailable(format!("{} cannot be made: {cause}", folder.display()))
                })?;
        }
        if let Some(folder) = self.file.as_deref().and_then(Path::parent) {
            clock::begin(folder);
        }
        let partition = Partition::start(
            &self.name,
            Box::new(move || {
                let engine = match &file {
                    Some(file) => Redb::open(file)?,
                    None => Redb::in_memory()?,
                };
                Ok(Box::new(engine) as Box<dyn Engine>)
            }),
            Arc::clone(&self.settings),
            self.runtime.clone(),
        )?;
        slot.open.store(Some(Arc::new(partition)));
        Ok(())
    }

    /// Whether there is anything of it on the disk, or could be without a file being made.
    pub(crate) fn exists(&self) -> bool {
        self.disk.open.load().is_some() || self.file.as_ref().is_none_or(|file| file.exists())
    }

    /// `[app.NAME.state]`
    pub fn settings(&self) -> Settings {
        *self.settings.read()
    }

    /// Gives what is at `place` to `take`, if anything is. Blocks on the disk where the place is
    /// not in memory.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn get(
        &self,
        memory: bool,
        place: &Place,
        mut take: impl FnMut(Record<'_>),
    ) -> Result<(), StateError> {
        self.with(memory, |partition| {
            partition.read(|view| {
                // Most records have no end, and then nobody asks for the time.
                view.get(place.as_bytes(), &mut |record| {
                    if record.expires_ms == 0 || record.is_alive(now_ms()) {
                        take(record);
                    }
                })
            })
        })?
    }

    /// What was committed last.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn snapshot(&self, memory: bool) -> Result<Snapshot, StateError> {
        self.with(memory, Partition::snapshot)?
    }

    /// Hands `commit` over. It is made, or not, whatever becomes of what this gives.
    pub fn commit(&self, memory: bool, commit: Commit) -> Pending {
        self.with(memory, |partition| partition.commit(commit))
            .unwrap_or_else(|error| Pending::new(Ticket::ended(Err(error))))
    }

    /// Replaces everything on the disk by the backup in `file`, in one commit, which is refused
    /// where the backup is not whole.
    pub fn replace_by(&self, file: File) -> Pending {
        self.replace(entries_of(file))
    }

    fn replace(&self, entries: Box<Entries>) -> Pending {
        self.with(false, |partition| partition.replace(entries))
            .unwrap_or_else(|error| Pending::new(Ticket::ended(Err(error))))
    }

    /// Keeps what is on the disk now, returns to it, or forgets it, in one step that is durable
    /// when this has ended.
    pub(crate) fn mark(&self, marking: Marking) -> Pending {
        self.with(false, |partition| partition.mark(marking))
            .unwrap_or_else(|error| Pending::new(Ticket::ended(Err(error))))
    }

    /// Empties what is kept in memory only.
    pub(crate) fn forget_memory(&self) -> Pending {
        if self.memory.open.load().is_none() {
            return Pending::new(Ticket::ended(Ok(Committed::default())));
        }
        let none: Box<Entries> = Box::new(std::iter::empty());
        self.with(true, |partition| partition.replace(none))
            .unwrap_or_else(|error| Pending::new(Ticket::ended(Err(error))))
    }

    /// What there is of it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn stats(&self) -> Result<StateStats, StateError> {
        let snapshot = self.snapshot(false)?;
        let disk = snapshot.totals();
        let mut namespaces = snapshot.namespaces(false)?;
        namespaces.retain(|name| !Namespace::is_own(name));
        let memory = match &*self.memory.open.load() {
            Some(open) => {
                let snapshot = open.snapshot()?;
                namespaces.extend(snapshot.namespaces(true)?);
                snapshot.totals()
            }
            None => super::engine::Totals::default(),
        };
        let file = self.file.as_deref();
        Ok(StateStats {
            app: self.name.clone(),
            engine: "redb".to_owned(),
            keys: disk.keys,
            bytes: disk.bytes,
            max_bytes: self.settings().max_size,
            file_bytes: file
                .and_then(|file| file.metadata().ok())
                .map_or(0, |found| found.len()),
            version: disk.version,
            namespaces,
            memory_keys: memory.keys,
            memory_bytes: memory.bytes,
        })
    }

    /// Writes what was handed over, and closes its file.
    fn close(&self) {
        for slot in [&self.disk, &self.memory] {
            *slot.opening.lock() = true;
            // Whoever reads at this moment closes it.
            drop(slot.open.swap(None));
        }
    }
}
