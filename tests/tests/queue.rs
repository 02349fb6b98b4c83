//! Operations of one app take turns: those that come meanwhile are told so, or wait in order where
//! that is asked for.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::PathBuf,
    process::Stdio,
};

use handover_tests::{
    elf,
    host::{Host, Output, Setup},
    load::Load,
    plugins::{self, fixture, misfit, rewritten},
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

/// `probe` saying that it is `version`, in a file.
fn probe_as(host: &Host, version: &str) -> PathBuf {
    let path = host.scratch(&format!("probe-{version}.so"));
    let bytes = rewritten("probe", |bytes| elf::set_version(bytes, version));
    fs::write(&path, bytes).unwrap();
    path
}

/// A client of the command line that runs.
struct Client(Child);

impl Client {
    fn of<A: AsRef<OsStr>>(host: &Host, arguments: impl IntoIterator<Item = A>) -> Self {
        let child = Command::new(plugins::handover())
            .args(arguments)
            .env("HANDOVER_CONTROL", host.control())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        Self(child.unwrap())
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    async fn ended(self) -> Output {
        let output = self.0.wait_with_output().await.unwrap();
        Output {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// A host on which `probe` 1.0.0 is live.
async fn host_with(more: &str) -> Host {
    let config =
        format!("[app.probe]\nkeep_artifacts = 20\n{more}\n[app.probe.check]\ndeadline = \"5m\"\n");
    let host = Setup::new().config(&config).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    host
}

/// A deploy that is under way until its preflight is ended.
async fn hanging(host: &Host) -> Client {
    let path = host.scratch("hanging.so");
    fs::write(&path, misfit("start-hang")).unwrap();
    let client = Client::of(host, ["deploy", "--app", "probe", path.to_str().unwrap()]);
    host.app_when("probe", "it to be under way", |app| {
        app.state == "deploying"
    })
    .await;
    client
}

/// Ends the preflight that hangs in its constructor, by killing the child of the host that it runs
/// in.
async fn end_preflight(host: &Host) {
    let of_host = |pid: i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        parent.is_some_and(|parent| parent.trim() == host.pid().to_string())
    };
    // Constructors run on a thread of that name. Before that its end would be nobody's fault but
    // the machine's.
    let constructs = |pid: i32| {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten();
        tasks.flatten().any(|task| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "start")
        })
    };
    let child = host
        .until("the constructor to hang", async || {
            let processes = fs::read_dir("/proc").unwrap().flatten();
            processes
                .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
                .find(|pid| of_host(*pid) && constructs(*pid))
        })
        .await;
    kill_process(Pid::from_raw(child).unwrap(), Signal::KILL).unwrap();
}

/// What waits, as the status tells.
async fn queue(host: &Host) -> Vec<String> {
    let status = host.ask("GET", "/v1/status").await.unwrap().json();
    let queue = status["apps"][0]["queue"].as_array().cloned();
    let queue = queue.unwrap_or_default().into_iter();
    queue
        .map(|one| one["what"].as_str().unwrap().to_owned())
        .collect()
}

async fn queue_is(host: &Host, wanted: &[&str]) {
    host.until(&format!("the queue to be {wanted:?}"), async || {
        (queue(host).await == wanted).then_some(())
    })
    .await;
}

fn deploy(path: &std::path::Path, more: &[&str]) -> Vec<OsString> {
    let mut arguments = vec![OsString::from("deploy"), path.into()];
    arguments.extend(more.iter().map(OsString::from));
    arguments
}

/// What was tried, oldest first.
async fn tried(host: &Host) -> Vec<(String, String, String)> {
    let history = host.cli(["history", "--json"]).await.expect_code(0).json();
    let entries = history["history"].as_array().unwrap().clone();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    entries
        .iter()
        .map(|entry| {
            (
                text(&entry["version"]),
                text(&entry["cause"]),
                text(&entry["outcome"]),
            )
        })
        .collect()
}

fn entry(version: &str, cause: &str, outcome: &str) -> (String, String, String) {
    (version.to_owned(), cause.to_owned(), outcome.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_done_in_order_and_nobody_notices() {
    let host = host_with("").await;
    let load = Load::LIGHT.start(host.address);
    load.more(30).await;
    let first = hanging(&host).await;
    let second = Client::of(&host, deploy(&fixture("probe", "2.0.0"), &["--queue"]));
    queue_is(&host, &["deploy of 2.0.0"]).await;
    // One that does not wait jumps no queue.
    host.cli(["rollback", "probe"])
        .await
        .expect_code(8)
        .expect_words(&["deploy of 1.0.0", "--queue"]);
    let third = Client::of(&host, ["rollback", "probe", "--queue"]);
    queue_is(&host, &["deploy of 2.0.0", "rollback"]).await;
    let fourth = Client::of(
        &host,
        deploy(&fixture("probe", "2.0.0"), &["--queue", "--json"]),
    );
    queue_is(&host, &["deploy of 2.0.0", "rollback", "deploy of 2.0.0"]).await;
    let reload = Client::of(&host, ["reload", "probe", "--queue"]);
    queue_is(
        &host,
        &["deploy of 2.0.0", "rollback", "deploy of 2.0.0", "reload"],
    )
    .await;
    let all = Client::of(&host, ["reload", "--queue"]);
    host.until("five to wait", async || {
        (queue(&host).await.len() == 5).then_some(())
    })
    .await;

    end_preflight(&host).await;
    first.ended().await.expect_code(4);
    second.ended().await.expect_code(0).expect_words(&[
        "queue: waits for op-",
        "(deploy of 1.0.0)",
        "is live",
    ]);
    third
        .ended()
        .await
        .expect_code(0)
        .expect_words(&["(2 ahead)", "probe 1.0.0", "is live"]);
    let fourth = fourth.ended().await.expect_code(0);
    let lines: Vec<serde_json::Value> = fourth
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let queued: Vec<_> = lines
        .iter()
        .filter(|line| line["type"] == "queued")
        .collect();
    assert_eq!(queued[0]["ahead"], 3);
    assert_eq!(queued[0]["behind"]["what"], "rollback");
    assert_eq!(lines.last().unwrap()["outcome"], "done");
    reload
        .ended()
        .await
        .expect_code(0)
        .expect_words(&["nothing to do"]);
    all.ended()
        .await
        .expect_code(0)
        .expect_words(&["nothing to do"]);
    queue_is(&host, &[]).await;
    assert_eq!(
        tried(&host).await,
        [
            entry("1.0.0", "deploy", "done"),
            entry("1.0.0", "deploy", "rejected"),
            entry("2.0.0", "deploy", "done"),
            entry("1.0.0", "rollback", "done"),
            entry("2.0.0", "deploy", "done"),
        ]
    );
    load.more(30).await;
    load.stop().await.expect_unnoticed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_while_it_waits_is_taken_out_of_the_queue_unless_detached() {
    let host = host_with("").await;
    let first = hanging(&host).await;
    let versions = ["1.1.0", "1.2.0", "1.3.0", "1.4.0"];
    let paths = versions.map(|version| probe_as(&host, version));
    let interrupted = Client::of(&host, deploy(&paths[0], &["--queue"]));
    queue_is(&host, &["deploy of 1.1.0"]).await;
    let killed = Client::of(&host, deploy(&paths[1], &["--queue"]));
    queue_is(&host, &["deploy of 1.1.0", "deploy of 1.2.0"]).await;
    host.cli(deploy(&paths[2], &["--queue", "--detach"]))
        .await
        .expect_code(0)
        .expect_words(&["accepted as operation"]);
    let late = Client::of(&host, deploy(&paths[3], &["--queue", "--timeout", "500ms"]));

    interrupted.signal(Signal::INT);
    interrupted
        .ended()
        .await
        .expect_code(130)
        .expect_words(&["leaves the queue", "nothing was changed"]);
    killed.signal(Signal::KILL);
    killed.ended().await;
    late.ended()
        .await
        .expect_code(1)
        .expect_words(&["not live within 500ms", "passed during its wait for op-"]);
    queue_is(&host, &["deploy of 1.3.0"]).await;
    end_preflight(&host).await;
    first.ended().await.expect_code(4);
    host.live("probe", "1.3.0").await;
    let outcomes: Vec<_> = tried(&host).await;
    for gone in ["1.1.0", "1.2.0", "1.4.0"] {
        assert!(
            outcomes.contains(&entry(gone, "deploy", "failed")),
            "{outcomes:?}"
        );
    }
    assert_eq!(outcomes.last(), Some(&entry("1.3.0", "deploy", "done")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_the_host_ends_the_waiting_and_changes_nothing() {
    let mut host = host_with("").await;
    let first = hanging(&host).await;
    let waiting = Client::of(&host, deploy(&fixture("probe", "2.0.0"), &["--queue"]));
    let reload = Client::of(&host, ["reload", "--queue"]);
    host.until("both to wait", async || {
        (queue(&host).await.len() == 2).then_some(())
    })
    .await;
    // A stream keeps the host for a moment, so that there is time to be told.
    let mut stream = handover_tests::client::Http1::connect(host.address)
        .await
        .unwrap();
    stream
        .send_head("GET", "/stream?n=20&every_ms=50", &[])
        .await
        .unwrap();
    assert_eq!(stream.head("GET").await.unwrap().status, 200);
    host.signal(Signal::TERM);
    for client in [waiting, reload] {
        client
            .ended()
            .await
            .expect_code(1)
            .expect_words(&["shutting down"]);
    }
    assert_eq!(host.ended().await, Some(0));
    first.ended().await.expect_code(1);
    host.again().await;
    assert_eq!(host.active("probe").await.version, "1.0.0");
}

#[tokio::test]
async fn a_reload_that_waits_stages_and_activates_in_its_turn() {
    let host = host_with("watch = \"stage\"").await;
    let first = hanging(&host).await;
    // It cannot even be staged before its turn.
    host.drop_in(
        "probe/probe.so",
        &fs::read(fixture("probe", "2.0.0")).unwrap(),
    );
    let reload = Client::of(&host, ["reload", "probe", "--queue"]);
    queue_is(&host, &["reload"]).await;
    let after = Client::of(&host, ["rollback", "probe", "--queue"]);
    queue_is(&host, &["reload", "rollback"]).await;
    end_preflight(&host).await;
    first.ended().await.expect_code(4);
    reload
        .ended()
        .await
        .expect_code(0)
        .expect_words(&["probe 2.0.0", "is live as generation"]);
    after
        .ended()
        .await
        .expect_code(0)
        .expect_words(&["probe 1.0.0", "is live as generation"]);
    assert_eq!(host.active("probe").await.version, "1.0.0");
}
