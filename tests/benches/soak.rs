//! Thousands of reloads under constant load, and what they leave behind: nothing.
//!
//! ```text
//! cargo bench -p handover-tests --bench soak                       # 10,000 reloads
//! cargo bench -p handover-tests --bench soak -- --reloads 1000
//! ```
//!
//! Every reload is a deploy of an axum plugin that is built with tokio "full", by the control
//! socket as `handover deploy` does it: stored, checked in a child process, loaded, started, made
//! live, the old generation drained and unmapped. Only the constructor is not run in the child as
//! well (`[app.zoo.check] start = false`), which would double the time and not touch the host.
//!
//! Fails when a request was lost, or when mappings, threads, descriptors or memory grew.

use std::time::{Duration, Instant};

use handover_tests::{
    client::Http1,
    host::{Host, Setup},
    load::Load,
    plugins::fixture,
};

/// How often what the host costs is printed.
const EVERY: u64 = 500;

/// What a process costs.
#[derive(Clone, Copy, Debug)]
struct Cost {
    plugins: usize,
    mappings: usize,
    threads: usize,
    descriptors: usize,
    resident: u64,
}

impl Cost {
    /// The cost once the last replaced generation is gone.
    async fn of(host: &Host) -> Self {
        host.settled("zoo").await;
        let now = || Self {
            plugins: host.mapped_plugins(),
            mappings: host.mappings(),
            threads: host.threads(),
            descriptors: host.descriptors(),
            resident: host.resident(),
        };
        // The least of some looks: connections and threads that come and go count only while they
        // are there.
        let mut least = now();
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(25)).await;
            let next = now();
            least = Self {
                plugins: least.plugins.min(next.plugins),
                mappings: least.mappings.min(next.mappings),
                threads: least.threads.min(next.threads),
                descriptors: least.descriptors.min(next.descriptors),
                resident: least.resident.min(next.resident),
            };
        }
        least
    }
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let asked = arguments
        .iter()
        .position(|argument| argument == "--reloads");
    let reloads: u64 = match asked {
        Some(at) => arguments
            .get(at + 1)
            .and_then(|number| number.parse().ok())
            .expect("--reloads wants a number"),
        None => 10_000,
    };
    // What is compared with: by then everything that grows to a size has it.
    let compared = EVERY.min(reloads / 2);

    let config = "[app.zoo]\nroutes = [\"/\"]\nkeep_artifacts = 2\n[app.zoo.config]\nhabit = \"tokio-signals\"\n[app.zoo.check]\nstart = false\n[log]\nlevel = \"warn\"\n";
    let host = Setup::new().config(config).start().await;
    let artifacts = ["1.0.0", "2.0.0"]
        .map(|version| std::fs::read(fixture("zoo", version)).expect("it was just built"));
    let size = artifacts[0].len();
    deploy(&host, &artifacts[1]).await;
    let load = Load {
        keep_alive: 2,
        closing: 1,
        streams: 3,
        pause: Duration::from_millis(10),
    };
    let running = load.start(host.address);
    println!(
        "{reloads} reloads of a plugin of {:.1} MiB; {load:?}",
        size as f64 / f64::from(1 << 20)
    );
    println!(
        "reloads  answers  ms a reload  plugins  mappings  threads  descriptors  RSS KiB  heap freed KiB"
    );
    let (mut reference, mut last) = (None, None);
    let mut began = Instant::now();
    for n in 1..=reloads {
        deploy(&host, &artifacts[usize::from(n % 2 == 0)]).await;
        // The habit, so that each generation has done what it does: a signal handler and its
        // stream.
        let answer = host.get("/habit").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        if n % EVERY == 0 || n == compared || n == reloads {
            let took = began.elapsed() / u32::try_from(EVERY.min(n)).unwrap_or(1);
            let cost = Cost::of(&host).await;
            println!(
                "{n:7} {:8} {:12.1} {:8} {:9} {:8} {:12} {:8} {:14}",
                running.answered(),
                took.as_secs_f64() * 1e3,
                cost.plugins,
                cost.mappings,
                cost.threads,
                cost.descriptors,
                cost.resident / 1024,
                freed(&host).await / 1024,
            );
            if n == compared {
                reference = Some(cost);
            }
            last = Some(cost);
            began = Instant::now();
        }
    }
    let report = running.stop().await;
    println!(
        "{} whole answers, {} generations seen",
        report.ok,
        report.versions.len()
    );
    report.expect_unnoticed();
    let (reference, last) = (
        reference.expect("it was passed"),
        last.expect("it was passed"),
    );
    assert_eq!(last.plugins, 1, "libraries stay mapped");
    assert_eq!(
        host.status().await.host.leaks.retained,
        0,
        "libraries are retained"
    );
    for (what, before, after, slack) in [
        // Arenas of the allocator come and go with threads.
        ("mappings", reference.mappings, last.mappings, 16),
        ("threads", reference.threads, last.threads, 2),
        ("descriptors", reference.descriptors, last.descriptors, 2),
    ] {
        assert!(
            after <= before + slack,
            "{what}: {before} after {compared} reloads, {after} after {reloads}"
        );
    }
    let allowed = (reference.resident / 10).max(8 << 20);
    let grown = last.resident.saturating_sub(reference.resident);
    assert!(
        grown <= allowed,
        "RSS: {grown} bytes more than after {compared} reloads, {allowed} are allowed"
    );
    println!(
        "flat: RSS is {} KiB more than after {compared} reloads",
        grown / 1024
    );
}

/// The heap that the last generation left behind, in bytes; it was freed for it.
async fn freed(host: &Host) -> u64 {
    let events = host.events().await;
    let last = events.iter().rev().find(|event| event.kind == "unloaded");
    last.and_then(|event| event.leaked_bytes).unwrap_or(0)
}

async fn deploy(host: &Host, artifact: &[u8]) {
    let mut control = Http1::connect_unix(&host.control())
        .await
        .expect("the host runs");
    let answer = control
        .post("/v1/deploy?name=zoo.so", artifact)
        .await
        .unwrap_or_else(|fault| panic!("the control socket: {fault}"));
    let text = answer.text();
    let result = text.lines().last().unwrap_or_default();
    assert!(result.contains("\"outcome\":\"done\""), "{text}");
}
