//! A version on trial: it gets a share of the requests that grows step by step, and is promoted at
//! the end, or ended as soon as the figures speak against it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use handover_api::{AppName, Cause, EventKind, Label, OperationResult, Outcome, Progress};

use tokio::sync::watch;

use crate::{
    apps::{
        app::{App, result},
        serving::{Canary, Labelled},
    },
    artifact::Artifact,
    canary::{Against, Course, FULL, Next, Share, Side, Trial},
    config,
    dispatch::OnTrial,
    generation::Generation,
    human,
    operations::operation::{Operation, ProgressSender},
    rollout::{
        Rollout,
        deploy::{self, Destination, Plan},
        hooks::{self, About},
        labels, rollback,
    },
};

/// How often the figures are looked at, beside each failure.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// So often the figures of latency begin a new minute.
const MINUTE: Duration = Duration::from_secs(60);

/// So many panics in one place end a canary.
const PANICS: u64 = 5;

/// How a version is tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trying {
    /// The shares, at least one, each larger than the one before.
    pub(crate) steps: Vec<Share>,
    /// How long each lasts.
    pub(crate) bake: Duration,
    /// How its requests are chosen.
    pub(crate) settings: Arc<config::Canary>,
}

impl Trying {
    /// Returns the trial of `generation`, which begins now beside `live`.
    pub(super) fn begin(&self, generation: &Arc<Generation>, live: &Generation) -> Canary {
        let first = self.steps.first().copied().unwrap_or(FULL);
        let trial = Trial::new(first, self.settings.min_requests);
        trial.set_share(first, all_of(live));
        let settings = &self.settings;
        let course = Course::new(self.steps.clone(), self.bake, settings.min_requests);
        Canary {
            on_trial: OnTrial {
                generation: Arc::clone(generation),
                trial: Arc::new(trial),
                settings: Arc::clone(settings),
            },
            course: Arc::new(course),
        }
    }
}

/// The requests of a generation in all its life, and those that failed.
fn all_of(live: &Generation) -> (u64, u64) {
    let counts = live.counts();
    (counts.requests, counts.server_errors)
}

/// Returns what is on trial.
pub(crate) fn of(app: &App) -> Option<Canary> {
    app.running(|running| running.serving.canary().cloned())
}

/// Returns why `plan` cannot be carried out while something else is on trial.
pub(super) fn stands_in_the_way_of(plan: &Plan, app: &App) -> Option<OperationResult> {
    let is_itself = plan.up.as_ref().is_some_and(|(_, id)| {
        let canary = of(app);
        canary.is_some_and(|canary| canary.id() == *id)
    });
    // What only comes up beside the live one is in nobody's way.
    let is_beside = matches!(
        plan.destination,
        Destination::Label { .. } | Destination::Shadow { .. }
    );
    if is_itself || is_beside || matches!(plan.cause, Cause::Start | Cause::Crash) {
        return None;
    }
    stands_in_the_way(app)
}

/// Returns why nothing else can become live while something is on trial.
pub(super) fn stands_in_the_way(app: &App) -> Option<OperationResult> {
    let canary = of(app)?;
    let message = format!(
        "nothing was changed: {} of {} is on trial; make it live with `handover promote {}`, or end it with `handover abort {}`",
        told(&canary),
        app.name,
        app.name,
        app.name
    );
    Some(result(Outcome::Conflict, app, message))
}

/// `generation 3 (1.2.0), with 5% of the requests,`
fn told(canary: &Canary) -> String {
    let spec = canary.on_trial.generation.spec();
    format!(
        "generation {} ({}), with {} of the requests,",
        spec.id,
        spec.version,
        canary.on_trial.trial.share()
    )
}

/// Begins to have a trial stand still, or go on, which takes no time.
pub(crate) fn begin_pause(rollout: &Rollout, app: Option<AppName>, paused: bool) -> Operation {
    rollback::at_once(rollout, app, |app| pause(rollout, app, paused))
}

fn pause(rollout: &Rollout, app: &App, paused: bool) -> OperationResult {
    let Some(canary) = of(app) else {
        let message = format!(
            "nothing of {} is on trial: `handover deploy FILE.so --canary 5%` begins that",
            app.name
        );
        return result(Outcome::Failed, app, message);
    };
    let message = match (canary.course.pause(paused), paused) {
        (true, true) => format!(
            "{} stays there until `handover canary resume`",
            told(&canary)
        ),
        (true, false) => format!("{} goes on", told(&canary)),
        (false, true) => format!("{} is paused already", told(&canary)),
        (false, false) => format!("{} was not paused", told(&canary)),
    };
    rollout
        .registry
        .record_event(EventKind::Canary, app, Some(canary.id()), message.as_str());
    result(Outcome::Done, app, message)
}

/// Watches a trial to its end, which `progress` tells; the version itself is `beside`.
pub(super) async fn follow(
    rollout: &Rollout,
    app: &Arc<App>,
    canary: Canary,
    progress: &ProgressSender,
    beside: OperationResult,
) {
    let began = Instant::now();
    let ended = |outcome, message| OperationResult {
        notes: beside.notes.clone(),
        ..result(outcome, app, message)
    };
    let spec = canary.on_trial.generation.spec().clone();
    let trial = Arc::clone(&canary.on_trial.trial);
    let tell = |share: Share| {
        progress.step(
            "canary",
            app,
            began.elapsed(),
            format!(
                "{share} of the requests go to generation {} ({})",
                spec.id, spec.version
            ),
        );
    };
    tell(trial.share());
    let mut verdict = trial.verdict();
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut minute = began;
    let mut stalls = Stalls::default();
    let artifact = app.running(|running| {
        let mut all = running.serving.labelled().iter();
        let labelled = all.find(|one| one.id() == spec.id)?;
        Some(labelled.live.artifact.clone())
    });
    let mut result = loop {
        tokio::select! {
            biased;
            () = rollout.closing() => {
                let message = "the host is shutting down: the canary ends with it, and what was live is live again after that";
                break ended(Outcome::Failed, message.to_owned());
            }
            () = against(&mut verdict) => {
                let against = trial.verdict().borrow().clone();
                break abort(rollout, app, &canary, artifact.as_ref(), against, &ended).await;
            }
            _ = look.tick() => {}
        }
        let is_up = app.running(|running| {
            let canary = running.serving.canary().map(Canary::id);
            canary == Some(spec.id)
        });
        if !is_up {
            break match app.live() {
                Some(live) if live.id == spec.id => ended(
                    Outcome::Done,
                    format!("generation {} ({}) was promoted", spec.id, spec.version),
                ),
                _ => ended(
                    Outcome::RolledBack,
                    format!("generation {} ({}) was aborted", spec.id, spec.version),
                ),
            };
        }
        let is_next = minute.elapsed() >= MINUTE;
        if is_next {
            minute = Instant::now();
        }
        let live = app.running(|running| running.serving.generation().cloned());
        stalls.look(&trial, &canary.on_trial.generation, live.as_deref());
        if let Some(place) = often_panics(&canary.on_trial.generation) {
            trial.condemn(Against::Other(format!(
                "it panicked {PANICS} times at {place}"
            )));
            continue;
        }
        trial.tick(is_next);
        let answered = trial.counts(Side::Canary).requests;
        match canary.course.advance(Instant::now(), answered) {
            Next::Wait => {}
            Next::Inconclusive => inconclusive(rollout, app, &canary, answered),
            Next::Step(share) => {
                let known = live.as_deref().map_or((0, 0), |live| {
                    // Better what was counted beside it, each client once, than all its life.
                    match trial.counts(Side::Live) {
                        counts if counts.requests > 0 => (counts.requests, counts.failed),
                        _ => all_of(live),
                    }
                });
                trial.set_share(share, known);
                tell(share);
                let message = format!("{} goes on", told(&canary));
                rollout
                    .registry
                    .record_event(EventKind::Canary, app, Some(spec.id), message);
            }
            Next::Promote => {
                match promoted(promote(rollout, app, &canary), progress).await {
                    // It ended in the meantime, which the next look finds.
                    Some(result) if result.outcome == Outcome::Failed && is_gone(app, &canary) => {}
                    Some(result) => break result,
                    None => break ended(Outcome::Failed, "the promotion broke off".to_owned()),
                }
            }
        }
    };
    if let (Some(artifact), Outcome::RolledBack) = (artifact, result.outcome) {
        let about = About {
            app,
            artifact: &artifact,
            cause: Cause::Deploy,
            generation: Some(spec.id),
        };
        hooks::afterwards(about, &mut result, &progress.voice()).await;
    }
    progress.finish(result);
}

/// Waits for a reason to end a canary.
async fn against(verdict: &mut watch::Receiver<Option<Against>>) {
    // The sender is in the trial, which its caller has, so this cannot fail.
    let _ = verdict.wait_for(Option::is_some).await;
}

fn is_gone(app: &App, canary: &Canary) -> bool {
    of(app).is_none_or(|known| known.id() != canary.id())
}

/// Begins to make live what was on trial.
fn promote(rollout: &Rollout, app: &Arc<App>, canary: &Canary) -> Operation {
    let id = canary.id();
    let what = format!("promotion of the canary, generation {id}");
    labels::begin_promote_of(rollout, Arc::clone(app), what, move |one| one.id() == id)
}

/// Hands on what `operation` tells. Returns its result.
async fn promoted(mut operation: Operation, progress: &ProgressSender) -> Option<OperationResult> {
    while let Some(line) = operation.lines.recv().await {
        match line {
            Progress::Result(result) => return Some(result),
            Progress::Accepted { .. } => {}
            line => progress.send(line),
        }
    }
    None
}

/// Ends a canary that the figures speak against.
async fn abort(
    rollout: &Rollout,
    app: &Arc<App>,
    canary: &Canary,
    artifact: Option<&Artifact>,
    against: Option<Against>,
    ended: &impl Fn(Outcome, String) -> OperationResult,
) -> OperationResult {
    let spec = canary.on_trial.generation.spec();
    let trial = &canary.on_trial.trial;
    let (own, live) = (trial.counts(Side::Canary), trial.counts(Side::Live));
    let millis = |time: Option<Duration>| time.map_or_else(|| "?".to_owned(), human::duration);
    let of_requests = |requests| human::pluralize(requests, "request");
    let why = match against {
        Some(Against::Failures) => format!(
            "it failed {} in {}, what is live {} in {}",
            human::pluralize(own.failed, "client"),
            of_requests(own.requests),
            human::pluralize(live.failed, "client"),
            of_requests(live.requests)
        ),
        Some(Against::Slowness) => format!(
            "it is slower: 99% of its answers took up to {}, those of what is live up to {}",
            millis(own.p99),
            millis(live.p99)
        ),
        Some(Against::Other(reason)) => reason,
        None => "it was ended".to_owned(),
    };
    let message = format!(
        "generation {} ({}) of {} was taken back after {}: {why}",
        spec.id,
        spec.version,
        app.name,
        of_requests(own.requests)
    );
    rollout.registry.record_event(
        EventKind::CanaryAborted,
        app,
        Some(spec.id),
        message.as_str(),
    );
    let label = Label::of(Label::CANARY);
    let is_it = |labelled: &Labelled| labelled.id() == spec.id;
    labels::end(rollout, app, &label, is_it, "its trial went against it");
    if let Some(artifact) = artifact {
        deploy::remember(app, artifact, Outcome::RolledBack, spec.id, why).await;
    }
    ended(Outcome::RolledBack, message)
}

fn inconclusive(rollout: &Rollout, app: &App, canary: &Canary, answered: u64) {
    let message = format!(
        "{} has had its time and answered {} of the {} requests that it takes to go on: it stays where it is until there are enough, \
         or until `handover promote` or `handover abort`",
        told(canary),
        answered,
        canary.course.min_requests()
    );
    rollout.registry.record_event(
        EventKind::CanaryInconclusive,
        app,
        Some(canary.id()),
        message,
    );
}

/// Where a generation panicked too often.
fn often_panics(generation: &Generation) -> Option<String> {
    let mut places = generation.panic_places().into_iter();
    places
        .find(|(_, count)| *count >= PANICS)
        .map(|(place, _)| place)
}

/// The stalls of both sides that are known.
#[derive(Debug, Default)]
struct Stalls(Option<(u64, u64)>);

impl Stalls {
    fn look(&mut self, trial: &Arc<Trial>, canary: &Generation, live: Option<&Generation>) {
        let now = (
            canary.counts().stalls,
            live.map_or(0, |live| live.counts().stalls),
        );
        let before = self.0.replace(now).unwrap_or((0, now.1));
        trial.add_stalls(Side::Canary, now.0.saturating_sub(before.0));
        trial.add_stalls(Side::Live, now.1.saturating_sub(before.1));
    }
}
