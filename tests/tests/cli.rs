//! The command line is a contract: commands, exit codes, JSON.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{fs, os::unix::fs::PermissionsExt};

use handover_tests::{
    elf,
    host::{Host, Setup, handover},
    plugins::{self, fixture, hello_as, misfit},
};
use rustix::process::Signal;
use serde_json::Value;

/// The names of the fields of an object.
fn fields(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap_or_else(|| panic!("an object: {value}"))
        .keys()
        .map(String::as_str)
        .collect()
}

#[tokio::test]
async fn nonsense_is_usage_and_an_absent_host_is_unreachable() {
    for nonsense in [
        &["frobnicate"][..],
        &["deploy"],
        &["status", "--frobnicate"],
        &["deploy", "a.so", "--timeout", "soon"],
    ] {
        handover(nonsense).await.expect_code(2);
    }
    for command in [
        &["status"][..],
        &["history"],
        &["events"],
        &["logs", "-f"],
        &["reload"],
        &["rollback"],
        &["shutdown"],
    ] {
        handover(command)
            .await
            .expect_code(3)
            .expect_words(&["/nonexistent/control.sock"]);
    }
    let file = fixture("hello", "1.0.0");
    handover(["deploy", file.to_str().unwrap()])
        .await
        .expect_code(3);
    handover(["--help"])
        .await
        .expect_code(0)
        .expect_words(&["deploy", "rollback", "status"]);
    handover(["--version"]).await.expect_code(0);
}

#[tokio::test]
async fn a_deploy_tells_its_steps_line_by_line() {
    let host = Host::start().await;
    let output = host
        .deploy(&fixture("hello", "1.0.0"))
        .await
        .expect_code(0)
        .expect_words(&["preflight", "hello", "1.0.0"]);
    assert!(
        !output.text().contains('\u{1b}'),
        "no terminal, no escape codes: {output:?}"
    );
    let file = fixture("hello", "2.0.0");
    let output = host
        .cli(["deploy", "--json", file.to_str().unwrap()])
        .await
        .expect_code(0);
    let lines: Vec<Value> = output
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["type"], &last["outcome"]),
        (&"result".into(), &"done".into())
    );
    assert_eq!(
        (&last["app"], &last["version"], &last["generation"]),
        (&"hello".into(), &"2.0.0".into(), &2.into())
    );
    let steps: Vec<&str> = lines
        .iter()
        .filter(|line| line["type"] == "step")
        .map(|line| line["step"].as_str().unwrap())
        .collect();
    assert!(
        steps.ends_with(&["preflight", "load", "start", "cutover"]),
        "{steps:?}"
    );
}

#[tokio::test]
async fn a_file_that_is_not_there_is_a_failure_with_its_name() {
    let host = Host::start().await;
    host.cli(["deploy", "/nowhere/at-all.so"])
        .await
        .expect_code(1)
        .expect_words(&["/nowhere/at-all.so"]);
    handover(["inspect", "/nowhere/at-all.so"])
        .await
        .expect_code(1)
        .expect_words(&["/nowhere/at-all.so"]);
}

#[tokio::test]
async fn status_has_the_shape_of_the_contract() {
    let host = Host::serving(&fixture("hello", "1.0.0")).await;
    host.deploy_bytes(&misfit("start-error"))
        .await
        .expect_code(4);
    host.get("/").await;
    let status = host.cli(["status", "--json"]).await.expect_code(0).json();
    let app = status["apps"]
        .as_array()
        .unwrap()
        .iter()
        .find(|app| app["name"] == "hello")
        .unwrap();
    for field in ["name", "state", "active", "generations"] {
        assert!(fields(app).contains(&field), "{app}");
    }
    for field in ["generation", "version", "artifact"] {
        assert!(fields(&app["active"]).contains(&field), "{app}");
    }
    let generation = &app["generations"][0];
    for field in [
        "generation",
        "version",
        "state",
        "in_flight",
        "jobs",
        "requests",
        "panics",
        "age_ms",
        "retained_because",
    ] {
        assert!(fields(generation).contains(&field), "{generation}");
    }
    for field in ["version", "pid", "uptime_ms", "rss_bytes"] {
        assert!(fields(&status["host"]).contains(&field), "{status}");
    }
    assert_eq!(status["host"]["pid"], host.pid());
    assert_eq!(
        (&generation["state"], &generation["requests"]),
        (&"active".into(), &1.into())
    );
    let artifact = app["active"]["artifact"].as_str().unwrap();
    assert!(
        artifact.len() == 64 && artifact.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{artifact}"
    );

    host.cli(["status"])
        .await
        .expect_code(0)
        .expect_words(&["hello", "1.0.0", "serving"]);
    host.cli(["status", "hello", "--json"]).await.expect_code(0);
    assert_ne!(host.cli(["status", "nobody"]).await.code, Some(0));
}

#[tokio::test]
async fn inspect_reads_without_loading() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("misfit.so");
    fs::write(&file, misfit("load-segv")).unwrap();
    let manifest = elf::manifest(&fs::read(&file).unwrap());
    let abi = format!("{}.{}", manifest["abi"][0], manifest["abi"][1]);
    handover(["inspect", file.to_str().unwrap()])
        .await
        .expect_code(0)
        .expect_words(&[
            "misfit",
            "1.0.0",
            &format!("{abi} (this host: {abi})"),
            manifest["build"]["rustc"].as_str().unwrap(),
            manifest["build"]["target"].as_str().unwrap(),
        ]);
    let json = handover(["inspect", "--json", file.to_str().unwrap()])
        .await
        .expect_code(0)
        .json();
    assert!(json.to_string().contains("\"misfit\""), "{json}");
    let none = fixture("no-manifest", "1.0.0");
    handover(["inspect", none.to_str().unwrap()])
        .await
        .expect_code(4)
        .expect_words(&["manifest"]);
}

#[tokio::test]
async fn rollback_goes_to_the_previous_artifact_or_the_named_one() {
    let host = Host::start().await;
    assert_ne!(
        host.cli(["rollback"]).await.code,
        Some(0),
        "there is nothing yet"
    );
    for version in ["1.0.0", "1.1.0", "1.2.0"] {
        host.deploy_bytes(&hello_as(version)).await.expect_code(0);
    }
    host.cli(["rollback"]).await.expect_code(0);
    assert_eq!(host.get("/").await.text(), "hello 1.1.0");
    host.cli(["rollback", "hello", "--to", "1.0.0"])
        .await
        .expect_code(0);
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");
    host.cli(["rollback", "hello", "--to", "3"])
        .await
        .expect_code(0);
    assert_eq!(host.get("/").await.text(), "hello 1.2.0");
    host.cli(["rollback", "hello", "--to", "9.9.9"])
        .await
        .expect_code(1)
        .expect_words(&["9.9.9"]);
    assert_eq!(host.active("hello").await.version, "1.2.0");
}

#[tokio::test]
async fn a_version_that_a_rollback_has_left_does_not_come_back_by_rolling_back_again() {
    let mut host = Host::start().await;
    for version in ["1.0.0", "1.1.0", "1.2.0"] {
        host.deploy_bytes(&hello_as(version)).await.expect_code(0);
    }
    host.cli(["rollback"]).await.expect_code(0);
    host.live("hello", "1.1.0").await;
    // Nor after a restart.
    host.signal_inner(Signal::KILL);
    host.came_back().await;
    host.live("hello", "1.1.0").await;
    host.cli(["rollback"]).await.expect_code(0);
    host.live("hello", "1.0.0").await;
    host.cli(["rollback"]).await.expect_code(1).expect_words(&[
        "nothing to go back to",
        "--to",
        "1.2.0 (generation 3)",
    ]);
    assert_eq!(host.active("hello").await.version, "1.0.0");
    host.cli(["rollback", "--to", "1.2.0"]).await.expect_code(0);
    host.live("hello", "1.2.0").await;
}

#[tokio::test]
async fn history_and_events_tell_what_happened() {
    let host = Host::serving(&fixture("hello", "1.0.0")).await;
    let refused = host.scratch("misfit.so");
    fs::write(&refused, misfit("start-panic")).unwrap();
    let refused = ["deploy", "--app", "hello", refused.to_str().unwrap()];
    let why = ["--by", "ci run 7", "--message", "try the new one"];
    host.cli(refused.iter().chain(&why)).await.expect_code(4);
    host.drop_in("hello/hello.so", &hello_as("1.1.0"));
    host.live("hello", "1.1.0").await;
    host.settled("hello").await;

    let history = host.cli(["history", "--json"]).await.expect_code(0).json();
    let entries = history["history"].as_array().unwrap();
    let told: Vec<_> = entries
        .iter()
        .map(|entry| {
            (
                entry["cause"].as_str().unwrap(),
                entry["outcome"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [("deploy", "done"), ("deploy", "rejected"), ("drop", "done")]
    );
    // Who did not say who it is, is the user of its process; the drop folder is nobody.
    assert!(entries[0]["by"].is_string(), "{history}");
    assert_eq!(entries[1]["by"], "ci run 7");
    assert_eq!(entries[1]["message"], "try the new one");
    assert!(entries[2]["by"].is_null(), "{history}");
    assert!(
        entries[1]["reason"]
            .as_str()
            .unwrap()
            .contains("the misfit panics"),
        "{history}"
    );
    host.cli(["history", "hello"])
        .await
        .expect_code(0)
        .expect_words(&["1.0.0", "1.1.0", "by ci run 7: try the new one"]);

    host.event("the first generation to be unloaded", |event| {
        event.kind == "unloaded"
    })
    .await;
    let events = host.events().await;
    assert!(
        events.iter().zip(1..).all(|(event, seq)| event.seq == seq),
        "{events:?}"
    );
    let kinds = |kind: &str| events.iter().filter(|event| event.kind == kind).count();
    assert_eq!(
        (
            kinds("active"),
            kinds("drained"),
            kinds("rejected"),
            kinds("unloaded")
        ),
        (2, 1, 1, 1),
        "{events:#?}"
    );
    host.cli(["events"])
        .await
        .expect_code(0)
        .expect_words(&["unloaded", "hello"]);
}

#[tokio::test]
async fn a_detached_deploy_can_be_followed_by_its_id() {
    let host = Host::start().await;
    let file = fixture("hello", "1.0.0");
    let output = host
        .cli(["deploy", "--detach", "--json", file.to_str().unwrap()])
        .await
        .expect_code(0);
    let accepted: Value = serde_json::from_str(output.stdout.lines().next().unwrap()).unwrap();
    let id = accepted["operation"].as_str().unwrap();
    let lines = host
        .ask("GET", &format!("/v1/operations/{id}"))
        .await
        .unwrap();
    assert_eq!(lines.status, 200);
    let text = lines.text();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["type"], &last["outcome"]),
        (&"result".into(), &"done".into()),
        "{text}"
    );
    assert_eq!(
        host.ask("GET", "/v1/operations/nonsense")
            .await
            .unwrap()
            .status,
        404
    );
}

#[tokio::test]
async fn two_operations_of_one_app_are_a_conflict() {
    let host = Setup::new()
        .config("[app.misfit.check]\ndeadline = \"4s\"\n")
        .start()
        .await;
    host.deploy(&fixture("misfit", "1.0.0"))
        .await
        .expect_code(0);
    let hanging = host.scratch("hanging.so");
    fs::write(&hanging, misfit("start-hang")).unwrap();
    let first = host.cli(["deploy", hanging.to_str().unwrap()]);
    let second = async {
        host.app_when("misfit", "the first deploy to be under way", |app| {
            app.state == "deploying"
        })
        .await;
        host.deploy_bytes(&misfit("unhealthy")).await
    };
    let (first, second) = tokio::join!(first, second);
    second.expect_code(8);
    first.expect_code(4);
    // Another app is no matter of it, and afterwards it is free again.
    host.deploy(&fixture("hello", "1.0.0")).await.expect_code(0);
    host.deploy_bytes(&misfit("unhealthy")).await.expect_code(0);
}

#[tokio::test]
async fn the_control_socket_is_for_its_owner_and_speaks_http() {
    let host = Host::serving(&fixture("hello", "1.0.0")).await;
    let mode = fs::metadata(host.control()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let control = host.control();
    let curl = tokio::process::Command::new("curl");
    let asked = { curl }
        .args([
            "--silent",
            "--unix-socket",
            control.to_str().unwrap(),
            "http://handover/v1/status",
        ])
        .output()
        .await;
    let Ok(output) = asked else {
        return eprintln!("there is no curl here");
    };
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["apps"][0]["name"], "hello");
    let problem = host.ask("GET", "/v1/nonsense").await.unwrap();
    assert_eq!(problem.status, 404);
    assert!(problem.json()["error"].is_string());
}

#[tokio::test]
async fn shutdown_ends_the_host() {
    let mut host = Host::serving(&fixture("hello", "1.0.0")).await;
    host.cli(["shutdown"]).await.expect_code(0);
    assert_eq!(host.ended().await, Some(0));
    host.cli(["status"]).await.expect_code(3);
}

#[tokio::test]
async fn a_wrong_config_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("handover.toml");
    fs::write(
        &file,
        "[server]\nlisten = \"127.0.0.1:0\"\n\n[app.shop]\ndrain_deadlin = \"30s\"\n",
    )
    .unwrap();
    let output = handover(["run", "--config", file.to_str().unwrap()]).await;
    assert!(matches!(output.code, Some(1 | 2)), "{output:?}");
    output.expect_words(&["handover.toml", "5", "drain_deadlin", "drain_deadline"]);
}

#[tokio::test]
async fn new_makes_a_crate_that_builds_serves_and_passes_its_tests() {
    let dir = tempfile::tempdir().unwrap();
    let crate_dir = dir.path().join("shop");
    handover(["new", crate_dir.to_str().unwrap()])
        .await
        .expect_code(0)
        .expect_words(&["shop"]);
    assert_ne!(
        handover(["new", crate_dir.to_str().unwrap()]).await.code,
        Some(0),
        "it overwrites nothing"
    );
    // The versions that are built already. Library and tests in one go, so that both get the same
    // features of the dependencies.
    fs::copy(
        plugins::workspace().join("Cargo.lock"),
        crate_dir.join("Cargo.lock"),
    )
    .unwrap();
    plugins::cargo_in(&crate_dir, &["build", "--lib", "--tests"]).await;
    let tested = plugins::cargo_in(&crate_dir, &["test"]).await;
    let passed = tested.matches("test result: ok. 1 passed").count();
    assert_eq!(passed, 2, "alone, and on a host: {tested}");
    assert!(!tested.contains("not tested"), "{tested}");
    let host = Host::start().await;
    host.deploy(&plugins::target_dir().join("debug/libshop.so"))
        .await
        .expect_code(0);
    assert_eq!(host.get("/").await.status, 200);
}

#[tokio::test]
async fn shells_and_man_know_every_command() {
    let help = handover(["--help"]).await.expect_code(0).stdout;
    let commands: Vec<_> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next())
        .filter(|name| help.contains(&format!("\n  {name} ")))
        .collect();
    assert!(
        commands.contains(&"deploy") && commands.len() > 30,
        "{commands:?}"
    );

    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    handover(["man", pages.to_str().unwrap()])
        .await
        .expect_code(0);
    let main = fs::read_to_string(pages.join("handover.1")).unwrap();
    let script = handover(["completions", "bash"])
        .await
        .expect_code(0)
        .stdout;
    for command in &commands {
        let page = pages.join(format!("handover-{command}.1"));
        assert!(page.exists(), "{}", page.display());
        assert!(
            main.contains(&format!("handover\\-{}", command.replace('-', "\\-"))),
            "{command}"
        );
        assert!(
            script.contains(&format!("handover,{command})")),
            "{command}"
        );
    }
    let file = folder.path().join("completions");
    fs::write(&file, script).unwrap();
    let parsed = std::process::Command::new("bash")
        .arg("-n")
        .arg(&file)
        .status();
    assert!(parsed.unwrap().success());
}
