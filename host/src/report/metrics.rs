//! What the apps tell of themselves as metrics. Read from what is counted anyway: a request never
//! waits for a reader.
//!
//! Series of an app go on over its swaps. Series of a generation end with it, so there are as many
//! as generations that are mapped.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use handover_api::{
    AppState, AppStatus, CanaryCounts, EventKind, GenerationId, GenerationStatus, LimitsStatus,
    Outcome,
};

use crate::{
    apps::{
        app::App,
        counters::{BOUNDS, Counts, Steps},
        registry::Registry,
    },
    artifact::manifest::HOST_ABI,
    dispatch,
    ledger::RetainReasons,
    open_files, process,
    report::{holders, leaks::Leaks, status::app_status},
    telemetry::exposition::{Exposition, Kind as MetricKind, Label},
};

/// One app as it is while the text is written.
struct Seen {
    status: AppStatus,
    /// Requests, panics and stalls since the host started.
    totals: (u64, u64, u64),
    counters: Counts,
    held: Vec<(GenerationId, RetainReasons)>,
    /// What holds the generations that were replaced: how many of each kind.
    holders: BTreeMap<(GenerationId, &'static str), u64>,
}

/// What the metrics are about.
pub(crate) struct Metrics<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) leaks: &'a Leaks,
    /// How long the host runs.
    pub(crate) up: Duration,
}

impl Metrics<'_> {
    /// Writes the metrics of all apps and of the process. Reads files of `/proc`.
    pub(crate) fn write(&self, to: &mut Exposition) {
        let seen: Vec<Seen> = self.registry.shown().iter().map(|app| see(app)).collect();
        self.write_host(to);
        write_apps(to, &seen);
        write_assets(to, &seen);
        write_generations(to, &seen);
        write_holders(to, &seen);
        write_canaries(to, &seen);
        write_shadows(to, &seen);
        self.write_durations(to);
        write_operations(to, &seen);
        self.write_leaks(to, &seen);
        self.write_jobs(to);
    }

    fn write_host(&self, to: &mut Exposition) {
        to.family(
            "handover_build_info",
            MetricKind::Gauge,
            "The version of the host and the ABI that it offers.",
        )
        .sample(
            &[
                ("version", &env!("CARGO_PKG_VERSION")),
                ("abi", &HOST_ABI.to_string()),
            ],
            1,
        );
        let up = self.up;
        to.one(
            "handover_uptime_seconds",
            MetricKind::Gauge,
            "How long the host runs.",
            up.as_secs_f64(),
        );
        let since = SystemTime::now()
            .checked_sub(up)
            .and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        to.one(
            "process_start_time_seconds",
            MetricKind::Gauge,
            "When the host was started, in seconds since 1970.",
            since.unwrap_or_default().as_secs_f64(),
        );
        to.one(
            "process_cpu_seconds_total",
            MetricKind::Counter,
            "The time of processors that the host used.",
            process::cpu().as_secs_f64(),
        );
        to.one(
            "process_resident_memory_bytes",
            MetricKind::Gauge,
            "The resident memory of the host.",
            process::resident_bytes(),
        );
        to.one(
            "process_threads",
            MetricKind::Gauge,
            "The threads of the host.",
            process::threads(),
        );
        to.one(
            "process_open_fds",
            MetricKind::Gauge,
            "The open descriptors of the host.",
            process::descriptors(),
        );
        if let Some(most) = open_files::limit() {
            to.one(
                "process_max_fds",
                MetricKind::Gauge,
                "How many descriptors there may be.",
                most,
            );
        }
        let mut family = to.family(
            "handover_events_total",
            MetricKind::Counter,
            "What `handover events` told, by kind.",
        );
        let counts = EventKind::ALL.iter().zip(self.registry.events().counts());
        // What a reader missed is told to that reader alone.
        for (kind, number) in counts.filter(|(kind, _)| **kind != EventKind::Missed) {
            family.sample(&[("kind", &kind.as_str())], number);
        }
    }

    fn write_durations(&self, to: &mut Exposition) {
        let apps = self.registry.shown();
        let mut family = to.family(
            "http_server_request_duration_seconds",
            MetricKind::Histogram,
            "How long requests took until their answers had ended.",
        );
        let of_apps = apps.iter().map(|app| &*app.durations);
        for durations in of_apps.chain([self.registry.routes().unrouted()]) {
            for (kind, counted) in durations.counted() {
                let (method, code, role) = (kind.method(), kind.code(), kind.role());
                let labels: [Label<'_>; 3] = [
                    ("http_request_method", &method),
                    ("http_response_status_code", &code),
                    ("role", &role),
                ];
                let app: Option<Label<'_>> = durations.app.as_ref().map(|app| ("app", app as _));
                let labels: Vec<_> = app.into_iter().chain(labels).collect();
                let (count, sum) = (counted.count, counted.sum.as_secs_f64());
                family.histogram(&labels, &dispatch::BOUNDS, &counted.within, count, sum);
            }
        }
    }

    fn write_jobs(&self, to: &mut Exposition) {
        let apps = self.registry.shown();
        let counts: Vec<_> = apps
            .iter()
            .map(|app| (&app.name, self.registry.work().of(&app.name).jobs.counts()))
            .collect();
        let mut family = to.family(
            "handover_jobs",
            MetricKind::Gauge,
            "Durable jobs that have not ended, by what becomes of them.",
        );
        for (app, counts) in &counts {
            for (state, number) in [("waiting", counts.waiting), ("running", counts.running)] {
                family.sample(&[("app", app), ("state", &state)], number);
            }
        }
        let mut family = to.family(
            "handover_job_attempts_total",
            MetricKind::Counter,
            "Attempts of durable jobs that ended, and jobs that became dead letters.",
        );
        for (app, counts) in &counts {
            let totals = counts.totals;
            for (outcome, number) in [
                ("done", totals.done),
                ("failed", totals.failed),
                ("dead", totals.dead),
            ] {
                family.sample(&[("app", app), ("outcome", &outcome)], number);
            }
        }
    }

    fn write_leaks(&self, to: &mut Exposition, seen: &[Seen]) {
        let mut family = to.family(
            "handover_generation_retained",
            MetricKind::Gauge,
            "Generations whose libraries stay mapped, by what holds them.",
        );
        for app in seen {
            for (generation, held) in &app.held {
                for holder in held.reasons() {
                    family.sample(
                        &[
                            ("app", &app.status.name),
                            ("generation", generation),
                            ("reason", &holder.as_str()),
                        ],
                        1,
                    );
                }
            }
        }
        let leaks = self.leaks.status();
        let budget = &self.registry.config().server.leak_budget;
        for (name, help, value) in [
            (
                "handover_retained_libraries",
                "Libraries that stay mapped.",
                leaks.retained,
            ),
            (
                "handover_leaked_bytes",
                "Bytes of heap that retained generations hold, and an estimate of what unloaded ones without a heap of their own left.",
                leaks.bytes,
            ),
            (
                "handover_leaked_descriptors",
                "Descriptors that unloaded generations left open and retained ones hold.",
                leaks.descriptors,
            ),
            (
                "handover_leak_budget_libraries",
                "server.leak_budget.retained",
                budget.retained,
            ),
            (
                "handover_leak_budget_bytes",
                "server.leak_budget.bytes",
                budget.bytes,
            ),
            (
                "handover_leak_budget_descriptors",
                "server.leak_budget.descriptors",
                budget.descriptors,
            ),
        ] {
            to.one(name, MetricKind::Gauge, help, value);
        }
    }
}

fn see(app: &App) -> Seen {
    // Under one look, so that what is unloaded meanwhile is counted neither twice nor not at all.
    let (totals, held) = app.running(|running| {
        let mut sums = running.retired;
        let mut held = Vec::new();
        for (generation, holds) in running.generations() {
            sums.add(&generation.counts());
            held.extend(holds.map(|holds| (generation.spec().id, holds)));
        }
        let failed_starts = running.failed_starts.iter();
        held.extend(failed_starts.map(|one| (one.spec.id, one.held.clone())));
        ((sums.requests, sums.panics, sums.stalls), held)
    });
    let mut holders = BTreeMap::new();
    for generation in holders::replaced(app) {
        for kind in generation.holder_kinds() {
            *holders.entry((generation.spec().id, kind)).or_insert(0) += 1;
        }
    }
    Seen {
        status: app_status(app),
        totals,
        counters: app.counters.counts(),
        held,
        holders,
    }
}

fn write_apps(to: &mut Exposition, seen: &[Seen]) {
    let mut family = to.family(
        "handover_app_state",
        MetricKind::Gauge,
        "1 for the state that the app is in.",
    );
    for Seen { status, .. } in seen {
        for state in AppState::ALL {
            let is = u8::from(status.state == *state);
            family.sample(&[("app", &status.name), ("state", state)], is);
        }
    }
    let mut family = to.family(
        "handover_operations_queued",
        MetricKind::Gauge,
        "Operations that wait for their turn.",
    );
    for Seen { status, .. } in seen {
        family.sample(&[("app", &status.name)], status.queue.len());
    }
    type Total = fn(&(u64, u64, u64)) -> u64;
    let totals: [(&str, &str, Total); 3] = [
        (
            "handover_requests_total",
            "Requests that were given to generations of the app.",
            |totals| totals.0,
        ),
        (
            "handover_panics_total",
            "Panics caught in generations of the app.",
            |totals| totals.1,
        ),
        (
            "handover_stalls_total",
            "Calls that held a worker for longer than stall_after.",
            |totals| totals.2,
        ),
    ];
    for (name, help, total) in totals {
        let mut family = to.family(name, MetricKind::Counter, help);
        for app in seen {
            family.sample(&[("app", &app.status.name)], total(&app.totals));
        }
    }
    let mut family = to.family(
        "handover_requests_rejected_total",
        MetricKind::Counter,
        "Requests that the limits of the app answered: 429 beyond a limit of whose they are, 503 beyond max_concurrent and queue, 504 past request_timeout.",
    );
    for (status, limits) in limited(seen) {
        family.sample(&[("app", &status.name), ("code", &429)], limits.too_many);
        family.sample(&[("app", &status.name), ("code", &503)], limits.refused);
        family.sample(&[("app", &status.name), ("code", &504)], limits.timed_out);
    }
    let mut family = to.family(
        "handover_limit_running",
        MetricKind::Gauge,
        "Requests that count against max_concurrent.",
    );
    for (status, limits) in limited(seen) {
        family.sample(&[("app", &status.name)], limits.running);
    }
    let mut family = to.family(
        "handover_limit_waiting",
        MetricKind::Gauge,
        "Requests that wait for their turn.",
    );
    for (status, limits) in limited(seen) {
        family.sample(&[("app", &status.name)], limits.waiting + limits.queued);
    }
}

fn write_assets(to: &mut Exposition, seen: &[Seen]) {
    let all = || {
        let with_assets = seen.iter();
        with_assets.filter_map(|app| Some((&app.status.name, app.status.assets.as_ref()?)))
    };
    let mut family = to.family(
        "handover_assets_requests_total",
        MetricKind::Counter,
        "Requests that the host answered with an asset of the app.",
    );
    for (app, assets) in all() {
        family.sample(&[("app", app)], assets.requests);
    }
    let mut family = to.family(
        "handover_assets_skewed_total",
        MetricKind::Counter,
        "Requests for an asset of a version that is not kept: 404.",
    );
    for (app, assets) in all() {
        family.sample(&[("app", app)], assets.skewed);
    }
    let mut family = to.family(
        "handover_assets_bytes",
        MetricKind::Gauge,
        "How large the assets of the live version and of those that are kept are.",
    );
    for (app, assets) in all() {
        family.sample(&[("app", app)], assets.bytes);
    }
}

fn limited(seen: &[Seen]) -> impl Iterator<Item = (&AppStatus, &LimitsStatus)> {
    seen.iter()
        .filter_map(|app| Some((&app.status, app.status.limits.as_ref()?)))
}

fn write_generations(to: &mut Exposition, seen: &[Seen]) {
    let all = || {
        seen.iter().flat_map(|app| {
            let generations = app.status.generations.iter();
            generations.map(|generation| (&app.status.name, generation))
        })
    };
    let mut family = to.family(
        "handover_generation_info",
        MetricKind::Gauge,
        "The generations that are mapped.",
    );
    for (app, generation) in all() {
        family.sample(
            &[
                ("app", app),
                ("generation", &generation.generation),
                ("version", &generation.version),
                ("artifact", &generation.artifact),
                ("state", &generation.state),
            ],
            1,
        );
    }
    type Number = fn(&GenerationStatus) -> u64;
    let numbers: [(&str, MetricKind, &str, Number); 6] = [
        (
            "handover_generation_in_flight",
            MetricKind::Gauge,
            "Requests, streams, upgraded connections and spawned work on the generation, jobs included.",
            |generation| generation.in_flight,
        ),
        (
            "handover_generation_jobs",
            MetricKind::Gauge,
            "Jobs on the generation.",
            |generation| generation.jobs,
        ),
        (
            "handover_generation_requests_total",
            MetricKind::Counter,
            "Requests that the generation was given.",
            |generation| generation.requests,
        ),
        (
            "handover_generation_panics_total",
            MetricKind::Counter,
            "Panics caught in the generation.",
            |generation| generation.panics,
        ),
        (
            "handover_generation_stalls_total",
            MetricKind::Counter,
            "Calls into the generation that held a worker for longer than stall_after.",
            |generation| generation.stalls,
        ),
        (
            "handover_generation_server_errors_total",
            MetricKind::Counter,
            "Answers of the generation with a status of 5xx.",
            |generation| generation.server_errors,
        ),
    ];
    for (name, kind, help, number) in numbers {
        let mut family = to.family(name, kind, help);
        for (app, generation) in all() {
            family.sample(
                &[("app", app), ("generation", &generation.generation)],
                number(generation),
            );
        }
    }
}

fn write_holders(to: &mut Exposition, seen: &[Seen]) {
    let mut family = to.family(
        "handover_holders",
        MetricKind::Gauge,
        "What holds generations that were replaced, by kind.",
    );
    for app in seen {
        for ((generation, kind), number) in &app.holders {
            family.sample(
                &[
                    ("app", &app.status.name),
                    ("generation", generation),
                    ("kind", kind),
                ],
                number,
            );
        }
    }
}

fn write_canaries(to: &mut Exposition, seen: &[Seen]) {
    let all = || {
        seen.iter()
            .filter_map(|app| Some((&app.status.name, app.status.canary.as_ref()?)))
    };
    let mut family = to.family(
        "handover_canary_share",
        MetricKind::Gauge,
        "The share of the requests that the version on trial gets, between 0 and 1.",
    );
    for (app, canary) in all() {
        family.sample(&[("app", app)], canary.percent / 100.0);
    }
    type Number = fn(&CanaryCounts) -> u64;
    let numbers: [(&str, &str, Number); 2] = [
        (
            "handover_canary_requests_total",
            "Requests that were answered during the trial, by who answered.",
            |counts| counts.requests,
        ),
        (
            "handover_canary_failures_total",
            "Clients whose requests failed during the trial, by who answered.",
            |counts| counts.failed,
        ),
    ];
    for (name, help, number) in numbers {
        let mut family = to.family(name, MetricKind::Counter, help);
        for (app, canary) in all() {
            for (side, counts) in [("canary", &canary.canary), ("live", &canary.live)] {
                family.sample(&[("app", app), ("side", &side)], number(counts));
            }
        }
    }
    let mut family = to.family(
        "handover_canary_evidence",
        MetricKind::Gauge,
        "How strongly the figures speak against the version on trial: a likelihood ratio, at 100 it is ended.",
    );
    for (app, canary) in all() {
        family.sample(&[("app", app), ("question", &"failing")], canary.failing);
        family.sample(&[("app", app), ("question", &"slow")], canary.slow);
    }
}

fn write_shadows(to: &mut Exposition, seen: &[Seen]) {
    let mut family = to.family(
        "handover_shadow_requests_total",
        MetricKind::Counter,
        "Copies of requests that the shadow got, by how its answer compares with what the client was given.",
    );
    for app in seen {
        let Some(shadow) = &app.status.shadow else {
            continue;
        };
        let results = [
            ("same", shadow.same),
            ("differs", shadow.differ - shadow.failed),
            ("failed", shadow.failed),
            ("skipped", shadow.skipped),
        ];
        for (result, number) in results {
            family.sample(&[("app", &app.status.name), ("result", &result)], number);
        }
    }
}

fn write_operations(to: &mut Exposition, seen: &[Seen]) {
    let mut family = to.family(
        "handover_deploys_total",
        MetricKind::Counter,
        "Deploys, rollbacks and starts of the app, by how they ended; one that went live counts at its cutover.",
    );
    for app in seen {
        for outcome in Outcome::ALL {
            let number = app.counters.outcomes.get(&outcome).copied().unwrap_or(0);
            family.sample(
                &[("app", &app.status.name), ("outcome", &outcome.as_str())],
                number,
            );
        }
    }
    let mut family = to.family(
        "handover_drains_total",
        MetricKind::Counter,
        "Replaced generations that came to rest: by themselves, or ended at a deadline.",
    );
    for app in seen {
        for (how, number) in [
            ("drained", app.counters.drained),
            ("deadline_passed", app.counters.deadlines),
        ] {
            family.sample(&[("app", &app.status.name), ("outcome", &how)], number);
        }
    }
    let mut steps: BTreeMap<&str, Steps> = BTreeMap::new();
    for (step, of_app) in seen.iter().flat_map(|app| &app.counters.steps) {
        steps.entry(step).or_default().merge(of_app);
    }
    let mut family = to.family(
        "handover_deploy_step_seconds",
        MetricKind::Histogram,
        "How long the steps of deploys took, over all apps.",
    );
    for (step, steps) in &steps {
        family.histogram(
            &[("step", step)],
            &BOUNDS,
            &steps.within,
            steps.count,
            steps.sum.as_secs_f64(),
        );
    }
    let mut family = to.family(
        "handover_last_deploy_step_seconds",
        MetricKind::Gauge,
        "How long each step took the last time.",
    );
    for app in seen {
        for (step, steps) in &app.counters.steps {
            family.sample(
                &[("app", &app.status.name), ("step", step)],
                steps.last.as_secs_f64(),
            );
        }
    }
}
