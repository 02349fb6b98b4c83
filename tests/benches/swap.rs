//! What a swap costs: from the rename of the file to the first answer of the new version, what requests notice, and storms of swaps.
//!
//! ```text
//! cargo bench -p handover-tests --bench swap             # all, writes docs/benchmarks
//! cargo bench -p handover-tests --bench swap -- --quick   # the same with fewer swaps; writes nothing
//! ```
//!
//! Every swap is to an artifact that the host has never seen, so every one is checked in a child process.

use std::{
    collections::BTreeMap,
    fs,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use handover_tests::{
    bench::{
        self,
        builds::Builds,
        contender::HandoverHost,
        figures::{Spread, percentile, rounded, thousands},
        generate::{Ask, Load, Sample, Tally},
        operation::{Control, Step},
        report,
        server::{Footprint, Server, free_address},
    },
    elf,
};
use serde_json::{Value, json};

/// Workers of the host.
const WORKERS: usize = 2;

/// Swaps before anything is compared: the first ones warm up what every later one uses.
const WARM: u64 = 5;

/// How long after the rename requests count as those around a swap; as long again is quiet.
const AROUND: Duration = Duration::from_secs(1);

/// How far from the first new answer a request counts as one of the switch itself.
const SWITCH: Duration = Duration::from_millis(5);

/// The steps of a deploy, in their order.
const STEPS: [&str; 5] = ["store", "preflight", "load", "start", "cutover"];

/// Makes artifacts that no host has seen, and that greet with `1` and `2` in turn.
struct Artifacts {
    built: [Vec<u8>; 2],
    next: AtomicU64,
}

impl Artifacts {
    fn new(builds: &Builds) -> Self {
        let read = |path| fs::read(path).expect("it was just built");
        Self {
            built: [read(&builds.hello[0]), read(&builds.hello[1])],
            next: AtomicU64::new(1),
        }
    }

    /// One more, and the byte that its greeting is known by. The host has version 1.0.0 first.
    fn next(&self) -> (Vec<u8>, u8) {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let major = n % 2;
        let mut bytes = self.built[usize::from(major == 1)].clone();
        elf::set_version(&mut bytes, &format!("{}.0.{n}", major + 1));
        (bytes, if major == 1 { b'2' } else { b'1' })
    }
}

/// One swap by the drop folder.
struct Swap {
    renamed: Instant,
    mark: u8,
    steps: Vec<Step>,
}

/// What requests took, in microseconds, sorted.
type Latencies = Vec<u32>;

struct Dropped {
    first_answer: Spread,
    /// Each step, and what is left of the time until the first answer: noticing, reading, waiting for a turn.
    steps: Vec<(String, Spread)>,
    around: Latencies,
    quiet: Latencies,
    switch: Latencies,
    lost: u64,
    closed: u64,
    answered: u64,
    before: Footprint,
    after: Footprint,
    swaps: u64,
}

struct Storm {
    wanted: u64,
    /// Swaps a second that came to be.
    rate: Spread,
    /// Answers a second against those of the quiet seconds before.
    ratio: Spread,
    swaps: u64,
    answered: u64,
    lost: u64,
    closed: u64,
}

fn main() {
    if !bench::asked_for() {
        return;
    }
    let quick = bench::flag("--quick");
    let builds = Builds::new();
    let artifacts = Artifacts::new(&builds);
    let server = HandoverHost::new(&builds, WORKERS).start(free_address(), None);
    let control = Control::of(&server);

    let dropped = drops(&server, &control, &artifacts, if quick { 5 } else { 40 });
    println!("{}", dropped.text());
    let (rounds, lasts) = if quick { (1, 2) } else { (5, 3) };
    let storms = [1, 10, 50].map(|rate| {
        let storm = storm(
            &server,
            &control,
            &artifacts,
            rate,
            rounds,
            Duration::from_secs(lasts),
        );
        println!("{}", storm_table(&[&storm]));
        storm
    });
    let end = server.footprint();
    println!("at the end: {}", footprint(end));
    if !quick {
        let text = format!(
            "{}\n{}\nAfter all storms the host holds {}.\n",
            dropped.text(),
            storm_table(&storms.iter().collect::<Vec<_>>()),
            footprint(end)
        );
        let value = json!({
            "workers": WORKERS,
            "drop": dropped.json(),
            "storms": storms.iter().map(Storm::json).collect::<Vec<_>>(),
            "footprint_after_storms": footprint_json(end),
        });
        report::write("swap", value, &[("swap", text)]);
    }
}

/// Swaps by renaming a file into the drop folder, under a load with air to breathe: what is to be seen is waiting, not queueing.
fn drops(server: &Server, control: &Control, artifacts: &Artifacts, swaps: u64) -> Dropped {
    let mut load = Load::kept(Ask::get("/"), 16);
    load.pause = Duration::from_millis(2);
    load.samples = true;
    let load = load.start(server.address);
    let mut number = 1;
    // The operation of the first file, which was there when the host started.
    operation(control, &mut number);
    let mut done = Vec::new();
    let mut before = None;
    for n in 0..WARM + swaps {
        if n == WARM {
            before = Some(settled(server, control));
        }
        let (bytes, mark) = artifacts.next();
        let waiting = server.dir().join("arriving.so");
        fs::write(&waiting, bytes).expect("the folder is ours");
        let renamed = Instant::now();
        fs::rename(waiting, server.dir().join("plugins/hello.so")).expect("the folder is ours");
        let steps = operation(control, &mut number);
        std::thread::sleep((renamed + 2 * AROUND).saturating_duration_since(Instant::now()));
        if n >= WARM {
            done.push(Swap {
                renamed,
                mark,
                steps,
            });
        }
    }
    let after = settled(server, control);
    let tally = load.stop();
    dropped(&done, tally, before.unwrap_or(after), after)
}

/// Waits for the end of the next operation.
fn operation(control: &Control, number: &mut u64) -> Vec<Step> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(ended) = control.operation(*number) {
            *number += 1;
            return ended.unwrap_or_else(|text| panic!("a swap did not end well: {text}"));
        }
        assert!(Instant::now() < deadline, "operation {number} never came");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn dropped(swaps: &[Swap], mut tally: Tally, before: Footprint, after: Footprint) -> Dropped {
    tally.samples.sort_by_key(|sample| sample.at);
    let samples = &tally.samples;
    let mut first_answers = Vec::new();
    let mut steps = BTreeMap::<String, Vec<f64>>::new();
    let (mut around, mut quiet, mut switch) = (Vec::new(), Vec::new(), Vec::new());
    for swap in swaps {
        let from = samples.partition_point(|sample| sample.at < swap.renamed);
        let since = &samples[from..];
        let first = since.iter().find(|sample| sample.mark == swap.mark);
        let first = first.expect("the new version has answered").at;
        let whole = milliseconds(first - swap.renamed);
        first_answers.push(whole);
        for step in &swap.steps {
            steps
                .entry(step.name.clone())
                .or_default()
                .push(milliseconds(step.took));
        }
        let told: f64 = swap.steps.iter().map(|step| milliseconds(step.took)).sum();
        steps
            .entry("else".to_owned())
            .or_default()
            .push(whole - told);
        for sample in since
            .iter()
            .take_while(|sample| sample.at < swap.renamed + 2 * AROUND)
        {
            let list = if sample.at < swap.renamed + AROUND {
                &mut around
            } else {
                &mut quiet
            };
            list.push(sample.took);
        }
        let near = |sample: &&Sample| sample.at > first - SWITCH && sample.at < first + SWITCH;
        switch.extend(samples.iter().filter(near).map(|sample| sample.took));
    }
    let order = STEPS.into_iter().chain(["else"]);
    let sorted = |mut list: Vec<u32>| {
        list.sort_unstable();
        list
    };
    Dropped {
        first_answer: Spread::of(first_answers),
        steps: order
            .filter_map(|name| Some((name.to_owned(), Spread::of(steps.remove(name)?))))
            .collect(),
        around: sorted(around),
        quiet: sorted(quiet),
        switch: sorted(switch),
        lost: tally.lost(),
        closed: tally.closed,
        answered: tally.answered,
        before,
        after,
        swaps: swaps.len() as u64,
    }
}

/// Swaps at a rate, under all the load that 32 connections can make.
fn storm(
    server: &Server,
    control: &Control,
    artifacts: &Artifacts,
    wanted: u64,
    rounds: usize,
    lasts: Duration,
) -> Storm {
    let load = Load::kept(Ask::get("/"), 32).start(server.address);
    std::thread::sleep(Duration::from_millis(500));
    let measured = |mut meanwhile: Box<dyn FnMut(Instant) + '_>| {
        let (began, answered) = (Instant::now(), load.answered());
        meanwhile(began);
        std::thread::sleep((began + lasts).saturating_duration_since(Instant::now()));
        (load.answered() - answered) as f64 / began.elapsed().as_secs_f64()
    };
    let (mut rates, mut ratios, mut swaps) = (Vec::new(), Vec::new(), 0);
    for _ in 0..rounds {
        let quiet = measured(Box::new(|_| {}));
        let mut here = 0u32;
        let busy = measured(Box::new(|began| {
            while began.elapsed() < lasts {
                let (bytes, _) = artifacts.next();
                control
                    .deploy(&bytes)
                    .unwrap_or_else(|text| panic!("a swap did not end well: {text}"));
                here += 1;
                let next =
                    began + Duration::from_secs(here.into()) / u32::try_from(wanted).unwrap_or(1);
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        }));
        rates.push(f64::from(here) / lasts.as_secs_f64());
        ratios.push(busy / quiet);
        swaps += u64::from(here);
    }
    let tally = load.stop();
    if let Some(fault) = &tally.first_fault {
        println!("lost: {fault}");
    }
    Storm {
        wanted,
        rate: Spread::of(rates),
        ratio: Spread::of(ratios),
        swaps,
        answered: tally.answered,
        lost: tally.lost(),
        closed: tally.closed,
    }
}

/// What the host holds once all old generations are gone.
fn settled(server: &Server, control: &Control) -> Footprint {
    let deadline = Instant::now() + Duration::from_secs(20);
    while control.generations() > 1 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    server.footprint()
}

fn milliseconds(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

fn footprint(held: Footprint) -> String {
    format!(
        "{:.1} MiB resident, {} threads, {} descriptors, {} mappings",
        held.resident as f64 / 1_048_576.0,
        held.threads,
        held.descriptors,
        held.mappings
    )
}

fn footprint_json(held: Footprint) -> Value {
    json!({
        "resident": held.resident,
        "threads": held.threads,
        "descriptors": held.descriptors,
        "mappings": held.mappings,
    })
}

/// The percentiles that are told, in milliseconds.
fn percentiles(sorted: &Latencies) -> [f64; 4] {
    [0.5, 0.99, 0.999, 1.0].map(|share| f64::from(percentile(sorted, share)) / 1e3)
}

impl Dropped {
    fn text(&self) -> String {
        let whole = self.first_answer.median;
        let mut rows = vec![vec![
            "**rename to first new answer**".to_owned(),
            self.first_answer.text(2),
            "100 %".to_owned(),
        ]];
        rows.extend(self.steps.iter().map(|(name, spread)| {
            let share = format!("{:.0} %", 100.0 * spread.median / whole);
            let name = if name == "else" {
                "noticing, reading, waiting"
            } else {
                name
            };
            vec![name.to_owned(), spread.text(2), share]
        }));
        let steps = report::table(&["", "ms, median (lowest–highest)", "share"], &rows);
        let row = |name: &str, list: &Latencies| {
            let mut cells = vec![name.to_owned(), thousands(list.len() as f64)];
            cells.extend(percentiles(list).map(|value| format!("{value:.3}")));
            cells
        };
        let rows = [
            row("the second that begins with the rename", &self.around),
            row("the second after that, quiet", &self.quiet),
            row("5 ms before and after the first new answer", &self.switch),
        ];
        let latencies = report::table(
            &[
                "requests in",
                "how many",
                "p50 ms",
                "p99",
                "p99.9",
                "longest",
            ],
            &rows,
        );
        format!(
            "{} swaps through the drop folder, each to an artifact never seen before, under {} answers: **{} lost**, {} connections \
             closed by the host.\n\n{steps}\n{latencies}\nThe host holds {} before and {} after.\n",
            self.swaps,
            thousands(self.answered as f64),
            self.lost,
            self.closed,
            footprint(self.before),
            footprint(self.after)
        )
    }

    fn json(&self) -> Value {
        let latencies = |list: &Latencies| {
            let [p50, p99, p999, longest] = percentiles(list);
            json!({ "requests": list.len(), "p50_ms": p50, "p99_ms": p99, "p999_ms": p999, "longest_ms": longest })
        };
        json!({
            "swaps": self.swaps,
            "answered": self.answered,
            "lost": self.lost,
            "closed": self.closed,
            "rename_to_first_answer_ms": self.first_answer.json(),
            "steps_ms": self.steps.iter().map(|(name, spread)| (name.clone(), spread.json())).collect::<serde_json::Map<_, _>>(),
            "around_a_swap": latencies(&self.around),
            "quiet": latencies(&self.quiet),
            "at_the_switch": latencies(&self.switch),
            "footprint_before": footprint_json(self.before),
            "footprint_after": footprint_json(self.after),
        })
    }
}

fn storm_table(storms: &[&Storm]) -> String {
    let rows = storms
        .iter()
        .map(|storm| {
            vec![
                storm.wanted.to_string(),
                storm.rate.text(1),
                storm.ratio.text(3),
                storm.swaps.to_string(),
                thousands(storm.answered as f64),
                storm.lost.to_string(),
                storm.closed.to_string(),
            ]
        })
        .collect::<Vec<_>>();
    report::table(
        &[
            "swaps a second, wanted",
            "had",
            "throughput to that of the quiet seconds before",
            "swaps",
            "answers",
            "lost",
            "connections closed",
        ],
        &rows,
    )
}

impl Storm {
    fn json(&self) -> Value {
        json!({
            "wanted_per_second": self.wanted,
            "per_second": self.rate.json(),
            "throughput_to_quiet": self.ratio.json(),
            "swaps": self.swaps,
            "answered": self.answered,
            "lost": self.lost,
            "closed": self.closed,
            "closed_per_thousand_swaps": rounded(1000.0 * self.closed as f64 / self.swaps.max(1) as f64),
        })
    }
}
