//! A plugin of 50 MB: each step of its deploys, what the host holds of it, and what requests
//! notice.

use std::{collections::BTreeMap, fs, time::Duration};

use handover_tests::{
    bench::{
        builds::{self, Builds},
        contender::HandoverHost,
        figures::{Spread, percentile, thousands},
        generate::{Ask, Load},
        operation::Control,
        report,
        server::{Footprint, free_address},
    },
    elf,
};
use serde_json::json;

use super::Section;

const WORKERS: usize = 2;

pub(super) fn run(builds: &Builds, quick: bool) -> Section {
    let swaps: u32 = if quick { 3 } else { 15 };
    let mut bytes = fs::read(builds::build(
        "large",
        "liblarge.so",
        builds::Profile::Release,
    ))
    .expect("it was just built");
    let mut host = HandoverHost::new(builds, WORKERS).with(
        "[app.large]\nroutes = [\"/\"]\nkeep_artifacts = 2\n",
        vec![("large.so".to_owned(), bytes.clone())],
    );
    let server = host.start(free_address(), None);
    let control = Control::of(&server);
    let before = server.footprint();
    let mut load = Load::kept(Ask::get("/"), 16);
    load.pause = Duration::from_millis(2);
    load.samples = true;
    let load = load.start(server.address);
    let mut steps = BTreeMap::<String, Vec<f64>>::new();
    for n in 1..=swaps {
        elf::set_version(&mut bytes, &format!("1.0.{n}"));
        let told = control
            .deploy(&bytes)
            .unwrap_or_else(|text| panic!("a swap did not end well: {text}"));
        for step in told {
            let took = step.took.as_secs_f64() * 1e3;
            steps.entry(step.name).or_default().push(took);
        }
    }
    let tally = load.stop();
    control.until(|status| {
        status["apps"][0]["generations"]
            .as_array()
            .is_some_and(|all| all.len() == 1)
    });
    let after = server.footprint();
    let mut latencies: Vec<_> = tally.samples.iter().map(|sample| sample.took).collect();
    latencies.sort_unstable();
    let order = ["store", "preflight", "load", "start", "cutover"];
    let steps: Vec<_> = order
        .into_iter()
        .filter_map(|name| Some((name, Spread::of(steps.remove(name)?))))
        .collect();
    let rows: Vec<_> = steps
        .iter()
        .map(|(name, spread)| vec![(*name).to_owned(), spread.text(2)])
        .collect();
    let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
    let held = |held: Footprint| {
        format!(
            "{:.0} MiB resident and {:.0} MiB in copies of libraries",
            mib(held.resident),
            mib(held.copies)
        )
    };
    let shares =
        [0.5, 0.99, 0.999, 1.0].map(|share| f64::from(percentile(&latencies, share)) / 1e3);
    let text = format!(
        "**A plugin of {:.0} MB**, swapped {swaps} times for one never seen before, under {} requests of which **{} were lost** (p50 {:.2} ms, \
         p99 {:.2}, p99.9 {:.2}, longest {:.2}):\n\n{}\nThe host holds {} with the first, {} with the last.\n",
        bytes.len() as f64 / 1e6,
        thousands(tally.answered as f64),
        tally.lost(),
        shares[0],
        shares[1],
        shares[2],
        shares[3],
        report::table(&["step", "ms, median (lowest–highest)"], &rows),
        held(before),
        held(after),
    );
    let footprint = |held: Footprint| json!({ "resident": held.resident, "anonymous": held.anonymous, "copies": held.copies });
    Section {
        text,
        json: json!({
            "artifact_bytes": bytes.len(),
            "swaps": swaps,
            "steps_ms": steps.iter().map(|(name, spread)| ((*name).to_owned(), spread.json())).collect::<serde_json::Map<_, _>>(),
            "requests": tally.answered,
            "lost": tally.lost(),
            "latency_ms": { "p50": shares[0], "p99": shares[1], "p999": shares[2], "longest": shares[3] },
            "before": footprint(before),
            "after": footprint(after),
        }),
    }
}
