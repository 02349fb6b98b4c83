//! Whether an app answers: it can be stopped, started, restarted, and its requests held back for a
//! while.
//!
//! What is stopped stays so over restarts of the host. A deploy meanwhile is checked, and waits for
//! the start.

use std::{sync::Arc, time::Duration};

use handover_api::{AppName, Cause, EventKind, OperationResult, Outcome, Wait, query};

use crate::{
    apps::app::{App, Running, result},
    dispatch::Pause,
    human,
    operations::operation::Operation,
    records::history::Attribution,
    rollout::{
        Rollout,
        deploy::{self, Plan},
        drain, labels, rollback,
    },
};

/// How long a request waits at the longest while its app is paused.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// Begins to stop an app: its generations end what they have, and nothing answers any more.
pub(crate) fn begin_stop(rollout: &Rollout, asked: query::Stop) -> Operation {
    let wait = Wait::from_query(asked.queue, asked.detach);
    rollback::of_app(rollout, asked.app, |app| {
        let (stopping, of) = (rollout.clone(), Arc::clone(&app));
        let message = asked.message.unwrap_or_default();
        // It is all there is to do, so that there is no plan.
        let plan = async move { Err(stop(&stopping, &of, message).await) };
        deploy::begin_plan(rollout, app, "stop".to_owned(), plan, wait)
    })
}

/// Begins to make live what was live when the app was stopped, or what was deployed since.
pub(crate) fn begin_start(rollout: &Rollout, asked: query::Operation) -> Operation {
    let wait = Wait::from_query(asked.queue, asked.detach);
    rollback::of_app(rollout, asked.app, |app| {
        let (starting, of) = (rollout.clone(), Arc::clone(&app));
        let plan = async move {
            if app_is_stopped(&of) {
                write_stopped(&of, None).await?;
                starting.registry.publish();
            }
            let plan = plan_of_head(&starting, &of).await?;
            Ok(Plan {
                attribution: of_caller(asked.by),
                ..plan
            })
        };
        deploy::begin_plan(rollout, app, "start".to_owned(), plan, wait)
    })
}

/// Begins to replace what is live by a new generation of the same artifact.
pub(crate) fn begin_restart(rollout: &Rollout, asked: query::Operation) -> Operation {
    let wait = Wait::from_query(asked.queue, asked.detach);
    rollback::of_app(rollout, asked.app, |app| {
        let (starting, of) = (rollout.clone(), Arc::clone(&app));
        let plan = async move {
            let plan = plan_of_head(&starting, &of).await?;
            Ok(Plan {
                anew: true,
                attribution: of_caller(asked.by),
                ..plan
            })
        };
        deploy::begin_plan(rollout, app, "restart".to_owned(), plan, wait)
    })
}

/// Begins to hold back the requests of an app, which takes no time.
pub(crate) fn begin_pause(rollout: &Rollout, asked: query::Pause) -> Operation {
    let max_wait = asked.max_wait_ms.map_or(MAX_WAIT, Duration::from_millis);
    rollback::at_once(rollout, asked.app, |app| {
        let before = app.pause(Some(Pause::new(max_wait)));
        rollout.registry.publish();
        // They wait anew, as long as it is said now.
        if let Some(before) = before {
            before.release();
        }
        let message = format!(
            "requests of {} wait for `handover resume`, each for {} at the longest",
            app.name,
            human::duration(max_wait)
        );
        record(rollout, app, EventKind::Paused, &message);
        result(Outcome::Done, app, message)
    })
}

/// Begins to let the requests of an app go on, which takes no time.
pub(crate) fn begin_resume(rollout: &Rollout, app: Option<AppName>) -> Operation {
    rollback::at_once(rollout, app, |app| {
        let Some(pause) = app.pause(None) else {
            let message = format!("{} is not paused", app.name);
            return result(Outcome::Unchanged, app, message);
        };
        rollout.registry.publish();
        let waiting = human::pluralize(pause.waiting() as u64, "request");
        pause.release();
        let message = format!("{} answers again, {waiting} that waited first", app.name);
        record(rollout, app, EventKind::Resumed, &message);
        result(Outcome::Done, app, message)
    })
}

/// Who asked for what becomes live, for the history.
fn of_caller(by: Option<String>) -> Attribution {
    Attribution {
        by,
        ..Attribution::default()
    }
}

/// The result of what would make something of `app` live, which is stopped.
pub(super) fn refused(app: &App) -> OperationResult {
    let message = format!(
        "nothing was changed: {0} is stopped; `handover start {0}` makes live what was live before",
        app.name
    );
    result(Outcome::Conflict, app, message)
}

/// Returns whether somebody has stopped `app`.
pub(super) fn app_is_stopped(app: &App) -> bool {
    app.saved.read(|record| record.stopped.is_some())
}

fn record(rollout: &Rollout, app: &App, kind: EventKind, message: &str) {
    rollout.registry.record_event(kind, app, None, message);
}

async fn stop(rollout: &Rollout, app: &Arc<App>, message: String) -> OperationResult {
    if let Err(failed) = write_stopped(app, Some(message)).await {
        return failed;
    }
    let all = app.running(Running::end_all);
    rollout.registry.publish();
    labels::write_down(app);
    if all.is_empty() {
        let message = format!("{} is stopped, and served nothing", app.name);
        return result(Outcome::Unchanged, app, message);
    }
    let mut in_flight = 0;
    let mut numbers = Vec::new();
    for live in all {
        let generation = live.active.generation();
        in_flight += generation.counts().in_flight;
        numbers.push(generation.spec().id.to_string());
        drain::begin(rollout, app, live);
    }
    let message = format!(
        "{} is stopped until `handover start`: generation {} drains with {in_flight} in flight",
        app.name,
        numbers.join(", ")
    );
    record(rollout, app, EventKind::Stopped, &message);
    result(Outcome::Done, app, message)
}

/// Writes down that `app` is stopped, with what its clients are told, or that it is not.
async fn write_stopped(app: &App, message: Option<String>) -> Result<(), OperationResult> {
    let before = app.saved.read(|record| record.stopped.clone());
    let (_, saved) = app.saved.change(|record| record.stopped = message).await;
    saved.map_err(|cause| {
        app.saved.edit(|record| record.stopped = before);
        let message = format!("nothing was changed: the host cannot write its records: {cause}");
        result(Outcome::Failed, app, message)
    })
}

/// The plan to make live what was deployed last.
async fn plan_of_head(rollout: &Rollout, app: &App) -> Result<Plan, OperationResult> {
    let (staged, head) = app
        .saved
        .read(|record| (record.staged.clone(), record.head.clone()));
    let (chosen, cause) = match (staged, head) {
        (Some(staged), _) if app.live().is_none() => (staged, Cause::Reload),
        (_, Some(head)) => (head, Cause::Start),
        (_, None) => {
            let message = format!("nothing of {} has been deployed yet", app.name);
            return Err(result(Outcome::Failed, app, message));
        }
    };
    rollout.plan_stored(app, chosen, cause).await
}
