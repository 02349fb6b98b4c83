//! What was live when the host ended is live again after its start, whatever ended it.

use std::{
    num::NonZeroUsize,
    sync::{Arc, LazyLock},
    thread,
    time::Duration,
};

use handover_api::{AppName, Cause, EventKind, Outcome};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    apps::app::App,
    records::{
        app_record::{Again, Head},
        history::{self, Entry},
        journal::{Crashed, LeftOut, Lived, Tried},
        order::Order,
    },
    rollout::{
        Rollout, availability,
        crash::{self, Blame},
        deploy::{self, Asked, Entrance},
        labels,
    },
};

/// Reading and hashing an artifact takes a processor and a thread, so it is done for as many at a
/// time as there are processors.
static READING: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(thread::available_parallelism().map_or(1, NonZeroUsize::get)));

/// How often what could not be written is tried again.
const CATCH_UP_EVERY: Duration = Duration::from_secs(1);

/// How long what crashed the host at a start is left alone: doubled with each crash, up to the
/// longest.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// Makes the HEAD of every app live, all apps at once: one that waits in its constructor keeps no
/// other. What crashed the host before is left out, and apps one of which crashed it come last, one
/// after the other.
pub(crate) async fn restore(rollout: &Rollout, crashed: Option<Crashed>) {
    let mut findings = crash::take_findings(rollout, crashed);
    for (app, tried, reason) in std::mem::take(&mut findings.failed) {
        record_end(rollout, &app, tried, Outcome::Rejected, reason).await;
    }
    for (app, tried, reason) in std::mem::take(&mut findings.interrupted) {
        record_end(rollout, &app, tried, Outcome::Failed, reason).await;
    }
    let is_crash = findings.is_crash;
    for (app, lived, reason) in std::mem::take(&mut findings.staying) {
        stay(rollout, &app, &lived, reason).await;
    }
    let (suspects, others): (Vec<_>, Vec<_>) = rollout
        .registry
        .all()
        .into_iter()
        .partition(|app| findings.suspects.contains(&app.name));
    let mut starting = JoinSet::new();
    for app in others {
        let blame = findings.blamed.remove(&app.name);
        let left_out = findings.left_out.remove(&app.name);
        let rollout = rollout.clone();
        starting.spawn(async move {
            bring_back(&rollout, &app, blame, left_out).await;
            labels::bring_back(&rollout, &app, is_crash);
        });
    }
    while starting.join_next().await.is_some() {}
    for app in suspects {
        let left_out = findings.left_out.remove(&app.name);
        bring_back(rollout, &app, None, left_out).await;
        labels::bring_back(rollout, &app, is_crash);
    }
}

/// Catches up every second, for as long as the apps are there.
pub(crate) async fn catch_up_always(rollout: Rollout) {
    loop {
        catch_up(&rollout).await;
        tokio::time::sleep(CATCH_UP_EVERY).await;
    }
}

/// Writes what could not be written, reads what could not be read, and takes the room for the next
/// time. What was live of an app whose record is read only now is live again.
async fn catch_up(rollout: &Rollout) {
    let (of, all) = (rollout.clone(), rollout.registry.all());
    let tried = tokio::task::spawn_blocking(move || {
        let found: Vec<_> = all
            .into_iter()
            .map(|app| (app.saved.again(), app))
            .collect();
        if of.journal.again() {
            tracing::info!("the crash journal is written again");
        }
        if found
            .iter()
            .all(|(_, app)| app.saved.not_durable().is_none())
        {
            of.registry.room().take();
        }
        found
    });
    let Ok(tried) = tried.await else { return };
    for (again, app) in tried {
        match again {
            Again::Nothing => {}
            Again::Written => {
                let message = format!("what was done of {} is on disk now", app.name);
                rollout
                    .registry
                    .record_event(EventKind::State, &app, None, message);
            }
            Again::Read => {
                let message = format!("the record of {} could be read", app.name);
                rollout
                    .registry
                    .record_event(EventKind::State, &app, None, message);
                restore_app(rollout, &app, None).await;
            }
        }
    }
}

async fn bring_back(
    rollout: &Rollout,
    app: &Arc<App>,
    blame: Option<Blame>,
    left_out: Option<LeftOut>,
) {
    let rolled_back = match blame {
        Some(blame) => roll_back(rollout, app, blame).await,
        None => false,
    };
    if !rolled_back {
        restore_app(rollout, app, left_out).await;
    }
}

/// Writes down how an artifact ended with the host before: it crashed it, or was cut by its end.
async fn record_end(
    rollout: &Rollout,
    name: &AppName,
    tried: Tried,
    outcome: Outcome,
    reason: String,
) {
    let app = rollout.registry.app(name);
    let is_known = tried.generation.is_some_and(|id| {
        app.saved.read(|record| {
            let mut entries = record.history.iter().rev();
            entries.any(|entry| entry.generation == Some(id))
        })
    });
    if is_known {
        // The host ended right after that was written down.
        return;
    }
    let (kind, word) = match outcome {
        Outcome::Rejected => (EventKind::Rejected, "was not taken"),
        _ => (EventKind::Failed, "was cut"),
    };
    let message = format!(
        "{name} {} ({}) {word}: {reason}",
        tried.version,
        tried.artifact.short()
    );
    rollout
        .registry
        .record_event(kind, &app, tried.generation, message);
    app.counters.ended(outcome);
    let entry = Entry {
        generation: tried.generation,
        version: Some(tried.version),
        reason: Some(reason.clone()),
        source: tried.source,
        ..Entry::new(tried.artifact, tried.cause, outcome)
    };
    let (_, saved) = app
        .saved
        .change(|record| {
            record.remember(entry);
            if outcome == Outcome::Rejected {
                record.failed(tried.artifact, reason);
            }
        })
        .await;
    if let Err(cause) = saved {
        let trouble = format!("the end of a deploy could not be recorded: {cause}");
        rollout
            .registry
            .record_event(EventKind::State, &app, tried.generation, trouble);
    }
}

/// Has an artifact that crashed the host after its unload stay mapped from now on.
async fn stay(rollout: &Rollout, name: &AppName, lived: &Lived, reason: String) {
    let app = rollout.registry.app(name);
    rollout.registry.record_event(
        EventKind::Warning,
        &app,
        Some(lived.generation),
        reason.as_str(),
    );
    let (_, saved) = app
        .saved
        .change(|record| record.stays(lived.artifact, reason))
        .await;
    if let Err(cause) = saved {
        let trouble = format!(
            "that {} stays mapped could not be recorded: {cause}",
            lived.version
        );
        rollout
            .registry
            .record_event(EventKind::State, &app, Some(lived.generation), trouble);
    }
}

/// Takes HEAD back, because it crashed the host. Whether anything before it came up instead.
async fn roll_back(rollout: &Rollout, app: &Arc<App>, blame: Blame) -> bool {
    let Blame { generation, reason } = blame;
    let (taken_back_at_ms, order) = (crate::clock::now_ms(), Order::next());
    let (head, before) = app.saved.read(|record| {
        let before: Vec<Head> = record
            .head
            .iter()
            .flat_map(|head| history::before(&record.history, head.artifact))
            .filter(|entry| {
                record.why_failing(entry.artifact).is_none()
                    && rollout.store.contains(entry.artifact)
            })
            .filter_map(Entry::head)
            .collect();
        (record.head.clone(), before)
    });
    let Some(head) = head else { return false };
    for older in before {
        let version = older.version.clone();
        if !start(rollout, app, older, Cause::Crash).await {
            continue;
        }
        let message = format!(
            "{} {} is rolled back to {version}: {reason}",
            app.name, head.version
        );
        rollout.registry.record_event(
            EventKind::RolledBack,
            app,
            Some(generation),
            message.as_str(),
        );
        app.counters.ended(Outcome::RolledBack);
        let entry = Entry {
            at_ms: taken_back_at_ms,
            order,
            generation: Some(generation),
            version: Some(head.version),
            reason: Some(reason.clone()),
            source: head.source,
            ..Entry::new(head.artifact, Cause::Crash, Outcome::RolledBack)
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
            rollout
                .registry
                .record_event(EventKind::State, app, Some(generation), trouble);
        }
        return true;
    }
    let message = format!(
        "{} has nothing to go back to, so {} is tried again: {reason}",
        app.name, head.version
    );
    rollout
        .registry
        .record_event(EventKind::Failed, app, Some(generation), message);
    false
}

/// HEAD, unless it is left out, or the newest that was good before it and comes up.
async fn restore_app(rollout: &Rollout, app: &Arc<App>, left_out: Option<LeftOut>) {
    if availability::app_is_stopped(app) {
        tracing::info!(app = %app.name, "it was stopped before this start, and stays so until `handover start`");
        return;
    }
    let (head, before) = app.saved.read(|record| {
        let head = record.head.as_ref().map(|head| head.artifact);
        let chosen = head.map_or_else(Vec::new, |head| history::before(&record.history, head));
        // What was taken back is better than nothing.
        let others = history::once_active(&record.history);
        let mut before: Vec<Head> = Vec::new();
        for older in chosen.into_iter().chain(others).filter_map(Entry::head) {
            let is_known = before.iter().any(|known| known.artifact == older.artifact);
            // What is older than the store reaches back need not be tried.
            let is_there = rollout.store.contains(older.artifact);
            if Some(older.artifact) != head && !is_known && is_there {
                before.push(older);
            }
        }
        (record.head.clone(), before)
    });
    let Some(head) = head else { return };
    let left_out = left_out.filter(|left_out| left_out.artifact == head.artifact);
    let why = match &left_out {
        Some(left_out) => {
            let pause = pause(left_out.crashes);
            try_later(rollout, app, head.clone(), pause);
            let pause = humantime::format_duration(pause);
            format!(
                "is left out, since {}; it is tried again in {pause}",
                left_out.reason
            )
        }
        None => {
            if start(rollout, app, head.clone(), Cause::Start).await {
                return;
            }
            "did not come up; the next start tries it again".to_owned()
        }
    };
    for older in before {
        let version = older.version.clone();
        if start(rollout, app, older, Cause::Start).await {
            let message = format!(
                "{version} serves in place of {}, which was live before the restart and {why}; `handover deploy` replaces it",
                head.version
            );
            rollout
                .registry
                .record_event(EventKind::Failed, app, None, message);
            return;
        }
    }
    let message = format!(
        "{} serves nothing: {}, which was live before the restart, {why}; and nothing before it came up",
        app.name, head.version
    );
    rollout
        .registry
        .record_event(EventKind::Failed, app, None, message);
}

fn pause(crashes: u32) -> Duration {
    FIRST_PAUSE
        .saturating_mul(1 << crashes.saturating_sub(1).min(16))
        .min(LONGEST_PAUSE)
}

/// Tries `head` again after `pause`, unless something else was chosen by then.
fn try_later(rollout: &Rollout, app: &Arc<App>, head: Head, pause: Duration) {
    let (rollout, app) = (rollout.clone(), Arc::clone(app));
    tokio::spawn(async move {
        tokio::time::sleep(pause).await;
        let is_still = app.saved.read(|record| {
            record
                .head
                .as_ref()
                .is_some_and(|chosen| chosen.artifact == head.artifact)
        });
        let is_live = app
            .live()
            .is_some_and(|live| live.artifact == head.artifact);
        if is_still && !is_live {
            start(&rollout, &app, head, Cause::Start).await;
        }
    });
}

/// Whether it came up. If not, that was told.
async fn start(rollout: &Rollout, app: &Arc<App>, head: Head, cause: Cause) -> bool {
    let (stored, of) = (rollout.clone(), Arc::clone(app));
    let asked = Asked {
        what: format!("start of {}", head.version),
        deadline: None,
        plan: async move {
            // Never closed: without a turn it would only be less considerate.
            let _permit = READING.acquire().await;
            stored.plan_stored(&of, head, cause).await
        },
    };
    let begun = deploy::begin_deploy_with(rollout, Arc::clone(app), asked, Entrance::Now);
    matches!(begun.at_cutover.await, Ok(result) if result.outcome == Outcome::Done)
}
