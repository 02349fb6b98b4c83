//! What `handover status` shows.

use std::time::{Duration, Instant};

use super::{Apps, app::App, cutover};
use crate::{
    artifact::manifest::HOST_ABI,
    control::api::{
        ActiveStatus, AppStatus, GenerationStatus, HostStatus, LimitsStatus, StagedStatus, Status,
    },
    generation::{Generation, State},
    open_files,
};

/// The status of everything, now.
pub(super) fn status(apps: &Apps) -> Status {
    Status {
        apps: apps.all().iter().map(|app| app_status(app)).collect(),
        host: HostStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_ms: millis(apps.0.started.elapsed()),
            rss_bytes: resident_bytes(),
            max_open_files: open_files::limit(),
            listen: apps
                .0
                .listen
                .get()
                .into_iter()
                .flatten()
                .map(ToString::to_string)
                .collect(),
            abi: HOST_ABI.to_string(),
            leaks: apps.0.leaks.status(),
        },
    }
}

fn app_status(app: &App) -> AppStatus {
    let (active, mut generations) = app.running(|running| {
        let active = running.live.as_ref().map(|live| live.active.generation());
        let old = running.old.iter().map(|old| {
            (
                std::sync::Arc::clone(&old.generation),
                old.retained_because.clone(),
            )
        });
        let generations: Vec<_> = old
            .chain(active.map(|active| (active.clone(), None)))
            .collect();
        (
            active.map(|generation| generation.spec().clone()),
            generations,
        )
    });
    generations.sort_by_key(|(generation, _)| generation.spec().id);
    AppStatus {
        name: app.name.clone(),
        state: match (app.under_way(), &active) {
            (Some(_), _) => "deploying",
            (None, Some(_)) => "serving",
            (None, None) => "empty",
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
        staged: app
            .saved
            .read(|record| record.staged.clone())
            .map(|staged| StagedStatus {
                version: staged.version,
                artifact: staged.artifact.to_string(),
            }),
        limits: app.limits.as_ref().map(|limits| {
            let counts = limits.counts();
            LimitsStatus {
                running: counts.running,
                waiting: counts.waiting,
                refused: counts.refused,
                timed_out: counts.timed_out,
            }
        }),
        generations: generations
            .into_iter()
            .filter(|(generation, _)| generation.state() != State::Unloaded)
            .map(|(generation, because)| generation_status(&generation, because))
            .collect(),
    }
}

fn generation_status(
    generation: &Generation,
    retained_because: Option<String>,
) -> GenerationStatus {
    let spec = generation.spec();
    let counts = generation.counts();
    GenerationStatus {
        generation: spec.id,
        version: spec.version.clone(),
        artifact: spec.artifact.to_string(),
        state: generation.state().as_str().to_owned(),
        in_flight: counts.in_flight,
        jobs: counts.jobs,
        requests: counts.requests,
        panics: counts.panics,
        stalls: counts.stalls,
        age_ms: millis(Instant::now().saturating_duration_since(generation.loaded_at())),
        retained_because,
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The resident memory of this process, zero if the kernel does not say.
fn resident_bytes() -> u64 {
    // `status` gives kilobytes; `statm` would give pages of a size one has to ask for.
    let Ok(text) = std::fs::read_to_string("/proc/self/status") else {
        return 0;
    };
    text.lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kilobytes| kilobytes.parse::<u64>().ok())
        .map_or(0, |kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_has_resident_memory() {
        assert!(super::resident_bytes() > 100_000);
    }
}
