//! The steps of one deploy: preflight, load, start, cutover, HEAD.

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tempfile::NamedTempFile;

use handover_api::{
    AppName, Cause, EventKind, GenerationId, Label, Note, OperationResult, Outcome, Percent,
};

use super::{Destination, Ended, Plan, failure::Failure, handoff, schema::Way};
use crate::{
    apps::{
        app::{App, FailedStart, Live, result},
        cutover::CutOver,
        serving::Labelled,
    },
    artifact::{Artifact, Remark, Sha256, Topic, manifest::HOST_ABI, trust::Untrusted},
    background,
    config::{self, WhenFull, frozen},
    dispatch::Mirror,
    generation::{self, Generation, Spec, StartError, Started},
    human,
    ledger::RetainReasons,
    loader::{Companion, Library},
    operations::operation::ProgressSender,
    preflight::{self, Passed, Scope, Verdict},
    records::{
        app_record::{Head, Record},
        history::Entry,
        journal::{Step, Trying},
    },
    report::status::served,
    rollout::{
        Rollout, availability, canary, crash,
        drain::Leaving,
        hooks::{self, About},
        labels, settings, tenants, verdict, verify,
    },
    shortage,
    work::check_schedules,
};

/// What a deploy has done to code that it does not trust. Unit tests put another in its place.
pub(super) trait Machine: Sync {
    /// A library that was mapped.
    type Library: Send + 'static;

    /// Checks `artifact` in a child process, with the backup of its state that is at `state`.
    fn preflight(
        &self,
        artifact: &Artifact,
        app: &AppName,
        settings: &config::App,
        scope: Scope,
        state: Option<&Path>,
    ) -> impl Future<Output = io::Result<Verdict>> + Send;

    /// Maps the library of `artifact`.
    fn load(
        artifact: Artifact,
        within: Duration,
    ) -> impl Future<Output = Result<Self::Library, StartError>> + Send + 'static;

    /// Returns where `library` is mapped.
    fn base(library: &Self::Library) -> Option<usize>;

    /// Runs the constructor of `library`.
    fn start(
        library: Self::Library,
        spec: Spec,
    ) -> impl Future<Output = Result<Started, StartError>> + Send + 'static;
}

/// This machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct ThisMachine;

impl Machine for ThisMachine {
    type Library = Library;

    async fn preflight(
        &self,
        artifact: &Artifact,
        app: &AppName,
        settings: &config::App,
        scope: Scope,
        state: Option<&Path>,
    ) -> io::Result<Verdict> {
        preflight::check(artifact, app, settings, scope, state).await
    }

    fn load(
        artifact: Artifact,
        within: Duration,
    ) -> impl Future<Output = Result<Library, StartError>> + Send + 'static {
        generation::load(artifact, within)
    }

    fn base(library: &Library) -> Option<usize> {
        library.base()
    }

    fn start(
        library: Library,
        spec: Spec,
    ) -> impl Future<Output = Result<Started, StartError>> + Send + 'static {
        generation::start(library, spec)
    }
}

/// One deploy on its way.
pub(super) struct Deploy<'a, M> {
    pub(super) rollout: &'a Rollout,
    pub(super) app: &'a Arc<App>,
    pub(super) plan: Plan,
    pub(super) progress: &'a ProgressSender,
    /// What the journal says of it goes with this.
    pub(super) trying: Arc<Trying>,
    pub(super) machine: M,
    /// What the state has to go through before it runs; none where it fits, and before that is
    /// known.
    pub(super) migration: Option<Way>,
    /// What the version that it replaces hands over.
    pub(super) handed_over: Option<Arc<str>>,
}

impl<M: Machine + Clone> Deploy<'_, M> {
    /// When preflight and start must have ended.
    fn deadline(&self) -> Option<Instant> {
        self.plan.deadline.map(|deadline| deadline.by)
    }

    /// Takes all of them. What failed changed nothing of what is live.
    pub(super) async fn run(mut self) -> Result<Ended, Failure> {
        if availability::app_is_stopped(self.app) {
            match self.plan.cause {
                // It waits for the start.
                Cause::Deploy | Cause::Drop => self.plan.destination = Destination::Staged,
                _ => return Ok(Ended::Otherwise(availability::refused(self.app))),
            }
        }
        let Self {
            rollout,
            app,
            plan,
            progress,
            ..
        } = &self;
        if rollout.is_closing() {
            return Err(Failure::host("the host is shutting down"));
        }
        if let Some(took) = plan.noticed_in {
            progress.step("notice", app, took, "found in the drop folder".to_owned());
        }
        if let Some(took) = plan.stored_in {
            let (size, sha256) = (
                human::file_size(plan.artifact.size),
                plan.artifact.sha256.short(),
            );
            progress.step("store", app, took, format!("{size} stored as {sha256}"));
        }
        if let Some(live) = app.live()
            && live.artifact == plan.artifact.sha256
            && !plan.anew
        {
            let message = format!(
                "{} {} ({}) is live already as generation {}",
                app.name,
                live.version,
                live.artifact.short(),
                live.id
            );
            return Ok(Ended::Otherwise(result(Outcome::Unchanged, app, message)));
        }
        if let Some(conflict) = canary::stands_in_the_way_of(plan, app) {
            return Ok(Ended::Otherwise(conflict));
        }
        if let Some(reason) = handoff::refusal(app, &self.plan) {
            return Err(Failure::host(reason));
        }
        // Before anything is ended to make room for it.
        self.admit().await?;
        let way = self.way_of_state().await?;
        if let Some((label, id)) = plan.up.clone() {
            return self.take_label(&label, id).await;
        }
        if plan.destination == Destination::Live {
            self.make_room()?;
        }
        self.migration = way;
        let (rollout, app) = (self.rollout, self.app);
        // What has to be on disk before it is used gets there while the artifact is checked.
        let (checked, kept, id, ()) = tokio::join!(
            self.unless_closing("its preflight", self.check()),
            self.keep(),
            self.reserve(),
            rollout
                .journal
                .trying(&app.name, self.plan.tried(Step::Checked, None)),
        );
        let checked = match checked.and_then(|checked| kept.map(|()| checked)) {
            Ok(checked) => checked,
            Err(failure) => {
                if let Ok(Some(id)) = id {
                    app.saved.edit(|record| record.give_back(id));
                }
                return Err(failure);
            }
        };
        let Some(id) = id? else {
            return self.stage(checked).await.map(Ended::Otherwise);
        };
        if self.hands_off() {
            return self.hand_off(checked, id).await;
        }
        self.ask_hand_over().await;
        self.migrate_and_go_live(checked, id).await
    }

    /// Asks what is live for what this version begins with. That it gives nothing is no failure.
    pub(super) async fn ask_hand_over(&mut self) {
        let Some((asked, id)) = self.app.running(|running| {
            let active = &running.serving.primary()?.active;
            Some((active.ask_hand_over(), active.generation().spec().id))
        }) else {
            return;
        };
        let began = Instant::now();
        let settings = self.app.settings();
        let config::Handover { deadline, max_size } = settings.handover;
        let given = generation::answered(asked, self.plan.within(deadline)).await;
        let reason = match given {
            Ok(None) => return,
            Ok(Some(text)) if text.len() as u64 <= max_size => {
                let size = human::file_size(text.len() as u64);
                let message = format!("generation {id} handed over {size}");
                self.progress
                    .step("hand-over", self.app, began.elapsed(), message);
                self.handed_over = Some(text.into());
                return;
            }
            Ok(Some(text)) => format!(
                "it has {}, and handover.max_size is {}",
                human::file_size(text.len() as u64),
                human::file_size(max_size)
            ),
            Err(reason) => reason,
        };
        let message = format!("what generation {id} hands over is left out: {reason}");
        self.rollout
            .registry
            .record_event(EventKind::Warning, self.app, Some(id), message);
    }

    /// Loads and starts what was checked, and has it take requests.
    pub(super) async fn start_and_go_live(
        self,
        mut checked: Checked,
        id: GenerationId,
    ) -> Result<Ended, Failure> {
        let app = self.app;
        let started = self.load_and_start(&mut checked, id).await?;
        if let Err(reason) = self.before_first_request(&started).await {
            return Err(self.discard(started, reason).await);
        }
        match self.plan.destination.clone() {
            Destination::Label { label, ttl } => {
                self.bring_up(checked, started, label, ttl, Beyond::Nothing)
                    .await
            }
            // Where nothing is live there is nothing to copy.
            Destination::Shadow { share, ttl } if app.live().is_some() => {
                let label = Label::of(Label::SHADOW);
                self.bring_up(checked, started, label, ttl, Beyond::Copies(share))
                    .await
            }
            // Where nothing is live there is nothing to try it beside.
            Destination::Canary(trying) if app.live().is_some() => {
                let label = Label::of(Label::CANARY);
                self.bring_up(checked, started, label, None, Beyond::Trial(trying))
                    .await
            }
            Destination::Canary(_)
            | Destination::Shadow { .. }
            | Destination::Live
            | Destination::Staged => self.go_live(checked, started).await,
        }
    }

    /// Whether what its functions declare fits: each schedule is one, and no job loses its handler
    /// unasked, when it is deployed to become live and when it is promoted. What was live is never
    /// refused for it.
    async fn admit_declared(&self) -> Result<(), Failure> {
        let Self {
            rollout, app, plan, ..
        } = self;
        let declared = &plan.artifact.declared;
        let is_promoted = plan.cause == Cause::Promote;
        if plan.brings_new() {
            check_schedules(declared)
                .map_err(|reason| Failure::own(Outcome::Rejected, reason, None))?;
        } else if !is_promoted {
            return Ok(());
        }
        // A canary becomes live by itself.
        let becomes_live = matches!(plan.destination, Destination::Live | Destination::Canary(_));
        if plan.orphan_jobs || !becomes_live {
            return Ok(());
        }
        let (work, declared) = (rollout.registry.work().of(&app.name), declared.clone());
        let orphans = tokio::task::spawn_blocking(move || work.jobs.orphans(&declared)).await;
        // What cannot be read is no reason to keep a version out that may have nothing to do with
        // it.
        let Ok(Ok(orphans)) = orphans else {
            return Ok(());
        };
        if orphans.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = orphans
            .iter()
            .map(|(name, count)| format!("{count} of `{name}`"))
            .collect();
        let verb = if is_promoted { "promote" } else { "deploy" };
        let reason = format!(
            "it has no handler for jobs that wait or run: {}; keep the handler until they are done, or {verb} with --orphan-jobs, and they wait for a version that has one",
            names.join(", ")
        );
        Err(Failure {
            own_fault: false,
            ..Failure::own(Outcome::Rejected, reason, None)
        })
    }

    /// Whether these bytes may become code at all: what they say of themselves, their version and
    /// who signed them. Asked each time, so that a key, a version or an ABI that is not good any
    /// more counts for a restart and a rollback too.
    async fn admit(&self) -> Result<(), Failure> {
        let Self {
            rollout,
            app,
            plan,
            progress,
            ..
        } = self;
        let refused = |reason: String| Failure {
            own_fault: false, // with other settings or a signature the same bytes are fine
            ..Failure::own(Outcome::Rejected, reason, None)
        };
        match plan.cause {
            Cause::Start | Cause::Crash => plan.artifact.runnable(),
            _ => plan.artifact.acceptable(),
        }
        .map_err(refused)?;
        self.admit_declared().await?;
        let settings = app.settings();
        let goes_live = match plan.destination {
            Destination::Live => plan.brings_new() || plan.cause == Cause::Promote,
            Destination::Canary(_) => true,
            Destination::Label { .. } | Destination::Shadow { .. } | Destination::Staged => false,
        };
        if goes_live
            && !plan.override_freeze
            && let Some(reason) = frozen(&settings.freeze, Timestamp::now())
        {
            let reason = format!(
                "{reason}; a rollback is possible all the same, and `deploy` and `promote` take --override-freeze"
            );
            return Err(Failure {
                own_fault: false,
                ..Failure::own(Outcome::Denied, reason, None)
            });
        }
        if settings.require_clean
            && plan.brings_new()
            && let Some(reason) = plan.artifact.manifest.build.unclean()
        {
            return Err(refused(format!("{reason} (require_clean)")));
        }
        if let Some(reason) = app.settings().too_old(&plan.artifact.manifest.version) {
            // A restart takes nobody back: what was live stays, and what is older than that does
            // not come.
            let sha256 = plan.artifact.sha256;
            let was_live = app.saved.read(|record| {
                record
                    .head
                    .as_ref()
                    .is_some_and(|head| head.artifact == sha256)
            });
            if plan.cause != Cause::Start || !was_live {
                return Err(refused(reason));
            }
            rollout.registry.record_event(
                EventKind::State,
                app,
                None,
                format!(
                    "{} serves on with what was live before the restart, though {reason}",
                    app.name
                ),
            );
        }
        let began = Instant::now();
        let (keys, store) = (
            rollout.registry.config().trust.keys.clone(),
            rollout.store.clone(),
        );
        let artifact = plan.artifact.clone();
        let verified = tokio::task::spawn_blocking(move || {
            let key = match keys.verify(&artifact) {
                Ok(key) => key,
                Err(Untrusted::Io(error)) => {
                    return Err(Failure::host(Untrusted::Io(error).to_string()));
                }
                Err(untrusted) => return Err(refused(untrusted.to_string())),
            };
            // Without keys it is kept for the day that there are some.
            store
                .keep_signature(&artifact)
                .map_err(|error| Failure::host(format!("its signature cannot be kept: {error}")))?;
            Ok(key)
        });
        let key = verified.await.map_err(|broken| {
            Failure::host(format!("its signature could not be verified: {broken}"))
        })??;
        if let Some(key) = key {
            progress.step(
                "trust",
                app,
                began.elapsed(),
                format!("signed by key {key}"),
            );
        }
        Ok(())
    }

    /// Keeps the number of draining generations within what the app allows.
    fn make_room(&self) -> Result<(), Failure> {
        let Self { rollout, app, .. } = self;
        if !app.is_full() {
            return Ok(());
        }
        let draining = app.draining();
        let most = app.settings().max_old_generations;
        let Some(oldest) = draining.first() else {
            if app.settings().when_full == WhenFull::EndOldest {
                tenants::release_oldest(app);
                return Ok(());
            }
            return Err(Failure::host(format!(
                "as many replaced generations as max_old_generations allows, {most}, stay for their tenants: wait until they have moved \
                 (`handover tenants`), or set when_full = \"end-oldest\" or a move_deadline"
            )));
        };
        let (id, counts) = (oldest.generation.spec().id, oldest.generation.counts());
        match app.settings().when_full {
            WhenFull::Refuse => Err(Failure::host(format!(
                "{} replaced generations still drain and max_old_generations is {most}: wait until generation {id} ends \
                 ({} in flight, {} of them jobs), or set when_full = \"end-oldest\" or a drain deadline",
                draining.len(),
                counts.in_flight,
                counts.jobs,
            ))),
            WhenFull::EndOldest => {
                rollout.registry.record_event(EventKind::Draining,
                    app,
                    Some(id),
                    format!(
                        "generation {id} is ended with {} in flight: {} generations drain and max_old_generations is {most}",
                        counts.in_flight,
                        draining.len()
                    ),
                );
                oldest.end.notify_one();
                Ok(())
            }
        }
    }

    /// Keeps the artifact for good: HEAD may name it from then on.
    async fn keep(&self) -> Result<(), Failure> {
        let Self { rollout, plan, .. } = self;
        let (store, artifact) = (rollout.store.clone(), plan.artifact.clone());
        background::run("keep", move || store.keep(&artifact))
            .await
            .map_err(|broken| Failure::host(format!("it could not be stored: {broken}")))?
            .map_err(|error| Failure::host(format!("it could not be stored: {error}")))
    }

    /// The number of the generation that it will be, if it will be one. On disk before it is used:
    /// the number of a generation never comes back, whatever ends the host. But for what is to be
    /// served again, which must not need a disk: its number is written when there is room.
    async fn reserve(&self) -> Result<Option<GenerationId>, Failure> {
        let Self { app, plan, .. } = self;
        if plan.destination == Destination::Staged {
            return Ok(None);
        }
        let (id, saved) = app.saved.change(Record::next_generation).await;
        match saved {
            Ok(()) => Ok(Some(id)),
            Err(cause) if matches!(plan.cause, Cause::Start | Cause::Crash | Cause::Rollback) => {
                tracing::warn!(app = %app.name, generation = %id, "it is not on disk yet: {cause}");
                Ok(Some(id))
            }
            Err(cause) => {
                app.saved.edit(|record| record.give_back(id));
                let reason = format!("the host cannot write its records: {cause}");
                Err(Failure::host(reason))
            }
        }
    }

    /// The settings that preflight goes by. What may be there once only is not constructed beside
    /// what is live, unless the child is given something else in its place.
    fn settings_of_check(&self) -> Arc<config::App> {
        let settings = self.app.settings();
        if !self.is_exclusive() || !settings.check.env.is_empty() || !settings.check.start {
            return settings;
        }
        let mut settings = (*settings).clone();
        settings.check.start = false;
        Arc::new(settings)
    }

    /// Preflight, where it is wanted.
    async fn check(&self) -> Result<Checked, Failure> {
        let Self {
            rollout,
            app,
            plan,
            progress,
            ..
        } = self;
        let Some(scope) = plan.preflight else {
            return Ok(Checked::default());
        };
        let began = Instant::now();
        let settings = self.settings_of_check();
        let state = match scope {
            Scope::All => self.state_to_rehearse().await?,
            Scope::Again => None,
        };
        let checked = self.machine.preflight(
            &plan.artifact,
            &app.name,
            &settings,
            scope,
            state.as_ref().map(NamedTempFile::path),
        );
        let verdict = match self.deadline() {
            None => checked.await,
            Some(deadline) => tokio::time::timeout_at(deadline.into(), checked)
                .await
                .map_err(|_| Failure::late(plan, "its preflight"))?,
        };
        let sha256 = plan.artifact.sha256;
        let before = || app.saved.read(|record| verdict::last_host(record, sha256));
        match (verdict, scope) {
            (
                Ok(Verdict::Passed(Passed {
                    checks,
                    remarks,
                    companions,
                    ..
                })),
                _,
            ) => {
                let checked = Checked {
                    remarks,
                    passed: true,
                    companions,
                };
                progress.found(
                    "preflight",
                    app,
                    began.elapsed(),
                    format!("passed in a child process: {}", checks.join(", ")),
                    checked.notes(),
                );
                Ok(checked)
            }
            (Ok(Verdict::Rejected(reason)), Scope::All) => {
                Err(Failure::own(Outcome::Rejected, reason, None))
            }
            (Ok(Verdict::Rejected(reason)), Scope::Again) => {
                let reason = format!(
                    "handover {} cannot run it: {reason}; {}",
                    verdict::host(),
                    before()
                );
                Err(Failure::own(Outcome::Rejected, reason, None))
            }
            (Ok(Verdict::Unhealthy(reason)), _) => {
                Err(Failure::own(Outcome::Unhealthy, reason, None))
            }
            (Err(cause), Scope::All) => Err(Failure::host(format!(
                "its preflight could not be run: {cause}"
            ))),
            // What was live is not given up for that; the next start asks again.
            (Err(cause), Scope::Again) => {
                rollout.registry.record_event(EventKind::State,
                    app,
                    None,
                    format!(
                        "{} is loaded unchecked by handover {}, because its preflight could not be run: {cause}; {}",
                        plan.artifact.manifest.version,
                        verdict::host(),
                        before()
                    ),
                );
                Ok(Checked::default())
            }
        }
    }

    /// Leaves the artifact to `handover reload`.
    async fn stage(&self, checked: Checked) -> Result<OperationResult, Failure> {
        let Self {
            rollout, app, plan, ..
        } = self;
        let (sha256, version) = (plan.artifact.sha256, &plan.artifact.manifest.version);
        let head = Head {
            artifact: sha256,
            version: version.clone(),
            source: plan.source.clone(),
        };
        let entry = checked.entry(plan, self.progress, Outcome::Staged, None);
        let (_, saved) = app
            .saved
            .change(|record| {
                record.staged = Some(head);
                checked.note_taken(record, sha256, entry);
            })
            .await;
        saved.map_err(|cause| Failure::host(format!("it could not be staged: {cause}")))?;
        let command = match availability::app_is_stopped(app) {
            true => "start",
            false => "reload",
        };
        let message = format!(
            "{} {version} ({}) passed its preflight and is staged: `handover {command} {0}` makes it live",
            app.name,
            sha256.short()
        );
        rollout
            .registry
            .record_event(EventKind::Staged, app, None, message.as_str());
        checked.record_remarks(rollout, app, plan, None);
        Ok(OperationResult {
            notes: checked.notes(),
            ..result(Outcome::Staged, app, message)
        })
    }

    /// Gives up what an operation waits for when the host ends. Dropping `work` has to end it.
    async fn unless_closing<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let Self { rollout, .. } = self;
        tokio::select! {
            biased;
            done = work => done,
            () = rollout.closing() => Err(Failure::cut(what)),
        }
    }

    /// What a load of `artifact` is started with, by the settings of the app and for what every
    /// load has.
    pub(super) fn spec_of(
        &self,
        artifact: &Artifact,
        id: GenerationId,
        start_deadline: Duration,
    ) -> Spec {
        let Self { rollout, app, .. } = self;
        let settings = app.settings();
        Spec {
            app: app.name.clone(),
            id,
            version: artifact.manifest.version.clone(),
            artifact: artifact.sha256,
            config: settings.config.clone(),
            env: settings.readable_env(),
            arguments: settings.arguments(&app.name),
            base_path: rollout.registry.base_path(app),
            data_dir: rollout.registry.data_dir(&app.name),
            environment: settings.environment(),
            runtime_threads: settings.runtime_threads.get(),
            start_deadline,
            preflight: false,
            state: Some(rollout.registry.stores().of(&app.name)),
            work: None,
            assets: None,
            migration: None,
            handed_over: None,
            stays: app.saved.read(|record| {
                let reason = record.why_staying(artifact.sha256);
                reason.map(str::to_owned)
            }),
        }
    }

    /// Keeps the library of a start that failed, where it cannot be unmapped now.
    pub(super) fn keep_retained(
        &self,
        spec: &Spec,
        loaded_at: Instant,
        retained: Option<Box<generation::Retained>>,
    ) {
        let Some(retained) = retained else { return };
        let failed = FailedStart {
            spec: spec.clone(),
            loaded_at,
            held: RetainReasons::default(),
        };
        self.app
            .running(|running| running.failed_starts.push(failed));
        let ended = generation::Ended::Retained(retained);
        self.rollout.retire(self.app, spec.id, ended);
    }

    /// Maps the library and runs the constructor.
    async fn load_and_start(
        &self,
        checked: &mut Checked,
        id: GenerationId,
    ) -> Result<Started, Failure> {
        let Self {
            rollout,
            app,
            plan,
            progress,
            trying,
            ..
        } = self;
        // From here on code of it runs in this process.
        rollout
            .journal
            .trying(&app.name, plan.tried(Step::Loaded, Some(id)))
            .await;
        let began = Instant::now();
        let artifact = plan.artifact.clone();
        let settings = app.settings();
        let longest = settings.check.deadline;
        let deadline = self.deadline();
        let left = |within: Duration| {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            left.map_or(within, |left| left.min(within))
        };
        let mut spec = Spec {
            work: Some(settings::work_of(rollout, app)),
            assets: Some(Arc::clone(&app.assets)),
            handed_over: self.handed_over.clone(),
            ..self.spec_of(&plan.artifact, id, longest)
        };
        let keep = |spec: &Spec, retained: Option<Box<generation::Retained>>| {
            self.keep_retained(spec, began, retained);
        };
        // Code of it runs until the end of this step, whoever waits for it: a crash is its fault as
        // long.
        let named = Arc::clone(trying);
        let loading = M::load(artifact, left(longest));
        let dropped = async move |_library| drop(named);
        let library = match left_when_closing(rollout, "its load", loading, dropped)
            .await
            .map_err(|cut| cut.of(id))?
        {
            Ok(library) => library,
            Err(StartError {
                reason, retained, ..
            }) => {
                keep(&spec, retained);
                let reason = format!("its library could not be loaded: {reason}");
                return Err(Failure::host(reason).of(id));
            }
        };
        if let Some(base) = M::base(&library) {
            // What a debugger needs: the library is mapped from memory, so it finds no file for it.
            tracing::info!(
                app = %app.name,
                generation = %id,
                base = format_args!("{base:#x}"),
                file = %plan.artifact.path.display(),
                "mapped"
            );
        }
        let differences = checked.compare(app, plan.artifact.sha256).await;
        progress.found(
            "load",
            app,
            began.elapsed(),
            format!(
                "{} mapped as generation {id}",
                human::file_size(plan.artifact.size)
            ),
            differences.iter().map(Note::from).collect(),
        );
        checked.remarks.extend(differences);

        let began = Instant::now();
        spec.start_deadline = left(longest);
        let named = Arc::clone(trying);
        let starting = M::start(library, spec.clone());
        let ended = async move |started: Result<Started, StartError>| {
            if let Ok(started) = started {
                drop(started.discard().await);
            }
            drop(named);
        };
        let started = match left_when_closing(rollout, "its constructor", starting, ended)
            .await
            .map_err(|cut| cut.of(id))?
        {
            Ok(started) => started,
            Err(error) => {
                let reason = error.explained();
                let is_short = error.refused.is_empty() && shortage::is_named(&error.reason);
                keep(&spec, error.retained);
                return Err(match deadline {
                    Some(by) if Instant::now() >= by => {
                        Failure::late(plan, "its constructor").of(id)
                    }
                    _ if is_short => {
                        Failure::host(format!("it could not be started: {reason}")).of(id)
                    }
                    _ => {
                        let reason = format!("it did not start: {reason}");
                        Failure::own(Outcome::Rejected, reason, Some(id))
                    }
                });
            }
        };
        progress.step(
            "start",
            app,
            began.elapsed(),
            "its constructor ran".to_owned(),
        );
        Ok(started)
    }

    /// Does what is to be done once before the first request of what was started: the hook
    /// `migrate`, and what the app declares.
    ///
    /// # Errors
    /// Why it cannot become live.
    async fn before_first_request(&self, started: &Started) -> Result<(), String> {
        let Self {
            rollout,
            app,
            plan,
            progress,
            ..
        } = self;
        let id = started.generation().spec().id;
        let found = self.db_before(started).await?;
        let settings = app.settings();
        let within = plan.within(settings.hooks.deadline);
        if let Some(program) = settings.hooks.migrate.as_ref()
            && plan.brings_new()
        {
            let about = About {
                app,
                artifact: &plan.artifact,
                cause: plan.cause,
                generation: Some(id),
            };
            let voice = progress.voice();
            hooks::run("migrate", program, about, Vec::new(), within, &voice).await?;
        }
        let began = Instant::now();
        let within = plan.within(settings.hooks.deadline);
        match started.on_live(within).await {
            Ok(false) => {}
            Ok(true) => {
                let message = "it did what it has to before its first request".to_owned();
                progress.step("on_live", app, began.elapsed(), message);
            }
            // What was live before serves, whatever has moved on outside since.
            Err(reason) if matches!(plan.cause, Cause::Start | Cause::Crash | Cause::Rollback) => {
                let message = format!(
                    "{} {} serves though its on_live failed: {reason}",
                    app.name, plan.artifact.manifest.version
                );
                rollout
                    .registry
                    .record_event(EventKind::Warning, app, Some(id), message);
            }
            Err(reason) => return Err(format!("its on_live failed: {reason}")),
        }
        self.db_after(started, found).await
    }

    /// Puts away what was started and serves nobody, for `reason`.
    async fn discard(&self, started: Started, reason: impl Into<String>) -> Failure {
        let id = started.generation().spec().id;
        let ended = started.discard().await;
        self.rollout.retire(self.app, id, ended);
        Failure::host(reason).of(id)
    }

    /// Cutover, HEAD, and the beginning of the drain.
    async fn go_live(self, checked: Checked, started: Started) -> Result<Ended, Failure> {
        let began = Instant::now();
        let live = self.activate(started, Beside::Nothing).await?;
        self.cut_over(checked, live, began).await
    }

    /// Lets requests into what was started. The caller publishes it right after.
    async fn activate(&self, started: Started, beside: Beside) -> Result<Live, Failure> {
        let Self { rollout, plan, .. } = self;
        if rollout.is_closing() {
            return Err(self.discard(started, "the host is shutting down").await);
        }
        let heap = started.heap_bytes();
        // Before the first request can crash it.
        write_journal(rollout, started.generation(), heap, beside).await;
        Ok(Live {
            active: started.activate(),
            artifact: plan.artifact.clone(),
            source: plan.source.clone(),
            announced: false,
        })
    }

    /// Brings up what was started beside what is live.
    async fn bring_up(
        self,
        checked: Checked,
        started: Started,
        label: Label,
        ttl: Option<Duration>,
        beyond: Beyond,
    ) -> Result<Ended, Failure> {
        let began = Instant::now();
        let live = self.activate(started, Beside::Live).await?;
        let Self {
            rollout,
            app,
            plan,
            progress,
            ..
        } = self;
        let spec = live.active.generation().spec().clone();
        let generation = Arc::clone(live.active.generation());
        let (before, on_trial) = app.running(|running| {
            let before = running.unlabel(&label, |_| true);
            running.serving.add(Labelled {
                label: label.clone(),
                live,
                until: ttl.map(|ttl| Instant::now() + ttl),
            });
            let on_trial = match (&beyond, running.serving.generation()) {
                (Beyond::Trial(trying), Some(live)) => Some(trying.begin(&generation, live)),
                _ => None,
            };
            if let Some(canary) = &on_trial {
                running.serving.put_on_trial(canary.clone());
            }
            if let Beyond::Copies(share) = beyond {
                let settings = Arc::clone(&app.settings().shadow);
                let mirror = Mirror::new(&generation, share, settings);
                running.serving.copy_to(mirror);
            }
            (before, on_trial)
        });
        rollout.registry.publish();
        if let Some(ttl) = ttl {
            labels::end_later(rollout, app, label.clone(), spec.id, ttl);
        }
        progress.step(
            "label",
            app,
            began.elapsed(),
            format!(
                "generation {} ({}) answers to `{label}`",
                spec.id, spec.version
            ),
        );
        let until = ttl.map_or_else(String::new, |ttl| {
            format!(" for {}", humantime::format_duration(ttl))
        });
        let (kind, how) = match &on_trial {
            None if let Beyond::Copies(share) = beyond => (
                EventKind::Labelled,
                format!(
                    "it gets copies of {share} of the requests, and `handover shadow` shows how its answers differ"
                ),
            ),
            None => (EventKind::Labelled, labels::reached_by(app, &label)),
            Some(canary) => (
                EventKind::Canary,
                format!("it gets {} of the requests", canary.on_trial.trial.share()),
            ),
        };
        let message = format!(
            "{} {} ({}) is up beside what is live as generation {}, under the label `{label}`{until}: {how}",
            app.name,
            spec.version,
            spec.artifact.short(),
            spec.id,
        );
        rollout
            .registry
            .record_event(kind, app, Some(spec.id), message.as_str());
        checked.record_remarks(rollout, app, &plan, Some(spec.id));
        if let Some(before) = before {
            labels::leave(rollout, app, &label, before, "another version took it");
        }
        let entry = checked.entry(&plan, progress, Outcome::Staged, Some(spec.id));
        labels::note(app);
        let (_, saved) = app
            .saved
            .change(|record| {
                checked.note_taken(record, spec.artifact, entry);
            })
            .await;
        if let Err(cause) = saved {
            tracing::warn!(app = %app.name, "the history does not have it yet: {cause}");
        }
        let result = OperationResult {
            notes: checked.notes(),
            generation: Some(spec.id),
            version: Some(spec.version),
            artifact: Some(spec.artifact.to_string()),
            ..result(Outcome::Staged, app, message)
        };
        Ok(match on_trial {
            Some(canary) => Ended::OnTrial(result, Box::new(canary)),
            None => Ended::Otherwise(result),
        })
    }

    /// Makes live what is up under a label.
    async fn take_label(self, label: &Label, id: GenerationId) -> Result<Ended, Failure> {
        let Self { rollout, app, .. } = self;
        if rollout.is_closing() {
            return Err(Failure::host("the host is shutting down").of(id));
        }
        if let Err(reason) = self.db_of_labelled(label, id).await {
            return Err(Failure::host(reason).of(id));
        }
        let began = Instant::now();
        let taken = app.running(|running| {
            let is_it = |labelled: &Labelled| labelled.label == *label && labelled.id() == id;
            running.serving.take(is_it)
        });
        let Some(Labelled { live, .. }) = taken else {
            return Err(Failure::host(format!(
                "generation {id} does not answer to `{label}` any more"
            )));
        };
        let (generation, heap) = (
            Arc::clone(live.active.generation()),
            live.active.heap_bytes(),
        );
        let ended = self.cut_over(Checked::default(), live, began).await;
        // After the fact: what it runs was known to the journal already, as what is beside.
        write_journal(rollout, &generation, heap, Beside::Nothing).await;
        ended
    }

    /// Sends new requests to `live`, and records that.
    async fn cut_over(
        self,
        checked: Checked,
        live: Live,
        began: Instant,
    ) -> Result<Ended, Failure> {
        let Self {
            rollout,
            app,
            plan,
            progress,
            ..
        } = self;
        let spec = live.active.generation().spec().clone();
        let old = app.live();
        let figures = app.running(|running| {
            let generation = running.serving.primary()?.active.generation();
            Some((generation.spec().id, served(generation)))
        });
        // Who turned away from a version does not keep it.
        let goes_back = matches!(plan.cause, Cause::Rollback | Cause::Crash);
        let warm = app.settings().keep_warm.filter(|_| !goes_back);
        let CutOver {
            replaced,
            previous,
            warm: kept,
            staying,
        } = rollout
            .registry
            .cut_over(app, live, warm.map(|warm| Instant::now() + warm));
        // Before it is told that it is live: from then on it asks for jobs.
        let is_restart = matches!(plan.cause, Cause::Start | Cause::Crash);
        let work = rollout.registry.work().of(&app.name);
        work.set_live(spec.id.0, &plan.artifact.declared, is_restart);
        app.running(|running| {
            if let Some(live) = running.serving.primary_mut()
                && !live.announced
            {
                live.active.announce();
                live.announced = true;
            }
        });
        progress.step(
            "cutover",
            app,
            began.elapsed(),
            format!(
                "new requests go to generation {} ({})",
                spec.id, spec.version
            ),
        );
        if let Some(previous) = previous {
            let label = Label::of(Label::PREVIOUS);
            labels::leave(
                rollout,
                app,
                &label,
                previous,
                "another version was replaced",
            );
        }
        let stays = staying.as_ref().map(|generation| generation.spec().id);
        if let Some(generation) = staying {
            tenants::watch_later(rollout, app, generation);
        }
        if let (Some(id), Some(warm)) = (kept, warm) {
            labels::end_later(rollout, app, Label::of(Label::PREVIOUS), id, warm);
        }
        let instead = old.map(|old| format!(", replacing generation {} ({})", old.id, old.version));
        let mut message = format!(
            "{} {} ({}) is live as generation {}",
            app.name,
            spec.version,
            spec.artifact.short(),
            spec.id
        );
        if let (Some(id), Some(warm)) = (kept, warm) {
            let warm = humantime::format_duration(warm);
            message = format!("{message}; generation {id} stays warm for {warm}");
        }
        if let Some(id) = stays {
            message = format!("{message}; generation {id} stays for its tenants");
        }
        rollout.registry.record_event(
            EventKind::Active,
            app,
            Some(spec.id),
            format!("{message}{}", instead.unwrap_or_default()),
        );
        checked.record_remarks(rollout, app, &plan, Some(spec.id));

        let mut entry = checked.entry(&plan, progress, Outcome::Done, Some(spec.id));
        entry.replaced = figures;
        // At a restart those that are noted have yet to come up.
        if !is_restart {
            labels::note(app);
        }
        crash::prove_later(rollout, app, &spec);
        let head = Head {
            artifact: spec.artifact,
            version: spec.version,
            source: plan.source,
        };
        let (_, saved) = app
            .saved
            .change(|record| {
                if record
                    .staged
                    .as_ref()
                    .is_some_and(|staged| staged.artifact == head.artifact)
                {
                    record.staged = None;
                }
                // At a start HEAD is what was wanted, even if something older had to be taken for
                // it.
                if plan.cause != Cause::Start {
                    record.head = Some(head);
                }
                checked.note_taken(record, spec.artifact, entry);
            })
            .await;
        if let Err(cause) = saved {
            let trouble = format!(
                "this is not durable yet, and a restart would go back to what was live before: {cause}; it is written when there is room"
            );
            rollout
                .registry
                .record_event(EventKind::State, app, Some(spec.id), trouble.as_str());
            message = format!("{message}; but {trouble}");
        }

        if plan.cause != Cause::Start && plan.cause != Cause::Crash {
            verify::after_deploy(rollout, app);
        }
        let leaving = replaced.map(|replaced| Leaving::new(&rollout.departures, replaced));
        let result = OperationResult {
            notes: checked.notes(),
            ..result(Outcome::Done, app, message)
        };
        Ok(Ended::Live(result, leaving))
    }
}

/// Writes down who serves. Not on a worker, since it is a file.
async fn write_journal(
    rollout: &Rollout,
    generation: &Arc<Generation>,
    heap: Option<u64>,
    beside: Beside,
) {
    let (journal, named) = (rollout.journal.clone(), Arc::clone(generation));
    let written = tokio::task::spawn_blocking(move || match beside {
        Beside::Nothing => journal.live(&named, heap),
        Beside::Live => journal.beside(&named, heap),
    });
    if let Err(broken) = written.await {
        tracing::warn!(%broken, "the crash journal was not written");
    }
}

/// What a version under a label gets beyond what asks for it.
#[derive(Clone, Debug)]
enum Beyond {
    /// Nothing.
    Nothing,
    /// A share of the requests.
    Trial(canary::Trying),
    /// Copies of a share of them.
    Copies(Percent),
}

/// Beside what a generation serves.
#[derive(Clone, Copy, Debug)]
enum Beside {
    /// It is the live one.
    Nothing,
    /// It answers to a label.
    Live,
}

/// What preflight came to.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// What it found that people should know.
    remarks: Vec<Remark>,
    /// Whether this host gave a verdict just now.
    passed: bool,
    /// The libraries that were mapped beside it in preflight, then or when that was.
    companions: Vec<Companion>,
}

impl Checked {
    fn notes(&self) -> Vec<Note> {
        self.remarks.iter().map(Note::from).collect()
    }

    /// Compares what the library that was just loaded runs beside with what preflight ran. Returns
    /// what differs.
    async fn compare(&mut self, app: &App, artifact: Sha256) -> Vec<Remark> {
        if !self.passed {
            let verdict = |record: &Record| record.verdict(artifact).cloned();
            self.companions = app
                .saved
                .read(verdict)
                .map(|verdict| verdict.companions)
                .unwrap_or_default();
        }
        let expected = self.companions.clone();
        let compared = tokio::task::spawn_blocking(move || Companion::differences(&expected));
        // An error means that the host ends.
        let differences = compared.await.unwrap_or_default().into_iter();
        differences
            .map(|what| Remark::warning(Topic::Companion, what))
            .collect()
    }

    /// Returns the line of the history about what was taken.
    fn entry(
        &self,
        plan: &Plan,
        progress: &ProgressSender,
        outcome: Outcome,
        generation: Option<GenerationId>,
    ) -> Entry {
        Entry {
            warnings: self.warnings(),
            outcome,
            generation,
            ..plan.entry(progress.steps())
        }
    }

    /// Notes in the records that `artifact` was taken, with its line of the history, and the
    /// verdict on it if this host gave one just now.
    fn note_taken(&self, record: &mut Record, artifact: Sha256, entry: Entry) {
        if self.passed {
            let companions = self.companions.clone();
            record.passed(artifact, verdict::host(), HOST_ABI, companions);
        }
        record.failing.retain(|known| known.artifact != artifact);
        record.remember(entry);
    }

    fn warnings(&self) -> Vec<String> {
        let warnings = self.remarks.iter().filter(|remark| remark.warning);
        warnings.map(|remark| remark.message.clone()).collect()
    }

    /// Tells of the warnings as events about what was taken.
    fn record_remarks(
        &self,
        rollout: &Rollout,
        app: &App,
        plan: &Plan,
        generation: Option<GenerationId>,
    ) {
        for warning in self.warnings() {
            let message = format!(
                "{} {} ({}): {warning}",
                app.name,
                plan.artifact.manifest.version,
                plan.artifact.sha256.short()
            );
            rollout
                .registry
                .record_event(EventKind::Warning, app, generation, message);
        }
    }
}

/// Waits for `work`, on a task of its own, until the host ends: then it goes on by itself, and
/// `afterwards` gets what it comes to.
async fn left_when_closing<T: Send + 'static, F: Future<Output = ()> + Send>(
    rollout: &Rollout,
    what: &str,
    work: impl Future<Output = T> + Send + 'static,
    afterwards: impl FnOnce(T) -> F + Send + 'static,
) -> Result<T, Failure> {
    if rollout.is_closing() {
        return Err(Failure::cut(what));
    }
    let mut work = tokio::spawn(work);
    tokio::select! {
        biased;
        done = &mut work => done.map_err(|broken| Failure::host(format!("the host failed in {what}: {broken}"))),
        () = rollout.closing() => {
            tokio::spawn(async move {
                if let Ok(done) = work.await {
                    afterwards(done).await;
                }
            });
            Err(Failure::cut(what))
        }
    }
}
