//! What is lost when a server reloads under load, by us and by others.
//!
//! ```text
//! cargo bench -p handover-tests --bench reload               # those that are installed, about 13 minutes; writes docs/benchmarks
//! cargo bench -p handover-tests --bench reload -- --install   # gets the others first: apt-get (needs root), pip and npm
//! cargo bench -p handover-tests --bench reload -- --quick     # few reloads; writes nothing
//! ```
//!
//! `--only NAME` for one of them, `--reloads N` for another number than 50. A server that does not
//! run here is left out, and named.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use handover_tests::{
    bench::{
        self,
        builds::{Builds, Profile},
        figures::{rounded, thousands},
        generate::{Ask, Load, Tally},
        operation::Control,
        reloader::Reloader,
        report,
        server::Server,
    },
    elf,
};
use serde_json::json;

/// How long the rests of the last reload have before the load ends.
const REST: Duration = Duration::from_secs(2);

/// How long a reload may take to be seen.
const PATIENCE: Duration = Duration::from_secs(10);

struct Outcome {
    reloader: Reloader,
    version: String,
    reloads: u32,
    tally: Tally,
}

fn main() {
    if !bench::asked_for(&["--quick", "--install", "--only NAME", "--reloads NUMBER"]) {
        return;
    }
    let only = bench::one_of("--only", &Reloader::ALL.map(Reloader::name));
    let builds = Builds::new(Profile::Dist);
    let reloads = match bench::option("--reloads") {
        Some(number) => number.parse().expect("a number of reloads"),
        None if bench::flag("--quick") => 5,
        None => 50,
    };
    let (mut outcomes, mut missing) = (Vec::new(), Vec::new());
    for reloader in Reloader::ALL {
        if only.as_deref().is_some_and(|name| name != reloader.name()) {
            continue;
        }
        if reloader.program().is_none()
            && bench::flag("--install")
            && let Err(why) = reloader.install()
        {
            println!("{}: {why}", reloader.name());
        }
        let Some(version) = reloader.version() else {
            println!(
                "{}: not installed, skipped (see --install)",
                reloader.name()
            );
            missing.push(reloader.name());
            continue;
        };
        let run = std::panic::catch_unwind(|| run(reloader, &builds, reloads));
        let Ok((reloads, tally)) = run else {
            println!("{}: does not run here, left out", reloader.name());
            missing.push(reloader.name());
            continue;
        };
        let outcome = Outcome {
            reloader,
            version,
            reloads,
            tally,
        };
        println!("{}", table(std::slice::from_ref(&outcome)));
        outcomes.push(outcome);
    }
    if only.is_none() && !bench::flag("--quick") {
        let mut text = table(&outcomes);
        text += &lossless(&outcomes);
        if !missing.is_empty() {
            text += &format!(
                "\nNot installed, or does not run on this machine: {}.\n",
                missing.join(", ")
            );
        }
        let value = json!({ "servers": outcomes.iter().map(Outcome::json).collect::<Vec<_>>(), "not_installed": missing });
        report::write("reload", value, &[("reload", text)]);
    }
}

/// Connections that are kept and connections that are made for each request, with air to breathe,
/// while it reloads again and again. Gives how many reloads were seen to happen, by new processes.
fn run(reloader: Reloader, builds: &Builds, reloads: u32) -> (u32, Tally) {
    let server = reloader.start(builds);
    let control = (reloader == Reloader::Handover).then(|| Control::of(&server));
    let mut load = Load::kept(Ask::get("/"), 16);
    load.closing = 4;
    load.pause = Duration::from_millis(2);
    let load = load.start(server.address);
    std::thread::sleep(REST);
    let mut seen = 0;
    for n in 1..=reloads {
        let next = Instant::now() + reloader.gap();
        match &control {
            Some(control) => {
                deploy(control, builds, n);
                seen += 1;
            }
            None => {
                let before = server.processes();
                reloader.reload(&server);
                seen += u32::from(has_new_process(&server, &before));
            }
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    std::thread::sleep(REST);
    (seen, load.stop())
}

/// Waits for a process that was not there `before`.
fn has_new_process(server: &Server, before: &BTreeSet<u32>) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while server.processes().is_subset(before) {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

/// Deploys an artifact that the host has never seen.
fn deploy(control: &Control, builds: &Builds, n: u32) {
    let other = usize::from(!n.is_multiple_of(2));
    let mut bytes = fs::read(&builds.hello[other]).expect("it was just built");
    elf::set_version(&mut bytes, &format!("{}.0.{n}", other + 1));
    control
        .deploy(&bytes)
        .unwrap_or_else(|text| panic!("a swap did not end well: {text}"));
}

/// Who lost nothing, and who did not even close a kept connection.
fn lossless(outcomes: &[Outcome]) -> String {
    let names = |keep: fn(&Tally) -> bool| {
        let kept = outcomes.iter().filter(|outcome| keep(&outcome.tally));
        let names: Vec<_> = kept.map(|outcome| outcome.reloader.name()).collect();
        match names.as_slice() {
            [] => "nobody".to_owned(),
            names => names.join(", "),
        }
    };
    format!(
        "\nNothing was lost by: {}. No kept connection was closed by: {}.\n",
        names(|tally| tally.lost() == 0),
        names(|tally| tally.lost() == 0 && tally.closed == 0)
    )
}

fn table(outcomes: &[Outcome]) -> String {
    let rows = outcomes.iter().map(Outcome::cells).collect::<Vec<_>>();
    report::table(
        &[
            "",
            "a reload is",
            "reloads",
            "answers",
            "**lost per 1,000 reloads**",
            "on kept connections",
            "on new connections",
            "wrong answers",
            "kept connections closed per 1,000 reloads",
        ],
        &rows,
    )
}

impl Outcome {
    fn per_thousand(&self, number: u64) -> f64 {
        number as f64 * 1000.0 / f64::from(self.reloads.max(1))
    }

    fn cells(&self) -> Vec<String> {
        let tally = &self.tally;
        vec![
            format!("{} ({})", self.reloader.name(), self.version),
            self.reloader.reload_is().to_owned(),
            self.reloads.to_string(),
            thousands(tally.answered as f64),
            format!("**{}**", thousands(self.per_thousand(tally.lost()))),
            thousands(self.per_thousand(tally.cut_kept)),
            thousands(self.per_thousand(tally.refused + tally.cut_new)),
            thousands(self.per_thousand(tally.wrong)),
            thousands(self.per_thousand(tally.closed)),
        ]
    }

    fn json(&self) -> serde_json::Value {
        let tally = &self.tally;
        json!({
            "server": self.reloader.name(),
            "version": self.version,
            "reload": self.reloader.reload_is(),
            "reloads": self.reloads,
            "answered": tally.answered,
            "lost": tally.lost(),
            "lost_per_thousand_reloads": rounded(self.per_thousand(tally.lost())),
            "refused": tally.refused,
            "cut_on_a_new_connection": tally.cut_new,
            "cut_on_a_kept_connection": tally.cut_kept,
            "wrong": tally.wrong,
            "kept_connections_closed": tally.closed,
            "first_fault": tally.first_fault,
        })
    }
}
