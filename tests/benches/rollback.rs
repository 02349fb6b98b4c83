//! How fast a rollback is: while the version before is warm, and from the store. And what many
//! labels at once cost.
//!
//! ```text
//! cargo bench --profile dev -p handover-tests --bench rollback              # some minutes
//! cargo bench --profile dev -p handover-tests --bench rollback -- --quick   # some of each
//! ```
//!
//! A client asks without a pause; the rollback is the one call of the control socket, made on a
//! connection that is open already. What is measured: from the first byte of the call to the first
//! answer of the old version, the cutover as the host tells it, and the longest wait of the client
//! around it.

use std::{
    ffi::OsStr,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use handover_tests::{
    bench,
    client::Http1,
    host::{Host, Setup},
    plugins::fixture,
};

/// One request of the client.
#[derive(Clone, Copy)]
struct Asked {
    at: Instant,
    answered: Instant,
    is_old: bool,
}

/// One rollback, in microseconds.
struct Took {
    first_old_answer: u64,
    call: u64,
    longest_wait: u64,
}

#[tokio::main]
async fn main() {
    if !bench::asked_for(&["--quick"]) {
        return;
    }
    let (rollbacks, labels) = if bench::flag("--quick") {
        (10, 10)
    } else {
        (200, 100)
    };
    println!(
        "| rollback | times | first old answer, µs: median | p99 | longest | the call, µs: median | longest wait of a request, µs: median | p99 |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for (name, config) in [
        ("warm", "[app.probe]\nkeep_warm = \"10m\"\n"),
        ("from the store", ""),
    ] {
        let host = Setup::new().config(config).start().await;
        host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
        let mut took = Vec::new();
        for _ in 0..rollbacks {
            host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
            took.push(rollback(&host).await);
        }
        println!("{}", row(name, &took));
    }
    many_labels(labels).await;
}

/// Rolls back beside a client.
async fn rollback(host: &Host) -> Took {
    let (done, seen) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let client = async {
        let mut http = Http1::connect(host.address).await.expect("the host runs");
        while !done.load(Ordering::Relaxed) {
            let at = Instant::now();
            let answer = http.get("/version").await.expect("nothing is lost");
            seen.lock().expect("no panic").push(Asked {
                at,
                answered: Instant::now(),
                is_old: answer.text() == "1.0.0",
            });
        }
    };
    let call = async {
        let mut socket = Http1::connect_unix(&host.control())
            .await
            .expect("it answers");
        tokio::time::sleep(Duration::from_millis(20)).await;
        let began = Instant::now();
        let answer = socket.request("POST", "/v1/rollback", &[], None).await;
        let ended = Instant::now();
        assert_eq!(answer.expect("it answers").status, 200);
        tokio::time::sleep(Duration::from_millis(20)).await;
        done.store(true, Ordering::Relaxed);
        (began, ended)
    };
    let ((), (began, ended)) = tokio::join!(client, call);
    let seen = seen.into_inner().expect("no panic");
    let first = seen.iter().find(|one| one.is_old).expect("it is back");
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let around = seen
        .iter()
        .filter(|one| one.answered >= began && one.at <= ended);
    let longest = around.map(|one| one.answered - one.at).max();
    Took {
        first_old_answer: micros(first.answered - began),
        call: micros(ended - began),
        longest_wait: micros(longest.unwrap_or_default()),
    }
}

fn row(name: &str, took: &[Took]) -> String {
    let at = |part: f64, of: fn(&Took) -> u64| {
        let mut sorted: Vec<_> = took.iter().map(of).collect();
        sorted.sort_unstable();
        let place = (sorted.len() as f64 * part) as usize;
        sorted[place.min(sorted.len() - 1)]
    };
    let first = |took: &Took| took.first_old_answer;
    let wait = |took: &Took| took.longest_wait;
    format!(
        "| {name} | {} | {} | {} | {} | {} | {} | {} |",
        took.len(),
        at(0.5, first),
        at(0.99, first),
        at(1.0, first),
        at(0.5, |took| took.call),
        at(0.5, wait),
        at(0.99, wait),
    )
}

/// Brings up one version under many labels, asks for each, and promotes the last.
async fn many_labels(labels: usize) {
    let config = "[app.probe.labels]\nallow = [\"127.0.0.1\"]\n";
    let host = Setup::new().config(config).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let memory = host.resident();
    let file = fixture("probe", "2.0.0");
    let began = Instant::now();
    for number in 0..labels {
        let label = format!("branch-{number}");
        let line = [
            "deploy".as_ref(),
            file.as_os_str(),
            OsStr::new("--label"),
            label.as_ref(),
        ];
        host.cli(line).await.expect_code(0);
    }
    let up = began.elapsed();
    let each = host.resident().saturating_sub(memory) / labels as u64;
    let mut http = Http1::connect(host.address).await.expect("the host runs");
    let ask = async |http: &mut Http1, label: Option<&str>| {
        let headers: Vec<_> = label
            .map(|label| ("handover-version", label))
            .into_iter()
            .collect();
        let answer = http.request("GET", "/version", &headers, None).await;
        answer.expect("nothing is lost").text()
    };
    for number in 0..labels {
        let label = format!("branch-{number}");
        assert_eq!(ask(&mut http, Some(&label)).await, "2.0.0");
    }
    let began = Instant::now();
    for _ in 0..1000 {
        assert_eq!(ask(&mut http, None).await, "1.0.0");
    }
    let plain = began.elapsed() / 1000;
    let began = Instant::now();
    let last = format!("branch-{}", labels - 1);
    for _ in 0..1000 {
        assert_eq!(ask(&mut http, Some(&last)).await, "2.0.0");
    }
    let labelled = began.elapsed() / 1000;
    host.cli(["promote", "probe", "--label", &last])
        .await
        .expect_code(0);
    assert_eq!(ask(&mut http, None).await, "2.0.0");
    println!(
        "\n{labels} labels: up after {up:.1?}, {each} bytes of memory each; a request without a label takes {plain:.1?}, with the last one {labelled:.1?}"
    );
}
