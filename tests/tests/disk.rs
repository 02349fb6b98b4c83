//! The disk of the state is full or read-only: what was live is served, and what could not be
//! written is written later.
//!
//! The host gets a small file system of its own, in a namespace that ends with it. Where that is
//! not permitted nothing is proven, and the output says so.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    fs::{self, OpenOptions, Permissions},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Command,
};

use handover_tests::{
    client::Http1,
    host::{Host, Setup},
    plugins::{fixture, handover},
};
use rustix::process::Signal;
use tempfile::TempDir;

/// A host whose state is a file system of 128 MiB, on which two versions were live; the newer one
/// is.
async fn on_its_own_disk() -> Option<(Host, TempDir)> {
    let may = Command::new("unshare")
        .args(["-rm", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"])
        .status();
    if !may.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no file system can be mounted here (unshare -rm)");
        return None;
    }
    let scripts = tempfile::Builder::new()
        .prefix("on-a-disk-")
        .tempdir()
        .unwrap();
    let program = scripts.path().join("handover");
    let text = format!(
        "#!/bin/sh\nmkdir -p state\nexec unshare -rm sh -c 'mount -t tmpfs -o size=128m,mode=700 tmpfs state && exec \"{}\" \"$@\"' sh \"$@\"\n",
        handover().display()
    );
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let host = Setup::new()
        .config("[trust]\ninsecure_paths = true\n")
        .program(program)
        .argument("--control")
        .argument("HOME/control.sock")
        .start()
        .await;
    for version in ["1.0.0", "2.0.0"] {
        host.deploy(&fixture("hello", version)).await.expect_code(0);
    }
    Some((host, scripts))
}

/// The state directory as the host sees it.
fn state(host: &Host) -> PathBuf {
    let state = host.state();
    format!("/proc/{}/root{}", host.outer_pid(), state.display()).into()
}

/// Leaves no byte free.
fn fill(host: &Host) {
    let mut filler = OpenOptions::new()
        .create(true)
        .append(true)
        .open(state(host).join("filler"))
        .unwrap();
    for size in [1 << 20, 1 << 12, 1] {
        while filler.write_all(&vec![7; size]).is_ok() {}
    }
}

/// Makes the file system read-only, or writable again.
fn remount(host: &Host, how: &str) {
    let done = Command::new("nsenter")
        .args(["-U", "-m", "--preserve-credentials", "-t"])
        .arg(host.outer_pid().to_string())
        .args(["mount", "-o", &format!("remount,{how}")])
        .arg(host.state())
        .status()
        .unwrap();
    assert!(done.success(), "remount,{how}: {done}");
}

async fn not_durable(host: &Host) -> Option<String> {
    let status = host.ask("GET", "/v1/status").await.unwrap().json();
    let apps = status["apps"].as_array().unwrap();
    let mut reasons = apps.iter().filter_map(|app| app["not_durable"].as_str());
    reasons.next().map(str::to_owned)
}

async fn durable(host: &Host) {
    host.until("everything to be on disk", async || {
        not_durable(host).await.is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn on_a_full_disk_what_was_live_is_served_and_a_rollback_goes_through() {
    let Some((mut host, _scripts)) = on_its_own_disk().await else {
        return;
    };
    // What a recovery writes fits into the room that was taken for it.
    fill(&host);
    host.signal_inner(Signal::KILL);
    host.came_back().await;
    assert_eq!(host.get("/").await.text(), "hello 2.0.0");
    assert_eq!(not_durable(&host).await, None);

    // And without any room at all.
    for _ in 0..2 {
        let _ = fs::remove_file(state(&host).join("reserve"));
        fill(&host);
        host.signal_inner(Signal::KILL);
        host.came_back().await;
        assert_eq!(host.get("/").await.text(), "hello 2.0.0");
    }
    let rollback = host.cli(["rollback"]).await.expect_code(0);
    assert!(rollback.text().contains("not durable yet"), "{rollback:?}");
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");
    assert!(not_durable(&host).await.is_some());
    let refused = host.deploy(&fixture("hello", "2.0.0")).await;
    assert_ne!(refused.code, Some(0), "{refused:?}");
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");

    // There is room again: it is used, and the next start knows what was done meanwhile.
    fs::remove_file(state(&host).join("filler")).unwrap();
    durable(&host).await;
    // Who did it is written as well.
    host.until("the audit log", async || {
        let text = fs::read_to_string(state(&host).join("audit.jsonl")).ok()?;
        let mut lines = text.lines();
        lines.find(|line| line.contains("/v1/rollback") && line.contains("\"done\""))?;
        Some(())
    })
    .await;
    host.signal_inner(Signal::KILL);
    host.came_back().await;
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");
    host.deploy(&fixture("hello", "2.0.0")).await.expect_code(0);
}

async fn ask(host: &Host, method: &str, path: &str, body: &[u8]) -> u16 {
    let mut http = Http1::connect(host.address).await.unwrap();
    let answer = http.request(method, path, &[], Some(body)).await.unwrap();
    answer.status
}

#[tokio::test]
async fn on_a_full_disk_writes_of_state_are_refused_and_nothing_acknowledged_is_lost() {
    let Some((mut host, _scripts)) = on_its_own_disk().await else {
        return;
    };
    let deployed = host.deploy(&fixture("state", "1.0.0")).await;
    deployed.expect_code(0);
    // Where it answers depends on who came first.
    let at = |path: &str| format!("/state{path}");
    let value = vec![b'x'; 100_000];
    assert_eq!(ask(&host, "PUT", &at("/kv/first"), &value).await, 200);
    fill(&host);
    // What is free inside of its file is used up first.
    let mut kept = Vec::new();
    for n in 0.. {
        let key = at(&format!("/kv/k{n}"));
        match ask(&host, "PUT", &key, &value).await {
            200 => kept.push(key),
            status => {
                assert_eq!(status, 503);
                break;
            }
        }
        assert!(n < 1000, "the disk is not full");
    }
    // A write that nobody waits for is no lie either.
    assert_eq!(ask(&host, "PUT", &at("/left/l"), &value).await, 503);
    // Others do not notice, and what is there can be read.
    assert_eq!(host.get("/").await.text(), "hello 2.0.0");
    for key in &kept {
        assert_eq!(ask(&host, "GET", key, b"").await, 200);
    }
    // There is room again: it writes on by itself, and has everything.
    fs::remove_file(state(&host).join("filler")).unwrap();
    host.until("the state to be writable", async || {
        (ask(&host, "PUT", &at("/kv/later"), b"1").await == 200).then_some(())
    })
    .await;
    let has_all = async |host: &Host| {
        for key in kept.iter().chain([&at("/kv/first"), &at("/kv/later")]) {
            assert_eq!(ask(host, "GET", key, b"").await, 200, "{key}");
        }
    };
    has_all(&host).await;
    host.signal_inner(Signal::KILL);
    host.came_back().await;
    has_all(&host).await;
}

#[tokio::test]
async fn on_a_read_only_disk_what_was_live_is_served() {
    let Some((mut host, _scripts)) = on_its_own_disk().await else {
        return;
    };
    remount(&host, "ro");
    host.signal_inner(Signal::KILL);
    host.came_back().await;
    assert_eq!(host.get("/").await.text(), "hello 2.0.0");
    host.cli(["rollback"]).await.expect_code(0);
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");
    remount(&host, "rw");
    durable(&host).await;
    host.signal_inner(Signal::KILL);
    host.came_back().await;
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_tried_again_and_stays_where_it_is() {
    let mut host = Host::serving(&fixture("hello", "1.0.0")).await;
    let record = host.state().join("apps/hello.json");
    let aside = host.scratch("hello.json");
    // A folder cannot be read as a file, not even by root.
    host.crash(|_| {
        fs::rename(&record, &aside).unwrap();
        fs::create_dir(&record).unwrap();
    })
    .await;
    host.event("the trouble to be told", |event| {
        event.message.contains("stays where it is")
    })
    .await;
    fs::remove_dir(&record).unwrap();
    fs::rename(&aside, &record).unwrap();
    host.live("hello", "1.0.0").await;
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");
}

#[tokio::test]
async fn a_crash_on_a_full_disk_is_blamed_and_the_blame_is_written_when_there_is_room() {
    let Some((mut host, _scripts)) = on_its_own_disk().await else {
        return;
    };
    for version in ["1.0.0", "2.0.0"] {
        host.deploy(&fixture("probe", version)).await.expect_code(0);
    }
    let _ = fs::remove_file(state(&host).join("reserve"));
    fill(&host);
    // More than once: each start is one on a full disk.
    for (generation, kind) in [(2, "rolled_back"), (3, "failed")] {
        let asked = async {
            Http1::connect(host.address)
                .await?
                .get("/probe/abort")
                .await
        };
        asked.await.unwrap_err();
        host.came_back().await;
        host.live("probe", "1.0.0").await;
        host.live("hello", "2.0.0").await;
        // The second time there is nothing left to go back to.
        let whose = format!("SIGABRT in /probe/abort of probe {generation}");
        host.event("the blame", |event| {
            event.kind == kind && event.message.contains(&whose)
        })
        .await;
        assert!(not_durable(&host).await.is_some());
    }
    fs::remove_file(state(&host).join("filler")).unwrap();
    durable(&host).await;
    host.signal_inner(Signal::KILL);
    host.came_back().await;
    host.live("probe", "1.0.0").await;
    let history = host.cli(["history", "probe"]).await.expect_code(0);
    history.expect_words(&["rolled back", "SIGABRT"]);
}
