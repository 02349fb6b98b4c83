//! The environment and the working directory are everybody's: what a plugin changes is told, and
//! breaks nothing.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{fs, os::unix::fs::PermissionsExt};

use handover_tests::{
    host::{Event, Host, Setup},
    plugins::fixture,
};

const APP: &str = "[app.signals]\nenv = [\"SIGNALS_GIVEN\"]\n[app.signals.config]\nrefuse_in_preflight = \"SIGNALS_LEAKED\"\n";

async fn does(host: &Host, what: &str) -> String {
    let answer = host.get(&format!("/do/{what}")).await;
    assert_eq!(answer.status, 200, "{what}: {}", answer.text());
    answer.text()
}

async fn deploy(host: &Host, version: &str) {
    host.deploy(&fixture("signals", version))
        .await
        .expect_code(0);
    host.settled("signals").await;
}

/// The events of a kind, once there is one.
async fn told(host: &Host, kind: &str) -> Vec<Event> {
    host.event(kind, |event| event.kind == kind).await;
    let events = host.events().await.into_iter();
    events.filter(|event| event.kind == kind).collect()
}

#[tokio::test]
async fn a_string_that_a_plugin_put_into_the_environment_outlives_it() {
    let host = Setup::new().config(APP).start().await;
    deploy(&host, "1.0.0").await;
    assert_eq!(does(&host, "put").await, "0");
    assert_eq!(does(&host, "set?way=SIGNALS_SET&value=secret").await, "0");
    let events = told(&host, "environment").await;
    assert_eq!(events.len(), 1, "{events:#?}");
    assert_eq!(events[0].generation, Some(1));
    assert!(
        events[0].message.contains("`SIGNALS_ZONE`"),
        "{}",
        events[0].message
    );
    for version in ["2.0.0", "1.0.0", "2.0.0"] {
        deploy(&host, version).await;
        assert_eq!(does(&host, "get?way=SIGNALS_ZONE").await, "UTC");
        assert_eq!(does(&host, "get?way=SIGNALS_SET").await, "secret");
    }
    assert_eq!(host.mapped_plugins(), 1);
    let told = format!("{:?}", host.events().await);
    assert!(!told.contains("secret"), "a value is nobody's business");
}

#[tokio::test]
async fn what_the_host_starts_and_gives_is_as_it_was_at_its_start() {
    let host = Setup::new()
        .config(APP)
        .env("SIGNALS_GIVEN", "at the start")
        .start()
        .await;
    deploy(&host, "1.0.0").await;
    does(&host, "set?way=SIGNALS_GIVEN&value=later").await;
    does(&host, "set?way=SIGNALS_LEAKED&value=1").await;
    // Its constructor would refuse in a preflight that has the variable.
    deploy(&host, "2.0.0").await;
    assert_eq!(does(&host, "get?way=SIGNALS_LEAKED").await, "1");
    assert_eq!(does(&host, "given?way=SIGNALS_GIVEN").await, "at the start");
}

#[tokio::test]
async fn a_plugin_that_goes_to_another_folder_takes_nobody_along() {
    let mut host = Setup::new().config(APP).relative().start().await;
    let elsewhere = host.scratch("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    deploy(&host, "1.0.0").await;
    let go = format!("go?value={}", elsewhere.display());
    assert_eq!(does(&host, &go).await, "0");
    let events = told(&host, "working_directory").await;
    assert_eq!(events.len(), 1, "{events:#?}");
    assert_eq!(events[0].generation, Some(1));
    assert!(
        events[0].message.contains(elsewhere.to_str().unwrap()),
        "{}",
        events[0].message
    );
    let newer = fs::read(fixture("signals", "2.0.0")).unwrap();
    host.drop_in("signals.so", &newer);
    host.verdict("signals.so", "deployed").await;
    deploy(&host, "1.0.0").await;
    let found: Vec<_> = fs::read_dir(&elsewhere).unwrap().collect();
    assert!(found.is_empty(), "{found:?}");
    host.cli(["shutdown"]).await.expect_code(0);
    assert_eq!(host.ended().await, Some(0));
    host.again().await;
    host.live("signals", "1.0.0").await;
}

#[tokio::test]
async fn a_mask_of_new_files_is_told_and_is_not_the_hosts() {
    let host = Setup::new().config(APP).start().await;
    deploy(&host, "1.0.0").await;
    let status = fs::read_to_string(format!("/proc/{}/status", host.pid())).unwrap();
    let before = status
        .lines()
        .find_map(|line| line.strip_prefix("Umask:"))
        .map(|mask| u32::from_str_radix(mask.trim(), 8).unwrap())
        .unwrap();
    // Nobody may do anything, were it not for the host's own.
    does(&host, "mask?number=511").await;
    let events = told(&host, "file_mask").await;
    assert_eq!(events[0].generation, Some(1));
    let newer = fs::read(fixture("signals", "2.0.0")).unwrap();
    host.drop_in("signals.so", &newer);
    host.verdict("signals.so", "deployed").await;
    host.settled("signals").await;
    for file in [
        host.plugins().join("signals.so.deployed"),
        host.state().join("apps/signals.json"),
        host.state().join("running.json"),
    ] {
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o666 & !before, "{}", file.display());
    }
    does(&host, &format!("mask?number={before}")).await;
    // It was set back; what comes later is told later.
    does(&host, "set?way=SIGNALS_SET&value=1").await;
    told(&host, "environment").await;
    assert_eq!(told(&host, "file_mask").await.len(), 1);
}
