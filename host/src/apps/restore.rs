//! What was live when the host ended is live again after its start, whatever ended it.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::{Apps, Cause, app::App, deploy, events::Kind, history, saved::Head};
use crate::control::api::Outcome;

/// Makes the HEAD of every app live, all apps at once.
pub(super) async fn restore(apps: &Apps) {
    let mut starting = JoinSet::new();
    for app in apps.all() {
        let apps = apps.clone();
        starting.spawn(async move { restore_app(&apps, &app).await });
    }
    while starting.join_next().await.is_some() {}
}

/// HEAD, or the newest that was good before it and comes up.
async fn restore_app(apps: &Apps, app: &Arc<App>) {
    let (head, before) = app.saved.read(|record| {
        let before: Vec<Head> = history::once_active(&record.history)
            .into_iter()
            .filter(|entry| Some(entry.artifact) != record.head.as_ref().map(|head| head.artifact))
            .map(|entry| Head {
                artifact: entry.artifact,
                version: entry.version.clone(),
                source: entry.source.clone(),
            })
            .collect();
        (record.head.clone(), before)
    });
    let Some(head) = head else { return };
    if start(apps, app, head.clone()).await {
        return;
    }
    for older in before {
        let version = older.version.clone();
        if start(apps, app, older).await {
            let message = format!(
                "{version} serves in place of {}, which was live before the restart and did not come up: the next start tries \
                 {} again, `handover deploy` replaces it",
                head.version, head.version
            );
            apps.tell(Kind::Failed, app, None, message);
            return;
        }
    }
    let message = format!(
        "{} serves nothing: {} did not come up after the restart, nor did anything before it",
        app.name, head.version
    );
    apps.tell(Kind::Failed, app, None, message);
}

/// Whether it came up. If not, that was told.
async fn start(apps: &Apps, app: &Arc<App>, head: Head) -> bool {
    let (stored, of) = (apps.clone(), Arc::clone(app));
    let plan = async move { stored.plan_stored(&of, head, Cause::Start).await };
    let begun = deploy::begin_with(apps, Arc::clone(app), plan);
    matches!(begun.at_cutover.await, Ok(result) if result.outcome == Outcome::Done)
}
