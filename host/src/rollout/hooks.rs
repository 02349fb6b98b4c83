//! The operator's programs at a deploy: what each is told, and what its end means.

use std::time::{Duration, Instant};

use handover_api::{Cause, GenerationId, Note, OperationResult, Outcome};

use crate::{
    apps::app::App,
    artifact::Artifact,
    config::{Hooks, Program},
    hooks::{self, Finished},
    operations::operation::Voice,
    shown,
};

/// What a line on standard output begins with that names another artifact.
const RETARGET: &str = "HANDOVER_ARTIFACT=";

/// What a hook is run at.
#[derive(Clone, Copy, Debug)]
pub(super) struct About<'a> {
    pub(super) app: &'a App,
    pub(super) artifact: &'a Artifact,
    pub(super) cause: Cause,
    pub(super) generation: Option<GenerationId>,
}

impl About<'_> {
    fn variables(&self, hook: &str, operation: &str) -> Vec<(&'static str, String)> {
        let Self {
            app,
            artifact,
            cause,
            generation,
        } = self;
        let live = app.live();
        let mut all = vec![
            ("HANDOVER_HOOK", hook.to_owned()),
            ("HANDOVER_APP", app.name.to_string()),
            ("HANDOVER_VERSION", artifact.manifest.version.to_string()),
            ("HANDOVER_ARTIFACT", artifact.path.display().to_string()),
            ("HANDOVER_SHA256", artifact.sha256.to_string()),
            ("HANDOVER_CAUSE", cause.to_string()),
            ("HANDOVER_OPERATION", operation.to_owned()),
        ];
        all.extend(generation.map(|id| ("HANDOVER_GENERATION", id.to_string())));
        if let Some(live) = live {
            all.push(("HANDOVER_LIVE_VERSION", live.version.to_string()));
            all.push(("HANDOVER_LIVE_GENERATION", live.id.to_string()));
        }
        all
    }
}

/// Runs `program` as `hook`, for `within` at the longest.
///
/// # Errors
/// Why it is no success.
pub(super) async fn run(
    hook: &'static str,
    program: &Program,
    about: About<'_>,
    more: Vec<(&'static str, String)>,
    within: Duration,
    voice: &Voice,
) -> Result<Finished, String> {
    let began = Instant::now();
    let words = program.words();
    let name = words.first().map_or("", String::as_str);
    let mut variables = about.variables(hook, voice.id());
    variables.extend(more);
    let finished = hooks::run(words, variables, within)
        .await
        .map_err(|error| format!("{hook} `{name}` cannot be started: {error}"))?;
    let lines = finished.lines.iter();
    let notes: Vec<_> = lines
        .map(|line| Note {
            kind: "output".to_owned(),
            warning: false,
            message: shown::harmless(line),
        })
        .collect();
    let failure = finished.failure();
    let how = failure.as_deref().unwrap_or("ended well");
    let message = format!("`{name}` {how}");
    voice.found(hook, about.app, began.elapsed(), message, notes);
    match failure {
        None => Ok(finished),
        Some(failure) => {
            let last = finished.lines.iter().rfind(|line| !line.is_empty());
            let said = last.map_or_else(String::new, |line| {
                format!("; it said last: {}", shown::harmless(line))
            });
            Err(format!("{hook} `{name}` {failure}{said}"))
        }
    }
}

/// Runs what is to be run when an operation has ended. Its failure is a warning: what it is about
/// has happened.
pub(super) async fn afterwards(about: About<'_>, result: &mut OperationResult, voice: &Voice) {
    let settings = about.app.settings();
    let Hooks {
        post_deploy,
        on_failure,
        on_rollback,
        ..
    } = &settings.hooks;
    let is_start = matches!(about.cause, Cause::Start | Cause::Crash);
    let chosen = match (result.outcome, about.cause) {
        _ if is_start => None,
        (Outcome::Done, Cause::Rollback) | (Outcome::RolledBack, _) => {
            Some(("on_rollback", on_rollback))
        }
        (Outcome::Done, _) => Some(("post_deploy", post_deploy)),
        (Outcome::Failed | Outcome::Rejected | Outcome::Unhealthy, _) => {
            Some(("on_failure", on_failure))
        }
        _ => None,
    };
    let Some((hook, Some(program))) = chosen else {
        return;
    };
    let more = vec![
        ("HANDOVER_OUTCOME", result.outcome.as_str().to_owned()),
        ("HANDOVER_MESSAGE", result.message.clone()),
    ];
    if let Err(failure) = run(hook, program, about, more, settings.hooks.deadline, voice).await {
        tracing::warn!(app = %about.app.name, "{failure}");
        result.notes.push(Note {
            kind: "hook".to_owned(),
            warning: true,
            message: failure,
        });
    }
}

/// Returns the path that `finished` names as the artifact to take instead.
pub(super) fn retarget(finished: &Finished) -> Option<&str> {
    finished.last.as_deref()?.strip_prefix(RETARGET)
}
