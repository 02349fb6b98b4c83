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
    host::{Host, Setup},
    plugins::{fixture, handover},
};
use rustix::process::Signal;
use tempfile::TempDir;

/// A host whose state is a file system of 48 MiB, on which two versions were live; the newer one
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
        "#!/bin/sh\nmkdir -p state\nexec unshare -rm sh -c 'mount -t tmpfs -o size=48m,mode=700 tmpfs state && exec \"{}\" \"$@\"' sh \"$@\"\n",
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
    status["apps"][0]["not_durable"].as_str().map(str::to_owned)
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
    host.signal_inner(Signal::KILL);
    host.came_back().await;
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");
    host.deploy(&fixture("hello", "2.0.0")).await.expect_code(0);
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
