//! The log of requests: what is in it, that nobody can forge a line of it, and that it holds up
//! nobody.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::fs;

use handover_tests::{
    client::{Http1, Http2},
    host::{Host, Setup},
    metrics::Metrics,
    plugins::fixture,
};
use rustix::process::Signal;
use serde_json::Value;

/// A host with 1.0.0 of the probe that logs requests by `keys`.
async fn host_with(keys: &str) -> Host {
    let config = format!(
        "[server]\nrequest_id = true\n[app.probe]\nroutes = [\"/\"]\n[app.zoo]\nroutes = [\"zoo.test/\"]\n[access_log]\n{keys}"
    );
    let host = Setup::new().config(&config).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    host
}

/// The lines of the log once there are `count` of them.
async fn lines(host: &Host, count: usize) -> Vec<String> {
    let file = host.home().join("access.log");
    let found = host.until("the lines", async || {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        (text.ends_with('\n') && lines.len() >= count).then_some(lines)
    });
    let lines = found.await;
    assert_eq!(lines.len(), count, "{lines:#?}");
    lines
}

async fn objects(host: &Host, count: usize) -> Vec<Value> {
    let lines = lines(host, count).await;
    let parsed = lines.iter().map(|line| serde_json::from_str(line));
    parsed.collect::<Result<_, _>>().unwrap()
}

const JSON: &str = "file = \"access.log\"\n";

#[tokio::test]
async fn each_request_has_a_line_that_says_who_answered() {
    let host = host_with(JSON).await;
    let mut http = Http1::connect(host.address).await.unwrap();
    let fields = [
        ("user-agent", "probe/1"),
        ("referer", "https://example.org/from?secret=1"),
    ];
    let answer = http
        .request("GET", "/version?secret=1", &fields, None)
        .await
        .unwrap();
    let id = answer.header("x-request-id").unwrap().to_owned();
    http.request("POST", "/echo", &[], Some(b"hello"))
        .await
        .unwrap();
    http.request("HEAD", "/version", &[], None).await.unwrap();
    assert_eq!(http.get("/not-modified").await.unwrap().status, 304);
    http.get("/whole?bytes=300000").await.unwrap();
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    let (two, _connection) = Http2::connect(host.address).await.unwrap();
    two.get("/version").await.unwrap();
    let zoo = [("host", "zoo.test")];
    http.request("GET", "/x", &zoo, None).await.unwrap();
    http.send(b"GET /y HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(http.answer("GET").await.unwrap().status, 400);
    let lines = objects(&host, 8).await;
    let first = &lines[0];
    for (field, value) in [
        ("client", Value::from("127.0.0.1")),
        ("method", "GET".into()),
        ("path", "/version".into()),
        ("protocol", "HTTP/1.1".into()),
        ("status", 200.into()),
        ("bytes", 5.into()),
        ("app", "probe".into()),
        ("version", "1.0.0".into()),
        ("generation", 1.into()),
        ("request_id", id.into()),
        ("user_agent", "probe/1".into()),
        ("referer", "https://example.org/from".into()),
        ("aborted", false.into()),
        ("query", Value::Null),
        ("tls", Value::Null),
    ] {
        assert_eq!(first[field], value, "{field} of {first}");
    }
    assert!(first["duration"].as_f64().is_some_and(|took| took > 0.0));
    assert!(first["time"].as_str().unwrap().ends_with('Z'));
    let told: Vec<_> = lines
        .iter()
        .map(|line| {
            let number = |field: &str| line[field].as_u64();
            let text = |field: &str| line[field].as_str().unwrap_or("-");
            let status = number("status").unwrap();
            let bytes = number("bytes").unwrap();
            let generation = number("generation");
            (
                text("method"),
                text("path"),
                status,
                bytes,
                text("app"),
                generation,
            )
        })
        .collect();
    let bytes_of_400 = told[7].3;
    let bytes_of_503 = told[6].3;
    let whole = told[4].3;
    assert_eq!(
        told[1..],
        [
            ("POST", "/echo", 200, 5, "probe", Some(1)),
            ("HEAD", "/version", 200, 0, "probe", Some(1)),
            ("GET", "/not-modified", 304, 0, "probe", Some(1)),
            ("GET", "/whole", 200, whole, "probe", Some(1)),
            ("GET", "/version", 200, 5, "probe", Some(2)),
            ("GET", "/x", 503, bytes_of_503, "zoo", None),
            ("GET", "/y", 400, bytes_of_400, "probe", None),
        ]
    );
    assert!(whole > 64 << 10 && bytes_of_400 > 0 && bytes_of_503 > 0);
    assert_eq!(lines[5]["protocol"], "HTTP/2.0");
    assert!(
        lines.iter().all(|line| line["aborted"] == false),
        "{lines:#?}"
    );
}

#[tokio::test]
async fn what_a_client_did_not_wait_for_is_logged_with_what_it_was_sent() {
    let host = host_with(JSON).await;
    let mut http = Http1::connect(host.address).await.unwrap();
    http.send_head("GET", "/endless", &[]).await.unwrap();
    http.head("GET").await.unwrap();
    assert!(http.chunk(&mut Vec::new()).await.unwrap().is_some());
    drop(http);
    let lines = objects(&host, 1).await;
    assert_eq!(
        (&lines[0]["status"], &lines[0]["aborted"]),
        (&200.into(), &true.into())
    );
    assert!(lines[0]["bytes"].as_u64().unwrap() > 0);
    let mut http = Http1::connect(host.address).await.unwrap();
    http.send_head("GET", "/slow?ms=600000", &[]).await.unwrap();
    host.app_when("probe", "the request", |app| {
        app.generations[0].in_flight == 1
    })
    .await;
    drop(http);
    let lines = objects(&host, 2).await;
    assert_eq!(
        (&lines[1]["status"], &lines[1]["aborted"]),
        (&499.into(), &true.into())
    );
    assert_eq!(lines[1]["bytes"], 0);
}

#[tokio::test]
async fn no_client_forges_a_line() {
    let keys = format!("{JSON}format = \"combined\"\nquery = true\n");
    let host = host_with(&keys).await;
    let mut http = Http1::connect(host.address).await.unwrap();
    let hostile = b"GET /version?a=b'c HTTP/1.1\r\nhost: localhost\r\nuser-agent: \xff\" 200 1\t\"\xc2\x85x\r\nreferer: \\\"\r\n\r\n";
    http.send(hostile).await.unwrap();
    let status = http.answer("GET").await.unwrap().status;
    assert_eq!(status, 200);
    let line = lines(&host, 1).await.remove(0);
    assert!(line.starts_with("127.0.0.1 - - ["), "{line}");
    let end = "] \"GET /version?a=b'c HTTP/1.1\" 200 5 \"\\\\\\\"\" \"\\xFF\\\" 200 1\\x09\\\"\\xC2\\x85x\"";
    assert!(line.ends_with(end), "{line}");
}

#[tokio::test]
async fn lines_beyond_those_of_a_second_are_counted_and_told() {
    let host = host_with(&format!("{JSON}sample = 1\n")).await;
    let mut http = Http1::connect(host.address).await.unwrap();
    const ASKED: usize = 300;
    for _ in 0..ASKED {
        assert_eq!(http.get("/version").await.unwrap().status, 200);
    }
    let metrics = Metrics::read(&host.ask("GET", "/metrics").await.unwrap().text());
    let unwritten = |reason| {
        let name = "handover_access_log_unwritten_total";
        metrics.get(name, &[("reason", reason)]).unwrap() as usize
    };
    assert!(unwritten("sample") > 0);
    assert_eq!(unwritten("dropped"), 0);
    lines(&host, ASKED - unwritten("sample")).await;
    host.logged("what is missing", |line| {
        line.contains("requests have no line in the access log") && line.contains("sample")
    })
    .await;
}

#[tokio::test]
async fn a_file_that_cannot_be_had_costs_lines_and_no_request() {
    let host = host_with("file = \"nowhere/access.log\"\n").await;
    let mut http = Http1::connect(host.address).await.unwrap();
    for _ in 0..20 {
        assert_eq!(http.get("/version").await.unwrap().status, 200);
    }
    host.logged("the file", |line| {
        line.contains("the log file cannot be opened") && line.contains("(access_log.file)")
    })
    .await;
    host.logged("the losses", |line| {
        line.contains("of the access log could not be written, and are lost")
    })
    .await;
    fs::create_dir(host.home().join("nowhere")).unwrap();
    host.until("the file", async || {
        http.get("/version").await.unwrap();
        host.home()
            .join("nowhere/access.log")
            .exists()
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_file_that_was_renamed_is_made_anew_and_a_large_one_is_rotated() {
    let host = host_with(&format!("{JSON}max_size = \"1KiB\"\nkeep = 2\n")).await;
    let file = host.home().join("access.log");
    host.get("/version?1").await;
    lines(&host, 1).await;
    fs::rename(&file, host.home().join("renamed")).unwrap();
    host.signal(Signal::USR1);
    host.get("/version?2").await;
    lines(&host, 1).await;
    let mut http = Http1::connect(host.address).await.unwrap();
    host.until("two old files", async || {
        http.get("/version").await.unwrap();
        host.home().join("access.log.2").exists().then_some(())
    })
    .await;
    assert!(!host.home().join("access.log.3").exists());
}
