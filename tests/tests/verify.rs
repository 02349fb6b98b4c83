//! Whether a restart would bring what is live is told before it is needed.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{ffi::OsStr, fs};

use handover_tests::{
    client::Http1,
    host::{Host, Output, Setup},
    plugins::fixture,
};

async fn run(host: &Host, line: &[&str]) -> Output {
    host.cli(line.iter().map(OsStr::new)).await
}

async fn put(host: &Host, path: &str, body: &[u8]) {
    let mut http = Http1::connect(host.address).await.unwrap();
    let answer = http.request("PUT", path, &[], Some(body)).await.unwrap();
    assert!(answer.status < 300, "{}", answer.text());
}

/// An app with state that is asked for `path`, and answers 404 as long as it has none.
fn asked_for(path: &str, more: &str) -> String {
    format!(
        "[app.state]\nroutes = [\"/\"]\n[app.state.config]\nshown = 1\n[app.state.check]\n{more}\n\
         [[app.state.check.requests]]\npath = \"{path}\"\nstatus = 404\n"
    )
}

#[tokio::test]
async fn what_is_live_and_what_a_restart_would_bring_answer_the_same() {
    let host = Setup::new().config(&asked_for("/kv/a", "")).start().await;
    run(&host, &["verify"]).await.expect_code(1);
    host.deploy(&fixture("state", "1.0.0")).await.expect_code(0);
    // It is in the copy of its state, or the answers would differ.
    put(&host, "/kv/a", b"7").await;
    assert_eq!(host.get("/kv/a").await.status, 200);
    run(&host, &["verify"]).await.expect_code(0).expect_words(&[
        "state copied",
        "in a child process",
        "1 answer",
    ]);
    let kind = |kind: &'static str| move |event: &handover_tests::host::Event| event.kind == kind;
    host.event("verified", kind("verified")).await;
    assert_eq!(host.get("/kv/a").await.text(), "7");

    let changed = asked_for("/kv/a", "").replace("shown = 1", "shown = 2");
    fs::write(host.home().join("handover.toml"), changed).unwrap();
    run(&host, &["reload-config"]).await.expect_code(0);
    run(&host, &["verify", "state"])
        .await
        .expect_code(5)
        .expect_words(&["config.shown"]);
    host.event("verify_failed", kind("verify_failed")).await;
    run(&host, &["restart"]).await.expect_code(0);
    run(&host, &["verify", "state"]).await.expect_code(0);
}

#[tokio::test]
async fn what_is_only_in_memory_is_told_after_each_deploy_where_that_is_wanted() {
    let asked = asked_for("/told", "verify = \"after-deploy\"").replace("404", "200");
    let host = Setup::new().config(&asked).start().await;
    host.deploy(&fixture("state", "1.0.0")).await.expect_code(0);
    host.event("verified", |event| event.kind == "verified")
        .await;
    // How many changes it was told of is forgotten by a restart.
    put(&host, "/kv/a", b"1").await;
    host.until("it is told of it", async || {
        (host.get("/told").await.text() != "0").then_some(())
    })
    .await;
    run(&host, &["verify"])
        .await
        .expect_code(5)
        .expect_words(&["GET /told", "body"]);
}

#[tokio::test]
async fn an_artifact_that_is_damaged_in_the_store_is_told_before_the_restart() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    let stored = fs::read_dir(host.state().join("artifacts")).unwrap();
    for entry in stored {
        let path = entry.unwrap().path();
        if path.extension() == Some(OsStr::new("so")) {
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::remove_file(&path).unwrap();
            fs::write(&path, bytes).unwrap();
        }
    }
    run(&host, &["verify"]).await.expect_code(1);
    assert_eq!(host.get("/version").await.text(), "1.0.0");
}
