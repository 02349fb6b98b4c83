//! Uploads that the store did not take: told as an event, and remembered in the history of the app
//! that they name.

use handover_api::{AppName, Cause, EventKind, OperationResult, Outcome};

use crate::{artifact::StoreError, records::history::Entry, rollout::Rollout};

impl Rollout {
    /// Tells that the upload of `file` was not taken, and remembers it: for `app`, or for the app
    /// that its manifest names if it can be read that far. What names no app has no history.
    pub(crate) async fn not_taken(
        &self,
        file: &str,
        app: Option<AppName>,
        error: &StoreError,
    ) -> OperationResult {
        let (outcome, kind) = match error {
            StoreError::Refused { .. } => (Outcome::Rejected, EventKind::Rejected),
            StoreError::Io { .. } => (Outcome::Failed, EventKind::Failed),
        };
        let (sha256, manifest) = match error {
            StoreError::Refused {
                sha256, manifest, ..
            } => (*sha256, manifest.as_deref()),
            StoreError::Io { .. } => (None, None),
        };
        let app = app.or_else(|| manifest.map(|manifest| manifest.app.clone()));
        let message = format!("{file} was not taken: {error}");
        self.registry
            .events()
            .record(kind, app.as_ref(), None, message.as_str());
        if let (Some(name), Some(artifact)) = (&app, sha256) {
            let app = self.registry.app(name);
            app.counters.ended(outcome);
            let entry = Entry {
                version: manifest.map(|manifest| manifest.version.clone()),
                reason: Some(error.to_string()),
                ..Entry::new(artifact, Cause::Deploy, outcome)
            };
            let (_, saved) = app.saved.change(|record| record.remember(entry)).await;
            if let Err(cause) = saved {
                let trouble = format!("the failure could not be recorded: {cause}");
                self.registry
                    .record_event(EventKind::State, &app, None, trouble);
            }
        }
        OperationResult {
            outcome,
            message,
            app,
            generation: None,
            version: None,
            artifact: sha256.map(|sha256| sha256.to_string()),
            notes: Vec::new(),
            ended_streams: 0,
        }
    }
}
