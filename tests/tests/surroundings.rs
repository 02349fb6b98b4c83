//! What is around the host goes wrong: signals to all of a group, files that somebody deletes, a
//! service manager that is not there.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use handover_tests::{
    client::Http1,
    elf,
    host::{Host, Output, Setup},
    load::Load,
    plugins::{fixture, handover, misfit},
};
use rustix::process::Signal;

#[tokio::test]
async fn one_signal_to_host_and_supervisor_together_drains() {
    for trial in 0..20 {
        let mut host = Host::serving(&fixture("probe", "1.0.0")).await;
        let mut http = Http1::connect(host.address).await.unwrap();
        http.send_head("GET", "/slow?ms=300", &[]).await.unwrap();
        host.app_when("probe", "the request to be in flight", |app| {
            app.generations[0].in_flight == 1
        })
        .await;
        // In both orders, as the kernel may.
        if trial % 2 == 0 {
            host.signal_inner(Signal::TERM);
            host.signal(Signal::TERM);
        } else {
            host.signal(Signal::TERM);
            host.signal_inner(Signal::TERM);
        }
        let answer = http.answer("GET").await.unwrap();
        assert_eq!((answer.status, answer.text()), (200, "1.0.0".into()));
        assert_eq!(host.ended().await, Some(0));
    }
}

#[tokio::test]
async fn a_second_signal_ends_the_host_at_once_with_and_without_a_supervisor() {
    for alone in [false, true] {
        let setup = if alone {
            Setup::new().alone()
        } else {
            Setup::new()
        };
        let mut host = setup.start().await;
        host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
        let mut http = Http1::connect(host.address).await.unwrap();
        http.send_head("GET", "/slow?ms=600000", &[]).await.unwrap();
        host.app_when("probe", "the request to be in flight", |app| {
            app.generations[0].in_flight == 1
        })
        .await;
        host.signal(Signal::TERM);
        host.logged("the drain to begin", |line| {
            line.contains("the host ends when what is in flight has ended")
        })
        .await;
        host.signal(Signal::TERM);
        assert_eq!(host.ended().await, Some(0));
        let log = host.log();
        assert!(
            log.iter().any(|line| line.contains("the host ends now")),
            "{log:#?}"
        );
    }
}

#[tokio::test]
async fn a_control_socket_that_was_deleted_is_made_again() {
    let host = Host::serving(&fixture("hello", "1.0.0")).await;
    fs::remove_file(host.control()).unwrap();
    host.logged("the socket to be made again", |line| {
        line.contains("the control socket was deleted, and is made again")
    })
    .await;
    host.cli(["status"]).await.expect_code(0);
    // Once more: it is not only the first one that is looked after.
    fs::remove_file(host.control()).unwrap();
    let deadline = std::time::Instant::now() + handover_tests::host::DEADLINE;
    while !host.control().exists() {
        assert!(std::time::Instant::now() < deadline, "it is not made again");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    host.deploy(&fixture("hello", "2.0.0")).await.expect_code(0);
    assert_eq!(host.get("/").await.text(), "hello 2.0.0");
}

#[tokio::test]
async fn a_service_manager_that_cannot_be_reached_is_told_of_and_done_without() {
    for alone in [false, true] {
        let setup = Setup::new().env("NOTIFY_SOCKET", "/nonexistent/notify");
        let setup = if alone { setup.alone() } else { setup };
        let host = setup.start().await;
        host.logged("the warning", |line| {
            line.contains("NOTIFY_SOCKET=/nonexistent/notify cannot be reached")
        })
        .await;
        host.deploy(&fixture("hello", "1.0.0")).await.expect_code(0);
        assert_eq!(host.get("/").await.text(), "hello 1.0.0");
    }
}

#[tokio::test]
async fn both_processes_have_the_name_that_people_look_for() {
    let host = Host::start().await;
    for pid in [host.pid(), host.outer_pid()] {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        assert_eq!(name, "handover\n");
    }
}

/// As process 1 of a pid namespace, which takes root.
#[tokio::test]
async fn as_the_first_process_of_a_container_it_reaps_what_others_leave() {
    let home = tempfile::tempdir().unwrap();
    let unshare = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
        command.args(arguments).current_dir(home.path());
        command
    };
    if !unshare(&["true"])
        .status()
        .is_ok_and(|status| status.success())
    {
        eprintln!("skipped: a pid namespace cannot be made here");
        return;
    }
    // What is left over: a shell in another process group starts a child and ends, so that process
    // 1 inherits it.
    let script = "(sh -c 'sleep 0.2 & exit 0' &) ; exec \"$0\" run --listen 127.0.0.1:0";
    let mut host = unshare(&["sh", "-c", script])
        .arg(handover())
        .spawn()
        .unwrap();
    let control = home.path().join(".handover/control.sock");
    let deadline = std::time::Instant::now() + handover_tests::host::DEADLINE;
    let children =
        |of: u32| fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    let state = |pid: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ")
            .next()
            .and_then(|rest| rest.chars().next())
    };
    loop {
        assert!(std::time::Instant::now() < deadline, "a zombie stays");
        let first = children(host.id());
        let first = first.trim();
        if control.exists() && !first.is_empty() {
            let of_first = children(first.parse().unwrap());
            let left: Vec<_> = of_first.split_whitespace().collect();
            // The host alone, and nothing that has ended and waits for somebody to ask.
            if left.len() == 1 && state(left[0]) != Some('Z') {
                break;
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    host.kill().unwrap();
    host.wait().unwrap();
}

/// A client of the command line that deploys `bytes` to `app`.
fn deploying(host: &Host, app: &str, bytes: &[u8]) -> tokio::process::Child {
    let path = host.scratch("deployed.so");
    fs::write(&path, bytes).unwrap();
    tokio::process::Command::new(handover())
        .args(["deploy", "--app", app])
        .arg(path)
        .env("HANDOVER_CONTROL", host.control())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn output(client: tokio::process::Child) -> Output {
    let output = client.wait_with_output().await.unwrap();
    Output {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The processes that `parent` has started and that live.
fn children(parent: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{parent}/task"));
    let lists = tasks
        .into_iter()
        .flatten()
        .flatten()
        .map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    lists
        .flat_map(|list| {
            let pids = list.split_whitespace().map(|pid| pid.parse().unwrap());
            pids.collect::<Vec<_>>()
        })
        .collect()
}

/// Waits until a constructor runs in `pid`.
async fn constructs(host: &Host, pid: u32) {
    host.until("the constructor to run", async || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        let mut names = tasks.flatten().map(|task| task.path().join("comm"));
        names
            .any(|name| fs::read_to_string(name).is_ok_and(|name| name.trim() == "start"))
            .then_some(())
    })
    .await;
}

/// The child that checks, once it runs the constructor.
async fn preflight_child(host: &Host) -> u32 {
    let child = host
        .until("the child", async || children(host.pid()).first().copied())
        .await;
    constructs(host, child).await;
    child
}

/// The reasons in the history of `misfit`, by outcome.
async fn reasons(host: &Host, outcome: &str) -> Vec<String> {
    let history = host.cli(["history", "misfit", "--json"]).await;
    let history = history.expect_code(0).json();
    let entries = history["history"].as_array().unwrap().iter();
    entries
        .filter(|entry| entry["outcome"] == outcome)
        .map(|entry| entry["reason"].as_str().unwrap_or_default().to_owned())
        .collect()
}

const PATIENT: &str = "[app.misfit.check]\ndeadline = \"5m\"\n";

#[tokio::test]
async fn a_deploy_that_the_end_of_the_host_cuts_is_told_and_recorded() {
    for (habit, during) in [
        ("start-hang", "its preflight"),
        ("live-hang", "its constructor"),
    ] {
        for by_signal in [true, false] {
            let mut host = Setup::new().config(PATIENT).start().await;
            host.deploy(&fixture("hello", "1.0.0")).await.expect_code(0);
            let client = deploying(&host, "misfit", &misfit(habit));
            let child = if during == "its preflight" {
                Some(preflight_child(&host).await)
            } else {
                constructs(&host, host.pid()).await;
                None
            };
            if by_signal {
                host.signal(Signal::TERM);
            } else {
                host.cli(["shutdown"]).await.expect_code(0);
            }
            output(client).await.expect_code(1).expect_words(&[
                "the host is shutting down",
                "which cut",
                during,
            ]);
            assert_eq!(host.ended().await, Some(0));
            if let Some(child) = child {
                // Whoever has it now reaps it when there is time for that.
                let path = format!("/proc/{child}");
                let is_gone = async || (!Path::new(&path).exists()).then_some(());
                host.until("the end of the child", is_gone).await;
            }
            host.again().await;
            host.live("hello", "1.0.0").await;
            let cut = reasons(&host, "failed").await;
            assert_eq!(cut.len(), 1, "{cut:?}");
            assert!(cut[0].contains(during), "{cut:?}");
        }
    }
}

#[tokio::test]
async fn a_dropped_file_that_the_end_of_the_host_cuts_is_taken_by_the_next_start() {
    let mut host = Setup::new().config(PATIENT).start().await;
    host.drop_in("misfit/misfit.so", &misfit("live-late"));
    constructs(&host, host.pid()).await;
    host.signal(Signal::TERM);
    assert_eq!(host.ended().await, Some(0));
    assert!(!host.plugins().join("misfit/misfit.so.failed").exists());
    host.again().await;
    host.live("misfit", "1.0.0").await;
    host.verdict("misfit/misfit.so", "deployed").await;
}

#[tokio::test]
async fn a_supervisor_that_is_killed_leaves_no_process_and_nothing_half_done() {
    let mut host = Setup::new().config(PATIENT).start().await;
    host.deploy(&fixture("hello", "1.0.0")).await.expect_code(0);
    let client = deploying(&host, "misfit", &misfit("start-hang"));
    let child = preflight_child(&host).await;
    let before = host.pid();
    // It waits until the host is gone, and starts another.
    host.crash(|_| {}).await;
    assert!(!Path::new(&format!("/proc/{before}")).exists());
    let deadline = std::time::Instant::now() + handover_tests::host::DEADLINE;
    while Path::new(&format!("/proc/{child}")).exists() {
        assert!(std::time::Instant::now() < deadline, "the child stays");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_ne!(output(client).await.code, Some(0));
    host.live("hello", "1.0.0").await;
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");
    let cut = reasons(&host, "failed").await;
    assert_eq!(cut.len(), 1, "{cut:?}");
    assert!(cut[0].contains("while it was checked"), "{cut:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_stopped_and_goes_on_loses_nothing() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    let pid = host.pid();
    let load = Load::LIGHT.start(host.address);
    load.more(50).await;
    for _ in 0..3 {
        host.signal_inner(Signal::STOP);
        let stopped = format!("/proc/{pid}/stat");
        host_is(&stopped, 'T').await;
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
        host.signal_inner(Signal::CONT);
        load.more(50).await;
    }
    // The host does not need its supervisor to serve.
    host.signal(Signal::STOP);
    host_is(&format!("/proc/{}/stat", host.outer_pid()), 'T').await;
    load.more(50).await;
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    host.signal(Signal::CONT);
    load.more(50).await;
    assert_eq!(host.active("probe").await.version, "2.0.0");
    assert_eq!(host.pid(), pid);
    load.stop().await.expect_unnoticed();
}

#[tokio::test]
async fn a_host_that_ends_unseen_is_reaped_and_started_again() {
    let mut host = Host::serving(&fixture("hello", "1.0.0")).await;
    let before = host.pid();
    host.signal(Signal::STOP);
    host_is(&format!("/proc/{}/stat", host.outer_pid()), 'T').await;
    host.signal_inner(Signal::KILL);
    // Nobody asks how it ended.
    host_is(&format!("/proc/{before}/stat"), 'Z').await;
    host.signal(Signal::CONT);
    host.came_back().await;
    host.live("hello", "1.0.0").await;
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");
    assert_eq!(children(host.outer_pid()), [host.pid()]);
}

#[tokio::test]
async fn a_reload_that_finds_nothing_costs_nothing() {
    const RELOADS: usize = 3000;
    let host = Host::serving(&fixture("hello", "1.0.0")).await;
    let reload = async || {
        let answer = host.ask("POST", "/v1/reload?queue=true").await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    for _ in 0..300 {
        reload().await;
    }
    let before = host.status().await.host.rss_bytes;
    for _ in 0..RELOADS {
        reload().await;
    }
    let after = host.status().await.host.rss_bytes;
    let each = after.saturating_sub(before) / RELOADS as u64;
    assert!(each < 1024, "{each} bytes each");
}

/// Waits until the kernel says that a process is in `state`.
async fn host_is(stat: &str, state: char) {
    let deadline = std::time::Instant::now() + handover_tests::host::DEADLINE;
    loop {
        let text = fs::read_to_string(stat).unwrap();
        if text.rsplit(") ").next().unwrap().starts_with(state) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{text}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_service_manager_that_does_not_listen_or_goes_away_holds_nobody_up() {
    for alone in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        // Bound, and never read: its queue is full some day.
        let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        let setup = Setup::new()
            .env("NOTIFY_SOCKET", path.to_str().unwrap())
            .env("WATCHDOG_USEC", "20000");
        let setup = if alone { setup.alone() } else { setup };
        let mut host = setup.start().await;
        host.deploy(&fixture("hello", "1.0.0")).await.expect_code(0);
        drop(manager);
        host.deploy(&fixture("hello", "2.0.0")).await.expect_code(0);
        assert_eq!(host.get("/").await.text(), "hello 2.0.0");
        host.signal(Signal::TERM);
        assert_eq!(host.ended().await, Some(0));
    }
}

/// Deploys a misfit that behaves until it is told to end, and a second one with `habit`.
async fn until_its_end(habit: &str) -> Host {
    // What it does in its end is not rehearsed.
    let config = "[app.misfit]\nroutes = [\"/\"]\ndrain_deadline = \"1s\"\n\
                  [app.misfit.check]\nleave = \"off\"\n";
    let host = Setup::new().config(config).start().await;
    host.deploy_bytes(&misfit("none")).await.expect_code(0);
    let mut worse = misfit(habit);
    elf::set_version(&mut worse, "2.0.0");
    host.deploy_bytes(&worse).await.expect_code(0);
    host
}

#[tokio::test]
async fn a_crash_in_the_end_is_told_by_the_exit_code_and_blamed_by_the_next_start() {
    let mut host = until_its_end("end-segv").await;
    host.signal(Signal::TERM);
    assert_eq!(host.ended().await, Some(70));
    host.logged("the crash to be told", |line| {
        line.contains("the host crashed while it was ending") && line.contains("SIGSEGV")
    })
    .await;
    host.again().await;
    host.live("misfit", "1.0.0").await;
    host.event("the rollback", |event| {
        event.kind == "rolled_back" && event.message.contains("SIGSEGV")
    })
    .await;
    // Once: the next end is a good one.
    host.signal(Signal::TERM);
    assert_eq!(host.ended().await, Some(0));
    host.again().await;
    host.live("misfit", "1.0.0").await;
    assert!(!crashed(&host).await);
}

#[tokio::test]
async fn an_app_that_calls_exit_when_it_is_told_to_end_ends_nothing_but_itself() {
    let mut host = until_its_end("end-exit").await;
    host.signal(Signal::TERM);
    assert_eq!(host.ended().await, Some(0));
    host.logged("the call to be told", |line| {
        line.contains("generation 2 called exit(0) when it was told to end")
    })
    .await;
    host.again().await;
    host.live("misfit", "2.0.0").await;
    assert!(!crashed(&host).await);
}

async fn crashed(host: &Host) -> bool {
    let events = host.events().await;
    events.iter().any(|event| event.kind == "crash")
}
