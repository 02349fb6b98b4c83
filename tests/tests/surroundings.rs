//! What is around the host goes wrong: signals to all of a group, files that somebody deletes, a
//! service manager that is not there.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{fs, process::Command};

use handover_tests::{
    client::Http1,
    host::{Host, Setup},
    plugins::{fixture, handover},
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
