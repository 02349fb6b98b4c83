//! Live settings and messages: what an operator changes and asks while an app runs.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use handover_tests::{
    client::Http1,
    host::{Host, Setup},
    plugins::fixture,
};
use rustix::process::Signal;
use serde_json::json;

async fn host() -> Host {
    let host = Setup::new()
        .config("[app.state]\nroutes = [\"/\"]\ndrain_deadline = \"none\"\n")
        .start()
        .await;
    host.deploy(&fixture("state", "1.0.0")).await.expect_code(0);
    host
}

async fn setting(host: &Host, key: &str) -> String {
    host.get(&format!("/setting/{key}")).await.text()
}

#[tokio::test]
async fn a_setting_is_seen_at_once_and_outlives_deploys_and_crashes() {
    let mut host = host().await;
    assert_eq!(setting(&host, "theme").await, "none");
    host.cli(["set", "state", "theme", "dark", "--by", "ann"])
        .await
        .expect_code(0)
        .expect_words(&["`theme` of state is \"dark\""]);
    assert_eq!(setting(&host, "theme").await, "\"dark\"");
    host.cli(["set", "state", "rate", "250"])
        .await
        .expect_code(0);
    assert_eq!(setting(&host, "rate").await, "250");
    host.until("the subscriber", async || {
        (host.get("/settings-changed").await.text() != "0").then_some(())
    })
    .await;

    let list = host.cli(["settings", "state", "--json"]).await.json();
    assert_eq!(list["settings"][1]["key"], "theme");
    assert_eq!(list["settings"][1]["by"], "ann");
    assert_eq!(list["history"][1]["value"], 250);
    host.cli(["settings"])
        .await
        .expect_words(&["theme", "\"dark\"", "ann"]);

    host.deploy(&fixture("state", "2.0.0")).await.expect_code(0);
    assert_eq!(setting(&host, "theme").await, "\"dark\"");
    host.signal_inner(Signal::KILL);
    host.came_back().await;
    assert_eq!(setting(&host, "rate").await, "250");

    host.cli(["set", "state", "theme", "--unset"])
        .await
        .expect_code(0)
        .expect_words(&["taken away"]);
    assert_eq!(setting(&host, "theme").await, "none");
    host.cli(["settings", "state", "--history"])
        .await
        .expect_words(&["taken away"]);
    // Who did it is in the audit log, and what is set is not.
    let asked = host.cli(["audit", "--json"]).await.expect_code(0);
    assert!(asked.text().contains("/v1/set"), "{asked:?}");
    assert!(!asked.text().contains("dark"), "{asked:?}");
}

#[tokio::test]
async fn what_the_app_refuses_is_not_changed() {
    let host = host().await;
    host.cli(["set", "state", "theme", "dark"])
        .await
        .expect_code(0);
    for (key, value, why) in [
        (
            "theme",
            "plaid",
            "state refuses it: plaid is no theme. Nothing is changed",
        ),
        ("rate", "many", "the setting `rate` does not fit"),
        ("colour", "red", "there is no setting `colour`"),
        ("panics", "1", "its check panicked: this check is broken"),
        ("a b", "1", "no key of a setting"),
    ] {
        let refused = host.cli(["set", "state", key, value]).await;
        assert_ne!(refused.code, Some(0), "{refused:?}");
        refused.expect_words(&[why]);
    }
    let list = host.cli(["settings", "state", "--json"]).await.json();
    assert_eq!(list["settings"].as_array().unwrap().len(), 1);
    assert_eq!(list["history"].as_array().unwrap().len(), 1);
    assert_eq!(setting(&host, "theme").await, "\"dark\"");
    assert_eq!(host.get("/version").await.text(), "1.0.0");
    host.cli(["set", "nobody", "theme", "dark"])
        .await
        .expect_code(1);
    let large = "x".repeat(300_000);
    let put = |body: String| {
        let control = host.control();
        async move {
            let mut control = Http1::connect_unix(&control).await.unwrap();
            let set = "/v1/set?app=state&key=theme";
            control
                .request("POST", set, &[], Some(body.as_bytes()))
                .await
                .unwrap()
                .status
        }
    };
    assert_eq!(put(json!(large).to_string()).await, 400);
    assert_eq!(put("no json".to_owned()).await, 400);
}

#[tokio::test]
async fn every_version_that_runs_has_a_setting_and_answers_a_message() {
    let host = host().await;
    let one = host.cli(["send", "state", "version"]).await.expect_code(0);
    assert_eq!(one.stdout, "1.0.0\n");
    let file = fixture("state", "2.0.0");
    let line = ["deploy", file.to_str().unwrap(), "--stage"];
    host.cli(line).await.expect_code(0);
    host.cli(["send", "state", "version"])
        .await
        .expect_code(0)
        .expect_words(&["generation 1 (1.0.0): 1.0.0", "generation 2 (2.0.0): 2.0.0"]);
    host.cli(["set", "state", "theme", "dark"])
        .await
        .expect_code(0);
    host.cli(["promote", "state"]).await.expect_code(0);
    assert_eq!(setting(&host, "theme").await, "\"dark\"");

    let sent = host
        .cli(["send", "state", "{\"a\": [1]}", "--json"])
        .await
        .json();
    let last = sent["answers"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(last["answer"], json!({ "got": { "a": [1] } }));
    host.cli(["send", "state", "dance"])
        .await
        .expect_code(1)
        .expect_words(&["there is no command `dance`"]);
    host.cli(["send", "state", "panic"])
        .await
        .expect_code(1)
        .expect_words(&["panicked or was cancelled"]);
    host.cli(["send", "state", "never", "--timeout", "50ms"])
        .await
        .expect_code(1)
        .expect_words(&["did not answer within"]);
}

#[tokio::test]
async fn a_version_that_takes_neither_says_so_and_nothing_is_kept_of_those_that_ended() {
    let host = Host::serving(&fixture("hello", "1.0.0")).await;
    host.cli(["send", "hello", "flush"])
        .await
        .expect_code(1)
        .expect_words(&["takes no messages"]);
    // Nobody checks it, and it is there for a version that wants it.
    host.cli(["set", "hello", "theme", "dark"])
        .await
        .expect_code(0);
    let state = self::host().await;
    state
        .cli(["set", "state", "theme", "dark"])
        .await
        .expect_code(0);
    for version in ["2.0.0", "1.0.0", "2.0.0"] {
        state
            .deploy(&fixture("state", version))
            .await
            .expect_code(0);
    }
    let app = state.settled("state").await;
    assert_eq!(app.generations.len(), 1);
    assert_eq!(state.mapped_plugins(), 1);
}
