//! What an app has counted since the host started, over all of its generations: what a chart draws.

use handover_api::AppName;

use crate::{
    apps::{app::App, registry::Registry},
    dispatch::BOUNDS,
};

/// What one app has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Requests that its generations were given.
    pub(crate) requests: u64,
    /// Their answers with a status of 5xx.
    pub(crate) server_errors: u64,
    /// How many requests took no longer than each of [`BOUNDS`] but longer than the one before; the
    /// last one: longer than all of them. All are 0 where durations are not counted.
    pub(crate) within: [u64; BOUNDS.len() + 1],
}

/// Returns what each app has counted that people are to see.
pub(crate) fn figures(registry: &Registry) -> Vec<(AppName, Figures)> {
    let apps = registry.shown().into_iter();
    apps.map(|app| (app.name.clone(), of(&app))).collect()
}

fn of(app: &App) -> Figures {
    // Under one look, so that what is unloaded meanwhile is counted neither twice nor not at all.
    let totals = app.running(|running| {
        let mut sums = running.retired;
        for (generation, _) in running.generations() {
            sums.add(&generation.counts());
        }
        sums
    });
    let mut within = [0; BOUNDS.len() + 1];
    for counted in app.durations.counted().values() {
        let mut longer = counted.count;
        for (sum, more) in within.iter_mut().zip(counted.within) {
            *sum += more;
            longer = longer.saturating_sub(more);
        }
        within[BOUNDS.len()] += longer;
    }
    Figures {
        requests: totals.requests,
        server_errors: totals.server_errors,
        within,
    }
}
