//! What a request costs: processor time by the kernel's account, and instructions and allocations
//! by callgrind.
//!
//! ```text
//! cargo bench -p handover-tests --bench request             # all, writes docs/benchmarks
//! cargo bench -p handover-tests --bench request -- --quick  # the same with short rounds; writes nothing
//! cargo bench -p handover-tests --bench request -- --check  # counts against docs/benchmarks/limits.json, for CI
//! cargo bench -p handover-tests --bench request -- --bless  # the same, and writes limits.json
//! ```
//!
//! `--case NAME` for one case, `--no-count` and `--no-time` for one half, `--workers N` for more
//! than one worker thread.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use handover_tests::bench::{
    self,
    builds::{Builds, Profile},
    callgrind::{self, Cost, Lengths},
    contender::Contender,
    figures::{Spread, rounded, thousands},
    generate::{Ask, Load},
    limits::{Counted, Judged, Limits, Verdict},
    report,
    server::Server,
};
use serde_json::{Value, json};

/// Connections that are kept busy while time is taken.
const CONNECTIONS: usize = 32;

/// Connections that are kept busy while instructions are counted for the tables.
const COUNTED: usize = 10;

/// How often a case is counted before it is said to cost too much: large bodies come in as many
/// pieces as the kernel likes.
const ATTEMPTS: usize = 3;

/// What is asked.
struct Case {
    name: &'static str,
    what: &'static str,
    ask: Ask,
    h2: bool,
    /// Lines of the host's `[server]` section.
    settings: &'static str,
    /// Requests of the two runs under callgrind.
    lengths: Lengths,
    /// Those without the app take part.
    everyone: bool,
}

/// How long, how often.
#[derive(Clone, Copy)]
struct Pace {
    rounds: usize,
    warm: Duration,
    measure: Duration,
}

/// One contender's figures in one case, one entry a round.
#[derive(Default)]
struct Timed {
    /// Microseconds of processor time a request.
    processor: Vec<f64>,
    /// Requests a second.
    rate: Vec<f64>,
}

fn cases() -> Vec<Case> {
    let case = |name, what, ask, lengths| Case {
        name,
        what,
        ask,
        h2: false,
        settings: "",
        lengths,
        everyone: false,
    };
    let body = vec![b'.'; 100 * 1024];
    let order = r#"{"id":4711,"customer":"Ada Lovelace","lines":[{"article":"engine, analytical","pieces":1,"price":17000.5},{"article":"card, punched","pieces":500,"price":0.02}]}"#;
    vec![
        Case {
            everyone: true,
            ..case(
                "hello",
                "`GET /` with two headers, Host among them",
                Ask::get("/").answered_with(11),
                Lengths(1000, 6000),
            )
        },
        Case {
            settings: "version_header = true",
            ..case(
                "named",
                "`GET /` of a host without a configuration file, whose answers name their version",
                Ask::get("/").answered_with(11),
                Lengths(1000, 4000),
            )
        },
        case(
            "headers",
            "`GET /` with 20 headers beside Host",
            Ask::get("/").headers(20).answered_with(11),
            Lengths(1000, 4000),
        ),
        case(
            "page",
            "100 KiB down, a static",
            Ask::get("/page").answered_with(body.len()),
            Lengths(1000, 4000),
        ),
        case(
            "echo",
            "100 KiB up and down again",
            Ask::post("/echo", "application/octet-stream", body.clone()).answered_with(body.len()),
            Lengths(1000, 4000),
        ),
        case(
            "json",
            "a JSON order parsed and written again, 160 bytes",
            Ask::post("/json", "application/json", order).answered_with(order.len()),
            Lengths(1000, 4000),
        ),
        case(
            "events",
            "a stream of 100 server-sent events, each polled for",
            Ask::get("/events").answered_with(1200),
            Lengths(100, 400),
        ),
        Case {
            h2: true,
            ..case(
                "h2",
                "`GET /` on streams of one HTTP/2 connection",
                Ask::get("/").answered_with(11),
                Lengths(1000, 4000),
            )
        },
    ]
}

fn main() {
    if !bench::asked_for(&[
        "--quick",
        "--case NAME",
        "--workers NUMBER",
        "--no-time",
        "--no-count",
        "--check",
        "--bless",
    ]) {
        return;
    }
    let quick = bench::flag("--quick");
    let (check, bless) = (bench::flag("--check"), bench::flag("--bless"));
    if (check || bless) && !callgrind::is_there() {
        println!(
            "instructions are counted by valgrind, which is not installed (Debian: apt-get install valgrind)"
        );
        std::process::exit(1);
    }
    let cases = cases();
    let names = cases.iter().map(|case| case.name).collect::<Vec<_>>();
    let wanted = bench::one_of("--case", &names);
    // What is only compared with itself need not take so long to build.
    let builds = Builds::new(if check || bless {
        Profile::Release
    } else {
        Profile::Dist
    });
    let cases = cases
        .into_iter()
        .filter(|case| wanted.as_deref().is_none_or(|name| name == case.name))
        .collect::<Vec<_>>();
    if check || bless {
        return limits(&cases, &builds, bless);
    }
    let workers =
        bench::option("--workers").map_or(1, |text| text.parse().expect("a number of workers"));
    let pace = if quick {
        Pace {
            rounds: 3,
            warm: Duration::from_millis(200),
            measure: Duration::from_millis(500),
        }
    } else {
        Pace {
            rounds: 7,
            warm: Duration::from_millis(300),
            measure: Duration::from_secs(1),
        }
    };

    let mut results = Vec::new();
    for case in &cases {
        let timed = if bench::flag("--no-time") {
            BTreeMap::new()
        } else {
            time(case, &builds, workers, pace)
        };
        let counted = if bench::flag("--no-count") || !callgrind::is_there() {
            BTreeMap::new()
        } else {
            count(case, &builds)
        };
        let result = Outcome::new(case, &timed, &counted);
        println!("{}", result.text());
        results.push(result);
    }
    let whole =
        wanted.is_none() && !quick && !bench::flag("--no-time") && !bench::flag("--no-count");
    if whole && callgrind::is_there() {
        write(&results, workers, pace);
    }
}

/// All contenders that have the case, in turn, round by round: what disturbs the machine disturbs
/// all of them.
fn time(case: &Case, builds: &Builds, workers: usize, pace: Pace) -> BTreeMap<&'static str, Timed> {
    let servers = contenders(case)
        .map(|contender| {
            let server = contender.start_with(builds, workers, None, case.settings);
            (contender.name(), server)
        })
        .collect::<Vec<_>>();
    let mut timed = BTreeMap::<_, Timed>::new();
    for _ in 0..pace.rounds {
        for (name, server) in &servers {
            let (processor, rate) = round(case, server, pace);
            let entry = timed.entry(*name).or_default();
            entry.processor.push(processor);
            entry.rate.push(rate);
        }
    }
    timed
}

/// Microseconds of processor time a request, and requests a second.
fn round(case: &Case, server: &Server, pace: Pace) -> (f64, f64) {
    let mut load = Load::kept(case.ask.clone(), CONNECTIONS);
    load.h2 = case.h2;
    let load = load.start(server.address);
    std::thread::sleep(pace.warm);
    let (began, answered, spent) = (std::time::Instant::now(), load.answered(), server.spent());
    std::thread::sleep(pace.measure);
    let (answered, spent) = (load.answered() - answered, server.spent().since(&spent));
    let lasted = began.elapsed();
    load.stop().expect_all_answered();
    let answered = answered as f64;
    (
        spent.as_secs_f64() * 1e6 / answered,
        answered / lasted.as_secs_f64(),
    )
}

/// Instructions and allocations: one worker, so that nothing depends on who runs when.
fn count(case: &Case, builds: &Builds) -> BTreeMap<&'static str, Cost> {
    contenders(case)
        .filter(|contender| {
            matches!(
                contender,
                Contender::Handover | Contender::Twin | Contender::Bare
            )
        })
        .map(|contender| (contender.name(), cost(case, contender, COUNTED, builds)))
        .collect()
}

fn cost(case: &Case, contender: Contender, connections: usize, builds: &Builds) -> Cost {
    callgrind::count(&case.ask, case.h2, connections, case.lengths, |out| {
        contender.start_with(builds, 1, Some(out), case.settings)
    })
}

fn contenders(case: &Case) -> impl Iterator<Item = Contender> + use<> {
    let everyone = case.everyone;
    let takes_part = move |contender: &Contender| {
        contender.has_the_app() || (everyone && contender.version().is_some())
    };
    Contender::ALL.into_iter().filter(takes_part)
}

/// Counts every case of the host and of its twin, and compares that with what is stored, or stores
/// it.
fn limits(cases: &[Case], builds: &Builds, bless: bool) {
    let mut limits = Limits::read();
    let mut left: Vec<&Case> = cases.iter().collect();
    for _ in 0..ATTEMPTS {
        let counted = count_side_by_side(&left, builds);
        let mut over = Vec::new();
        for (case, counted) in left.into_iter().zip(counted) {
            if bless {
                limits.bless(case.name, &counted);
            }
            let judged = limits.judge(case.name, &counted);
            judged.iter().for_each(|judged| tell(case, judged));
            if judged.iter().any(|judged| judged.verdict.fails()) {
                over.push(case);
            }
        }
        left = over;
        if left.is_empty() {
            break;
        }
    }
    if bless {
        limits.write();
    } else if !left.is_empty() {
        println!(
            "A request costs more than it did. Take it out again; or, if it is worth it, store the new figures with \
             `cargo bench -p handover-tests --bench request -- --bless` and say in the commit what they buy."
        );
        std::process::exit(1);
    }
}

fn tell(case: &Case, judged: &Judged) {
    let says = match judged.verdict {
        Verdict::Unknown => "NOT STORED",
        Verdict::Over => "TOO MANY",
        Verdict::Within => "as expected",
        Verdict::Under => "less: store it, so that it stays",
    };
    println!(
        "{:8} {:12} {:>8} a request, {} expected beside this twin: {says}",
        case.name,
        judged.what,
        figure(judged.counted),
        judged.expected.map_or_else(|| "nothing".to_owned(), figure),
    );
}

/// On all cores at once: what is counted does not depend on how busy the machine is.
fn count_side_by_side(cases: &[&Case], builds: &Builds) -> Vec<Counted> {
    let jobs: Vec<_> = cases
        .iter()
        .flat_map(|case| [Contender::Handover, Contender::Twin].map(|contender| (*case, contender)))
        .collect();
    let next = AtomicUsize::new(0);
    let costs = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((at, (case, contender))) = {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    jobs.get(at).map(|job| (at, *job))
                } {
                    let cost = cost(case, contender, 1, builds);
                    costs
                        .lock()
                        .expect("nobody panics with it")
                        .insert(at, cost);
                }
            });
        }
    });
    let costs = costs.into_inner().expect("nobody panics with it");
    (0..cases.len())
        .map(|at| Counted {
            host: costs[&(2 * at)],
            twin: costs[&(2 * at + 1)],
        })
        .collect()
}

/// Allocations are few and have a fraction; instructions are many.
fn figure(value: f64) -> String {
    if value < 1000.0 {
        format!("{value:.2}")
    } else {
        thousands(value)
    }
}

/// One case's figures, put together.
struct Outcome {
    name: &'static str,
    what: &'static str,
    rows: Vec<Row>,
}

struct Row {
    contender: &'static str,
    /// Processor time, its ratio to the twin's in the same round, and requests a second.
    timed: Option<[Spread; 3]>,
    counted: Option<Cost>,
    /// Instructions and allocations against the twin.
    ratio: Option<(f64, f64)>,
}

impl Outcome {
    fn new(
        case: &Case,
        timed: &BTreeMap<&'static str, Timed>,
        counted: &BTreeMap<&'static str, Cost>,
    ) -> Self {
        let twin = Contender::Twin.name();
        let rows = contenders(case)
            .map(|contender| contender.name())
            .filter(|name| timed.contains_key(name) || counted.contains_key(name))
            .map(|name| Row {
                contender: name,
                timed: timed.get(name).map(|own| {
                    let ratios = own.processor.iter().zip(&timed[twin].processor);
                    [
                        Spread::of(own.processor.iter().copied()),
                        Spread::of(ratios.map(|(own, twin)| own / twin)),
                        Spread::of(own.rate.iter().copied()),
                    ]
                }),
                counted: counted.get(name).copied(),
                ratio: counted.get(name).map(|own| {
                    let twin = counted[twin];
                    (
                        own.instructions / twin.instructions,
                        own.allocations / twin.allocations,
                    )
                }),
            })
            .collect();
        Self {
            name: case.name,
            what: case.what,
            rows,
        }
    }

    fn cells(&self) -> Vec<Vec<String>> {
        let row = |row: &Row| {
            let mut cells = vec![row.contender.to_owned()];
            match &row.timed {
                Some([processor, ratio, rate]) => cells.extend([
                    processor.text(2),
                    ratio.text(3),
                    format!(
                        "{} ({}–{})",
                        thousands(rate.median),
                        thousands(rate.low),
                        thousands(rate.high)
                    ),
                ]),
                None => cells.extend(["–", "–", "–"].map(str::to_owned)),
            }
            match (row.counted, row.ratio) {
                (Some(cost), Some((instructions, _))) => cells.extend([
                    thousands(cost.instructions),
                    format!("{instructions:.3}"),
                    format!("{:.2}", cost.allocations),
                ]),
                _ => cells.extend(["–", "–", "–"].map(str::to_owned)),
            }
            cells
        };
        self.rows.iter().map(row).collect()
    }

    fn text(&self) -> String {
        const HEAD: [&str; 7] = [
            "",
            "processor time, µs a request",
            "to the twin's",
            "requests a second",
            "instructions a request",
            "to the twin's",
            "allocations",
        ];
        format!(
            "**{}**: {}\n\n{}",
            self.name,
            self.what,
            report::table(&HEAD, &self.cells())
        )
    }

    fn json(&self) -> Value {
        let row = |row: &Row| {
            let mut value = json!({ "contender": row.contender });
            if let Some([processor, ratio, rate]) = &row.timed {
                value["processor_us"] = processor.json();
                value["processor_to_twin"] = ratio.json();
                value["requests_per_second"] = rate.json();
            }
            if let (Some(cost), Some((instructions, allocations))) = (row.counted, row.ratio) {
                value["instructions"] = rounded(cost.instructions).into();
                value["instructions_to_twin"] = rounded(instructions).into();
                value["allocations"] = rounded(cost.allocations).into();
                value["allocations_to_twin"] = rounded(allocations).into();
            }
            value
        };
        json!({ "case": self.name, "what": self.what, "figures": self.rows.iter().map(row).collect::<Vec<_>>() })
    }
}

fn write(results: &[Outcome], workers: usize, pace: Pace) {
    let versions = Contender::ALL
        .into_iter()
        .map(|contender| json!({ "name": contender.name(), "what": contender.what(), "version": contender.version() }))
        .collect::<Vec<_>>();
    let value = json!({
        "connections": CONNECTIONS,
        "workers": workers,
        "rounds": pace.rounds,
        "seconds_a_round": pace.measure.as_secs_f64(),
        "contenders": versions,
        "cases": results.iter().map(Outcome::json).collect::<Vec<_>>(),
    });
    let text = results
        .iter()
        .map(Outcome::text)
        .collect::<Vec<_>>()
        .join("\n");
    report::write("request", value, &[("request", text)]);
}
