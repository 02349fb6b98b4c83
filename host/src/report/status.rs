//! What `handover status` shows.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use handover_api::{
    ActiveStatus, AppState, AppStatus, ConnectionsStatus, GenerationState, GenerationStatus,
    HostStatus, LeakStatus, LimitsStatus, StagedStatus, Status, WorkStatus,
};

use crate::{
    apps::{
        app::{App, FailedStart},
        cutover,
        registry::Registry,
    },
    artifact::manifest::HOST_ABI,
    clock::millis,
    generation::Generation,
    ledger::{self, RetainReasons},
    open_files, process,
    report::leaks::Leaks,
    shown,
};

/// How much work of a generation is shown.
const WORK_SHOWN: usize = 100;

/// The longest name of work that is shown whole, in bytes.
const WORK_NAME: usize = 200;

/// What the status tells of the host beside its apps.
#[derive(Clone, Debug, Default)]
pub struct Surface {
    /// Where it serves.
    pub listen: Vec<String>,
    /// Where it tells its metrics over TCP.
    pub metrics: Option<SocketAddr>,
    /// The connections of clients.
    pub connections: ConnectionsStatus,
}

/// Returns the status of everything, now.
pub(crate) fn status(registry: &Registry, leaks: &Leaks, up: Duration, surface: Surface) -> Status {
    let budget = &registry.config().server.leak_budget;
    Status {
        apps: registry.shown().iter().map(|app| app_status(app)).collect(),
        host: HostStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_ms: millis(up),
            rss_bytes: process::resident_bytes(),
            max_open_files: open_files::limit(),
            listen: surface.listen.clone(),
            connections: surface.connections,
            metrics: surface.metrics.map(|at| at.to_string()),
            abi: HOST_ABI.to_string(),
            leaks: leaks.status(),
            leak_budget: LeakStatus {
                estimated: 0,
                bytes: budget.bytes,
                descriptors: budget.descriptors,
                retained: budget.retained,
            },
        },
    }
}

/// The status of one app, now.
pub(crate) fn app_status(app: &App) -> AppStatus {
    let (active, generations, failed_starts, labels) = app.running(|running| {
        let active = running.serving.generation();
        let labelled = running.serving.labelled().iter();
        let labels: Vec<_> = labelled
            .map(|labelled| (labelled.id(), labelled.label.clone(), labelled.until))
            .collect();
        (
            active.map(|generation| generation.spec().clone()),
            running.generations(),
            running.failed_starts.clone(),
            labels,
        )
    });
    let started = generations
        .iter()
        .filter(|(generation, _)| generation.state() != GenerationState::Unloaded)
        .map(|(generation, held)| {
            let id = generation.spec().id;
            let labelled = labels.iter().find(|(labelled, ..)| *labelled == id);
            GenerationStatus {
                label: labelled.map(|(_, label, _)| label.clone()),
                ends_in_ms: labelled.and_then(|(.., until)| {
                    Some(millis(
                        until.as_ref()?.saturating_duration_since(Instant::now()),
                    ))
                }),
                ..generation_status(generation, held.as_ref())
            }
        });
    let failed_starts = failed_starts.iter().map(failed_start_status);
    let mut generations: Vec<_> = started.chain(failed_starts).collect();
    generations.sort_by_key(|generation| generation.generation);
    let (operation, queue) = app.queue.seen();
    AppStatus {
        name: app.name.clone(),
        state: match (&operation, &active) {
            (Some(_), _) => AppState::Deploying,
            (None, Some(_)) => AppState::Serving,
            (None, None) => AppState::Empty,
        }
        .to_owned(),
        routes: cutover::prefixes(app)
            .into_iter()
            .map(|(prefix, _)| format!("{}{}", prefix.host.unwrap_or_default(), prefix.path))
            .collect(),
        active: active.map(|spec| ActiveStatus {
            generation: spec.id,
            version: spec.version,
            artifact: spec.artifact.to_string(),
        }),
        operation,
        queue,
        staged: app
            .saved
            .read(|record| record.staged.clone())
            .map(|staged| StagedStatus {
                version: staged.version,
                artifact: staged.artifact.to_string(),
            }),
        not_durable: app.saved.not_durable(),
        limits: app.limits.as_ref().map(|limits| {
            let (counts, settings) = (limits.counts(), &app.settings);
            LimitsStatus {
                max_concurrent: settings.max_concurrent.map(|most| most.get() as u64),
                queue: settings.queue as u64,
                request_timeout_ms: settings.request_timeout.map(millis),
                running: counts.running,
                waiting: counts.waiting,
                refused: counts.refused,
                timed_out: counts.timed_out,
            }
        }),
        generations,
        listening: ledger::listening(&app.name)
            .iter()
            .map(ToString::to_string)
            .collect(),
    }
}

fn generation_status(generation: &Generation, held: Option<&RetainReasons>) -> GenerationStatus {
    let spec = generation.spec();
    let counts = generation.counts();
    GenerationStatus {
        generation: spec.id,
        version: spec.version.clone(),
        artifact: spec.artifact.to_string(),
        state: generation.state(),
        label: None,
        ends_in_ms: None,
        in_flight: counts.in_flight,
        jobs: counts.jobs,
        requests: counts.requests,
        panics: counts.panics,
        stalls: counts.stalls,
        age_ms: millis(generation.loaded_at().elapsed()),
        work: generation
            .working()
            .into_iter()
            .take(WORK_SHOWN)
            .map(|work| WorkStatus {
                kind: work.kind.as_str().to_owned(),
                name: shown::truncate(work.name, WORK_NAME),
                tenant: shown::truncate(work.tenant, WORK_NAME),
                age_ms: millis(work.since.elapsed()),
            })
            .collect(),
        retained_because: held.map(RetainReasons::to_string),
    }
}

/// A generation whose constructor failed or goes on for too long, and whose library stays mapped.
fn failed_start_status(failed_starts: &FailedStart) -> GenerationStatus {
    let FailedStart {
        spec,
        loaded_at,
        held,
    } = failed_starts;
    GenerationStatus {
        generation: spec.id,
        version: spec.version.clone(),
        artifact: spec.artifact.to_string(),
        state: GenerationState::Retained,
        label: None,
        ends_in_ms: None,
        in_flight: 0,
        jobs: 0,
        requests: 0,
        panics: 0,
        stalls: 0,
        age_ms: millis(loaded_at.elapsed()),
        work: Vec::new(),
        retained_because: Some(held.to_string()),
    }
}
