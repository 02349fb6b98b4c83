//! The cutover `handoff`: never two versions at the same time.
//!
//! New requests are held; what the live version has in flight ends; it is dropped, with all that it
//! has open; the new version starts, and the held requests go to it. When the new one cannot become
//! live, what was live is started again, and the held requests go to that. A state whose schema
//! changes is migrated in between.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use handover_api::{Cause, GenerationId, Outcome};

use super::{
    Destination, Ended, Plan,
    failure::Failure,
    steps::{Checked, Deploy, Machine},
};
use crate::{
    apps::app::{App, Live},
    config::Cutover,
    dispatch::Pause,
    generation::Generation,
    human,
    operations::operation::ProgressSender,
    records::{app_record::Head, journal::Trying},
    rollout::{
        Rollout,
        drain::{self, Leaving},
    },
};

/// How often it is looked at whether the live version has ended what it has.
const GLANCE: Duration = Duration::from_millis(1);

/// The requests of an app, held until this is dropped.
struct HeldRequests<'a> {
    rollout: &'a Rollout,
    app: &'a Arc<App>,
    pause: Arc<Pause>,
    began: Instant,
}

impl<'a> HeldRequests<'a> {
    fn begin(rollout: &'a Rollout, app: &'a Arc<App>) -> Self {
        let pause = Pause::new(app.settings().max_hold);
        app.hold(Some(Arc::clone(&pause)));
        rollout.registry.publish();
        Self {
            rollout,
            app,
            pause,
            began: Instant::now(),
        }
    }

    /// How long requests may be held yet.
    fn left(&self) -> Duration {
        self.pause.max_wait().saturating_sub(self.began.elapsed())
    }
}

impl Drop for HeldRequests<'_> {
    fn drop(&mut self) {
        self.app.hold(None);
        self.rollout.registry.publish();
        self.pause.release();
    }
}

/// Whether an app of which nothing but one version may be up is to have another beside it.
pub(super) fn refusal(app: &App, plan: &Plan) -> Option<String> {
    let is_beside = !matches!(plan.destination, Destination::Live | Destination::Staged);
    (is_beside && app.settings().cutover == Cutover::Handoff && app.live().is_some()).then(|| {
        format!(
            "app.{}.cutover is \"handoff\", so no two versions of it are up at the same time: deploy it without a label, a canary or a shadow",
            app.name
        )
    })
}

impl<M: Machine + Clone> Deploy<'_, M> {
    /// Whether no two versions may be up at the same time, by the settings.
    pub(super) fn is_exclusive(&self) -> bool {
        self.app.settings().cutover == Cutover::Handoff
            && self.plan.destination == Destination::Live
            && self.app.live().is_some()
    }

    /// Whether what is live leaves before this comes up.
    pub(super) fn hands_off(&self) -> bool {
        self.is_exclusive() || (self.migration.is_some() && self.app.live().is_some())
    }

    /// Has what is live leave, and starts the new version in its place.
    pub(super) async fn hand_off(
        mut self,
        checked: Checked,
        id: GenerationId,
    ) -> Result<Ended, Failure> {
        let (rollout, app, progress) = (self.rollout, self.app, self.progress);
        let Some((head, old)) = app.running(|running| {
            let live = running.serving.primary()?;
            Some((head_of(live), Arc::clone(live.active.generation())))
        }) else {
            return Box::pin(self.migrate_and_go_live(checked, id)).await;
        };
        let hold = HeldRequests::begin(rollout, app);
        if let Err(reason) = quiet(&old, Awaited::Requests, hold.left()).await {
            return Err(Failure::host(reason).of(id));
        }
        self.ask_hand_over().await;
        let began = Instant::now();
        leave(rollout, app, &old, &hold).await;
        progress.step(
            "leave",
            app,
            began.elapsed(),
            format!("generation {} has left", old.spec().id),
        );
        let machine = self.machine.clone();
        let gone = Box::pin(self.migrate_and_go_live(checked, id)).await;
        let gone = match gone {
            Ok(ended) => Ok(ended),
            Err(failure) => {
                let back = bring_back(rollout, app, head, machine, progress).await;
                Err(match back {
                    Ok(()) => failure,
                    Err(reason) => worse(failure, &reason),
                })
            }
        };
        let (held, waiting) = (hold.began.elapsed(), hold.pause.waiting());
        drop(hold);
        progress.step(
            "handoff",
            app,
            held,
            format!(
                "{} held meanwhile",
                human::pluralize(waiting as u64, "request")
            ),
        );
        gone
    }
}

fn head_of(live: &Live) -> Head {
    Head {
        artifact: live.artifact.sha256,
        version: live.artifact.manifest.version.clone(),
        source: live.source.clone(),
    }
}

/// What of a generation is waited for before it may leave.
#[derive(Clone, Copy)]
enum Awaited {
    /// Requests, and jobs, which no deploy interrupts.
    Requests,
    /// The same, and the tasks that have been told that it drains.
    All,
}

/// Waits until `old` has nothing in flight but streams that can be ended without a loss.
///
/// # Errors
/// What it still has after `longest`.
async fn quiet(old: &Generation, awaited: Awaited, longest: Duration) -> Result<(), String> {
    let by = Instant::now() + longest;
    loop {
        let (unanswered, counts) = (old.unanswered(), old.counts());
        let left = match awaited {
            Awaited::Requests => unanswered + counts.jobs,
            Awaited::All => unanswered + old.working().len() as u64,
        };
        if left == 0 {
            return Ok(());
        }
        if Instant::now() >= by {
            return Err(format!(
                "generation {} has {} and {} yet after {}, as long as max_hold lets requests be held; `handover drain {} {}` lists them",
                old.spec().id,
                human::pluralize(unanswered, "request"),
                human::pluralize(counts.jobs, "job"),
                human::duration(longest),
                old.spec().app,
                old.spec().id,
            ));
        }
        tokio::time::sleep(GLANCE).await;
    }
}

/// Drains `old`, which is live, and puts it away.
async fn leave(rollout: &Rollout, app: &Arc<App>, old: &Arc<Generation>, hold: &HeldRequests<'_>) {
    let replaced = app.running(|running| running.replace(None));
    rollout.registry.publish();
    let Some(replaced) = replaced else { return };
    let end = Arc::clone(&replaced.end);
    let leaving = Leaving::new(&rollout.departures, replaced);
    let draining = drain::drain_and_retire(rollout, app, leaving, None);
    let telling = async {
        // What came in between is answered; the next version needs some of the time as well.
        let _ = quiet(old, Awaited::All, hold.left() / 2).await;
        end.notify_one();
    };
    tokio::join!(draining, telling);
}

/// Starts again what was live.
///
/// # Errors
/// Why it did not come up.
async fn bring_back<M: Machine + Clone>(
    rollout: &Rollout,
    app: &Arc<App>,
    head: Head,
    machine: M,
    progress: &ProgressSender,
) -> Result<(), String> {
    let plan = rollout
        .plan_stored(app, head, Cause::Start)
        .await
        .map_err(|result| result.message)?;
    let deploy = Deploy {
        rollout,
        app,
        plan: Plan {
            preflight: None,
            ..plan
        },
        progress,
        trying: Arc::new(Trying::of(&rollout.journal, &app.name)),
        machine,
        migration: None,
        handed_over: None,
    };
    match Box::pin(deploy.run()).await {
        Ok(Ended::Live(..)) => Ok(()),
        Ok(Ended::OnTrial(result, _) | Ended::Otherwise(result)) => Err(result.message),
        Err(failure) => Err(failure.reason),
    }
}

/// A failure after which what was live is not live either.
fn worse(failure: Failure, reason: &str) -> Failure {
    Failure {
        outcome: Outcome::Failed,
        reason: format!(
            "{}; and what was live before did not come up again: {reason}",
            failure.reason
        ),
        ..failure
    }
}
