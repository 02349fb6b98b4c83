//! Names and places: files in odd states, names that are no text, folders that come and go.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    ffi::OsStr,
    fs,
    io::{Seek, SeekFrom, Write},
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use handover_tests::{
    host::{Host, Setup},
    plugins::{fixture, handover, hello_as, misfit},
};
use rustix::fs::{CWD, FileType, Mode, mknodat};

#[tokio::test]
async fn a_file_that_is_open_for_writing_is_not_taken() {
    let host = Host::serving(&fixture("hello", "1.0.0")).await;
    // As a downloader does it: its whole length first, then the pieces, the one in the middle last.
    let bytes = hello_as("2.0.0");
    let (begin, end) = (bytes.len() / 2, bytes.len() / 2 + 65536);
    let path = host.plugins().join("hello.so");
    let mut file = fs::File::create(&path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    file.write_all(&bytes[..begin]).unwrap();
    file.seek(SeekFrom::Start(end as u64)).unwrap();
    file.write_all(&bytes[end..]).unwrap();
    let told = host
        .event("the wait to be told", |event| event.kind == "waiting")
        .await;
    let me = format!("(process {}) still has it open", std::process::id());
    assert!(told.message.contains(&me), "{}", told.message);
    host.cli(["reload", "hello"])
        .await
        .expect_code(1)
        .expect_words(&["hello.so waits", "open for writing"]);
    assert_eq!(host.get("/").await.text(), "hello 1.0.0");
    assert!(!path.with_extension("so.failed").exists());
    file.seek(SeekFrom::Start(begin as u64)).unwrap();
    file.write_all(&bytes[begin..end]).unwrap();
    drop(file);
    host.live("hello", "2.0.0").await;
    let waits = host.events().await;
    let waits = waits.iter().filter(|event| event.kind == "waiting");
    assert_eq!(waits.count(), 2, "told once, and once to who asked");
}

#[tokio::test]
async fn an_error_of_any_length_is_told_at_once_and_cut() {
    for (habit, config) in [
        ("start-wordy", ""),
        ("live-wordy", ""),
        ("start-wordy", "[app.misfit.check]\nstart = false\n"),
    ] {
        let host = Setup::new().config(config).start().await;
        let said = host.deploy_bytes(&misfit(habit)).await.expect_code(4);
        let said = said
            .expect_words(&["502 Bad Gateway", "more bytes)"])
            .text();
        assert!(said.len() < 32 << 10, "{} bytes", said.len());
        assert!(!said.contains('\x1b'), "{said}");
        let history = host.cli(["history"]).await.expect_code(0).text();
        assert!(history.len() < 32 << 10, "{} bytes", history.len());
        let events = host.cli(["events"]).await.expect_code(0).text();
        assert!(
            !events.lines().any(|line| line.starts_with("<p>")),
            "{events}"
        );
    }
}

#[tokio::test]
async fn a_name_forges_no_line() {
    let host = Host::start().await;
    let forged = "2026-11-25T00:00:00Z active    hello 9.9.9 is live as generation 9 \x1b[31m";
    let name = format!("x\n{forged}.so");
    fs::write(host.plugins().join(&name), "no plugin").unwrap();
    let told = host
        .event("the refusal", |event| event.kind == "rejected")
        .await;
    assert!(told.message.contains("x\\n2026-11-25"), "{}", told.message);
    let events = host.cli(["events"]).await.expect_code(0).stdout;
    let log = host.log().join("\n");
    for shown in [events, log] {
        assert!(!shown.contains('\x1b'), "{shown}");
        assert!(
            !shown
                .lines()
                .any(|line| line.starts_with("2026-11-25T00:00:00Z"))
        );
    }
    // Its answer lies beside it all the same.
    let answer = host.verdict(&name, "failed").await;
    assert!(
        answer.lines().nth(1).unwrap().starts_with("sha256 "),
        "{answer}"
    );
}

#[tokio::test]
async fn a_dropped_file_may_have_any_name() {
    let host = Host::start().await;
    for (number, name) in [
        &b"two words.so"[..],
        b"two\nlines.so",
        b"no text \xff.so",
        "\u{e9}.so".as_bytes(),
    ]
    .into_iter()
    .enumerate()
    {
        let version = format!("1.{number}.0");
        fs::write(host.scratch("next"), hello_as(&version)).unwrap();
        let path = host.plugins().join(OsStr::from_bytes(name));
        fs::rename(host.scratch("next"), &path).unwrap();
        host.live("hello", &version).await;
        let mut answer = path.into_os_string();
        answer.push(".deployed");
        host.until("its answer", async || {
            Path::new(&answer).exists().then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn what_is_no_file_is_told_and_holds_nobody_up() {
    let host = Host::start().await;
    let pipe = host.plugins().join("pipe.so");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
    host.event("the pipe to be told", |event| {
        event.kind == "rejected"
            && event
                .message
                .contains("pipe.so was not taken: it is a pipe")
    })
    .await;
    host.drop_in("hello.so", &hello_as("1.0.0"));
    host.live("hello", "1.0.0").await;
}

/// A program that runs a host with mounts of its own; none where that is not allowed.
fn with_own_mounts(folder: &Path) -> Option<PathBuf> {
    let allowed = Command::new("unshare").args(["--mount", "true"]).status();
    if !allowed.is_ok_and(|status| status.success()) {
        println!("SKIPPED: no mounts of its own for a process of this user");
        return None;
    }
    let program = folder.join("handover");
    let text = format!(
        "#!/bin/sh\nexec unshare --mount --propagation private {} \"$@\"\n",
        handover().display()
    );
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    Some(program)
}

/// A host with mounts of its own, and the folder that its program lies in; none where that is not
/// allowed.
async fn host_with_own_mounts() -> Option<(tempfile::TempDir, Host)> {
    let folder = tempfile::tempdir().unwrap();
    let program = with_own_mounts(folder.path())?;
    let host = Setup::new().program(program).start().await;
    Some((folder, host))
}

/// Runs a command where the mounts are those of `host`.
fn inside(host: &Host, command: &str) -> bool {
    Command::new("nsenter")
        .arg(format!("--mount=/proc/{}/ns/mnt", host.pid()))
        .args(["sh", "-ec", command])
        .status()
        .unwrap()
        .success()
}

#[tokio::test]
async fn a_folder_that_is_mounted_over_and_unmounted_is_watched_again() {
    let Some((_folder, host)) = host_with_own_mounts().await else {
        return;
    };
    let plugins = host.plugins();
    let at = plugins.display();
    host.drop_in("hello.so", &hello_as("1.0.0"));
    host.live("hello", "1.0.0").await;
    for version in ["1.1.0", "1.2.0"] {
        let next = host.scratch(version);
        fs::write(&next, hello_as(version)).unwrap();
        let next = next.display();
        assert!(inside(
            &host,
            &format!("mount -t tmpfs -o mode=0755 none {at}")
        ));
        assert!(inside(
            &host,
            &format!("cp {next} {at}/.next && mv {at}/.next {at}/hello.so")
        ));
        host.live("hello", version).await;
        // The host may be writing its answer there.
        let unmount = format!(
            "n=0; until umount {at}; do n=$((n + 1)); [ $n -lt 100 ] || exit 1; sleep 0.1; done"
        );
        assert!(inside(&host, &unmount));
    }
    host.drop_in("hello.so", &hello_as("1.3.0"));
    host.live("hello", "1.3.0").await;
}

#[tokio::test]
async fn a_drop_folder_may_be_an_overlay() {
    let Some((_folder, host)) = host_with_own_mounts().await else {
        return;
    };
    let plugins = host.plugins();
    let at = plugins.display();
    let lower = host.scratch("lower");
    for layer in ["lower", "upper", "work"] {
        fs::create_dir(host.scratch(layer)).unwrap();
    }
    fs::write(lower.join("hello.so"), hello_as("1.0.0")).unwrap();
    let layers = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        host.scratch("upper").display(),
        host.scratch("work").display()
    );
    if !inside(&host, &format!("mount -t overlay -o {layers} none {at}")) {
        println!("SKIPPED: no overlay can be mounted here");
        return;
    }
    host.live("hello", "1.0.0").await;
    let before = host.active("hello").await.generation;
    // It moves to the upper layer, as another inode with the same bytes.
    assert!(inside(
        &host,
        &format!("chmod 0600 {at}/hello.so; touch {at}/hello.so")
    ));
    let next = host.scratch("2.0.0");
    fs::write(&next, hello_as("2.0.0")).unwrap();
    let next = next.display();
    // Whoever renamed it in still has it open.
    let done = host.scratch("done");
    let mut writer = Command::new("nsenter")
        .arg(format!("--mount=/proc/{}/ns/mnt", host.pid()))
        .args(["sh", "-ec"])
        .arg(format!(
            "cp {next} {at}/.next; exec 3>>{at}/.next; mv {at}/.next {at}/next.so; until test -e {}; do sleep 0.1; done",
            done.display()
        ))
        .spawn()
        .unwrap();
    host.event("the wait to be told", |event| {
        event.kind == "waiting" && event.message.contains("next.so waits")
    })
    .await;
    assert_eq!(host.active("hello").await.generation, before);
    fs::write(done, "").unwrap();
    assert!(writer.wait().unwrap().success());
    host.live("hello", "2.0.0").await;
    assert_eq!(host.active("hello").await.generation, before + 1);
}

#[tokio::test]
async fn a_file_that_is_still_written_is_not_deployed() {
    let host = Host::serving(&fixture("hello", "1.0.0")).await;
    let path = host.scratch("arriving.so");
    let bytes = hello_as("2.0.0");
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(&bytes[..bytes.len() / 2]).unwrap();
    let refused = host
        .cli([
            OsStr::new("deploy"),
            path.as_os_str(),
            OsStr::new("--timeout"),
            OsStr::new("300ms"),
        ])
        .await
        .expect_code(1);
    let me = format!("(process {})", std::process::id());
    refused.expect_words(&["nothing was deployed", &me, "open for writing"]);

    let mut waiting = tokio::process::Command::new(handover())
        .arg("deploy")
        .arg(&path)
        .env("HANDOVER_CONTROL", host.control())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = tokio::io::BufReader::new(waiting.stderr.take().unwrap());
    let mut line = String::new();
    tokio::io::AsyncBufReadExt::read_line(&mut said, &mut line)
        .await
        .unwrap();
    assert!(
        line.starts_with("waiting for ") && line.contains(&me),
        "{line}"
    );
    file.write_all(&bytes[bytes.len() / 2..]).unwrap();
    drop(file);
    assert!(waiting.wait().await.unwrap().success());
    assert_eq!(host.active("hello").await.version, "2.0.0");
    // Nobody is kept from writing afterwards.
    fs::write(&path, "other").unwrap();
}

#[tokio::test]
async fn the_answer_to_a_name_that_is_too_long_for_one_has_a_shorter_name() {
    let host = Host::start().await;
    let answers = |end: &str| {
        let mut names: Vec<_> = fs::read_dir(host.plugins())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(end))
            .collect();
        names.sort();
        names
    };
    let long = |end: &str| format!("{}{end}", "x".repeat(255 - end.len()));
    host.drop_in(&long("-bad.so"), b"no plugin");
    host.until("its answer", async || {
        (answers(".failed").len() == 1).then_some(())
    })
    .await;
    host.drop_in(&long("-good.so"), &hello_as("1.0.0"));
    host.live("hello", "1.0.0").await;
    host.until("its answer", async || {
        (answers(".deployed").len() == 1).then_some(())
    })
    .await;
    let name = answers(".deployed").remove(0);
    assert!(name.starts_with("xxxx") && name.len() <= 255, "{name}");
    // They are known again, and go with their files.
    host.cli(["reload"]).await;
    assert_eq!(
        (answers(".deployed").len(), answers(".failed").len()),
        (1, 1)
    );
    let refusals = host.events().await;
    let refusals = refusals.iter().filter(|event| event.kind == "rejected");
    assert!(refusals.count() <= 2, "once, and once for who asked");
    fs::remove_file(host.plugins().join(long("-bad.so"))).unwrap();
    host.until("its answer to go", async || {
        answers(".failed").is_empty().then_some(())
    })
    .await;
    assert!(
        !host
            .log()
            .iter()
            .any(|line| line.contains("cannot write the answer"))
    );
}
