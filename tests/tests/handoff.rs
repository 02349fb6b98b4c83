//! The cutover `handoff`: never two versions at the same time, and no request is lost.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{fs, time::Duration};

use handover_tests::{
    client::Http1,
    host::{Host, Output, Setup},
    load::Load,
    plugins::fixture,
};

/// A host with an app that has a file open which nobody else can open.
struct Shop {
    host: Host,
    folder: tempfile::TempDir,
}

impl Shop {
    async fn open(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("database"), "2").unwrap();
        let config = format!(
            "[app.database]\n{config}\n[app.database.config]\ndatabase = {:?}\nunmigrated = {:?}\nexclusive = {:?}\n",
            path("database"),
            path("unmigrated"),
            path("exclusive"),
        );
        let host = Setup::new().config(&config).start().await;
        let shop = Self { host, folder };
        shop.deploy("1.0.0").await.expect_code(0);
        shop
    }

    async fn deploy(&self, version: &str) -> Output {
        self.host.deploy(&fixture("database", version)).await
    }

    async fn expect_live(&self, version: &str) {
        assert_eq!(self.host.get("/version").await.text(), version);
    }
}

const HANDOFF: &str = "cutover = \"handoff\"";

#[tokio::test]
async fn what_only_one_can_have_open_goes_from_version_to_version() {
    // Two at a time is what it cannot be.
    let shop = Shop::open("").await;
    shop.deploy("2.0.0")
        .await
        .expect_code(4)
        .expect_words(&["another version has it open"]);
    shop.expect_live("1.0.0").await;

    let shop = Shop::open(HANDOFF).await;
    for version in ["2.0.0", "1.0.0", "2.0.0"] {
        shop.deploy(version)
            .await
            .expect_code(0)
            .expect_words(&["handoff", "held meanwhile"]);
        shop.expect_live(version).await;
        assert_eq!(shop.host.mapped_plugins(), 1);
    }
    shop.host.cli(["rollback"]).await.expect_code(0);
    shop.expect_live("1.0.0").await;
    shop.host.cli(["restart"]).await.expect_code(0);
    shop.expect_live("1.0.0").await;
    shop.host
        .cli([
            "deploy",
            fixture("database", "2.0.0").to_str().unwrap(),
            "--stage",
        ])
        .await
        .expect_code(1)
        .expect_words(&["no two versions"]);
}

#[tokio::test]
async fn nobody_notices_a_handoff_and_one_that_fails_neither() {
    let host = Setup::new()
        .config("[app.probe]\ncutover = \"handoff\"\nmax_hold = \"1m\"\n")
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let load = Load {
        keep_alive: 8,
        closing: 2,
        streams: 2,
        pause: Duration::from_millis(2),
    }
    .start(host.address);
    load.more(100).await;
    for version in ["2.0.0", "1.0.0", "2.0.0"] {
        host.deploy(&fixture("probe", version)).await.expect_code(0);
        load.more(50).await;
    }
    load.stop().await.expect_none_lost();
    host.settled("probe").await;
}

#[tokio::test]
async fn when_the_new_version_does_not_start_the_old_one_answers_what_was_held() {
    let shop = Shop::open(HANDOFF).await;
    // It starts, and does not become live.
    fs::write(shop.folder.path().join("database"), "7").unwrap();
    let (failed, held) = tokio::join!(shop.deploy("2.0.0"), async {
        let mut answers = Vec::new();
        let mut http = Http1::connect(shop.host.address).await.unwrap();
        for _ in 0..200 {
            answers.push(http.get("/version").await.unwrap().text());
        }
        answers
    });
    failed
        .expect_code(1)
        .expect_words(&["revision 7", "(1.0.0) stays live"]);
    assert!(held.iter().all(|answer| answer == "1.0.0"), "{held:?}");
    shop.expect_live("1.0.0").await;
    let head = shop.host.active("database").await;
    assert_eq!(head.version, "1.0.0");
}

#[tokio::test]
async fn a_request_that_takes_too_long_keeps_its_version_and_is_answered() {
    let shop = Shop::open("cutover = \"handoff\"\nmax_hold = \"200ms\"").await;
    let (slow, refused) = tokio::join!(shop.host.get("/slow/1500"), async {
        shop.host
            .until("the slow request", async || {
                let app = shop.host.app("database").await;
                (app.generations[0].in_flight > 0).then_some(())
            })
            .await;
        shop.deploy("2.0.0").await
    });
    assert_eq!(slow.text(), "1.0.0");
    refused
        .expect_code(1)
        .expect_words(&["1 request", "max_hold", "stays live"]);
    shop.expect_live("1.0.0").await;
    shop.deploy("2.0.0").await.expect_code(0);
}
