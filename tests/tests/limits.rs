//! What an app may take: time, requests at a time, requests that wait.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use handover_tests::{
    client::{Answer, Http1, WebSocket, websocket::Message},
    host::{Host, Setup},
    plugins::fixture,
};
use tokio::task::JoinSet;

async fn host_with(limits: &str) -> Host {
    let host = Setup::new()
        .config(&format!("[app.probe]\n{limits}\n"))
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    host
}

/// What the status says of the limits.
async fn counted(host: &Host, field: &str) -> u64 {
    let answer = host.ask("GET", "/v1/status").await.unwrap().json();
    answer["apps"][0]["limits"][field].as_u64().unwrap()
}

fn ask(host: &Host, path: &'static str) -> impl Future<Output = Answer> + Send + 'static {
    let address = host.address;
    async move {
        let mut http = Http1::connect(address).await.unwrap();
        http.get(path).await.unwrap()
    }
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_504_and_its_handler_is_dropped() {
    let host = host_with("request_timeout = \"200ms\"").await;
    let mut http = Http1::connect(host.address).await.unwrap();
    let answer = http.get("/slow?ms=60000").await.unwrap();
    assert_eq!(answer.status, 504);
    assert!(answer.text().contains("probe"), "{}", answer.text());
    // The connection lives on, and nothing is left in flight.
    assert_eq!(http.get("/version").await.unwrap().text(), "1.0.0");
    assert_eq!(counted(&host, "timed_out").await, 1);
    host.app_when("probe", "nothing to be in flight", |app| {
        app.generations.iter().all(|one| one.in_flight == 0)
    })
    .await;
    // What has begun in time may go on for longer.
    let stream = http.get("/stream?n=4&every_ms=100").await.unwrap();
    assert_eq!(stream.text().lines().count(), 4);
}

#[tokio::test]
async fn beyond_its_limit_an_app_refuses_with_retry_after() {
    let host = host_with("max_concurrent = 2").await;
    let mut busy = JoinSet::new();
    for _ in 0..2 {
        busy.spawn(ask(&host, "/until-draining"));
    }
    host.until("both to run", async || {
        (counted(&host, "running").await == 2).then_some(())
    })
    .await;
    for _ in 0..3 {
        let refused = host.get("/version").await;
        assert_eq!(refused.status, 503);
        assert!(refused.header("retry-after").is_some());
    }
    assert_eq!(counted(&host, "refused").await, 3);
    // The next version ends them, and takes their place.
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    while let Some(answer) = busy.join_next().await {
        assert_eq!(answer.unwrap().text(), "1.0.0");
    }
    assert_eq!(host.get("/version").await.text(), "2.0.0");
    assert_eq!(counted(&host, "running").await, 0);
}

#[tokio::test]
async fn those_in_the_queue_are_answered_by_what_is_active_when_their_turn_comes() {
    let host = host_with("max_concurrent = 1\nqueue = 3").await;
    let mut first = JoinSet::new();
    first.spawn(ask(&host, "/until-draining"));
    host.until("it to run", async || {
        (counted(&host, "running").await == 1).then_some(())
    })
    .await;
    let mut queue = JoinSet::new();
    for _ in 0..3 {
        queue.spawn(ask(&host, "/version"));
    }
    host.until("three to wait", async || {
        (counted(&host, "waiting").await == 3).then_some(())
    })
    .await;
    assert_eq!(host.get("/version").await.status, 503);
    // They hold up no drain, and go to the new version.
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    assert_eq!(first.join_next().await.unwrap().unwrap().text(), "1.0.0");
    while let Some(answer) = queue.join_next().await {
        assert_eq!(answer.unwrap().text(), "2.0.0");
    }
    assert_eq!(counted(&host, "waiting").await, 0);
}

#[tokio::test]
async fn a_stream_counts_until_it_has_ended() {
    let host = host_with("max_concurrent = 1").await;
    let mut http = Http1::connect(host.address).await.unwrap();
    http.send_head("GET", "/events?every_ms=10", &[])
        .await
        .unwrap();
    assert_eq!(http.head("GET").await.unwrap().status, 200);
    assert_eq!(host.get("/version").await.status, 503);
    drop(http);
    host.until("the place to be free", async || {
        (counted(&host, "running").await == 0).then_some(())
    })
    .await;
    assert_eq!(host.get("/version").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_an_app_may_take_is_refused_in_time_and_none_is_lost() {
    const CLIENTS: u64 = 24;
    const EACH: u64 = 25;
    let host = host_with("max_concurrent = 2\nqueue = 4\nrequest_timeout = \"300ms\"").await;
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let address = host.address;
        clients.spawn(async move {
            let mut http = Http1::connect(address).await.unwrap();
            let mut seen = std::collections::BTreeMap::<u16, u64>::new();
            for n in 0..EACH {
                // Most are short, some take longer than they may, and hold one of the two places
                // meanwhile.
                let path = if (client + n) % 8 == 0 {
                    "/slow?ms=60000"
                } else {
                    "/slow?ms=5"
                };
                *seen
                    .entry(http.get(path).await.unwrap().status)
                    .or_default() += 1;
            }
            seen
        });
    }
    // A swap in the middle of it changes nothing.
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    let mut seen = std::collections::BTreeMap::<u16, u64>::new();
    while let Some(of_one) = clients.join_next().await {
        for (status, number) in of_one.unwrap() {
            *seen.entry(status).or_default() += number;
        }
    }
    println!(
        "an app beyond its limits: {} sent, answered {seen:?}, 0 lost",
        CLIENTS * EACH
    );
    assert_eq!(seen.values().sum::<u64>(), CLIENTS * EACH);
    assert!(
        seen.keys().all(|status| [200, 503, 504].contains(status)),
        "{seen:?}"
    );
    assert!(seen.len() == 3, "all of it happened: {seen:?}");
    assert_eq!(counted(&host, "refused").await, seen[&503]);
    assert_eq!(counted(&host, "timed_out").await, seen[&504]);
    host.until("nothing to run or wait", async || {
        let left = counted(&host, "running").await + counted(&host, "waiting").await;
        (left == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_upgraded_connection_counts_until_it_has_ended() {
    for more in ["", "execution = \"own\"\nexecution_threads = 1\n"] {
        let host = host_with(&format!("max_concurrent = 2\n{more}")).await;
        let mut sockets = Vec::new();
        for n in 1..=2 {
            sockets.push(WebSocket::connect(host.address, "/ws").await.unwrap());
            host.until("it to count", async || {
                (counted(&host, "running").await == n).then_some(())
            })
            .await;
        }
        for socket in &mut sockets {
            socket.send("still there?").await.unwrap();
            assert!(matches!(socket.receive().await.unwrap(), Message::Text(_)));
        }
        assert_eq!(host.get("/version").await.status, 503);
        // One is closed as the protocol has it, the other just leaves.
        sockets.pop().unwrap().close(1000).await.unwrap();
        host.until("one place to be free", async || {
            (counted(&host, "running").await == 1).then_some(())
        })
        .await;
        assert_eq!(host.get("/version").await.status, 200);
        drop(sockets);
        host.until("both places to be free", async || {
            (counted(&host, "running").await == 0).then_some(())
        })
        .await;
    }
}
