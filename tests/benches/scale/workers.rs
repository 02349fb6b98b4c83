//! One, two and more worker threads, beside the twin with as many.

use std::time::{Duration, Instant};

use handover_tests::bench::{
    builds::Builds,
    contender::Contender,
    figures::{Spread, thousands},
    generate::{Ask, Load},
    report,
    server::Server,
};
use serde_json::json;

use super::Section;

/// Connections that are kept busy.
const CONNECTIONS: usize = 64;

pub(super) fn run(builds: &Builds, quick: bool) -> Section {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut numbers = vec![1, 2, cores, 2 * cores];
    numbers.sort_unstable();
    numbers.dedup();
    let rounds = if quick { 2 } else { 7 };
    let (mut rows, mut figures) = (Vec::new(), Vec::new());
    for workers in numbers {
        let [host, twin] = [Contender::Handover, Contender::Twin]
            .map(|contender| contender.start(builds, workers, None));
        let (mut rates, mut twins, mut rate_ratios, mut costs, mut cost_ratios) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let (cost, rate) = round(&host, quick);
            let (twin_cost, twin_rate) = round(&twin, quick);
            rates.push(rate);
            twins.push(twin_rate);
            rate_ratios.push(rate / twin_rate);
            costs.push(cost);
            cost_ratios.push(cost / twin_cost);
        }
        let [rate, twin, rate_ratio, cost, cost_ratio] =
            [rates, twins, rate_ratios, costs, cost_ratios].map(Spread::of);
        rows.push(vec![
            workers.to_string(),
            thousands(rate.median),
            thousands(twin.median),
            rate_ratio.text(3),
            cost.text(2),
            cost_ratio.text(3),
        ]);
        figures.push(json!({
            "workers": workers,
            "requests_per_second": rate.json(),
            "requests_per_second_twin": twin.json(),
            "requests_per_second_to_twin": rate_ratio.json(),
            "processor_us": cost.json(),
            "processor_to_twin": cost_ratio.json(),
        }));
    }
    let head = [
        "workers",
        "requests a second",
        "the twin's",
        "to the twin's",
        "processor time, µs a request",
        "to the twin's",
    ];
    Section {
        text: format!(
            "**Workers**, `GET /` on {CONNECTIONS} kept connections; this machine has {cores} cores, of which the generator takes one when it can:\n\n{}",
            report::table(&head, &rows)
        ),
        json: json!({ "cores": cores, "connections": CONNECTIONS, "rounds": rounds, "by_workers": figures }),
    }
}

/// Microseconds of processor time a request, and requests a second.
fn round(server: &Server, quick: bool) -> (f64, f64) {
    let load = Load::kept(Ask::get("/").answered_with(11), CONNECTIONS).start(server.address);
    std::thread::sleep(Duration::from_millis(300));
    let (began, answered, spent) = (Instant::now(), load.answered(), server.spent());
    std::thread::sleep(Duration::from_millis(if quick { 300 } else { 1000 }));
    let (answered, spent) = (load.answered() - answered, server.spent().since(&spent));
    let lasted = began.elapsed();
    load.stop().expect_all_answered();
    // None at all would be a machine that did not run us.
    let answered = answered.max(1) as f64;
    (
        spent.as_secs_f64() * 1e6 / answered,
        answered / lasted.as_secs_f64(),
    )
}
