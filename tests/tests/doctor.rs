//! `handover doctor`: what of a machine would bite a host is said before it bites.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use handover_tests::{
    host::{Output, Setup, handover, handover_with},
    plugins,
};
use serde_json::Value;
use tempfile::TempDir;

/// A folder with a configuration in it, in which `HOME` stands for that folder.
fn configured(toml: &str) -> (TempDir, PathBuf) {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("handover.toml");
    fs::write(&file, toml.replace("HOME", home.path().to_str().unwrap())).unwrap();
    (home, file)
}

async fn doctor(file: &Path) -> Output {
    let file = file.to_str().unwrap();
    let control = Path::new(file).with_file_name("control.sock");
    handover_with(&control, ["doctor", "--json", "--config", file]).await
}

/// What the check `name` has found: its verdict, and all that it says.
fn found(report: &Value, name: &str) -> Vec<(String, String)> {
    let findings = report["findings"].as_array().unwrap().iter();
    let findings = findings.filter(|finding| finding["check"] == name);
    let text = |finding: &Value, name: &str| finding[name].as_str().unwrap_or("").to_owned();
    findings
        .map(|finding| {
            let says = text(finding, "message") + ": " + &text(finding, "advice");
            (text(finding, "verdict"), says)
        })
        .collect()
}

#[track_caller]
fn assert_found(report: &Value, name: &str, verdict: &str, words: &[&str]) {
    let findings = found(report, name);
    let is_it = |(is, says): &(String, String)| {
        is == verdict && words.iter().all(|word| says.contains(word))
    };
    assert!(
        findings.iter().any(is_it),
        "{name} is no {verdict} with {words:?} in {report:#}"
    );
}

#[tokio::test]
async fn a_machine_on_which_the_tests_run_has_no_problem_and_nothing_is_left_there() {
    let (home, file) = configured(
        "[server]\nlisten = \"127.0.0.1:0\"\nstate = \"state\"\nplugins = \"plugins\"\n\
         [[listen]]\naddress = \"unix:HOME/web.sock\"\n",
    );
    let report = doctor(&file).await.expect_code(0).json();
    assert_eq!(report["problems"], 0);
    for name in [
        "configuration",
        "proc",
        "memory-files",
        "system",
        "state",
        "drop-folder",
        "control",
    ] {
        assert_found(&report, name, "ok", &[]);
    }
    let left: Vec<_> = fs::read_dir(home.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["handover.toml"]);

    let text = handover(["doctor", "--config", file.to_str().unwrap()]).await;
    let text = text.expect_code(0).stdout;
    assert!(
        text.contains("ok       proc           /proc is there\n"),
        "{text}"
    );
    assert!(text.contains("0 problems, "), "{text}");
}

#[tokio::test]
async fn folders_addresses_and_limits_that_a_host_would_fail_at_are_named() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    let (home, file) = configured(&format!(
        "[server]\nlisten = \"{address}\"\nstate = \"file/state\"\nplugins = \"plugins\"\n\
         control = \"run/control.sock\"\n[control]\ngroup = \"no-such-group\"\n"
    ));
    fs::write(home.path().join("file"), "").unwrap();
    fs::create_dir(home.path().join("run")).unwrap();
    fs::write(home.path().join("run/control.sock"), "").unwrap();
    // A shell, since a limit of our own would be one of all tests.
    let script = format!(
        "ulimit -n 64; exec {} doctor --json --control {} --config {}",
        plugins::handover().display(),
        home.path().join("run/control.sock").display(),
        file.display()
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_found(
        &report,
        "state",
        "problem",
        &["file/state cannot be written", "choose another folder"],
    );
    let pid = format!("in use by process {} (", std::process::id());
    assert_found(&report, "listen", "problem", &[&address.to_string(), &pid]);
    assert_found(
        &report,
        "open-files",
        "problem",
        &["only 64 ", "LimitNOFILE="],
    );
    assert_found(
        &report,
        "control",
        "problem",
        &["is no socket", "move it away"],
    );
    assert_found(
        &report,
        "control-group",
        "problem",
        &["`no-such-group`", "make it"],
    );
    assert_found(&report, "drop-folder", "ok", &[]);
    assert_eq!(report["problems"], 5, "{report:#}");
}

#[tokio::test]
async fn a_configuration_that_makes_no_sense_is_a_problem_and_the_rest_is_looked_at() {
    let (_home, file) = configured("[server]\nlisten = \"127.0.0.1:0\"\nstates = \"state\"\n");
    let report = doctor(&file).await.expect_code(1).json();
    assert_found(
        &report,
        "configuration",
        "problem",
        &["handover.toml:3", "did you mean `state`?"],
    );
    assert_found(&report, "proc", "ok", &[]);
}

#[tokio::test]
async fn a_host_that_runs_is_asked_and_its_addresses_are_its_own() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics = free.local_addr().unwrap();
    drop(free);
    let host = Setup::new()
        .config(&format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[metrics]\nlisten = \"{metrics}\"\n"
        ))
        .start()
        .await;
    let file = host.home().join("handover.toml");
    let report = host
        .cli(["doctor", "--json", "--config", file.to_str().unwrap()])
        .await
        .expect_code(0)
        .json();
    let pid = format!("runs as process {}", host.pid());
    assert_found(&report, "host", "ok", &[&pid]);
    assert_found(&report, "control", "ok", &["a host answers at"]);
    let listens = format!("the host that runs listens at {metrics}");
    assert_found(&report, "listen", "ok", &[&listens]);
}

#[tokio::test]
async fn it_looks_at_no_other_machine() {
    handover(["doctor", "--host", "ssh://box"])
        .await
        .expect_code(1)
        .expect_words(&["ssh box handover doctor"]);
}
