//! The old generation finishes what it has: all of it, within its deadline, and nothing that is
//! none.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{ffi::OsStr, time::Duration};

use handover_tests::{
    client::{Answer, Fault, Http1, Http2, WebSocket, websocket::Message},
    host::{Host, Setup},
    plugins::{fixture, rewritten},
};
use tokio::task::JoinHandle;

/// A host on which probe 1.0.0 is live, with settings of its section.
async fn probe(settings: &str) -> Host {
    let host = Setup::new()
        .config(&format!("[app.probe]\n{settings}\n"))
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    host
}

/// Asks on a connection of its own, and is back when the request is in flight.
async fn in_flight(host: &Host, path: &str) -> JoinHandle<Result<Answer, Fault>> {
    let busy = |app: &handover_tests::host::AppStatus| {
        app.generations
            .iter()
            .map(|generation| generation.in_flight)
            .sum::<u64>()
    };
    // An answer may have arrived whose request is not counted out yet.
    let mut before = busy(&host.app("probe").await);
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        before = before.min(busy(&host.app("probe").await));
    }
    let (address, path) = (host.address, path.to_owned());
    let asked = tokio::spawn(async move { Http1::connect(address).await?.get(&path).await });
    host.app_when("probe", "the request to be in flight", |app| {
        busy(app) > before
    })
    .await;
    asked
}

async fn detached(host: &Host, version: &str) -> handover_tests::host::Output {
    host.cli([
        OsStr::new("deploy"),
        fixture("probe", version).as_os_str(),
        OsStr::new("--detach"),
    ])
    .await
}

#[tokio::test]
async fn what_is_in_flight_ends_on_the_old_code_and_deploy_waits_for_it() {
    let host = probe("").await;
    let slow = in_flight(&host, "/slow?ms=1500").await;
    let output = host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    assert!(
        slow.is_finished(),
        "deploy ends when the old generation has: {output:?}"
    );
    let answer = slow.await.unwrap().unwrap();
    assert_eq!(
        (answer.status, answer.text().as_str(), answer.version()),
        (200, "1.0.0", Some("1.0.0"))
    );
}

#[tokio::test]
async fn past_the_deadline_it_is_cancelled_counted_and_said() {
    let host = probe("drain_deadline = \"500ms\"").await;
    let slow = in_flight(&host, "/slow?ms=600000").await;
    let stream = in_flight(&host, "/stream?n=1000000&every_ms=10").await;
    let output = host.deploy(&fixture("probe", "2.0.0")).await.expect_code(7);
    assert!(output.text().contains('2'), "both are counted: {output:?}");
    match slow.await.unwrap() {
        Ok(answer) => assert_eq!(answer.status, 503, "{answer:?}"),
        Err(fault) => assert!(matches!(fault, Fault::Cut(_)), "{fault}"),
    }
    let cut = stream.await.unwrap();
    assert!(
        matches!(cut, Err(Fault::Cut(_))),
        "a stream without its end must not look whole: {cut:?}"
    );
    let settled = host.settled("probe").await;
    assert_eq!(settled.active.unwrap().version, "2.0.0");
    assert_eq!(host.get("/version").await.text(), "2.0.0");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_at_the_deadline() {
    let host = probe("drain_deadline = \"500ms\"").await;
    let mut http = Http1::connect(host.address).await.unwrap();
    http.send_head("GET", "/download?bytes=1000000000", &[])
        .await
        .unwrap();
    assert_eq!(http.head("GET").await.unwrap().version(), Some("1.0.0"));
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(7);
    host.settled("probe").await;
}

#[tokio::test]
async fn what_never_ends_is_ended_as_its_client_understands_and_is_no_failure() {
    for (strict, code) in [(false, 0), (true, 7)] {
        let host = probe("drain_deadline = \"500ms\"").await;
        let mut socket = WebSocket::connect(host.address, "/ws").await.unwrap();
        socket.send("hello").await.unwrap();
        socket.receive().await.unwrap();
        let events = in_flight(&host, "/endless?name=text/event-stream").await;
        let (two, _) = Http2::connect(host.address).await.unwrap();
        let path = "/endless?name=application/grpc";
        let (calls, _) = two.open(http::Method::GET, path, true).await.unwrap();
        let (stream, _) = two
            .open(http::Method::GET, "/endless?name=text/event-stream", true)
            .await
            .unwrap();

        let path = fixture("probe", "2.0.0");
        let mut arguments = vec![OsStr::new("deploy"), path.as_os_str()];
        if strict {
            arguments.push(OsStr::new("--strict-drain"));
        }
        host.cli(arguments)
            .await
            .expect_code(code)
            .expect_words(&["4 endless streams of it had to be ended"]);
        assert_eq!(socket.receive().await, Ok(Message::Close(1012)));
        let events = events.await.unwrap().unwrap();
        assert_eq!(events.text(), "data: 1\n\n", "it ends as it should");
        let calls = calls.finish().await.unwrap();
        assert_eq!(calls.trailer("grpc-status"), Some("14"));
        assert_eq!(stream.finish().await.unwrap().text(), "data: 1\n\n");
        host.event("it to be told", |event| {
            event.kind == "streams_ended" && event.message.contains("4 endless streams ended")
        })
        .await;
        host.settled("probe").await;
        assert_eq!(host.get("/version").await.text(), "2.0.0");
    }
}

#[tokio::test]
async fn a_part_that_looks_like_the_whole_is_broken_off() {
    let host = probe("drain_deadline = \"200ms\"").await;
    let list = in_flight(&host, "/endless?name=text/csv").await;
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(7);
    assert!(matches!(list.await.unwrap(), Err(Fault::Cut(_))));
}

#[tokio::test]
async fn jobs_are_not_cut_by_the_deadline_of_requests() {
    let host = probe("drain_deadline = \"200ms\"").await;
    assert_eq!(
        host.get("/job?ms=2500&name=invoice%20run").await.text(),
        "1.0.0"
    );
    detached(&host, "2.0.0").await.expect_code(0);
    host.live("probe", "2.0.0").await;
    let ended = tokio::time::Instant::now() + Duration::from_millis(600);
    tokio::time::sleep_until(ended).await;
    let old = host.app("probe").await.generations[0].clone();
    assert_eq!(
        (old.state.as_str(), old.in_flight, old.jobs),
        ("draining", 1, 1)
    );
    host.settled("probe").await;
}

#[tokio::test]
async fn jobs_are_cut_at_their_own_deadline() {
    let host = probe("drain_deadline = \"200ms\"\njob_deadline = \"500ms\"").await;
    host.get("/job?ms=600000").await;
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(7);
    host.settled("probe").await;
}

#[tokio::test]
async fn spawned_work_counts() {
    let host = probe("").await;
    host.get("/spawn?ms=1500").await;
    let counted = host.app("probe").await.generations[0].clone();
    assert_eq!((counted.in_flight, counted.jobs), (1, 0));
    let output = host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    let after = host.settled("probe").await;
    assert_eq!(after.active.unwrap().version, "2.0.0", "{output:?}");
}

#[tokio::test]
async fn idle_connections_do_not_count() {
    let host = probe("").await;
    let mut idle = Vec::new();
    for _ in 0..8 {
        let mut http = Http1::connect(host.address).await.unwrap();
        assert_eq!(http.get("/version").await.unwrap().text(), "1.0.0");
        idle.push(http);
    }
    // And one that has never asked anything.
    idle.push(Http1::connect(host.address).await.unwrap());
    let counted = host.app("probe").await.generations[0].clone();
    assert_eq!(counted.in_flight, 0);
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    host.settled("probe").await;
    for http in &mut idle {
        assert_eq!(http.get("/version").await.unwrap().text(), "2.0.0");
    }
}

#[tokio::test]
async fn a_client_that_leaves_counts_no_more() {
    let host = probe("").await;
    let stream = in_flight(&host, "/stream?n=1000000&every_ms=5").await;
    let slow = in_flight(&host, "/slow?ms=600000").await;
    stream.abort();
    slow.abort();
    host.app_when("probe", "nothing to be in flight", |app| {
        app.generations[0].in_flight == 0
    })
    .await;
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
}

#[tokio::test]
async fn handlers_are_told_that_they_drain() {
    let host = probe("").await;
    let waiting = in_flight(&host, "/until-draining").await;
    let events = in_flight(&host, "/events?every_ms=20").await;
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    assert_eq!(waiting.await.unwrap().unwrap().text(), "1.0.0");
    let events = events.await.unwrap().unwrap().text();
    assert!(events.ends_with("event: bye\ndata: 1.0.0\n\n"), "{events}");
}

#[tokio::test]
async fn a_deploy_beyond_the_old_generations_allowed_is_refused() {
    let host = probe("max_old_generations = 1\nwhen_full = \"refuse\"").await;
    let first = in_flight(&host, "/slow?ms=4000").await;
    detached(&host, "2.0.0").await.expect_code(0);
    host.live("probe", "2.0.0").await;
    let second = in_flight(&host, "/stream?n=1000000&every_ms=10").await;

    let third = rewritten("probe", |bytes| {
        handover_tests::elf::set_version(bytes, "3.0.0")
    });
    let output = host.deploy_bytes(&third).await;
    assert!(!matches!(output.code, Some(0)), "{output:?}");
    output.expect_words(&["max_old_generations"]);
    assert_eq!(host.active("probe").await.version, "2.0.0");

    assert_eq!(first.await.unwrap().unwrap().text(), "1.0.0");
    second.abort();
    host.settled("probe").await;
    host.deploy_bytes(&third).await.expect_code(0);
}

#[tokio::test]
async fn or_the_oldest_is_ended_for_it() {
    let host =
        probe("max_old_generations = 1\nwhen_full = \"end-oldest\"\ndrain_deadline = \"60s\"")
            .await;
    let first = in_flight(&host, "/stream?n=1000000&every_ms=10").await;
    detached(&host, "2.0.0").await.expect_code(0);
    host.live("probe", "2.0.0").await;
    let second = in_flight(&host, "/slow?ms=1500").await;

    let third = rewritten("probe", |bytes| {
        handover_tests::elf::set_version(bytes, "3.0.0")
    });
    host.deploy_bytes(&third).await.expect_code(0);
    assert!(matches!(first.await.unwrap(), Err(Fault::Cut(_))));
    assert_eq!(
        second.await.unwrap().unwrap().text(),
        "2.0.0",
        "only the oldest is ended"
    );
    host.settled("probe").await;
}

#[tokio::test]
async fn shutdown_drains_too() {
    let mut host = probe("").await;
    let slow = in_flight(&host, "/slow?ms=1500").await;
    host.cli(["shutdown"]).await.expect_code(0);
    assert_eq!(slow.await.unwrap().unwrap().text(), "1.0.0");
    assert_eq!(host.ended().await, Some(0));
}

#[tokio::test]
async fn shutdown_now_does_not() {
    let mut host = probe("").await;
    let slow = in_flight(&host, "/slow?ms=600000").await;
    host.cli(["shutdown", "--now"]).await.expect_code(0);
    assert_eq!(host.ended().await, Some(0));
    // It is cut, or told so.
    assert!(
        slow.await.unwrap().is_ok_and(|answer| answer.status == 503)
            || host.log().iter().any(|line| line.contains("cancelled"))
    );
}
