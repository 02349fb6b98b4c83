//! Versions beside the live one: each is up under a label until it is promoted, aborted, or its
//! time is over.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use handover_api::{Cause, EventKind, GenerationId, Label, OperationResult, Outcome, Wait, query};

use crate::{
    apps::{
        app::{App, Replaced, result},
        serving::Labelled,
    },
    clock::{millis, now_ms},
    operations::operation::Operation,
    records::{
        app_record::{Head, LabelledHead},
        history::Attribution,
    },
    rollout::{
        Rollout, canary,
        deploy::{self, Destination, Plan},
        drain, rollback,
    },
};

/// Begins to make live what is up under a label.
pub(crate) fn begin_promote(rollout: &Rollout, asked: query::Labelled) -> Operation {
    let wait = Wait::from_query(asked.queue, asked.detach);
    rollback::of_app(rollout, asked.app, |app| {
        let label = asked.label.unwrap_or_else(|| unnamed(&app));
        let (what, of) = (format!("promotion of `{label}`"), Arc::clone(&app));
        let attribution = Attribution {
            by: asked.by,
            message: asked.message,
            key: None,
        };
        let plan = async move {
            let plan = up_as(&of, Cause::Promote, |labelled| labelled.label == label)
                .ok_or_else(|| none_such(&of, &label))?;
            Ok(Plan {
                attribution,
                override_freeze: asked.override_freeze,
                orphan_jobs: asked.orphan_jobs,
                ..plan
            })
        };
        deploy::begin_plan(rollout, app, what, plan, wait)
    })
}

/// Begins to make live what `is_it`, when what runs for the app has ended.
pub(super) fn begin_promote_of(
    rollout: &Rollout,
    app: Arc<App>,
    what: String,
    is_it: impl Fn(&Labelled) -> bool + Send + 'static,
) -> Operation {
    let of = Arc::clone(&app);
    let plan = async move {
        let plan = up_as(&of, Cause::Promote, is_it);
        // What was begun before a freeze goes on in it, and jobs were looked at when it was
        // deployed.
        plan.map(|plan| Plan {
            override_freeze: true,
            orphan_jobs: true,
            ..plan
        })
        .ok_or_else(|| result(Outcome::Failed, &of, "it is not up any more"))
    };
    deploy::begin_plan(rollout, app, what, plan, Wait::Detached)
}

/// The label that is meant where none is named.
fn unnamed(app: &App) -> Label {
    let is_copied = app.running(|running| running.serving.mirror().is_some());
    Label::of(match canary::of(app) {
        Some(_) => Label::CANARY,
        None if is_copied => Label::SHADOW,
        None => Label::NEXT,
    })
}

/// Begins to end what is up under a label.
pub(crate) fn begin_abort(rollout: &Rollout, asked: query::Labelled) -> Operation {
    let wait = Wait::from_query(asked.queue, asked.detach);
    rollback::of_app(rollout, asked.app, |app| {
        let label = asked.label.unwrap_or_else(|| unnamed(&app));
        let what = format!("abort of `{label}`");
        let (ending, of) = (rollout.clone(), Arc::clone(&app));
        // It is all there is to do, so that there is no plan.
        let plan = async move {
            let Some(id) = end(&ending, &of, &label, |_| true, "it was aborted") else {
                return Err(none_such(&of, &label));
            };
            // A restart right after does not bring it back. What cannot be written is tried again.
            let _ = of.saved.change(|_| ()).await.1;
            let message = format!(
                "generation {id} of {} answers to `{label}` no more, and drains",
                of.name
            );
            Err(result(Outcome::Done, &of, message))
        };
        deploy::begin_plan(rollout, app, what, plan, wait)
    })
}

/// Returns the plan to make live what `is_it` and is up already; none where nothing is.
pub(super) fn up_as(app: &App, cause: Cause, is_it: impl Fn(&Labelled) -> bool) -> Option<Plan> {
    app.running(|running| {
        let labelled = running.serving.labelled().iter().find(|one| is_it(one))?;
        Some(Plan {
            artifact: labelled.live.artifact.clone(),
            cause,
            source: labelled.live.source.clone(),
            noticed_in: None,
            stored_in: None,
            preflight: None,
            destination: Destination::Live,
            up: Some((labelled.label.clone(), labelled.id())),
            deadline: None,
            orphan_jobs: false,
            override_freeze: false,
            anew: false,
            restore_state: false,
            attribution: Attribution::default(),
        })
    })
}

fn none_such(app: &App, label: &Label) -> OperationResult {
    let known: Vec<_> = app.running(|running| {
        let all = running.serving.labelled().iter();
        all.map(|labelled| format!("`{}`", labelled.label))
            .collect()
    });
    let there_is = match known.as_slice() {
        [] => "there is no label: `handover deploy FILE.so --stage` makes one".to_owned(),
        known => format!("there is {}", known.join(", ")),
    };
    let message = format!("nothing of {} answers to `{label}`: {there_is}", app.name);
    result(Outcome::Failed, app, message)
}

/// Says how `label` is reached.
pub(super) fn reached_by(app: &App, label: &Label) -> String {
    let labels = &app.settings().labels;
    let mut ways = Vec::new();
    if let Some(host) = labels.host_of(label) {
        ways.push(format!("by the host name {host}"));
    }
    if !labels.allow.is_empty() {
        ways.push(format!(
            "by the header or cookie `handover-version: {label}` of those whom `labels.allow` names"
        ));
    }
    match ways.as_slice() {
        [] => format!(
            "no request reaches it before `handover promote`, as [app.{}.labels] has neither `allow` nor `host`",
            app.name
        ),
        ways => format!("it is reached {}", ways.join(" and ")),
    }
}

/// Has the record say what is up under labels of the operator's, for the next start. Blocks on no
/// disk.
pub(super) fn note(app: &App) -> bool {
    let mut labels: Vec<_> = app.running(|running| {
        let all = running.serving.labelled().iter();
        all.filter(|labelled| !labelled.label.is_reserved())
            .map(|labelled| LabelledHead {
                label: labelled.label.clone(),
                head: Head {
                    artifact: labelled.live.artifact.sha256,
                    version: labelled.live.artifact.manifest.version.clone(),
                    source: labelled.live.source.clone(),
                },
                until_ms: labelled.until.map(|until| {
                    let left = until.saturating_duration_since(Instant::now());
                    now_ms().saturating_add(millis(left))
                }),
            })
            .collect()
    });
    app.saved.edit(|record| {
        let is_up = |one: &LabelledHead| labels.iter().any(|up| up.label == one.label);
        record.returning.retain(|one| !is_up(one));
        labels.extend(record.returning.iter().cloned());
        let is_new = record.labels != labels;
        record.labels = labels;
        is_new
    })
}

/// The same, and writes it when there is time for that.
pub(super) fn write_down(app: &Arc<App>) {
    if note(app) {
        let app = Arc::clone(app);
        // What cannot be written is tried again by who watches over the record.
        tokio::spawn(async move { app.saved.change(|_| ()).await.1 });
    }
}

/// Brings up what was up under labels when the host before ended, unless that was a crash, which it
/// may have been to blame for.
pub(super) fn bring_back(rollout: &Rollout, app: &Arc<App>, is_crash: bool) {
    let before = app.saved.read(|record| record.labels.clone());
    let left_of = |one: &LabelledHead| one.until_ms.map(|until| until.saturating_sub(now_ms()));
    app.saved.edit(|record| {
        record
            .labels
            .retain(|one| !is_crash && left_of(one) != Some(0));
        // Their artifacts are kept until they are up.
        record.returning.clone_from(&record.labels);
    });
    for one in before {
        let left = left_of(&one);
        let LabelledHead { label, head, .. } = one;
        let why_not = match left {
            _ if is_crash => Some("the host crashed, and it may have been the reason"),
            Some(0) => Some("its time was over while the host was down"),
            _ => None,
        };
        if let Some(why_not) = why_not {
            let message = format!("{} answers to `{label}` no more: {why_not}", head.version);
            rollout
                .registry
                .record_event(EventKind::LabelEnded, app, None, message);
            continue;
        }
        let (of, stored) = (Arc::clone(app), rollout.clone());
        let what = format!("start of {} under `{label}`", head.version);
        let plan = async move {
            let plan = stored.plan_stored(&of, head, Cause::Start).await?;
            let ttl = left.map(Duration::from_millis);
            Ok(Plan {
                destination: Destination::Label { label, ttl },
                ..plan
            })
        };
        deploy::begin_plan(rollout, Arc::clone(app), what, plan, Wait::Detached);
    }
}

/// Ends generation `id` after `ttl`, if it has its label still.
pub(super) fn end_later(
    rollout: &Rollout,
    app: &Arc<App>,
    label: Label,
    id: GenerationId,
    ttl: Duration,
) {
    let (rollout, app) = (rollout.clone(), Arc::clone(app));
    tokio::spawn(async move {
        tokio::select! {
            () = rollout.closing() => {}
            () = tokio::time::sleep(ttl) => {
                let is_it = |labelled: &Labelled| labelled.id() == id;
                end(&rollout, &app, &label, is_it, "its time is over");
            }
        }
    });
}

/// Ends what has `label`, if it `is_it`. Returns its number.
pub(super) fn end(
    rollout: &Rollout,
    app: &Arc<App>,
    label: &Label,
    is_it: impl Fn(&Labelled) -> bool,
    why: &str,
) -> Option<GenerationId> {
    let replaced = app.running(|running| running.unlabel(label, is_it))?;
    let id = replaced.active.generation().spec().id;
    rollout.registry.publish();
    write_down(app);
    leave(rollout, app, label, replaced, why);
    Some(id)
}

/// Has drained and unloaded what had `label` until now, and says why.
pub(super) fn leave(
    rollout: &Rollout,
    app: &Arc<App>,
    label: &Label,
    replaced: Replaced,
    why: &str,
) {
    let spec = replaced.active.generation().spec();
    let message = format!(
        "generation {} ({}) answers to `{label}` no more: {why}",
        spec.id, spec.version
    );
    rollout
        .registry
        .record_event(EventKind::LabelEnded, app, Some(spec.id), message);
    drain::begin(rollout, app, replaced);
}
