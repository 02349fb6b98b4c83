//! Whoever reads the log may stop, leave, or have no room: a line is lost then, and nothing else.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, PipeReader, PipeWriter, Read, Write, pipe},
    os::fd::OwnedFd,
    process::{Command, Stdio},
};

use handover_tests::{
    host::{Host, Setup},
    plugins::{fixture, handover, hello_as, misfit},
};
use rustix::{io::ioctl_fionbio, process::Signal};

/// A pipe that takes nothing more.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().unwrap();
    ioctl_fionbio(&writer, true).unwrap();
    while let Ok(1..) = writer.write(&[b'.'; 4096]) {}
    while let Ok(1..) = writer.write(b".") {}
    ioctl_fionbio(&writer, false).unwrap();
    (reader, writer)
}

/// Everything goes on for a host whose log is lost: answers, panics, a deploy, the control socket,
/// and its end.
async fn goes_on(mut host: Host) {
    let before = host.pid();
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    for _ in 0..20 {
        assert_eq!(host.get("/panic").await.status, 500);
    }
    assert_eq!(host.get("/version").await.text(), "1.0.0");
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    assert_eq!(host.get("/version").await.text(), "2.0.0");
    assert_eq!(host.status().await.host.pid, before, "it lives on");
    host.signal(Signal::TERM);
    assert_eq!(host.ended().await, Some(0));
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_nothing_up() {
    let (mut reader, writer) = full_pipe();
    let host = Setup::new().stderr(writer).start().await;
    goes_on(host).await;
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("...."), "it was full all the time");
}

#[tokio::test]
async fn a_log_whose_reader_left_ends_neither_host_nor_supervisor() {
    for alone in [false, true] {
        let (reader, writer) = pipe().unwrap();
        let setup = Setup::new().stderr(writer);
        let host = if alone { setup.alone() } else { setup };
        let host = host.start().await;
        drop(reader);
        goes_on(host).await;
    }
}

#[tokio::test]
async fn a_log_on_a_full_disk_ends_neither_host_nor_supervisor() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    goes_on(Setup::new().stderr(full).start().await).await;
}

#[tokio::test]
async fn a_log_that_was_made_non_blocking_loses_nothing() {
    let (mut reader, writer) = pipe().unwrap();
    ioctl_fionbio(&writer, true).unwrap();
    let writer = OwnedFd::from(writer);
    let host = Setup::new().stderr(writer).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    for _ in 0..800 {
        assert_eq!(host.get("/panic").await.status, 500);
    }
    ioctl_fionbio(&reader, true).unwrap();
    let mut text = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    host.until("all panics to be in the log", async || {
        match reader.read(&mut buffer) {
            Ok(length) => text.extend_from_slice(&buffer[..length]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        let panics = String::from_utf8_lossy(&text).matches("panicked: ").count();
        (panics == 800).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_line_of_a_thread_local_that_is_dropped_is_logged() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    assert_eq!(host.get("/log-in-thread-local").await.status, 200);
    host.logged("the line of a destructor", |line| {
        line.contains("flushed") && line.contains("app=probe")
    })
    .await;
}

#[tokio::test]
async fn a_log_file_is_rotated_by_the_host_and_followed_when_others_rename_it() {
    let host = Setup::new()
        .config("[log]\nfile = \"HOME/host.log\"\nmax_size = \"4KiB\"\nkeep = 2\n")
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let (log, first) = (host.home().join("host.log"), host.home().join("host.log.1"));
    host.until("the file to be rotated", async || {
        assert_eq!(host.get("/panic").await.status, 500);
        first.exists().then_some(())
    })
    .await;
    // As `logrotate` does it.
    let renamed = host.home().join("renamed.log");
    host.until("the file to be there again", async || {
        assert_eq!(host.get("/panic").await.status, 500);
        fs::rename(&log, &renamed).ok()
    })
    .await;
    host.signal(Signal::USR1);
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    host.until("lines to go to a new file", async || {
        let text = fs::read_to_string(&log).ok()?;
        text.contains("probe 2.0.0").then_some(())
    })
    .await;
    assert_eq!(host.get("/version").await.text(), "2.0.0");
}

#[tokio::test]
async fn signals_that_mean_nothing_end_nobody() {
    let host = Host::serving(&fixture("hello", "1.0.0")).await;
    let before = host.pid();
    for signal in [
        Signal::USR1,
        Signal::USR2,
        Signal::ALARM,
        Signal::PIPE,
        Signal::VTALARM,
        Signal::PROF,
        Signal::IO,
        Signal::WINCH,
        Signal::POWER,
        Signal::STKFLT,
    ] {
        host.signal(signal);
        host.signal_inner(signal);
        assert_eq!(
            host.get("/").await.text(),
            "hello 1.0.0",
            "after {signal:?}"
        );
    }
    assert_eq!(host.status().await.host.pid, before);
}

#[tokio::test]
async fn a_command_whose_output_is_lost_ends_with_what_happened() {
    let host = Host::serving(&fixture("hello", "1.0.0")).await;
    let refused = host.scratch("refused.so");
    fs::write(&refused, misfit("start-error")).unwrap();
    let deploy = |file: &std::path::Path, stdout: Stdio| {
        Command::new(handover())
            .args(["deploy", "--app", "hello"])
            .arg(file)
            .env("HANDOVER_CONTROL", host.control())
            .stdout(stdout)
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let gone = || pipe().unwrap().1;
    let newest = host.scratch("newest.so");
    fs::write(&newest, hello_as("3.0.0")).unwrap();
    for (file, code, stdout) in [
        (refused.as_path(), 4, Stdio::from(full())),
        (refused.as_path(), 4, gone().into()),
        (&fixture("hello", "2.0.0"), 0, full().into()),
        (&newest, 0, gone().into()),
    ] {
        let mut command = deploy(file, stdout);
        let ended = tokio::task::spawn_blocking(move || command.wait().unwrap());
        assert_eq!(
            ended.await.unwrap().code(),
            Some(code),
            "{}",
            file.display()
        );
    }
    assert_eq!(host.active("hello").await.version, "3.0.0");
}
