//! Commands that are given by a file in the drop folder: each is what the command line does.

use std::{collections::BTreeSet, time::Duration};

use handover_api::{AuditSource, GenerationId, OperationResult, Outcome, Progress, Wait, query};

use crate::{
    operations::operation::Operation,
    records::audit,
    rollout::{Rollout, availability, labels, reload, rollback},
    watch::{Trigger, Verb, WatcherHandle},
};

/// How often it is looked whether what was replaced has ended.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Does what `trigger` asks for, waiting for what is under way for its app, and returns when it has
/// ended.
///
/// # Errors
/// The sentence about what was not done.
pub(super) async fn carry_out(
    rollout: &Rollout,
    trigger: Trigger,
    watcher: &WatcherHandle,
) -> Result<String, String> {
    let Trigger {
        app,
        verb,
        by,
        message,
    } = trigger;
    let begun = call(verb).map(|path| {
        let mut entry = audit::asked(AuditSource::DropFolder, format!("POST {path}"));
        entry.app = Some(app.clone());
        entry.user = Some(by.clone());
        let reason = message.clone().map(|text| ("message".to_owned(), text));
        entry.arguments.extend(reason);
        rollout.audit.begin(entry)
    });
    tracing::info!(
        app = app.as_str(),
        ?verb,
        by,
        "commanded by a file in the drop folder"
    );
    let (by, queue, detach) = (Some(by), true, true);
    let labelled = |by, message| query::Labelled {
        app: Some(app.clone()),
        label: None,
        by,
        message,
        queue,
        detach,
        override_freeze: false,
        orphan_jobs: false,
    };
    let plain = query::Operation {
        app: Some(app.clone()),
        by: by.clone(),
        queue,
        detach,
    };
    let operation = match verb {
        Verb::Reload => reload::begin_reload(rollout, Some(app), Wait::Detached, watcher),
        Verb::Rollback => rollback::begin_rollback(
            rollout,
            query::Rollback {
                app: Some(app),
                to: None,
                restore_snapshot: false,
                by,
                message,
                queue,
                detach,
            },
        ),
        Verb::Promote => labels::begin_promote(rollout, labelled(by, message)),
        Verb::Abort => labels::begin_abort(rollout, labelled(by, message)),
        Verb::Stop => availability::begin_stop(
            rollout,
            query::Stop {
                app: Some(app),
                message,
                by,
                queue,
                detach,
            },
        ),
        Verb::Start => availability::begin_start(rollout, plain),
        Verb::Restart => availability::begin_restart(rollout, plain),
        Verb::Drain => {
            let known = rollout.registry.known_or_fail(&app);
            let known = known.map_err(|failed| failed.message)?;
            let draining = || -> BTreeSet<GenerationId> {
                let all = known.draining().into_iter();
                all.map(|old| old.generation.spec().id).collect()
            };
            let waited_for = draining();
            while !waited_for.is_disjoint(&draining()) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            return Ok(format!("nothing of {app} that was replaced is left"));
        }
    };
    let id = operation.id.clone();
    let result = result_of(operation).await;
    if let Some(begun) = begun {
        begun.ended(|entry| {
            entry.operation = Some(id);
            audit::ended_as(entry, &result);
        });
    }
    said(result)
}

/// The call that does the same; none where nothing is changed.
fn call(verb: Verb) -> Option<&'static str> {
    Some(match verb {
        Verb::Reload => query::RELOAD,
        Verb::Rollback => query::ROLLBACK,
        Verb::Promote => query::PROMOTE,
        Verb::Abort => query::ABORT,
        Verb::Stop => query::STOP,
        Verb::Start => query::START,
        Verb::Restart => query::RESTART,
        Verb::Drain => return None,
    })
}

async fn result_of(mut operation: Operation) -> OperationResult {
    while let Some(line) = operation.lines.recv().await {
        if let Progress::Result(result) = line {
            return result;
        }
    }
    crate::operations::operation::no_app(Outcome::Failed, "the host ended before it was done")
}

fn said(result: OperationResult) -> Result<String, String> {
    let notes = result.notes.iter().map(|note| format!("\n{note}"));
    let message = result.message + &notes.collect::<String>();
    match result.outcome {
        Outcome::Done | Outcome::Unchanged | Outcome::Staged | Outcome::DeadlinePassed => {
            Ok(message)
        }
        Outcome::Failed
        | Outcome::Rejected
        | Outcome::Unhealthy
        | Outcome::RolledBack
        | Outcome::Conflict
        | Outcome::Denied => Err(message),
    }
}
