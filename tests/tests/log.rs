//! Whoever reads the log may stop, leave, or have no room: a line is lost then, and nothing else.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, PipeReader, PipeWriter, Read, Write, pipe},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{OpenOptionsExt, PermissionsExt},
            net::UnixDatagram,
        },
    },
    path::PathBuf,
    process::{Command, Stdio},
};

use handover_tests::{
    host::{Host, Setup},
    plugins::{fixture, handover, hello_as, misfit},
};
use rustix::{
    io::ioctl_fionbio,
    process::Signal,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};

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

/// A terminal: who reads it, and what a program has open of it.
fn terminal() -> (OwnedFd, File) {
    let reader = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&reader).unwrap();
    unlockpt(&reader).unwrap();
    let name = ptsname(&reader, Vec::new()).unwrap();
    let mut open = OpenOptions::new();
    open.read(true).write(true);
    open.custom_flags(rustix::fs::OFlags::NOCTTY.bits().cast_signed());
    let program = open.open(name.to_str().unwrap()).unwrap();
    (reader, program)
}

/// A script that runs the host as its last act, and the folder that it goes with.
fn script(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("handover");
    let text = text.replace("HOST", handover().to_str().unwrap());
    fs::write(&path, format!("#!/bin/sh\nset -e\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    (folder, path)
}

#[tokio::test]
async fn a_log_on_a_terminal_that_goes_away_ends_nobody() {
    for alone in [false, true] {
        let (reader, program) = terminal();
        let setup = Setup::new().stderr(program);
        let setup = if alone { setup.alone() } else { setup };
        let host = setup.start().await;
        // A write gives EIO from now on.
        drop(reader);
        goes_on(host).await;
    }
}

#[tokio::test]
async fn a_terminal_that_stops_its_background_stops_no_host() {
    // The terminal is that of the session, whose foreground the supervisor is; the host has a group
    // of its own.
    let (_folder, program) =
        script("exec setsid --ctty sh -c 'stty tostop; exec HOST \"$@\"' sh \"$@\" <&2");
    let (reader, terminal) = terminal();
    let reading = std::thread::spawn(move || {
        let mut reader = File::from(reader);
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = reader.read(&mut buffer) {
            text.extend_from_slice(&buffer[..length]);
        }
        String::from_utf8_lossy(&text).into_owned()
    });
    let host = Setup::new().program(program).stderr(terminal).start().await;
    goes_on(host).await;
    let text = reading.join().unwrap();
    assert!(text.contains("panicked: "), "it is the host's log: {text}");
}

#[tokio::test]
async fn a_host_without_any_output_serves() {
    for closed in ["2>&-", ">&-", "<&- >&- 2>&-"] {
        let (_folder, program) = script(&format!("exec HOST \"$@\" {closed}"));
        goes_on(Setup::new().program(program).start().await).await;
    }
}

#[tokio::test]
async fn under_systemd_the_journal_gets_entries_with_fields() {
    let may = Command::new("unshare").args(["--mount", "true"]).status();
    if !may.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no mounts of its own for a process of this user");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let journal = UnixDatagram::bind(folder.path().join("socket")).unwrap();
    journal
        .set_read_timeout(Some(handover_tests::host::DEADLINE))
        .unwrap();
    // Where systemd has it, and as it says what standard error is.
    let text = format!(
        "mount -t tmpfs none /run\nmkdir -p /run/systemd/journal\n\
         mount --bind {} /run/systemd/journal\n\
         JOURNAL_STREAM=$(stat -Lc %d:%i /dev/stderr)\nexport JOURNAL_STREAM\nexec HOST \"$@\"",
        folder.path().display()
    );
    let (inner_folder, inner) = script(&text);
    let (_folder, program) = script(&format!(
        "exec unshare --mount --propagation private {} \"$@\"",
        inner.display()
    ));
    let host = Setup::new().program(program).start().await;
    host.deploy(&fixture("hello", "1.0.0")).await.expect_code(0);
    let mut buffer = vec![0; 1 << 16];
    let entry = loop {
        let length = journal.recv(&mut buffer).expect("an entry of the deploy");
        let entry = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if entry.contains("hello 1.0.0") && entry.contains("is live") {
            break entry;
        }
    };
    for field in ["PRIORITY=6\n", "HANDOVER_APP=hello\n", "MESSAGE="] {
        assert!(entry.contains(field), "{field} in {entry}");
    }
    drop(inner_folder);
}

#[tokio::test]
async fn a_log_file_is_rotated_when_it_is_old() {
    let host = Setup::new()
        .config("[log]\nfile = \"HOME/host.log\"\nmax_age = \"1s\"\nkeep = 1\n")
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let first = host.home().join("host.log.1");
    host.until("the file to be rotated", async || {
        assert_eq!(host.get("/panic").await.status, 500);
        first.exists().then_some(())
    })
    .await;
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
