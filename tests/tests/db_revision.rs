//! Versions that say which revisions of their database they run with: what is refused before
//! anything was done, and that a restart refuses nothing.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{fs, path::PathBuf};

use handover_tests::{
    host::{Host, Output, Setup},
    plugins::fixture,
};

/// A host with the app, and its database.
struct Shop {
    host: Host,
    folder: tempfile::TempDir,
}

impl Shop {
    /// 1.0.0 is live, and the database at revision 1. `config` is of the app.
    async fn open(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let config = format!(
            "[app.database]\n{config}\n[app.database.config]\ndatabase = {:?}\nunmigrated = {:?}\n",
            path("database"),
            path("unmigrated")
        );
        let host = Setup::new().config(&config).start().await;
        let shop = Self { host, folder };
        shop.set("database", "0");
        shop.deploy("1.0.0").await.expect_code(0);
        assert_eq!(shop.revision(), "1");
        shop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn set(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn revision(&self) -> String {
        fs::read_to_string(self.path("database")).unwrap()
    }

    async fn deploy(&self, version: &str) -> Output {
        self.host.deploy(&fixture("database", version)).await
    }

    async fn expect_live(&self, version: &str) {
        assert_eq!(self.host.get("/version").await.text(), version);
        assert_eq!(self.host.active("database").await.version, version);
    }
}

#[tokio::test]
async fn a_version_that_migrates_goes_live_and_one_that_does_not_is_refused() {
    let shop = Shop::open("").await;
    shop.set("unmigrated", "");
    shop.deploy("2.0.0").await.expect_code(1).expect_words(&[
        "its database is at revision 1",
        "2.0.0 runs with revisions 2 to 3",
        "`#[on_live]`",
        "stays live",
    ]);
    shop.expect_live("1.0.0").await;
    fs::remove_file(shop.path("unmigrated")).unwrap();
    shop.deploy("2.0.0").await.expect_code(0);
    shop.expect_live("2.0.0").await;
    assert_eq!(shop.revision(), "2");
}

#[tokio::test]
async fn a_rollback_goes_as_far_back_as_the_database_lets_it() {
    let shop = Shop::open("").await;
    shop.deploy("2.0.0").await.expect_code(0);
    shop.host.cli(["rollback"]).await.expect_code(0);
    shop.expect_live("1.0.0").await;
    shop.deploy("2.0.0").await.expect_code(0);
    shop.set("database", "3");
    shop.host
        .cli(["rollback"])
        .await
        .expect_code(1)
        .expect_words(&[
            "its database is at revision 3",
            "1.0.0 runs with revisions 1 to 2",
        ]);
    shop.expect_live("2.0.0").await;
    shop.deploy("1.0.0").await.expect_code(1);
    shop.expect_live("2.0.0").await;
    assert_eq!(shop.revision(), "3");
    // Whoever cannot ask the database goes back all the same.
    shop.set("database", "none");
    shop.host.cli(["rollback"]).await.expect_code(0);
    shop.expect_live("1.0.0").await;
    let warned = |event: &handover_tests::host::Event| {
        event.kind == "warning" && event.message.contains("is not known")
    };
    shop.host.event("the warning", warned).await;
}

#[tokio::test]
async fn what_is_warm_or_has_a_label_is_asked_before_it_is_live_again() {
    let shop = Shop::open("keep_warm = \"10m\"").await;
    shop.deploy("2.0.0").await.expect_code(0);
    shop.set("database", "3");
    let back = shop.host.cli(["rollback"]).await.expect_code(1);
    back.expect_words(&["1.0.0 runs with revisions 1 to 2"]);
    shop.expect_live("2.0.0").await;
    shop.set("database", "2");
    shop.host.cli(["rollback"]).await.expect_code(0);
    shop.expect_live("1.0.0").await;
    // It is staged while the database fits, and promoted when it does not.
    let file = fixture("database", "2.0.0");
    let line = ["deploy", file.to_str().unwrap(), "--stage"];
    shop.host.cli(line).await.expect_code(0);
    shop.set("database", "4");
    shop.host.cli(["promote"]).await.expect_code(1);
    shop.expect_live("1.0.0").await;
    shop.set("database", "3");
    shop.host.cli(["promote"]).await.expect_code(0);
    shop.expect_live("2.0.0").await;
}

#[tokio::test]
async fn a_restart_serves_what_was_live_and_warns() {
    let mut shop = Shop::open("").await;
    shop.set("database", "7");
    shop.host.crash(|_| ()).await;
    shop.host.live("database", "1.0.0").await;
    let warned = |event: &handover_tests::host::Event| {
        event.kind == "warning"
            && event.message.contains("serves all the same")
            && event.message.contains("revision 7")
    };
    shop.host.event("the warning", warned).await;
}

#[tokio::test]
async fn versions_without_a_revision_in_common_are_told_before_anything_is_done() {
    let shop = Shop::open("").await;
    // No warning: both run with 2.
    shop.deploy("2.0.0").await.expect_code(0);
    let events = shop.host.events().await;
    assert!(!events.iter().any(|event| event.kind == "warning"));
    shop.host
        .cli(["inspect", fixture("database", "2.0.0").to_str().unwrap()])
        .await
        .expect_code(0)
        .expect_words(&["revisions 2 to 3"]);
}
