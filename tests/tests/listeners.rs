//! Listening sockets: each is known by its key, and outlives the host that serves it.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::net::SocketAddr;

use handover_tests::{
    client::Http1,
    host::{Host, Setup},
    plugins::fixture,
};
use rustix::process::Signal;

/// Where the metrics are.
async fn metrics(host: &Host) -> SocketAddr {
    let status = host.ask("GET", "/v1/status").await.unwrap().json();
    status["host"]["metrics"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn each_socket_outlives_a_crash_at_its_own_address() {
    let mut host = Setup::new()
        .config("[metrics]\nlisten = \"127.0.0.1:0\"\n")
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let (apps, figures) = (host.address, metrics(&host).await);
    for _ in 0..2 {
        // Whoever starts the next host sleeps, so there is none when they are asked: both wait in the queue of their socket.
        host.signal(Signal::STOP);
        host.signal_inner(Signal::KILL);
        let waiting = [(apps, "/version"), (figures, "/metrics")].map(|(at, path)| {
            let (connected, is_connected) = tokio::sync::oneshot::channel();
            let asking = tokio::spawn(async move {
                let mut client = Http1::connect(at).await?;
                let _ = connected.send(());
                client.get(path).await
            });
            (asking, is_connected)
        });
        let mut asking = Vec::new();
        for (asked, is_connected) in waiting {
            is_connected.await.unwrap();
            asking.push(asked);
        }
        host.signal(Signal::CONT);
        host.came_back().await;
        for asked in asking {
            let answer = asked.await.unwrap().unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        assert_eq!((host.address, metrics(&host).await), (apps, figures));
    }
}
