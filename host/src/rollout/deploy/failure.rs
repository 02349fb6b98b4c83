//! Why an artifact did not become live, and how that is recorded.

use std::time::Duration;

use handover_api::{Cause, EventKind, GenerationId, OperationResult, Outcome};

use super::Plan;
use crate::{
    apps::app::{App, result},
    artifact::Artifact,
    records::history::Entry,
    rollout::Rollout,
};

/// Why an artifact did not become live.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) outcome: Outcome,
    pub(super) reason: String,
    pub(super) generation: Option<GenerationId>,
    /// Whether it is the artifact's own fault, so that trying the same bytes again is pointless.
    pub(super) own_fault: bool,
}

impl Failure {
    /// A failure that is not the artifact's fault.
    pub(super) fn host(reason: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Failed,
            reason: reason.into(),
            generation: None,
            own_fault: false,
        }
    }

    /// A failure that the same bytes would have again.
    pub(super) fn own(outcome: Outcome, reason: String, generation: Option<GenerationId>) -> Self {
        Self {
            outcome,
            reason,
            generation,
            own_fault: true,
        }
    }

    /// The host ends in the middle of it.
    pub(super) fn cut(what: &str) -> Self {
        Self::host(format!(
            "the host is shutting down, which cut {what}; deploy it again when the host is back"
        ))
    }

    /// The deploy's own timeout passed.
    pub(super) fn late(plan: &Plan, during: &str) -> Self {
        let timeout = plan
            .deadline
            .map_or(Duration::ZERO, |deadline| deadline.timeout);
        Self::host(late(timeout, during))
    }

    pub(super) fn of(mut self, id: GenerationId) -> Self {
        self.generation = Some(id);
        self
    }
}

/// Records that `artifact` did not become live: `entry` is what the history says of it otherwise.
pub(super) async fn record_failure(
    rollout: &Rollout,
    app: &App,
    artifact: &Artifact,
    entry: Entry,
    failure: Failure,
) -> OperationResult {
    let Failure {
        outcome,
        reason,
        generation,
        own_fault,
    } = failure;
    let (kind, word) = match outcome {
        Outcome::Rejected => (EventKind::Rejected, "was rejected"),
        Outcome::Unhealthy => (EventKind::Unhealthy, "failed its smoke requests"),
        _ => (EventKind::Failed, "could not be deployed"),
    };
    let still = match app.live() {
        Some(live) => format!("generation {} ({}) stays live", live.id, live.version),
        None => "nothing is live".to_owned(),
    };
    let message = format!(
        "{} {} ({}) {word}, {still}: {reason}",
        app.name,
        artifact.manifest.version,
        artifact.sha256.short()
    );
    rollout
        .registry
        .record_event(kind, app, generation, message.as_str());
    let cause = entry.cause;
    let entry = Entry {
        outcome,
        generation,
        reason: Some(reason.clone()),
        ..entry
    };
    let (_, saved) = app
        .saved
        .change(|record| {
            record.remember(entry);
            // What was good once is not condemned for not coming up at a start.
            if own_fault
                && matches!(
                    cause,
                    Cause::Deploy | Cause::Drop | Cause::Reload | Cause::Dev
                )
            {
                record.failed(artifact.sha256, reason);
            }
        })
        .await;
    if let Err(cause) = saved {
        rollout.registry.record_event(
            EventKind::State,
            app,
            generation,
            format!("the failure could not be recorded: {cause}"),
        );
    }
    result(outcome, app, message)
}

pub(super) fn late(timeout: Duration, during: &str) -> String {
    format!(
        "it was not live within {} (--timeout), which passed during {during}",
        humantime::format_duration(timeout)
    )
}
