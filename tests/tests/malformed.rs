//! What two readers could take for different requests is refused, with its connection; and an
//! answer to HEAD has no body, whoever gives it.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use handover_tests::{
    client::{Answer, Fault, Http1, Http2},
    host::{Host, Setup},
    plugins::fixture,
};
use http::{Method, Request, Uri, Version};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

async fn probe() -> Host {
    Host::serving(&fixture("probe", "1.0.0")).await
}

/// Everything that comes back for these bytes until the host closes. The client closes nothing.
async fn exchange(host: &Host, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(host.address).await.unwrap();
    // The host may close before it has read all of them.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let read = tokio::time::timeout(handover_tests::host::DEADLINE, read).await;
    let _ = read.expect("the host closes the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

/// What would be answered if it were taken for a request of its own.
const SMUGGLED: &str = "GET /reason HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test]
async fn what_smuggles_is_400_and_ends_its_connection() {
    let host = probe().await;
    let post = "POST /echo HTTP/1.1\r\nhost: a\r\n";
    let chunked = "0\r\n\r\n";
    for (vector, rest) in [
        // The end of the body.
        (
            format!("{post}transfer-encoding: chunked, chunked\r\n\r\n"),
            chunked,
        ),
        (
            format!("{post}transfer-encoding: gzip, chunked\r\n\r\n"),
            chunked,
        ),
        (
            format!("{post}transfer-encoding: identity, chunked\r\n\r\n"),
            chunked,
        ),
        (
            format!("{post}transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n"),
            chunked,
        ),
        (
            format!("{post}transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n\r\n"),
            chunked,
        ),
        (
            format!("{post}transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n"),
            chunked,
        ),
        (
            format!("{post}transfer-encoding: chunked, identity\r\n\r\n"),
            chunked,
        ),
        (
            format!("{post}transfer-encoding: xchunked\r\n\r\n"),
            chunked,
        ),
        (
            format!("{post}transfer-encoding: \"chunked\"\r\n\r\n"),
            chunked,
        ),
        (format!("{post}transfer-encoding:\r\n\r\n"), chunked),
        (
            format!("{post}transfer-encoding: \x0bchunked\r\n\r\n"),
            chunked,
        ),
        (
            format!("{post}transfer-encoding : chunked\r\n\r\n"),
            chunked,
        ),
        (
            format!("{post} transfer-encoding: chunked\r\n\r\n"),
            chunked,
        ),
        (
            format!("{post}x: y\r\n transfer-encoding: chunked\r\n\r\n"),
            chunked,
        ),
        (
            format!("{post}x: y\rtransfer-encoding: chunked\r\n\r\n"),
            chunked,
        ),
        (
            format!("{post}transfer-encoding\r\n: chunked\r\n\r\n"),
            chunked,
        ),
        (
            format!("{post}\0transfer-encoding: chunked\r\n\r\n"),
            chunked,
        ),
        (
            "POST /echo HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n".to_owned(),
            chunked,
        ),
        // Its length.
        (
            format!("{post}content-length: 3\r\ncontent-length: 4\r\n\r\n"),
            "abc",
        ),
        (format!("{post}content-length: 3, 3\r\n\r\n"), "abc"),
        (format!("{post}content-length: +3\r\n\r\n"), "abc"),
        (format!("{post}content-length: -3\r\n\r\n"), "abc"),
        (format!("{post}content-length: 0x3\r\n\r\n"), "abc"),
        (format!("{post}content-length: 3 \u{b}\r\n\r\n"), "abc"),
        (format!("{post}content-length: 3_0\r\n\r\n"), "abc"),
        (format!("{post}content-length:\r\n\r\n"), ""),
        (format!("{post}content-length : 3\r\n\r\n"), "abc"),
        (
            format!("{post}content-length: 99999999999999999999\r\n\r\n"),
            "abc",
        ),
        // Its host.
        ("GET /version HTTP/1.1\r\n\r\n".to_owned(), ""),
        (
            "GET /version HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n".to_owned(),
            "",
        ),
        (
            "GET /version HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n".to_owned(),
            "",
        ),
        ("GET /version HTTP/1.1\r\nhost: a b\r\n\r\n".to_owned(), ""),
        ("GET /version HTTP/1.1\r\nhost: a@b\r\n\r\n".to_owned(), ""),
        (
            "GET /version HTTP/1.1\r\nhost: a,b\r\nx: y\r\nhost: c\r\n\r\n".to_owned(),
            "",
        ),
        ("GET http://a/version HTTP/1.1\r\n\r\n".to_owned(), ""),
        (
            "GET /version HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n".to_owned(),
            "",
        ),
        // Its target.
        ("GET /version\r\n\r\n".to_owned(), ""),
        (
            "GET /version HTTP/1.1 HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
            "",
        ),
        ("GET /ver\tsion HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), ""),
        ("GET /version HTTP/1.2\r\nhost: a\r\n\r\n".to_owned(), ""),
        ("GET /version HTTP/2.0\r\nhost: a\r\n\r\n".to_owned(), ""),
    ] {
        let answer = exchange(&host, format!("{vector}{rest}{SMUGGLED}").as_bytes()).await;
        let status = answer.split(' ').nth(1);
        assert_eq!(status, Some("400"), "{vector:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{vector:?}: {answer}");
        let head = answer.to_ascii_lowercase();
        assert!(
            head.contains("connection: close\r\n"),
            "{vector:?}: {answer}"
        );
    }
    assert_eq!(host.get("/version").await.text(), "1.0.0");
}

/// RFC 9112, 6.3: hyper takes the body by its chunks, and never reads on behind it.
#[tokio::test]
async fn a_length_beside_chunks_is_not_believed_and_ends_the_connection() {
    let host = probe().await;
    for fields in [
        "content-length: 30\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 30\r\n",
        "content-length: 3\r\ntransfer-encoding: chunked\r\ncontent-length: 30\r\n",
    ] {
        let request = format!(
            "POST /echo HTTP/1.1\r\nhost: a\r\n{fields}\r\n3\r\nabc\r\n0\r\n\r\n{SMUGGLED}"
        );
        let answer = exchange(&host, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{fields:?}: {answer}");
        assert!(answer.contains("abc"), "{fields:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{fields:?}: {answer}");
    }
}

#[tokio::test]
async fn chunks_that_are_none_end_the_connection() {
    let host = probe().await;
    for body in [
        "3\r\nabcd\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "3_0\r\nabc\r\n0\r\n\r\n",
        "3;a=b\nc\r\nabc\r\n0\r\n\r\n",
        "3\rX\r\nabc\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcXX0\r\n\r\n",
    ] {
        let request = format!(
            "POST /sink HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{body}{SMUGGLED}"
        );
        let answer = exchange(&host, request.as_bytes()).await;
        assert!(!answer.contains("Very well"), "{body:?}: {answer}");
        assert!(answer.matches("HTTP/1.").count() <= 1, "{body:?}: {answer}");
    }
    assert_eq!(host.get("/version").await.text(), "1.0.0");
}

/// A request over HTTP/2 as it is built here.
async fn ask(host: &Host, uri: Uri, hosts: &[&str]) -> Answer {
    let (h2, _connection) = Http2::connect(host.address).await.unwrap();
    let mut request = Request::builder().version(Version::HTTP_2).uri(uri);
    for host in hosts {
        request = request.header("host", *host);
    }
    let (answer, _sender) = h2.send(request, true).await.unwrap();
    let head = handover_tests::client::http2::head(answer).await.unwrap();
    head.finish().await.unwrap()
}

#[tokio::test]
async fn a_request_of_http_2_has_a_scheme_and_one_host() {
    let host = probe().await;
    let uri = |scheme: &str| {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(scheme.parse().unwrap());
        parts.authority = Some("shop.example".parse().unwrap());
        parts.path_and_query = Some("/version".parse().unwrap());
        Uri::from_parts(parts).unwrap()
    };
    for (scheme, hosts, status) in [
        ("http", &[][..], 200),
        ("https", &["Shop.example"], 200),
        ("", &[], 400),
        ("http", &["admin.example"], 400),
        ("http", &["shop.example", "shop.example"], 400),
        ("http", &["a b"], 400),
    ] {
        let answer = ask(&host, uri(scheme), hosts).await;
        assert_eq!(answer.status, status, "{scheme:?} {hosts:?}");
    }
}

#[tokio::test]
async fn a_redirect_is_for_requests_that_name_their_host() {
    let config = "[[listen]]\naddress = \"127.0.0.1:0\"\nhttp_to_https = true\n";
    let host = Setup::new().config(config).start().await;
    let at = host.status().await.listen()[1].parse().unwrap();
    let mut http = Http1::connect(at).await.unwrap();
    http.send(b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n")
        .await
        .unwrap();
    let answer = http.answer("GET").await.unwrap();
    assert_eq!(answer.status, 400, "{answer:?}");
    http.closed().await.unwrap();
}

/// What a HEAD over HTTP/2 gets; a DATA frame would be a fault to the client.
async fn head(host: &Host, path: &str) -> Result<Answer, Fault> {
    let (h2, _connection) = Http2::connect(host.address).await?;
    let (stream, _sender) = h2.open(Method::HEAD, path, true).await?;
    assert!(stream.has_ended(), "{path}: more follows the head");
    stream.finish().await
}

#[tokio::test]
async fn the_answer_to_head_over_http_2_is_a_head() {
    let config = "[app.probe]\nroutes = [\"/p\"]\nrequest_timeout = \"300ms\"\n\
                  [app.service]\nroutes = [\"/s\"]\n[app.nothing]\nroutes = [\"/n\"]\n";
    let host = Setup::new().config(config).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    host.deploy(&fixture("service", "1.0.0"))
        .await
        .expect_code(0);
    for (path, status) in [
        ("/nowhere", 404), // the host's own
        ("/n", 503),       // the same, for an app of which nothing is deployed
        ("/s/else", 200),  // an app that gives a body to whatever is asked
    ] {
        let of_head = head(&host, path).await.unwrap();
        let (h2, _connection) = Http2::connect(host.address).await.unwrap();
        let of_get = h2.get(path).await.unwrap();
        assert_eq!((of_head.status, of_get.status), (status, status), "{path}");
        assert!(of_head.body.is_empty() && !of_get.body.is_empty(), "{path}");
        if status != 200 {
            let length = of_get.body.len().to_string();
            assert_eq!(of_head.header("content-length"), Some(&*length), "{path}");
        }
    }
}

#[tokio::test]
async fn the_answer_to_head_over_http_2_is_a_head_where_an_app_fails() {
    let config = "[app.probe]\nrequest_timeout = \"300ms\"\n[app.service]\nroutes = [\"/fail\"]\nstrip_prefix = false\n";
    let host = Setup::new().config(config).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    host.deploy(&fixture("service", "1.0.0"))
        .await
        .expect_code(0);
    for (path, status) in [("/panic", 500), ("/fail", 502), ("/slow?ms=60000", 504)] {
        let answer = head(&host, path).await.unwrap();
        assert_eq!((answer.status, answer.body.len()), (status, 0), "{path}");
        assert!(answer.header("content-length").is_some(), "{path}");
    }
}

#[tokio::test]
async fn a_foreign_client_takes_a_head_over_http_2() {
    let host = probe().await;
    for path in ["/version", "/panic"] {
        let curl = tokio::process::Command::new("curl")
            .args([
                "--http2-prior-knowledge",
                "--head",
                "-sS",
                "--max-time",
                "30",
            ])
            .arg(format!("http://{}{path}", host.address))
            .output()
            .await
            .unwrap();
        assert!(curl.status.success(), "{path}: {curl:?}");
    }
}
