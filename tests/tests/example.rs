//! The example keeps its promise: links that keep working while the code behind them is being
//! replaced.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use handover_tests::{
    client::{Answer, Http1},
    host::Host,
    plugins::fixture,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

async fn ask(host: &Host, method: &str, path: &str, body: Option<Value>) -> Answer {
    let mut http = Http1::connect(host.address).await.unwrap();
    let body = body.map(|body| body.to_string());
    let headers = [("content-type", "application/json")];
    http.request(method, path, &headers, body.as_deref().map(str::as_bytes))
        .await
        .unwrap()
}

async fn add(host: &Host, slug: &str) -> u16 {
    let wish = json!({ "url": "https://example.org/page", "slug": slug });
    ask(host, "POST", "/api/links", Some(wish)).await.status
}

async fn links(host: &Host) -> Vec<Value> {
    let list = ask(host, "GET", "/api/links", None).await.json();
    list["links"].as_array().unwrap().clone()
}

async fn swap(host: &Host, version: &str) {
    let file = fixture("example-plugin", version);
    host.deploy(&file).await.expect_code(0);
}

#[tokio::test]
async fn links_and_their_hits_outlive_the_code_that_made_them() {
    let mut host = Host::serving(&fixture("example-plugin", "1.0.0")).await;
    let first: Vec<_> = links(&host).await;
    assert_eq!(first.len(), 2, "it begins with two");
    assert_eq!(add(&host, "mine").await, 201);
    assert_eq!(add(&host, "mine").await, 409, "it is taken");
    for version in ["2.0.0", "1.0.0"] {
        let followed = ask(&host, "GET", "/mine", None).await;
        assert_eq!(followed.status, 302);
        let location = followed.header("location");
        assert_eq!(location, Some("https://example.org/page"));
        swap(&host, version).await;
    }
    let [newest, ..] = &links(&host).await[..] else {
        panic!("there are links");
    };
    assert_eq!(newest["slug"], "mine");
    assert_eq!(newest["hits"], 2);
    host.crash(|_| ()).await;
    host.live("example-plugin", "1.0.0").await;
    assert_eq!(links(&host).await.len(), 3);
    assert_eq!(ask(&host, "GET", "/mine", None).await.status, 302);
    let gone = ask(&host, "DELETE", "/api/links/mine", None).await;
    assert_eq!(gone.status, 204);
    assert_eq!(ask(&host, "GET", "/mine", None).await.status, 404);
    assert_eq!(links(&host).await.len(), 2);
    // Made again, it begins at nothing.
    assert_eq!(add(&host, "mine").await, 201);
    assert_eq!(links(&host).await[0]["hits"], 0);
}

#[tokio::test]
async fn an_open_page_hears_of_hits_that_another_generation_counts() {
    let host = Host::serving(&fixture("example-plugin", "1.0.0")).await;
    let mut page = Http1::connect(host.address).await.unwrap();
    page.send_head("GET", "/events", &[]).await.unwrap();
    page.head("GET").await.unwrap();
    let (mut buffered, mut trailers) = (String::new(), Vec::new());
    let mut hears = async |what: &str| {
        while !buffered.contains(what) {
            let chunk = page.chunk(&mut trailers).await.unwrap();
            let chunk = chunk.expect("it goes on");
            buffered.push_str(&String::from_utf8_lossy(&chunk));
        }
        buffered.clear();
    };
    hears("event: links").await;
    assert_eq!(ask(&host, "GET", "/rust", None).await.status, 302);
    hears("{\"rust\":1}").await;
    let file = fixture("example-plugin", "2.0.0");
    host.cli(["deploy", "--detach", file.to_str().unwrap()])
        .await
        .expect_code(0);
    hears("event: draining").await;
}

#[tokio::test]
async fn as_many_as_ask_at_once_get_a_link_each() {
    let host = Host::serving(&fixture("example-plugin", "1.0.0")).await;
    let mut asking = JoinSet::new();
    for _ in 0..16 {
        let address = host.address;
        asking.spawn(async move {
            let mut http = Http1::connect(address).await.unwrap();
            let json = [("content-type", "application/json")];
            let wish = br#"{"url":"https://example.org/"}"#;
            let answer = http.request("POST", "/api/links", &json, Some(wish)).await;
            answer.unwrap().status
        });
    }
    while let Some(status) = asking.join_next().await {
        assert_eq!(status.unwrap(), 201);
    }
    let all = links(&host).await;
    assert_eq!(all.len(), 18);
    let numbered: std::collections::BTreeSet<_> =
        all.iter().map(|link| link["slug"].to_string()).collect();
    assert_eq!(numbered.len(), 18);
}
