//! What `handover status` shows.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use handover_api::{
    ActiveStatus, AppName, AppState, AppStatus, CanaryCounts, CanaryStatus, CertificateStatus,
    ConnectionsStatus, GenerationState, GenerationStatus, HostStatus, LeakStatus, LimitsStatus,
    PausedStatus, Served, ShadowStatus, StagedStatus, Status, WorkStatus,
};

use crate::{
    apps::{
        app::{App, FailedStart},
        cutover,
        registry::Registry,
        serving::Canary,
    },
    artifact::manifest::HOST_ABI,
    canary::Side,
    clock::millis,
    config::frozen,
    dispatch::{Pause, mirror},
    generation::Generation,
    ledger::{self, RetainReasons},
    open_files, process,
    report::{holders, leaks::Leaks},
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
    /// The certificates that are ordered.
    pub certificates: Vec<CertificateStatus>,
    /// Whether the node is drained.
    pub drained: bool,
    /// Why it is not ready for traffic.
    pub not_ready: Option<String>,
}

/// Returns the status of everything, now.
pub(crate) fn status(registry: &Registry, leaks: &Leaks, up: Duration, surface: Surface) -> Status {
    let budget = &registry.config().server.leak_budget;
    Status {
        apps: registry
            .shown()
            .iter()
            .map(|app| AppStatus {
                leases: registry.work().of(&app.name).leases.list(),
                ..app_status(app)
            })
            .collect(),
        host: HostStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_ms: millis(up),
            rss_bytes: process::resident_bytes(),
            max_open_files: open_files::limit(),
            listen: surface.listen.clone(),
            connections: surface.connections,
            certificates: surface.certificates,
            drained: surface.drained,
            not_ready: surface.not_ready,
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
    let (active, generations, failed_starts, labels, canary, staying) = app.running(|running| {
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
            running.serving.canary().cloned(),
            running
                .serving
                .staying()
                .iter()
                .map(|live| live.active.generation().spec().id)
                .collect::<Vec<_>>(),
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
                staying_for: staying
                    .contains(&id)
                    .then(|| generation.tenants().in_flight()),
                ends_in_ms: labelled.and_then(|(.., until)| {
                    Some(millis(
                        until.as_ref()?.saturating_duration_since(Instant::now()),
                    ))
                }),
                ..generation_status(&app.name, generation, held.as_ref())
            }
        });
    let failed_starts = failed_starts.iter().map(failed_start_status);
    let mut generations: Vec<_> = started.chain(failed_starts).collect();
    generations.sort_by_key(|generation| generation.generation);
    let (operation, queue) = app.queue.seen();
    let stopped = app.saved.read(|record| record.stopped.clone());
    AppStatus {
        name: app.name.clone(),
        state: match (&operation, &active) {
            (Some(_), _) => AppState::Deploying,
            (None, Some(_)) => AppState::Serving,
            (None, None) if stopped.is_some() => AppState::Stopped,
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
        limits: app.limits().map(|limits| {
            let (counts, settings) = (limits.counts(), &app.settings());
            LimitsStatus {
                max_concurrent: settings.max_concurrent.map(|most| most.get() as u64),
                queue: settings.queue as u64,
                request_timeout_ms: settings.request_timeout.map(millis),
                running: counts.running,
                waiting: counts.waiting,
                queued: counts.queued,
                refused: counts.refused,
                too_many: counts.too_many,
                timed_out: counts.timed_out,
            }
        }),
        assets: app.assets.status(),
        paused: app.paused().as_deref().map(paused),
        held: app.held().as_deref().map(paused),
        stopped,
        frozen: frozen(&app.settings().freeze, Timestamp::now()),
        canary: canary.as_ref().map(canary_status),
        shadow: shadow(app, false),
        generations,
        leases: Vec::new(),
        listening: ledger::listening(&app.name)
            .iter()
            .map(ToString::to_string)
            .collect(),
    }
}

fn paused(pause: &Pause) -> PausedStatus {
    PausedStatus {
        waiting: pause.waiting() as u64,
        max_wait_ms: millis(pause.max_wait()),
    }
}

fn canary_status(canary: &Canary) -> CanaryStatus {
    let trial = &canary.on_trial.trial;
    let spec = canary.on_trial.generation.spec();
    let progress = canary.course.progress();
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let counts = |side| {
        let counts = trial.counts(side);
        CanaryCounts {
            requests: counts.requests,
            failed: counts.failed,
            p50_us: counts.p50.map(micros),
            p99_us: counts.p99.map(micros),
        }
    };
    let own = counts(Side::Canary);
    let (failing, slow) = trial.evidence();
    let none_failed = own.requests > 0 && own.failed == 0;
    CanaryStatus {
        generation: spec.id,
        version: spec.version.clone(),
        percent: trial.share().part() * 100.0,
        sticky: canary
            .on_trial
            .settings
            .sticky
            .as_ref()
            .map(ToString::to_string),
        step: progress.step as u64,
        steps: progress.steps as u64,
        left_ms: millis(progress.left),
        paused: progress.paused,
        inconclusive: progress.inconclusive,
        min_requests: canary.course.min_requests(),
        canary: own,
        live: counts(Side::Live),
        failing,
        slow,
        rate_at_most: none_failed.then(|| 3.0 / own.requests as f64),
        one_client: trial.is_of_one_client(),
    }
}

/// The status of the shadow of an app, if it has one; `whole` with the differences.
pub(crate) fn shadow(app: &App, whole: bool) -> Option<ShadowStatus> {
    let mirror = app.running(|running| running.serving.mirror().cloned())?;
    let spec = mirror.generation.spec();
    let (differ, failed) = (
        mirror.count(mirror::Outcome::Differs),
        mirror.count(mirror::Outcome::Failed),
    );
    Some(ShadowStatus {
        app: app.name.clone(),
        generation: spec.id,
        version: spec.version.clone(),
        percent: mirror.share.part() * 100.0,
        same: mirror.count(mirror::Outcome::Same),
        differ,
        failed,
        skipped: mirror.count(mirror::Outcome::Skipped),
        differences: if whole {
            mirror.differences()
        } else {
            Vec::new()
        },
    })
}

fn generation_status(
    app: &AppName,
    generation: &Generation,
    held: Option<&RetainReasons>,
) -> GenerationStatus {
    let spec = generation.spec();
    let counts = generation.counts();
    GenerationStatus {
        generation: spec.id,
        version: spec.version.clone(),
        artifact: spec.artifact.to_string(),
        state: generation.state(),
        label: None,
        ends_in_ms: None,
        staying_for: None,
        in_flight: counts.in_flight,
        jobs: counts.jobs,
        requests: counts.requests,
        panics: counts.panics,
        stalls: counts.stalls,
        server_errors: counts.server_errors,
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
        holders: match generation.state() {
            GenerationState::Draining => {
                let requests = holders::requests(app, generation, WORK_SHOWN).into_iter();
                requests.chain(holders::leases(app, generation)).collect()
            }
            _ => Vec::new(),
        },
        retained_because: held.map(RetainReasons::to_string),
    }
}

/// Returns what `generation` has done until now.
pub(crate) fn served(generation: &Generation) -> Served {
    let counts = generation.counts();
    Served {
        requests: counts.requests,
        server_errors: counts.server_errors,
        panics: counts.panics,
        for_ms: millis(generation.loaded_at().elapsed()),
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
        staying_for: None,
        in_flight: 0,
        jobs: 0,
        requests: 0,
        panics: 0,
        stalls: 0,
        server_errors: 0,
        age_ms: millis(loaded_at.elapsed()),
        work: Vec::new(),
        holders: Vec::new(),
        retained_because: Some(held.to_string()),
    }
}
