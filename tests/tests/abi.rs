//! A host runs every plugin of its ABI major and an equal or lower minor, and names both versions
//! to all others.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::fs;

use handover_tests::{
    elf,
    host::{Host, handover},
    plugins::{fixture, rewritten, workspace},
};

/// What the host says that it offers, as major and minor.
async fn offered(host: &Host) -> (u32, u32) {
    let status = host.ask("GET", "/v1/status").await.unwrap().json();
    let abi = status["host"]["abi"].as_str().unwrap().to_owned();
    let (major, minor) = abi.split_once('.').unwrap();
    (major.parse().unwrap(), minor.parse().unwrap())
}

#[tokio::test]
async fn the_first_minor_runs_asks_logs_and_leaves() {
    // What it uses is the first minor's, so it may say that it is of that one.
    runs_asks_logs_and_leaves(&rewritten("released", |bytes| elf::set_abi(bytes, 1, 0))).await;
}

/// The file of ABI 1.0 as it was built when that was released: what is built anew would follow the
/// ABI where it should not go.
#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn the_file_of_the_first_minor_runs_as_it_did() {
    let file = workspace().join("tests/released/abi-1.0-x86_64.so");
    runs_asks_logs_and_leaves(&fs::read(file).unwrap()).await;
}

async fn runs_asks_logs_and_leaves(released: &[u8]) {
    assert_eq!(elf::manifest(released)["abi"], serde_json::json!([1, 0]));
    let host = Host::start().await;
    host.deploy_bytes(released).await.expect_code(0);
    assert_eq!(host.get("/nothing").await.status, 200);
    assert_eq!(host.get("/log").await.text(), "true");
    host.logged("its event, with its place", |line| {
        line.contains("was asked to log field=its value") && line.contains("released.rs")
    })
    .await;
    assert_eq!(host.get("/large").await.text(), "large".repeat(10_000));
    let streamed = host.get("/stream").await.text();
    assert!(streamed.starts_with("one 22") && streamed.ends_with("2 three"));
    assert_eq!(host.get("/panic").await.status, 500);
    host.logged("its panic", |line| {
        line.contains("panicked: the released plugin says so")
    })
    .await;
    assert_eq!(host.get("/begin").await.text(), "began");
    assert_eq!(host.get("/end").await.text(), "ended 1");
    // And it leaves as well as any other.
    let hello = fixture("hello", "1.0.0");
    host.cli(["deploy", "--app", "released", hello.to_str().unwrap()])
        .await
        .expect_code(0);
    host.settled("released").await;
    host.until("its library to be unmapped", async || {
        (host.mapped_plugins() == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_plugin_of_the_layout_before_is_refused_though_its_version_would_do() {
    let host = Host::serving(&fixture("hello", "1.0.0")).await;
    // It would crash if anything of it ran.
    let bytes = rewritten("misfit", |bytes| {
        elf::set_format(bytes, 1);
        elf::set_habit(bytes, "load-segv");
    });
    host.deploy_bytes(&bytes)
        .await
        .expect_code(4)
        .expect_words(&["of layout 1", "of layout 2", "build it again"]);
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");
}

#[tokio::test]
async fn a_newer_minor_and_another_major_are_refused_naming_both_versions() {
    let host = Host::serving(&fixture("hello", "1.0.0")).await;
    let (major, minor) = offered(&host).await;
    let ours = format!("{major}.{minor}");
    for (major, minor) in [(major, minor + 1), (major, 9), (major + 1, 0), (0, minor)] {
        let bytes = rewritten("hello", |bytes| elf::set_abi(bytes, major, minor));
        let theirs = format!("{major}.{minor}");
        host.deploy_bytes(&bytes)
            .await
            .expect_code(4)
            .expect_words(&[&theirs, &ours]);
    }
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");
}

#[tokio::test]
async fn inspect_tells_the_abi_without_loading() {
    let bytes = rewritten("misfit", |bytes| {
        elf::set_abi(bytes, 7, 3);
        elf::set_habit(bytes, "load-segv");
    });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("future.so");
    fs::write(&file, bytes).unwrap();
    handover(["inspect", file.to_str().unwrap()])
        .await
        .expect_code(0)
        .expect_words(&["7.3", "misfit", "1.0.0"]);
}
