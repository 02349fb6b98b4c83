//! What was live when the host ended is live again after its start, whatever ended it.

use std::{
    num::NonZeroUsize,
    sync::{Arc, LazyLock},
    thread,
};

use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    Apps, Cause,
    app::App,
    crash::{self, Blame},
    deploy::{self, Asked, Entrance},
    events::Kind,
    history::{self, Entry},
    saved::Head,
};
use crate::control::api::Outcome;

/// Reading and hashing an artifact takes a processor and a thread, so it is done for as many at a time as there are processors.
static READING: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(thread::available_parallelism().map_or(1, NonZeroUsize::get)));

/// Makes the HEAD of every app live, all apps at once: one that waits in its constructor keeps no other.
pub(super) async fn restore(apps: &Apps, crashed: Option<String>) {
    let mut blamed = crash::begin(apps, crashed);
    let mut starting = JoinSet::new();
    for app in apps.all() {
        let (apps, blame) = (apps.clone(), blamed.remove(&app.name));
        starting.spawn(async move {
            let rolled_back = match blame {
                Some(blame) => roll_back(&apps, &app, blame).await,
                None => false,
            };
            if !rolled_back {
                restore_app(&apps, &app).await;
            }
        });
    }
    while starting.join_next().await.is_some() {}
}

/// Takes HEAD back, because it crashed the host. Whether anything before it came up instead.
async fn roll_back(apps: &Apps, app: &Arc<App>, blame: Blame) -> bool {
    let Blame { generation, reason } = blame;
    let taken_back_at_ms = super::now_ms();
    let (head, before) = app.saved.read(|record| {
        let head = record.head.clone();
        let before: Vec<Head> = history::once_active(&record.history)
            .into_iter()
            .filter(|entry| {
                entry.outcome != Outcome::RolledBack
                    && record.why_failing(entry.artifact).is_none()
                    && head
                        .as_ref()
                        .is_none_or(|head| head.artifact != entry.artifact)
            })
            .filter_map(Entry::head)
            .collect();
        (head, before)
    });
    let Some(head) = head else { return false };
    for older in before {
        let version = older.version.clone();
        if !start(apps, app, older, Cause::Crash).await {
            continue;
        }
        let message = format!(
            "{} {} is rolled back to {version}: {reason}",
            app.name, head.version
        );
        apps.tell(Kind::RolledBack, app, Some(generation), message.as_str());
        app.tally.ended(Outcome::RolledBack);
        let entry = Entry {
            at_ms: taken_back_at_ms,
            generation: Some(generation),
            version: Some(head.version),
            artifact: head.artifact,
            cause: Cause::Crash.as_str().to_owned(),
            outcome: Outcome::RolledBack,
            reason: Some(reason.clone()),
            source: head.source,
            warnings: Vec::new(),
        };
        let (_, saved) = app
            .saved
            .change(|record| {
                // In the order of what happened: it was taken back, then something else went live.
                let place = record.history.len().saturating_sub(1);
                record.history.insert(place, entry);
                record.failed(head.artifact, reason);
            })
            .await;
        if let Err(cause) = saved {
            let trouble = format!("the rollback could not be recorded: {cause}");
            apps.tell(Kind::State, app, Some(generation), trouble);
        }
        return true;
    }
    let message = format!(
        "{} has nothing to go back to, so {} is tried again: {reason}",
        app.name, head.version
    );
    apps.tell(Kind::Failed, app, Some(generation), message);
    false
}

/// HEAD, or the newest that was good before it and comes up.
async fn restore_app(apps: &Apps, app: &Arc<App>) {
    let (head, before) = app.saved.read(|record| {
        let before: Vec<Head> = history::once_active(&record.history)
            .into_iter()
            .filter(|entry| Some(entry.artifact) != record.head.as_ref().map(|head| head.artifact))
            .filter_map(Entry::head)
            .collect();
        (record.head.clone(), before)
    });
    let Some(head) = head else { return };
    if start(apps, app, head.clone(), Cause::Start).await {
        return;
    }
    for older in before {
        let version = older.version.clone();
        if start(apps, app, older, Cause::Start).await {
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
async fn start(apps: &Apps, app: &Arc<App>, head: Head, cause: Cause) -> bool {
    let (stored, of) = (apps.clone(), Arc::clone(app));
    let asked = Asked {
        what: format!("start of {}", head.version),
        deadline: None,
        plan: async move {
            // Never closed: without a turn it would only be less considerate.
            let _turn = READING.acquire().await;
            stored.plan_stored(&of, head, cause).await
        },
    };
    let begun = deploy::begin_with(apps, Arc::clone(app), asked, Entrance::Now);
    matches!(begun.at_cutover.await, Ok(result) if result.outcome == Outcome::Done)
}
