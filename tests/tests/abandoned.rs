//! A client of the control socket that ends while its deploy is at any of its steps: before the
//! host has all bytes nothing has happened, and after that the host finishes what it has begun.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use handover_tests::{
    host::{Host, Setup},
    plugins::fixture,
};
use tokio::{io::AsyncWriteExt, net::UnixStream};

/// Says that it is there, and waits for as long as it is told to.
const HOOK: &str = "#!/bin/sh
folder=$(dirname \"$0\")
: > \"$folder/reached-$1\"
while [ -e \"$folder/wait-$1\" ]; do sleep 0.01; done
";

/// A host with 1.0.0 of the probe, and hooks that wait.
async fn host(folder: &Path) -> Host {
    let hook = folder.join("hook");
    fs::write(&hook, HOOK).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let hooks: String = ["pre_deploy", "migrate", "post_deploy"]
        .iter()
        .map(|name| format!("{name} = [{hook:?}, \"{name}\"]\n"))
        .collect();
    let config = format!("[app.probe.hooks]\n{hooks}");
    let host = Setup::new().config(&config).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    for name in ["pre_deploy", "migrate", "post_deploy"] {
        fs::remove_file(folder.join(format!("reached-{name}"))).unwrap();
    }
    host
}

/// Sends `part` of the bytes of a deploy of 2.0.0.
async fn send(host: &Host, query: &str, part: impl FnOnce(usize) -> usize) -> UnixStream {
    let bytes = fs::read(fixture("probe", "2.0.0")).unwrap();
    let mut socket = UnixStream::connect(host.control()).await.unwrap();
    let head = format!(
        "POST /v1/deploy?name=a.so{query} HTTP/1.1\r\nhost: control\r\ncontent-length: {}\r\n\r\n",
        bytes.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let sent = &bytes[..part(bytes.len())];
    socket.write_all(sent).await.unwrap();
    socket
}

async fn outcomes(host: &Host) -> Vec<(String, String)> {
    let history = host.ask("GET", "/v1/history").await.unwrap().json();
    let entries = history["history"].as_array().unwrap().iter();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    entries
        .map(|entry| (text(&entry["version"]), text(&entry["outcome"])))
        .collect()
}

fn pair(version: &str, outcome: &str) -> (String, String) {
    (version.to_owned(), outcome.to_owned())
}

#[tokio::test]
async fn half_of_an_artifact_has_changed_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path()).await;
    for part in [0, 1, 2] {
        drop(send(&host, "", |length| length / 2 * part / 2).await);
    }
    // What comes after them finds nothing of them.
    host.cli(["status"]).await.expect_code(0);
    assert_eq!(host.active("probe").await.version, "1.0.0");
    assert_eq!(outcomes(&host).await, [pair("1.0.0", "done")]);
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    let uploads = fs::read_dir(host.state().join("artifacts")).unwrap();
    let left = uploads.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        !name.to_string_lossy().ends_with(".so")
    });
    assert_eq!(left.count(), 0);
}

#[tokio::test]
async fn what_the_host_has_begun_it_finishes_whoever_has_left() {
    for step in ["pre_deploy", "migrate", "post_deploy"] {
        let folder = tempfile::tempdir().unwrap();
        let host = host(folder.path()).await;
        let waits = folder.path().join(format!("wait-{step}"));
        fs::write(&waits, "").unwrap();
        let client = send(&host, "", |length| length).await;
        let reached = folder.path().join(format!("reached-{step}"));
        host.until(step, async || reached.exists().then_some(()))
            .await;
        drop(client);
        // Nobody else gets in between; after its cutover it is live already.
        let code = if step == "post_deploy" { 0 } else { 8 };
        let other = host.deploy(&fixture("probe", "2.0.0")).await;
        other.expect_code(code);
        fs::remove_file(&waits).unwrap();
        host.live("probe", "2.0.0").await;
        host.settled("probe").await;
        host.until("the end of the deploy", async || {
            let ended = [pair("1.0.0", "done"), pair("2.0.0", "done")];
            (outcomes(&host).await == ended).then_some(())
        })
        .await;
        assert_eq!(host.mapped_plugins(), 1);
    }
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_has_deployed_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path()).await;
    let waits = folder.path().join("wait-pre_deploy");
    fs::write(&waits, "").unwrap();
    let first = send(&host, "", |length| length).await;
    let reached = folder.path().join("reached-pre_deploy");
    host.until("the first", async || reached.exists().then_some(()))
        .await;
    let second = send(&host, "&queue=true", |length| length).await;
    host.until("the queue", async || {
        (host.app("probe").await.queue.len() == 1).then_some(())
    })
    .await;
    drop(second);
    host.until("the empty queue", async || {
        host.app("probe").await.queue.is_empty().then_some(())
    })
    .await;
    drop(first);
    fs::remove_file(&waits).unwrap();
    host.live("probe", "2.0.0").await;
}
