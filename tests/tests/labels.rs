//! Versions beside the live one: reached by their label, promoted, aborted, ended by their time,
//! and the one before kept warm.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{ffi::OsStr, path::Path, time::Duration};

use handover_tests::{
    client::{Answer, Http1},
    host::{Host, Output, Setup},
    load::{Load, Running},
    plugins::fixture,
};

/// Labels are for this machine, and have host names.
const LABELS: &str = "[app.probe.labels]
allow = [\"127.0.0.1\"]
host = \"{label}.preview.example.org\"
";

async fn deploy(host: &Host, file: &Path, more: &[&str]) -> Output {
    let mut line = vec![OsStr::new("deploy"), file.as_os_str()];
    line.extend(more.iter().map(OsStr::new));
    host.cli(line).await
}

async fn ask(host: &Host, headers: &[(&str, &str)]) -> Answer {
    let mut http = Http1::connect(host.address).await.unwrap();
    http.request("GET", "/version", headers, None)
        .await
        .unwrap()
}

/// What answers: without a label, by header, by cookie and by host name.
async fn answers(host: &Host, label: &str) -> [String; 4] {
    let cookie = format!("a=b; handover-version={label}");
    let name = format!("{label}.preview.example.org:80");
    [
        ask(host, &[]).await.text(),
        ask(host, &[("handover-version", label)]).await.text(),
        ask(host, &[("cookie", &cookie)]).await.text(),
        ask(host, &[("host", &name)]).await.text(),
    ]
}

/// Starts clients, and waits until they are answered.
async fn under_load(host: &Host) -> Running {
    let load = Load {
        keep_alive: 8,
        closing: 2,
        streams: 2,
        pause: Duration::from_millis(5),
    }
    .start(host.address);
    load.more(50).await;
    load
}

#[tokio::test]
async fn a_staged_version_is_reached_by_its_label_only_and_promoted_without_a_load() {
    let host = Setup::new().config(LABELS).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    deploy(&host, &fixture("probe", "2.0.0"), &["--stage"])
        .await
        .expect_code(0)
        .expect_words(&["next", "generation 2", "next.preview.example.org"]);
    assert_eq!(host.active("probe").await.version, "1.0.0");
    let app = host.app("probe").await;
    let labels: Vec<_> = app.generations.iter().map(|one| &one.label).collect();
    assert_eq!(labels, [&None, &Some("next".to_owned())]);
    assert_eq!(
        answers(&host, "next").await,
        ["1.0.0", "2.0.0", "2.0.0", "2.0.0"]
    );
    // A label that there is not is the live one.
    assert_eq!(
        answers(&host, "other").await,
        ["1.0.0", "1.0.0", "1.0.0", "1.0.0"]
    );

    let load = under_load(&host).await;
    let promoted = host.cli(["promote", "probe"]).await.expect_code(0);
    assert!(!promoted.stdout.contains("load:"), "{promoted:?}");
    load.more(50).await;
    load.stop().await.expect_unnoticed();
    let live = host.active("probe").await;
    assert_eq!((live.version.as_str(), live.generation), ("2.0.0", 2));
    // A restart brings what was promoted.
    let record = host.cli(["history", "probe"]).await.expect_code(0).stdout;
    assert!(record.contains("promote"), "{record}");
    host.cli(["promote", "probe"])
        .await
        .expect_code(1)
        .expect_words(&["next", "no label"]);
    host.settled("probe").await;
}

#[tokio::test]
async fn an_aborted_version_is_gone_and_the_live_one_untouched() {
    let host = Setup::new().config(LABELS).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    for label in ["fix-12", "fix-13"] {
        deploy(&host, &fixture("probe", "2.0.0"), &["--label", label])
            .await
            .expect_code(0);
    }
    host.cli(["abort", "probe", "--label", "fix-12"])
        .await
        .expect_code(0);
    assert_eq!(
        answers(&host, "fix-12").await,
        ["1.0.0", "1.0.0", "1.0.0", "1.0.0"]
    );
    assert_eq!(answers(&host, "fix-13").await[1], "2.0.0");
    host.event("the unload of fix-12", |event| {
        event.kind == "unloaded" && event.generation == Some(2)
    })
    .await;
    host.cli(["abort", "probe"])
        .await
        .expect_code(1)
        .expect_words(&["next", "fix-13"]);
    // The same label again: the version that had it leaves.
    deploy(&host, &fixture("probe", "1.0.0"), &["--label", "fix-13"])
        .await
        .expect_words(&["live already"]);
    deploy(&host, &fixture("probe", "2.0.0"), &["--label", "fix-13"])
        .await
        .expect_code(0);
    host.event("the unload of the first fix-13", |event| {
        event.kind == "unloaded" && event.generation == Some(3)
    })
    .await;
    assert_eq!(host.active("probe").await.generation, 1);
    assert_eq!(host.get("/version").await.text(), "1.0.0");
}

#[tokio::test]
async fn a_version_is_ended_when_its_time_is_over() {
    let host = Setup::new().config(LABELS).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    deploy(
        &host,
        &fixture("probe", "2.0.0"),
        &["--stage", "--ttl", "1s"],
    )
    .await
    .expect_code(0);
    host.event("the end of the label", |event| {
        event.kind == "label_ended" && event.message.contains("its time is over")
    })
    .await;
    assert_eq!(answers(&host, "next").await[1], "1.0.0");
    host.event("its unload", |event| {
        event.kind == "unloaded" && event.generation == Some(2)
    })
    .await;
}

#[tokio::test]
async fn nobody_chooses_a_version_who_is_not_allowed_to() {
    // Without a section nobody may.
    let host = Host::start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    deploy(&host, &fixture("probe", "2.0.0"), &["--stage"])
        .await
        .expect_code(0)
        .expect_words(&["no request reaches it", "app.probe.labels"]);
    assert_eq!(
        answers(&host, "next").await,
        ["1.0.0", "1.0.0", "1.0.0", "1.0.0"]
    );

    let host = Setup::new()
        .config("[app.probe.labels]\nallow = [\"192.0.2.0/24\"]\n")
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    deploy(&host, &fixture("probe", "2.0.0"), &["--stage"])
        .await
        .expect_code(0);
    assert_eq!(answers(&host, "next").await[1..3], ["1.0.0", "1.0.0"]);
    // The names of the host itself are nobody's to give.
    deploy(&host, &fixture("probe", "2.0.0"), &["--label", "previous"])
        .await
        .expect_code(1)
        .expect_words(&["previous", "choose another"]);
}

#[tokio::test]
async fn a_refused_version_gets_no_label() {
    let host = Setup::new()
        .config(&format!(
            "[app.probe.check]\nrequests = [{{ path = \"/panic\" }}]\n{LABELS}"
        ))
        .start()
        .await;
    deploy(&host, &fixture("probe", "2.0.0"), &["--stage"])
        .await
        .expect_code(5);
    assert!(host.app("probe").await.generations.is_empty());
}

#[tokio::test]
async fn a_rollback_while_the_version_before_is_warm_loads_nothing() {
    let host = Setup::new()
        .config(&format!("[app.probe]\nkeep_warm = \"10m\"\n{LABELS}"))
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    host.deploy(&fixture("probe", "2.0.0"))
        .await
        .expect_code(0)
        .expect_words(&["generation 1 stays warm"]);
    assert_eq!(
        answers(&host, "previous").await,
        ["2.0.0", "1.0.0", "1.0.0", "1.0.0"]
    );
    let load = under_load(&host).await;
    let back = host.cli(["rollback", "probe"]).await.expect_code(0);
    assert!(!back.stdout.contains("load:"), "{back:?}");
    load.more(50).await;
    let report = load.stop().await;
    // Generations go back with a rollback of this kind, so no order is asked for.
    assert!(
        report.failed.is_empty() && report.cut.is_empty() && report.mixed.is_empty(),
        "{report:?}"
    );
    assert_eq!(report.closed, 0);
    // The same generation, not another one of the same artifact.
    assert_eq!(host.active("probe").await.generation, 1);
    let app = host.settled("probe").await;
    // What was turned away from is not kept.
    assert_eq!(app.generations.len(), 1, "{app:?}");

    // Each deploy keeps the one before it, and no more.
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    host.event("the unload of the one before the one before", |event| {
        event.kind == "unloaded" && event.generation == Some(1)
    })
    .await;
    assert_eq!(answers(&host, "previous").await[..2], ["1.0.0", "2.0.0"]);
}

/// Waits until `label` is reached again.
async fn comes_back(host: &Host, label: &str, version: &str) {
    host.until("the label", async || {
        (answers(host, label).await[1] == version).then_some(())
    })
    .await;
}

#[tokio::test]
async fn labels_outlive_a_restart_and_a_kill_but_not_their_time() {
    let mut host = Setup::new().config(LABELS).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    for (label, more) in [("next", &["--ttl", "1h"][..]), ("fix-12", &[])] {
        let mut line = vec!["--label", label];
        line.extend(more);
        deploy(&host, &fixture("probe", "2.0.0"), &line)
            .await
            .expect_code(0);
    }
    deploy(
        &host,
        &fixture("probe", "2.0.0"),
        &["--label", "short", "--ttl", "500ms"],
    )
    .await
    .expect_code(0);
    host.cli(["shutdown"]).await.expect_code(0);
    assert_eq!(host.ended().await, Some(0));
    tokio::time::sleep(Duration::from_millis(500)).await;
    host.again().await;
    host.live("probe", "1.0.0").await;
    comes_back(&host, "next", "2.0.0").await;
    comes_back(&host, "fix-12", "2.0.0").await;
    assert_eq!(answers(&host, "short").await[1], "1.0.0");
    let app = host.app("probe").await;
    let left: Vec<_> = app.generations.iter().map(|one| one.ends_in_ms).collect();
    assert!(
        left.iter().flatten().all(|left| *left <= 3_600_000),
        "{left:?}"
    );
    assert_eq!(left.iter().flatten().count(), 1);

    host.cli(["abort", "probe", "--label", "next"])
        .await
        .expect_code(0);
    host.crash(|_| ()).await;
    host.live("probe", "1.0.0").await;
    comes_back(&host, "fix-12", "2.0.0").await;
    assert_eq!(answers(&host, "next").await[1], "1.0.0");
}

#[tokio::test]
async fn a_version_with_a_label_that_crashes_the_host_does_it_once() {
    let mut host = Setup::new().config(LABELS).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    deploy(&host, &fixture("probe", "2.0.0"), &["--stage"])
        .await
        .expect_code(0);
    let mut http = Http1::connect(host.address).await.unwrap();
    let headers = [("handover-version", "next")];
    http.request("GET", "/segfault", &headers, None)
        .await
        .unwrap_err();
    host.came_back().await;
    host.live("probe", "1.0.0").await;
    host.event("the end of the label", |event| {
        event.kind == "label_ended" && event.message.contains("the host crashed")
    })
    .await;
    assert_eq!(answers(&host, "next").await[1], "1.0.0");
}

/// Waits for the answer file `name` in the drop folder.
async fn answered(host: &Host, name: &str) -> String {
    let path = host.plugins().join(name);
    host.until(name, async || std::fs::read_to_string(&path).ok())
        .await
}

#[tokio::test]
async fn a_version_is_staged_promoted_and_rolled_back_by_files_alone() {
    let host = Setup::new().config(LABELS).start().await;
    let load = {
        host.drop_in(
            "probe/1.so",
            &std::fs::read(fixture("probe", "1.0.0")).unwrap(),
        );
        host.live("probe", "1.0.0").await;
        under_load(&host).await
    };
    host.drop_in("probe/2.toml", b"label = \"next\"\nmessage = \"blue\"");
    host.drop_in(
        "probe/2.so",
        &std::fs::read(fixture("probe", "2.0.0")).unwrap(),
    );
    let text = host.verdict("probe/2.so", "deployed").await;
    assert!(text.contains("next"), "{text}");
    assert_eq!(answers(&host, "next").await[..2], ["1.0.0", "2.0.0"]);

    host.drop_in("probe/probe.promote", b"it looks well\n");
    let text = answered(&host, "probe/probe.promote.done").await;
    assert!(text.contains("2.0.0"), "{text}");
    assert_eq!(ask(&host, &[]).await.text(), "2.0.0");
    let history = host.ask("GET", "/v1/history").await.unwrap().json();
    let last = history["history"].as_array().unwrap().last().unwrap();
    assert_eq!(last["message"], "it looks well");
    assert!(last["by"].is_string(), "{last}");

    host.drop_in("probe.rollback", b"");
    answered(&host, "probe.rollback.done").await;
    assert_eq!(ask(&host, &[]).await.text(), "1.0.0");
    host.drop_in("probe.drain", b"");
    answered(&host, "probe.drain.done").await;
    host.drop_in("probe.abort", b"");
    let text = answered(&host, "probe.abort.failed").await;
    assert!(text.contains("--stage"), "{text}");
    load.stop().await.expect_unnoticed();

    host.drop_in("probe.stop", b"back at noon");
    answered(&host, "probe.stop.done").await;
    let stopped = ask(&host, &[]).await;
    assert_eq!(stopped.status, 503);
    assert!(
        stopped.text().contains("back at noon"),
        "{}",
        stopped.text()
    );
    host.drop_in("probe.start", b"");
    answered(&host, "probe.start.done").await;
    assert_eq!(ask(&host, &[]).await.text(), "1.0.0");
}
