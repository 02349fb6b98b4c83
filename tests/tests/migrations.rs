//! Versions whose state has another schema: it is migrated at the cutover with requests held, and
//! whatever goes wrong leaves the state and what is live as they were.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{fs, path::PathBuf, process::Stdio};

use handover_tests::{
    client::Http1,
    host::{Host, Output, Setup},
    plugins::{fixture, handover},
};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A host with the app in version 1.0.0 and some links.
struct Links {
    host: Host,
    _folder: tempfile::TempDir,
    how: PathBuf,
}

impl Links {
    /// `config` is of the app.
    async fn open(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let how = folder.path().join("how");
        let config = format!("[app.schema]\n{config}\n[app.schema.config]\nhow = {how:?}\n");
        let host = Setup::new().config(&config).start().await;
        let links = Self {
            host,
            _folder: folder,
            how,
        };
        links.deploy("1.0.0").await.expect_code(0);
        for key in ["a", "b", "c"] {
            links.put(key).await;
        }
        links
    }

    async fn put(&self, key: &str) {
        let answer = self.host.get(&format!("/put/{key}/to-{key}")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// What is to go wrong, and where.
    fn trouble(&self, how: &str) {
        fs::write(&self.how, how).unwrap();
    }

    async fn deploy(&self, version: &str) -> Output {
        self.host.deploy(&fixture("schema", version)).await
    }

    async fn all(&self) -> Value {
        self.host.get("/all").await.json()
    }

    async fn expect_live(&self, version: &str) {
        assert_eq!(self.host.get("/version").await.text(), version);
        assert_eq!(self.host.active("schema").await.version, version);
    }

    /// The first version is live with its links, and takes more of them.
    async fn expect_untouched(&self) {
        self.expect_live("1.0.0").await;
        assert_eq!(self.all().await, first());
        self.put("a").await;
    }
}

/// The links as the first version has them.
fn first() -> Value {
    json!({"a": "to-a", "b": "to-b", "c": "to-c"})
}

/// The links as later versions have them.
fn later() -> Value {
    let link = |key: &str| json!({"target": format!("to-{key}"), "hits": 0});
    json!({"a": link("a"), "b": link("b"), "c": link("c")})
}

#[tokio::test]
async fn a_deploy_migrates_the_state_and_a_rollback_brings_it_back() {
    let links = Links::open("").await;
    let deployed = links.deploy("2.0.0").await.expect_code(0);
    deployed.expect_words(&[
        "of its state migrated from schema 1 to 2",
        ", and back in",
        "its state has schema 2 now, and had 1",
    ]);
    links.expect_live("2.0.0").await;
    assert_eq!(links.all().await, later());
    links.put("d").await;
    links.host.cli(["rollback"]).await.expect_code(0);
    links.expect_live("1.0.0").await;
    let mut with_d = first();
    with_d["d"] = "to-d".into();
    assert_eq!(links.all().await, with_d, "what came in meanwhile is there");
}

#[tokio::test]
async fn several_migrations_are_one_and_without_a_way_back_there_is_no_rollback() {
    let links = Links::open("").await;
    links.deploy("3.0.0").await.expect_code(0);
    links.expect_live("3.0.0").await;
    assert_eq!(links.all().await, later());
    links
        .host
        .cli(["rollback"])
        .await
        .expect_code(4)
        .expect_words(&[
            "its state has schema 3",
            "1.0.0 has schema 1",
            "there is no way back",
            "stays live",
        ]);
    links.expect_live("3.0.0").await;
    assert_eq!(links.all().await, later());
    links.put("d").await;
    let kept = links.host.state().join("state/schema.schema-1.backup");
    links
        .host
        .until("the state of before to be kept", async || {
            kept.exists().then_some(())
        })
        .await;
    links
        .host
        .cli(["rollback", "--restore-snapshot"])
        .await
        .expect_code(0)
        .expect_words(&["what was written since then is lost"]);
    links.expect_live("1.0.0").await;
    assert_eq!(links.all().await, first(), "what came in meanwhile is lost");
}

#[tokio::test]
async fn a_version_that_is_compatible_with_an_older_schema_needs_no_way_back() {
    let links = Links::open("").await;
    links.deploy("2.0.0").await.expect_code(0);
    links.deploy("3.0.0").await.expect_code(0);
    links.host.cli(["rollback"]).await.expect_code(0);
    links.expect_live("2.0.0").await;
    let none = json!({});
    assert_eq!(links.all().await, none, "the state is as 3.0.0 has left it");
    links.deploy("3.0.0").await.expect_code(0);
    assert_eq!(links.all().await, later());
}

#[tokio::test]
async fn a_migration_that_fails_in_preflight_has_touched_nothing() {
    let links = Links::open("").await;
    for (how, words) in [
        ("migrate fail", "it fails as it was told to"),
        ("back fail", "from schema 2 to 1"),
        ("migrate panic", "it panics as it was told to"),
        (
            "migrate crash",
            "SIGABRT in its migration of the state from schema 1 to 2",
        ),
    ] {
        links.trouble(how);
        let refused = links.deploy("2.0.0").await.expect_code(4);
        refused.expect_words(&[words, "stays live"]);
        links.expect_untouched().await;
    }
}

#[tokio::test]
async fn a_migration_that_fails_at_the_cutover_leaves_state_and_version_as_they_were() {
    let links = Links::open("hooks.deadline = \"2s\"").await;
    for (how, words) in [
        ("live migrate fail", "with_hits: it fails as it was told to"),
        (
            "live migrate panic",
            "with_hits panicked: it panics as it was told to",
        ),
        ("live start fail", "it did not start"),
        ("live migrate hang", "its migration did not end within"),
    ] {
        links.trouble(how);
        let refused = links.deploy("2.0.0").await;
        assert_ne!(refused.code, Some(0), "{how}: {}", refused.text());
        refused.expect_words(&[words]);
        links.expect_untouched().await;
    }
    links.trouble("");
    links.deploy("2.0.0").await.expect_code(0);
    assert_eq!(links.all().await, later());
}

#[tokio::test]
async fn a_second_migration_that_fails_takes_the_first_back() {
    let links = Links::open("").await;
    links.trouble("live apart fail");
    links.deploy("3.0.0").await.expect_code(1).expect_words(&[
        "the migration of its state from schema 2 to 3 failed",
        "apart: it fails as it was told to",
    ]);
    links.expect_untouched().await;
}

#[tokio::test]
async fn requests_are_held_while_the_state_is_migrated() {
    let links = Links::open("").await;
    links.trouble("migrate wait");
    let asked: Vec<_> = (0..20)
        .map(|number| {
            let address = links.host.address;
            tokio::spawn(async move {
                let mut versions = Vec::new();
                let mut http = Http1::connect(address).await.unwrap();
                for _ in 0..40 {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    let answer = http.get("/version").await.unwrap();
                    assert_eq!(answer.status, 200, "client {number}");
                    versions.push(answer.text());
                }
                assert!(versions.is_sorted(), "{versions:?}");
            })
        })
        .collect();
    links.deploy("2.0.0").await.expect_code(0);
    for client in asked {
        client.await.unwrap();
    }
    links.expect_live("2.0.0").await;
}

#[tokio::test]
async fn a_host_that_is_killed_in_a_migration_has_the_state_of_before() {
    let mut links = Links::open("").await;
    links.trouble("live migrate hang");
    let file = fixture("schema", "2.0.0");
    let deploy = tokio::process::Command::new(handover())
        .arg("deploy")
        .arg(file)
        .env("HANDOVER_CONTROL", links.host.control())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    links
        .host
        .app_when("schema", "nothing to be live", |app| app.active.is_none())
        .await;
    links.trouble("");
    links.host.signal_inner(Signal::KILL);
    links.host.came_back().await;
    drop(deploy);
    links.host.live("schema", "1.0.0").await;
    links.expect_untouched().await;
    links.deploy("2.0.0").await.expect_code(0);
    assert_eq!(links.all().await, later());
}

#[tokio::test]
async fn two_schemas_are_never_up_beside_each_other() {
    let links = Links::open("").await;
    for how in [
        &["--label", "next"][..],
        &["--canary", "5%"],
        &["--shadow", "10%"],
    ] {
        let file = fixture("schema", "2.0.0");
        let deploy = ["deploy", file.to_str().unwrap()];
        links
            .host
            .cli(deploy.iter().chain(how))
            .await
            .expect_code(4)
            .expect_words(&["both cannot be up at the same time"]);
    }
    links.expect_untouched().await;
}

#[tokio::test]
async fn a_backup_shows_what_a_migration_will_do() {
    let links = Links::open("").await;
    let backup = links.host.scratch("backup");
    let backup = backup.to_str().unwrap();
    links
        .host
        .cli(["state", "backup", "schema", backup])
        .await
        .expect_code(0);
    let config = links.host.home().join("handover.toml");
    let file = fixture("schema", "3.0.0");
    links
        .host
        .cli([
            "check",
            file.to_str().unwrap(),
            "--config",
            config.to_str().unwrap(),
            "--migrate",
            backup,
        ])
        .await
        .expect_code(0)
        .expect_words(&["migrated from schema 1 to 3"]);
    links.expect_untouched().await;
}

#[tokio::test]
async fn a_backup_of_another_schema_is_restored_when_nothing_is_live_and_migrated_then() {
    let links = Links::open("").await;
    let backup = links.host.scratch("backup");
    let backup = backup.to_str().unwrap();
    let backup_of = |what: &'static str| ["state", what, "schema", backup];
    links.host.cli(backup_of("backup")).await.expect_code(0);
    links.deploy("2.0.0").await.expect_code(0);
    links.put("d").await;
    links
        .host
        .cli(backup_of("restore"))
        .await
        .expect_code(1)
        .expect_words(&["it has schema 1", "has schema 2", "handover stop schema"]);
    assert_eq!(links.all().await["d"]["target"], "to-d");
    links.host.cli(["stop", "schema"]).await.expect_code(0);
    links.host.cli(backup_of("restore")).await.expect_code(0);
    links.host.cli(["start", "schema"]).await.expect_code(0);
    links.expect_live("2.0.0").await;
    assert_eq!(links.all().await, later());
}

#[tokio::test]
async fn what_was_migrated_is_there_after_a_crash() {
    let mut links = Links::open("").await;
    links.deploy("2.0.0").await.expect_code(0);
    links.host.crash(|_| {}).await;
    links.host.live("schema", "2.0.0").await;
    assert_eq!(links.all().await, later());
}
