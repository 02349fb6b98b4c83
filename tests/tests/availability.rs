//! Whether an app answers: stopped, started, restarted, paused and resumed.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::time::Duration;

use handover_tests::{
    client::Http1,
    host::{Host, Setup},
    load::Load,
    plugins::{fixture, hello_as},
};

#[tokio::test]
async fn what_is_stopped_says_so_and_stays_so_until_it_is_started() {
    let mut host = Host::serving(&fixture("probe", "1.0.0")).await;
    host.cli(["status", "probe"]).await.expect_code(0);
    host.cli(["stop", "probe", "--message", "Back at nine."])
        .await
        .expect_code(0)
        .expect_words(&["generation 1 drains", "handover start"]);
    let answer = host.get("/version").await;
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (503, "Back at nine.\n")
    );
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(host.app("probe").await.state, "stopped");
    host.event("the unload", |event| event.kind == "unloaded")
        .await;
    host.cli(["status", "probe"])
        .await
        .expect_code(3)
        .expect_words(&["Back at nine.", "handover start probe"]);
    // What comes meanwhile is checked, and waits.
    host.deploy(&fixture("probe", "2.0.0"))
        .await
        .expect_code(0)
        .expect_words(&["handover start probe"]);
    for line in [["rollback", "probe"], ["restart", "probe"]] {
        let refused = host.cli(line).await;
        assert_ne!(refused.code, Some(0), "{refused:?}");
    }
    host.crash(|_| ()).await;
    assert_eq!(host.get("/version").await.text(), "Back at nine.\n");
    host.cli(["stop", "probe", "--message", "<h1>Soon</h1>"])
        .await
        .expect_code(0);
    let answer = host.get("/version").await;
    assert_eq!(
        (answer.header("content-type"), answer.text().as_str()),
        (Some("text/html; charset=utf-8"), "<h1>Soon</h1>\n")
    );
    host.cli(["start", "probe"]).await.expect_code(0);
    assert_eq!(host.get("/version").await.text(), "2.0.0");
    host.cli(["start", "probe"])
        .await
        .expect_code(0)
        .expect_words(&["live already"]);
    host.cli(["status", "probe"]).await.expect_code(0);
    host.crash(|_| ()).await;
    host.live("probe", "2.0.0").await;
}

#[tokio::test]
async fn codes_tell_what_init_scripts_ask() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    host.deploy_bytes(&hello_as("1.0.0")).await.expect_code(0);
    host.cli(["status", "nobody"])
        .await
        .expect_code(4)
        .expect_words(&["nobody", "hello", "probe"]);
    host.cli(["stop"])
        .await
        .expect_code(1)
        .expect_words(&["say which app", "hello", "probe"]);
    host.cli(["stop", "--all"]).await.expect_code(0);
    for app in ["hello", "probe"] {
        host.cli(["status", app]).await.expect_code(3);
    }
    host.cli(["start", "hello", "nobody", "probe"])
        .await
        .expect_code(1)
        .expect_words(&["there is no app nobody"]);
    for app in ["hello", "probe"] {
        host.cli(["status", app]).await.expect_code(0);
    }
}

#[tokio::test]
async fn a_restart_is_a_new_generation_and_nobody_notices() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    let load = Load::LIGHT.start(host.address);
    load.more(50).await;
    for generation in 2..=4 {
        host.cli(["restart", "probe"]).await.expect_code(0);
        let live = host.active("probe").await;
        assert_eq!(
            (live.version.as_str(), live.generation),
            ("1.0.0", generation)
        );
        load.more(20).await;
    }
    load.stop().await.expect_unnoticed();
    host.settled("probe").await;
}

#[tokio::test]
async fn paused_requests_wait_and_go_on_whatever_happened_meanwhile() {
    let host = Setup::new()
        .config("[app.probe]\nmax_concurrent = 4\nqueue = 100\n")
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    host.cli(["pause", "probe"]).await.expect_code(0);
    let ask = async || {
        let mut http = Http1::connect(host.address).await.unwrap();
        http.request("GET", "/version", &[], None).await.unwrap()
    };
    let waiting = async || {
        let status = host.cli(["status", "--json"]).await.json();
        status["apps"][0]["paused"]["waiting"].as_u64()
    };
    let asked = tokio::join!(ask(), ask(), ask(), ask(), ask(), ask(), async {
        host.until("six that wait", async || {
            (waiting().await == Some(6)).then_some(())
        })
        .await;
        host.cli(["status"])
            .await
            .expect_words(&["paused until `handover resume probe`", "6 requests wait"]);
        // A gap that nobody sees: nothing is live for a while.
        host.cli(["stop", "probe"]).await.expect_code(0);
        host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
        host.cli(["start", "probe"]).await.expect_code(0);
        host.cli(["resume", "probe"])
            .await
            .expect_code(0)
            .expect_words(&["6 requests that waited first"]);
    });
    for answer in [asked.0, asked.1, asked.2, asked.3, asked.4, asked.5] {
        assert_eq!((answer.status, answer.text().as_str()), (200, "2.0.0"));
    }
    assert_eq!(waiting().await, None);
    host.cli(["resume", "probe"])
        .await
        .expect_code(0)
        .expect_words(&["not paused"]);
}

#[tokio::test]
async fn a_request_waits_for_so_long_and_no_longer() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    host.cli(["pause", "--max-wait", "50ms"])
        .await
        .expect_code(0);
    let answer = host.get("/version").await;
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("probe is paused"));
    // A client that leaves gives up its place.
    host.cli(["pause", "--max-wait", "1m"]).await.expect_code(0);
    let mut http = Http1::connect(host.address).await.unwrap();
    let leaves = http.request("GET", "/version", &[], None);
    let left = tokio::time::timeout(Duration::from_millis(200), leaves).await;
    left.unwrap_err();
    drop(http);
    host.until("the place to be free", async || {
        let status = host.cli(["status", "--json"]).await.json();
        (status["apps"][0]["paused"]["waiting"] == 0).then_some(())
    })
    .await;
}
