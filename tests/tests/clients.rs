//! Silent and greedy clients: they are waited for with a limit at each stage, and never lock the
//! operator out.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::time::Duration;

use handover_tests::{
    client::{Http1, Http2},
    host::{DEADLINE, Host, Setup},
    plugins::{fixture, handover, misfit},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const EMPTY_SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";

/// Timeouts that a test can wait for, and a limit of its own where it says so.
fn short(more: &str) -> Setup {
    Setup::new().config(&format!(
        "[server]\nfirst_byte_timeout = \"500ms\"\nhead_timeout = \"500ms\"\nidle_timeout = \"500ms\"\n{more}\n"
    ))
}

async fn serving(setup: Setup) -> Host {
    let host = setup.start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    host
}

async fn client(host: &Host, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(host.address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// Reads until the host has closed the connection.
async fn closed(what: &str, mut stream: TcpStream) {
    let mut bytes = Vec::new();
    // Cut or ended: either is an end.
    let end = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut bytes)).await;
    assert!(end.is_ok(), "{what} is still open");
}

/// How many connections were ended or refused (`kind`) for `reason`.
async fn counted(host: &Host, kind: &str, reason: &str) -> u64 {
    let status = host.ask("GET", "/v1/status").await.unwrap().json();
    status["host"]["connections"][kind][reason]
        .as_u64()
        .unwrap()
}

#[tokio::test]
async fn each_stage_of_a_connection_has_its_deadline() {
    let host = serving(short("")).await;
    let settled = [PREFACE, EMPTY_SETTINGS].concat();
    for (what, bytes, reason) in [
        (
            "a connection without a byte",
            &b""[..],
            "first_byte_timeout",
        ),
        ("half a head", b"GET / HTTP/1.1\r\nhost:", "head_timeout"),
        ("half a preface", b"PRI * HT", "head_timeout"),
        ("HTTP/2 without settings", PREFACE, "head_timeout"),
        (
            "idle HTTP/2 whose client is silent",
            &settled,
            "idle_timeout",
        ),
        (
            "an idle connection",
            b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n",
            "idle_timeout",
        ),
    ] {
        let before = counted(&host, "ended", reason).await;
        closed(what, client(&host, bytes).await).await;
        assert_eq!(counted(&host, "ended", reason).await, before + 1, "{what}");
    }
}

#[tokio::test]
async fn an_answer_that_is_read_slowly_is_no_idle_connection() {
    let host = serving(short("")).await;
    // Larger than what the sockets hold. Nothing is read for many times the idle timeout.
    let size = 24 << 20;
    let mut http1 = Http1::connect(host.address).await.unwrap();
    http1
        .send_head("GET", &format!("/download?bytes={size}"), &[])
        .await
        .unwrap();
    let (h2, _connection) = Http2::connect(host.address).await.unwrap();
    let waits = tokio::spawn(async move { h2.get("/slow?ms=3000").await.unwrap().status });
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(http1.head("GET").await.unwrap().status, 200);
    let (mut read, mut trailers) = (0, Vec::new());
    while let Some(piece) = http1.chunk(&mut trailers).await.unwrap() {
        read += piece.len() as u64;
    }
    assert_eq!(read, size);
    assert_eq!(waits.await.unwrap(), 200);
    assert_eq!(counted(&host, "ended", "write_timeout").await, 0);
}

#[tokio::test]
async fn an_answer_of_http2_may_wait_for_a_window_without_a_word_from_its_client() {
    let host = serving(short("")).await;
    let size = 3_000_000;
    let path = format!("/whole?bytes={size}");
    // `:method GET`, `:scheme http`, `:path`, `:authority x`.
    let length = u8::try_from(path.len()).unwrap();
    let fields = [&[0x82, 0x86, 0x04, length], path.as_bytes(), b"\x41\x01x"].concat();
    let length = u8::try_from(fields.len()).unwrap();
    let headers = [&[0, 0, length, 1, 5, 0, 0, 0, 1][..], &fields].concat();
    let asked = [PREFACE, EMPTY_SETTINGS, &headers].concat();
    let mut stream = client(&host, &asked).await;
    host.app_when("probe", "the answer to be made", |app| {
        app.generations[0].requests == 1
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    // A window for all of it, of the connection and of the stream.
    for of in 0..2 {
        let update = [0, 0, 4, 8, 0, 0, 0, 0, of, 1, 0, 0, 0];
        stream.write_all(&update).await.unwrap();
    }
    let mut read = 0;
    loop {
        let mut head = [0; 9];
        let whole = tokio::time::timeout(DEADLINE, stream.read_exact(&mut head)).await;
        whole.unwrap().expect("the connection is still there");
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut body = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut body).await.unwrap();
        assert_ne!(head[3], 7, "the connection is told to go away");
        if head[3] == 0 {
            read += length;
            if head[4] & 1 == 1 {
                break;
            }
        }
    }
    assert_eq!(read, size);
    // With the last byte it is idle.
    closed("the connection", stream).await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_where_a_write_timeout_says_so() {
    let host = serving(short("write_timeout = \"500ms\"")).await;
    let _greedy = client(
        &host,
        b"GET /download?bytes=100000000 HTTP/1.1\r\nhost: x\r\n\r\n",
    )
    .await;
    host.app_when("probe", "the request to be over", |app| {
        app.generations[0].requests == 1 && app.generations[0].in_flight == 0
    })
    .await;
    assert_eq!(counted(&host, "ended", "write_timeout").await, 1);
}

#[tokio::test]
async fn the_oldest_idle_connection_goes_for_a_new_one() {
    let host = serving(Setup::new().config("[server]\nmax_connections = 3\n")).await;
    let mut busy = Http1::connect(host.address).await.unwrap();
    busy.send_head("GET", "/slow?ms=2000", &[]).await.unwrap();
    let mut idle = Http1::connect(host.address).await.unwrap();
    assert_eq!(idle.get("/version").await.unwrap().status, 200);
    for _ in 0..10 {
        let mut other = Http1::connect(host.address).await.unwrap();
        assert_eq!(other.get("/version").await.unwrap().status, 200);
        // It stays open, and is idle.
        std::mem::forget(other);
    }
    assert_eq!(busy.answer("GET").await.unwrap().status, 200);
    assert!(counted(&host, "ended", "for_another").await >= 8);
    assert_eq!(counted(&host, "refused", "max_connections").await, 0);
}

#[tokio::test]
async fn one_address_takes_no_more_than_its_share() {
    let setup = Setup::new().config("[server]\nmax_connections_per_address = 2\n");
    let host = serving(setup).await;
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut http = Http1::connect(host.address).await.unwrap();
        http.send_head("GET", "/slow?ms=2000", &[]).await.unwrap();
        busy.push(http);
    }
    host.app_when("probe", "both requests", |app| {
        app.generations[0].in_flight == 2
    })
    .await;
    closed("one more", client(&host, b"").await).await;
    assert_eq!(
        counted(&host, "refused", "max_connections_per_address").await,
        1
    );
    for mut http in busy {
        assert_eq!(http.answer("GET").await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn silent_clients_do_not_lock_the_operator_out() {
    // Of 64 descriptors, as a shell script would limit them: the test itself needs more.
    let script = tempfile::Builder::new()
        .prefix("limited-")
        .tempdir()
        .unwrap();
    let program = script.path().join("handover");
    let text = format!(
        "#!/bin/sh\nulimit -n 64\nexec '{}' \"$@\"\n",
        handover().display()
    );
    std::fs::write(&program, text).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, executable).unwrap();
    let host = serving(Setup::new().program(program)).await;
    let mut silent = Vec::new();
    for _ in 0..120 {
        silent.push(client(&host, b"").await);
    }
    host.cli(["status"]).await.expect_code(0);
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    assert_eq!(host.get("/version").await.text(), "2.0.0");
    assert!(counted(&host, "ended", "for_another").await >= 50);
}

#[tokio::test]
async fn memory_that_a_crowd_took_goes_back() {
    const CLIENTS: usize = 24;
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    let mut crowd = Vec::new();
    for _ in 0..CLIENTS {
        // One answer in one piece, which nobody reads.
        let mut http = Http1::connect(host.address).await.unwrap();
        http.send_head("GET", "/whole?bytes=16000000", &[])
            .await
            .unwrap();
        crowd.push(http);
    }
    let took = 200 << 20;
    host.until("the answers to be there", async || {
        (host.status().await.host.rss_bytes > took).then_some(())
    })
    .await;
    drop(crowd);
    host.until("the memory to go back", async || {
        (host.status().await.host.rss_bytes < took / 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_body_that_an_app_waits_for_in_vain_has_its_deadline() {
    let host = serving(short("body_timeout = \"500ms\"")).await;
    let head = "POST /sink HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n";
    let chunked = "POST /sink HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello";
    // `:method POST`, `:scheme http`, `:path /sink`, `:authority x`, and a piece of a body without
    // its end.
    let fields = b"\x83\x86\x04\x05/sink\x41\x01x";
    let headers = [&[0, 0, fields.len() as u8, 1, 4, 0, 0, 0, 1][..], fields].concat();
    let piece = b"\0\0\x05\0\0\0\0\0\x01hello";
    let http2 = [PREFACE, EMPTY_SETTINGS, &headers, piece].concat();
    for (what, bytes) in [
        ("no byte of a body", head.as_bytes()),
        ("half a body", &[head, "half of it"].concat().into_bytes()),
        ("half a chunk", chunked.as_bytes()),
        ("half a body of HTTP/2", &http2),
    ] {
        let before = counted(&host, "ended", "body_timeout").await;
        closed(what, client(&host, bytes).await).await;
        let after = counted(&host, "ended", "body_timeout").await;
        assert_eq!(after, before + 1, "{what}");
    }
    host.app_when("probe", "nothing to be left in flight", |app| {
        app.generations[0].in_flight == 0
    })
    .await;
}

#[tokio::test]
async fn a_body_that_goes_on_or_that_nobody_waits_for_has_no_deadline() {
    let host = serving(short("body_timeout = \"500ms\"")).await;
    // Slower in all than the timeout, and never so long without a byte.
    let mut slow = Http1::connect(host.address).await.unwrap();
    slow.send_head("POST", "/sink", &[("content-length", "20")])
        .await
        .unwrap();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        slow.send(b"x").await.unwrap();
    }
    assert_eq!(slow.answer("POST").await.unwrap().json()["bytes"], 20);

    // An answer that has begun makes a stream of the body.
    let mut both_ways = Http1::connect(host.address).await.unwrap();
    both_ways
        .send_head("POST", "/tag", &[("transfer-encoding", "chunked")])
        .await
        .unwrap();
    assert_eq!(both_ways.head("POST").await.unwrap().status, 200);
    let mut trailers = Vec::new();
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        both_ways.send(b"2\r\nhi\r\n").await.unwrap();
        let piece = both_ways.chunk(&mut trailers).await.unwrap().unwrap();
        assert_eq!(piece, b"1.0.0 hi"[..]);
    }

    // An app that does not read is no fault of its client's.
    let mut unread = Http1::connect(host.address).await.unwrap();
    unread
        .send_head("GET", "/slow?ms=1500", &[("content-length", "10")])
        .await
        .unwrap();
    assert_eq!(unread.head("GET").await.unwrap().status, 200);
    assert_eq!(counted(&host, "ended", "body_timeout").await, 0);
}

#[tokio::test]
async fn a_plugin_that_takes_every_descriptor_does_not_lock_the_operator_out() {
    let script = tempfile::Builder::new()
        .prefix("limited-")
        .tempdir()
        .unwrap();
    let program = script.path().join("handover");
    let text = format!(
        "#!/bin/sh\nulimit -n 256\nexec '{}' \"$@\"\n",
        handover().display()
    );
    std::fs::write(&program, text).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, executable).unwrap();
    let config = "[app.misfit]\nroutes = [\"/\"]\n";
    let host = Setup::new().config(config).program(program).start().await;
    host.deploy_bytes(&misfit("hungry")).await.expect_code(0);
    let mut http = Http1::connect(host.address).await.unwrap();
    let opened: u64 = http.get("/open").await.unwrap().text().parse().unwrap();
    assert!(opened > 50, "{opened}");
    for _ in 0..2 {
        host.cli(["status"]).await.expect_code(0);
    }
    let status = host.cli(["status", "--json"]).await.expect_code(0).json();
    let most = status["host"]["connections"]["most"].as_u64().unwrap();
    assert!((1..256).contains(&most), "{most}");
    host.cli(["history"]).await.expect_code(0);
    // Its descriptors come back, and so does what was given up.
    assert_eq!(http.get("/close").await.unwrap().text(), "true");
    host.deploy_bytes(&misfit("none")).await.expect_code(0);
}
