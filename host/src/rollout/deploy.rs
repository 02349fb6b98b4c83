//! An artifact's way to being live: preflight, load, start, cutover, HEAD; and what becomes of it
//! when a step fails.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use handover_api::{
    Cause, EventKind, GenerationId, Note, OperationResult, OperationStatus, Outcome, Progress, Wait,
};
use tokio::sync::oneshot;

use crate::{
    apps::app::{App, FailedStart, Live, result},
    artifact::{Artifact, Remark, Sha256, Topic, manifest::HOST_ABI, trust::Untrusted},
    background,
    config::WhenFull,
    generation::{self, Spec, StartError, Started},
    human,
    ledger::RetainReasons,
    loader::Companion,
    operations::{
        operation::{self, Operation, ProgressSender, Wanted},
        queue::{Closed, OperationLock, Place},
    },
    preflight::{self, Passed, Scope, Verdict},
    records::{
        app_record::{Head, Record},
        clock::Order,
        history::Entry,
        journal::{Step, Tried, Trying},
    },
    rollout::{
        Rollout, crash,
        drain::{self, Leaving},
        verdict,
    },
    shortage,
};

/// What is to be made live, and how.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The bytes.
    pub(crate) artifact: Artifact,
    /// Why.
    pub(crate) cause: Cause,
    /// The file of the drop folder that they came from.
    pub(crate) source: Option<String>,
    /// How long it took to notice them, if somebody had to.
    pub(crate) noticed_in: Option<Duration>,
    /// How long it took to read and store them, if that was part of it.
    pub(crate) stored_in: Option<Duration>,
    /// What a child process is asked first. None for what has passed under this host before.
    pub(crate) preflight: Option<Scope>,
    /// Whether they only wait for `handover reload` after that.
    pub(crate) stage: bool,
    /// When preflight and start must have ended.
    pub(crate) deadline: Option<Deadline>,
}

impl Plan {
    fn tried(&self, step: Step, generation: Option<GenerationId>) -> Tried {
        Tried {
            step,
            artifact: self.artifact.sha256,
            version: self.artifact.manifest.version.clone(),
            generation,
            cause: self.cause,
            source: self.source.clone(),
        }
    }
}

/// When a deploy is given up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    by: Instant,
    /// What was asked for.
    timeout: Duration,
}

impl Deadline {
    /// From now.
    pub(crate) fn after(timeout: Duration) -> Self {
        Self {
            by: Instant::now() + timeout,
            timeout,
        }
    }
}

/// How a plan comes to its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entrance {
    /// Now, or it is a conflict.
    Now,
    /// The same, in the turn of the reload that caused it.
    OfReload,
    /// In order; given up when its caller leaves.
    Queue,
    /// In order.
    DetachedQueue,
}

impl From<Wait> for Entrance {
    fn from(wait: Wait) -> Self {
        match wait {
            Wait::No => Self::Now,
            Wait::WhileWanted => Self::Queue,
            Wait::Detached => Self::DetachedQueue,
        }
    }
}

/// A plan in the making.
pub(crate) struct Asked<F> {
    /// What it is, for people: `deploy of 1.2.0`.
    pub(crate) what: String,
    /// When its wait is given up.
    pub(crate) deadline: Option<Deadline>,
    /// The plan, made when its turn has come. An error is the result.
    pub(crate) plan: F,
}

/// A deploy that was taken, or that ended at once.
#[derive(Debug)]
pub(crate) struct Begun {
    /// Every line of it.
    pub(crate) operation: Operation,
    /// The result as it is at the cutover, before the replaced generation has drained.
    pub(crate) at_cutover: oneshot::Receiver<OperationResult>,
}

/// Why an artifact did not become live.
#[derive(Debug)]
struct Failure {
    outcome: Outcome,
    reason: String,
    generation: Option<GenerationId>,
    /// Whether it is the artifact's own fault, so that trying the same bytes again is pointless.
    own_fault: bool,
}

/// How a plan ended when nothing failed.
enum Ended {
    /// It is live.
    Live(OperationResult, Option<Leaving>),
    /// Nothing was replaced.
    Otherwise(OperationResult),
}

/// Begins to carry out `plan`; the rest happens on a task of its own.
pub(crate) fn begin_deploy(
    rollout: &Rollout,
    app: Arc<App>,
    plan: Plan,
    entrance: Entrance,
) -> Begun {
    let asked = Asked {
        what: format!("deploy of {}", plan.artifact.manifest.version),
        deadline: plan.deadline,
        plan: async { Ok(plan) },
    };
    begin_deploy_with(rollout, app, asked, entrance)
}

/// [`begin_deploy`] with a plan that is made when its turn has come.
pub(crate) fn begin_deploy_with<F>(
    rollout: &Rollout,
    app: Arc<App>,
    asked: Asked<F>,
    entrance: Entrance,
) -> Begun
where
    F: Future<Output = Result<Plan, OperationResult>> + Send + 'static,
{
    let progress = rollout.operations.begin_operation();
    let mut operation = progress.listen();
    let (tell, at_cutover) = oneshot::channel();
    let Asked {
        what,
        deadline,
        plan,
    } = asked;
    let own = OperationStatus {
        id: progress.id().to_owned(),
        what,
    };
    let (interest, wanted) = match entrance {
        Entrance::Queue => {
            let (interest, wanted) = operation::interest();
            (Some(interest), wanted)
        }
        Entrance::Now | Entrance::OfReload | Entrance::DetachedQueue => (None, Wanted::ALWAYS),
    };
    operation.interest = interest;
    let lock = match entrance {
        Entrance::Now => app.queue.take(own, false).map(Ok),
        Entrance::OfReload => app.queue.take(own, true).map(Ok),
        // In the order of asking, so before the task begins.
        Entrance::Queue | Entrance::DetachedQueue => Ok(Err(app.queue.enqueue(own))),
    };
    match lock {
        Err(other) => {
            let conflict = conflict(&app, &other);
            app.counters.ended(conflict.outcome);
            progress.finish(conflict.clone());
            let _ = tell.send(conflict);
        }
        Ok(lock) => {
            let rollout = rollout.clone();
            tokio::spawn(async move {
                let lock = match lock {
                    Ok(lock) => Ok(lock),
                    Err(place) => queued(&app, place, deadline, wanted, &progress).await,
                };
                let (lock, ended) = match lock {
                    Ok(lock) => {
                        let ended = match plan.await {
                            Ok(plan) => carry_out(&rollout, &app, plan, &progress).await,
                            Err(result) => Ended::Otherwise(result),
                        };
                        (Some(lock), ended)
                    }
                    Err(reason) => {
                        let ended = give_up(&rollout, &app, plan.await, reason).await;
                        (None, Ended::Otherwise(ended))
                    }
                };
                let (Ended::Live(result, _) | Ended::Otherwise(result)) = &ended;
                app.counters.ended(result.outcome);
                // Given back before anybody hears the result, so that who hears it can begin the
                // next operation.
                drop(lock);
                match ended {
                    Ended::Otherwise(result) => {
                        let _ = tell.send(result.clone());
                        progress.finish(result);
                    }
                    Ended::Live(result, leaving) => {
                        let _ = tell.send(result.clone());
                        match leaving {
                            None => progress.finish(result),
                            Some(leaving) => {
                                drain::drain_and_retire(
                                    &rollout,
                                    &app,
                                    leaving,
                                    Some((progress, result)),
                                )
                                .await;
                            }
                        }
                        rollout.collect().await;
                    }
                }
            });
        }
    }
    Begun {
        operation,
        at_cutover,
    }
}

/// The result of an operation that does not wait for `other`.
pub(crate) fn conflict(app: &App, other: &OperationStatus) -> OperationResult {
    let message = format!(
        "{other} is under way for {}: wait for it (--queue does), or hear it with GET /v1/operations/{}",
        app.name, other.id
    );
    result(Outcome::Conflict, app, message)
}

/// Waits for the turn, and says what for.
///
/// # Errors
/// Why it is given up.
pub(crate) async fn queued(
    app: &App,
    place: Place,
    deadline: Option<Deadline>,
    wanted: Wanted,
    progress: &ProgressSender,
) -> Result<OperationLock, String> {
    let mut behind = None;
    let waits = |other: &OperationStatus, ahead: usize| {
        behind = Some(other.clone());
        progress.send(Progress::Queued {
            app: app.name.clone(),
            behind: other.clone(),
            ahead: ahead as u64,
        });
    };
    let timeout = async {
        match deadline {
            Some(deadline) => {
                tokio::time::sleep_until(deadline.by.into()).await;
                deadline.timeout
            }
            None => std::future::pending().await,
        }
    };
    let passed = tokio::select! {
        biased;
        lock = place.acquire(waits) => {
            return lock.map_err(|Closed| "the host is shutting down".to_owned());
        }
        () = wanted.no_more() => {
            return Err("whoever asked for it left while it waited for its turn".to_owned());
        }
        timeout = timeout => timeout,
    };
    let behind = behind.map_or_else(String::new, |other| format!(" for {other}"));
    Err(late(passed, &format!("its wait{behind}")))
}

/// Records that a plan's turn never came.
async fn give_up(
    rollout: &Rollout,
    app: &App,
    plan: Result<Plan, OperationResult>,
    reason: String,
) -> OperationResult {
    match plan {
        Ok(plan) => {
            let failure = Failure::host(reason);
            record_failure(
                rollout,
                app,
                &plan.artifact,
                plan.cause,
                plan.source,
                failure,
            )
            .await
        }
        Err(result) => result,
    }
}

/// Carries out `plan` and records how it ended.
async fn carry_out(
    rollout: &Rollout,
    app: &Arc<App>,
    plan: Plan,
    progress: &ProgressSender,
) -> Ended {
    let (artifact, cause, source) = (plan.artifact.clone(), plan.cause, plan.source.clone());
    // Until its end is written down.
    let _trying = Trying::of(&rollout.journal, &app.name);
    match try_plan(rollout, app, plan, progress).await {
        Ok(ended) => ended,
        Err(failure) => {
            Ended::Otherwise(record_failure(rollout, app, &artifact, cause, source, failure).await)
        }
    }
}

async fn try_plan(
    rollout: &Rollout,
    app: &Arc<App>,
    plan: Plan,
    progress: &ProgressSender,
) -> Result<Ended, Failure> {
    let deadline = plan.deadline.map(|deadline| deadline.by);
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
    // Before anything is ended to make room for it.
    admit(rollout, app, &plan, progress).await?;
    if !plan.stage {
        make_room(rollout, app)?;
    }
    // What has to be on disk before it is used gets there while the artifact is checked.
    let (checked, kept, id, ()) = tokio::join!(
        check(rollout, app, &plan, deadline, progress),
        keep(rollout, &plan),
        reserve(app, &plan),
        rollout
            .journal
            .trying(&app.name, plan.tried(Step::Checked, None)),
    );
    let mut checked = match checked.and_then(|checked| kept.map(|()| checked)) {
        Ok(checked) => checked,
        Err(failure) => {
            if let Ok(Some(id)) = id {
                app.saved.edit(|record| record.give_back(id));
            }
            return Err(failure);
        }
    };
    let Some(id) = id? else {
        return stage(rollout, app, &plan, checked)
            .await
            .map(Ended::Otherwise);
    };
    let started = load_and_start(rollout, app, &plan, &mut checked, id, deadline, progress).await?;
    go_live(rollout, app, plan, checked, started, progress).await
}

/// Whether these bytes may become code at all: what they say of themselves, their version and who
/// signed them. Asked each time, so that a key, a version or an ABI that is not good any more
/// counts for a restart and a rollback too.
async fn admit(
    rollout: &Rollout,
    app: &App,
    plan: &Plan,
    progress: &ProgressSender,
) -> Result<(), Failure> {
    let refused = |reason: String| Failure {
        own_fault: false, // with other settings or a signature the same bytes are fine
        ..Failure::own(Outcome::Rejected, reason, None)
    };
    match plan.cause {
        Cause::Start | Cause::Crash => plan.artifact.runnable(),
        _ => plan.artifact.acceptable(),
    }
    .map_err(refused)?;
    if let Some(reason) = app.settings.too_old(&plan.artifact.manifest.version) {
        // A restart takes nobody back: what was live stays, and what is older than that does not
        // come.
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
fn make_room(rollout: &Rollout, app: &App) -> Result<(), Failure> {
    if !app.is_full() {
        return Ok(());
    }
    let draining = app.draining();
    let most = app.settings.max_old_generations;
    let Some(oldest) = draining.first() else {
        return Ok(());
    };
    let (id, counts) = (oldest.generation.spec().id, oldest.generation.counts());
    match app.settings.when_full {
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
async fn keep(rollout: &Rollout, plan: &Plan) -> Result<(), Failure> {
    let (store, artifact) = (rollout.store.clone(), plan.artifact.clone());
    background::run("keep", move || store.keep(&artifact))
        .await
        .map_err(|broken| Failure::host(format!("it could not be stored: {broken}")))?
        .map_err(|error| Failure::host(format!("it could not be stored: {error}")))
}

/// The number of the generation that it will be, if it will be one. On disk before it is used: the
/// number of a generation never comes back, whatever ends the host. But for what is to be served
/// again, which must not need a disk: its number is written when there is room.
async fn reserve(app: &App, plan: &Plan) -> Result<Option<GenerationId>, Failure> {
    if plan.stage {
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

/// What preflight came to.
#[derive(Debug, Default)]
struct Checked {
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

    /// Notes the verdict on `artifact`, if this host gave one just now.
    fn note_in(&self, record: &mut Record, artifact: Sha256) {
        if self.passed {
            let companions = self.companions.clone();
            record.passed(artifact, verdict::host(), HOST_ABI, companions);
        }
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

/// Preflight, where it is wanted.
async fn check(
    rollout: &Rollout,
    app: &App,
    plan: &Plan,
    deadline: Option<Instant>,
    progress: &ProgressSender,
) -> Result<Checked, Failure> {
    let Some(scope) = plan.preflight else {
        return Ok(Checked::default());
    };
    let began = Instant::now();
    let checked = preflight::check(&plan.artifact, &app.name, &app.settings, scope);
    let verdict = match deadline {
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
        (Ok(Verdict::Unhealthy(reason)), _) => Err(Failure::own(Outcome::Unhealthy, reason, None)),
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
async fn stage(
    rollout: &Rollout,
    app: &App,
    plan: &Plan,
    checked: Checked,
) -> Result<OperationResult, Failure> {
    let (sha256, version) = (plan.artifact.sha256, &plan.artifact.manifest.version);
    let head = Head {
        artifact: sha256,
        version: version.clone(),
        source: plan.source.clone(),
    };
    let entry = entry(
        &plan.artifact,
        plan.cause,
        plan.source.clone(),
        Outcome::Staged,
        None,
        None,
    );
    let entry = Entry {
        warnings: checked.warnings(),
        ..entry
    };
    let (_, saved) = app
        .saved
        .change(|record| {
            record.staged = Some(head);
            checked.note_in(record, sha256);
            record.failing.retain(|known| known.artifact != sha256);
            record.remember(entry);
        })
        .await;
    saved.map_err(|cause| Failure::host(format!("it could not be staged: {cause}")))?;
    let message = format!(
        "{} {version} ({}) passed its preflight and is staged: `handover reload {0}` makes it live",
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

/// Maps the library and runs the constructor.
async fn load_and_start(
    rollout: &Rollout,
    app: &Arc<App>,
    plan: &Plan,
    checked: &mut Checked,
    id: GenerationId,
    deadline: Option<Instant>,
    progress: &ProgressSender,
) -> Result<Started, Failure> {
    // From here on code of it runs in this process.
    rollout
        .journal
        .trying(&app.name, plan.tried(Step::Loaded, Some(id)))
        .await;
    let began = Instant::now();
    let artifact = plan.artifact.clone();
    let longest = app.settings.check.deadline;
    let left = |within: Duration| {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        left.map_or(within, |left| left.min(within))
    };
    let mut spec = Spec {
        app: app.name.clone(),
        id,
        version: plan.artifact.manifest.version.clone(),
        artifact: plan.artifact.sha256,
        config: app.settings.config.clone(),
        env: app.settings.readable_env(),
        runtime_threads: app.settings.runtime_threads.get(),
        start_deadline: longest,
        preflight: false,
        stays: app.saved.read(|record| {
            let reason = record.why_staying(plan.artifact.sha256);
            reason.map(str::to_owned)
        }),
    };
    // Keeps a library that cannot be unmapped now.
    let keep = |spec: &Spec, retained: Option<Box<generation::Retained>>| {
        if let Some(retained) = retained {
            let failed_starts = FailedStart {
                spec: spec.clone(),
                loaded_at: began,
                held: RetainReasons::default(),
            };
            app.running(|running| running.failed_starts.push(failed_starts));
            rollout.retire(app, id, generation::Ended::Retained(retained));
        }
    };
    let library = match generation::load(artifact, left(longest)).await {
        Ok(library) => library,
        Err(StartError {
            reason, retained, ..
        }) => {
            keep(&spec, retained);
            let reason = format!("its library could not be loaded: {reason}");
            return Err(Failure::host(reason).of(id));
        }
    };
    if let Some(base) = library.base() {
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
    let started = match generation::start(library, spec.clone()).await {
        Ok(started) => started,
        Err(error) => {
            let reason = error.explained();
            let is_short = error.refused.is_empty() && shortage::is_named(&error.reason);
            keep(&spec, error.retained);
            return Err(match deadline {
                Some(by) if Instant::now() >= by => Failure::late(plan, "its constructor").of(id),
                _ if is_short => Failure::host(format!("it could not be started: {reason}")).of(id),
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

/// Cutover, HEAD, and the beginning of the drain.
async fn go_live(
    rollout: &Rollout,
    app: &Arc<App>,
    plan: Plan,
    checked: Checked,
    started: Started,
    progress: &ProgressSender,
) -> Result<Ended, Failure> {
    let spec = started.generation().spec().clone();
    if rollout.is_closing() {
        let ended = started.discard().await;
        rollout.retire(app, spec.id, ended);
        return Err(Failure::host("the host is shutting down").of(spec.id));
    }
    // Before the first request can crash it, and not on a worker: it is a file.
    let (journal, named) = (rollout.journal.clone(), Arc::clone(started.generation()));
    let heap = started.heap_bytes();
    let written = tokio::task::spawn_blocking(move || journal.live(&named, heap));
    if let Err(broken) = written.await {
        tracing::warn!(%broken, "the crash journal was not written");
    }
    let began = Instant::now();
    let live = Live {
        active: started.activate(),
        artifact: plan.artifact.clone(),
        source: plan.source.clone(),
    };
    let replaced = rollout.registry.cut_over(app, live);
    progress.step(
        "cutover",
        app,
        began.elapsed(),
        format!(
            "new requests go to generation {} ({})",
            spec.id, spec.version
        ),
    );
    let instead = replaced.as_ref().map(|replaced| {
        let old = replaced.active.generation().spec();
        format!(", replacing generation {} ({})", old.id, old.version)
    });
    let mut message = format!(
        "{} {} ({}) is live as generation {}",
        app.name,
        spec.version,
        spec.artifact.short(),
        spec.id
    );
    rollout.registry.record_event(
        EventKind::Active,
        app,
        Some(spec.id),
        format!("{message}{}", instead.unwrap_or_default()),
    );
    checked.record_remarks(rollout, app, &plan, Some(spec.id));

    let entry = Entry {
        warnings: checked.warnings(),
        ..entry(
            &plan.artifact,
            plan.cause,
            plan.source.clone(),
            Outcome::Done,
            Some(spec.id),
            None,
        )
    };
    crash::prove_later(rollout, app, &spec);
    let head = Head {
        artifact: spec.artifact,
        version: spec.version,
        source: plan.source,
    };
    let (_, saved) = app
        .saved
        .change(|record| {
            record
                .failing
                .retain(|known| known.artifact != head.artifact);
            if record
                .staged
                .as_ref()
                .is_some_and(|staged| staged.artifact == head.artifact)
            {
                record.staged = None;
            }
            checked.note_in(record, spec.artifact);
            // At a start HEAD is what was wanted, even if something older had to be taken for it.
            if plan.cause != Cause::Start {
                record.head = Some(head);
            }
            record.remember(entry);
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

    let leaving = replaced.map(|replaced| Leaving::new(&rollout.departures, replaced));
    let result = OperationResult {
        notes: checked.notes(),
        ..result(Outcome::Done, app, message)
    };
    Ok(Ended::Live(result, leaving))
}

async fn record_failure(
    rollout: &Rollout,
    app: &App,
    artifact: &Artifact,
    cause: Cause,
    source: Option<String>,
    failure: Failure,
) -> OperationResult {
    let Failure {
        outcome,
        reason,
        generation,
        own_fault,
    } = failure;
    let (kind, word) = match outcome {
        Outcome::Rejected => (EventKind::Rejected, "was rejected"),
        Outcome::Unhealthy => (EventKind::Unhealthy, "failed its smoke requests"),
        _ => (EventKind::Failed, "could not be deployed"),
    };
    let still = match app.live() {
        Some(live) => format!("generation {} ({}) stays live", live.id, live.version),
        None => "nothing is live".to_owned(),
    };
    let message = format!(
        "{} {} ({}) {word}, {still}: {reason}",
        app.name,
        artifact.manifest.version,
        artifact.sha256.short()
    );
    rollout
        .registry
        .record_event(kind, app, generation, message.as_str());
    let entry = entry(
        artifact,
        cause,
        source,
        outcome,
        generation,
        Some(reason.clone()),
    );
    let (_, saved) = app
        .saved
        .change(|record| {
            record.remember(entry);
            // What was good once is not condemned for not coming up at a start.
            if own_fault
                && matches!(
                    cause,
                    Cause::Deploy | Cause::Drop | Cause::Reload | Cause::Dev
                )
            {
                record.failed(artifact.sha256, reason);
            }
        })
        .await;
    if let Err(cause) = saved {
        rollout.registry.record_event(
            EventKind::State,
            app,
            generation,
            format!("the failure could not be recorded: {cause}"),
        );
    }
    result(outcome, app, message)
}

fn entry(
    artifact: &Artifact,
    cause: Cause,
    source: Option<String>,
    outcome: Outcome,
    generation: Option<GenerationId>,
    reason: Option<String>,
) -> Entry {
    Entry {
        at_ms: crate::records::clock::now_ms(),
        order: Order::next(),
        generation,
        version: Some(artifact.manifest.version.clone()),
        artifact: artifact.sha256,
        cause,
        outcome,
        reason,
        source,
        warnings: Vec::new(),
    }
}

impl Failure {
    /// A failure that is not the artifact's fault.
    fn host(reason: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Failed,
            reason: reason.into(),
            generation: None,
            own_fault: false,
        }
    }

    /// A failure that the same bytes would have again.
    fn own(outcome: Outcome, reason: String, generation: Option<GenerationId>) -> Self {
        Self {
            outcome,
            reason,
            generation,
            own_fault: true,
        }
    }

    /// The deploy's own timeout passed.
    fn late(plan: &Plan, during: &str) -> Self {
        let timeout = plan
            .deadline
            .map_or(Duration::ZERO, |deadline| deadline.timeout);
        Self::host(late(timeout, during))
    }

    fn of(mut self, id: GenerationId) -> Self {
        self.generation = Some(id);
        self
    }
}

fn late(timeout: Duration, during: &str) -> String {
    format!(
        "it was not live within {} (--timeout), which passed during {during}",
        humantime::format_duration(timeout)
    )
}

impl ProgressSender {
    /// Says that a step ended well.
    fn step(&self, step: &'static str, app: &App, took: Duration, message: String) {
        self.found(step, app, took, message, Vec::new());
    }

    /// Says that a step ended well, and what it found that people should know.
    fn found(
        &self,
        step: &'static str,
        app: &App,
        took: Duration,
        message: String,
        notes: Vec<Note>,
    ) {
        app.counters.step(step, took);
        self.send(Progress::Step {
            step: step.to_owned(),
            app: app.name.clone(),
            message,
            took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            notes,
        });
    }
}

impl Rollout {
    /// The plan to make an artifact live that is in the store. It is checked again when its verdict
    /// is not this host's.
    pub(crate) async fn plan_stored(
        &self,
        app: &App,
        head: Head,
        cause: Cause,
    ) -> Result<Plan, OperationResult> {
        let store = self.store.clone();
        let found = tokio::task::spawn_blocking(move || store.get(head.artifact)).await;
        let why = match found {
            Ok(Ok(artifact)) => {
                let preflight = app
                    .saved
                    .read(|record| verdict::asked_again(record, artifact.sha256, cause));
                return Ok(Plan {
                    artifact,
                    cause,
                    source: head.source,
                    noticed_in: None,
                    stored_in: None,
                    preflight,
                    stage: false,
                    deadline: None,
                });
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        let message = format!(
            "{} {} ({}) cannot be taken from the artifact store: {why}",
            app.name,
            head.version,
            head.artifact.short()
        );
        self.registry
            .record_event(EventKind::Failed, app, None, message.as_str());
        Err(result(Outcome::Failed, app, message))
    }

    /// Deletes the artifacts that no app can want any more.
    pub(crate) async fn collect(&self) {
        let wanted: Vec<_> = self
            .registry
            .all()
            .iter()
            .flat_map(|app| {
                app.saved
                    .read(|record| record.wanted(app.settings.keep_artifacts))
            })
            .collect();
        let store = self.store.clone();
        match tokio::task::spawn_blocking(move || store.collect(&wanted)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "old artifacts could not be deleted"),
            Err(error) => tracing::error!(%error, "old artifacts could not be deleted"),
        }
    }
}
