//! Upgrades are transparent: what asks for one and does not get it is a request like any other, and
//! what gets it is a stream of bytes.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::process::Stdio;

use bytes::Bytes;
use handover_tests::{
    client::{Http1, Http2, WebSocket, http2, websocket::Message},
    host::{Host, Setup},
    plugins::fixture,
};
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What a client sends that would rather speak HTTP/2.
const H2C: [(&str, &str); 3] = [
    ("connection", "Upgrade, HTTP2-Settings"),
    ("upgrade", "h2c"),
    ("http2-settings", "AAMAAABkAAQAAP__"),
];

async fn probe() -> Host {
    Host::serving(&fixture("probe", "1.0.0")).await
}

#[tokio::test]
async fn a_websocket_handler_gets_what_other_handlers_get() {
    let host = probe().await;
    let mut socket = WebSocket::connect(host.address, "/ws").await.unwrap();
    socket.send("hello").await.unwrap();
    assert_eq!(
        socket.receive().await.unwrap(),
        Message::Text("1.0.0 hello".into())
    );
    socket.send("who?").await.unwrap();
    let Message::Text(client) = socket.receive().await.unwrap() else {
        panic!("no text came")
    };
    assert!(client.starts_with("127.0.0.1:"), "{client}");
    socket.close(1000).await.unwrap();
    assert_eq!(socket.receive().await.unwrap(), Message::Close(1000));
}

#[tokio::test]
async fn two_hundred_streamed_answers_to_posts_that_nobody_reads_are_whole() {
    let host = probe().await;
    let body = host.scratch("body");
    std::fs::write(&body, vec![b'x'; 2000]).unwrap();
    // Four curls with fifty requests each, over connections that they keep.
    let curls = (0..4).map(|_| {
        tokio::process::Command::new("curl")
            .args([
                "--http2",
                "--silent",
                "--show-error",
                "--fail",
                "--data-binary",
            ])
            .arg(format!("@{}", body.display()))
            .args(["--output", "-"])
            .arg(format!(
                "http://{}/stream?n=20&every_ms=1&request=[1-50]",
                host.address
            ))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    });
    let Ok(curls) = curls.collect::<Result<Vec<_>, _>>() else {
        return eprintln!("there is no curl here");
    };
    for curl in curls {
        let output = curl.wait_with_output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
        let lines = output.stdout.split_inclusive(|byte| *byte == b'\n');
        assert_eq!(lines.filter(|line| *line == b"1.0.0\n").count(), 20 * 50);
    }
}

#[tokio::test]
async fn the_header_alone_changes_nothing() {
    let host = probe().await;
    let mut http = Http1::connect(host.address).await.unwrap();
    // The body, its trailers, and the connection afterwards.
    let mut headers = H2C.to_vec();
    headers.extend([("transfer-encoding", "chunked"), ("trailer", "x-checksum")]);
    http.send_head("POST", "/sink", &headers).await.unwrap();
    http.send(b"4\r\nbody\r\n0\r\nx-checksum: 4711\r\n\r\n")
        .await
        .unwrap();
    let answer = http.answer("POST").await.unwrap();
    let came = answer.json();
    assert_eq!(came["bytes"], 4);
    assert_eq!(came["trailers"], serde_json::json!(["x-checksum: 4711"]));
    assert_eq!(answer.header("connection"), None);
    let client = http.request("GET", "/client", &H2C, None).await.unwrap();
    assert!(client.text().starts_with("127.0.0.1:"), "{client:?}");
    // Whoever does not read a body does not ask for it.
    let mut headers = H2C.to_vec();
    headers.extend([("expect", "100-continue"), ("content-length", "1000000")]);
    http.send_head("POST", "/stream?n=3", &headers)
        .await
        .unwrap();
    let answer = http.answer("POST").await.unwrap();
    assert_eq!((answer.status, answer.text()), (200, "1.0.0\n".repeat(3)));
    // And who reads it does.
    let mut http = Http1::connect(host.address).await.unwrap();
    let mut headers = H2C.to_vec();
    headers.extend([("expect", "100-continue"), ("content-length", "4")]);
    http.send_head("POST", "/sink", &headers).await.unwrap();
    assert_eq!(http.head("POST").await.unwrap().status, 100);
    http.send(b"body").await.unwrap();
    assert_eq!(http.answer("POST").await.unwrap().json()["bytes"], 4);
}

#[tokio::test]
async fn connect_opens_a_tunnel_over_both_versions() {
    let host = probe().await;
    let mut http = Http1::connect(host.address).await.unwrap();
    http.send_head("CONNECT", "example.org:443", &[])
        .await
        .unwrap();
    let answer = http.head("CONNECT").await.unwrap();
    assert_eq!(
        (answer.status, answer.header("content-length")),
        (200, None)
    );
    let mut tunnel = http.into_io();
    tunnel.write_all(b"over http/1").await.unwrap();
    tunnel.flush().await.unwrap();
    let mut came = [0; 11];
    tunnel.read_exact(&mut came).await.unwrap();
    assert_eq!(&came, b"OVER HTTP/1");
    tunnel.shutdown().await.unwrap();
    assert_eq!(tunnel.read(&mut came).await.unwrap(), 0);

    let (h2, _connection) = Http2::connect(host.address).await.unwrap();
    let (answer, mut sender) = h2.connect_to("example.org:443").await.unwrap();
    let mut tunnel = http2::head(answer).await.unwrap();
    assert_eq!(tunnel.answer.status, 200);
    http2::send(&mut sender, b"over http/2", false)
        .await
        .unwrap();
    assert_eq!(tunnel.chunk().await.unwrap().unwrap(), "OVER HTTP/2");
    sender.send_data(Bytes::new(), true).unwrap();
    let end = tunnel.chunk().await.unwrap();
    assert_eq!(end.unwrap_or_default(), "");
}

#[tokio::test]
async fn a_websocket_goes_over_http_2() {
    let host = probe().await;
    let (h2, _connection) = Http2::connect(host.address).await.unwrap();
    // The settings of the server, which offer it, have come before an answer.
    assert_eq!(h2.get("/version").await.unwrap().text(), "1.0.0");
    let (answer, mut sender) = h2.extended_connect("websocket", "/ws").await.unwrap();
    let mut socket = http2::head(answer).await.unwrap();
    assert_eq!(socket.answer.status, 200);
    let masked = [&[0x81, 0x80 | 5, 0, 0, 0, 0][..], b"hello"].concat();
    http2::send(&mut sender, &masked, false).await.unwrap();
    let expected = [&[0x81, 11][..], b"1.0.0 hello"].concat();
    let mut came = Vec::new();
    while came.len() < expected.len() {
        came.extend(socket.chunk().await.unwrap().expect("it goes on"));
    }
    assert_eq!(came, expected);
    // Another protocol is none of axum's WebSockets.
    let (answer, _sender) = h2.extended_connect("other", "/ws").await.unwrap();
    assert_eq!(http2::head(answer).await.unwrap().answer.status, 400);
}

#[tokio::test]
async fn a_target_that_is_an_authority_stays_one() {
    let host = probe().await;
    let mut http = Http1::connect(host.address).await.unwrap();
    let answer = http.request("GET", "example.org:443", &[], None).await;
    let answer = answer.unwrap();
    let head = answer.json();
    assert_eq!(answer.status, 404);
    assert_eq!(
        (&head["uri"], &head["path"]),
        (&"example.org:443".into(), &"".into())
    );
    let answer = http.request("OPTIONS", "*", &[], None).await.unwrap();
    assert_eq!(answer.json()["uri"], "*");
    let absolute = "http://example.org/head?a=1";
    let answer = http
        .request(Method::GET.as_str(), absolute, &[], None)
        .await;
    assert_eq!(answer.unwrap().json()["uri"], absolute);
}

#[tokio::test]
async fn a_tunnel_ends_at_the_deadline_without_a_byte_that_is_not_its_own() {
    let host = Setup::new()
        .config("[app.probe]\ndrain_deadline = \"200ms\"\n")
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let mut http = Http1::connect(host.address).await.unwrap();
    http.send_head("CONNECT", "example.org:443", &[])
        .await
        .unwrap();
    assert_eq!(http.head("CONNECT").await.unwrap().status, 200);
    let mut tunnel = http.into_io();
    tunnel.write_all(b"bytes").await.unwrap();
    tunnel.flush().await.unwrap();
    let mut came = [0; 5];
    tunnel.read_exact(&mut came).await.unwrap();
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(7);
    let mut rest = Vec::new();
    tunnel.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"");
}
