//! When a canary is taken back, and how often one that is as good as what is live: many trials on
//! the real host, beside a rule with a fixed threshold.
//!
//! ```text
//! cargo bench --profile dev -p handover-tests --bench canary              # about 20 minutes
//! cargo bench --profile dev -p handover-tests --bench canary -- --quick   # some trials of each kind
//! ```
//!
//! The other rule is the usual one: the success rate is looked at in windows of so many requests of
//! the canary, and after five windows below 99 % it is taken back (Flagger's `threshold` and
//! `request-success-rate`). It is applied to what the same canaries answered, one trial after the
//! other.

use std::{
    ffi::OsStr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use handover_tests::{
    bench,
    client::Http1,
    host::{Host, Setup},
    plugins::fixture,
};

/// Requests of the canary between two looks of the other rule.
const WINDOW: usize = 100;

/// No request has that header, so that each counts.
const CONFIG: &str = "[app.probe.canary]
client = \"header:x-client\"
min_requests = 1000000
bake = \"1h\"
";

/// Trials of one kind.
#[derive(Clone, Copy)]
struct Kind {
    percent: &'static str,
    /// Failures in a million requests: of what is live, of the canary.
    rates: [u64; 2],
    trials: usize,
    /// After so many requests of the canary a trial is given up.
    most: u64,
}

/// What became of trials of one kind.
struct Found {
    /// Requests that the canary had got when it was taken back.
    taken_back: Vec<u64>,
    /// What the canaries answered, one after the other: whether it failed.
    answers: Vec<bool>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    if !bench::asked_for(&["--quick"]) {
        return;
    }
    let fewer = if bench::flag("--quick") { 10 } else { 1 };
    let kind = |percent, rates, trials: usize, most| Kind {
        percent,
        rates,
        trials: trials / fewer,
        most,
    };
    let kinds = [
        kind("5%", [2_000, 20_000], 100, 20_000),
        kind("5%", [2_000, 50_000], 100, 20_000),
        kind("5%", [0, 20_000], 100, 20_000),
        kind("25%", [2_000, 20_000], 100, 20_000),
        kind("50%", [10_000, 30_000], 100, 20_000),
        kind("5%", [15_000, 15_000], 300, 1_000),
        kind("50%", [15_000, 15_000], 300, 2_000),
    ];
    let host = Setup::new().config(CONFIG).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    println!(
        "| share | fails, live | fails, canary | trials | taken back | after requests, median | p90 | fixed threshold: after, median |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
    );
    for kind in kinds {
        let found = trials(&host, kind).await;
        println!("{}", row(kind, found));
    }
}

async fn trials(host: &Host, kind: Kind) -> Found {
    let mut found = Found {
        taken_back: Vec::new(),
        answers: Vec::new(),
    };
    for _ in 0..kind.trials {
        if let Some(requests) = trial(host, kind, &mut found.answers).await {
            found.taken_back.push(requests);
        }
    }
    found.taken_back.sort_unstable();
    found
}

/// Makes one trial. Returns after how many of its requests the canary was taken back.
async fn trial(host: &Host, kind: Kind, answers: &mut Vec<bool>) -> Option<u64> {
    let file = fixture("probe", "2.0.0");
    let line = ["deploy".as_ref(), file.as_os_str(), "--detach".as_ref()];
    let more = ["--canary", kind.percent].map(OsStr::new);
    host.cli(line.into_iter().chain(more)).await.expect_code(0);
    let is_on = async || host.app("probe").await.canary.is_some();
    host.until("the trial", async || is_on().await.then_some(()))
        .await;
    let (got, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let seen = Mutex::new(Vec::new());
    let path = format!("/chance?n={}&bytes={}", kind.rates[1], kind.rates[0]);
    let client = async || {
        let mut http = Http1::connect(host.address).await.expect("the host runs");
        while !done.load(Ordering::Relaxed) {
            let answer = http.request("GET", &path, &[], None).await;
            let answer = answer.expect("nothing is lost");
            if answer.text() == "2.0.0" {
                seen.lock().expect("no panic").push(answer.status == 500);
                got.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    let clients = async { tokio::join!(client(), client(), client(), client()) };
    let (_, taken_back) = tokio::join!(clients, async {
        let mut is_taken_back = false;
        while got.load(Ordering::Relaxed) < kind.most && !is_taken_back {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            is_taken_back = !is_on().await;
        }
        done.store(true, Ordering::Relaxed);
        is_taken_back
    });
    if !taken_back {
        host.cli(["abort"]).await.expect_code(0);
    }
    answers.append(&mut seen.lock().expect("no panic"));
    taken_back.then(|| got.load(Ordering::Relaxed))
}

fn row(kind: Kind, found: Found) -> String {
    let percent = |millionths: u64| format!("{}%", millionths as f64 / 10_000.0);
    let at = |sorted: &[u64], part: f64| {
        let place = (sorted.len() as f64 * part) as usize;
        sorted
            .get(place)
            .map_or_else(|| "-".to_owned(), u64::to_string)
    };
    let mut fixed = Vec::new();
    let mut below = 0;
    for (number, window) in found.answers.chunks_exact(WINDOW).enumerate() {
        let failed = window.iter().filter(|failed| **failed).count();
        below += usize::from(failed * 100 > WINDOW);
        if below == 5 {
            fixed.push((number as u64 + 1) * WINDOW as u64);
            below = 0;
        }
    }
    // Each begins where the one before has ended.
    let mut spans: Vec<_> = fixed
        .iter()
        .scan(0, |before, at| Some(at - std::mem::replace(before, *at)))
        .collect();
    spans.sort_unstable();
    format!(
        "| {} | {} | {} | {} | {} | {} | {} | {} |",
        kind.percent,
        percent(kind.rates[0]),
        percent(kind.rates[1]),
        kind.trials,
        found.taken_back.len(),
        at(&found.taken_back, 0.5),
        at(&found.taken_back, 0.9),
        at(&spans, 0.5),
    )
}
