//! HTTP through a plugin is HTTP: both versions, bodies of any size, trailers, upgrades, and the
//! host's own answers.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    io::{Read, Write},
    time::Duration,
};

use handover_tests::{
    client::{Answer, Fault, Http1, Http2, http2},
    host::{Host, Setup},
    plugins::{fixture, hello_as},
};
use http::Method;

const GIB: u64 = 1 << 30;
/// What a body of any size may cost: buffers of the kernel's side of hyper, and the allocator's.
const FLAT: u64 = 24 << 20;

async fn probe() -> Host {
    Host::serving(&fixture("probe", "1.0.0")).await
}

async fn connect(host: &Host) -> Http1 {
    Http1::connect(host.address).await.unwrap()
}

/// Waits until so many requests are in flight.
async fn in_flight(host: &Host, number: u64) {
    let what = format!("{number} requests in flight");
    host.app_when("probe", &what, |app| app.generations[0].in_flight == number)
        .await;
}

#[tokio::test]
async fn both_versions_are_spoken_on_one_port() {
    let host = probe().await;
    let head = connect(&host)
        .await
        .get("/head?a=1&b=%20")
        .await
        .unwrap()
        .json();
    assert_eq!(
        (&head["method"], &head["http"]),
        (&"GET".into(), &"HTTP/1.1".into())
    );
    assert_eq!(
        (&head["path"], &head["query"]),
        (&"/head".into(), &"a=1&b=%20".into())
    );
    let (h2, _connection) = Http2::connect(host.address).await.unwrap();
    let head = h2.get("/head").await.unwrap().json();
    assert_eq!(head["http"], "HTTP/2.0");
}

#[tokio::test]
async fn a_foreign_client_agrees() {
    let host = probe().await;
    let url = format!("http://{}/version", host.address);
    for flags in [
        &["--http1.1"][..],
        &["--http2-prior-knowledge"],
        &["--http1.0"],
        &["--http1.1", "--head"],
    ] {
        let curl = tokio::process::Command::new("curl")
            .args(flags)
            .args(["--silent", "--show-error", "--fail", &url])
            .output()
            .await;
        let Ok(output) = curl else {
            return eprintln!("there is no curl here");
        };
        assert!(output.status.success(), "{flags:?}: {output:?}");
        if !flags.contains(&"--head") {
            assert_eq!(String::from_utf8(output.stdout).unwrap(), "1.0.0");
        }
    }
}

#[tokio::test]
async fn the_head_of_a_request_arrives_as_it_was_sent() {
    let host = probe().await;
    let headers = [
        ("Host", "shop.example:8080"),
        ("X-Twice", "one"),
        ("x-twice", "two"),
        ("x-empty", ""),
        ("accept", "*/*"),
    ];
    let answer = connect(&host)
        .await
        .request("PATCH", "/head/?q=a%2Fb", &headers, Some(b"body"))
        .await
        .unwrap();
    assert_eq!(answer.status, 404, "axum tells `/head/` from `/head`");
    let head = connect(&host)
        .await
        .request("PATCH", "/head?q=a%2Fb", &headers, Some(b"body"))
        .await
        .unwrap()
        .json();
    assert_eq!(head["method"], "PATCH");
    assert_eq!(head["query"], "q=a%2Fb");
    let values = |name: &str| -> Vec<String> {
        let pairs: Vec<(String, String)> = serde_json::from_value(head["headers"].clone()).unwrap();
        pairs
            .into_iter()
            .filter(|(known, _)| known == name)
            .map(|(_, value)| value)
            .collect()
    };
    assert_eq!(values("host"), ["shop.example:8080"]);
    assert_eq!(values("x-twice"), ["one", "two"]);
    assert_eq!(values("x-empty"), [""]);
    assert_eq!(values("content-length"), ["4"]);
}

/// Sends `size` bytes by HTTP/1.1 and gives how many the plugin says it got.
async fn upload(host: &Host, size: u64) -> u64 {
    let mut http = connect(host).await;
    http.send_head("POST", "/sink", &[("content-length", &size.to_string())])
        .await
        .unwrap();
    let piece = vec![7; 256 * 1024];
    let mut left = size;
    while left > 0 {
        let now = left.min(piece.len() as u64);
        http.send(&piece[..usize::try_from(now).unwrap()])
            .await
            .unwrap();
        left -= now;
    }
    http.answer("POST").await.unwrap().json()["bytes"]
        .as_u64()
        .unwrap()
}

/// Reads `size` bytes by HTTP/1.1 and gives how many came.
async fn download(host: &Host, size: u64) -> u64 {
    let mut http = connect(host).await;
    http.send_head("GET", &format!("/download?bytes={size}"), &[])
        .await
        .unwrap();
    http.head("GET").await.unwrap();
    let (mut read, mut trailers) = (0, Vec::new());
    while let Some(piece) = http.chunk(&mut trailers).await.unwrap() {
        read += piece.len() as u64;
    }
    read
}

#[tokio::test]
async fn a_gibibyte_up_keeps_memory_flat() {
    let host = probe().await;
    upload(&host, 8 << 20).await;
    let before = host.resident_peak();
    assert_eq!(upload(&host, GIB).await, GIB);
    let grown = host.resident_peak() - before;
    assert!(grown < FLAT, "{grown} bytes more");
}

#[tokio::test]
async fn a_gibibyte_down_keeps_memory_flat() {
    let host = probe().await;
    download(&host, 8 << 20).await;
    let before = host.resident_peak();
    assert_eq!(download(&host, GIB).await, GIB);
    let grown = host.resident_peak() - before;
    assert!(grown < FLAT, "{grown} bytes more");
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_plugin_back() {
    let host = probe().await;
    download(&host, 8 << 20).await;
    let before = host.resident_peak();
    let (h2, _connection) = Http2::connect(host.address).await.unwrap();
    let mut waiting = Vec::new();
    for _ in 0..4 {
        let mut http = connect(&host).await;
        http.send_head("GET", &format!("/download?bytes={GIB}"), &[])
            .await
            .unwrap();
        http.head("GET").await.unwrap();
        let (stream, _) = h2
            .open(Method::GET, &format!("/download?bytes={GIB}"), true)
            .await
            .unwrap();
        waiting.push((http, stream));
    }
    // Others are answered meanwhile, on the same connection too.
    for _ in 0..200 {
        assert_eq!(h2.get("/version").await.unwrap().status, 200);
    }
    let grown = host.resident_peak() - before;
    assert!(grown < FLAT, "{grown} bytes more");
}

#[tokio::test]
async fn a_plugin_that_does_not_read_holds_the_client_back() {
    let host = probe().await;
    let mut http = connect(&host).await;
    let size = (64u64 << 20).to_string();
    let before = host.resident_peak();
    // `/slow` never looks at its body.
    http.send_head("GET", "/slow?ms=1000", &[("content-length", &size)])
        .await
        .unwrap();
    let piece = vec![7; 1 << 20];
    let sending = async {
        for _ in 0..64 {
            http.send(&piece).await?;
        }
        Ok::<_, Fault>(())
    };
    let _ = tokio::time::timeout(Duration::from_millis(700), sending).await;
    let grown = host.resident_peak() - before;
    assert!(grown < FLAT, "{grown} bytes more");
}

#[tokio::test]
async fn bodies_go_both_ways_at_once_over_http_2() {
    const PIECES: usize = 400;
    let host = probe().await;
    let (h2, _connection) = Http2::connect(host.address).await.unwrap();
    let (answer, mut sender) = h2.start(Method::POST, "/echo", false).await.unwrap();
    let sent = tokio::spawn(async move {
        for n in 0..PIECES {
            http2::send(
                &mut sender,
                &[u8::try_from(n % 251).unwrap(); 40_000],
                n + 1 == PIECES,
            )
            .await
            .unwrap();
        }
    });
    let body = http2::head(answer)
        .await
        .unwrap()
        .finish()
        .await
        .unwrap()
        .body;
    sent.await.unwrap();
    assert_eq!(body.len(), PIECES * 40_000);
    assert!(
        body.chunks(40_000)
            .enumerate()
            .all(|(n, piece)| piece.iter().all(|byte| usize::from(*byte) == n % 251))
    );
}

#[tokio::test]
async fn trailers_go_both_ways() {
    let host = probe().await;
    // HTTP/1.1
    let mut http = connect(&host).await;
    http.send_head(
        "POST",
        "/echo",
        &[
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("trailer", "x-checksum"),
        ],
    )
    .await
    .unwrap();
    http.send(b"4\r\nbody\r\n0\r\nx-checksum: 815\r\n\r\n")
        .await
        .unwrap();
    let echoed = http.answer("POST").await.unwrap();
    assert_eq!(
        (echoed.text().as_str(), echoed.trailer("x-checksum")),
        ("body", Some("815"))
    );
    let made = http
        .request("GET", "/trailers", &[("te", "trailers")], None)
        .await
        .unwrap();
    assert_eq!(
        (made.text().as_str(), made.trailer("x-checksum")),
        ("body", Some("4711"))
    );

    // HTTP/2
    let (h2, _connection) = Http2::connect(host.address).await.unwrap();
    let made = h2.get("/trailers").await.unwrap();
    assert_eq!(
        (made.text().as_str(), made.trailer("x-checksum")),
        ("body", Some("4711"))
    );
    let (answer, mut sender) = h2.start(Method::POST, "/sink", false).await.unwrap();
    http2::send(&mut sender, b"body", false).await.unwrap();
    sender
        .send_trailers(
            [("x-checksum".parse().unwrap(), "815".parse().unwrap())]
                .into_iter()
                .collect(),
        )
        .unwrap();
    let sunk = http2::head(answer)
        .await
        .unwrap()
        .finish()
        .await
        .unwrap()
        .json();
    assert_eq!(
        (&sunk["bytes"], &sunk["trailers"][0]),
        (&4.into(), &"x-checksum: 815".into())
    );
}

#[tokio::test]
async fn a_service_without_a_framework_is_an_app() {
    let host = Host::serving(&fixture("service", "1.0.0")).await;
    let (h2, _connection) = Http2::connect(host.address).await.unwrap();
    let answer = h2.get("/some/where").await.unwrap();
    assert_eq!(
        (answer.text().as_str(), answer.trailer("x-length")),
        ("GET /some/where", Some("15"))
    );
}

#[track_caller]
fn assert_of_the_host(answer: &Answer, status: u16) {
    let text = answer.text();
    assert_eq!(answer.status, status, "{text}");
    assert!(
        answer
            .header("content-type")
            .is_some_and(|kind| kind.starts_with("text/plain")),
        "{answer:?}"
    );
    assert!(
        text.starts_with(&status.to_string()) || text.contains("handover"),
        "it says which it is: {text}"
    );
    assert!(
        text.len() < 400 && !text.contains('<'),
        "it is plain: {text}"
    );
}

#[tokio::test]
async fn answers_of_the_host_itself_are_plain_and_say_what_they_are() {
    let host = Host::start().await;
    assert_of_the_host(&host.get("/").await, 404);
    host.deploy(&fixture("service", "1.0.0"))
        .await
        .expect_code(0);
    assert_of_the_host(&host.get("/fail").await, 502);
    assert_eq!(host.get("/works").await.text(), "GET /works");
    let (h2, _connection) = Http2::connect(host.address).await.unwrap();
    assert_of_the_host(&h2.get("/fail").await.unwrap(), 502);
}

#[tokio::test]
async fn a_panic_is_a_500_for_that_request_alone() {
    let host = probe().await;
    let mut http = connect(&host).await;
    assert_of_the_host(&http.get("/panic").await.unwrap(), 500);
    assert_eq!(
        http.get("/version").await.unwrap().text(),
        "1.0.0",
        "the connection lives on"
    );
    // Once the head is out, the answer can only be cut, so that nobody takes it for whole.
    let cut = connect(&host).await.get("/panic-in-body").await;
    assert!(matches!(cut, Err(Fault::Cut(_))), "{cut:?}");
    host.app_when("probe", "both to be counted", |app| {
        app.generations[0].panics == 2
    })
    .await;
    host.logged("the message to be logged", |line| {
        line.contains("the handler panics")
    })
    .await;
    host.event("an event for it", |event| event.kind == "panic")
        .await;
}

#[tokio::test]
async fn head_requests_get_a_head() {
    let host = probe().await;
    let mut http = connect(&host).await;
    let answer = http.request("HEAD", "/version", &[], None).await.unwrap();
    assert_eq!(
        (
            answer.status,
            answer.header("content-length"),
            answer.body.len()
        ),
        (200, Some("5"), 0)
    );
    assert_eq!(
        http.get("/version").await.unwrap().text(),
        "1.0.0",
        "nothing of a body was left on the connection"
    );
}

#[tokio::test]
async fn a_client_that_waits_for_100_gets_it_when_the_body_is_wanted() {
    let host = probe().await;
    let mut http = connect(&host).await;
    http.send_head(
        "POST",
        "/sink",
        &[("content-length", "4"), ("expect", "100-continue")],
    )
    .await
    .unwrap();
    assert_eq!(http.head("POST").await.unwrap().status, 100);
    http.send(b"body").await.unwrap();
    assert_eq!(http.answer("POST").await.unwrap().json()["bytes"], 4);
    // Not wanted: the answer comes at once.
    http.send_head(
        "DELETE",
        "/sink",
        &[("content-length", "4"), ("expect", "100-continue")],
    )
    .await
    .unwrap();
    assert_eq!(http.head("DELETE").await.unwrap().status, 405);
}

#[tokio::test]
async fn requests_that_come_together_are_answered_in_order() {
    let host = probe().await;
    let mut http = connect(&host).await;
    http.send(b"GET /version HTTP/1.1\r\nhost: a\r\n\r\nGET /head?n=2 HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(http.answer("GET").await.unwrap().text(), "1.0.0");
    assert_eq!(http.answer("GET").await.unwrap().json()["query"], "n=2");
}

#[tokio::test]
async fn what_is_not_http_is_refused_and_harms_nobody() {
    let host = probe().await;
    let mut other = connect(&host).await;
    for nonsense in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
    ] {
        let mut http = connect(&host).await;
        http.send(nonsense).await.unwrap();
        if let Ok(answer) = http.answer("GET").await {
            assert_eq!(answer.status, 400);
        }
    }
    assert_eq!(other.get("/version").await.unwrap().text(), "1.0.0");
}

#[tokio::test]
async fn a_request_of_http_1_1_has_one_host() {
    let host = probe().await;
    let mut other = connect(&host).await;
    for (head, status) in [
        ("GET /version HTTP/1.1\r\n", 400),
        ("GET /version HTTP/1.1\r\nhost: a\r\nhost: a\r\n", 400),
        (
            "GET /version HTTP/1.1\r\nhost: a\r\nx: 1\r\nhost: b\r\n",
            400,
        ),
        ("GET /version HTTP/1.0\r\nhost: a\r\nhost: b\r\n", 400),
        ("GET /version HTTP/1.0\r\n", 200),
        ("GET /version HTTP/1.1\r\nx: 1\r\nx: 2\r\nhost: a\r\n", 200),
        ("GET /version HTTP/1.1\r\nhost:\r\n", 200),
        ("GET http://b/version HTTP/1.1\r\nhost: a\r\n", 200),
        ("GET /version HTTP/1.1\r\nhost: [::1]:80\r\n", 200),
        ("GET /version HTTP/1.1\r\nhost: a b\r\n", 400),
        ("GET /version HTTP/1.1\r\nhost: a/b\r\n", 400),
        ("GET /version HTTP/1.1\r\nx: 1\r\nhost: a@b\r\n", 400),
        ("GET /version HTTP/1.1\r\nhost: a:b\r\n", 400),
        (
            "GET /version HTTP/1.1\r\nhost: b\u{fc}cher.example\r\n",
            400,
        ),
        ("GET http://b/version HTTP/1.1\r\nhost: a b\r\n", 400),
    ] {
        let mut http = connect(&host).await;
        http.send(format!("{head}\r\n").as_bytes()).await.unwrap();
        let answer = http.answer("GET").await.unwrap();
        assert_eq!(answer.status, status, "{head}");
    }
    assert_eq!(other.get("/version").await.unwrap().text(), "1.0.0");
}

#[tokio::test]
async fn a_client_that_leaves_in_its_body_frees_the_plugin() {
    let host = probe().await;
    let mut http = connect(&host).await;
    http.send_head("POST", "/sink", &[("content-length", "1000000")])
        .await
        .unwrap();
    http.send(&[0; 1000]).await.unwrap();
    in_flight(&host, 1).await;
    drop(http);
    in_flight(&host, 0).await;

    let (h2, connection) = Http2::connect(host.address).await.unwrap();
    let (_answer, mut sender) = h2.start(Method::POST, "/sink", false).await.unwrap();
    http2::send(&mut sender, &[0; 1000], false).await.unwrap();
    in_flight(&host, 1).await;
    sender.send_reset(h2::Reason::CANCEL);
    in_flight(&host, 0).await;
    assert_eq!(
        h2.get("/version").await.unwrap().text(),
        "1.0.0",
        "the connection lives on"
    );
    assert!(!connection.is_finished());
}

#[tokio::test]
async fn a_client_that_leaves_ends_what_works_on_its_answer() {
    let host = probe().await;
    let mut http = connect(&host).await;
    assert_eq!(http.get("/version").await.unwrap().text(), "1.0.0");
    http.send_head("GET", "/slow?ms=600000", &[]).await.unwrap();
    in_flight(&host, 1).await;
    drop(http);
    in_flight(&host, 0).await;
}

#[tokio::test]
async fn what_wakes_itself_when_it_is_first_asked_is_asked_again() {
    let host = probe().await;
    let mut http = connect(&host).await;
    for n in 1..4 {
        let answer = http.get(&format!("/yield?n={n}")).await.unwrap();
        assert_eq!(answer.text(), "1.0.0");
    }
    let twice = b"GET /yield HTTP/1.1\r\nhost: a\r\n\r\n".repeat(2);
    http.send(&twice).await.unwrap();
    for _ in 0..2 {
        assert_eq!(http.answer("GET").await.unwrap().text(), "1.0.0");
    }
    let (h2, _connection) = Http2::connect(host.address).await.unwrap();
    assert_eq!(h2.get("/yield?n=3").await.unwrap().text(), "1.0.0");
}

#[tokio::test]
async fn events_come_as_they_happen() {
    let host = probe().await;
    let mut http = connect(&host).await;
    http.send_head("GET", "/events?every_ms=10", &[])
        .await
        .unwrap();
    let head = http.head("GET").await.unwrap();
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    let mut trailers = Vec::new();
    for _ in 0..5 {
        assert_eq!(
            http.chunk(&mut trailers).await.unwrap().unwrap(),
            b"data: 1.0.0\n\n",
            "one event, one chunk"
        );
    }
}

#[tokio::test]
async fn routes_are_by_host_and_by_whole_segments() {
    let config = "[app.probe]\nroutes = [\"/head\", \"shop.example/\"]\nstrip_prefix = false\n[app.hello]\nroutes = [\"/\"]\n";
    let host = Setup::new().config(config).start().await;
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    host.deploy(&fixture("hello", "1.0.0")).await.expect_code(0);
    for (path, version, status) in [
        ("/", "1.0.0", 200),
        ("/head?a", "2.0.0", 200),
        ("/head/a", "2.0.0", 404),
        ("/headless", "1.0.0", 404),
    ] {
        let answer = host.get(path).await;
        assert_eq!(
            (answer.version(), answer.status),
            (Some(version), status),
            "{path}"
        );
    }
    for name in [
        "shop.example",
        "Shop.Example:8080",
        "shop.example.",
        "shop.example.:80",
    ] {
        let answer = connect(&host)
            .await
            .request("GET", "/version", &[("host", name)], None)
            .await
            .unwrap();
        assert_eq!(answer.text(), "2.0.0");
    }
}

#[tokio::test]
async fn without_routes_the_first_app_has_the_root_and_others_their_name() {
    let host = probe().await;
    host.deploy(&fixture("hello", "1.0.0")).await.expect_code(0);
    assert_eq!(host.get("/version").await.text(), "1.0.0");
    assert_eq!(host.get("/hello").await.text(), "hello 1.0.0");
    assert_eq!(host.get("/hello/").await.text(), "hello 1.0.0");
    // The one at the root has all other paths, and none under its name.
    assert_eq!(host.get("/probe/version").await.status, 404);
    assert_eq!(host.get("/probe/version").await.version(), Some("1.0.0"));
    assert_eq!(host.get("/helloes").await.version(), Some("1.0.0"));
}

#[tokio::test]
async fn no_answer_has_a_trace_of_the_host_unless_it_was_asked_for() {
    let host = Setup::new().config("[server]\n").start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    for path in ["/version", "/nowhere", "/stream?n=2"] {
        let answer = host.get(path).await;
        let trace = answer
            .headers
            .iter()
            .find(|(name, value)| name.contains("handover") || value.contains("handover"));
        assert_eq!(trace, None);
    }
    let host = probe().await;
    let answer = host.get("/version").await;
    assert_eq!(
        (answer.generation(), answer.version()),
        (Some(1), Some("1.0.0"))
    );
}

#[tokio::test]
async fn the_app_gets_its_config_and_the_variables_it_may_have() {
    let config = "[app.probe]\nenv = [\"GREETING\"]\n[app.probe.config]\ncurrency = \"EUR\"\nlimits = { items = 3 }\n";
    let host = Setup::new()
        .config(config)
        .env("GREETING", "servus")
        .env("SECRET", "42")
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let about = host.get("/about").await.json();
    assert_eq!(
        about["config"],
        serde_json::json!({ "currency": "EUR", "limits": { "items": 3 } })
    );
    assert_eq!(
        (&about["app"], &about["version"], &about["generation"]),
        (&"probe".into(), &"1.0.0".into(), &1.into())
    );
    assert_eq!(
        (&about["draining"], &about["preflight"]),
        (&false.into(), &false.into())
    );
    assert_eq!(host.get("/env?name=GREETING").await.json(), "servus");
    assert_eq!(
        host.get("/env?name=SECRET").await.json(),
        serde_json::Value::Null
    );
    host.logged("an event of the plugin in the host's log", |line| {
        line.contains("probe starts") && line.contains("probe") && line.contains("1.0.0")
    })
    .await;
}

#[tokio::test]
async fn many_versions_later_the_same_connection_is_served() {
    let host = Host::start().await;
    host.deploy_bytes(&hello_as("1.0.0")).await.expect_code(0);
    let mut http = connect(&host).await;
    for minor in 1..8 {
        let version = format!("1.{minor}.0");
        host.deploy_bytes(&hello_as(&version)).await.expect_code(0);
        assert_eq!(
            http.get("/").await.unwrap().text(),
            format!("hello {version}")
        );
    }
}

#[tokio::test]
async fn an_app_that_wants_it_is_told_the_address_of_its_client() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    let stream = tokio::net::TcpStream::connect(host.address).await.unwrap();
    let own = stream.local_addr().unwrap();
    let mut http = Http1::from_stream(stream);
    for _ in 0..2 {
        assert_eq!(http.get("/client").await.unwrap().text(), own.to_string());
    }
    let (h2, _connection) = Http2::connect(host.address).await.unwrap();
    let text = h2.get("/client").await.unwrap().text();
    let address: std::net::SocketAddr = text.parse().unwrap();
    assert!(address.ip().is_loopback() && address != own, "{text}");
}

#[tokio::test]
async fn an_answer_keeps_its_reason_and_the_length_of_what_it_does_not_send() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    let mut http = Http1::connect(host.address).await.unwrap();
    let answer = http.get("/not-modified").await.unwrap();
    assert_eq!(answer.status, 304);
    assert_eq!(answer.header("content-length"), Some("5"));
    let answer = http.request("HEAD", "/version", &[], None).await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-length"), Some("5"));
    let answer = http
        .request("HEAD", "/not-modified", &[], None)
        .await
        .unwrap();
    assert_eq!(answer.header("content-length"), Some("5"));

    let stream = std::net::TcpStream::connect(host.address).unwrap();
    (&stream)
        .write_all(b"GET /reason HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    (&stream).read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 Very well\r\n"), "{text}");
}
