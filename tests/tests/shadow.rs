//! A version that gets copies of requests: what is copied, what is found, and that no client
//! notices.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{ffi::OsStr, time::Duration};

use handover_tests::{
    client::Http1,
    host::{Host, Output, Setup},
    load::Load,
    plugins::fixture,
};
use serde_json::Value;

/// A host with 1.0.0 of the probe, and 2.0.0 as its shadow.
async fn host_with(config: &str, more: &[&str]) -> Host {
    let host = Setup::new().config(config).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    deploy(&host, more).await.expect_code(0).expect_words(&[
        "generation 2",
        "`shadow`",
        "copies of 100%",
    ]);
    host
}

async fn deploy(host: &Host, more: &[&str]) -> Output {
    let file = fixture("probe", "2.0.0");
    let mut line = vec![OsStr::new("deploy"), file.as_os_str()];
    line.extend(["--shadow", "100%"].iter().chain(more).map(OsStr::new));
    host.cli(line).await
}

async fn shadow(host: &Host) -> Value {
    let list = host.cli(["shadow", "probe", "--json"]).await.json();
    list["shadows"][0].clone()
}

/// Waits until `count` answers were compared.
async fn compared(host: &Host, count: u64) -> Value {
    host.until("the comparisons", async || {
        let shadow = shadow(host).await;
        let number = |name: &str| shadow[name].as_u64().unwrap();
        (number("same") + number("differ") >= count).then_some(shadow)
    })
    .await
}

#[tokio::test]
async fn an_answer_that_differs_is_shown_and_the_client_gets_that_of_the_live_version() {
    let host = host_with("", &[]).await;
    assert_eq!(host.get("/version?a=b").await.text(), "1.0.0");
    assert_eq!(host.get("/not-modified").await.status, 304);
    let found = compared(&host, 2).await;
    assert_eq!((&found["same"], &found["differ"]), (&1.into(), &1.into()));
    assert_eq!(found["differences"][0]["request"], "GET /version?a=b");
    host.cli(["shadow"]).await.expect_code(0).expect_words(&[
        "probe 2.0.0 (generation 2) gets copies of 100%",
        "same: 1, different: 1",
        "GET /version?a=b",
        "5 bytes of body, then 5 others",
    ]);
    host.cli(["status", "probe"])
        .await
        .expect_words(&["shadow 2.0.0", "1 of its answers differ"]);
    let metrics = host.ask("GET", "/metrics").await.unwrap().text();
    let line = "handover_shadow_requests_total{app=\"probe\",result=\"differs\"} 1";
    assert!(metrics.contains(line), "{metrics}");
}

#[tokio::test]
async fn a_copy_says_that_it_is_one_and_what_writes_is_not_copied() {
    let host = host_with("", &[]).await;
    let mut http = Http1::connect(host.address).await.unwrap();
    let posted = http.request("POST", "/echo", &[], Some(b"hello")).await;
    assert_eq!(posted.unwrap().text(), "hello");
    let head = host.get("/head").await.text();
    assert!(!head.contains("handover-shadow"), "{head}");
    let found = compared(&host, 1).await;
    let differences = &found["differences"];
    assert_eq!(differences.as_array().unwrap().len(), 1, "{found}");
    assert_eq!(differences[0]["request"], "GET /head");
}

#[tokio::test]
async fn what_the_configuration_names_may_differ() {
    let config = "[app.probe.shadow]\nignore_fields = [\"version\"]\n";
    let host = host_with(config, &[]).await;
    host.get("/about").await;
    let found = compared(&host, 1).await;
    let first = &found["differences"][0]["differences"];
    assert!(!first.to_string().contains("/version"), "{found}");
}

#[tokio::test]
async fn no_client_notices_a_shadow_that_comes_goes_or_is_promoted() {
    let host = host_with("", &["--ttl", "1h"]).await;
    let load = Load {
        keep_alive: 8,
        closing: 2,
        streams: 2,
        pause: Duration::from_millis(5),
    }
    .start(host.address);
    load.more(200).await;
    // A second one takes its place.
    deploy(&host, &[]).await.expect_code(0);
    load.more(200).await;
    host.cli(["abort", "probe"]).await.expect_code(0);
    load.more(50).await;
    deploy(&host, &[]).await.expect_code(0);
    load.more(50).await;
    host.cli(["promote", "probe"]).await.expect_code(0);
    load.more(50).await;
    load.stop().await.expect_unnoticed();
    assert_eq!(host.active("probe").await.version, "2.0.0");
    let none = host.cli(["shadow"]).await.expect_code(0).stdout;
    assert!(none.contains("No version gets copies"), "{none}");
    host.settled("probe").await;
    assert_eq!(host.mapped_plugins(), 1);
}

#[tokio::test]
async fn a_shadow_has_no_other_label() {
    let host = host_with("", &[]).await;
    deploy(&host, &["--label", "other"]).await.expect_code(2);
    deploy(&host, &["--canary", "5%"]).await.expect_code(2);
    // Over the socket, too.
    let file = std::fs::read(fixture("probe", "2.0.0")).unwrap();
    let mut socket = Http1::connect_unix(&host.control()).await.unwrap();
    let path = "/v1/deploy?name=a.so&shadow=5%25&label=other";
    let refused = socket
        .request("POST", path, &[], Some(&file))
        .await
        .unwrap();
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("a shadow has the label `shadow`"));
}
