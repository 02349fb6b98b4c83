//! An artifact's way to being live: preflight, load, start, cutover, HEAD; and what becomes of it
//! when a step fails.
//!
//! - [`steps`]: the steps, in their order
//! - [`handoff`]: the cutover at which never two versions are up
//! - [`schema`]: whether the state fits, and what brings it there
//! - [`db`]: whether the database of the app fits
//! - [`failure`]: why one failed, and how that is recorded

mod db;
mod failure;
mod handoff;
mod schema;
mod steps;
#[cfg(test)]
mod tests;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use handover_api::{
    Cause, EventKind, GenerationId, Label, Note, OperationResult, OperationStatus, Outcome,
    Percent, Progress, StepTook, Wait, query,
};
use tokio::sync::oneshot;

use self::{
    failure::{Failure, late, record_failure},
    steps::{Deploy, Machine, ThisMachine},
};
use crate::{
    apps::{
        app::{App, result},
        serving::Canary,
    },
    artifact::Artifact,
    canary::Share,
    config::{self, RequestKey},
    operations::{
        operation::{self, Operation, ProgressSender, Voice, Wanted},
        queue::{Closed, OperationLock, Place},
    },
    preflight::Scope,
    records::{
        app_record::Head,
        history::{Attribution, Entry},
        journal::{Step, Tried, Trying},
    },
    rollout::{
        Rollout, canary,
        drain::{self, Leaving, Telling},
        hooks::{self, About},
        verdict,
    },
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
    /// What becomes of them after that.
    pub(crate) destination: Destination,
    /// The generation of them that is up already, under a label: nothing is checked and loaded.
    pub(crate) up: Option<(Label, GenerationId)>,
    /// When preflight and start must have ended.
    pub(crate) deadline: Option<Deadline>,
    /// Whether jobs may lose their handler.
    pub(crate) orphan_jobs: bool,
    /// Whether it goes live in a freeze, too.
    pub(crate) override_freeze: bool,
    /// Who asked for it, and why.
    pub(crate) attribution: Attribution,
    /// Whether a new generation replaces what is live though it is the same artifact.
    pub(crate) anew: bool,
    /// Whether the state becomes what it was before it was migrated, where there is no way back.
    pub(crate) restore_state: bool,
}

/// What becomes of an artifact that passed its preflight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// It is loaded and gets all new requests.
    Live,
    /// It is loaded and gets the requests that ask for `label`, until `ttl` has passed.
    Label {
        /// The label.
        label: Label,
        /// For how long; none: until somebody promotes or aborts it.
        ttl: Option<Duration>,
    },
    /// The same under the label `canary`, with a share of the requests.
    Canary(canary::Trying),
    /// The same under the label `shadow`, with copies of a share of the requests.
    Shadow {
        /// The share.
        share: Percent,
        /// For how long; none: until somebody promotes or aborts it.
        ttl: Option<Duration>,
    },
    /// It waits for `handover reload`.
    Staged,
}

/// Returns why a deploy cannot be as it is asked for; none when it can.
pub(crate) fn unfit(asked: &query::Deploy) -> Option<String> {
    let label = asked.label.as_ref().filter(|label| label.is_reserved());
    let sticky = asked.sticky.as_deref().map(str::parse::<RequestKey>);
    match (label, sticky) {
        (Some(label), _) => Some(format!(
            "the host gives the label `{label}`: choose another one"
        )),
        (_, Some(Err(error))) => Some(error.to_string()),
        _ if asked.label.is_some() && asked.canary.is_some() => {
            Some("a canary has the label `canary`, and no other".to_owned())
        }
        _ if asked.shadow.is_some() && (asked.label.is_some() || asked.canary.is_some()) => {
            Some("a shadow has the label `shadow`, and no other".to_owned())
        }
        _ => None,
    }
}

impl Destination {
    /// Returns what becomes of a deploy of an app with `settings`.
    pub(crate) fn asked_for(settings: &config::App, asked: &query::Deploy) -> Self {
        let millis = |millis: Option<u64>| millis.map(Duration::from_millis);
        if let Some(steps) = &asked.canary {
            let mut canary = settings.canary.clone();
            // What cannot be was refused by `unfit`.
            if let Some(Ok(sticky)) = asked.sticky.as_deref().map(str::parse) {
                canary.sticky = Some(sticky);
            }
            let steps = canary.steps_from(steps).into_iter();
            return Self::Canary(canary::Trying {
                steps: steps.map(|step| Share::of(step.part())).collect(),
                bake: millis(asked.bake_ms).unwrap_or(canary.bake),
                settings: Arc::new(canary),
            });
        }
        if let Some(share) = asked.shadow {
            let ttl = millis(asked.ttl_ms).or(settings.labels.ttl);
            return Self::Shadow { share, ttl };
        }
        match asked.label.clone() {
            None => Self::Live,
            Some(label) => Self::Label {
                label,
                ttl: millis(asked.ttl_ms).or(settings.labels.ttl),
            },
        }
    }
}

impl Plan {
    /// How long something may take that may take `longest`: no longer than until the deadline.
    fn within(&self, longest: Duration) -> Duration {
        let left = self
            .deadline
            .map(|deadline| deadline.by.saturating_duration_since(Instant::now()));
        left.map_or(longest, |left| left.min(longest))
    }

    /// Whether it brings what somebody has handed in, and not what was live before.
    fn brings_new(&self) -> bool {
        matches!(self.cause, Cause::Deploy | Cause::Drop | Cause::Reload)
    }

    /// Returns what the history says of it, as long as nothing has become of it.
    fn entry(&self, steps: Vec<StepTook>) -> Entry {
        Entry {
            source: self.source.clone(),
            attribution: self.attribution.clone(),
            steps,
            ..Entry::of(&self.artifact, self.cause, Outcome::Failed)
        }
    }

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

/// How a plan ended when nothing failed.
enum Ended {
    /// It is live.
    Live(OperationResult, Option<Leaving>),
    /// It is on trial beside what is live.
    OnTrial(OperationResult, Box<Canary>),
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

/// Begins what `plan` comes to when its turn has come; where that is all there is to do, its error
/// is the result.
pub(super) fn begin_plan<F>(
    rollout: &Rollout,
    app: Arc<App>,
    what: String,
    plan: F,
    wait: Wait,
) -> Operation
where
    F: Future<Output = Result<Plan, OperationResult>> + Send + 'static,
{
    let asked = Asked {
        what,
        deadline: None,
        plan,
    };
    begin_deploy_with(rollout, app, asked, wait.into()).operation
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
                let mut carried_out = None;
                let (lock, ended) = match lock {
                    Ok(lock) => {
                        let ended = match plan.await {
                            Ok(mut plan) => {
                                let prepared =
                                    pre_deploy(&rollout, &app, &mut plan, &progress).await;
                                carried_out = Some((plan.artifact.clone(), plan.cause));
                                match prepared {
                                    Ok(()) => {
                                        carry_out(&rollout, &app, plan, &progress, ThisMachine)
                                            .await
                                    }
                                    Err(failure) => {
                                        failed(&rollout, &app, &plan, &progress, failure).await
                                    }
                                }
                            }
                            Err(result) => Ended::Otherwise(result),
                        };
                        (Some(lock), ended)
                    }
                    Err(reason) => {
                        let ended = give_up(&rollout, &app, plan.await, reason).await;
                        (None, Ended::Otherwise(ended))
                    }
                };
                let (Ended::Live(result, _) | Ended::OnTrial(result, _) | Ended::Otherwise(result)) =
                    &ended;
                app.counters.ended(result.outcome);
                // Given back before anybody hears the result, so that who hears it can begin the
                // next operation.
                drop(lock);
                match ended {
                    Ended::Otherwise(mut result) => {
                        let _ = tell.send(result.clone());
                        if let Some((artifact, cause)) = carried_out {
                            let about = about(&app, &artifact, cause, result.generation);
                            hooks::afterwards(about, &mut result, &progress.voice()).await;
                        }
                        progress.finish(result);
                    }
                    Ended::OnTrial(result, trial) => {
                        let _ = tell.send(result.clone());
                        canary::follow(&rollout, &app, *trial, &progress, result).await;
                    }
                    Ended::Live(mut result, leaving) => {
                        let _ = tell.send(result.clone());
                        let hook = carried_out.map(|(artifact, cause)| {
                            let (app, voice) = (Arc::clone(&app), progress.voice());
                            let mut result = result.clone();
                            // Beside the drain, whose deadlines do not wait for it.
                            tokio::spawn(async move {
                                result.notes.clear();
                                let about = about(&app, &artifact, cause, result.generation);
                                hooks::afterwards(about, &mut result, &voice).await;
                                result.notes
                            })
                        });
                        match leaving {
                            None => {
                                if let Some(hook) = hook {
                                    result.notes.extend(hook.await.unwrap_or_default());
                                }
                                progress.finish(result);
                            }
                            Some(leaving) => {
                                let telling = Telling {
                                    progress,
                                    result,
                                    hook,
                                };
                                drain::drain_and_retire(&rollout, &app, leaving, Some(telling))
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
            let entry = plan.entry(Vec::new());
            record_failure(rollout, app, &plan.artifact, entry, failure).await
        }
        Err(result) => result,
    }
}

fn about<'a>(
    app: &'a App,
    artifact: &'a Artifact,
    cause: Cause,
    generation: Option<GenerationId>,
) -> About<'a> {
    About {
        app,
        artifact,
        cause,
        generation,
    }
}

/// Runs the hook `pre_deploy`, where `plan` brings something that is not live, and takes the
/// artifact that it names instead.
async fn pre_deploy(
    rollout: &Rollout,
    app: &App,
    plan: &mut Plan,
    progress: &ProgressSender,
) -> Result<(), Failure> {
    let settings = app.settings();
    let Some(program) = &settings.hooks.pre_deploy else {
        return Ok(());
    };
    let is_live = app
        .live()
        .is_some_and(|live| live.artifact == plan.artifact.sha256);
    let is_refused = canary::stands_in_the_way_of(plan, app).is_some();
    if !plan.brings_new() || plan.up.is_some() || is_live || is_refused {
        return Ok(());
    }
    // So that the program finds it.
    let (store, artifact) = (rollout.store.clone(), plan.artifact.clone());
    let kept = tokio::task::spawn_blocking(move || store.keep(&artifact)).await;
    kept.map_err(|broken| Failure::host(broken.to_string()))?
        .map_err(|error| Failure::host(format!("it cannot be stored: {error}")))?;
    let about = about(app, &plan.artifact, plan.cause, None);
    let refused = |reason| Failure {
        own_fault: false, // another time the hook may say something else
        ..Failure::own(Outcome::Rejected, reason, None)
    };
    let within = plan.within(settings.hooks.deadline);
    let voice = progress.voice();
    let finished = hooks::run("pre_deploy", program, about, Vec::new(), within, &voice).await;
    let finished = finished.map_err(refused)?;
    let Some(path) = hooks::retarget(&finished).map(PathBuf::from) else {
        return Ok(());
    };
    let (store, file) = (rollout.store.clone(), path.clone());
    let taken = tokio::task::spawn_blocking(move || store.add_file(&file)).await;
    let artifact = taken
        .map_err(|broken| Failure::host(broken.to_string()))?
        .map_err(|error| {
            refused(format!(
                "pre_deploy names {} as the artifact to take, which was not taken: {error}",
                path.display()
            ))
        })?;
    progress.step(
        "retarget",
        app,
        Duration::ZERO,
        format!(
            "{} ({}) is taken instead: {}",
            artifact.manifest.version,
            artifact.sha256.short(),
            path.display()
        ),
    );
    plan.artifact = artifact;
    Ok(())
}

/// Records that `plan` has failed.
async fn failed(
    rollout: &Rollout,
    app: &App,
    plan: &Plan,
    progress: &ProgressSender,
    failure: Failure,
) -> Ended {
    let entry = plan.entry(progress.steps());
    Ended::Otherwise(record_failure(rollout, app, &plan.artifact, entry, failure).await)
}

/// Carries out `plan` and records how it ended.
async fn carry_out<M: Machine + Clone>(
    rollout: &Rollout,
    app: &Arc<App>,
    plan: Plan,
    progress: &ProgressSender,
    machine: M,
) -> Ended {
    let (artifact, entry) = (plan.artifact.clone(), plan.entry(Vec::new()));
    // Until its end is written down.
    let deploy = Deploy {
        rollout,
        app,
        plan,
        progress,
        trying: Arc::new(Trying::of(&rollout.journal, &app.name)),
        machine,
        migration: None,
        handed_over: None,
    };
    match deploy.run().await {
        Ok(ended) => ended,
        Err(failure) => {
            let entry = Entry {
                steps: progress.steps(),
                ..entry
            };
            Ended::Otherwise(record_failure(rollout, app, &artifact, entry, failure).await)
        }
    }
}

/// Notes in the history what became of a version that was up beside the live one.
pub(super) async fn remember(
    app: &App,
    artifact: &Artifact,
    outcome: Outcome,
    id: GenerationId,
    reason: String,
) {
    let entry = Entry {
        generation: Some(id),
        reason: Some(reason),
        ..Entry::of(artifact, Cause::Deploy, outcome)
    };
    let (_, saved) = app.saved.change(|record| record.remember(entry)).await;
    if let Err(cause) = saved {
        tracing::warn!(app = %app.name, "the history does not have it yet: {cause}");
    }
}

impl Voice {
    /// Says that a step ended well.
    pub(super) fn step(&self, step: &'static str, app: &App, took: Duration, message: String) {
        self.found(step, app, took, message, Vec::new());
    }

    /// Says that a step has ended, and what it found that people should know.
    pub(super) fn found(
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
                    destination: Destination::Live,
                    up: None,
                    deadline: None,
                    orphan_jobs: false,
                    override_freeze: false,
                    anew: false,
                    restore_state: false,
                    attribution: Attribution::default(),
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
                    .read(|record| record.wanted(app.settings().keep_artifacts))
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
