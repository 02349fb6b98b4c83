//! What the outside may ask for: the apps, as the control socket, the drop folders and `dev` see
//! them.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use handover_api::{
    AppName, Cause, Event, EventKind, HistoryEntry, OperationResult, Status, Wait, query,
};
use parking_lot::Mutex;
use tokio::{sync::broadcast, task::JoinSet};

use crate::{
    apps::registry::Registry,
    artifact::{Artifact, Store, StoreError},
    config::{Config, Watch},
    dispatch::Routes,
    net::tls::Reloaded,
    operations::operation::Operation,
    preflight::Scope,
    records::{
        journal::{Crashed, Journal},
        room::Room,
    },
    report::{
        changed, growth,
        metrics::Metrics,
        panics,
        status::{self, Surface},
    },
    rollout::{
        Rollout,
        deploy::{self, Deadline, Destination, Plan},
        labels, reload, restore, rollback, shutdown,
    },
    shadow::Shadow,
    state::{self, Stores},
    telemetry::exposition::Exposition,
    watch::{self, WatcherHandle},
    watchdog::stall,
    work::AppWork,
};

/// How often panics are looked for, what was changed for all, and what could not be written.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Everything that the host runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Orchestrator(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    rollout: Rollout,
    started: Instant,
    /// Held for the threads that look at the apps: they end when it is gone.
    alive: Arc<()>,
    /// Ends with this.
    background: Mutex<JoinSet<()>>,
}

impl Orchestrator {
    /// Opens the apps of `config` and those that `state` remembers, none of them serving yet: see
    /// [`Orchestrator::restore`].
    ///
    /// `shadow` has what the host before could not write. Blocks on the disk. Must be called within
    /// the host's runtime.
    ///
    /// # Errors
    /// When the state directory cannot be read or written.
    pub fn open(
        config: Config,
        state: &Path,
        store: Store,
        routes: Arc<Routes>,
        shadow: Option<Shadow>,
    ) -> io::Result<Self> {
        let room = Arc::new(Room::in_state(state, shadow));
        room.take();
        let journal = Journal::new(state, Arc::clone(&room));
        let registry = Registry::open(config, state, room, routes)?;
        let rollout = Rollout::new(registry, store, journal);
        let mut background = JoinSet::new();
        background.spawn(look(rollout.registry.clone()));
        background.spawn(restore::catch_up_always(rollout.clone()));
        background.spawn(rollout.clone().retry_retained());
        Ok(Self(Arc::new(Inner {
            rollout,
            started: Instant::now(),
            alive: Arc::new(()),
            background: Mutex::new(background),
        })))
    }

    fn registry(&self) -> &Registry {
        &self.0.rollout.registry
    }

    /// Records what became of certificates whose files have changed.
    pub(crate) fn record_certificates(&self, reloaded: Reloaded) {
        let (kind, message) = match reloaded {
            Reloaded::Loaded(message) => (EventKind::CertificateLoaded, message),
            Reloaded::Kept(message) => (EventKind::CertificateFailed, message),
        };
        self.registry().events().record(kind, None, None, message);
    }

    /// Looks for requests that hold one of `workers` workers for longer than `stall_after`.
    pub fn look_for_stalls(&self, workers: usize, stall_after: Duration) {
        let retained = self.0.rollout.retained.clone();
        let alive = Arc::downgrade(&self.0.alive);
        stall::watch(self.registry(), workers, stall_after, alive, move || {
            retained.stir();
        });
    }

    /// Returns what `handover status` shows.
    pub fn status(&self, surface: Surface) -> Status {
        let up = self.0.started.elapsed();
        status::status(self.registry(), &self.0.rollout.leaks, up, surface)
    }

    /// Writes the metrics of all apps and of the process. Reads files of `/proc`.
    pub fn write_metrics(&self, to: &mut Exposition) {
        let metrics = Metrics {
            registry: self.registry(),
            leaks: &self.0.rollout.leaks,
            up: self.0.started.elapsed(),
        };
        metrics.write(to);
    }

    /// Returns what was deployed, newest last.
    pub fn history(&self, app: Option<&AppName>) -> Vec<HistoryEntry> {
        let mut shown: Vec<_> = self
            .registry()
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

    /// Returns the events so far, and those to come.
    pub fn events(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        self.registry().events().follow()
    }

    /// Deploys a stored artifact to `app`, or to the app that its manifest names. Goes on when
    /// nobody listens.
    ///
    /// `stored_in` is how long it took to be stored, which is the first step that listeners hear
    /// of. The timeout that is `asked` for bounds the waiting, the checks and the start; passing
    /// it, the deploy fails and what is live stays live.
    pub fn deploy(
        &self,
        artifact: Artifact,
        stored_in: Duration,
        cause: Cause,
        asked: query::Deploy,
    ) -> Operation {
        let app = self
            .registry()
            .app(asked.app.as_ref().unwrap_or(&artifact.manifest.app));
        let ttl = asked.ttl_ms.map(Duration::from_millis);
        let destination = asked.label.map_or(Destination::Live, |label| {
            let ttl = ttl.or(app.settings.labels.ttl);
            Destination::Label { label, ttl }
        });
        let wait = Wait::from_query(asked.queue, asked.detach);
        let plan = Plan {
            artifact,
            cause,
            source: None,
            noticed_in: None,
            stored_in: Some(stored_in),
            preflight: Some(Scope::All),
            destination,
            up: None,
            deadline: asked
                .timeout_ms
                .map(|timeout| Deadline::after(Duration::from_millis(timeout))),
            orphan_jobs: asked.orphan_jobs,
        };
        deploy::begin_deploy(&self.0.rollout, app, plan, wait.into()).operation
    }

    /// Records that the upload of `file` was not taken: for `app`, or for the app that its manifest
    /// names if it can be read that far.
    pub async fn not_taken(
        &self,
        file: &str,
        app: Option<AppName>,
        error: &StoreError,
    ) -> OperationResult {
        self.0.rollout.not_taken(file, app, error).await
    }

    /// Activates what is staged and has the drop folder scanned by `watcher`, of one app or of all.
    pub fn reload(&self, app: Option<AppName>, wait: Wait, watcher: &WatcherHandle) -> Operation {
        reload::begin_reload(&self.0.rollout, app, wait, watcher)
    }

    /// Goes back to the previous artifact, or to the one that `to` names (a version or a
    /// generation's number).
    pub fn rollback(&self, app: Option<AppName>, to: Option<String>, wait: Wait) -> Operation {
        rollback::begin_rollback(&self.0.rollout, app, to, wait)
    }

    /// Makes live what is up under a label.
    pub fn promote(&self, asked: query::Labelled) -> Operation {
        labels::begin_promote(&self.0.rollout, asked)
    }

    /// Ends what is up under a label.
    pub fn abort(&self, asked: query::Labelled) -> Operation {
        labels::begin_abort(&self.0.rollout, asked)
    }

    /// Returns a running or recent operation by its id, from its beginning.
    pub fn operation(&self, id: &str) -> Option<Operation> {
        self.0.rollout.operations.listen(id)
    }

    /// Returns what the apps keep in the host.
    pub fn stores(&self) -> &Stores {
        self.registry().stores()
    }

    /// Returns the state of `app`; none when nobody knows it.
    pub fn state(&self, app: &AppName) -> Option<Arc<state::Store>> {
        let is_known = self.registry().known(app).is_some() || self.stores().is_known(app);
        is_known.then(|| self.stores().of(app))
    }

    /// Returns the work of the apps that people are to see.
    pub(crate) fn work(&self) -> Vec<(AppName, Arc<AppWork>)> {
        let apps = self.registry().shown().into_iter();
        apps.map(|app| (app.name.clone(), self.work_of(&app.name)))
            .collect()
    }

    /// Returns the work of `app`.
    pub(crate) fn work_of(&self, app: &AppName) -> Arc<AppWork> {
        self.registry().work().of(app)
    }

    /// Returns whether any app serves.
    pub fn any_serves(&self) -> bool {
        self.registry().all().iter().any(|app| app.live().is_some())
    }

    /// Makes live again what was live when the host ended, or what was before it where that crashed
    /// the host, which `crashed` says. Ends when every app serves, or was found unable to.
    pub async fn restore(&self, crashed: Option<Crashed>) {
        let alive = Arc::downgrade(&self.0.alive);
        growth::watch(self.registry(), &self.0.rollout.journal, alive);
        restore::restore(&self.0.rollout, crashed).await;
    }

    /// Has the last words of this host written to `supervisor`, or without one into a file. Returns
    /// what the host before has written there. Blocks.
    pub fn hear_last_words(&self, supervisor: Option<OwnedFd>) -> Option<Crashed> {
        self.0.rollout.journal.hear_last_words(supervisor)
    }

    /// Ends all generations: lets them finish up to `deadline`, then cancels what still runs.
    /// Nothing can be deployed any more. Once the process has nothing left to do,
    /// [`Orchestrator::ended`] says so.
    pub async fn shutdown(&self, deadline: Duration) {
        let rollout = self.0.rollout.clone();
        // On a worker: the apps are told to end from here, and the ledger visits workers only.
        if let Err(error) =
            tokio::spawn(async move { shutdown::shutdown(&rollout, deadline).await }).await
        {
            tracing::error!(%error, "the apps could not be ended in order");
        }
        self.0.background.lock().abort_all();
    }

    /// Writes down that this host has ended, and did not crash. Blocks.
    pub fn ended(&self) {
        self.0.rollout.journal.end();
    }

    /// Starts to watch the drop folders in `folder`.
    pub fn watch_drop_folders(&self, folder: PathBuf) -> WatcherHandle {
        let rollout = self.0.rollout.clone();
        watch::spawn(folder, rollout.store.clone(), Arc::new(rollout))
    }

    /// Returns the apps of the configuration whose drop folders are watched.
    pub fn with_drop_folders(&self) -> impl Iterator<Item = &AppName> {
        let apps = self.registry().config().apps.iter();
        apps.filter(|(_, settings)| settings.watch != Watch::Off)
            .map(|(name, _)| name)
    }
}

/// Records panics, and what was changed for all, for as long as the apps are there.
async fn look(registry: Registry) {
    let mut panics = std::collections::HashMap::new();
    loop {
        panics::record_panics(&registry, &mut panics);
        changed::record_changes(&registry);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
