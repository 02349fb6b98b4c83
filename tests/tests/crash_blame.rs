//! Who is to blame when the host crashes: whose code it was, not who was there.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::fs::File;

use handover_tests::{
    client::{Fault, Http1},
    elf,
    host::{Event, Host, Setup},
    plugins::{fixture, leaver},
};
use rustix::process::Signal;

/// A request that takes the host down.
async fn deadly(host: &Host, path: &str) {
    let asked = async { Http1::connect(host.address).await?.get(path).await };
    let cut = asked.await;
    assert!(matches!(cut, Err(Fault::Cut(_))), "{path}: {cut:?}");
}

fn rolled_back(events: &[Event]) -> Vec<&str> {
    let all = events.iter().filter(|event| event.kind == "rolled_back");
    all.map(|event| event.message.as_str()).collect()
}

/// A `leaver` that leaves well.
fn successor() -> Vec<u8> {
    let mut bytes = leaver("none");
    elf::set_version(&mut bytes, "2.0.0");
    bytes
}

#[tokio::test]
async fn what_an_unloaded_version_left_behind_is_blamed_on_it_and_it_is_never_unloaded_again() {
    let mut host = Host::start().await;
    host.deploy_bytes(&leaver("handler")).await.expect_code(0);
    host.deploy_bytes(&successor()).await.expect_code(0);
    host.event("1.0.0 to be unloaded", |event| event.kind == "unloaded")
        .await;

    // 2.0.0 is on probation, and the kernel calls a handler of 1.0.0 that is not mapped any more.
    host.signal_inner(Signal::USR2);
    host.came_back().await;
    host.live("leaver", "2.0.0").await;
    let crash = host.event("the crash", |event| event.kind == "crash").await;
    assert!(
        crash.message.contains("SIGSEGV") && crash.message.contains("leaver 1 (1.0.0)"),
        "{crash:?}"
    );
    host.event("1.0.0 to be blamed", |event| {
        event.kind == "warning"
            && event.generation == Some(1)
            && event.message.contains("it is never unmapped again")
    })
    .await;
    assert!(rolled_back(&host.events().await).is_empty());

    // That is remembered, and counts as soon as it is loaded again.
    host.signal_inner(Signal::KILL);
    host.came_back().await;
    host.live("leaver", "2.0.0").await;
    host.cli(["rollback"]).await.expect_code(0);
    host.deploy_bytes(&successor()).await.expect_code(0);
    host.event("1.0.0 to be retained", |event| {
        event.kind == "retained"
            && event
                .message
                .contains("the host crashed (SIGSEGV) after 1.0.0")
    })
    .await;
    let app = host.app("leaver").await;
    let kept = app
        .generations
        .iter()
        .find(|generation| generation.state == "retained");
    let reason = kept.unwrap().retained_because.clone().unwrap();
    assert!(reason.contains("the host crashed (SIGSEGV)"), "{reason}");
    let pid = host.pid();
    host.signal_inner(Signal::USR2);
    assert_eq!(host.get("/").await.text(), "leaver: none");
    assert_eq!(host.pid(), pid);
    assert_eq!(host.active("leaver").await.version, "2.0.0");
}

#[tokio::test]
async fn of_two_on_probation_only_the_one_whose_code_crashed_is_taken_back() {
    let mut host = Setup::new()
        .config("[app.hello]\nroutes = [\"/hello\"]\n[app.probe]\nroutes = [\"/\"]\n")
        .start()
        .await;
    for version in ["1.0.0", "2.0.0"] {
        host.deploy(&fixture("hello", version)).await.expect_code(0);
        host.deploy(&fixture("probe", version)).await.expect_code(0);
    }
    deadly(&host, "/abort?token=secret").await;
    host.came_back().await;
    host.live("probe", "1.0.0").await;
    host.live("hello", "2.0.0").await;
    let back = rolled_back(&host.events().await).join("\n");
    // The app, the generation, the path and the signal, for whoever asks later.
    assert!(
        back.contains("SIGABRT in /abort of probe 2 (2.0.0)"),
        "{back}"
    );
    assert!(!back.contains("secret"), "{back}");
    host.cli(["history", "probe"])
        .await
        .expect_code(0)
        .expect_words(&["SIGABRT in /abort of probe 2 (2.0.0)"]);
}

#[tokio::test]
async fn what_crashed_is_told_with_its_call_whatever_it_was() {
    let mut host = Setup::new()
        .config("[server]\nmax_crashes = 100\n[app.probe]\nbake = \"none\"\n")
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    for (path, how) in [
        ("/segfault", "SIGSEGV"),
        ("/overflow", "SIGABRT"),
        ("/exit", "exit with code"),
    ] {
        let generation = host.active("probe").await.generation;
        deadly(&host, path).await;
        host.came_back().await;
        let wanted = format!(" in {path} of probe {generation} (1.0.0)");
        host.event("where it crashed", |event| {
            event.kind == "crash" && event.message.contains(how) && event.message.contains(&wanted)
        })
        .await;
    }
}

#[tokio::test]
async fn a_plugin_that_calls_exit_without_a_supervisor_ends_the_host_with_a_failure() {
    let mut host = Setup::new().alone().start().await;
    for version in ["1.0.0", "2.0.0"] {
        host.deploy(&fixture("probe", version)).await.expect_code(0);
    }
    deadly(&host, "/exit").await;
    // What starts hosts again takes 0 for an end that was meant.
    assert_ne!(host.ended().await, Some(0));
    host.again().await;
    host.live("probe", "1.0.0").await;
    host.event("where it was", |event| {
        event.kind == "rolled_back" && event.message.contains(" in /exit of probe 2 (2.0.0)")
    })
    .await;
}

#[tokio::test]
async fn the_reason_of_a_crash_survives_a_start_that_fails_for_another_reason() {
    let mut host = Host::serving(&fixture("probe", "1.0.0")).await;
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    let state = File::options()
        .write(true)
        .open(host.state().join("lock"))
        .unwrap();
    // Had as soon as the host is gone, so the next one cannot have its state.
    let held = tokio::task::spawn_blocking(move || {
        state.lock().unwrap();
        state
    });
    deadly(&host, "/segfault").await;
    let state = held.await.unwrap();
    host.logged("a start in vain", |line| {
        line.contains("the host did not come up again")
    })
    .await;
    drop(state);
    host.came_back().await;
    host.live("probe", "1.0.0").await;
    host.event("the rollback", |event| {
        event.kind == "rolled_back" && event.message.contains("SIGSEGV in /segfault of probe 2")
    })
    .await;
}
