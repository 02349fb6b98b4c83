//! What a version hands over to the next one in memory, and that a deploy does without it.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{fs, path::PathBuf};

use handover_tests::{
    host::{Host, Setup},
    plugins::fixture,
};

/// A host with the app, which has counted to three.
struct Warm {
    host: Host,
    _folder: tempfile::TempDir,
    how: PathBuf,
}

impl Warm {
    /// `config` is of the app.
    async fn open(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let how = folder.path().join("how");
        let config = format!("[app.schema]\n{config}\n[app.schema.config]\nhow = {how:?}\n");
        let host = Setup::new().config(&config).start().await;
        let warm = Self {
            host,
            _folder: folder,
            how,
        };
        warm.deploy("1.0.0").await.expect_code(0);
        for count in ["1", "2", "3"] {
            warm.expect_count(count).await;
        }
        warm
    }

    async fn deploy(&self, version: &str) -> handover_tests::host::Output {
        self.host.deploy(&fixture("schema", version)).await
    }

    async fn expect_count(&self, count: &str) {
        assert_eq!(self.host.get("/warm").await.text(), count);
    }
}

#[tokio::test]
async fn the_next_version_begins_with_what_the_last_one_gives() {
    let warm = Warm::open("").await;
    warm.host.cli(["restart", "schema"]).await.expect_code(0);
    warm.expect_count("4").await;
    // Its state has another schema, so the old one leaves before the new one is constructed.
    warm.deploy("2.0.0").await.expect_code(0);
    warm.expect_count("5").await;
    warm.host.cli(["rollback"]).await.expect_code(0);
    warm.expect_count("6").await;
}

#[tokio::test]
async fn what_cannot_be_had_is_left_out_and_told() {
    let warm = Warm::open("handover.deadline = \"1s\"\nhandover.max_size = \"10KiB\"").await;
    for (how, reason) in [
        ("hand-over panic", "it panicked"),
        ("hand-over much", "handover.max_size is 10.2 kB"),
        ("hand-over hang", "it did not answer within 1.0 s"),
    ] {
        fs::write(&warm.how, how).unwrap();
        warm.host.cli(["restart", "schema"]).await.expect_code(0);
        warm.expect_count("1").await;
        let told = |event: &handover_tests::host::Event| {
            event.kind == "warning"
                && event.message.contains("hands over is left out")
                && event.message.contains(reason)
        };
        warm.host.event(reason, told).await;
    }
    // What hung ended when its generation was replaced.
    warm.host.settled("schema").await;
}

#[tokio::test]
async fn a_constructor_that_insists_on_another_type_is_refused_and_the_old_version_goes_on() {
    let warm = Warm::open("").await;
    fs::write(&warm.how, "hand-over another").unwrap();
    warm.deploy("2.0.0")
        .await
        .expect_code(4)
        .expect_words(&["hands over is of another type"]);
    fs::write(&warm.how, "").unwrap();
    assert_eq!(warm.host.get("/version").await.text(), "1.0.0");
}

#[tokio::test]
async fn nothing_is_handed_over_by_a_host_that_has_ended() {
    let mut warm = Warm::open("").await;
    warm.host.crash(|_| {}).await;
    warm.host.live("schema", "1.0.0").await;
    warm.expect_count("1").await;
}
