//! `handover logs`: the last records of the host's log, from the host itself.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{process::Stdio, time::Duration};

use handover_tests::{
    host::{DEADLINE, Host},
    plugins::{fixture, handover},
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::UnixStream,
    process::{Child, ChildStdout, Command},
    time::timeout,
};

/// `handover logs --json` with these arguments.
async fn logs(host: &Host, arguments: &[&str]) -> Vec<Value> {
    let arguments = ["logs", "--json"].iter().chain(arguments);
    let output = host.cli(arguments).await.expect_code(0);
    let lines = output.stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// `handover logs --json -f`, as it goes on.
struct Following {
    lines: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Following {
    fn start(host: &Host, arguments: &[&str]) -> Self {
        let mut child = Command::new(handover())
            .args(["logs", "--json", "-f"])
            .args(arguments)
            .env("HANDOVER_CONTROL", host.control())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            lines: BufReader::new(child.stdout.take().unwrap()).lines(),
            _child: child,
        }
    }

    async fn next(&mut self) -> Value {
        let line = timeout(DEADLINE, self.lines.next_line()).await;
        let line = line.expect("a record in time").unwrap();
        serde_json::from_str(&line.expect("the command goes on")).unwrap()
    }

    /// The records up to the one whose message begins with `begin`.
    async fn until(&mut self, begin: &str) -> Vec<Value> {
        let mut records = Vec::new();
        loop {
            let record = self.next().await;
            let is_last = message(&record).starts_with(begin);
            records.push(record);
            if is_last {
                return records;
            }
        }
    }
}

fn message(record: &Value) -> &str {
    record["message"].as_str().unwrap()
}

fn seq(record: &Value) -> u64 {
    record["seq"].as_u64().unwrap()
}

fn has(records: &[Value], begin: &str) -> bool {
    records
        .iter()
        .any(|record| message(record).starts_with(begin))
}

#[tokio::test]
async fn records_are_told_by_app_generation_level_and_number() {
    let host = Host::serving(&fixture("hello", "1.0.0")).await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    host.get("/probe/log?name=first").await;
    host.get("/probe/panic").await;
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    // The last of what the swap itself logs.
    host.event("the old code to leave", |event| event.kind == "unloaded")
        .await;
    host.get("/probe/log?name=second").await;

    let all = logs(&host, &[]).await;
    assert!(all.windows(2).all(|two| seq(&two[0]) + 1 == seq(&two[1])));
    assert!(all.iter().all(|record| record["run"] == all[0]["run"]));
    let first = all
        .iter()
        .find(|record| message(record).starts_with("first 0"))
        .unwrap();
    assert_eq!(
        (&first["level"], &first["app"], &first["generation"]),
        (&"info".into(), &"probe".into(), &1.into())
    );
    assert_eq!(first["target"], "plugin");
    assert_eq!(first["fields"]["module"], "probe");
    assert!(first["at_ms"].as_u64().unwrap() > 1_700_000_000_000);

    let of_app = logs(&host, &["--app", "probe"]).await;
    assert!(of_app.iter().all(|record| record["app"] == "probe"));
    assert!(has(&of_app, "first 0") && has(&of_app, "second 0"));
    let of_generation = logs(&host, &["--app", "probe", "--generation", "2"]).await;
    assert!(has(&of_generation, "second 0"), "{of_generation:?}");
    assert!(!has(&of_generation, "first 0"), "{of_generation:?}");
    let errors = logs(&host, &["--level", "error"]).await;
    assert!(has(&errors, "panicked"), "{errors:?}");
    assert!(errors.iter().all(|record| record["level"] == "error"));
    let last = logs(&host, &["--app", "probe", "--lines", "2"]).await;
    assert_eq!(last, of_app[of_app.len() - 2..]);
    assert!(logs(&host, &["--lines", "0"]).await.is_empty());
    let later = logs(&host, &["--since", &seq(first).to_string()]).await;
    assert_eq!(seq(&later[0]), seq(first) + 1);

    let text = host
        .cli(["logs", "--app", "probe", "--lines", "1"])
        .await
        .expect_code(0)
        .stdout;
    assert!(text.contains("Z  INFO second 0 "), "{text}");
    assert!(text.contains(" app=probe generation=2 "), "{text}");
    host.cli(["logs", "--level", "loud"])
        .await
        .expect_code(2)
        .expect_words(&["error, warn, info, debug, trace"]);
    let refused = host.ask("GET", "/v1/logs?level=loud").await.unwrap();
    assert_eq!(refused.status, 400);
}

#[tokio::test]
async fn who_follows_is_told_each_record_once() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    let mut following = Following::start(&host, &["--app", "probe", "--lines", "1"]);
    let first = following.next().await;
    host.get("/log?name=many&n=1000").await;
    host.get("/log?name=end").await;
    let records = following.until("end").await;
    let many = records
        .iter()
        .filter(|record| message(record).starts_with("many"));
    assert_eq!(many.count(), 1000);
    let numbers: Vec<_> = [&first].into_iter().chain(&records).map(seq).collect();
    assert!(numbers.windows(2).all(|two| two[0] < two[1]));
}

#[tokio::test]
async fn following_goes_on_over_a_crash_of_the_host() {
    let mut host = Host::serving(&fixture("probe", "1.0.0")).await;
    let mut following = Following::start(&host, &["--lines", "0"]);
    // It is there when it is told something.
    let mut records = host
        .until("the command to follow", async || {
            host.get("/log?name=before").await;
            timeout(Duration::from_millis(200), following.next())
                .await
                .ok()
        })
        .await;
    assert!(message(&records).starts_with("before"), "{records}");
    let run = records["run"].take();
    // The answer never comes: the process is gone.
    let asked = tokio::spawn({
        let address = host.address;
        async move {
            let mut stream = tokio::net::TcpStream::connect(address).await?;
            stream
                .write_all(b"GET /abort HTTP/1.1\r\nhost: h\r\n\r\n")
                .await?;
            stream.read_to_end(&mut Vec::new()).await
        }
    });
    host.came_back().await;
    let _ = asked.await.unwrap(); // it was cut
    host.live("probe", "1.0.0").await;
    host.get("/log?name=after").await;
    let after = following.until("after").await;
    let of_next: Vec<_> = after.iter().filter(|record| record["run"] != run).collect();
    // Its run begins with its first record, though nobody had read that when it was written.
    assert_eq!(seq(of_next[0]), 1);
    assert!(of_next.windows(2).all(|two| seq(two[0]) < seq(two[1])));
    assert!(of_next.iter().all(|record| record.get("lost").is_none()));
}

#[tokio::test]
async fn who_comes_back_late_or_reads_slowly_is_told_how_much_is_lost() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    let mut slow = UnixStream::connect(host.control()).await.unwrap();
    slow.write_all(b"GET /v1/logs?follow=true&lines=0 HTTP/1.1\r\nhost: h\r\n\r\n")
        .await
        .unwrap();
    // The head of the answer: it follows from here.
    let mut slow = BufReader::new(slow).lines();
    while !slow.next_line().await.unwrap().unwrap().is_empty() {}
    let flood = 6000;
    host.get(&format!("/log?name=flood&bytes=1000&n={flood}"))
        .await;
    host.get("/log?name=end").await;

    let late = logs(&host, &["--since", "1"]).await;
    assert_eq!(late[0]["level"], "warn");
    let lost = late[0]["lost"].as_u64().unwrap();
    assert_eq!(seq(&late[0]), 1 + lost);
    assert!(
        message(&late[0]).starts_with(&format!("{lost} records")),
        "{}",
        late[0]
    );
    assert_eq!(seq(&late[1]), seq(&late[0]) + 1);
    assert!(has(&late, "end"));

    // Each of the slow reader's was sent, or told as lost.
    let (mut told, mut lost) = (0, 0);
    loop {
        let line = timeout(DEADLINE, slow.next_line()).await.unwrap();
        let line = line.unwrap().unwrap();
        let Ok(record) = serde_json::from_str::<Value>(&line) else {
            continue; // the length of a chunk, or its end
        };
        let Some(text) = record["message"].as_str() else {
            continue;
        };
        match record["lost"].as_u64() {
            Some(number) => lost += number,
            None if text.starts_with("flood") => told += 1,
            None if text.starts_with("end") => break,
            None => {}
        }
    }
    assert!(lost > 0);
    assert!(told + lost >= flood, "{told} told, {lost} lost of {flood}");
}

#[tokio::test]
async fn a_stream_of_records_ends_with_the_host() {
    let mut host = Host::serving(&fixture("probe", "1.0.0")).await;
    let mut stream = UnixStream::connect(host.control()).await.unwrap();
    stream
        .write_all(b"GET /v1/logs?follow=true HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    host.signal(rustix::process::Signal::TERM);
    let mut answer = String::new();
    let whole = timeout(DEADLINE, stream.read_to_string(&mut answer)).await;
    whole.unwrap().unwrap();
    assert_eq!(host.ended().await, Some(0));
    assert!(answer.ends_with("0\r\n\r\n"), "it is whole: {answer}");
}
