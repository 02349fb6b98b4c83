//! The end of a generation is rehearsed before it begins: what would be retained is known in
//! advance, what would crash the host never gets there.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use handover_tests::{
    host::{Host, Setup, handover},
    plugins::{fixture, leaver},
};

async fn serving(config: &str) -> Host {
    let host = Setup::new().config(config).start().await;
    host.deploy(&fixture("leaver", "1.0.0"))
        .await
        .expect_code(0);
    host
}

#[tokio::test]
async fn what_would_be_retained_is_a_warning_with_its_reason_and_comes_true() {
    let host = serving("").await;
    let output = host
        .deploy_bytes(&leaver("thread"))
        .await
        .expect_code(0)
        .expect_words(&["warning", "retained", "still live", "stayer"]);
    assert!(output.text().contains("is live"), "{output:?}");
    let generation = host.active("leaver").await.generation;
    let warned = host
        .event("the warning", |event| event.kind == "warning")
        .await;
    assert_eq!(warned.generation, Some(generation));
    let history = host.cli(["history", "--json"]).await.expect_code(0).json();
    let last = history["history"].as_array().unwrap().last().unwrap();
    assert!(
        last["warnings"][0].as_str().unwrap().contains("stayer"),
        "{history}"
    );
    host.cli(["history"])
        .await
        .expect_words(&["warning", "stayer"]);
    // It does what was said of it.
    host.deploy(&fixture("leaver", "1.0.0"))
        .await
        .expect_code(0);
    host.event("what was said", |event| {
        event.kind == "retained" && event.generation == Some(generation)
    })
    .await;
}

#[tokio::test]
async fn a_deploy_has_the_warning_in_its_json() {
    let host = serving("").await;
    let file = host.scratch("next.so");
    std::fs::write(&file, leaver("thread")).unwrap();
    let output = host
        .cli(["deploy", "--json", file.to_str().unwrap()])
        .await
        .expect_code(0);
    let lines: Vec<serde_json::Value> = output
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for line in [
        lines.iter().find(|line| line["step"] == "preflight"),
        lines.last(),
    ] {
        let note = &line.unwrap()["notes"][0];
        assert_eq!(note["kind"], "retained", "{output:?}");
        assert_eq!(note["warning"], true, "{output:?}");
    }
}

#[tokio::test]
async fn the_answer_beside_a_dropped_file_has_the_warning() {
    let host = Host::start().await;
    host.drop_in("leaver/leaver.so", &leaver("thread"));
    let answer = host.verdict("leaver/leaver.so", "deployed").await;
    assert!(
        answer.contains("warning") && answer.contains("stayer"),
        "{answer}"
    );
}

#[tokio::test]
async fn what_would_be_retained_is_refused_where_that_is_wanted() {
    let host = serving("[app.leaver.check]\nleave = \"refuse\"\n").await;
    let before = host.active("leaver").await;
    host.deploy_bytes(&leaver("thread"))
        .await
        .expect_code(4)
        .expect_words(&["retained", "stayer", "check.leave"]);
    assert_eq!(host.active("leaver").await.generation, before.generation);
    assert_eq!(host.get("/").await.text(), "leaver: none");
}

#[tokio::test]
async fn an_end_that_would_take_the_host_with_it_is_refused() {
    let host = serving("").await;
    let before = host.active("leaver").await;
    for (habit, word) in [
        ("unload-segv", "SIGSEGV"),
        ("drop-segv", "SIGSEGV"),
        ("drop-exit", "exit(0)"),
    ] {
        host.deploy_bytes(&leaver(habit))
            .await
            .expect_code(4)
            .expect_words(&[word, "its end was rehearsed", "check.leave"]);
        assert_eq!(host.active("leaver").await.generation, before.generation);
    }
    assert_eq!(host.get("/").await.text(), "leaver: none");
}

#[tokio::test]
async fn an_end_that_does_not_come_is_a_warning_and_holds_up_no_deploy() {
    // A preflight that were to wait for it would reach its deadline and be refused.
    let host = serving("[app.leaver.check]\ndeadline = \"20s\"\n").await;
    host.deploy_bytes(&leaver("drop-hang"))
        .await
        .expect_code(0)
        .expect_words(&["warning", "takes long"]);
    assert_eq!(host.get("/").await.text(), "leaver: drop-hang");
}

#[tokio::test]
async fn a_deadline_of_preflight_that_passes_in_the_rehearsal_refuses_nothing() {
    let host = serving("[app.leaver.check]\ndeadline = \"2s\"\n").await;
    host.deploy_bytes(&leaver("drop-hang"))
        .await
        .expect_code(0)
        .expect_words(&["warning", "check.deadline"]);
}

#[tokio::test]
async fn what_holds_up_a_drain_and_what_stays_open_is_said() {
    let host = serving("[app.leaver]\nroutes = [\"/\"]\ndrain_deadline = \"1s\"\n").await;
    host.deploy_bytes(&leaver("task"))
        .await
        .expect_code(0)
        .expect_words(&["note", "`task`", "drain_deadline"]);
    host.deploy_bytes(&leaver("file")).await.expect_words(&[
        "warning",
        "leaves open",
        "descriptor",
    ]);
}

#[tokio::test]
async fn an_end_that_is_not_rehearsed_is_not_judged() {
    let host = serving("[app.leaver.check]\nleave = \"off\"\n").await;
    for habit in ["unload-segv", "thread"] {
        let file = host.scratch("next.so");
        std::fs::write(&file, leaver(habit)).unwrap();
        let config = host.scratch("check.toml");
        std::fs::write(&config, "[app.leaver.check]\nleave = \"off\"\n").unwrap();
        let config = config.to_str().unwrap();
        let told = handover([
            "check",
            "--json",
            "--config",
            config,
            file.to_str().unwrap(),
        ])
        .await
        .expect_code(0)
        .json();
        assert_eq!(told["notes"], serde_json::json!([]), "{told}");
    }
    let output = host.deploy_bytes(&leaver("thread")).await.expect_code(0);
    assert!(!output.text().contains("warning"), "{output:?}");
}

#[tokio::test]
async fn a_good_end_is_told_as_a_check() {
    let host = Host::start().await;
    let output = host
        .deploy(&fixture("leaver", "1.0.0"))
        .await
        .expect_code(0)
        .expect_words(&["stopped and unloaded"]);
    assert!(!output.text().contains("warning"), "{output:?}");
}
