//! State outlives code: what an app was told is written is there after swaps, restarts and `kill
//! -9`.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use handover_tests::{
    client::{Answer, Http1},
    history::{Seen, strictly_serializable},
    host::{Host, Setup},
    plugins::fixture,
};
use tokio::task::JoinSet;

/// How often the host is killed; the figure in docs/benchmarks is of more.
const KILLS: usize = 20;

async fn started() -> Host {
    Host::serving(&fixture("state", "1.0.0")).await
}

async fn ask(address: SocketAddr, method: &str, path: &str, body: &[u8]) -> Option<Answer> {
    let mut http = Http1::connect(address).await.ok()?;
    http.request(method, path, &[], Some(body)).await.ok()
}

async fn send(host: &Host, method: &str, path: &str, body: &str) -> Answer {
    let answer = ask(host.address, method, path, body.as_bytes()).await;
    answer.expect("it is answered")
}

async fn put(host: &Host, path: &str, body: &str) {
    let answer = send(host, "PUT", path, body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// Makes the other version live; the old generation need not have left.
async fn swap(host: &Host, n: usize) {
    let version = ["2.0.0", "1.0.0"][n % 2];
    let file = fixture("state", version);
    host.cli(["deploy", "--detach", file.to_str().unwrap()])
        .await
        .expect_code(0);
    host.live("state", version).await;
}

#[tokio::test]
async fn what_was_written_is_there_after_a_swap_a_restart_and_kill_9() {
    let mut host = started().await;
    put(&host, "/kv/a", "one").await;
    put(&host, "/kv/b?namespace=other", "two").await;
    put(&host, "/kv/c?namespace=memory:cache", "three").await;
    put(&host, "/kv/d", "four").await;
    assert_eq!(send(&host, "DELETE", "/kv/d", "").await.status, 200);
    swap(&host, 0).await;
    let kept = async |host: &Host| {
        assert_eq!(host.get("/kv/a").await.text(), "one");
        assert_eq!(host.get("/kv/b?namespace=other").await.text(), "two");
        assert_eq!(host.get("/kv/b").await.status, 404, "namespaces are apart");
        assert_eq!(host.get("/kv/d").await.status, 404);
    };
    kept(&host).await;
    let in_memory = host.get("/kv/c?namespace=memory:cache").await;
    assert_eq!(in_memory.text(), "three", "it survives swaps");
    host.crash(|_| ()).await;
    host.live("state", "2.0.0").await;
    kept(&host).await;
    let in_memory = host.get("/kv/c?namespace=memory:cache").await;
    assert_eq!(in_memory.status, 404, "it does not survive the host");
    host.cli(["shutdown"]).await.expect_code(0);
    host.ended().await;
    host.again().await;
    host.live("state", "2.0.0").await;
    kept(&host).await;
    let file = host.state().join("state/state.redb");
    let mode = std::os::unix::fs::PermissionsExt::mode(&file.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_of_64_clients_are_exact_over_swaps() {
    const CLIENTS: usize = 64;
    const EACH: usize = 30;
    let host = started().await;
    let address = host.address;
    let added = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let added = Arc::clone(&added);
        clients.spawn(async move {
            let mut http = Http1::connect(address).await.unwrap();
            for n in 0..EACH {
                let path = match (client + n) % 8 {
                    0 => "/transaction/n",
                    1 | 2 => "/spawned/n",
                    _ => "/add/n",
                };
                let answer = http.post(path, b"").await.unwrap();
                assert_eq!(answer.status, 200, "{path}: {}", answer.text());
                added.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    for n in 0..4 {
        let want = (n as u64 + 1) * (CLIENTS * EACH / 5) as u64;
        host.until("clients to go on", async || {
            (added.load(Ordering::Relaxed) >= want).then_some(())
        })
        .await;
        swap(&host, n).await;
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    let text = host.get("/kv/n").await;
    // A counter is JSON as well, and no text.
    assert_eq!(text.status, 500, "{}", text.text());
    let sum = send(&host, "POST", "/add/n", "").await.text();
    assert_eq!(sum, (CLIENTS * EACH + 1).to_string());
    // Generations whose tasks wait for the state for ever are unloaded as others are.
    let app = host.settled("state").await;
    assert_eq!(app.generations.len(), 1, "{app:?}");
}

/// What a writer did.
#[derive(Default)]
struct Log {
    /// Acknowledged: the key and its value.
    kept: BTreeMap<String, String>,
    /// Additions that were acknowledged, and those that may have been made as well.
    added: u64,
    unknown: u64,
}

/// Writes in all ways until it is stopped, or the host is gone.
async fn write(address: SocketAddr, name: String, stop: Arc<AtomicBool>) -> Log {
    let mut log = Log::default();
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("{name}-{n}");
        let way = if n % 2 == 0 { "kv" } else { "left" };
        let value = format!("{key} {}", "x".repeat(n % 700));
        let path = format!("/{way}/{key}");
        match ask(address, "PUT", &path, value.as_bytes()).await {
            Some(answer) if answer.status == 200 => {
                log.kept.insert(key, value);
            }
            Some(answer) => panic!("{path}: {} {}", answer.status, answer.text()),
            None => break,
        }
        match ask(address, "POST", "/add/n", b"").await {
            Some(answer) if answer.status == 200 => log.added += 1,
            Some(answer) => panic!("/add/n: {} {}", answer.status, answer.text()),
            None => {
                log.unknown += 1;
                break;
            }
        }
        let (from, to) = (n % 7, (n * 3 + 1) % 7);
        let path = format!("/move?from=account-{from}&to=account-{to}&amount=5");
        if ask(address, "POST", &path, b"").await.is_none() {
            break;
        }
    }
    log
}

async fn keys(host: &Host, prefix: &str) -> BTreeSet<String> {
    let answer = host.get(&format!("/scan?prefix={prefix}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_slice(&answer.body).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_in_the_middle_of_writes_and_swaps_loses_nothing_that_was_acknowledged() {
    const WRITERS: usize = 8;
    let kills = std::env::var("HANDOVER_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let mut host = started().await;
    let (mut kept, mut added, mut unknown) = (BTreeMap::new(), 0, 0);
    for kill in 0..kills {
        let address = host.address;
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let name = format!("w{kill}-{writer}");
            writers.spawn(write(address, name, Arc::clone(&stop)));
        }
        // At another moment each time, sometimes in a deploy.
        let pause = std::time::Duration::from_millis((kill as u64 * 37) % 150);
        if kill % 3 == 0 {
            let version = ["2.0.0", "1.0.0"][kill / 3 % 2];
            let file = fixture("state", version);
            host.cli(["deploy", "--detach", file.to_str().unwrap()])
                .await;
        }
        tokio::time::sleep(pause).await;
        host.crash(|_| ()).await;
        stop.store(true, Ordering::Relaxed);
        while let Some(log) = writers.join_next().await {
            let log = log.unwrap();
            kept.extend(log.kept);
            added += log.added;
            unknown += log.unknown;
        }
        let sum = host
            .until("the app to serve again", async || {
                let answer = ask(host.address, "POST", "/add/n", b"").await?;
                (answer.status == 200).then(|| answer.text())
            })
            .await;
        added += 1;
        let sum: u64 = sum.parse().unwrap();
        assert!(
            (added..=added + unknown).contains(&sum),
            "{sum} is not between {added} and {}",
            added + unknown
        );
        unknown -= sum - added;
        added = sum;
        let there = keys(&host, "w").await;
        for key in kept.keys() {
            assert!(there.contains(key), "after kill {kill}, {key} is lost");
        }
    }
    // No commit is torn: what moved from one account to another is in none twice.
    let mut total = 0;
    for account in keys(&host, "account-").await {
        let path = format!("/add/{account}");
        let sum: i64 = send(&host, "POST", &path, "").await.text().parse().unwrap();
        total += sum - 1;
    }
    assert_eq!(total, 0);
    for (key, value) in &kept {
        assert_eq!(host.get(&format!("/kv/{key}")).await.text(), *value);
    }
    println!(
        "{kills} kills, {} keys and {added} additions kept",
        kept.len()
    );
    assert!(kept.len() > kills, "nothing was written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_are_strictly_serializable_over_swaps() {
    const CLIENTS: u64 = 12;
    const EACH: u64 = 25;
    let host = started().await;
    let address = host.address;
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        clients.spawn(async move {
            let mut http = Http1::connect(address).await.unwrap();
            let mut history = Vec::new();
            for n in 0..EACH {
                let number = client * EACH + n;
                let list = |salt: u64| format!("list-{}", (number * 7 + salt * 5) % 6);
                let reads = match n % 3 {
                    0 => vec![list(0), list(1)],
                    1 => vec![list(2)],
                    _ => vec![],
                };
                let range = (n % 5 == 4).then_some("list-");
                let appends: Vec<_> = match n % 4 {
                    0 => vec![],
                    1 => vec![(list(3), number)],
                    _ => vec![(list(1), number), (list(2), number)],
                };
                let mut appends = appends;
                appends.dedup_by(|one, two| one.0 == two.0);
                let body = serde_json::json!({"reads": reads, "appends": appends, "range": range});
                let began = Instant::now();
                let json = [("content-type", "application/json")];
                let body = body.to_string();
                let answer = http
                    .request("POST", "/append", &json, Some(body.as_bytes()))
                    .await
                    .unwrap();
                assert_eq!(answer.status, 200, "{}", answer.text());
                history.push(Seen {
                    began,
                    ended: Some(Instant::now()),
                    reads: serde_json::from_slice(&answer.body).unwrap(),
                    appends,
                });
            }
            history
        });
    }
    for n in 0..3 {
        swap(&host, n).await;
    }
    let mut history = Vec::new();
    while let Some(client) = clients.join_next().await {
        history.extend(client.unwrap());
    }
    let all = serde_json::json!({"reads": [], "appends": [], "range": "list-"});
    let mut http = Http1::connect(address).await.unwrap();
    let json = [("content-type", "application/json")];
    let answer = http
        .request("POST", "/append", &json, Some(all.to_string().as_bytes()))
        .await
        .unwrap();
    let lists = serde_json::from_slice(&answer.body).unwrap();
    strictly_serializable(&history, &lists).unwrap();
}

#[tokio::test]
async fn what_has_its_time_is_gone_after_it_and_no_sooner() {
    let host = started().await;
    put(&host, "/kv/brief?ttl_ms=300", "x").await;
    put(&host, "/kv/long?ttl_ms=3600000", "y").await;
    swap(&host, 0).await;
    host.until("it to be gone", async || {
        (host.get("/kv/brief").await.status == 404).then_some(())
    })
    .await;
    assert_eq!(host.get("/kv/long").await.text(), "y");
    assert_eq!(keys(&host, "").await, BTreeSet::from(["long".to_owned()]));
}

#[tokio::test]
async fn limits_are_told_and_nothing_is_half_written() {
    let config = "[app.state.state]\nmax_size = \"64KiB\"\n";
    let host = Setup::new().config(config).start().await;
    host.deploy(&fixture("state", "1.0.0")).await.expect_code(0);
    put(&host, "/kv/a", "kept").await;
    let full = send(&host, "PUT", "/kv/a", &"x".repeat(100_000)).await;
    assert_eq!(full.status, 507);
    assert!(full.text().contains("raise max_size"), "{}", full.text());
    assert_eq!(host.get("/kv/a").await.text(), "kept");
    // What is left without waiting is told to the client as well: it is no lie.
    let left = send(&host, "PUT", "/left/b", &"x".repeat(100_000)).await;
    assert_eq!(left.status, 503, "{}", left.text());
    assert_eq!(host.get("/kv/b").await.status, 404);
    let long = format!("/kv/{}", "k".repeat(2049));
    let refused = send(&host, "PUT", &long, "x").await;
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("2048"), "{}", refused.text());
    put(&host, &format!("/kv/{}", "k".repeat(2048)), "x").await;
    let no_namespace = send(&host, "PUT", "/kv/a?namespace=No", "x").await;
    assert_eq!(no_namespace.status, 400);
    let no_counter = send(&host, "POST", "/add/a", "").await;
    assert_eq!(no_counter.status, 400);
    let panicked = send(&host, "POST", "/panic/a", "").await;
    assert_eq!(panicked.status, 500);
    assert_eq!(host.get("/kv/a").await.text(), "kept");
}

#[tokio::test]
async fn a_value_of_16_mib_comes_back_and_a_larger_one_is_refused() {
    let host = started().await;
    let most = 16 << 20;
    put(&host, &format!("/large/{most}"), "").await;
    assert_eq!(host.get(&format!("/large/{most}")).await.text(), "true");
    let more = most + 1;
    let refused = send(&host, "PUT", &format!("/large/{more}"), "").await;
    assert_eq!(refused.status, 413, "{}", refused.text());
    assert_eq!(host.get(&format!("/large/{most}")).await.text(), "true");
}

#[tokio::test]
async fn a_scan_gives_keys_in_order_and_goes_on_behind_a_cursor() {
    let host = started().await;
    let every: Vec<_> = (0..600).map(|n| format!("k{n:03}")).collect();
    let mut writes = JoinSet::new();
    for key in &every {
        let (address, path) = (host.address, format!("/kv/{key}"));
        writes.spawn(async move { ask(address, "PUT", &path, b"1").await.unwrap().status });
    }
    while let Some(status) = writes.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    put(&host, "/kv/other", "1").await;
    let scan = async |query: &str| -> Vec<String> {
        let answer = host.get(&format!("/scan?{query}")).await;
        serde_json::from_slice(&answer.body).unwrap()
    };
    assert_eq!(scan("prefix=k").await, every);
    let mut backwards = every.clone();
    backwards.reverse();
    assert_eq!(scan("prefix=k&reverse=true").await, backwards);
    assert_eq!(scan("prefix=k&limit=2&after=k299").await, ["k300", "k301"]);
    let before = scan("prefix=k&limit=2&after=k300&reverse=true").await;
    assert_eq!(before, ["k299", "k298"]);
    assert_eq!(scan("prefix=zzz").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_watcher_hears_of_what_other_generations_write_and_goes_on_from_its_token() {
    let host = started().await;
    let waiting = {
        let address = host.address;
        tokio::spawn(async move { ask(address, "GET", "/watch?prefix=w", b"").await })
    };
    // It is under way when the other version is live.
    host.until("the watcher to wait", async || {
        let app = host.app("state").await;
        (app.generations[0].in_flight > 0).then_some(())
    })
    .await;
    swap(&host, 0).await;
    put(&host, "/kv/other", "x").await;
    put(&host, "/kv/w1", "x").await;
    let heard = waiting.await.unwrap().unwrap().json();
    assert_eq!(heard["changes"], serde_json::json!(["+w1"]));
    let token = heard["token"].as_u64().unwrap();
    put(&host, "/kv/w2", "x").await;
    send(&host, "DELETE", "/kv/w1", "").await;
    let later = host
        .get(&format!("/watch?prefix=w&after={token}"))
        .await
        .json();
    assert_eq!(later["changes"], serde_json::json!(["+w2", "-w1"]));
    assert_eq!(later["missed"], false);
    // The task of the constructor heard of all as well.
    host.until("the task to hear", async || {
        (host.get("/told").await.text() == "4").then_some(())
    })
    .await;
}

#[tokio::test]
async fn after_a_restart_a_watcher_is_told_that_it_may_have_missed_something() {
    let mut host = started().await;
    put(&host, "/kv/w1", "x").await;
    put(&host, "/kv/w2", "x").await;
    host.crash(|_| ()).await;
    host.live("state", "1.0.0").await;
    let heard = host.get("/watch?prefix=w&after=1").await.json();
    assert_eq!(heard["missed"], true, "{heard}");
    assert_eq!(heard["token"], 2);
}

#[tokio::test]
async fn what_a_preflight_check_writes_is_thrown_away() {
    let config = "[app.state.config]\nstart_with = \"by the constructor\"\n";
    let host = Setup::new().config(config).start().await;
    let file = fixture("state", "1.0.0");
    let settings = host.scratch("check.toml");
    std::fs::write(&settings, config).unwrap();
    host.cli([
        "check",
        file.to_str().unwrap(),
        "--config",
        settings.to_str().unwrap(),
    ])
    .await
    .expect_code(0);
    assert!(!host.state().join("state/state.redb").exists());
    host.deploy(&file).await.expect_code(0);
    assert_eq!(host.get("/kv/started").await.text(), "by the constructor");
}

#[tokio::test]
async fn sessions_a_cache_and_rate_limits_survive_a_swap() {
    let mut host = started().await;
    let session = send(&host, "POST", "/sessions", "ann").await.text();
    let mut together = JoinSet::new();
    for _ in 0..10 {
        let address = host.address;
        together.spawn(async move { ask(address, "GET", "/cached/a", b"").await.unwrap().text() });
    }
    while let Some(times) = together.join_next().await {
        assert_eq!(times.unwrap(), "1", "computed once for all who wait");
    }
    for left in ["4", "3", "2"] {
        assert_eq!(host.get("/limited/ann").await.text(), left);
    }
    swap(&host, 0).await;
    assert_eq!(host.get("/cached/a").await.text(), "1");
    let statuses = [200, 200, 429, 429];
    for status in statuses {
        assert_eq!(host.get("/limited/ann").await.status, status);
    }
    assert_eq!(host.get("/limited/bob").await.status, 200);
    let path = format!("/sessions/{session}");
    assert_eq!(host.get(&path).await.text(), "\"ann\"");
    host.crash(|_| ()).await;
    host.live("state", "2.0.0").await;
    assert_eq!(host.get(&path).await.text(), "\"ann\"");
    assert_eq!(send(&host, "DELETE", &path, "").await.status, 200);
    assert_eq!(host.get(&path).await.status, 404);
    // What is in memory only began anew with the host.
    assert_eq!(host.get("/cached/a").await.text(), "2");
}
