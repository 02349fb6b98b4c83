//! Each way in which a deploy can fail, with a machine that does what the test says.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::{
    future::pending,
    io::{self, Write as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use handover_api::{AppName, Cause, GenerationId, OperationResult, Outcome};
use serde_json::json;

use super::{Deadline, Destination, Ended, Plan, carry_out, steps::Machine};
use crate::{
    apps::{app::App, registry::Registry},
    artifact::{Artifact, Store, testing::TestElf},
    config::{self, Config},
    dispatch::Routes,
    generation::{Spec, StartError, Started},
    preflight::{Passed, Scope, Verdict},
    records::{audit::Audit, history::Attribution, journal::Journal, room::Room},
    rollout::Rollout,
};

/// The app of the tests.
const APP: &str = "shop";

/// A machine whose preflight says what it is told, and which never starts anything: a version
/// `1.0.0-unmappable` cannot be mapped, and `start` of the app's configuration is why its
/// constructor fails. Without it the constructor goes on for ever.
#[derive(Clone)]
struct Told(Option<Result<Verdict, io::ErrorKind>>);

impl Machine for Told {
    type Library = ();

    async fn preflight(
        &self,
        _artifact: &Artifact,
        _app: &AppName,
        _settings: &config::App,
        _scope: Scope,
        _state: Option<&Path>,
    ) -> io::Result<Verdict> {
        match &self.0 {
            None => pending().await,
            Some(Ok(verdict)) => Ok(verdict.clone()),
            Some(Err(kind)) => Err((*kind).into()),
        }
    }

    async fn load(artifact: Artifact, _within: Duration) -> Result<(), StartError> {
        match artifact.manifest.version.pre.as_str() {
            "unmappable" => Err(failure("it has no segments")),
            _ => Ok(()),
        }
    }

    fn base((): &()) -> Option<usize> {
        None
    }

    async fn start((): (), spec: Spec) -> Result<Started, StartError> {
        match spec.config["start"].as_str() {
            Some(reason) => Err(failure(reason)),
            None => pending().await,
        }
    }
}

fn failure(reason: &str) -> StartError {
    StartError {
        reason: reason.to_owned(),
        refused: Vec::new(),
        retained: None,
    }
}

fn passed() -> Told {
    Told(Some(Ok(Verdict::Passed(Passed::default()))))
}

/// A host without a live version of its one app.
struct Host {
    state: tempfile::TempDir,
    rollout: Rollout,
    app: Arc<App>,
}

impl Host {
    fn new(change: impl FnOnce(&mut config::App)) -> Self {
        let state = tempfile::tempdir().unwrap();
        let mut settings = config::App::default();
        change(&mut settings);
        let name: AppName = APP.parse().unwrap();
        let mut config = Config::without_file();
        config.apps.insert(name.clone(), settings);
        let room = Arc::new(Room::in_state(state.path(), None));
        let journal = Journal::new(state.path(), Arc::clone(&room));
        let registry =
            Registry::open(config, state.path(), room, Arc::<Routes>::default()).unwrap();
        let store = Store::open(&state.path().join("artifacts")).unwrap();
        let app = registry.app(&name);
        Self {
            rollout: Rollout::new(registry, store, journal, Audit::default()),
            state,
            app,
        }
    }

    fn plan(&self, version: &str) -> Plan {
        let mut writer = self.rollout.store.writer().unwrap();
        writer.write(&TestElf::new(APP, version).bytes()).unwrap();
        Plan {
            artifact: writer.finish().unwrap(),
            cause: Cause::Deploy,
            source: None,
            noticed_in: None,
            stored_in: None,
            preflight: Some(Scope::All),
            destination: Destination::Live,
            up: None,
            deadline: None,
            orphan_jobs: false,
            override_freeze: false,
            anew: false,
            restore_state: false,
            attribution: Attribution::default(),
        }
    }

    async fn deploy(&self, plan: Plan, machine: Told) -> OperationResult {
        let progress = self.rollout.operations.begin_operation();
        match carry_out(&self.rollout, &self.app, plan, &progress, machine).await {
            Ended::Otherwise(result) => result,
            Ended::Live(..) | Ended::OnTrial(..) => panic!("nothing here can become live"),
        }
    }

    /// The outcome of a deploy of 1.0.0, its reason, and whether it is held against the artifact.
    async fn fails(&self, machine: Told) -> (Outcome, String, bool) {
        self.fails_with(self.plan("1.0.0"), machine).await
    }

    async fn fails_with(&self, plan: Plan, machine: Told) -> (Outcome, String, bool) {
        let artifact = plan.artifact.sha256;
        let result = self.deploy(plan, machine).await;
        assert_eq!(result.generation, None, "nothing is live");
        let is_held = self
            .app
            .saved
            .read(|record| record.why_failing(artifact).is_some());
        let reason = self.app.saved.read(|record| {
            let last = record.history.last().unwrap();
            assert_eq!(last.outcome, result.outcome);
            last.reason.clone().unwrap()
        });
        (result.outcome, reason, is_held)
    }

    /// The number that the next generation gets.
    async fn next_generation(&self) -> GenerationId {
        let (id, saved) = self
            .app
            .saved
            .change(|record| record.next_generation())
            .await;
        saved.unwrap();
        id
    }
}

#[tokio::test]
async fn what_preflight_rejects_is_held_against_the_artifact_and_costs_no_number() {
    let host = Host::new(|_| {});
    let (outcome, reason, is_held) = host
        .fails(Told(Some(Ok(Verdict::Rejected("it panics".into())))))
        .await;
    assert_eq!(
        (outcome, reason.as_str(), is_held),
        (Outcome::Rejected, "it panics", true)
    );
    assert_eq!(host.next_generation().await, GenerationId(1));
}

#[tokio::test]
async fn failed_smoke_requests_are_unhealthy() {
    let host = Host::new(|_| {});
    let (outcome, reason, is_held) = host
        .fails(Told(Some(Ok(Verdict::Unhealthy("GET / gave 500".into())))))
        .await;
    assert_eq!(
        (outcome, reason.as_str(), is_held),
        (Outcome::Unhealthy, "GET / gave 500", true)
    );
}

#[tokio::test]
async fn a_preflight_that_cannot_be_run_is_no_fault_of_the_artifact() {
    let host = Host::new(|_| {});
    let (outcome, reason, is_held) = host
        .fails(Told(Some(Err(io::ErrorKind::OutOfMemory))))
        .await;
    assert_eq!((outcome, is_held), (Outcome::Failed, false));
    assert!(
        reason.starts_with("its preflight could not be run"),
        "{reason}"
    );
}

#[tokio::test]
async fn what_was_live_is_loaded_unchecked_when_its_preflight_cannot_be_run() {
    let host = Host::new(|_| {});
    let plan = Plan {
        cause: Cause::Start,
        preflight: Some(Scope::Again),
        ..host.plan("1.0.0-unmappable")
    };
    let machine = Told(Some(Err(io::ErrorKind::OutOfMemory)));
    let (outcome, reason, _) = host.fails_with(plan, machine).await;
    assert_eq!(outcome, Outcome::Failed);
    assert!(reason.contains("it has no segments"), "{reason}");
    let (events, _) = host.rollout.registry.events().follow();
    let told = events
        .iter()
        .any(|event| event.message.contains("loaded unchecked"));
    assert!(told, "{events:?}");
}

#[tokio::test]
async fn a_timeout_names_what_it_passed_in() {
    let host = Host::new(|_| {});
    let late = |version| Plan {
        deadline: Some(Deadline::after(Duration::from_millis(20))),
        ..host.plan(version)
    };
    let (outcome, reason, is_held) = host.fails_with(late("1.0.0"), Told(None)).await;
    assert_eq!((outcome, is_held), (Outcome::Failed, false));
    assert!(reason.ends_with("passed during its preflight"), "{reason}");
}

#[tokio::test]
async fn what_cannot_be_mapped_names_its_generation() {
    let host = Host::new(|_| {});
    let plan = host.plan("1.0.0-unmappable");
    let (outcome, reason, is_held) = host.fails_with(plan, passed()).await;
    assert_eq!((outcome, is_held), (Outcome::Failed, false));
    assert_eq!(
        reason,
        "its library could not be loaded: it has no segments"
    );
    let generation =
        |record: &crate::records::app_record::Record| record.history.last().unwrap().generation;
    assert_eq!(host.app.saved.read(generation), Some(GenerationId(1)));
    assert_eq!(host.next_generation().await, GenerationId(2));
}

#[tokio::test]
async fn a_constructor_that_fails_is_held_against_the_artifact() {
    let host = Host::new(|app| app.config = json!({"start": "no database"}));
    let (outcome, reason, is_held) = host.fails(passed()).await;
    assert_eq!(
        (outcome, reason.as_str(), is_held),
        (Outcome::Rejected, "it did not start: no database", true)
    );
}

#[tokio::test]
async fn a_machine_that_is_too_short_is_no_fault_of_the_artifact() {
    let short = "Too many open files (os error 24)";
    let host = Host::new(|app| app.config = json!({"start": short}));
    let (outcome, reason, is_held) = host.fails(passed()).await;
    assert_eq!((outcome, is_held), (Outcome::Failed, false));
    assert_eq!(reason, format!("it could not be started: {short}"));
}

#[tokio::test]
async fn a_version_that_is_too_old_is_refused_and_may_come_again() {
    let host = Host::new(|app| app.min_version = Some("2.0.0".parse().unwrap()));
    let (outcome, reason, is_held) = host.fails(passed()).await;
    assert_eq!((outcome, is_held), (Outcome::Rejected, false));
    assert!(reason.contains("older than 2.0.0"), "{reason}");
}

#[tokio::test]
async fn a_host_that_ends_begins_nothing_and_cuts_what_it_waits_for() {
    let host = Host::new(|_| {});
    let waits = host.fails(Told(None));
    let ends = async {
        tokio::task::yield_now().await;
        host.rollout.close();
    };
    let ((outcome, reason, is_held), ()) = tokio::join!(waits, ends);
    assert_eq!((outcome, is_held), (Outcome::Failed, false));
    assert!(reason.contains("its preflight"), "{reason}");
    let (outcome, reason, _) = host.fails(passed()).await;
    assert_eq!(
        (outcome, reason.as_str()),
        (Outcome::Failed, "the host is shutting down")
    );
}

#[tokio::test]
async fn a_constructor_is_left_behind_when_the_host_ends() {
    let host = Host::new(|_| {});
    let (mut operation, plan) = (None, host.plan("1.0.0"));
    let progress = host.rollout.operations.begin_operation();
    let listener = operation.insert(progress.listen());
    let deploys = carry_out(&host.rollout, &host.app, plan, &progress, passed());
    let ends = async {
        while let Some(line) = listener.lines.recv().await {
            let text = serde_json::to_string(&line).unwrap();
            if text.contains("\"load\"") {
                break;
            }
        }
        host.rollout.close();
    };
    let (ended, ()) = tokio::join!(deploys, ends);
    let Ended::Otherwise(result) = ended else {
        panic!("nothing here can become live")
    };
    assert_eq!(result.outcome, Outcome::Failed);
    assert!(
        result.message.contains("its constructor"),
        "{}",
        result.message
    );
}

#[tokio::test]
async fn records_that_cannot_be_written_fail_the_deploy_before_code_of_it_runs() {
    let host = Host::new(|_| {});
    let plan = host.plan("1.0.0-unmappable");
    let apps = host.state.path().join("apps");
    std::fs::remove_dir_all(&apps).unwrap();
    std::fs::File::create(&apps)
        .unwrap()
        .write_all(b"in the way")
        .unwrap();
    let (outcome, reason, is_held) = host.fails_with(plan, passed()).await;
    assert_eq!((outcome, is_held), (Outcome::Failed, false));
    assert!(
        reason.starts_with("the host cannot write its records"),
        "{reason}"
    );
}

#[tokio::test]
async fn staging_says_when_it_could_not_be_recorded() {
    let host = Host::new(|_| {});
    let stage = |plan| Plan {
        destination: Destination::Staged,
        ..plan
    };
    let result = host.deploy(stage(host.plan("1.0.0")), passed()).await;
    assert_eq!(result.outcome, Outcome::Staged);
    let plan = stage(host.plan("1.1.0"));
    let apps = host.state.path().join("apps");
    std::fs::remove_dir_all(&apps).unwrap();
    std::fs::File::create(&apps)
        .unwrap()
        .write_all(b"in the way")
        .unwrap();
    let (outcome, reason, _) = host.fails_with(plan, passed()).await;
    assert_eq!(outcome, Outcome::Failed);
    assert!(reason.starts_with("it could not be staged"), "{reason}");
}
