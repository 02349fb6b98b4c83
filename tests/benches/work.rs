//! Whether work outlives code at length: jobs over many swaps and `kill -9`, and a lease over many
//! swaps.
//!
//! ```text
//! cargo bench --profile dev -p handover-tests --bench work              # some minutes
//! cargo bench --profile dev -p handover-tests --bench work -- --quick   # less of each
//! ```
//!
//! Jobs: clients enqueue them without a pause, each under a key of its own and again until it is
//! acknowledged, while versions are swapped and the host is killed. The effect of each is written
//! in the commit that ends it. What is measured: effects that are missing or there more than once,
//! and how long after a kill an effect happened again.
//!
//! A lease: each version has a worker that wants it. The holders write when they had it. What is
//! measured: holders that met another one, and how long nobody had it at a swap.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use handover_tests::{bench, client::Http1, host::Host, plugins::fixture};
use serde_json::json;
use tokio::time::sleep;

/// Clients that enqueue.
const CLIENTS: usize = 4;
/// How long something may take before the bench gives up.
const LONGEST: Duration = Duration::from_secs(300);

#[tokio::main]
async fn main() {
    if !bench::asked_for(&["--quick"]) {
        return;
    }
    let quick = bench::flag("--quick");
    let (count, kills, swaps) = if quick { (200, 2, 3) } else { (2000, 20, 30) };
    jobs(count, kills, swaps).await;
    lease(if quick { 10 } else { 200 }).await;
}

/// The version that comes `n`th.
fn version(n: usize) -> &'static str {
    ["1.0.0", "2.0.0"][n % 2]
}

/// Deploys the version that comes `n`th; the old one leaves when its jobs have ended.
async fn swap(host: &Host, n: usize) {
    let file = fixture("jobs", version(n));
    let file = file.to_str().expect("a plain path");
    let deploy = ["deploy", "--detach", "--queue", file];
    host.cli(deploy).await.expect_code(0);
    host.live("jobs", version(n)).await;
}

/// What the fixture has counted in `namespace`.
async fn counted(host: &Host, namespace: &str) -> BTreeMap<String, i64> {
    let answer = host.get(&format!("/counted/{namespace}")).await;
    let entries: Vec<(String, i64)> =
        serde_json::from_value(answer.json()).expect("it lists what it has counted");
    entries.into_iter().collect()
}

/// Enqueues a job for `key`, until it is acknowledged.
async fn enqueue(address: &Mutex<std::net::SocketAddr>, key: &str) {
    let body = json!({ "key": key, "ms": 20 }).to_string();
    let path = format!("/enqueue/effect?key={key}");
    let headers = [("content-type", "application/json")];
    loop {
        let at = *address.lock().expect("nobody panics with it");
        let asked = async {
            let mut http = Http1::connect(at).await?;
            http.request("POST", &path, &headers, Some(body.as_bytes()))
                .await
        };
        if asked.await.is_ok_and(|answer| answer.status == 200) {
            return;
        }
        sleep(Duration::from_millis(5)).await;
    }
}

async fn jobs(count: usize, kills: usize, swaps: usize) {
    let mut host = Host::serving(&fixture("jobs", version(0))).await;
    let address = Arc::new(Mutex::new(host.address));
    let next = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (address, next) = (Arc::clone(&address), Arc::clone(&next));
            tokio::spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= count {
                        return;
                    }
                    enqueue(&address, &format!("{n:05}")).await;
                }
            })
        })
        .collect();
    let (mut swapped, mut waits) = (0, Vec::new());
    for kill in 1..=kills {
        let until = count * kill / (kills + 1);
        while next.load(Ordering::Relaxed) < until {
            sleep(Duration::from_millis(2)).await;
        }
        while swapped < swaps * kill / kills {
            swapped += 1;
            swap(&host, swapped).await;
        }
        let killed = Instant::now();
        host.signal_inner(rustix::process::Signal::KILL);
        host.came_back().await;
        *address.lock().expect("nobody panics with it") = host.address;
        let before = effects(&host).await;
        while effects(&host).await == before && effects(&host).await < count {
            assert!(killed.elapsed() < LONGEST, "no job runs after a kill");
            sleep(Duration::from_millis(2)).await;
        }
        waits.push(killed.elapsed());
    }
    for client in clients {
        client.await.expect("no client panics");
    }
    while effects(&host).await < count {
        assert!(began.elapsed() < LONGEST * 4, "jobs are stuck");
        sleep(Duration::from_millis(20)).await;
    }
    // What ran twice would be there a moment later.
    sleep(Duration::from_secs(2)).await;
    let effects = counted(&host, "default").await;
    let twice = effects.values().filter(|times| **times != 1).count();
    let lost = count - effects.len();
    waits.sort();
    println!(
        "{count} jobs, {swapped} swaps, {kills} kills in {:.1} s: {lost} lost, {twice} more than once; from a kill to the next effect {} ms median, {} ms longest",
        began.elapsed().as_secs_f64(),
        waits[waits.len() / 2].as_millis(),
        waits.last().expect("there was a kill").as_millis(),
    );
    assert_eq!((lost, twice), (0, 0));
}

/// How many jobs have had their effect.
async fn effects(host: &Host) -> usize {
    let asked = async {
        let mut http = Http1::connect(host.address).await.ok()?;
        let answer = http.get("/counted/default").await.ok()?;
        let entries: Vec<(String, i64)> = serde_json::from_value(answer.json()).ok()?;
        Some(entries.len())
    };
    asked.await.unwrap_or(0)
}

async fn lease(swaps: usize) {
    let host = Host::serving(&fixture("jobs", version(0))).await;
    for n in 1..=swaps {
        swap(&host, n).await;
        // The new version has it before the next one comes.
        let wanted = i64::try_from(n).expect("it is a small number") + 1;
        let asked = Instant::now();
        loop {
            let holders = counted(&host, "holders").await;
            let fences = holders.keys().filter(|key| *key != "inside").count();
            if i64::try_from(fences).expect("it is a small number") >= wanted {
                break;
            }
            assert!(asked.elapsed() < LONGEST, "nobody gets the lease");
            sleep(Duration::from_millis(5)).await;
        }
    }
    let holders = counted(&host, "holders").await;
    let met = holders
        .iter()
        .filter(|(key, alone)| *key != "inside" && **alone != 1)
        .count();
    let times = counted(&host, "times").await;
    let mut gaps = Vec::new();
    let ended: Vec<_> = times
        .iter()
        .filter_map(|(key, at)| Some((key.strip_suffix(" ended")?.to_owned(), *at)))
        .collect();
    for (fence, at) in &ended {
        let next = fence.parse::<u64>().expect("it is a number") + 1;
        if let Some(began) = times.get(&format!("{next:08} began")) {
            gaps.push(began - at);
        }
    }
    gaps.sort_unstable();
    println!(
        "a lease over {swaps} swaps: {met} holders met another one; nobody had it for {} µs median, {} µs at 99 %, {} µs longest, over {} changes",
        gaps[gaps.len() / 2],
        gaps[gaps.len() * 99 / 100],
        gaps.last().expect("there was a change"),
        gaps.len(),
    );
    assert_eq!(met, 0);
    assert!(gaps.iter().all(|gap| *gap >= 0), "two had it at a time");
}
