//! `handover rollback`: an artifact that was live before is live again, without being checked a
//! second time.

use std::sync::Arc;

use handover_api::{AppName, Cause, Label, OperationResult, Outcome, Wait, query};

use crate::{
    apps::{
        app::{App, result},
        serving::Labelled,
    },
    operations::operation::{Operation, no_app},
    records::{
        app_record::Head,
        history::{self, Attribution},
    },
    rollout::{
        Rollout, canary,
        deploy::{self, Plan},
        labels,
    },
};

/// Begins a rollback. What it goes back to is decided when its turn has come.
pub(crate) fn begin_rollback(rollout: &Rollout, asked: query::Rollback) -> Operation {
    let wait = Wait::from_query(asked.queue, asked.detach);
    let query::Rollback {
        app,
        to,
        by,
        message,
        restore_snapshot,
        ..
    } = asked;
    of_app(rollout, app, |app| {
        let (stored, of) = (rollout.clone(), Arc::clone(&app));
        let what = to
            .as_ref()
            .map_or_else(|| "rollback".to_owned(), |to| format!("rollback to {to}"));
        let plan = async move {
            if let Some(conflict) = canary::stands_in_the_way(&of) {
                return Err(conflict);
            }
            let head = target(&of, to.as_deref())
                .map_err(|message| result(Outcome::Failed, &of, message))?;
            // What is warm still needs neither the store nor the loader.
            let is_warm = |labelled: &Labelled| {
                labelled.label.as_str() == Label::PREVIOUS
                    && labelled.live.artifact.sha256 == head.artifact
            };
            let plan = match labels::up_as(&of, Cause::Rollback, is_warm) {
                Some(plan) => plan,
                None => stored.plan_stored(&of, head, Cause::Rollback).await?,
            };
            let attribution = Attribution {
                by,
                message,
                key: None,
            };
            Ok(Plan {
                attribution,
                restore_state: restore_snapshot,
                ..plan
            })
        };
        deploy::begin_plan(rollout, app, what, plan, wait)
    })
}

/// Begins an operation about the app of that name, or the only one.
pub(super) fn of_app(
    rollout: &Rollout,
    app: Option<AppName>,
    begin: impl FnOnce(Arc<App>) -> Operation,
) -> Operation {
    match find_app(rollout, app) {
        Ok(app) => begin(app),
        Err(result) => {
            let progress = rollout.operations.begin_operation();
            progress.finish(*result);
            progress.listen()
        }
    }
}

/// Does something about the app of that name, or the only one, that takes no time and waits for
/// nothing.
pub(super) fn at_once(
    rollout: &Rollout,
    app: Option<AppName>,
    change: impl FnOnce(&App) -> OperationResult,
) -> Operation {
    of_app(rollout, app, |app| {
        let progress = rollout.operations.begin_operation();
        let operation = progress.listen();
        progress.finish(change(&app));
        operation
    })
}

fn target(app: &App, to: Option<&str>) -> Result<Head, String> {
    let live = app.live().map(|live| live.artifact);
    app.saved.read(|record| {
        history::rollback_target(&app.name, &record.history, live, to)?
            .head()
            .ok_or_else(|| format!("{} has nothing to go back to", app.name))
    })
}

/// Returns the app of that name, or the only one.
///
/// # Errors
/// The result of what would have been done to it.
pub(crate) fn find_app(
    rollout: &Rollout,
    app: Option<AppName>,
) -> Result<Arc<App>, Box<OperationResult>> {
    if let Some(name) = app {
        return rollout.registry.known_or_fail(&name);
    }
    let mut shown = rollout.registry.shown();
    match (shown.pop(), shown.is_empty()) {
        (Some(only), true) => Ok(only),
        (None, _) => Err(Box::new(no_app(
            Outcome::Failed,
            "there is no app yet: `handover deploy FILE.so` makes one",
        ))),
        (Some(_), false) => {
            let message = format!("say which app: {}", rollout.registry.names());
            Err(Box::new(no_app(Outcome::Failed, message)))
        }
    }
}
