//! The end of all generations, when the host ends.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use handover_api::EventKind;

use super::{
    Apps,
    app::App,
    drain::{self, Leaving},
};
use crate::human;

/// How long cancelled work has to end, past the deadline.
const CANCELLED_WITHIN: Duration = Duration::from_secs(5);

/// Drains every app up to `deadline`, cancels what runs on, and unloads.
pub(super) async fn shutdown(apps: &Apps, deadline: Duration) {
    apps.0.closing.store(true, Ordering::Release);
    for app in apps.all() {
        app.queue.close();
    }
    let by = tokio::time::Instant::now() + deadline;
    loop {
        // Again after the wait: a cutover may have been under way when the door was closed.
        if !depart(apps) && *apps.0.leaving.borrow() == 0 {
            return;
        }
        if tokio::time::timeout_at(by, all_gone(apps)).await.is_err() {
            break;
        }
    }
    for old in apps.all().iter().flat_map(|app| app.draining()) {
        old.end.notify_one();
    }
    if tokio::time::timeout(CANCELLED_WITHIN, all_gone(apps))
        .await
        .is_err()
    {
        let left = apps
            .all()
            .iter()
            .flat_map(|app| app.draining())
            .map(|old| old.generation.counts().in_flight)
            .sum();
        let message = format!(
            "the host ends with {} that did not notice being cancelled",
            human::pluralize(left, "request")
        );
        apps.0.events.record(EventKind::Host, None, None, message);
    }
}

/// Begins the drain of what is live. Whether anything was.
fn depart(apps: &Apps) -> bool {
    let mut any = false;
    for app in apps.all() {
        let Some(live) = app.running(|running| running.replace(None)) else {
            continue;
        };
        any = true;
        apps.publish();
        let leaving = Leaving::new(apps, live);
        let (apps, app): (Apps, Arc<App>) = (apps.clone(), app);
        tokio::spawn(async move { drain::drain_and_retire(&apps, &app, leaving, None).await });
    }
    any
}

async fn all_gone(apps: &Apps) {
    let mut leaving = apps.0.leaving.subscribe();
    // The sender is in `apps`, so this cannot fail.
    let _ = leaving.wait_for(|number| *number == 0).await;
}
