//! What a swap costs: from the rename of the file to the first answer of the new version, what
//! requests notice, and storms of swaps.
//!
//! ```text
//! cargo bench -p handover-tests --bench swap             # all, about 10 minutes; writes docs/benchmarks
//! cargo bench -p handover-tests --bench swap -- --quick   # the same with fewer swaps; writes nothing
//! ```
//!
//! Every swap is to an artifact that the host has never seen, so every one is checked in a child
//! process.
//!
//! What requests notice is measured by a probe: 4 connections that ask with a pause of a
//! millisecond, on a thread that goes before others, beside the load. So a wait that it sees is one
//! that the server made, or the machine that it shares with the load; what of it comes from the
//! swap is told by the quiet windows of the same run, which are as long.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use handover_tests::{
    bench::{
        self,
        builds::{Builds, Profile},
        contender::HandoverHost,
        figures::{Spread, percentile, rounded, thousands},
        generate::{Ask, Load, Running, Sample, Tally},
        operation::{Control, Step},
        report,
        server::{Footprint, Server, free_address},
    },
    elf,
};
use serde_json::{Value, json};

/// Workers of the host.
const WORKERS: usize = 2;

/// Connections that are all the load that the machine can take.
const FULL: usize = 32;

/// Swaps before anything is compared: the first ones warm up what every later one uses.
const WARM: u64 = 5;

/// How many swaps are under way in a storm: the next ones are read while one is checked.
const IN_FLIGHT: usize = 3;

/// How long after the rename requests count as those around a swap; as long again is quiet.
const AROUND: Duration = Duration::from_secs(1);

/// How long after the first new answer a wait still counts as one because of the swap: the old code
/// leaves then.
const LEAVING: Duration = Duration::from_millis(50);

/// The steps of a deploy that follow each other, in their order.
const STEPS: [&str; 7] = [
    "notice",
    "store",
    "trust",
    "preflight",
    "load",
    "start",
    "cutover",
];

/// How much is asked beside the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    /// Nothing.
    Alone,
    /// About a fifth of what the machine can.
    Fifth,
    /// As fast as [`FULL`] connections are answered.
    Full,
}

/// Makes artifacts that no host has seen, and that greet with `1` and `2` in turn.
struct Artifacts {
    built: [Vec<u8>; 2],
    next: u64,
}

impl Artifacts {
    fn new(builds: &Builds) -> Self {
        let read = |path| fs::read(path).expect("it was just built");
        Self {
            built: [read(&builds.hello[0]), read(&builds.hello[1])],
            next: 1,
        }
    }

    /// One more, and the byte that its greeting is known by. The host has version 1.0.0 first.
    fn next(&mut self) -> (Vec<u8>, u8) {
        let n = self.next;
        self.next += 1;
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

/// Swaps by the drop folder beside a load.
struct Dropped {
    level: Level,
    swaps: u64,
    /// Requests a second, the probe's included.
    rate: f64,
    first_answer: Spread,
    /// Each step, and what is left of the time until the first answer: the kernel's event, tasks
    /// that wait for a turn, the next request.
    steps: Vec<(String, Spread)>,
    around: Latencies,
    quiet: Latencies,
    /// The longest wait of a request from the rename until the old code has left, in milliseconds.
    longest: Spread,
    /// The longest in quiet windows of the same length.
    longest_quiet: Spread,
    answered: u64,
    lost: u64,
    closed: u64,
    before: Footprint,
    after: Footprint,
}

/// Swaps at a rate, by the control socket.
struct Storm {
    wanted: u32,
    /// Swaps a second that came to be.
    rate: Spread,
    /// Answers a second against those of the quiet windows before and after.
    ratio: Spread,
    stormy: Latencies,
    quiet: Latencies,
    /// Processor time that a swap took, in milliseconds: host and children.
    spent: f64,
    swaps: u64,
    answered: u64,
    lost: u64,
    closed: u64,
}

fn main() {
    if !bench::asked_for(&["--quick"]) {
        return;
    }
    let quick = bench::flag("--quick");
    let builds = Builds::new(Profile::Dist);
    let mut artifacts = Artifacts::new(&builds);
    let server = HandoverHost::new(&builds, WORKERS).start(free_address(), None);
    let control = Control::of(&server);
    let full = saturation(&server);
    println!("full load: {} requests a second", thousands(full));

    // The operation of the first file, which was there when the host started.
    let mut number = 1;
    operation(&control, &mut number);
    let swaps = if quick { 6 } else { 40 };
    let dropped = [Level::Alone, Level::Fifth, Level::Full].map(|level| {
        let dropped = drops(
            &server,
            &control,
            &mut artifacts,
            &mut number,
            (level, full),
            swaps,
        );
        println!("{}", dropped.text(full));
        dropped
    });
    let (rounds, lasts) = if quick { (1, 2) } else { (8, 4) };
    let storms = [1, 10, 50].map(|rate| {
        let lasts = Duration::from_secs(lasts);
        let storm = storm(&server, &control, &mut artifacts, rate, rounds, lasts);
        println!("{}", storm_tables(&[&storm]));
        storm
    });
    let end = settled(&server, &control);
    println!("at the end: {}", footprint(end));
    if !quick {
        let text = dropped
            .iter()
            .map(|dropped| dropped.text(full) + "\n")
            .collect::<String>();
        let text = format!(
            "{text}**Storms**, by the control socket, under full load, against windows of {lasts} seconds before and after each:\n\n{}\n\
             After all storms the host holds {}.\n",
            storm_tables(&storms.iter().collect::<Vec<_>>()),
            footprint(end)
        );
        let value = json!({
            "workers": WORKERS,
            "full_load_per_second": rounded(full),
            "drops": dropped.iter().map(Dropped::json).collect::<Vec<_>>(),
            "storms": storms.iter().map(Storm::json).collect::<Vec<_>>(),
            "footprint_after_storms": footprint_json(end),
        });
        report::write("swap", value, &[("swap", text)]);
    }
}

/// Answers a second at full load.
fn saturation(server: &Server) -> f64 {
    let load = Load::kept(Ask::get("/"), FULL).start(server.address);
    std::thread::sleep(Duration::from_secs(1));
    let (began, before) = (Instant::now(), load.answered());
    std::thread::sleep(Duration::from_secs(3));
    let rate = (load.answered() - before) as f64 / began.elapsed().as_secs_f64();
    load.stop();
    rate
}

/// Asks all the time, and takes little.
fn probe(server: &Server) -> Running {
    let mut load = Load::kept(Ask::get("/"), 4);
    load.pause = Duration::from_millis(1);
    load.samples = true;
    load.urgent = true;
    load.start(server.address)
}

impl Level {
    fn load(self, full: f64) -> Option<Load> {
        let pause = Duration::from_millis(2);
        match self {
            Self::Alone => None,
            Self::Fifth => {
                // A pause takes the next tick of the generator's clock too.
                let each = 1.0 / (pause.as_secs_f64() + 0.0007);
                let number = (full / 5.0 / each).round().max(1.0);
                let mut load = Load::kept(Ask::get("/"), number as usize);
                load.pause = pause;
                Some(load)
            }
            Self::Full => Some(Load::kept(Ask::get("/"), FULL)),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Alone => "nothing but the probe",
            Self::Fifth => "a moderate load",
            Self::Full => "full load",
        }
    }
}

/// Swaps by renaming a file into the drop folder.
fn drops(
    server: &Server,
    control: &Control,
    artifacts: &mut Artifacts,
    number: &mut u64,
    (level, full): (Level, f64),
    swaps: u64,
) -> Dropped {
    let load = level.load(full).map(|load| load.start(server.address));
    let probe = probe(server);
    let mut done = Vec::new();
    let (mut before, mut began) = (None, Instant::now());
    let answered =
        |probe: &Running| probe.answered() + load.as_ref().map_or(0, |load| load.answered());
    let mut answered_before = 0;
    for n in 0..WARM + swaps {
        if n == WARM {
            before = Some(settled(server, control));
            (began, answered_before) = (Instant::now(), answered(&probe));
        }
        let (bytes, mark) = artifacts.next();
        let waiting = server.dir().join("arriving.so");
        fs::write(&waiting, bytes).expect("the folder is ours");
        // What the kernel has to do for that write is not the swap's.
        std::thread::sleep(Duration::from_millis(200));
        let renamed = Instant::now();
        fs::rename(waiting, server.dir().join("plugins/hello.so")).expect("the folder is ours");
        // Nobody asks the host how it goes meanwhile.
        std::thread::sleep(2 * AROUND);
        let steps = operation(control, number);
        if n >= WARM {
            done.push(Swap {
                renamed,
                mark,
                steps,
            });
        }
    }
    let rate = (answered(&probe) - answered_before) as f64 / began.elapsed().as_secs_f64();
    let after = settled(server, control);
    let tallies = [Some(probe.stop()), load.map(Running::stop)];
    let mut dropped = dropped(&done, level, tallies.into_iter().flatten().collect());
    (dropped.rate, dropped.after) = (rate, after);
    dropped.before = before.unwrap_or(after);
    dropped
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
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn dropped(swaps: &[Swap], level: Level, tallies: Vec<Tally>) -> Dropped {
    let sum = |count: fn(&Tally) -> u64| tallies.iter().map(count).sum();
    let (answered, lost, closed) = (
        sum(|tally| tally.answered),
        sum(Tally::lost),
        sum(|tally| tally.closed),
    );
    for tally in &tallies {
        if let Some(fault) = &tally.first_fault {
            println!("lost: {fault}");
        }
    }
    let mut samples: Vec<Sample> = tallies.into_iter().flat_map(|t| t.samples).collect();
    samples.sort_by_key(|sample| sample.at);
    let mut first_answers = Vec::new();
    let mut steps = BTreeMap::<String, Vec<f64>>::new();
    let (mut around, mut quiet) = (Vec::new(), Vec::new());
    let (mut longest, mut longest_quiet) = (Vec::new(), Vec::new());
    for swap in swaps {
        let within = |from: Instant, to: Instant| {
            let begin = samples.partition_point(|sample| sample.at < from);
            let end = samples.partition_point(|sample| sample.at < to);
            &samples[begin..end.max(begin)]
        };
        let ends = swap.renamed + 2 * AROUND;
        let first = within(swap.renamed, ends)
            .iter()
            .find(|sample| sample.mark == swap.mark);
        let first = first.expect("the new version has answered").at;
        let whole = milliseconds(first - swap.renamed);
        first_answers.push(whole);
        for step in &swap.steps {
            if STEPS.contains(&step.name.as_str()) {
                let took = milliseconds(step.took);
                steps.entry(step.name.clone()).or_default().push(took);
            }
        }
        let told: f64 = swap
            .steps
            .iter()
            .filter(|step| STEPS.contains(&step.name.as_str()))
            .map(|step| milliseconds(step.took))
            .sum();
        let rest = steps.entry("else".to_owned()).or_default();
        rest.push(whole - told);
        let took = |window: &[Sample]| window.iter().map(|sample| sample.took).collect::<Vec<_>>();
        around.extend(took(within(swap.renamed, swap.renamed + AROUND)));
        quiet.extend(took(within(swap.renamed + AROUND, ends)));
        // A window of the swap itself, and as many of the same length as fit into the quiet second.
        let most = |window: &[Sample]| {
            let most = window.iter().map(|sample| sample.took).max();
            f64::from(most.unwrap_or_default()) / 1e3
        };
        let window = (first - swap.renamed + LEAVING).min(AROUND);
        longest.push(most(within(swap.renamed, swap.renamed + window)));
        let mut from = swap.renamed + AROUND;
        while from + window <= ends {
            longest_quiet.push(most(within(from, from + window)));
            from += window;
        }
    }
    let order = STEPS.into_iter().chain(["else"]);
    let sorted = |mut list: Vec<u32>| {
        list.sort_unstable();
        list
    };
    let nothing = Footprint::default();
    Dropped {
        level,
        swaps: swaps.len() as u64,
        rate: 0.0,
        first_answer: Spread::of(first_answers),
        steps: order
            .filter_map(|name| Some((name.to_owned(), Spread::of(steps.remove(name)?))))
            .collect(),
        around: sorted(around),
        quiet: sorted(quiet),
        longest: Spread::of(longest),
        longest_quiet: Spread::of(longest_quiet),
        answered,
        lost,
        closed,
        before: nothing,
        after: nothing,
    }
}

/// Swaps at a rate, under all the load that 32 connections can make.
fn storm(
    server: &Server,
    control: &Control,
    artifacts: &mut Artifacts,
    wanted: u32,
    rounds: usize,
    lasts: Duration,
) -> Storm {
    let load = Load::kept(Ask::get("/"), FULL).start(server.address);
    let probe = probe(server);
    std::thread::sleep(Duration::from_millis(500));
    /// A window of time, and what was in it.
    struct Window {
        from: Instant,
        to: Instant,
        per_second: f64,
        spent: Duration,
    }
    let measured = |meanwhile: &mut dyn FnMut(Instant)| {
        let (from, answered, spent) = (Instant::now(), load.answered(), server.spent_with_ended());
        meanwhile(from);
        std::thread::sleep((from + lasts).saturating_duration_since(Instant::now()));
        let to = Instant::now();
        Window {
            from,
            to,
            per_second: (load.answered() - answered) as f64 / (to - from).as_secs_f64(),
            spent: server.spent_with_ended().saturating_sub(spent),
        }
    };
    let (mut rates, mut ratios, mut swaps) = (Vec::new(), Vec::new(), 0);
    let (mut quiets, mut storms) = (vec![measured(&mut |_| {})], Vec::new());
    for _ in 0..rounds {
        let here = AtomicU32::new(0);
        storms.push(measured(&mut |began| {
            let (artifacts, turn) = (Mutex::new(&mut *artifacts), AtomicU32::new(0));
            std::thread::scope(|scope| {
                for _ in 0..IN_FLIGHT {
                    scope.spawn(|| {
                        let control = Control::of(server);
                        loop {
                            let turn = turn.fetch_add(1, Ordering::Relaxed);
                            let due = began + Duration::from_secs(turn.into()) / wanted;
                            if due.max(Instant::now()) >= began + lasts {
                                return;
                            }
                            std::thread::sleep(due.saturating_duration_since(Instant::now()));
                            let (bytes, _) = artifacts.lock().expect("nobody panics").next();
                            control
                                .deploy(&bytes)
                                .unwrap_or_else(|text| panic!("a swap did not end well: {text}"));
                            here.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
            });
        }));
        let here = here.into_inner();
        // What the last swaps leave behind is not the next quiet window's.
        settled(server, control);
        quiets.push(measured(&mut |_| {}));
        let (storm, quiet) = (&storms[storms.len() - 1], &quiets[quiets.len() - 2..]);
        rates.push(f64::from(here) / (storm.to - storm.from).as_secs_f64());
        ratios.push(storm.per_second / f64::midpoint(quiet[0].per_second, quiet[1].per_second));
        swaps += u64::from(here);
    }
    let tallies = [load.stop(), probe.stop()];
    for tally in &tallies {
        if let Some(fault) = &tally.first_fault {
            println!("lost: {fault}");
        }
    }
    let within = |windows: &[Window]| {
        let samples = tallies[1].samples.iter();
        let inside = samples.filter(|sample| {
            windows
                .iter()
                .any(|window| sample.at >= window.from && sample.at < window.to)
        });
        let mut list: Latencies = inside.map(|sample| sample.took).collect();
        list.sort_unstable();
        list
    };
    // The load takes of the processor what the swaps leave, so what a swap takes is what an answer
    // takes more, all together.
    let each = |windows: &[Window]| {
        let spent: f64 = windows.iter().map(|w| w.spent.as_secs_f64()).sum();
        let answers: f64 = windows
            .iter()
            .map(|w| w.per_second * (w.to - w.from).as_secs_f64())
            .sum();
        (spent, answers)
    };
    let ((busy, answers), (calm, calm_answers)) = (each(&storms), each(&quiets));
    Storm {
        wanted,
        rate: Spread::of(rates),
        ratio: Spread::of(ratios),
        stormy: within(&storms),
        quiet: within(&quiets),
        spent: 1e3 * (busy - calm / calm_answers * answers) / swaps as f64,
        swaps,
        answered: tallies.iter().map(|tally| tally.answered).sum(),
        lost: tallies.iter().map(Tally::lost).sum(),
        closed: tallies.iter().map(|tally| tally.closed).sum(),
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

fn latency_row(name: String, list: &Latencies) -> Vec<String> {
    let mut cells = vec![name, thousands(list.len() as f64)];
    cells.extend(percentiles(list).map(|value| format!("{value:.3}")));
    cells
}

fn latency_json(list: &Latencies) -> Value {
    let [p50, p99, p999, longest] = percentiles(list);
    json!({ "requests": list.len(), "p50_ms": p50, "p99_ms": p99, "p999_ms": p999, "longest_ms": longest })
}

const LATENCIES: [&str; 6] = [
    "the probe's requests in",
    "how many",
    "p50 ms",
    "p99",
    "p99.9",
    "longest",
];

impl Dropped {
    fn text(&self, full: f64) -> String {
        let whole = self.first_answer.median;
        let mut rows = vec![vec![
            "**rename to first new answer**".to_owned(),
            self.first_answer.text(2),
            "100 %".to_owned(),
        ]];
        rows.extend(self.steps.iter().map(|(name, spread)| {
            let share = format!("{:.0} %", 100.0 * spread.median / whole);
            let name = if name == "else" {
                "in between, and the next request"
            } else {
                name
            };
            vec![name.to_owned(), spread.text(2), share]
        }));
        let steps = report::table(&["", "ms, median (lowest–highest)", "share"], &rows);
        let latencies = report::table(
            &LATENCIES,
            &[
                latency_row(
                    "the second that begins with the rename".to_owned(),
                    &self.around,
                ),
                latency_row("the second after that, quiet".to_owned(), &self.quiet),
            ],
        );
        format!(
            "**With {}** ({} requests a second, {:.0} % of full): {} swaps through the drop folder, {} answers, **{} lost**, \
             {} connections closed by the host.\n\n{steps}\n{latencies}\n\
             The longest wait of a request between the rename and {} ms after the first new answer: {} ms, median over the swaps \
             (lowest–highest); in quiet windows of the same length: {} ms. The host holds {} before and {} after.\n",
            self.level.name(),
            thousands(self.rate),
            100.0 * self.rate / full,
            self.swaps,
            thousands(self.answered as f64),
            self.lost,
            self.closed,
            LEAVING.as_millis(),
            self.longest.text(3),
            self.longest_quiet.text(3),
            footprint(self.before),
            footprint(self.after)
        )
    }

    fn json(&self) -> Value {
        json!({
            "load": self.level.name(),
            "requests_per_second": rounded(self.rate),
            "swaps": self.swaps,
            "answered": self.answered,
            "lost": self.lost,
            "closed": self.closed,
            "rename_to_first_answer_ms": self.first_answer.json(),
            "steps_ms": self.steps.iter().map(|(name, spread)| (name.clone(), spread.json())).collect::<serde_json::Map<_, _>>(),
            "around_a_swap": latency_json(&self.around),
            "quiet": latency_json(&self.quiet),
            "longest_wait_at_a_swap_ms": self.longest.json(),
            "longest_wait_in_as_long_quiet_ms": self.longest_quiet.json(),
            "footprint_before": footprint_json(self.before),
            "footprint_after": footprint_json(self.after),
        })
    }
}

fn storm_tables(storms: &[&Storm]) -> String {
    let rows = storms
        .iter()
        .map(|storm| {
            vec![
                storm.wanted.to_string(),
                storm.rate.text(1),
                storm.ratio.text(3),
                format!("{:.1}", storm.spent),
                storm.swaps.to_string(),
                thousands(storm.answered as f64),
                format!("**{}**", storm.lost),
                storm.closed.to_string(),
            ]
        })
        .collect::<Vec<_>>();
    let table = report::table(
        &[
            "swaps a second, wanted",
            "had",
            "throughput to that of none",
            "processor time of a swap, ms",
            "swaps",
            "answers",
            "lost",
            "connections closed",
        ],
        &rows,
    );
    let rows = storms
        .iter()
        .flat_map(|storm| {
            [
                latency_row(format!("{} swaps a second", storm.wanted), &storm.stormy),
                latency_row("none, in between".to_owned(), &storm.quiet),
            ]
        })
        .collect::<Vec<_>>();
    format!("{table}\n{}", report::table(&LATENCIES, &rows))
}

impl Storm {
    fn json(&self) -> Value {
        json!({
            "wanted_per_second": self.wanted,
            "per_second": self.rate.json(),
            "throughput_to_none": self.ratio.json(),
            "processor_ms_per_swap": rounded(self.spent),
            "swaps": self.swaps,
            "answered": self.answered,
            "lost": self.lost,
            "closed": self.closed,
            "during_storms": latency_json(&self.stormy),
            "in_between": latency_json(&self.quiet),
        })
    }
}
