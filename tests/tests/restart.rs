//! A host that died serves again what it served, and what has changed meanwhile.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use handover_tests::{
    host::Host,
    plugins::{fixture, hello_as, misfit},
};

#[tokio::test]
async fn after_kill_9_the_last_good_artifact_is_served_before_anything_else() {
    let mut host = Host::serving(&fixture("hello", "1.0.0")).await;
    host.deploy(&fixture("hello", "2.0.0")).await.expect_code(0);
    let refused = misfit("start-error");
    let path = host.scratch("misfit.so");
    std::fs::write(&path, refused).unwrap();
    host.cli(["deploy", "--app", "hello", path.to_str().unwrap()])
        .await
        .expect_code(4);
    let before = host.active("hello").await;
    host.crash(|_| ()).await;
    let after = host.live("hello", "2.0.0").await;
    assert_eq!(after.artifact, before.artifact);
    assert!(
        after.generation > before.generation,
        "the number only grows, over restarts too"
    );
    assert_eq!(host.get("/").await.text(), "hello 2.0.0");
    host.cli(["history"]).await.expect_code(0).expect_words(&[
        "1.0.0",
        "2.0.0",
        "the database of the misfit is not there",
    ]);
    host.cli(["rollback", "hello"]).await.expect_code(0);
    host.live("hello", "1.0.0").await;
}

#[tokio::test]
async fn what_was_dropped_while_it_was_down_is_live_after_it() {
    let mut host = Host::start().await;
    host.drop_in("hello/hello.so", &hello_as("1.1.0"));
    host.live("hello", "1.1.0").await;
    host.crash(|host| host.drop_in("hello/hello.so", &hello_as("1.2.0")))
        .await;
    host.live("hello", "1.2.0").await;
    // And what was not changed is no news.
    host.deploy_bytes(&hello_as("1.1.5")).await.expect_code(0);
    host.crash(|_| ()).await;
    host.live("hello", "1.1.5").await;
}

#[tokio::test]
async fn a_rollback_stays_after_a_restart() {
    let mut host = Host::start().await;
    for version in ["1.1.0", "1.2.0"] {
        host.drop_in("hello/hello.so", &hello_as(version));
        host.live("hello", version).await;
    }
    host.cli(["rollback", "hello"]).await.expect_code(0);
    host.live("hello", "1.1.0").await;
    host.crash(|_| ()).await;
    host.live("hello", "1.1.0").await;
}

#[tokio::test]
async fn killed_in_the_middle_of_deploys_it_serves_the_old_or_the_new() {
    let mut host = Host::serving(&fixture("hello", "1.0.0")).await;
    let mut last = host.active("hello").await.generation;
    for n in 0..8u64 {
        let bytes = hello_as(&format!("1.{}.0", n + 1));
        let file = host.scratch("next.so");
        std::fs::write(&file, bytes).unwrap();
        let before = host.active("hello").await.version;
        host.cli(["deploy", "--detach", file.to_str().unwrap()])
            .await
            .expect_code(0);
        // Somewhere between its beginning and its end; where exactly is up to the machine.
        tokio::time::sleep(std::time::Duration::from_millis(n * 25)).await;
        host.crash(|_| ()).await;
        let live = host
            .app_when("hello", "something to be live", |app| app.active.is_some())
            .await
            .active
            .unwrap();
        assert!(
            live.version == before || live.version == format!("1.{}.0", n + 1),
            "{live:?} after {before}"
        );
        assert!(live.generation > last, "{live:?} after generation {last}");
        last = live.generation;
        assert_eq!(
            host.get("/").await.text(),
            format!("hello {}", live.version)
        );
        host.live("hello", &live.version).await;
    }
}

#[tokio::test]
async fn a_second_host_on_the_same_state_is_refused() {
    let host = Host::serving(&fixture("hello", "1.0.0")).await;
    let state = host.state();
    let plugins = host.plugins();
    let arguments = [
        "run",
        "--listen",
        "127.0.0.1:0",
        "--plugins",
        plugins.to_str().unwrap(),
        "--state",
        state.to_str().unwrap(),
    ];
    handover_tests::host::handover(arguments)
        .await
        .expect_code(1)
        .expect_words(&[state.to_str().unwrap()]);
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");
    host.status().await;
}

#[tokio::test]
async fn sigterm_ends_it_with_grace() {
    let mut host = Host::serving(&fixture("hello", "1.0.0")).await;
    host.signal(rustix::process::Signal::TERM);
    assert_eq!(host.ended().await, Some(0));
    assert!(
        !host.control().exists(),
        "the control socket goes with its host"
    );
}
