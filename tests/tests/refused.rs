//! What is refused is told and remembered, and leaves nothing else behind; where it must leave
//! something, that is told as well.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use handover_tests::{
    elf,
    host::{Host, Setup},
    load::Load,
    plugins::{fixture, misfit, rewritten},
};
use serde_json::Value;

/// The history, oldest first.
async fn history(host: &Host, app: &str) -> Vec<Value> {
    let told = host.cli(["history", app, "--json"]).await.expect_code(0);
    told.json()["history"].as_array().unwrap().clone()
}

/// The events of refusals.
async fn refusals(host: &Host) -> Vec<handover_tests::host::Event> {
    let mut events = host.events().await;
    events.retain(|event| event.kind == "rejected");
    events
}

#[tokio::test]
async fn a_refused_upload_is_an_event_and_an_entry_of_the_app_that_it_names() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    // It names no app, and neither does who sends it.
    host.deploy_bytes(b"no plugin")
        .await
        .expect_code(4)
        .expect_words(&["not an ELF file"]);
    let told = refusals(&host).await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].app, None);
    assert_eq!(history(&host, "probe").await.len(), 1);

    // Who sends it names one.
    let path = host.scratch("notes.so");
    std::fs::write(&path, "no plugin either").unwrap();
    host.cli(["deploy", path.to_str().unwrap(), "--app", "probe"])
        .await
        .expect_code(4);
    // It names one itself: only the ABI is not for this host.
    let newer = rewritten("probe", |bytes| {
        elf::set_version(bytes, "3.0.0");
        elf::set_abi(bytes, 9, 0);
    });
    host.deploy_bytes(&newer)
        .await
        .expect_code(4)
        .expect_words(&["ABI", "9.0"]);

    let told = refusals(&host).await;
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(
        told[1..]
            .iter()
            .all(|event| event.app.as_deref() == Some("probe"))
    );
    assert!(told[2].message.contains("9.0"), "{told:?}");
    let entries = history(&host, "probe").await;
    assert_eq!(entries.len(), 3, "{entries:#?}");
    assert_eq!(entries[1]["version"], Value::Null);
    assert_eq!(entries[2]["version"], "3.0.0");
    for entry in &entries[1..] {
        assert_eq!(entry["outcome"], "rejected");
        assert_eq!(entry["cause"], "deploy");
        assert_eq!(entry["artifact"].as_str().unwrap().len(), 64);
        assert!(!entry["reason"].as_str().unwrap().is_empty());
    }
    host.cli(["history", "probe"])
        .await
        .expect_code(0)
        .expect_words(&["3.0.0", "not an ELF file"]);
    // None of it is anything to go back to.
    host.cli(["rollback", "probe"])
        .await
        .expect_code(1)
        .expect_words(&["nothing to go back to"]);
}

#[tokio::test]
async fn the_refused_first_deploy_of_an_app_leaves_its_history_and_no_app() {
    let mut host = Host::start().await;
    let refused = misfit("start-panic");
    host.deploy_bytes(&refused).await.expect_code(4);
    host.drop_in("dropped/first.so", &refused);
    host.verdict("dropped/first.so", "failed").await;
    let none = async |host: &Host| {
        assert!(host.status().await.apps.is_empty());
        host.cli(["status"])
            .await
            .expect_code(0)
            .expect_words(&["nothing has been deployed"]);
        for app in ["misfit", "dropped"] {
            let entries = history(host, app).await;
            assert_eq!(entries.len(), 1, "{entries:?}");
            assert_eq!(entries[0]["outcome"], "rejected");
        }
    };
    none(&host).await;
    host.crash(|_| ()).await;
    none(&host).await;
    // Nobody is asked which of three apps is meant.
    host.deploy(&fixture("hello", "1.0.0")).await.expect_code(0);
    host.deploy(&fixture("hello", "2.0.0")).await.expect_code(0);
    host.cli(["rollback"]).await.expect_code(0);
    assert_eq!(host.status().await.apps.len(), 1);
    // When it works at last, it goes on with its numbers and its past.
    host.deploy_bytes(&misfit("none")).await.expect_code(0);
    assert_eq!(history(&host, "misfit").await.len(), 2);
    assert_eq!(host.status().await.apps.len(), 2);
}

#[tokio::test]
async fn a_constructor_that_hangs_in_the_host_alone_is_shown_as_what_keeps_its_library() {
    let host = Setup::new()
        .config("[app.probe.check]\ndeadline = \"1s\"\n")
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let path = host.scratch("misfit.so");
    std::fs::write(&path, misfit("live-hang")).unwrap();
    host.cli(["deploy", path.to_str().unwrap(), "--app", "probe"])
        .await
        .expect_code(4)
        .expect_words(&["did not end within 1s", "stays mapped"]);
    let app = host.app("probe").await;
    assert_eq!(app.active.unwrap().version, "1.0.0");
    let hung = app.generations.last().unwrap();
    assert_eq!((hung.generation, &*hung.state), (2, "retained"));
    let reason = hung.retained_because.as_deref().unwrap();
    assert!(
        reason.contains("constructor did not end within 1s"),
        "{reason}"
    );
    assert_eq!(host.mapped_plugins(), 2);
    assert_eq!(host.status().await.host.leaks.retained, 1);
    host.event("it to be told", |event| {
        event.kind == "retained" && event.generation == Some(2)
    })
    .await;
    host.cli(["status"])
        .await
        .expect_code(0)
        .expect_words(&["generation 2 stays mapped: its constructor did not end"]);
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
}

#[tokio::test]
async fn a_constructor_that_comes_back_too_late_is_stopped_and_unmapped() {
    let host = Setup::new()
        .config("[app.misfit.check]\ndeadline = \"1s\"\n")
        .start()
        .await;
    let path = host.scratch("misfit.so");
    std::fs::write(&path, misfit("live-late")).unwrap();
    host.deploy(&path).await.expect_code(4);
    let app = host.app("misfit").await;
    assert_eq!(app.generations[0].state, "retained");
    host.event("it to be unloaded", |event| {
        event.kind == "unloaded" && event.generation == Some(1)
    })
    .await;
    assert!(host.app("misfit").await.generations.is_empty());
    assert_eq!(host.mapped_plugins(), 0);
    assert_eq!(host.status().await.host.leaks.retained, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_refused_nobody_notices() {
    let host = Setup::new()
        .config("[app.probe.check]\ndeadline = \"3s\"\n")
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let load = Load {
        keep_alive: 2,
        closing: 1,
        streams: 2,
        pause: std::time::Duration::from_millis(5),
    };
    let load = load.start(host.address);
    load.more(20).await;
    let before = host.app("probe").await;
    let habits = [
        "load-segv",
        "start-error",
        "start-panic",
        "start-segv",
        "start-abort",
        "start-exit",
        "start-hang",
        "start-spin",
    ];
    let mut files: Vec<Vec<u8>> = habits.into_iter().map(misfit).collect();
    files.push(b"no plugin".to_vec());
    files.push(std::fs::read(fixture("no-manifest", "1.0.0")).unwrap());
    files.push(rewritten("probe", |bytes| elf::set_abi(bytes, 9, 0)));
    files.push(rewritten("probe", |bytes| elf::set_machine(bytes, 183)));
    // Cut off in the middle.
    files.push(rewritten("probe", |bytes| bytes.truncate(bytes.len() / 2)));
    let path = host.scratch("refused.so");
    for file in &files {
        std::fs::write(&path, file).unwrap();
        host.cli(["deploy", path.to_str().unwrap(), "--app", "probe"])
            .await
            .expect_code(4);
    }
    let after = host.app("probe").await;
    assert_eq!(
        after.active.unwrap().generation,
        before.active.unwrap().generation
    );
    assert_eq!(after.generations.len(), 1);
    let entries = history(&host, "probe").await;
    assert_eq!(entries.len(), 1 + files.len());
    load.more(20).await;
    load.stop().await.expect_unnoticed();
}
