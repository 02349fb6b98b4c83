//! A version on trial beside the live one: which requests it gets, when it is taken back or
//! promoted, and what everybody is told.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    collections::HashMap,
    ffi::OsStr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use handover_tests::{
    client::Http1,
    host::{Host, Output, Setup},
    load::Load,
    plugins::fixture,
};

/// Each client says who it is.
const CLIENTS: &str = "[app.probe.canary]
client = \"header:x-client\"
min_requests = 20
";

/// A host with 1.0.0 of the probe.
async fn host_with(config: &str) -> Host {
    let host = Setup::new().config(config).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    host
}

/// Deploys 2.0.0 of the probe, and waits until its trial has ended.
async fn trial(host: &Host, more: &[&str]) -> Output {
    let file = fixture("probe", "2.0.0");
    let mut line = vec![OsStr::new("deploy"), file.as_os_str()];
    line.extend(more.iter().map(OsStr::new));
    host.cli(line).await
}

/// Clients, each of them another one each time, until it is dropped.
struct Clients<'a> {
    host: &'a Host,
    /// What they ask for.
    path: &'a str,
    done: AtomicBool,
    next: AtomicU64,
}

impl<'a> Clients<'a> {
    fn new(host: &'a Host, path: &'a str) -> Self {
        Self {
            host,
            path,
            done: AtomicBool::new(false),
            next: AtomicU64::new(0),
        }
    }

    /// Asks until [`Clients::stop`]. Returns how many answers each version gave, and how many of
    /// them failed.
    async fn run(&self) -> HashMap<String, (u64, u64)> {
        let mut http = Http1::connect(self.host.address).await.unwrap();
        let mut seen = HashMap::<_, (u64, u64)>::new();
        while !self.done.load(Ordering::Relaxed) {
            let client = self.next.fetch_add(1, Ordering::Relaxed).to_string();
            let headers = [("x-client", client.as_str())];
            let answer = http.request("GET", self.path, &headers, None);
            let answer = answer.await.unwrap();
            let counts = seen.entry(answer.text()).or_default();
            counts.0 += 1;
            counts.1 += u64::from(answer.status == 500);
        }
        seen
    }

    fn stop(&self) {
        self.done.store(true, Ordering::Relaxed);
    }

    /// Waits until `count` more requests were made.
    async fn more(&self, count: u64) {
        let by = self.next.load(Ordering::Relaxed) + count;
        while self.next.load(Ordering::Relaxed) < by {
            tokio::task::yield_now().await;
        }
    }
}

async fn canary(host: &Host) -> Option<serde_json::Value> {
    host.app("probe").await.canary
}

/// Waits until something is on trial.
async fn on_trial(host: &Host) -> serde_json::Value {
    host.until("the trial", async || canary(host).await).await
}

#[tokio::test]
async fn a_version_that_fails_more_often_is_taken_back() {
    let host = host_with(CLIENTS).await;
    let clients = Clients::new(&host, "/fails?version=2.0.0&n=20");
    let (seen, ()) = tokio::join!(clients.run(), async {
        trial(&host, &["--canary", "5%", "--bake", "10m"])
            .await
            .expect_code(6)
            .expect_words(&["generation 2", "2.0.0", "taken back", "failed"]);
        clients.more(200).await;
        clients.stop();
    });
    assert_eq!(host.active("probe").await.version, "1.0.0");
    let (requests, failed) = seen["2.0.0"];
    assert!((2..=5).contains(&failed), "{failed} of {requests} failed");
    host.event("the abort", |event| event.kind == "canary_aborted")
        .await;
    host.event("the unload", |event| {
        event.kind == "unloaded" && event.generation == Some(2)
    })
    .await;
    let history = host.cli(["history", "probe"]).await.expect_code(0).stdout;
    assert!(history.contains("rolled back"), "{history}");
    assert_eq!(host.get("/version").await.text(), "1.0.0");
    assert!(canary(&host).await.is_none());
}

#[tokio::test]
async fn a_good_version_grows_step_by_step_and_is_promoted_unnoticed() {
    let host = host_with(CLIENTS).await;
    let load = Load {
        keep_alive: 4,
        closing: 2,
        streams: 2,
        pause: Duration::from_millis(2),
    };
    let clients = Clients::new(&host, "/version");
    let (seen, ()) = tokio::join!(clients.run(), async {
        let done = trial(
            &host,
            &["--canary", "10%", "--steps", "10,50%,100", "--bake", "1s"],
        );
        done.await.expect_code(0).expect_words(&[
            "10% of the requests",
            "50% of the requests",
            "100% of the requests",
            "is live as generation 2",
        ]);
        let load = load.start(host.address);
        load.more(20).await;
        load.stop().await.expect_unnoticed();
        clients.stop();
    });
    assert!(seen["1.0.0"].0 > 0 && seen["2.0.0"].0 > 0, "{seen:?}");
    let live = host.active("probe").await;
    assert_eq!((live.version.as_str(), live.generation), ("2.0.0", 2));
    assert_eq!(host.app("probe").await.generations[0].label, None);
    host.settled("probe").await;
}

#[tokio::test]
async fn who_is_sticky_never_goes_back() {
    let config = "[app.probe.canary]
sticky = \"cookie:session\"
always = [\"staff\"]
min_requests = 1
";
    let host = host_with(config).await;
    let ask = async |session: &str| {
        let mut http = Http1::connect(host.address).await.unwrap();
        let cookie = format!("a=b; session={session}");
        let headers = [("cookie", cookie.as_str())];
        http.request(
            "GET",
            "/version",
            &headers[..usize::from(!session.is_empty())],
            None,
        )
        .await
        .unwrap()
        .text()
    };
    let file = fixture("probe", "2.0.0");
    let line = ["deploy", file.to_str().unwrap(), "--detach"];
    let more = ["--canary", "20%", "--steps", "20,60,100", "--bake", "1s"];
    host.cli(line.iter().chain(&more)).await.expect_code(0);
    on_trial(&host).await;
    assert_eq!(ask("staff").await, "2.0.0");
    assert_eq!(ask("").await, "1.0.0", "nothing would bring it back");
    let mut versions = vec![String::new(); 50];
    let mut steps = Vec::new();
    while let Some(canary) = canary(&host).await {
        for (at, version) in versions.iter_mut().enumerate() {
            let now = ask(&at.to_string()).await;
            assert!(*version <= now, "session {at} went back to {now}");
            *version = now;
        }
        steps.push(canary["step"].as_u64().unwrap());
    }
    assert_eq!(*steps.last().unwrap(), 3, "{steps:?}");
    host.live("probe", "2.0.0").await;
}

#[tokio::test]
async fn too_few_requests_hold_it_and_what_stands_is_told() {
    let host = host_with(CLIENTS).await;
    let wait = trial(&host, &["--canary", "50%", "--bake", "100ms"]);
    let (ended, ()) = tokio::join!(wait, async {
        let held = host
            .event("the inconclusive trial", |event| {
                event.kind == "canary_inconclusive"
            })
            .await;
        assert!(held.message.contains("of the 20 requests"), "{held:?}");
        assert_eq!(canary(&host).await.unwrap()["inconclusive"], true);
        host.cli(["status"]).await.expect_code(0).expect_words(&[
            "canary 2.0.0",
            "50%",
            "inconclusive",
            "0 of the 20",
        ]);
        // Whoever comes meanwhile is told what stands.
        for line in [
            vec!["rollback", "probe"],
            vec![
                "deploy",
                fixture("hello", "1.0.0").to_str().unwrap(),
                "--app",
                "probe",
            ],
        ] {
            host.cli(line).await.expect_code(8).expect_words(&[
                "generation 2 (2.0.0)",
                "50%",
                "handover promote probe",
                "handover abort probe",
            ]);
        }
        // A preview beside it is in nobody's way.
        let preview = fixture("hello", "1.0.0");
        let preview = ["deploy", preview.to_str().unwrap(), "--app", "probe"];
        let label = ["--label", "fix-12"];
        host.cli(preview.iter().chain(&label)).await.expect_code(0);
        assert_eq!(host.active("probe").await.version, "1.0.0");
        for (word, paused) in [("pause", true), ("resume", false)] {
            host.cli(["canary", word, "probe"]).await.expect_code(0);
            assert_eq!(canary(&host).await.unwrap()["paused"], paused);
        }
        host.cli(["promote", "probe"]).await.expect_code(0);
    });
    ended.expect_code(0).expect_words(&["was promoted"]);
    host.live("probe", "2.0.0").await;
    host.cli(["canary", "pause"])
        .await
        .expect_code(1)
        .expect_words(&["nothing of probe is on trial", "--canary"]);
}

#[tokio::test]
async fn it_is_aborted_by_hand_in_any_state() {
    let host = host_with(CLIENTS).await;
    let wait = trial(&host, &["--canary", "100%", "--bake", "10m"]);
    let (ended, ()) = tokio::join!(wait, async {
        on_trial(&host).await;
        assert_eq!(host.get("/version").await.text(), "2.0.0");
        host.cli(["canary", "pause"]).await.expect_code(0);
        host.cli(["abort", "probe"]).await.expect_code(0);
        assert_eq!(host.get("/version").await.text(), "1.0.0");
    });
    ended.expect_code(6).expect_words(&["was aborted"]);
    assert_eq!(host.active("probe").await.generation, 1);
}

#[tokio::test]
async fn three_broken_clients_are_no_reason() {
    let host = host_with(CLIENTS).await;
    let wait = trial(&host, &["--canary", "50%", "--bake", "10m"]);
    let (ended, ()) = tokio::join!(wait, async {
        on_trial(&host).await;
        let mut http = Http1::connect(host.address).await.unwrap();
        for at in 0..600 {
            let client = (at % 3).to_string();
            let headers = [("x-client", client.as_str())];
            http.request("GET", "/fails?n=1", &headers, None)
                .await
                .unwrap();
        }
        let canary = canary(&host).await.unwrap();
        let failed = |side: &str| canary[side]["failed"].as_u64().unwrap();
        assert_eq!(failed("canary") + failed("live"), 3, "{canary}");
        host.cli(["abort"]).await.expect_code(0);
    });
    ended.expect_code(6).expect_words(&["was aborted"]);
}

#[tokio::test]
async fn with_all_requests_it_is_compared_with_what_was_before() {
    let host = host_with(CLIENTS).await;
    let clients = Clients::new(&host, "/fails?version=2.0.0&n=10");
    let (_, ()) = tokio::join!(clients.run(), async {
        // What is live is known not to fail.
        clients.more(3000).await;
        trial(&host, &["--canary", "100%", "--bake", "10m"])
            .await
            .expect_code(6)
            .expect_words(&["taken back"]);
        clients.stop();
    });
    assert_eq!(host.get("/version").await.text(), "1.0.0");
}

#[tokio::test]
async fn five_panics_in_one_place_end_it_at_once() {
    let host = host_with(CLIENTS).await;
    let clients = Clients::new(&host, "/panic");
    let (_, ()) = tokio::join!(clients.run(), async {
        // Both panic as often, so the figures say nothing.
        trial(&host, &["--canary", "50%", "--bake", "10m"])
            .await
            .expect_code(6)
            .expect_words(&["panicked 5 times at", "src/lib.rs"]);
        clients.stop();
    });
    assert_eq!(host.active("probe").await.version, "1.0.0");
}

#[tokio::test]
async fn a_crash_ends_it_and_what_was_live_comes_back() {
    let mut host = host_with(CLIENTS).await;
    let file = fixture("probe", "2.0.0");
    let line = [
        "deploy",
        file.to_str().unwrap(),
        "--detach",
        "--canary",
        "100%",
    ];
    host.cli(line).await.expect_code(0);
    on_trial(&host).await;
    host.crash(|_| ()).await;
    host.live("probe", "1.0.0").await;
    assert!(canary(&host).await.is_none());
    assert_eq!(host.get("/version").await.text(), "1.0.0");
}

#[tokio::test]
async fn where_nothing_is_live_there_is_nothing_to_try_it_beside() {
    let host = Host::start().await;
    trial(&host, &["--canary", "5%"]).await.expect_code(0);
    host.live("probe", "2.0.0").await;
    assert!(canary(&host).await.is_none());
    // What is live is no canary of itself.
    trial(&host, &["--canary", "5%"])
        .await
        .expect_code(0)
        .expect_words(&["live already"]);
}
