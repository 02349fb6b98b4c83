//! Commands for scripts: `up`, which does what one means; operations that are waited for, asked for
//! twice, or asked of another machine.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use handover_tests::{
    client::Http1,
    host::{DEADLINE, Host, Output, Setup},
    load::Load,
    plugins::{self, fixture, misfit},
};
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};

/// A folder in which commands are called, and whatever host they start.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = tokio::process::Command::new(plugins::handover());
        command
            .args(arguments)
            .current_dir(self.0.path())
            .env_remove("HANDOVER_CONTROL")
            .stdin(Stdio::null());
        let output = command.output().await.unwrap();
        Output {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    async fn get(&self, path: &str) -> String {
        let status = self.run(&["status", "--json"]).await.expect_code(0).json();
        let address = status["host"]["listen"][0].as_str().unwrap();
        let mut http = Http1::connect(address.parse().unwrap()).await.unwrap();
        http.request("GET", path, &[], None).await.unwrap().text()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = Command::new(plugins::handover())
            .args(["shutdown", "--now"])
            .current_dir(self.0.path())
            .env_remove("HANDOVER_CONTROL")
            .output(); // there may be no host
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn up_starts_a_host_where_there_is_none_and_deploys_where_there_is_one() {
    let folder = Folder::new();
    let (one, two) = (fixture("probe", "1.0.0"), fixture("probe", "2.0.0"));
    folder
        .run(&["up", text(&one), "--listen", "127.0.0.1:0"])
        .await
        .expect_code(0)
        .expect_words(&["host was started", "host.log", "generation 1"]);
    assert_eq!(folder.get("/version").await, "1.0.0");
    let again = folder.run(&["up", text(&one)]).await.expect_code(0);
    assert!(!again.text().contains("host was started"));
    again.expect_words(&["live already"]);
    folder
        .run(&["up", text(&two), "--message", "the second"])
        .await
        .expect_code(0);
    assert_eq!(folder.get("/version").await, "2.0.0");
    folder.run(&["history"]).await.expect_words(&["the second"]);
    let broken = folder.0.path().join("broken.so");
    fs::write(&broken, misfit("start-error")).unwrap();
    folder
        .run(&["up", text(&broken), "--app", "probe"])
        .await
        .expect_code(4);
    assert_eq!(folder.get("/version").await, "2.0.0");
}

#[tokio::test]
async fn up_says_why_a_host_did_not_start() {
    let folder = Folder::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let one = fixture("probe", "1.0.0");
    folder
        .run(&["up", text(&one), "--listen", &address])
        .await
        .expect_code(1)
        .expect_words(&["ended at its start", "host.log", &address]);
    fs::write(folder.0.path().join("handover.toml"), "[servr]\n").unwrap();
    folder
        .run(&["up", text(&one)])
        .await
        .expect_code(1)
        .expect_words(&["servr"]);
}

/// An app whose constructor needs a file that may be open once.
async fn once() -> Host {
    let config = "[app.sqlite]\nroutes = [\"/\"]\n[app.sqlite.config]\nfolder = \"HOME\"\njournal = \"wal\"\nonce = \"flock\"\n";
    let host = Setup::new().config(config).start().await;
    host.deploy(&fixture("sqlite", "1.0.0"))
        .await
        .expect_code(0);
    host
}

async fn cli(host: &Host, line: &[&str]) -> Output {
    host.cli(line.iter().map(OsStr::new)).await
}

#[tokio::test]
async fn up_stops_the_old_version_only_when_it_is_told_to_and_must() {
    let host = once().await;
    let two = fixture("sqlite", "2.0.0");
    cli(&host, &["up", text(&two)])
        .await
        .expect_code(4)
        .expect_words(&["generation 1 of sqlite"]);
    assert_eq!(host.active("sqlite").await.version, "1.0.0");
    cli(&host, &["up", text(&two), "--or-force"])
        .await
        .expect_code(0)
        .expect_words(&["is stopped", "live as generation 2"]);
    assert_eq!(host.active("sqlite").await.version, "2.0.0");
    // What is no better for that leaves the old one live, in the end.
    let broken = host.scratch("broken.so");
    fs::write(&broken, misfit("start-error")).unwrap();
    cli(
        &host,
        &["up", text(&broken), "--app", "sqlite", "--or-force"],
    )
    .await
    .expect_code(4);
    assert_eq!(host.active("sqlite").await.version, "2.0.0");
    assert_eq!(host.get("/rows").await.status, 200);
    // The same where only the start in the host shows it.
    fs::write(&broken, misfit("live-error")).unwrap();
    cli(
        &host,
        &["up", text(&broken), "--app", "sqlite", "--or-force"],
    )
    .await
    .expect_code(6);
    assert_eq!(host.active("sqlite").await.version, "2.0.0");
    assert_eq!(host.get("/rows").await.status, 200);
}

fn operation(output: &Output) -> String {
    let words = output.stdout.split_whitespace();
    let mut ids = words.map(|word| word.trim_end_matches(';'));
    ids.find(|word| word.starts_with("op-")).unwrap().to_owned()
}

#[tokio::test]
async fn an_operation_is_waited_for_and_ends_the_waiting_as_it_ended() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    let detached = cli(
        &host,
        &["deploy", text(&fixture("probe", "2.0.0")), "--detach"],
    )
    .await;
    let id = operation(&detached);
    assert!(detached.stdout.contains(&format!("wait {id}")));
    cli(&host, &["wait", &id])
        .await
        .expect_code(0)
        .expect_words(&["live as generation 2"]);
    let broken = host.scratch("broken.so");
    fs::write(&broken, misfit("start-error")).unwrap();
    let line = ["deploy", text(&broken), "--app", "probe", "--detach"];
    let id = operation(&cli(&host, &line).await);
    cli(&host, &["wait", &id]).await.expect_code(4);
    // Known still, though it has ended.
    cli(&host, &["wait", &id]).await.expect_code(4);
    cli(&host, &["wait", "op-999"])
        .await
        .expect_code(1)
        .expect_words(&["op-999"]);
}

#[tokio::test]
async fn a_deploy_with_a_key_happens_once_over_restarts_too() {
    let mut host = Host::serving(&fixture("probe", "1.0.0")).await;
    let load = Load {
        keep_alive: 4,
        closing: 1,
        streams: 0,
        pause: std::time::Duration::from_millis(5),
    }
    .start(host.address);
    let (one, two) = (fixture("probe", "1.0.0"), fixture("probe", "2.0.0"));
    let second = ["deploy", text(&two), "--idempotency-key", "build-17"];
    cli(&host, &second).await.expect_code(0);
    cli(&host, &["rollback"]).await.expect_code(0);
    let again = cli(&host, &second).await.expect_code(0);
    again.expect_words(&["live as generation 2"]);
    assert_eq!(
        host.active("probe").await.version,
        "1.0.0",
        "nothing was done"
    );
    load.stop().await.expect_unnoticed();

    // What failed for a reason that is gone may be tried again with its key.
    let missing = host.scratch("missing.so");
    let line = ["deploy", text(&missing), "--idempotency-key", "build-18"];
    cli(&host, &line).await.expect_code(1);
    fs::copy(&one, &missing).unwrap();
    cli(&host, &line).await.expect_code(0);

    let broken = host.scratch("broken.so");
    fs::write(&broken, misfit("start-error")).unwrap();
    let line = [
        "deploy",
        text(&broken),
        "--app",
        "probe",
        "--idempotency-key",
        "build-19",
    ];
    cli(&host, &line).await.expect_code(4);
    host.signal(Signal::TERM);
    host.ended().await;
    host.again().await;
    host.live("probe", "1.0.0").await;
    cli(&host, &second)
        .await
        .expect_code(0)
        .expect_words(&["ended before", "2.0.0"]);
    cli(&host, &line).await.expect_code(4);
    assert_eq!(host.active("probe").await.version, "1.0.0");
}

/// A program in place of ssh that runs the command on this machine, as the shell there would.
fn fake_ssh(dir: &Path, ends_with: Option<i32>) -> PathBuf {
    let script = dir.join("ssh");
    let bin = plugins::handover().parent().unwrap().display();
    let end = ends_with.map_or_else(String::new, |code| {
        format!("echo 'no route' >&2; exit {code}\n")
    });
    let text = format!(
        "#!/bin/sh\n{end}while [ \"$1\" != -- ]; do shift; done\nshift 2\nPATH={bin}:$PATH\nexec sh -c \"$*\"\n"
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

async fn remote(ssh: &Path, control: &Path, line: &[&str]) -> Output {
    let output = tokio::process::Command::new(plugins::handover())
        .args(["--host", "ssh://ops@box:22", "--control", text(control)])
        .args(line)
        .env("HANDOVER_SSH", ssh)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    Output {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[tokio::test]
async fn a_log_that_is_followed_through_ssh_goes_on_with_the_next_run_of_the_host() {
    let mut host = Host::serving(&fixture("probe", "1.0.0")).await;
    let dir = tempfile::tempdir().unwrap();
    let ssh = fake_ssh(dir.path(), None);
    let mut following = tokio::process::Command::new(plugins::handover())
        .args(["--host", "ssh://box", "--control", text(&host.control())])
        .args(["logs", "-f", "--app", "probe"])
        .env("HANDOVER_SSH", &ssh)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let mut until = async |what: &str| loop {
        let line = tokio::time::timeout(DEADLINE, lines.next_line()).await;
        let line = line.expect("a line in time").unwrap();
        if line.expect("it goes on").contains(what) {
            return;
        }
    };
    until("is live as generation 1").await;
    host.signal(Signal::TERM);
    host.ended().await;
    until("-- the host has ended; waiting for the next one --").await;
    host.again().await;
    until("-- another run of the host begins --").await;
    host.get("/log?name=after").await;
    until("after 0").await;
}

#[tokio::test]
async fn commands_reach_the_host_of_another_machine_through_ssh() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    let dir = tempfile::tempdir().unwrap();
    let ssh = fake_ssh(dir.path(), None);
    let control = host.control();
    remote(&ssh, &control, &["status"])
        .await
        .expect_code(0)
        .expect_words(&["probe", "1.0.0"]);
    remote(
        &ssh,
        &control,
        &["deploy", text(&fixture("probe", "2.0.0"))],
    )
    .await
    .expect_code(0)
    .expect_words(&["cutover", "live as generation 2"]);
    let broken = host.scratch("broken.so");
    fs::write(&broken, misfit("start-error")).unwrap();
    remote(&ssh, &control, &["deploy", text(&broken), "--app", "probe"])
        .await
        .expect_code(4);
    remote(&ssh, &control, &["rollback", "--json"])
        .await
        .expect_code(0);
    assert_eq!(host.active("probe").await.version, "1.0.0");
    // The other end says what is wrong there.
    let nowhere = dir.path().join("it's nowhere.sock");
    remote(&ssh, &nowhere, &["status"])
        .await
        .expect_code(3)
        .expect_words(&["no host answers at", "it's nowhere.sock"]);
    let ssh = fake_ssh(dir.path(), Some(255));
    remote(&ssh, &control, &["status"])
        .await
        .expect_code(3)
        .expect_words(&["no route", "255"]);
}
