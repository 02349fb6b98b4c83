//! Who holds a generation that was replaced: each is listed, can be ended by its identity, and
//! waited for.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use handover_tests::{
    client::{Http1, WebSocket, websocket::Message},
    host::{Host, Setup},
    plugins::fixture,
};
use serde_json::Value;

/// The holders that `handover drain` lists, the oldest first: kind, name and identity.
async fn listed(host: &Host) -> Vec<(String, String, Option<String>)> {
    let list = host.cli(["drain", "--json"]).await.expect_code(0).json();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let holders = list["holders"].as_array().unwrap().iter();
    holders
        .map(|one| {
            let id = one["id"].as_str().map(str::to_owned);
            (text(&one["kind"]), text(&one["name"]), id)
        })
        .collect()
}

/// Begins a request that is not answered for a while.
async fn begin(host: &Host, target: &str) -> Http1 {
    let mut http = Http1::connect(host.address).await.unwrap();
    http.send_head("GET", target, &[]).await.unwrap();
    http
}

#[tokio::test]
async fn each_holder_is_listed_and_ended_by_its_identity() {
    let host = Setup::new()
        .config("[app.probe]\ndrain_deadline = \"none\"\n")
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let held = async |count: usize| {
        host.until("what is held", async || {
            let list = host.cli(["drain", "probe", "1", "--json"]).await.json();
            let list = list["holders"].as_array().unwrap();
            (list.len() == count).then_some(())
        })
        .await;
    };
    let mut request = begin(&host, "/slow?ms=600000&secret=1").await;
    held(1).await;
    let mut stream = begin(&host, "/stream?n=1000000&every_ms=100").await;
    // With the task that feeds it.
    held(3).await;
    let mut connection = WebSocket::connect(host.address, "/ws").await.unwrap();
    held(4).await;
    host.get("/job?ms=600000&name=invoices").await;
    held(5).await;
    let file = fixture("probe", "2.0.0");
    host.cli(["deploy", file.to_str().unwrap(), "--detach"])
        .await
        .expect_code(0);
    host.live("probe", "2.0.0").await;
    let all = listed(&host).await;
    let mut names: Vec<_> = all
        .iter()
        .map(|(kind, name, _)| (kind.as_str(), name.as_str()))
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            ("connection", "GET /ws"),
            ("job", "invoices"),
            ("request", "GET /slow"),
            ("stream", "GET /stream"),
            ("task", "task"),
        ]
    );
    let metrics = host.ask("GET", "/metrics").await.unwrap().text();
    for kind in ["request", "stream", "connection", "task", "job"] {
        let line = format!("handover_holders{{app=\"probe\",generation=\"1\",kind=\"{kind}\"}} 1");
        assert!(metrics.contains(&line), "{kind}");
    }
    host.cli(["status"]).await.expect_words(&[
        "request GET /slow of 127.0.0.1",
        "stream GET /stream",
        "connection GET /ws",
        "job `invoices`",
    ]);
    let id = |kind: &str| {
        let holder = all.iter().find(|(known, ..)| known == kind);
        holder.unwrap().2.clone().unwrap()
    };
    assert!(id("request").starts_with("request:probe:1-"), "{all:?}");

    host.cli(["cancel", &id("request")])
        .await
        .expect_code(0)
        .expect_words(&["GET /slow", "told to end"]);
    let answer = request.answer("GET").await.unwrap();
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("cancelled"));
    host.cli(["cancel", &id("request")])
        .await
        .expect_code(1)
        .expect_words(&["not any more", "handover drain"]);

    host.cli(["cancel", &id("stream")]).await.expect_code(0);
    stream.answer("GET").await.unwrap_err();
    host.cli(["cancel", &id("connection")]).await.expect_code(0);
    assert_eq!(connection.receive().await, Ok(Message::Close(1012)));
    held(1).await;
    host.cli(["cancel", &id("job")])
        .await
        .expect_code(0)
        .expect_words(&["job invoices", "told to end"]);
    held(0).await;
    host.event("the unload", |event| event.kind == "unloaded")
        .await;
    assert_eq!(host.active("probe").await.version, "2.0.0");
}

#[tokio::test]
async fn a_drain_is_waited_for_and_says_whether_anything_was_cut() {
    let host = Setup::new()
        .config("[app.probe]\ndrain_deadline = \"2s\"\n")
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    host.cli(["drain", "--wait"])
        .await
        .expect_code(0)
        .expect_words(&["Nothing that was replaced"]);
    for (ms, version, code) in [("700", "2.0.0", 0), ("600000", "1.0.0", 7)] {
        let _request = begin(&host, &format!("/slow?ms={ms}")).await;
        host.until("the request", async || {
            let app = host.app("probe").await;
            let mut all = app.generations.iter();
            all.any(|one| one.in_flight > 0).then_some(())
        })
        .await;
        let file = fixture("probe", version);
        host.cli(["deploy", file.to_str().unwrap(), "--detach"])
            .await
            .expect_code(0);
        host.live("probe", version).await;
        let waited = host.cli(["drain", "probe", "--wait"]).await;
        waited.expect_code(code).expect_words(&["GET /slow"]);
        assert!(listed(&host).await.is_empty());
    }
}
