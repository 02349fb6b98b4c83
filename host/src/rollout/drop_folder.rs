//! What the drop folder brings: whether it is deployed, staged or refused, and what its answer file
//! says.

use std::{os::unix::fs::MetadataExt, path::Path};

use handover_api::{
    AppName, AuditEntry, AuditSource, Cause, EventKind, OperationResult, Outcome, query,
};
use semver::Version;
use tokio::task::spawn_blocking;

use crate::{
    apps::app::{App, result},
    artifact::Sha256,
    config::{Watch, WhenFull},
    generation::Spec,
    ownership,
    preflight::Scope,
    records::{audit, history::Attribution},
    rollout::{
        Rollout,
        deploy::{self, Destination, Entrance, Plan},
        reload::Caused,
        triggers,
    },
    shortage, shown,
    watch::{DropOutcome, DropTarget, DroppedArtifact, Trigger, WatcherHandle},
    writers::name_of_one,
};

/// What is known when an offer is judged.
#[derive(Debug)]
struct Facts<'f> {
    /// The bytes offered.
    artifact: Sha256,
    /// Their version.
    version: &'f Version,
    /// The file.
    path: &'f str,
    /// Whether a person asked to try again.
    again: bool,
    /// Whether this very file with these bytes was answered before the host was started, and nobody
    /// touched it since.
    met_again: bool,
    /// What is live.
    live: Option<&'f Spec>,
    /// The file that it came from.
    live_source: Option<&'f str>,
    /// What is staged.
    staged: Option<Sha256>,
    /// Why these bytes failed before.
    failing: Option<&'f str>,
    /// What the drop folder does.
    watch: Watch,
    /// Whether it is to be up beside what is live, under a label.
    labelled: bool,
    /// Whether it is to be tried with a share of the requests.
    canary: bool,
}

/// What becomes of an offer.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// It is live already.
    Live,
    /// It is staged already.
    Staged,
    /// It is deployed.
    Deploy,
    /// It is checked and staged.
    Stage,
    /// It is not taken: why, and what to do.
    Refuse(String),
}

/// The rule. Nothing is refused without a reason; order is that of versions, except where a file
/// was replaced by hand.
fn decide(facts: &Facts<'_>) -> Decision {
    let Facts {
        artifact, version, ..
    } = *facts;
    if facts.live.is_some_and(|live| live.artifact == artifact) {
        return Decision::Live;
    }
    let go = match facts.watch {
        Watch::Deploy => Decision::Deploy,
        // Nobody meets it who does not ask for it.
        Watch::Stage if facts.labelled => Decision::Deploy,
        Watch::Stage if facts.canary => {
            return Decision::Refuse(
                "it is to be a canary, but the drop folder of this app stages (watch = \"stage\"): use `handover deploy --canary`".to_owned(),
            );
        }
        Watch::Stage if facts.staged == Some(artifact) => return Decision::Staged,
        Watch::Stage => Decision::Stage,
        Watch::Off => {
            return Decision::Refuse(
                "the drop folder of this app is switched off (watch = \"off\"): use `handover deploy`".to_owned(),
            );
        }
    };
    if let Some(reason) = facts.failing
        && !facts.again
    {
        return Decision::Refuse(format!(
            "these bytes failed before and are not tried again by themselves (`handover reload` does): {reason}"
        ));
    }
    let Some(live) = facts.live else { return go };
    // Who puts an older file where the live one lay means it.
    let in_place = facts.live_source == Some(facts.path);
    if version.cmp_precedence(&live.version).is_lt() && !in_place && !facts.labelled {
        return Decision::Refuse(format!(
            "{version} is older than live {}: use `handover rollback --to {version}` or `handover deploy`",
            live.version
        ));
    }
    if facts.met_again && !facts.again {
        return Decision::Refuse(format!(
            "this file was answered before the host was started, and {} was made live since: drop it anew, or use \
             `handover reload`",
            live.version
        ));
    }
    go
}

/// What the audit log says of a file that was put into a drop folder: who owns it asked.
async fn change(dropped: &DroppedArtifact) -> AuditEntry {
    let mut entry = audit::asked(AuditSource::DropFolder, format!("POST {}", query::DEPLOY));
    let said = query::uri("", &dropped.asked);
    audit::read_arguments(&mut entry, said.trim_start_matches('?'));
    entry.app = Some(dropped.app.clone());
    let file = dropped.path.to_string_lossy().into_owned();
    entry.arguments.insert("name".to_owned(), file);
    entry.artifact = Some(dropped.artifact.sha256.to_string());
    let path = dropped.path.clone();
    let owner = spawn_blocking(move || std::fs::metadata(path).map(|facts| facts.uid()));
    // It may be gone by now.
    entry.uid = owner.await.ok().and_then(Result::ok);
    entry
}

impl DropTarget for Rollout {
    fn watches(&self, app: &AppName) -> bool {
        let watch = match self.registry.known(app) {
            Some(app) => app.settings().watch,
            None => self.registry.config().app(app).watch,
        };
        watch != Watch::Off
    }

    fn admits(&self, path: &Path) -> Result<(), String> {
        if self.registry.config().trust.insecure_paths {
            return Ok(());
        }
        ownership::check(path).map_err(|error| {
            format!("others could have put it there: {error}; then `handover reload`")
        })
    }

    fn has(&self, app: &AppName, sha256: Sha256) -> bool {
        self.registry.known(app).is_some_and(|app| {
            app.live().is_some_and(|live| live.artifact == sha256)
                || app.saved.read(|record| {
                    record
                        .staged
                        .as_ref()
                        .is_some_and(|staged| staged.artifact == sha256)
                })
        })
    }

    fn knows(&self, app: &AppName) -> bool {
        self.registry.known(app).is_some()
    }

    async fn triggered(&self, trigger: Trigger, watcher: WatcherHandle) -> Result<String, String> {
        triggers::carry_out(self, trigger, &watcher).await
    }

    async fn deploy_dropped(&self, dropped: DroppedArtifact) -> DropOutcome {
        let app = self.registry.app(&dropped.app);
        let path = dropped.path.to_string_lossy().into_owned();
        let (sha256, version) = (
            dropped.artifact.sha256,
            dropped.artifact.manifest.version.clone(),
        );
        if let Some(other) = app.queue.under_way(dropped.again) {
            if dropped.again {
                self.caused(&app, Caused::Said(deploy::conflict(&app, &other)));
            }
            return DropOutcome::Later;
        }
        if !dropped.again && app.waits_for_machine(sha256) {
            return DropOutcome::Later;
        }
        let live = app.live();
        let live_source = app.running(|running| running.serving.primary()?.source.clone());
        let decision = app.saved.read(|record| {
            decide(&Facts {
                artifact: sha256,
                version: &version,
                path: &path,
                again: dropped.again,
                met_again: dropped.lay_there && record.was_answered(&path, sha256),
                live: live.as_ref(),
                live_source: live_source.as_deref(),
                staged: record.staged.as_ref().map(|staged| staged.artifact),
                failing: record.why_failing(sha256),
                watch: app.settings().watch,
                labelled: dropped.asked.label.is_some(),
                canary: dropped.asked.canary.is_some(),
            })
        });
        let decision = match (decision, deploy::unfit(&dropped.asked)) {
            (Decision::Deploy, Some(reason)) => Decision::Refuse(reason),
            (decision, _) => decision,
        };
        let named = format!("{} {version} ({})", app.name, sha256.short());
        let answer = match decision {
            Decision::Live => {
                let id = live.map_or(0, |live| live.id.0);
                let message = format!("{named} is live already as generation {id}");
                self.said(&app, &dropped, &message);
                DropOutcome::Deployed(message)
            }
            Decision::Staged => {
                let message = format!(
                    "{named} is staged already: `handover reload {}` makes it live",
                    app.name
                );
                self.said(&app, &dropped, &message);
                DropOutcome::Deployed(message)
            }
            Decision::Refuse(reason) => {
                let message = format!("{named} was not taken: {reason}");
                self.said(&app, &dropped, &message);
                if !dropped.again && !dropped.lay_there {
                    let begun = self.audit.begin(change(&dropped).await);
                    begun.ended(|entry| {
                        entry.outcome = Some(Outcome::Rejected);
                        entry.error = Some(message.clone());
                    });
                }
                self.registry.record_event(
                    EventKind::Rejected,
                    &app,
                    None,
                    format!("{}: {message}", shown::path(&dropped.path)),
                );
                DropOutcome::Failed(message)
            }
            Decision::Deploy | Decision::Stage => {
                let stage = decision == Decision::Stage;
                self.take(&app, dropped, path.clone(), stage).await
            }
        };
        if !matches!(answer, DropOutcome::Later) {
            let (_, saved) = app
                .saved
                .change(|record| record.answered(&path, sha256))
                .await;
            if let Err(cause) = saved {
                self.registry.record_event(
                    EventKind::State,
                    &app,
                    None,
                    format!(
                        "the answer to {} could not be recorded: {cause}",
                        shown::path(Path::new(&path))
                    ),
                );
            }
        }
        answer
    }

    fn waits(&self, app: Option<&AppName>, path: &Path, asked: bool) {
        let by = name_of_one(path).unwrap_or_else(|| "somebody".to_owned());
        let message = format!(
            "{} waits: {by} still has it open for writing. It is taken once that is closed",
            shown::path(path)
        );
        self.registry
            .events()
            .record(EventKind::Waiting, app, None, message.as_str());
        if asked && let Some(app) = app.and_then(|name| self.registry.known(name)) {
            self.caused(&app, Caused::Said(result(Outcome::Failed, &app, message)));
        }
    }

    fn refused(&self, app: Option<&AppName>, path: &Path, reason: &str) {
        let message = format!("{} was not taken: {reason}", shown::path(path));
        self.registry
            .events()
            .record(EventKind::Rejected, app, None, message.as_str());
        if let Some(app) = app.and_then(|name| self.registry.known(name)) {
            self.caused(&app, Caused::Said(result(Outcome::Rejected, &app, message)));
        }
    }
}

impl Rollout {
    /// Deploys or stages what was offered, up to the cutover.
    async fn take(
        &self,
        app: &std::sync::Arc<App>,
        dropped: DroppedArtifact,
        path: String,
        stage: bool,
    ) -> DropOutcome {
        let (sha256, again) = (dropped.artifact.sha256, dropped.again);
        if !stage && app.settings().when_full == WhenFull::Refuse && app.is_full() {
            // It will fit when one of those has drained; nobody has to drop it again.
            if app.waits(Some(sha256)) {
                let message = format!(
                    "{} waits: {} replaced generations still drain and max_old_generations is {}",
                    shown::path(Path::new(&path)),
                    app.draining().len(),
                    app.settings().max_old_generations
                );
                self.registry
                    .record_event(EventKind::Waiting, app, None, message);
            }
            if dropped.again {
                let message = "too many replaced generations still drain (max_old_generations): what was dropped waits for them";
                self.caused(app, Caused::Said(result(Outcome::Failed, app, message)));
            }
            return DropOutcome::Later;
        }
        app.waits(None);
        // A reload was taken down where it was asked for.
        let asked = match again {
            true => None,
            false => Some(self.audit.begin(change(&dropped).await)),
        };
        let plan = Plan {
            artifact: dropped.artifact,
            cause: if dropped.again {
                Cause::Reload
            } else {
                Cause::Drop
            },
            source: Some(path),
            noticed_in: Some(dropped.noticed_in),
            stored_in: Some(dropped.stored_in),
            preflight: Some(Scope::All),
            destination: if stage {
                Destination::Staged
            } else {
                Destination::asked_for(&app.settings(), &dropped.asked)
            },
            up: None,
            deadline: None,
            orphan_jobs: dropped.asked.orphan_jobs,
            override_freeze: false,
            anew: false,
            restore_state: false,
            attribution: Attribution {
                by: dropped.asked.by,
                message: dropped.asked.message,
                key: None,
            },
        };
        let entrance = if dropped.again {
            Entrance::OfReload
        } else {
            Entrance::Now
        };
        let begun = deploy::begin_deploy(self, std::sync::Arc::clone(app), plan, entrance);
        if dropped.again {
            self.caused(app, Caused::Operation(begun.operation.id.clone()));
        }
        let id = begun.operation.id.clone();
        // An error means that the operation broke off, which was logged.
        let Ok(result) = begun.at_cutover.await else {
            return DropOutcome::Failed(
                "the deploy broke off inside the host: its log says more".to_owned(),
            );
        };
        if let Some(asked) = asked {
            asked.ended(|entry| {
                entry.operation = Some(id);
                audit::ended_as(entry, &result);
            });
        }
        let OperationResult {
            outcome,
            message,
            notes,
            ..
        } = result;
        match outcome {
            Outcome::Done | Outcome::Unchanged | Outcome::Staged | Outcome::DeadlinePassed => {
                let notes = notes.iter().map(|note| format!("\n{note}"));
                DropOutcome::Deployed(message + &notes.collect::<String>())
            }
            Outcome::Conflict => DropOutcome::Later,
            // The next start takes it.
            Outcome::Failed if self.is_closing() => DropOutcome::Later,
            // The machine's fault: the same file is fine in a moment.
            Outcome::Failed if !again && shortage::is_named(&message) => {
                app.is_short_for(sha256);
                DropOutcome::Later
            }
            Outcome::Failed
            | Outcome::Rejected
            | Outcome::Unhealthy
            | Outcome::RolledBack
            | Outcome::Denied => DropOutcome::Failed(message),
        }
    }

    /// Tells the reload that asked, if one did, that there was nothing to do.
    fn said(&self, app: &App, dropped: &DroppedArtifact, message: &str) {
        if dropped.again {
            self.caused(app, Caused::Said(result(Outcome::Unchanged, app, message)));
        }
    }

    fn caused(&self, app: &App, caused: Caused) {
        self.reloads.notify(&app.name, &caused);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use std::time::Duration;

    use super::*;
    use handover_api::GenerationId;

    fn spec(version: &str, byte: u8) -> Spec {
        Spec {
            app: "shop".parse().unwrap(),
            id: GenerationId(3),
            version: version.parse().unwrap(),
            artifact: Sha256([byte; 32]),
            config: serde_json::Value::Null,
            env: Vec::new(),
            arguments: Vec::new(),
            base_path: String::new(),
            data_dir: None,
            environment: Vec::new(),
            runtime_threads: 1,
            start_deadline: Duration::ZERO,
            preflight: false,
            state: None,
            work: None,
            assets: None,
            migration: None,
            handed_over: None,
            stays: None,
        }
    }

    /// An offer of `version` (bytes 9) at `/drop/a.so` while 1.2.0 (bytes 1) is live.
    fn judge(version: &str, change: impl FnOnce(&mut Facts<'_>)) -> Decision {
        let (version, live) = (version.parse().unwrap(), spec("1.2.0", 1));
        let mut facts = Facts {
            artifact: Sha256([9; 32]),
            version: &version,
            path: "/drop/a.so",
            again: false,
            met_again: false,
            live: Some(&live),
            live_source: Some("/drop/other.so"),
            staged: None,
            failing: None,
            watch: Watch::Deploy,
            labelled: false,
            canary: false,
        };
        change(&mut facts);
        decide(&facts)
    }

    fn refused(decision: Decision, part: &str) {
        assert!(
            matches!(&decision, Decision::Refuse(reason) if reason.contains(part)),
            "{decision:?}"
        );
    }

    #[test]
    fn newer_and_equal_versions_are_deployed() {
        for version in ["1.2.0", "1.2.1", "1.10.0", "2.0.0-rc.1", "1.2.0+build.7"] {
            assert_eq!(judge(version, |_| {}), Decision::Deploy, "{version}");
        }
        assert_eq!(judge("0.0.1", |facts| facts.live = None), Decision::Deploy);
    }

    #[test]
    fn an_older_version_is_refused_with_the_way_to_do_it() {
        for version in ["1.1.9", "1.2.0-rc.1", "0.9.0"] {
            refused(
                judge(version, |_| {}),
                "older than live 1.2.0: use `handover rollback --to",
            );
            refused(
                judge(version, |facts| facts.again = true),
                "older than live",
            );
        }
    }

    #[test]
    fn replacing_the_file_that_the_live_one_came_from_may_go_back() {
        let in_place = |facts: &mut Facts<'_>| facts.live_source = Some("/drop/a.so");
        assert_eq!(judge("1.0.0", in_place), Decision::Deploy);
    }

    #[test]
    fn the_same_bytes_are_live_already_whatever_else_is_true() {
        let decision = judge("1.2.0", |facts| {
            facts.artifact = Sha256([1; 32]);
            facts.failing = Some("it failed");
            facts.watch = Watch::Stage;
        });
        assert_eq!(decision, Decision::Live);
    }

    #[test]
    fn bytes_that_failed_are_tried_again_only_when_asked() {
        refused(
            judge("1.3.0", |facts| facts.failing = Some("it called exit(3)")),
            "it called exit(3)",
        );
        let asked = |facts: &mut Facts<'_>| {
            facts.failing = Some("it called exit(3)");
            facts.again = true;
        };
        assert_eq!(judge("1.3.0", asked), Decision::Deploy);
    }

    #[test]
    fn a_staging_folder_stages_once() {
        assert_eq!(
            judge("1.3.0", |facts| facts.watch = Watch::Stage),
            Decision::Stage
        );
        let staged = |facts: &mut Facts<'_>| {
            facts.watch = Watch::Stage;
            facts.staged = Some(Sha256([9; 32]));
        };
        assert_eq!(judge("1.3.0", staged), Decision::Staged);
        refused(
            judge("1.3.0", |facts| facts.watch = Watch::Off),
            "handover deploy",
        );
    }

    #[test]
    fn a_label_is_beside_what_is_live_whatever_its_version_and_the_folder() {
        let labelled = |facts: &mut Facts<'_>| facts.labelled = true;
        assert_eq!(judge("1.0.0", labelled), Decision::Deploy);
        let in_a_staging_folder =
            |facts: &mut Facts<'_>| (facts.labelled, facts.watch) = (true, Watch::Stage);
        assert_eq!(judge("1.3.0", in_a_staging_folder), Decision::Deploy);
        let canary = |facts: &mut Facts<'_>| (facts.canary, facts.watch) = (true, Watch::Stage);
        refused(judge("1.3.0", canary), "deploy --canary");
    }

    #[test]
    fn a_restart_does_not_undo_a_rollback() {
        // 1.3.0 lies in the folder, was live, and was rolled back to 1.2.0 before the restart.
        refused(
            judge("1.3.0", |facts| facts.met_again = true),
            "drop it anew",
        );
        let asked = |facts: &mut Facts<'_>| (facts.met_again, facts.again) = (true, true);
        assert_eq!(judge("1.3.0", asked), Decision::Deploy);
        let nothing_live = |facts: &mut Facts<'_>| (facts.met_again, facts.live) = (true, None);
        assert_eq!(judge("1.3.0", nothing_live), Decision::Deploy);
    }
}
