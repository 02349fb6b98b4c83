//! Surroundings that allow little: each works, or it is said what is missing.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::Command,
};

use handover_tests::{
    host::{Host, Setup},
    plugins::{handover, hello_as},
};
use rustix::process::Signal;

/// Runs a host by way of a shell script, in a folder that is the host's, which ends in `exec PREFIX
/// "$@"`. None where the machine does not allow what `needs` does.
async fn confined(needs: &[&str], script: &str, prefix: &str) -> Option<Host> {
    if let [program, arguments @ ..] = needs {
        let allowed = Command::new(program).args(arguments).status();
        if !allowed.is_ok_and(|status| status.success()) {
            println!("SKIPPED: {needs:?} is not allowed here");
            return None;
        }
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let inner = folder.path().join("inner");
    let handover = handover().display();
    write_script(
        &inner,
        &format!("{script}\nexec {prefix} {handover} \"$@\"\n"),
    );
    let program = folder.path().join("handover");
    let own_mounts = match needs.first() {
        Some(&"unshare") => "unshare --mount --propagation private",
        _ => "",
    };
    write_script(
        &program,
        &format!("exec {own_mounts} {} \"$@\"\n", inner.display()),
    );
    Some(Setup::new().program(program).start().await)
}

fn write_script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\nset -e\n{text}")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

const OWN_MOUNTS: &[&str] = &["unshare", "--mount", "true"];

/// Deploys, drops, crashes and comes back.
async fn lives(host: &mut Host) {
    host.deploy_bytes(&hello_as("1.0.0")).await.expect_code(0);
    host.drop_in("hello.so", &hello_as("2.0.0"));
    host.live("hello", "2.0.0").await;
    host.settled("hello").await;
    host.verdict("hello.so", "deployed").await;
    host.signal_inner(Signal::KILL);
    host.came_back().await;
    host.live("hello", "2.0.0").await;
    assert_eq!(host.get("/").await.status, 200);
    let gone = host.cli(["rollback", "hello"]).await.expect_code(0);
    gone.expect_words(&["1.0.0"]);
}

#[tokio::test]
async fn without_proc_it_is_said_what_is_missing() {
    let allowed = Command::new("unshare").args(["--mount", "true"]).status();
    if !allowed.is_ok_and(|status| status.success()) {
        println!("SKIPPED: no mounts of its own for a process of this user");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for alone in ["", "--no-supervisor"] {
        let run = format!(
            "umount -l /proc; exec {} run --listen 127.0.0.1:0 {alone}",
            handover().display()
        );
        let ended = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-ec", &run])
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert_eq!(ended.status.code(), Some(1));
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(said.contains("mount /proc here"), "{said}");
    }
}

#[tokio::test]
async fn a_user_that_sees_only_its_own_processes_can_run_a_host() {
    let script = "mount -o remount,hidepid=2 /proc || mount -t proc -o hidepid=2 proc /proc\nchown -R 65534 .\nchmod 755 .";
    let prefix = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    if let Some(mut host) = confined(OWN_MOUNTS, script, prefix).await {
        let owner = fs::metadata(host.state()).unwrap().uid();
        assert_eq!(owner, 65534);
        lives(&mut host).await;
    }
}

#[tokio::test]
async fn nothing_is_executed_from_the_state_directory() {
    let script = "mkdir -p state\nchmod 700 state\nmount --bind state state\nmount -o remount,bind,noexec state";
    if let Some(mut host) = confined(OWN_MOUNTS, script, "").await {
        lives(&mut host).await;
    }
}

#[tokio::test]
async fn whatever_the_umask_is_others_cannot_write_what_the_host_made() {
    for (mask, readable) in [("000", true), ("077", false)] {
        let script = format!("umask {mask}\nunset HOME");
        let mut host = confined(&[], &script, "").await.unwrap();
        lives(&mut host).await;
        let mut folders = vec![host.state(), host.plugins()];
        let mut seen = 0;
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                let facts = entry.metadata().unwrap();
                let mode = facts.mode();
                if facts.is_dir() {
                    folders.push(entry.path());
                }
                let others = if readable { 0o022 } else { 0o077 };
                let is_hosts = entry.file_name() != "hello.so"
                    // What is stored is read-only, and others do not get that far.
                    && !entry.path().starts_with(host.state().join("artifacts"));
                assert!(
                    !is_hosts || mode & others == 0,
                    "{} {mode:o}",
                    entry.path().display()
                );
                seen += 1;
            }
        }
        assert!(seen > 5);
    }
}

/// `PR_SET_MDWE` and `PR_SET_NO_NEW_PRIVS`, which last over `exec`.
const NO_NEW_CODE: &str = r"
#include <sys/prctl.h>
#include <unistd.h>

int main(int count, char **arguments) {
    if (prctl(65, 1, 0, 0, 0) != 0 || prctl(38, 1, 0, 0, 0) != 0) return 77;
    if (count == 1) return 0;
    execv(arguments[1], arguments + 1);
    return 1;
}
";

/// A program that was compiled from `text`, and the folder that it goes with.
fn compiled(text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (
        folder.path().join("confine.c"),
        folder.path().join("confine"),
    );
    fs::write(&source, text).unwrap();
    let built = Command::new("cc")
        .arg("-o")
        .args([&program, &source])
        .status();
    assert!(built.unwrap().success());
    let program = program.to_str().unwrap().to_owned();
    (folder, program)
}

#[tokio::test]
async fn written_memory_becomes_no_code() {
    let (_folder, program) = compiled(NO_NEW_CODE);
    if let Some(mut host) = confined(&[&program], "", &program).await {
        lives(&mut host).await;
    }
}

/// Denies `prlimit64`, `getrlimit` and `setrlimit`, as some sandboxes do.
const NO_LIMITS: &str = r"
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DENY(number) \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM)

int main(int count, char **arguments) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        DENY(SYS_prlimit64),
#ifdef SYS_getrlimit
        DENY(SYS_getrlimit),
        DENY(SYS_setrlimit),
#endif
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof(filter) / sizeof(*filter), filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) return 77;
    if (count == 1) return 0;
    execv(arguments[1], arguments + 1);
    return 1;
}
";

#[tokio::test]
async fn a_system_that_tells_no_limits_is_lived_with() {
    let (_folder, program) = compiled(NO_LIMITS);
    if let Some(mut host) = confined(&[&program], "", &program).await {
        host.logged("what is denied to be told", |line| {
            line.contains("the limit of open files stays what it is")
        })
        .await;
        lives(&mut host).await;
    }
}
