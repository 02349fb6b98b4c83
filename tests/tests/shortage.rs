//! The machine is short of something: no fault of an artifact, and over in a moment. An app that
//! ate the memory is to blame for that.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use handover_tests::{
    client::Http1,
    elf,
    host::{Host, Setup},
    plugins::{fixture, misfit},
};
use serde_json::Value;

async fn outcomes(host: &Host, app: &str) -> Vec<String> {
    let history = host
        .cli(["history", app, "--json"])
        .await
        .expect_code(0)
        .json();
    let entries = history["history"].as_array().unwrap().iter();
    let outcome = |entry: &Value| entry["outcome"].as_str().unwrap().to_owned();
    entries.map(outcome).collect()
}

#[tokio::test]
async fn what_a_constructor_is_short_of_is_a_failure_of_the_machine_and_a_dropped_file_waits_for_it()
 {
    let host = Setup::new()
        .config("[app.misfit.config]\nwhen = \"HOME/when\"\n")
        .start()
        .await;
    fs::write(host.home().join("when"), "").unwrap();
    // In preflight, and in the host.
    for habit in ["short", "live-short"] {
        host.deploy_bytes(&misfit(habit))
            .await
            .expect_code(1)
            .expect_words(&["Too many open files"]);
    }
    assert_eq!(outcomes(&host, "misfit").await, ["failed", "failed"]);

    host.drop_in("misfit/misfit.so", &misfit("short"));
    host.until("it to be tried", async || {
        (outcomes(&host, "misfit").await.len() > 2).then_some(())
    })
    .await;
    let failed = host.plugins().join("misfit/misfit.so.failed");
    assert!(!failed.exists(), "it is tried again");
    fs::remove_file(host.home().join("when")).unwrap();
    host.live("misfit", "1.0.0").await;
    host.verdict("misfit/misfit.so", "deployed").await;
    let outcomes = outcomes(&host, "misfit").await;
    assert!(!outcomes.contains(&"rejected".to_owned()), "{outcomes:?}");
}

/// A control group with a limit of memory, if this machine lets us have one.
struct Group(PathBuf);

impl Group {
    fn new(name: &str, limit: u64) -> io::Result<Self> {
        let name = format!("handover-{name}-{}", std::process::id());
        let (first, second) = (
            Path::new("/sys/fs/cgroup/memory").join(&name),
            Path::new("/sys/fs/cgroup").join(&name),
        );
        let (folder, file) = if first
            .parent()
            .unwrap()
            .join("memory.limit_in_bytes")
            .exists()
        {
            (first, "memory.limit_in_bytes")
        } else {
            (second, "memory.max")
        };
        fs::create_dir(&folder)?;
        let group = Self(folder);
        fs::write(group.0.join(file), limit.to_string())?;
        // Without swap memory runs out where it is to; where there is none this is not there
        // either.
        let _ = fs::write(group.0.join("memory.swap.max"), "0");
        Ok(group)
    }

    fn take_in(&self, host: &Host) -> io::Result<()> {
        for pid in [host.outer_pid(), host.pid()] {
            fs::write(self.0.join("cgroup.procs"), pid.to_string())?;
        }
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Once the processes in it have ended, which is soon.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// A host in a group with `mebibytes` of memory; none where that cannot be had.
async fn limited(name: &str, mebibytes: u64) -> Option<(Group, Host)> {
    let made = Group::new(name, mebibytes << 20);
    let host = Host::start().await;
    match made.and_then(|group| group.take_in(&host).map(|()| group)) {
        Ok(group) => Some((group, host)),
        Err(error) => {
            eprintln!("skipped: no control group with a limit of memory can be had: {error}");
            None
        }
    }
}

/// A `misfit` that takes memory until there is none.
fn eater(habit: &str, version: &str) -> Vec<u8> {
    let mut bytes = misfit(habit);
    elf::set_version(&mut bytes, version);
    bytes
}

#[tokio::test]
async fn where_memory_runs_out_the_preflight_child_ends_and_nobody_notices() {
    let Some((_group, host)) = limited("preflight", 400).await else {
        return;
    };
    host.deploy_bytes(&eater("none", "1.0.0"))
        .await
        .expect_code(0);
    let pid = host.pid();
    host.deploy_bytes(&eater("start-eat", "2.0.0"))
        .await
        .expect_code(4)
        .expect_words(&["SIGKILL", "memory"]);
    assert_eq!(host.pid(), pid);
    assert_eq!(host.get("/").await.text(), "misfit: none");
}

#[tokio::test]
async fn an_app_that_eats_the_memory_until_the_kernel_kills_the_host_is_to_blame_for_it() {
    let Some((_group, mut host)) = limited("eater", 400).await else {
        return;
    };
    host.deploy(&fixture("hello", "1.0.0")).await.expect_code(0);
    host.deploy(&fixture("hello", "2.0.0")).await.expect_code(0);
    for version in ["1.0.0", "2.0.0"] {
        host.deploy_bytes(&eater("eater", version))
            .await
            .expect_code(0);
    }
    let address = host.address;
    let eats = async { Http1::connect(address).await?.get("/misfit/eat").await };
    eats.await.unwrap_err();
    host.came_back().await;
    host.live("misfit", "1.0.0").await;
    host.live("hello", "2.0.0").await;
    host.event("the rollback", |event| {
        event.kind == "rolled_back"
            && event.message.contains("out of memory")
            && event.message.contains("misfit 2 (2.0.0) grew from")
    })
    .await;
}
