//! What the outside may ask for: the apps, as the control socket, the drop folders and `dev` see
//! them.

use std::{
    collections::HashMap,
    fs::{DirBuilder, File},
    io,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use handover_api::{
    AppName, ArtifactReport, Cause, Event, EventKind, GenerationId, HistoryEntry, HolderStatus,
    Label, MessageAnswers, OperationResult, SettingsList, ShadowStatus, Status, TenantStatus, Wait,
    query,
};
use parking_lot::Mutex;
use tokio::{sync::broadcast, task::JoinSet};

use crate::{
    acme::Ordered,
    apps::registry::Registry,
    artifact::{Artifact, Store, StoreError},
    config::{Config, Watch},
    dispatch::Routes,
    net::tls::Reloaded,
    operations::operation::{Keyed, Operation},
    preflight::Scope,
    records::{
        audit::Audit,
        history::{self, Attribution},
        journal::{Crashed, Journal},
        room::Room,
    },
    report::{
        changed,
        figures::{self, Figures},
        growth,
        holders::{self, HolderId},
        metrics::Metrics,
        panics,
        status::{self, Surface},
    },
    rollout::{
        Rollout, availability, canary,
        deploy::{self, Deadline, Destination, Plan},
        labels, reload, restore, rollback,
        settings::{self, SettingsError},
        shutdown, tenants, verify,
    },
    spill::Spill,
    state::{self, Stores},
    telemetry::exposition::Exposition,
    watch::{self, WatcherHandle},
    watchdog::stall,
    work::AppWork,
};

/// How many holders are listed, where nobody said how many.
const HOLDERS: usize = 1000;

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
    /// `spill` has what the host before could not write. Blocks on the disk. Must be called within
    /// the host's runtime.
    ///
    /// # Errors
    /// When the state directory cannot be read or written.
    pub fn open(
        config: Config,
        state: &Path,
        store: Store,
        routes: Arc<Routes>,
        spill: Option<Spill>,
    ) -> io::Result<Self> {
        let room = Arc::new(Room::in_state(state, spill));
        room.take();
        let journal = Journal::new(state, Arc::clone(&room));
        let audit = Audit::open(&config.audit, state, Arc::clone(&room))?;
        let registry = Registry::open(config, state, room, routes)?;
        let rollout = Rollout::new(registry, store, journal, audit);
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

    /// Returns the audit log.
    pub(crate) fn audit(&self) -> Audit {
        self.0.rollout.audit.clone()
    }

    /// Lists the live settings of an app.
    ///
    /// # Errors
    /// When there is no such app.
    pub(crate) fn settings(&self, asked: query::OfApp) -> Result<SettingsList, SettingsError> {
        settings::list(&self.0.rollout, asked)
    }

    /// Changes a live setting of an app, or takes it away.
    ///
    /// # Errors
    /// When it is refused: nothing is changed then.
    pub(crate) async fn set(
        &self,
        asked: query::Set,
        value: Option<serde_json::Value>,
    ) -> Result<String, SettingsError> {
        settings::set(&self.0.rollout, asked, value).await
    }

    /// Sends a message to every version of an app that there is.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) async fn send(
        &self,
        asked: query::Send,
        text: String,
    ) -> Result<MessageAnswers, SettingsError> {
        settings::send(&self.0.rollout, asked, text).await
    }

    /// Records an event about no app.
    pub(crate) fn record(&self, kind: EventKind, message: impl Into<String>) {
        self.registry().events().record(kind, None, None, message);
    }

    /// Records what became of certificates whose files have changed.
    pub(crate) fn record_certificates(&self, reloaded: Reloaded) {
        let (kind, message) = match reloaded {
            Reloaded::Loaded(message) => (EventKind::CertificateLoaded, message),
            Reloaded::Kept(message) => (EventKind::CertificateFailed, message),
        };
        self.record(kind, message);
    }

    /// Records what became of the order of a certificate.
    pub(crate) fn record_order(&self, ordered: Ordered) {
        let (kind, message) = match ordered {
            Ordered::Issued(message) => (EventKind::CertificateIssued, message),
            Ordered::Failed(message) => (EventKind::CertificateNotIssued, message),
        };
        self.record(kind, message);
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

    /// Returns what each app has counted since the host started.
    pub(crate) fn figures(&self) -> Vec<(AppName, Figures)> {
        figures::figures(self.registry())
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
                let now = known.running(|running| {
                    let generation = running.serving.primary()?.active.generation();
                    Some((generation.spec().id, status::served(generation)))
                });
                known.saved.read(|record| {
                    let replaced = record.history.iter().filter_map(|entry| entry.replaced);
                    let served: HashMap<_, _> = replaced.chain(now).collect();
                    let entries = record.history.iter();
                    entries
                        .map(|entry| {
                            let served = entry.generation.and_then(|id| served.get(&id).copied());
                            (entry.place(), entry.shown(&known.name, served))
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        shown.sort_by_key(|(place, _)| *place);
        shown.into_iter().map(|(_, entry)| entry).collect()
    }

    /// Returns what an artifact of an app says of itself: that of a label, of a generation, of a
    /// version, or the one whose SHA-256 begins so. Blocks.
    ///
    /// # Errors
    /// The sentence for a person, when there is none, or its file cannot be read.
    pub fn artifact(&self, asked: &query::Artifact) -> Result<ArtifactReport, String> {
        let rollout = &self.0.rollout;
        let app =
            rollback::find_app(rollout, asked.app.clone()).map_err(|result| result.message)?;
        let which = asked.which.as_deref().unwrap_or(Label::LIVE);
        let running = app.running(|running| {
            let live = running.serving.primary().filter(|_| which == Label::LIVE);
            let mut labelled = running.serving.labelled().iter();
            let labelled = labelled.find(|one| one.label.as_str() == which);
            let found = live.or(labelled.map(|labelled| &labelled.live))?;
            Some(found.artifact.sha256)
        });
        let known = running.or_else(|| {
            app.saved
                .read(|record| history::find(&record.history, which).map(|entry| entry.artifact))
        });
        let sha256 = known.ok_or_else(|| {
            format!(
                "{} has no `{which}`: name a label, the number of a generation, a version, or what a SHA-256 begins with; `handover history` lists them",
                app.name
            )
        })?;
        let artifact = rollout.store.get(sha256).map_err(|error| {
            format!(
                "{} cannot be taken from the artifact store: {error}",
                sha256.short()
            )
        })?;
        File::open(&artifact.path)
            .and_then(|file| artifact.report(&file))
            .map_err(|error| format!("{}: {error}", artifact.path.display()))
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
        let destination = Destination::asked_for(&app.settings(), &asked);
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
            override_freeze: asked.override_freeze,
            // What it is started with may have changed.
            anew: cause == Cause::Dev,
            restore_state: false,
            attribution: Attribution {
                by: asked.by,
                message: asked.message,
                key: asked.idempotency_key,
            },
        };
        deploy::begin_deploy(&self.0.rollout, app, plan, wait.into()).operation
    }

    /// Looks up the deploy that its caller calls `key`, of this run of the host or of one before,
    /// or reserves that name.
    pub(crate) fn keyed(&self, key: &str) -> Keyed {
        let operations = &self.0.rollout.operations;
        let new = match operations.keyed(key) {
            Keyed::New(reserved) => reserved,
            known => return known,
        };
        let before = self.registry().all().into_iter().find_map(|app| {
            app.saved.read(|record| {
                let entry = history::of_key(&record.history, key)?;
                Some(OperationResult {
                    outcome: entry.outcome,
                    message: format!(
                        "{} of {} with this key has ended before: {}",
                        entry.cause.as_str(),
                        app.name,
                        entry.told()
                    ),
                    app: Some(app.name.clone()),
                    generation: entry.generation,
                    version: entry.version.clone(),
                    artifact: Some(entry.artifact.to_string()),
                    notes: Vec::new(),
                    ended_streams: 0,
                })
            })
        });
        let Some(result) = before else {
            return Keyed::New(new);
        };
        let progress = operations.begin_operation();
        new.is(progress.id());
        progress.finish(result);
        Keyed::Known(progress.listen())
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

    /// Goes back to the previous artifact, or to the one that is named (a version or a generation's
    /// number).
    pub fn rollback(&self, asked: query::Rollback) -> Operation {
        rollback::begin_rollback(&self.0.rollout, asked)
    }

    /// Makes live what is up under a label.
    pub fn promote(&self, asked: query::Labelled) -> Operation {
        labels::begin_promote(&self.0.rollout, asked)
    }

    /// Ends what is up under a label.
    pub fn abort(&self, asked: query::Labelled) -> Operation {
        labels::begin_abort(&self.0.rollout, asked)
    }

    /// Compares what is live with a boot from nothing.
    pub fn verify(&self, app: Option<AppName>) -> Operation {
        verify::begin_verify(&self.0.rollout, app)
    }

    /// Has a trial stand still, or go on.
    pub fn pause_canary(&self, app: Option<AppName>, paused: bool) -> Operation {
        canary::begin_pause(&self.0.rollout, app, paused)
    }

    /// Ends what runs of an app, and keeps it so.
    pub fn stop(&self, asked: query::Stop) -> Operation {
        availability::begin_stop(&self.0.rollout, asked)
    }

    /// Makes live what was live when an app was stopped, or what was deployed since.
    pub fn start(&self, asked: query::Operation) -> Operation {
        availability::begin_start(&self.0.rollout, asked)
    }

    /// Replaces what is live by a new generation of the same artifact.
    pub fn restart(&self, asked: query::Operation) -> Operation {
        availability::begin_restart(&self.0.rollout, asked)
    }

    /// Has the requests of an app wait.
    pub fn pause(&self, asked: query::Pause) -> Operation {
        availability::begin_pause(&self.0.rollout, asked)
    }

    /// Lets them go on.
    pub fn resume(&self, app: Option<AppName>) -> Operation {
        availability::begin_resume(&self.0.rollout, app)
    }

    /// Lists the tenants that stay on generations that were replaced, of one app or of all.
    pub fn tenants(&self, app: Option<&AppName>) -> Vec<TenantStatus> {
        let apps = self.registry().shown().into_iter();
        let chosen = apps.filter(|known| app.is_none_or(|name| known.name == *name));
        chosen.flat_map(|app| tenants::list(&app)).collect()
    }

    /// The shadows of one app, or of all, with the differences that were found.
    pub fn shadows(&self, app: Option<&AppName>) -> Vec<ShadowStatus> {
        let apps = self.registry().shown().into_iter();
        let chosen = apps.filter(|known| app.is_none_or(|name| known.name == *name));
        chosen
            .filter_map(|app| status::shadow(&app, true))
            .collect()
    }

    /// Moves a tenant to what is live.
    ///
    /// # Errors
    /// When there is no such app, or the tenant stays nowhere.
    pub fn move_tenant(&self, asked: &query::Move) -> Result<String, String> {
        let app = self
            .registry()
            .known_or_fail(&asked.app)
            .map_err(|failed| failed.message)?;
        tenants::move_on(&app, &asked.tenant, asked.now)
            .ok_or_else(|| tenants::none_stays(&asked.app, &asked.tenant))
    }

    /// Lists who holds generations that were replaced, or the one that is asked about.
    pub fn holders(&self, asked: &query::Holders) -> Vec<HolderStatus> {
        let most = asked.limit.unwrap_or(HOLDERS);
        let generation = asked.generation.map(GenerationId);
        let apps = self.registry().shown().into_iter();
        let chosen = apps.filter(|app| asked.app.as_ref().is_none_or(|name| app.name == *name));
        let mut all: Vec<_> = chosen
            .flat_map(|app| holders::holders_of(&app, generation, most))
            .collect();
        all.sort_by_key(|holder| std::cmp::Reverse(holder.age_ms));
        all.truncate(most);
        all
    }

    /// Ends a holder; none when there is no such holder.
    pub(crate) async fn cancel_holder(&self, id: &HolderId) -> Option<String> {
        holders::cancel(self.registry(), id).await
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

    /// Looks whether what is live of `app` runs with a state of `schema`.
    ///
    /// # Errors
    /// Why it does not, and what to do.
    pub(crate) fn state_suits(&self, app: &AppName, schema: state::Schema) -> Result<(), String> {
        let live = self.registry().known(app).and_then(|app| {
            app.running(|running| {
                let live = running.serving.primary()?;
                Some(live.artifact.manifest.clone())
            })
        });
        match live {
            Some(live) if !schema.suits(live.schema) => Err(format!(
                "it has schema {}, and {} {}, which is live, has schema {}: stop the app (`handover stop {app}`), restore it, and start the app, which migrates",
                schema.schema, live.app, live.version, live.schema
            )),
            _ => Ok(()),
        }
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

    /// Returns what should be up and is not, as the beginning of a sentence: what was live when the
    /// host ended and has not come up again.
    pub(crate) fn not_up(&self) -> Option<String> {
        let apps = self.registry().all().into_iter();
        let down: Vec<String> = apps
            .filter(|app| app.live().is_none())
            .filter_map(|app| {
                app.saved
                    .read(|record| match (&record.stopped, &record.head) {
                        (None, Some(head)) => Some(format!("{} {}", app.name, head.version)),
                        _ => None,
                    })
            })
            .collect();
        match down.as_slice() {
            [] => None,
            [one] => Some(format!("{one} has not come up")),
            many => Some(format!("{} have not come up", many.join(", "))),
        }
    }

    /// Returns how many requests, streams and upgraded connections are under way, and how many
    /// requests apps were ever given.
    pub(crate) fn traffic(&self) -> (u64, u64) {
        let apps = self.registry().all().into_iter();
        apps.fold((0, 0), |(in_flight, requests), app| {
            let (more, given) = app.running(|running| {
                let generations = running.generations().into_iter();
                generations.fold((0, running.retired.requests), |(more, given), (one, _)| {
                    let counts = one.counts();
                    (more + one.requests_in_flight(), given + counts.requests)
                })
            });
            (in_flight + more, requests + given)
        })
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

    /// Makes the drop folders of the apps of the configuration. They are watched from then on, so
    /// that the first file in one is seen at once; without it the host serves on, and finds it
    /// later. Blocks.
    pub fn make_drop_folders(&self) {
        let config = self.config();
        let watched = config.apps.iter();
        for (app, _) in watched.filter(|(_, settings)| settings.watch != Watch::Off) {
            let folder = config.server.plugins.join(app.as_str());
            if let Err(cause) = DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&folder)
            {
                tracing::warn!(folder = %folder.display(), "the drop folder cannot be made: {cause}");
            }
        }
    }

    /// Returns the configuration, as it is now.
    pub fn config(&self) -> Arc<Config> {
        self.registry().config()
    }

    /// Has the apps go by `config` from now on. Blocks.
    pub fn retune(&self, config: Config) {
        self.registry().retune(config);
        self.make_drop_folders();
    }
}

/// Records panics, and what was changed for all, for as long as the apps are there.
async fn look(registry: Registry) {
    let mut panics = HashMap::new();
    loop {
        panics::record_panics(&registry, &mut panics);
        changed::record_changes(&registry);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
