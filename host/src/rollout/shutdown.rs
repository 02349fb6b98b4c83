//! The end of all operations and of all generations, when the host ends.

use std::{sync::Arc, time::Duration};

use handover_api::EventKind;

use crate::{
    apps::app::{App, Running},
    human,
    rollout::{
        Rollout,
        drain::{self, Leaving},
    },
};

/// How long operations have to end that were cut. What they still do is to write down how they
/// ended.
const CUT_WITHIN: Duration = Duration::from_secs(5);

/// How long cancelled work has to end, past the deadline.
const CANCELLED_WITHIN: Duration = Duration::from_secs(5);

/// Cuts what is being deployed, drains every app up to `deadline`, cancels what runs on, and
/// unloads.
pub(crate) async fn shutdown(rollout: &Rollout, deadline: Duration) {
    rollout.close();
    for app in rollout.registry.all() {
        app.queue.close();
    }
    let by = tokio::time::Instant::now() + deadline;
    loop {
        // Again after the wait: a cutover may have been under way when the door was closed.
        if !depart(rollout) && rollout.departures.number() == 0 {
            if rollout.operations.running() == 0 {
                return;
            }
            let cut = rollout.operations.all_ended();
            if tokio::time::timeout(CUT_WITHIN, cut).await.is_err() {
                return;
            }
            continue;
        }
        if tokio::time::timeout_at(by, rollout.departures.all_gone())
            .await
            .is_err()
        {
            break;
        }
    }
    for old in rollout.registry.all().iter().flat_map(|app| app.draining()) {
        old.end.notify_one();
    }
    if tokio::time::timeout(CANCELLED_WITHIN, rollout.departures.all_gone())
        .await
        .is_err()
    {
        let left = rollout
            .registry
            .all()
            .iter()
            .flat_map(|app| app.draining())
            .map(|old| old.generation.counts().in_flight)
            .sum();
        let message = format!(
            "the host ends with {} that did not notice being cancelled",
            human::pluralize(left, "request")
        );
        rollout
            .registry
            .events()
            .record(EventKind::Host, None, None, message);
    }
    // What was cut is written down by then, but for what hangs.
    let _ = tokio::time::timeout(CUT_WITHIN, rollout.operations.all_ended()).await;
}

/// Begins the drain of what is live. Whether anything was.
fn depart(rollout: &Rollout) -> bool {
    let mut any = false;
    for app in rollout.registry.all() {
        let all = app.running(Running::end_all);
        if all.is_empty() {
            continue;
        }
        any = true;
        rollout.registry.publish();
        for live in all {
            let leaving = Leaving::new(&rollout.departures, live);
            let (rollout, app): (Rollout, Arc<App>) = (rollout.clone(), Arc::clone(&app));
            tokio::spawn(
                async move { drain::drain_and_retire(&rollout, &app, leaving, None).await },
            );
        }
    }
    any
}
