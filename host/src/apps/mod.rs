//! The orchestration: apps, their deploys, cutovers, drains and history.
//!
//! - [`app`]: what the host holds of one app while it runs
//! - [`saved`]: what it remembers of it over restarts
//! - [`room`]: room on the disk for that, taken in advance
//! - [`queue`]: whose turn it is to change what is live
//! - [`deploy`]: an artifact's way to being live, step by step
//! - [`cutover`]: the instant new requests go to the new generation, and where apps answer
//! - [`crash`]: who is to blame when the host crashed, and what is trusted
//! - [`culprit`]: what the last words of a host say about that
//! - [`drain`]: a replaced generation finishing what it has, its end, and the retry of what stays
//!   mapped
//! - [`leaks`]: what generations leave behind, and the budget for it
//! - [`residue`]: an estimate of what those without a heap of their own left in memory
//! - [`changed`]: what generations changed for the whole process
//! - [`growth`]: how much memory apps take while the process grows
//! - [`history`]: what was deployed, and what a rollback goes back to
//! - [`rollback`], [`reload`], [`drop_folder`]: the other ways in
//! - [`refused`]: uploads that were not taken
//! - [`verdict`]: whose verdict of preflight counts
//! - [`restore`]: what was live is live again after a restart
//! - [`stall`]: requests that hold their worker, and who serves the others meanwhile
//! - [`shutdown`]: the end of all generations
//! - [`operation`], [`events`], [`status`]: what people are told
//! - [`counters`], [`metrics`]: what is counted, and what machines are told
//!
//! No lock is held across an await, nor while a plugin's code may run.

mod app;
mod changed;
mod clock;
mod counters;
mod crash;
mod culprit;
mod cutover;
mod deploy;
mod drain;
mod drop_folder;
mod events;
mod growth;
mod history;
mod leaks;
mod metrics;
mod operation;
mod queue;
mod refused;
mod reload;
mod residue;
mod restore;
mod rollback;
mod room;
mod saved;
mod shutdown;
mod stall;
mod status;
mod verdict;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, atomic::AtomicBool},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use handover_api::{
    AppName, Cause, ConnectionsStatus, Event, EventKind, HistoryEntry, OperationResult, Outcome,
    Status, Wait,
};
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

pub(crate) use self::stall::{park_spares, sleeping_spares, wake_spares};
use self::{
    app::App, crash::Journal, deploy::Deadline, drain::RetainedLibraries, events::Events,
    leaks::Leaks, operation::Operations, reload::Reloads, room::Room, saved::Saved,
};
pub use self::{
    crash::Crashed,
    operation::{Interest, Operation},
};
use crate::{
    artifact::{Artifact, Store},
    config::{Config, Watch},
    dispatch::Routes,
    preflight::Scope,
    process,
    watch::WatcherHandle,
};

/// Everything the host runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Apps(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    store: Store,
    /// `<state>/apps`.
    records: PathBuf,
    routes: Arc<Routes>,
    apps: Mutex<BTreeMap<AppName, Arc<App>>>,
    /// Held while the routes of all apps are gathered and published, so that no cutover is
    /// undone by another one.
    publishing: Mutex<()>,
    operations: Operations,
    events: Events,
    reloads: Reloads,
    retained_libraries: RetainedLibraries,
    journal: Journal,
    room: Arc<Room>,
    leaks: Leaks,
    /// How many generations are on their way out.
    leaving: watch::Sender<usize>,
    /// Set when the host ends: nothing new is activated.
    closing: AtomicBool,
    started: Instant,
    listen: OnceLock<Vec<String>>,
    metrics_at: OnceLock<SocketAddr>,
    connections: ConnectionCounts,
    watcher: OnceLock<WatcherHandle>,
}

/// Who counts the connections of clients: somebody above.
#[derive(Default)]
struct ConnectionCounts(OnceLock<Box<dyn Fn() -> ConnectionsStatus + Send + Sync>>);

impl ConnectionCounts {
    fn now(&self) -> ConnectionsStatus {
        self.0.get().map(|count| count()).unwrap_or_default()
    }
}

impl fmt::Debug for ConnectionCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectionCounts")
    }
}

impl Apps {
    /// The apps of `config` and those that `state` remembers, none of them serving yet: see
    /// [`Apps::restore`].
    ///
    /// Blocks on the disk. Must be called within the host's runtime.
    ///
    /// # Errors
    /// When the state directory cannot be read or written.
    pub fn open(
        config: Config,
        state: &Path,
        store: Store,
        routes: Arc<Routes>,
    ) -> io::Result<Self> {
        let records = state.join("apps");
        std::fs::create_dir_all(&records)?;
        let room = Arc::new(Room::in_state(state));
        room.take();
        let apps = Self(Arc::new(Inner {
            store,
            routes,
            apps: Mutex::default(),
            publishing: Mutex::default(),
            operations: Operations::default(),
            events: Events::new(),
            reloads: Reloads::default(),
            retained_libraries: RetainedLibraries::default(),
            journal: Journal::new(state, Arc::clone(&room)),
            room,
            leaks: Leaks::default(),
            leaving: watch::Sender::new(0),
            closing: AtomicBool::new(false),
            started: Instant::now(),
            listen: OnceLock::new(),
            metrics_at: OnceLock::new(),
            connections: ConnectionCounts::default(),
            watcher: OnceLock::new(),
            records,
            config,
        }));
        let remembered = saved::known(&apps.0.records)?;
        for name in apps.0.config.apps.keys().cloned().chain(remembered) {
            apps.app(&name);
        }
        apps.publish();
        drain::sweep_retained(&apps);
        Ok(apps)
    }

    /// Says where the host serves, for the status. Once.
    pub fn serves_at(&self, addresses: Vec<String>) {
        let _ = self.0.listen.set(addresses);
    }

    /// Says who counts the connections of clients, for the status. Once.
    pub fn counts_connections(
        &self,
        count: impl Fn() -> ConnectionsStatus + Send + Sync + 'static,
    ) {
        let _ = self.0.connections.0.set(Box::new(count));
    }

    /// Says where the metrics can be had over TCP, for the status. Once.
    pub fn tells_metrics_at(&self, address: SocketAddr) {
        let _ = self.0.metrics_at.set(address);
    }

    /// Says who scans the drop folders, for reloads. Once.
    pub fn watched_by(&self, watcher: WatcherHandle) {
        let _ = self.0.watcher.set(watcher);
    }

    /// Looks for requests that hold one of so many workers for longer than `stall_after`, if that
    /// is wanted at all.
    pub fn look_for_stalls(&self, workers: usize, stall_after: Option<Duration>) {
        stall::watch(self, workers, stall_after);
    }

    /// What `handover status` shows.
    pub fn status(&self) -> Status {
        status::status(self)
    }

    /// What was deployed, newest last.
    pub fn history(&self, app: Option<&AppName>) -> Vec<HistoryEntry> {
        let mut shown: Vec<_> = self
            .all()
            .iter()
            .filter(|known| app.is_none_or(|name| known.name == *name))
            .flat_map(|known| {
                known.saved.read(|record| {
                    record
                        .history
                        .iter()
                        .map(|entry| (entry.place(), entry.shown(&known.name)))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        shown.sort_by_key(|(place, _)| *place);
        shown.into_iter().map(|(_, entry)| entry).collect()
    }

    /// The events so far, and those to come.
    pub fn events(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        self.0.events.follow()
    }

    /// Deploys a stored artifact to `app`, or to the app that its manifest names. Goes on when
    /// nobody listens.
    ///
    /// `stored_in` is how long it took to be stored, which is the first step that listeners hear
    /// of. `timeout` bounds the waiting, the checks and the start; passing it, the deploy fails and
    /// what is live stays live.
    pub fn deploy(
        &self,
        artifact: Artifact,
        stored_in: Duration,
        app: Option<AppName>,
        cause: Cause,
        timeout: Option<Duration>,
        wait: Wait,
    ) -> Operation {
        let app = self.app(app.as_ref().unwrap_or(&artifact.manifest.app));
        let plan = deploy::Plan {
            artifact,
            cause,
            source: None,
            noticed_in: None,
            stored_in: Some(stored_in),
            preflight: Some(Scope::All),
            stage: false,
            deadline: timeout.map(Deadline::after),
        };
        deploy::begin_deploy(self, app, plan, wait.into()).operation
    }

    /// Activates what is staged and re-scans the drop folder, of one app or of all.
    pub fn reload(&self, app: Option<AppName>, wait: Wait) -> Operation {
        reload::begin_reload(self, app, wait)
    }

    /// Goes back to the previous artifact, or to the one that `to` names (a version or a
    /// generation's number).
    pub fn rollback(&self, app: Option<AppName>, to: Option<String>, wait: Wait) -> Operation {
        rollback::begin_rollback(self, app, to, wait)
    }

    /// A running or recent operation by its id, from its beginning.
    pub fn operation(&self, id: &str) -> Option<Operation> {
        self.0.operations.listen(id)
    }

    /// Whether any app serves.
    pub fn any_serves(&self) -> bool {
        self.all().iter().any(|app| app.live().is_some())
    }

    /// Makes live again what was live when the host ended, or what was before it where that crashed
    /// the host, which `crashed` says. Ends when every app serves, or was found unable to.
    pub async fn restore(&self, crashed: Option<Crashed>) {
        growth::watch(self);
        restore::restore(self, crashed).await;
    }

    /// Has the last words of this host written to `supervisor`, or without one into a file. Gives
    /// what the host before has written there. Blocks.
    pub fn hear_last_words(&self, supervisor: Option<OwnedFd>) -> Option<Crashed> {
        self.0.journal.hear_last_words(supervisor)
    }

    /// Ends all generations: lets them finish up to `deadline`, then cancels what still runs.
    /// Nothing can be deployed any more.
    pub async fn shutdown(&self, deadline: Duration) {
        let apps = self.clone();
        // On a worker: the apps are told to end from here, and the ledger visits workers only.
        if let Err(error) =
            tokio::spawn(async move { shutdown::shutdown(&apps, deadline).await }).await
        {
            tracing::error!(%error, "the apps could not be ended in order");
        }
        self.0.journal.end();
    }

    /// The apps of the configuration whose drop folders are watched.
    pub fn with_drop_folders(&self) -> impl Iterator<Item = &AppName> {
        let apps = self.0.config.apps.iter();
        apps.filter(|(_, settings)| settings.watch != Watch::Off)
            .map(|(name, _)| name)
    }

    /// The app of that name, new if nobody knew it. A new one reads its record from the disk.
    fn app(&self, name: &AppName) -> Arc<App> {
        let mut apps = self.0.apps.lock();
        if let Some(app) = apps.get(name) {
            return Arc::clone(app);
        }
        let (saved, trouble) = Saved::open(&self.0.records, name, Arc::clone(&self.0.room));
        let app = Arc::new(App::new(name.clone(), self.0.config.app(name), saved));
        apps.insert(name.clone(), Arc::clone(&app));
        drop(apps);
        if let Some(trouble) = trouble {
            self.record_event(EventKind::State, &app, None, trouble);
        }
        app
    }

    /// The app of that name, if it exists.
    fn known(&self, name: &AppName) -> Option<Arc<App>> {
        self.0.apps.lock().get(name).cloned()
    }

    /// Every app, by name, those included whose first deploy was refused.
    fn all(&self) -> Vec<Arc<App>> {
        self.0.apps.lock().values().cloned().collect()
    }

    /// Every app that people are to see, by name.
    fn shown(&self) -> Vec<Arc<App>> {
        let mut all = self.all();
        all.retain(|app| self.0.config.apps.contains_key(&app.name) || app.has_anything());
        all
    }

    fn record_event(
        &self,
        kind: EventKind,
        app: &App,
        generation: Option<handover_api::GenerationId>,
        message: impl Into<String>,
    ) {
        self.0
            .events
            .record(kind, Some(&app.name), generation, message);
    }
}

/// A result about `app` as it is now.
fn result(outcome: Outcome, app: &App, message: impl Into<String>) -> OperationResult {
    let live = app.live();
    OperationResult {
        outcome,
        message: message.into(),
        app: Some(app.name.clone()),
        generation: live.as_ref().map(|spec| spec.id),
        version: live.as_ref().map(|spec| spec.version.clone()),
        artifact: live.map(|spec| spec.artifact.to_string()),
        notes: Vec::new(),
    }
}

/// A result before any app was found.
fn no_app(outcome: Outcome, message: impl Into<String>) -> OperationResult {
    OperationResult {
        outcome,
        message: message.into(),
        app: None,
        generation: None,
        version: None,
        artifact: None,
        notes: Vec::new(),
    }
}

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}
