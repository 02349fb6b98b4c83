//! A swap is not noticed: by no connection, no stream, no slow request.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{ffi::OsStr, fs, time::Duration};

use handover_tests::{
    client::{Http1, Http2, http2},
    host::{Host, Setup},
    load::Load,
    plugins::fixture,
};
use http::Method;
use tokio::task::JoinSet;

/// Swaps of the long test: the issue asks for a hundred.
const SWAPS: usize = 102;

/// Old generations stay as long as their slow requests do, and nobody is to be refused for that
/// here.
const PATIENT: &str = "[app.probe]
max_old_generations = 1000
[app.probe.config]
gate = \"HOME/scratch/gate\"
";

/// Each way twice in a round of six, so that the drop folder gets other bytes each time, and an
/// older version only in place of the file that is live: anything else is refused, or is nothing
/// new.
const ROUND: [Way; 6] = [
    Way::Drop,
    Way::Drop,
    Way::Deploy,
    Way::Deploy,
    Way::Reload,
    Way::Reload,
];

#[derive(Clone, Copy)]
enum Way {
    /// A file in the drop folder.
    Drop,
    /// `handover deploy`.
    Deploy,
    /// `handover reload`, after what kept the dropped file from starting was put right.
    Reload,
}

/// Makes the other version live in the `n`th way. Waits until it is, but not until the old one has
/// drained.
async fn swap(host: &Host, n: usize) {
    let version = ["2.0.0", "1.0.0"][n % 2];
    let file = fixture("probe", version);
    match ROUND[n % ROUND.len()] {
        Way::Drop => {
            host.drop_in("probe/probe.so", &fs::read(file).unwrap());
            host.live("probe", version).await;
        }
        Way::Deploy => {
            host.cli([
                OsStr::new("deploy"),
                file.as_os_str(),
                OsStr::new("--detach"),
            ])
            .await
            .expect_code(0);
            host.live("probe", version).await;
        }
        Way::Reload => {
            let gate = host.scratch("gate");
            fs::write(&gate, "closed").unwrap();
            host.drop_in("probe/probe.so", &fs::read(file).unwrap());
            let reason = host.verdict("probe/probe.so", "failed").await;
            assert!(reason.contains("is closed"), "{reason}");
            fs::remove_file(gate).unwrap();
            tokio::select! {
                reloaded = host.cli(["reload", "probe"]) => drop(reloaded.expect_code(0)),
                // It waits for the drain, which a swap here does not.
                _ = host.live("probe", version) => {}
            }
            host.live("probe", version).await;
        }
    }
}

/// A request of two seconds, asked before a swap. Whether it spanned the swap.
async fn slow(address: std::net::SocketAddr) -> Result<u64, String> {
    let mut http = Http1::connect(address)
        .await
        .map_err(|fault| fault.to_string())?;
    let answer = http
        .get("/slow?ms=2000")
        .await
        .map_err(|fault| fault.to_string())?;
    // The header is from when it began, the body from when it ended.
    if answer.status == 200 && answer.version() == Some(&*answer.text()) {
        Ok(answer.generation().unwrap())
    } else {
        Err(format!("{answer:?}"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_swaps_by_drop_deploy_and_reload_are_not_noticed() {
    let host = Setup::new().config(PATIENT).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);

    let load = Load {
        keep_alive: 32,
        closing: 8,
        streams: 50,
        pause: Duration::from_millis(10),
    }
    .start(host.address);
    load.more(200).await;
    let mut slow_ones = JoinSet::new();
    for n in 0..SWAPS {
        let address = host.address;
        slow_ones.spawn(async move { (n, slow(address).await) });
        load.more(20).await;
        swap(&host, n).await;
    }
    load.more(200).await;

    let mut spanned = 0;
    while let Some(ended) = slow_ones.join_next().await {
        let (n, answered) = ended.unwrap();
        let generation =
            answered.unwrap_or_else(|why| panic!("the slow request at swap {n}: {why}"));
        // Generation 1 was live before swap 0.
        spanned += usize::from(generation == n as u64 + 1);
    }
    let report = load.stop().await;
    report.expect_unnoticed();
    assert_eq!(
        report.versions.len(),
        SWAPS + 1,
        "every generation answered somebody: {:?}",
        report.versions
    );
    assert!(
        spanned > SWAPS * 9 / 10,
        "only {spanned} slow requests were in flight at their swap"
    );

    let settled = host.settled("probe").await;
    assert_eq!(settled.active.unwrap().generation, SWAPS as u64 + 1);
    eprintln!(
        "{} answers over {SWAPS} swaps, {spanned} slow requests spanned theirs",
        report.ok
    );
}

#[tokio::test]
async fn a_stream_outlives_three_swaps() {
    let host = Setup::new().config(PATIENT).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);

    let mut http = Http1::connect(host.address).await.unwrap();
    http.send_head("POST", "/tag", &[("transfer-encoding", "chunked")])
        .await
        .unwrap();
    let mut trailers = Vec::new();
    for n in 0..4 {
        http.send(b"4\r\nping\r\n").await.unwrap();
        if n == 0 {
            assert_eq!(http.head("POST").await.unwrap().version(), Some("1.0.0"));
        }
        let piece = http.chunk(&mut trailers).await.unwrap().unwrap();
        assert_eq!(String::from_utf8(piece).unwrap(), "1.0.0 ping");
        if n < 3 {
            swap(&host, n).await;
        }
    }
    http.send(b"0\r\n\r\n").await.unwrap();
    assert_eq!(
        http.chunk(&mut trailers).await.unwrap(),
        None,
        "it ends when its client ends it"
    );

    // And the connection goes on, on what is live now.
    assert_eq!(http.get("/version").await.unwrap().text(), "2.0.0");
    host.settled("probe").await;
}

#[tokio::test]
async fn a_paced_download_outlives_three_swaps() {
    let host = Setup::new().config(PATIENT).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);

    let mut http = Http1::connect(host.address).await.unwrap();
    // More than any buffer between the plugin and here holds, so that it is still being written
    // after the swaps.
    http.send_head("GET", "/download?bytes=64000000", &[])
        .await
        .unwrap();
    let head = http.head("GET").await.unwrap();
    assert_eq!(head.version(), Some("1.0.0"));
    for n in 0..3 {
        swap(&host, n).await;
    }
    let (mut read, mut trailers) = (0, Vec::new());
    while let Some(piece) = http.chunk(&mut trailers).await.unwrap() {
        read += piece.len();
    }
    assert_eq!(read, 64_000_000);
    host.settled("probe").await;
}

#[tokio::test]
async fn two_streams_of_one_connection_are_on_two_versions() {
    let host = Setup::new().config(PATIENT).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);

    let (http, connection) = Http2::connect(host.address).await.unwrap();
    let (mut old, mut sender) = http.open(Method::POST, "/tag", false).await.unwrap();
    http2::send(&mut sender, b"a", false).await.unwrap();
    assert_eq!(&old.chunk().await.unwrap().unwrap()[..], b"1.0.0 a");

    swap(&host, 0).await;
    assert_eq!(http.get("/version").await.unwrap().text(), "2.0.0");
    http2::send(&mut sender, b"b", false).await.unwrap();
    assert_eq!(&old.chunk().await.unwrap().unwrap()[..], b"1.0.0 b");
    assert_eq!(http.get("/version").await.unwrap().text(), "2.0.0");

    sender.send_data(Default::default(), true).unwrap();
    let rest = old.finish().await.unwrap();
    assert_eq!(rest.version(), Some("1.0.0"));
    host.settled("probe").await;
    assert!(!connection.is_finished(), "no swap ends a connection");
}

#[tokio::test]
async fn a_websocket_outlives_a_swap_and_new_ones_get_the_new_code() {
    use handover_tests::client::{WebSocket, websocket::Message};

    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    let mut old = WebSocket::connect(host.address, "/ws").await.unwrap();
    old.send("before").await.unwrap();
    assert_eq!(
        old.receive().await.unwrap(),
        Message::Text("1.0.0 before".into())
    );

    swap(&host, 0).await;
    let mut new = WebSocket::connect(host.address, "/ws").await.unwrap();
    new.send("hello").await.unwrap();
    assert_eq!(
        new.receive().await.unwrap(),
        Message::Text("2.0.0 hello".into())
    );
    old.send("after").await.unwrap();
    assert_eq!(
        old.receive().await.unwrap(),
        Message::Text("1.0.0 after".into())
    );
    let draining = host.app("probe").await.generations[0].clone();
    assert_eq!(
        (draining.state.as_str(), draining.in_flight),
        ("draining", 1)
    );

    old.close(1000).await.unwrap();
    host.settled("probe").await;
    new.send("still").await.unwrap();
    assert_eq!(
        new.receive().await.unwrap(),
        Message::Text("2.0.0 still".into())
    );
}

#[tokio::test]
async fn swapping_one_app_leaves_the_other_alone() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    host.deploy(&fixture("hello", "1.0.0")).await.expect_code(0);
    let before = host.active("probe").await;
    let load = Load {
        keep_alive: 4,
        closing: 0,
        streams: 4,
        pause: Duration::from_millis(5),
    }
    .start(host.address);
    for version in ["2.0.0", "1.0.0", "2.0.0"] {
        host.deploy(&fixture("hello", version)).await.expect_code(0);
        assert_eq!(host.get("/hello").await.text(), format!("hello {version}"));
        load.more(20).await;
    }
    let report = load.stop().await;
    report.expect_unnoticed();
    assert_eq!(report.versions.len(), 1);
    assert_eq!(host.active("probe").await.generation, before.generation);
}
