//! The health of the node: `/livez` and `/readyz`, and a node that is drained.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::net::SocketAddr;

use handover_tests::{
    client::{Http1, Http2},
    host::{Host, Setup},
    plugins::fixture,
};
use rustix::process::Signal;

const METRICS: &str = "[metrics]\nlisten = \"127.0.0.1:0\"\n";
const ROUTES: &str = "[server]\nhealth_routes = true\n";

async fn metrics_address(host: &Host) -> SocketAddr {
    let status = host.ask("GET", "/v1/status").await.unwrap().json();
    status["host"]["metrics"].as_str().unwrap().parse().unwrap()
}

async fn asked(at: SocketAddr, path: &str) -> (u16, String) {
    let mut http = Http1::connect(at).await.unwrap();
    let answer = http.get(path).await.unwrap();
    (answer.status, answer.text())
}

#[tokio::test]
async fn a_drained_node_is_not_ready_and_serves_what_comes() {
    let host = Setup::new()
        .config(&format!("{METRICS}{ROUTES}"))
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let metrics = metrics_address(&host).await;
    let ok = (200, "ok\n".to_owned());
    for at in [metrics, host.address] {
        assert_eq!(asked(at, "/livez").await, ok);
        assert_eq!(asked(at, "/readyz").await, ok);
    }
    host.cli(["drain-node"])
        .await
        .expect_code(0)
        .expect_words(&["the node is drained"]);
    // A second time it is as it was, and told once.
    host.cli(["drain-node"]).await.expect_code(0);
    let drained = (503, "the node is drained\n".to_owned());
    for at in [metrics, host.address] {
        assert_eq!(asked(at, "/readyz").await, drained);
        assert_eq!(asked(at, "/livez").await, ok);
    }
    assert_eq!(host.get("/version").await.text(), "1.0.0");
    host.cli(["status"])
        .await
        .expect_words(&["not ready for traffic: the node is drained"]);
    let status = host.ask("GET", "/v1/status").await.unwrap().json();
    assert_eq!(status["host"]["drained"], true);
    let told = host.ask("GET", "/metrics").await.unwrap().text();
    assert!(told.contains("\nhandover_ready 0\n"), "{told}");
    host.cli(["drain-node", "--undo"]).await.expect_code(0);
    assert_eq!(asked(metrics, "/readyz").await, ok);
    let kinds: Vec<_> = host.events().await.into_iter().map(|e| e.kind).collect();
    let told = |kind: &str| kinds.iter().filter(|one| *one == kind).count();
    assert_eq!((told("node_drained"), told("node_resumed")), (1, 1));
}

#[tokio::test]
async fn the_drain_waits_until_the_traffic_has_gone() {
    let host = Setup::new().start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    // One that is idle does not count.
    let mut idle = Http1::connect(host.address).await.unwrap();
    assert_eq!(idle.get("/version").await.unwrap().status, 200);
    let mut open = Http1::connect(host.address).await.unwrap();
    open.send_head("GET", "/endless", &[]).await.unwrap();
    assert_eq!(open.head("GET").await.unwrap().status, 200);
    host.cli(["drain-node", "--wait", "300ms"])
        .await
        .expect_code(1)
        .expect_words(&["1 request and 1 busy connection are left", "stays drained"]);
    let json = host
        .cli(["drain-node", "--wait", "100ms", "--json"])
        .await
        .expect_code(1)
        .json();
    assert_eq!(json["is_quiet"], false);
    assert_eq!(json["in_flight"], 1);
    let waiting = host.cli(["drain-node", "--wait", "60s"]);
    let ends = async {
        drop(open);
    };
    let (ended, ()) = tokio::join!(waiting, ends);
    ended.expect_code(0).expect_words(&["its traffic has gone"]);
    assert_eq!(idle.get("/version").await.unwrap().status, 200);
}

#[tokio::test]
async fn without_the_key_the_paths_are_those_of_apps() {
    let host = Setup::new().config("[app.probe]\n").start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    assert_eq!(host.get("/readyz").await.status, 404);
    let of_app = host.get("/livez").await;
    assert_ne!(of_app.header("cache-control"), Some("no-store"));
    // Turned on while the host runs, for the connections that come.
    let file = host.home().join("handover.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("[app.probe]"), "{text}");
    std::fs::write(&file, format!("{ROUTES}[app.probe]\n")).unwrap();
    host.cli(["reload-config"]).await.expect_code(0);
    let answer = host.get("/readyz").await;
    assert_eq!(
        (answer.status, answer.header("cache-control")),
        (200, Some("no-store"))
    );
    let mut http = Http1::connect(host.address).await.unwrap();
    let head = http.request("HEAD", "/readyz", &[], None).await.unwrap();
    assert_eq!((head.status, head.text().len()), (200, 0));
    let posted = http.request("POST", "/livez", &[], None).await.unwrap();
    assert_eq!(
        (posted.status, posted.header("allow")),
        (405, Some("GET, HEAD"))
    );
    let (two, _connection) = Http2::connect(host.address).await.unwrap();
    assert_eq!(two.get("/livez").await.unwrap().text(), "ok\n");
    assert_eq!(host.get("/readyz/more").await.status, 404);
}

#[tokio::test]
async fn a_node_is_not_ready_until_what_was_live_is_up_again() {
    let mut host = Setup::new()
        .config(&format!("{METRICS}{ROUTES}"))
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    host.deploy(&fixture("hello", "1.0.0")).await.expect_code(0);
    // What the store has of one of them is no artifact any more.
    let artifact = host.active("hello").await.artifact;
    host.signal(Signal::TERM);
    assert_eq!(host.ended().await, Some(0));
    let kept = host.state().join(format!("artifacts/{artifact}.so"));
    std::fs::remove_file(kept).unwrap();
    host.again().await;
    let (status, why) = asked(host.address, "/readyz").await;
    assert_eq!(
        (status, why.as_str()),
        (503, "hello 1.0.0 has not come up\n")
    );
    assert_eq!(asked(metrics_address(&host).await, "/livez").await.0, 200);
    assert_eq!(host.get("/version").await.text(), "1.0.0");
    host.deploy(&fixture("hello", "1.0.0")).await.expect_code(0);
    assert_eq!(asked(host.address, "/readyz").await.0, 200);
    // One that was stopped is not missed.
    host.cli(["stop", "hello"]).await.expect_code(0);
    assert_eq!(asked(host.address, "/readyz").await.0, 200);
}
