//! What a version does once, when it has passed all checks and before its first request.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::fs;

use handover_tests::{
    host::{Host, Setup},
    plugins::fixture,
};

async fn host(folder: &tempfile::TempDir) -> Host {
    let (live, gate) = (folder.path().join("live"), folder.path().join("gate"));
    let config = format!(
        "[app.probe.config]\nlive = {live:?}\nlive_gate = {gate:?}\n[app.probe.hooks]\ndeadline = \"2s\"\n"
    );
    Setup::new().config(&config).start().await
}

#[tokio::test]
async fn it_runs_once_for_each_version_that_becomes_live_and_never_in_preflight() {
    let folder = tempfile::tempdir().unwrap();
    let mut host = host(&folder).await;
    let done = || fs::read_to_string(folder.path().join("live")).unwrap_or_default();
    host.deploy(&fixture("probe", "1.0.0"))
        .await
        .expect_code(0)
        .expect_words(&["on_live"]);
    assert_eq!(done(), "1.0.0\n");
    let file = fixture("probe", "2.0.0");
    host.cli(["deploy", file.to_str().unwrap(), "--stage"])
        .await
        .expect_code(0);
    assert_eq!(done(), "1.0.0\n2.0.0\n");
    host.cli(["promote", "probe"]).await.expect_code(0);
    assert_eq!(done(), "1.0.0\n2.0.0\n");
    host.crash(|_| ()).await;
    host.live("probe", "2.0.0").await;
    assert_eq!(done(), "1.0.0\n2.0.0\n2.0.0\n");
}

#[tokio::test]
async fn its_failure_fails_the_deploy_and_no_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut host = host(&folder).await;
    let gate = folder.path().join("gate");
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    for (what, why) in [
        ("closed", "is closed"),
        ("panic", "it panicked"),
        ("hang", "did not end within 2.0 s"),
    ] {
        fs::write(&gate, what).unwrap();
        host.deploy(&fixture("probe", "2.0.0"))
            .await
            .expect_code(1)
            .expect_words(&["on_live failed", why, "stays live"]);
        assert_eq!(host.get("/version").await.text(), "1.0.0");
    }
    // What was live serves, whatever has moved on outside.
    fs::write(&gate, "closed").unwrap();
    host.crash(|_| ()).await;
    host.live("probe", "1.0.0").await;
    host.event("the warning", |event| {
        event.kind == "warning" && event.message.contains("serves though its on_live failed")
    })
    .await;
    fs::remove_file(&gate).unwrap();
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    assert_eq!(host.get("/version").await.text(), "2.0.0");
}
