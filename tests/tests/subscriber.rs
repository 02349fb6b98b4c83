//! An app's own subscriber works, and what the host is told has the spans that it happened in.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use handover_tests::{
    host::{Host, Setup},
    plugins::fixture,
};

/// A host on which the app has such a subscriber, and what that wrote after one request.
async fn asked(has: &str) -> (Host, String) {
    let host = Setup::new()
        .config(&format!(
            "[app.subscriber.config]\nlines = \"HOME/lines\"\nhas = \"{has}\"\n"
        ))
        .start()
        .await;
    for version in ["1.0.0", "2.0.0"] {
        host.deploy(&fixture("subscriber", version))
            .await
            .expect_code(0);
        assert_eq!(host.get("/version?secret=1").await.text(), version);
    }
    host.settled("subscriber").await;
    assert_eq!(host.mapped_plugins(), 1);
    let lines = std::fs::read_to_string(host.home().join("lines")).unwrap_or_default();
    (host, lines)
}

fn tells(host: &Host, words: &str) -> usize {
    let log = host.log();
    log.iter().filter(|line| line.contains(words)).count()
}

const SPAN: &str = "request{method=GET path=/version late=7}: ";

#[tokio::test]
async fn without_one_the_host_is_told_with_spans() {
    let (host, lines) = asked("none").await;
    assert_eq!(lines, "");
    // Both generations.
    let handler = format!("{SPAN}the handler speaks answer=42 ");
    host.logged("the handler", |line| line.contains(&handler))
        .await;
    let response = format!("{SPAN}finished processing request latency=");
    host.logged("the answer", |line| line.contains(&response))
        .await;
    host.logged("the record", |line| line.contains(" a record speaks "))
        .await;
    assert!(tells(&host, "before it is chosen") >= 2);
    assert!(tells(&host, "the handler speaks") == 2, "{:#?}", host.log());
}

#[tokio::test]
async fn its_own_is_the_one() {
    let (host, lines) = asked("its own").await;
    let told = |words: &str| lines.lines().filter(|line| line.contains(words)).count();
    assert_eq!(told("the handler speaks answer=42"), 2, "{lines}");
    assert_eq!(told("a record speaks"), 2, "{lines}");
    assert_eq!(told("finished processing request"), 2, "{lines}");
    assert_eq!(tells(&host, "the handler speaks"), 0);
    assert_eq!(host.status().await.apps[0].generations[0].panics, 0);
    // Until it had chosen, the host was told.
    host.logged("the constructor", |line| {
        line.contains("before it is chosen")
    })
    .await;
}

#[tokio::test]
async fn both_are_told_where_it_has_the_layer_of_the_host() {
    let (host, lines) = asked("both").await;
    let told = |words: &str| lines.lines().filter(|line| line.contains(words)).count();
    assert_eq!(told("the handler speaks answer=42"), 2, "{lines}");
    let handler = format!("{SPAN}the handler speaks answer=42 ");
    host.logged("the handler", |line| line.contains(&handler))
        .await;
    assert_eq!(tells(&host, "the handler speaks"), 2);
}
