//! Ids of requests and the trace context of the W3C: who may bring them, who sees them.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::net::SocketAddr;

use handover_tests::{
    client::{Answer, Http1, Http2},
    host::{Host, Setup},
    plugins::fixture,
};

/// The listener of trusted proxies is the second one: the first is that of the command line.
const CONFIG: &str = r#"
[server]
request_id = true
[[listen]]
address = "127.0.0.1:0"
trusted_proxies = ["127.0.0.1"]
"#;

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

async fn started() -> (Host, SocketAddr) {
    let host = Setup::new().config(CONFIG).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let listen = host.status().await.host.listen;
    let trusted = listen[1].parse().unwrap();
    (host, trusted)
}

async fn asked(at: SocketAddr, fields: &[(&str, &str)]) -> Answer {
    let mut http = Http1::connect(at).await.unwrap();
    http.request("GET", "/head", fields, None).await.unwrap()
}

/// What the app was told in the field `name`.
fn seen(answer: &Answer, name: &str) -> Vec<String> {
    let headers = answer.json()["headers"].as_array().unwrap().clone();
    let fields = headers.into_iter().filter(|field| field[0] == name);
    fields
        .map(|field| field[1].as_str().unwrap().to_owned())
        .collect()
}

fn is_made(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())
}

#[tokio::test]
async fn each_request_has_an_id_that_app_and_client_see() {
    let (host, trusted) = started().await;
    let mut ids = Vec::new();
    let stranger = [("x-request-id", "made-up")];
    let proxy = [("x-request-id", "proxy/1:2")];
    let hostile = [("x-request-id", "a b\u{e9}")];
    for (at, fields, kept) in [
        (host.address, &[][..], None),
        (host.address, &stranger, None),
        (trusted, &[], None),
        (trusted, &hostile, None),
        (trusted, &proxy, Some("proxy/1:2")),
    ] {
        let answer = asked(at, fields).await;
        let id = answer.header("x-request-id").unwrap().to_owned();
        assert_eq!(seen(&answer, "x-request-id"), [id.as_str()]);
        match kept {
            Some(kept) => assert_eq!(id, kept),
            None => assert!(is_made(&id), "{id}"),
        }
        assert!(!ids.contains(&id), "{id} came twice");
        ids.push(id);
    }
    // With HTTP/2, and where no app answers.
    let (two, _connection) = Http2::connect(host.address).await.unwrap();
    for _ in 0..2 {
        let answer = two.get("/head").await.unwrap();
        let id = answer.header("x-request-id").unwrap();
        assert_eq!(seen(&answer, "x-request-id"), [id]);
    }
    let mut http = Http1::connect(host.address).await.unwrap();
    http.send(b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n")
        .await
        .unwrap();
    let refused = http.answer("GET").await.unwrap();
    assert_eq!(refused.status, 400);
    assert!(is_made(refused.header("x-request-id").unwrap()));
    host.cli(["stop", "probe"]).await.expect_code(0);
    let down = host.get("/head").await;
    assert_eq!(down.status, 503);
    assert!(is_made(down.header("x-request-id").unwrap()));
}

#[tokio::test]
async fn a_trace_goes_on_and_nonsense_is_replaced() {
    let (host, _) = started().await;
    let valid = asked(
        host.address,
        &[("traceparent", TRACE), ("tracestate", "vendor=1")],
    )
    .await;
    assert_eq!(seen(&valid, "traceparent"), [TRACE]);
    assert_eq!(seen(&valid, "tracestate"), ["vendor=1"]);
    let upper = TRACE.to_uppercase();
    for fields in [
        &[("traceparent", "nonsense"), ("tracestate", "vendor=1")][..],
        &[("traceparent", &upper)],
        &[("traceparent", TRACE), ("traceparent", TRACE)],
    ] {
        let answer = asked(host.address, fields).await;
        let made = seen(&answer, "traceparent");
        assert_eq!(made.len(), 1);
        assert!(made[0].starts_with("00-") && made[0].ends_with("-00"));
        assert!(made[0].len() == 55 && !made[0].contains(&TRACE[3..35]));
        assert_eq!(seen(&answer, "tracestate"), [""; 0]);
    }
    assert_eq!(
        seen(&asked(host.address, &[]).await, "traceparent"),
        [""; 0]
    );
}

#[tokio::test]
async fn without_the_key_the_host_neither_adds_nor_changes_any() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    let answer = asked(
        host.address,
        &[("x-request-id", "mine"), ("traceparent", "nonsense")],
    )
    .await;
    assert_eq!(seen(&answer, "x-request-id"), ["mine"]);
    assert_eq!(seen(&answer, "traceparent"), ["nonsense"]);
    assert_eq!(answer.header("x-request-id"), None);
}

#[tokio::test]
async fn the_span_of_the_sdk_has_both() {
    let config = "[server]\nrequest_id = true\n[app.subscriber]\nroutes = [\"/\"]\n\
                  [app.subscriber.config]\nhas = \"none\"\nlines = \"unused\"\n";
    let host = Setup::new().config(config).start().await;
    host.deploy(&fixture("subscriber", "1.0.0"))
        .await
        .expect_code(0);
    let mut http = Http1::connect(host.address).await.unwrap();
    let fields = [("traceparent", TRACE)];
    let answer = http
        .request("GET", "/version", &fields, None)
        .await
        .unwrap();
    let id = answer.header("x-request-id").unwrap().to_owned();
    let trace = &TRACE[3..35];
    let span = format!("http{{method=GET path=/version request_id={id} trace_id={trace}}}");
    host.logged("the handler within the span", |line| {
        line.contains(&span) && line.contains("the handler speaks")
    })
    .await;
}
