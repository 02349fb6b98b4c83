//! Whether a restart would bring what is live: the artifact is taken from the store and booted from
//! nothing in a child process, with a copy of its state and the settings that it would get, and
//! answers the smoke requests beside the live version.

use std::{sync::Arc, time::Instant};

use handover_api::{AppName, EventKind, OperationResult, Outcome};

use crate::{
    apps::app::{App, result},
    config, dispatch,
    generation::{Generation, Spec},
    human,
    operations::operation::{Operation, ProgressSender},
    preflight::{self, Answer, Passed, Verdict},
    rollout::{
        Rollout,
        copy::{self, Copy},
        rollback,
    },
};

/// Begins to compare what is live of an app with a boot from nothing. It changes nothing, so it
/// waits for nobody.
pub(crate) fn begin_verify(rollout: &Rollout, app: Option<AppName>) -> Operation {
    rollback::of_app(rollout, app, |app| {
        let progress = rollout.operations.begin_operation();
        let operation = progress.listen();
        let rollout = rollout.clone();
        tokio::spawn(async move {
            let ended = verify(&rollout, &app, Some(&progress)).await;
            progress.finish(ended);
        });
        operation
    })
}

/// Does the same after a deploy, where the settings of the app say so: who reads events learns how
/// it ended.
pub(super) fn after_deploy(rollout: &Rollout, app: &Arc<App>) {
    if app.settings().check.verify == config::Verify::AfterDeploy {
        let (rollout, app) = (rollout.clone(), Arc::clone(app));
        tokio::spawn(async move { verify(&rollout, &app, None).await });
    }
}

async fn verify(
    rollout: &Rollout,
    app: &Arc<App>,
    progress: Option<&ProgressSender>,
) -> OperationResult {
    let live = app.running(|running| running.serving.generation().cloned());
    let Some(live) = live else {
        let message = format!(
            "nothing of {} is live, so there is nothing to compare with",
            app.name
        );
        return result(Outcome::Failed, app, message);
    };
    let ended = tokio::select! {
        ended = compare(rollout, app, &live, progress) => ended,
        () = rollout.closing() => Err((Outcome::Failed, "the host is shutting down".to_owned())),
    };
    let spec = live.spec();
    let named = format!("{} {} (generation {})", app.name, spec.version, spec.id);
    let (outcome, kind, message) = match ended {
        Ok(message) => (
            Outcome::Done,
            EventKind::Verified,
            format!("a restart would bring the same as {named}: {message}"),
        ),
        Err((outcome, reason)) => {
            let word = match outcome {
                Outcome::Failed => "could not be compared with a boot from nothing",
                _ => "is not what a restart would bring",
            };
            (
                outcome,
                EventKind::VerifyFailed,
                format!("{named} {word}: {reason}"),
            )
        }
    };
    let (registry, id) = (&rollout.registry, Some(spec.id));
    registry.record_event(kind, app, id, message.as_str());
    result(outcome, app, message)
}

/// Boots it and compares. Both results are for people.
async fn compare(
    rollout: &Rollout,
    app: &Arc<App>,
    live: &Arc<Generation>,
    progress: Option<&ProgressSender>,
) -> Result<String, (Outcome, String)> {
    let failed = |reason: String| (Outcome::Failed, reason);
    let tell = |step: &'static str, began: Instant, message: String| {
        if let Some(progress) = progress {
            progress.step(step, app, began.elapsed(), message);
        }
    };
    let began = Instant::now();
    let settings = app.settings();
    let (store, sha256) = (rollout.store.clone(), live.spec().artifact);
    let state = rollout.registry.stores().of(&app.name);
    let name = app.name.clone();
    let prepared = tokio::task::spawn_blocking(move || {
        // Its bytes are hashed again: what is booted is what lies there.
        let artifact = store.get(sha256).map_err(|error| error.to_string())?;
        let copied = copy::of(&state, &name)
            .map_err(|error| format!("its state cannot be copied: {error}"))?;
        Ok((artifact, copied))
    });
    let prepared = prepared
        .await
        .unwrap_or_else(|broken| Err(broken.to_string()));
    let (artifact, copied) = prepared.map_err(failed)?;
    let told = match &copied {
        Copy::Empty => "it keeps no state".to_owned(),
        Copy::Whole(_, size) => format!("{} of state copied", human::file_size(*size)),
        Copy::TooLarge(size) => format!(
            "its state has {}, and more than {} is not copied: it is booted with an empty one",
            human::file_size(*size),
            human::file_size(copy::LARGEST)
        ),
    };
    tell("snapshot", began, told);

    let began = Instant::now();
    let path = match &copied {
        Copy::Whole(file, _) => Some(file.path().to_owned()),
        Copy::Empty | Copy::TooLarge(_) => None,
    };
    let verdict = preflight::boot(&artifact, &app.name, &settings, path)
        .await
        .map_err(|error| failed(error.to_string()))?;
    drop(copied);
    let Passed {
        checks, answers, ..
    } = match verdict {
        Verdict::Passed(passed) => passed,
        Verdict::Rejected(reason) => return Err((Outcome::Rejected, reason)),
        Verdict::Unhealthy(reason) => return Err((Outcome::Unhealthy, reason)),
    };
    tell(
        "boot",
        began,
        format!("in a child process: {}", checks.join(", ")),
    );

    let began = Instant::now();
    let mut differences = settings_differ(live.spec(), &settings, &app.name);
    for (request, booted) in settings.check.requests.iter().zip(&answers) {
        let path = &request.path;
        match dispatch::smoke(live, path, &request.send).await {
            Ok(answer) => differences.extend(Answer::of(path, &answer).differences(booted)),
            Err(reason) => differences.push(format!("GET {path} of the live version: {reason}")),
        }
    }
    if !differences.is_empty() {
        return Err((Outcome::Unhealthy, differences.join("; ")));
    }
    let compared = match answers.len() {
        0 => "its settings, as there are no smoke requests (`check.requests`)".to_owned(),
        answers => format!(
            "its settings, and {}",
            human::pluralize(answers as u64, "answer")
        ),
    };
    tell("compare", began, format!("{compared}, live and booted"));
    Ok(format!("compared were {compared}"))
}

/// Says what of the settings would be another one after a restart.
fn settings_differ(live: &Spec, now: &config::App, app: &AppName) -> Vec<String> {
    let mut found = Vec::new();
    let empty = serde_json::Map::new();
    let (one, two) = (
        live.config.as_object().unwrap_or(&empty),
        now.config.as_object().unwrap_or(&empty),
    );
    let mut keys: Vec<_> = one.keys().chain(two.keys()).collect();
    keys.sort();
    keys.dedup();
    for key in keys
        .into_iter()
        .filter(|key| one.get(*key) != two.get(*key))
    {
        found.push(format!(
            "its setting `config.{key}` is another one since it was started"
        ));
    }
    let env = now.readable_env();
    let mut names: Vec<_> = live.env.iter().chain(&env).map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    let value = |of: &[(String, String)], name: &String| {
        of.iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.clone())
    };
    for name in names
        .into_iter()
        .filter(|name| value(&live.env, name) != value(&env, name))
    {
        found.push(format!(
            "its variable `{name}` is another one since it was started"
        ));
    }
    if live.arguments != now.arguments(app) {
        found.push("its arguments (`args`) are others since it was started".to_owned());
    }
    found
}
