//! The audit log: each change that is asked of a host is a line with who, where, what and how it
//! ended, and no secret.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{fs, os::unix::fs::PermissionsExt};

use handover_tests::{
    client::Http1,
    host::{Host, Setup},
    plugins::fixture,
};
use rustix::process::Signal;
use serde_json::Value;

/// The lines of the file.
fn lines(host: &Host) -> Vec<Value> {
    let text = fs::read_to_string(host.state().join("audit.jsonl")).unwrap_or_default();
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What `handover audit` shows with these arguments.
async fn shown(host: &Host, arguments: &[&str]) -> Vec<Value> {
    let all = ["audit", "--json"].iter().chain(arguments);
    let list = host.cli(all).await.expect_code(0).json();
    list["entries"].as_array().unwrap().clone()
}

/// The newest entry of a call.
async fn newest(host: &Host, call: &str) -> Value {
    host.until(call, async || {
        let all = shown(host, &[]).await;
        let mut of_call = all.into_iter().rev().filter(|entry| entry["call"] == call);
        of_call.next().filter(|entry| entry["outcome"].is_string())
    })
    .await
}

#[tokio::test]
async fn each_change_is_a_line_with_who_and_how_it_ended() {
    let host = Host::start().await;
    let file = fixture("hello", "1.0.0");
    let file = file.to_str().unwrap();
    host.cli(["deploy", file, "--by", "ann", "--message", "first"])
        .await
        .expect_code(0);
    host.deploy_bytes(b"no plugin").await.expect_code(4);
    host.cli(["stop", "hello"]).await.expect_code(0);
    host.cli(["rollback", "nobody"]).await.expect_code(1);
    // What only looks is not there.
    host.cli(["status"]).await.expect_code(0);

    let deploy = shown(&host, &["-n", "4"]).await.remove(0);
    let user = own_user();
    assert_eq!(deploy["call"], "POST /v1/deploy");
    assert_eq!(deploy["source"], "control");
    assert_eq!(
        (&deploy["app"], &deploy["outcome"]),
        (&"hello".into(), &"done".into())
    );
    assert_eq!(
        (&deploy["by"], &deploy["uid"]),
        (&"ann".into(), &user.into())
    );
    assert!(
        deploy["pid"].is_u64() && deploy["user"].is_string(),
        "{deploy}"
    );
    assert_eq!(deploy["arguments"]["message"], "first");
    let live = host.cli(["history", "--json"]).await.json();
    assert_eq!(deploy["artifact"], live["history"][0]["artifact"]);
    assert_eq!(deploy["status"], 200);

    let rejected = shown(&host, &["-n", "3"]).await.remove(0);
    assert_eq!(rejected["outcome"], "rejected");
    assert!(
        rejected["error"]
            .as_str()
            .unwrap()
            .contains("not an ELF file"),
        "{rejected}"
    );
    let all = shown(&host, &[]).await;
    let calls: Vec<_> = all
        .iter()
        .map(|entry| entry["call"].as_str().unwrap())
        .collect();
    assert_eq!(
        calls,
        [
            "POST /v1/deploy",
            "POST /v1/deploy",
            "POST /v1/stop",
            "POST /v1/rollback"
        ]
    );
    assert_eq!(all[3]["outcome"], "failed");

    // The file is the same, and nobody else's.
    assert_eq!(lines(&host), all);
    let facts = fs::metadata(host.state().join("audit.jsonl")).unwrap();
    assert_eq!(facts.permissions().mode() & 0o777, 0o600);

    assert_eq!(shown(&host, &["--app", "hello"]).await.len(), 2);
    assert_eq!(shown(&host, &["--since", "1h"]).await.len(), 4);
    let tomorrow = ["--since", "2999-01-01T00:00:00Z"];
    assert!(shown(&host, &tomorrow).await.is_empty());
    let text = host.cli(["audit"]).await.expect_code(0);
    text.expect_words(&[
        "ann",
        "control",
        "POST /v1/deploy",
        "rejected",
        "not an ELF file",
    ]);
}

#[tokio::test]
async fn files_signals_and_state_are_taken_down_without_their_values() {
    let host = Setup::new()
        .config("[app.state]\nroutes = [\"/\"]\n")
        .start()
        .await;
    host.drop_in("state.so", &fs::read(fixture("state", "1.0.0")).unwrap());
    host.verdict("state.so", "deployed").await;
    let dropped = newest(&host, "POST /v1/deploy").await;
    assert_eq!(dropped["source"], "drop-folder");
    assert_eq!(
        (&dropped["app"], &dropped["outcome"]),
        (&"state".into(), &"done".into())
    );
    assert_eq!(dropped["uid"], own_user());

    fs::write(host.plugins().join("state.stop"), "for the night\n").unwrap();
    let stopped = newest(&host, "POST /v1/stop").await;
    assert_eq!(stopped["source"], "drop-folder");
    assert_eq!(stopped["arguments"]["message"], "for the night");

    let put = "/v1/state/state/value?namespace=default&key=token";
    let mut control = Http1::connect_unix(&host.control()).await.unwrap();
    let answer = control.request("PUT", put, &[], Some(b"hunter2")).await;
    assert_eq!(answer.unwrap().status, 200);
    let put = newest(&host, "PUT /v1/state/state/value").await;
    assert_eq!(
        (&put["app"], &put["arguments"]["key"]),
        (&"state".into(), &"token".into())
    );

    host.signal(Signal::HUP);
    assert_eq!(newest(&host, "SIGHUP").await["source"], "signal");
    let text = fs::read_to_string(host.state().join("audit.jsonl")).unwrap();
    assert!(!text.contains("hunter2"), "{text}");
}

#[tokio::test]
async fn a_deploy_that_ends_the_host_is_there_afterwards_and_so_is_its_end() {
    let mut host = Setup::new()
        .config("[app.probe]\nroutes = [\"/\"]\n")
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    // Something is in flight, so that the deploy waits.
    let mut slow = Http1::connect(host.address).await.unwrap();
    slow.send_head("GET", "/slow?ms=600000", &[]).await.unwrap();
    host.app_when("probe", "a request", |app| {
        app.generations.iter().any(|one| one.in_flight > 0)
    })
    .await;
    let file = fixture("probe", "2.0.0");
    host.cli(["deploy", file.to_str().unwrap(), "--detach"])
        .await
        .expect_code(0);
    host.event("the cutover", |event| {
        event.kind == "active" && event.message.contains("2.0.0")
    })
    .await;
    let begun = shown(&host, &["-n", "1"]).await.remove(0);
    assert!(begun["outcome"].is_null(), "{begun}");
    host.signal_inner(Signal::KILL);
    host.came_back().await;
    let cut = newest(&host, "POST /v1/deploy").await;
    assert_eq!(cut["outcome"], "failed");
    assert!(
        cut["error"].as_str().unwrap().contains("the host ended"),
        "{cut}"
    );

    host.cli(["shutdown"]).await.expect_code(0);
    assert_eq!(host.ended().await, Some(0));
    assert_eq!(lines(&host).last().unwrap()["call"], "POST /v1/shutdown");
}

#[tokio::test]
async fn the_file_is_where_the_configuration_says_and_is_rotated() {
    let host = Setup::new()
        .config("[audit]\nfile = \"changes.jsonl\"\nmax_size = \"1B\"\nkeep = 2\n")
        .start()
        .await;
    for _ in 0..4 {
        host.cli(["rollback", "nobody"]).await.expect_code(1);
        // Each is a file of its own by then.
        shown(&host, &[]).await;
    }
    let file = |name: &str| host.home().join(name);
    host.until("the rotation", async || {
        file("changes.jsonl.2").exists().then_some(())
    })
    .await;
    assert!(!file("changes.jsonl.3").exists());
    assert_eq!(shown(&host, &[]).await.len(), 2);
    assert!(!host.state().join("audit.jsonl").exists());
}

/// The user that the tests run as.
fn own_user() -> u32 {
    rustix::process::getuid().as_raw()
}
