//! Limits of requests by whose they are: how many in a time, how many at once, and that they are
//! counted over deploys.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use handover_tests::{
    client::{Answer, Http1},
    host::{Host, Setup},
    plugins::fixture,
};

async fn host(config: &str) -> Host {
    let host = Setup::new().config(config).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    host
}

/// Asks as `client`.
async fn ask(host: &Host, client: &str) -> Answer {
    let mut http = Http1::connect(host.address).await.unwrap();
    let headers = [("x-client", client)];
    http.request("GET", "/version", &headers, None)
        .await
        .unwrap()
}

#[tokio::test]
async fn each_client_has_its_own_number_of_requests_over_a_deploy_as_well() {
    let config = "[[app.probe.limit]]\nby = \"header:x-client\"\nrequests = 3\nper = \"1h\"\n";
    let host = host(config).await;
    for _ in 0..2 {
        assert_eq!(ask(&host, "a").await.status, 200);
    }
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    assert_eq!(ask(&host, "a").await.text(), "2.0.0");
    let refused = ask(&host, "a").await;
    assert_eq!(refused.status, 429);
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=1200).contains(&wait), "{wait}");
    assert!(refused.text().contains("too many requests"));
    assert_eq!(ask(&host, "b").await.status, 200);
    // One that does not say who it is counts by its address.
    for status in [200, 200, 200, 429] {
        assert_eq!(host.get("/version").await.status, status);
    }
    let metrics = host.ask("GET", "/metrics").await.unwrap().text();
    let line = "handover_requests_rejected_total{app=\"probe\",code=\"429\"} 2";
    assert!(metrics.contains(line), "{metrics}");
    host.cli(["status", "probe"])
        .await
        .expect_words(&["2 too many of one (429)"]);
}

#[tokio::test]
async fn one_tenant_that_takes_all_it_may_leaves_the_others_theirs() {
    let config = "[app.probe.tenant]\nfrom = \"header:x-client\"\n\
                  [[app.probe.limit]]\nby = \"tenant\"\nconcurrent = 2\n";
    let host = host(config).await;
    let open = async |client: &'static str| {
        let mut http = Http1::connect(host.address).await.unwrap();
        let headers = [("x-client", client), ("transfer-encoding", "chunked")];
        http.send_head("POST", "/tag", &headers).await.unwrap();
        http
    };
    let held = [open("a").await, open("a").await];
    host.until("both", async || {
        let app = host.app("probe").await;
        (app.generations[0].in_flight == 2).then_some(())
    })
    .await;
    assert_eq!(ask(&host, "a").await.status, 429);
    assert_eq!(ask(&host, "b").await.status, 200);
    drop(held);
    host.until("room", async || {
        (ask(&host, "a").await.status == 200).then_some(())
    })
    .await;
}

/// How many requests wait.
async fn waiting(host: &Host, number: u64) {
    host.until("those who wait", async || {
        let status = host.ask("GET", "/v1/status").await.unwrap().json();
        (status["apps"][0]["limits"]["queued"] == number).then_some(())
    })
    .await;
}

/// Begins a request of `client` that ends when it is dropped.
async fn open(host: &Host, client: &str) -> Http1 {
    let mut http = Http1::connect(host.address).await.unwrap();
    let headers = [("x-client", client), ("transfer-encoding", "chunked")];
    http.send_head("POST", "/tag", &headers).await.unwrap();
    http
}

/// Begins a request of `client`, whose answer is not waited for.
async fn begin(host: &Host, client: &str) -> Http1 {
    let mut http = Http1::connect(host.address).await.unwrap();
    let headers = [("x-client", client)];
    http.send_head("GET", "/version", &headers).await.unwrap();
    http
}

#[tokio::test]
async fn those_of_a_tenant_beyond_its_number_wait_and_nobody_waits_for_them() {
    let config = "[app.probe.tenant]\nfrom = \"header:x-client\"\n\
                  [[app.probe.limit]]\nby = \"tenant\"\nconcurrent = 1\nqueue = 2\nqueue_wait = \"1h\"\n";
    let host = host(config).await;
    let held = open(&host, "a").await;
    host.until("it", async || {
        let app = host.app("probe").await;
        (app.generations[0].in_flight == 1).then_some(())
    })
    .await;
    let mut first = begin(&host, "a").await;
    waiting(&host, 1).await;
    let second = begin(&host, "a").await;
    waiting(&host, 2).await;
    let refused = ask(&host, "a").await;
    assert_eq!(refused.status, 429);
    host.cli(["status"])
        .await
        .expect_words(&["2 waiting for others of one"]);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(ask(&host, "b").await.status, 200);
    // A client that leaves gives its place back.
    drop(second);
    waiting(&host, 1).await;
    let mut third = begin(&host, "a").await;
    waiting(&host, 2).await;
    // What waits belongs to no version, and is answered by the one that is live then.
    host.deploy(&fixture("probe", "2.0.0")).await;
    drop(held);
    for waited in [&mut first, &mut third] {
        let answer = waited.answer("GET").await.unwrap();
        assert_eq!((answer.status, answer.text()), (200, "2.0.0".to_owned()));
    }
    waiting(&host, 0).await;
}

#[tokio::test]
async fn who_waits_for_too_long_is_told_to_come_again() {
    let config = "[[app.probe.limit]]\nby = \"header:x-client\"\nconcurrent = 1\nqueue = 5\nqueue_wait = \"50ms\"\n";
    let host = host(config).await;
    let held = open(&host, "a").await;
    host.until("it", async || {
        let app = host.app("probe").await;
        (app.generations[0].in_flight == 1).then_some(())
    })
    .await;
    let refused = ask(&host, "a").await;
    assert_eq!(refused.status, 429);
    assert!(refused.header("retry-after").is_some());
    waiting(&host, 0).await;
    drop(held);
    host.until("room", async || {
        (ask(&host, "a").await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_is_no_limit_is_told() {
    let host = Setup::new().config("").start().await;
    let file = host.scratch("handover.toml");
    for (text, part) in [
        (
            "[[app.a.limit]]\nby = \"me\"\nrequests = 1\n",
            "tells nothing of a request",
        ),
        ("[[app.a.limit]]\nrequests = 0\n", "requests"),
        ("[[app.a.limit]]\n", "`requests` or `concurrent`"),
        (
            "[[app.a.limit]]\nrequests = 1\nqueue = 1\n",
            "set `concurrent` beside `queue`",
        ),
        (
            "[[app.a.limit]]\nby = \"tenant\"\nrequests = 1\n",
            "`tenant.from`",
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        let line = ["config", "check", file.to_str().unwrap()];
        host.cli(line).await.expect_code(1).expect_words(&[part]);
    }
}
