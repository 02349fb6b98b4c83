//! What state costs: reads, durable writes and transactions through a plugin, beside redb and
//! SQLite used directly by a static app.
//!
//! ```text
//! cargo bench -p handover-tests --bench state             # about 4 minutes; writes docs/benchmarks
//! cargo bench -p handover-tests --bench state -- --quick   # the same with a second each; writes nothing
//! ```
//!
//! All of them serve the same routes over HTTP on this machine. They take turns, round by round, so
//! that what the machine does meanwhile meets all of them. A write is answered when it is on the
//! disk. A transaction reads two of a thousand numbers and writes both.

use std::{
    collections::BTreeMap,
    fs,
    process::Command,
    time::{Duration, Instant},
};

use handover_tests::bench::{
    self,
    builds::{Profile, build},
    figures::{Spread, percentile, rounded, thousands},
    generate::{Ask, Load},
    report,
    server::{Server, free_address},
};
use serde_json::{Value, json};

const WORKERS: usize = 2;
const CONNECTIONS: [usize; 3] = [1, 16, 64];
const ROUNDS: usize = 3;
const CASES: [(&str, &str); 3] = [
    ("read", "/bench/read"),
    ("write", "/bench/write"),
    ("transaction", "/bench/transaction"),
];
const CONTENDERS: [(&str, &str); 3] = [
    ("handover", "a plugin with its state in the host"),
    ("redb", "axum, redb used directly"),
    ("SQLite", "axum, SQLite (WAL, FULL)"),
];

/// What was measured of one contender in one case.
#[derive(Default)]
struct Measured {
    each_second: Vec<f64>,
    /// Microseconds.
    took: Vec<u32>,
}

fn main() {
    if !bench::asked_for(&["--quick"]) {
        return;
    }
    let quick = bench::flag("--quick");
    let (rounds, each) = if quick {
        (1, Duration::from_secs(1))
    } else {
        (ROUNDS, Duration::from_secs(3))
    };
    let servers = start();
    let mut measured: BTreeMap<(usize, usize, usize), Measured> = BTreeMap::new();
    for round in 0..rounds {
        for (case, (name, path)) in CASES.iter().enumerate() {
            for connections in CONNECTIONS {
                for (contender, server) in servers.iter().enumerate() {
                    let (rate, took) = measure(server, path, connections, each);
                    println!(
                        "round {round}, {name} with {connections}: {} {rate:.0} a second",
                        CONTENDERS[contender].0
                    );
                    let of = measured.entry((case, connections, contender)).or_default();
                    of.each_second.push(rate);
                    of.took.extend(took);
                }
            }
        }
    }
    let (table, figures) = told(measured);
    println!("\n{table}");
    if !quick {
        let value = json!({ "rounds": rounds, "seconds_each": each.as_secs(), "figures": figures });
        report::write("state", value, &[("state", table)]);
    }
}

fn start() -> Vec<Server> {
    let handover = build("handover", "handover", Profile::Release);
    let plugin = build("state", "libstate.so", Profile::Release);
    let twin = build("state-twin", "state-twin", Profile::Release);

    let home = Server::home();
    let address = free_address();
    let at = home.path().to_owned();
    fs::write(
        at.join("handover.toml"),
        format!("[server]\nworkers = {WORKERS}\n"),
    )
    .expect("the folder is ours");
    fs::create_dir_all(at.join("plugins")).expect("the folder is ours");
    fs::copy(&plugin, at.join("plugins/state.so")).expect("the folder is ours");
    let mut command = Command::new(&handover);
    command.env_remove("HANDOVER_CONTROL").arg("run");
    command.arg("--config").arg(at.join("handover.toml"));
    command.arg("--listen").arg(address.to_string());
    command.arg("--plugins").arg(at.join("plugins"));
    command.arg("--state").arg(at.join("state"));
    let host = Server::start(home, address, vec![command]);
    let fill = Ask::post("/bench/fill", "text/plain", "");
    Load {
        requests: Some(1),
        ..Load::kept(fill, 1)
    }
    .run(address)
    .expect_all_answered();

    let mut servers = vec![host];
    for kind in ["redb", "sqlite"] {
        let home = Server::home();
        let address = free_address();
        let mut command = Command::new(&twin);
        command.args([&address.to_string(), &WORKERS.to_string(), kind]);
        command.arg(home.path().join("store"));
        servers.push(Server::start(home, address, vec![command]));
    }
    servers
}

/// Requests a second, and how long each took.
fn measure(
    server: &Server,
    path: &'static str,
    connections: usize,
    each: Duration,
) -> (f64, Vec<u32>) {
    let load = Load {
        samples: true,
        ..Load::kept(Ask::get(path), connections)
    };
    let running = load.start(server.address);
    // The first ones find caches cold, and threads that are not there yet.
    std::thread::sleep(each / 5);
    let (began, before) = (Instant::now(), running.answered());
    std::thread::sleep(each);
    let (ended, after) = (Instant::now(), running.answered());
    let tally = running.stop().expect_all_answered();
    let took = tally
        .samples
        .iter()
        .filter(|sample| (began..ended).contains(&sample.at))
        .map(|sample| sample.took)
        .collect();
    let rate = (after - before) as f64 / (ended - began).as_secs_f64();
    (rate, took)
}

fn told(measured: BTreeMap<(usize, usize, usize), Measured>) -> (String, Vec<Value>) {
    let mut text = String::new();
    let mut figures = Vec::new();
    let mut measured = measured;
    for (case, (name, _)) in CASES.iter().enumerate() {
        let mut rows = Vec::new();
        for connections in CONNECTIONS {
            for (contender, (short, what)) in CONTENDERS.iter().enumerate() {
                let Some(of) = measured.get_mut(&(case, connections, contender)) else {
                    continue;
                };
                of.took.sort_unstable();
                let rate = Spread::of(of.each_second.iter().copied());
                let milliseconds = |share| f64::from(percentile(&of.took, share)) / 1000.0;
                let (p50, p99) = (milliseconds(0.5), milliseconds(0.99));
                rows.push(vec![
                    (*what).to_owned(),
                    connections.to_string(),
                    thousands(rate.median),
                    format!("{p50:.2}"),
                    format!("{p99:.2}"),
                ]);
                figures.push(json!({
                    "case": name, "connections": connections, "contender": short,
                    "each_second": rate.json(), "p50_ms": rounded(p50), "p99_ms": rounded(p99),
                }));
            }
        }
        let head = ["", "requests at a time", "a second", "p50, ms", "p99, ms"];
        text += &format!("**{name}**\n\n{}\n", report::table(&head, &rows));
    }
    (text, figures)
}
