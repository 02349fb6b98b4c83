//! What takes the process down while it is loaded or constructed is to blame for that, and nobody
//! else.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::fs;

use handover_tests::{
    host::{Host, Setup},
    plugins::{fixture, misfit},
};
use rustix::process::Signal;

/// A host that serves `hello` at `/` and a misfit with `habit` at `/misfit`, which does it once the
/// file `when` is there.
async fn serving_both(habit: &str) -> Host {
    let host = Setup::new()
        .config(
            "[app.hello]\nroutes = [\"/\"]\n[app.misfit]\nroutes = [\"/misfit\"]\n\
             [app.misfit.config]\nwhen = \"HOME/when\"\n",
        )
        .start()
        .await;
    host.deploy(&fixture("hello", "1.0.0")).await.expect_code(0);
    host.deploy_bytes(&misfit(habit)).await.expect_code(0);
    host
}

fn rolled_back(events: &[handover_tests::host::Event]) -> usize {
    events
        .iter()
        .filter(|event| event.kind == "rolled_back")
        .count()
}

#[tokio::test]
async fn a_constructor_that_crashes_at_a_restart_is_left_out_and_the_others_serve() {
    for (habit, how) in [
        ("later-segv", "SIGSEGV"),
        ("later-exit", "exit with code 0"),
    ] {
        let mut host = serving_both(habit).await;
        fs::write(host.home().join("when"), "").unwrap();
        // From outside, so nobody's fault: what is new is that the constructor runs again.
        host.signal_inner(Signal::KILL);
        host.came_back().await;
        host.event("what was left out", |event| {
            event.kind == "failed"
                && event.message.contains("is left out")
                && event.message.contains(how)
        })
        .await;
        assert_eq!(host.get("/").await.text(), "hello 1.0.0");
        let answer = host.get("/misfit").await;
        assert_eq!(answer.status, 503);
        assert!(
            answer
                .text()
                .contains("the app misfit 1.0.0 has not come up"),
            "{}",
            answer.text()
        );
        let events = host.events().await;
        assert_eq!(rolled_back(&events), 0, "nobody else is to blame");
        // Once the reason is gone a deploy brings it back, and it stays.
        fs::remove_file(host.home().join("when")).unwrap();
        host.deploy_bytes(&misfit(habit)).await.expect_code(0);
        assert_eq!(host.get("/").await.text(), "hello 1.0.0");
        host.signal_inner(Signal::KILL);
        host.came_back().await;
        host.live("misfit", "1.0.0").await;
        host.live("hello", "1.0.0").await;
    }
}

#[tokio::test]
async fn a_constructor_that_hangs_at_a_restart_holds_up_nobody() {
    let mut host = serving_both("later-hang").await;
    fs::write(host.home().join("when"), "").unwrap();
    host.signal_inner(Signal::KILL);
    host.came_back().await;
    host.live("hello", "1.0.0").await;
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");
    assert_eq!(host.app("misfit").await.state, "deploying");
}

#[tokio::test]
async fn a_deploy_that_crashes_the_host_is_named_and_the_live_version_stays() {
    let mut host = Host::serving(&fixture("hello", "1.0.0")).await;
    // On probation, so that blame by what is new would take it back.
    host.deploy(&fixture("hello", "2.0.0")).await.expect_code(0);
    let path = host.scratch("misfit.so");
    fs::write(&path, misfit("live-segv")).unwrap();
    host.cli(["deploy", "--app", "hello", path.to_str().unwrap()])
        .await
        .expect_code(1);
    host.came_back().await;
    assert_eq!(host.live("hello", "2.0.0").await.version, "2.0.0");
    assert_eq!(host.get("/").await.text(), "hello 2.0.0");
    host.cli(["history"]).await.expect_code(0).expect_words(&[
        "rejected",
        "the host crashed (SIGSEGV) while it was loaded or constructed",
    ]);
    assert_eq!(rolled_back(&host.events().await), 0);
}

#[tokio::test]
async fn a_dropped_artifact_that_crashes_the_host_is_tried_once() {
    let mut host = Host::serving(&fixture("hello", "1.0.0")).await;
    host.drop_in("hello/hello.so", &misfit("live-segv"));
    host.came_back().await;
    let reason = host.verdict("hello/hello.so", "failed").await;
    assert!(reason.contains("the host crashed (SIGSEGV)"), "{reason}");
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");
    let crashes = host
        .events()
        .await
        .iter()
        .filter(|event| event.kind == "crash")
        .count();
    assert_eq!(crashes, 1);
}
