//! The clock of the machine jumps, in both directions: who is to blame and what came last does not
//! depend on it.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use handover_tests::{
    client::Http1,
    host::{Host, Setup},
    plugins::fixture,
};
use rustix::process::Signal;

/// Takes precedence over libc's: the time of day is shifted by as many seconds as the file says
/// that `CLOCK_SHIFT` names, and so is the time since the boot by the second number in it, which is
/// what a machine sees that was asleep for so long.
const SHIM: &str = r#"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    int answer = syscall(SYS_clock_gettime, clock, now);
    const char *path = getenv("CLOCK_SHIFT");
    if (answer == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_BOOTTIME) && path != NULL) {
        char text[64] = {0}, *second = text;
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if (file >= 0) {
            if (read(file, text, sizeof text - 1) > 0) {
                long long shift = strtoll(text, &second, 10);
                now->tv_sec += clock == CLOCK_REALTIME ? shift : strtoll(second, NULL, 10);
            }
            close(file);
        }
    }
    return answer;
}
"#;

const DAYS: i64 = 86_400;

/// The clock of one host.
struct Clock {
    folder: tempfile::TempDir,
}

impl Clock {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Self { folder };
        fs::write(clock.at("shim.c"), SHIM).unwrap();
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([clock.at("shim.so"), clock.at("shim.c")])
            .status()
            .unwrap();
        assert!(built.success());
        clock.shift(0);
        clock
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Sets it so many seconds ahead of what is true.
    fn shift(&self, seconds: i64) {
        self.set(seconds, 0);
    }

    /// The machine was asleep for so many seconds.
    fn sleep(&self, seconds: i64) {
        self.set(seconds, seconds);
    }

    fn set(&self, shift: i64, asleep: i64) {
        fs::write(self.at("next"), format!("{shift} {asleep}")).unwrap();
        fs::rename(self.at("next"), self.at("shift")).unwrap();
    }

    fn setup(&self, config: &str) -> Setup {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        Setup::new()
            .config(config)
            .env("LD_PRELOAD", &text(self.at("shim.so")))
            .env("CLOCK_SHIFT", &text(self.at("shift")))
    }
}

const APPS: &str = "[server]\nversion_header = true\nmax_crashes = 2\n\
    [app.a]\nbake = \"none\"\nroutes = [\"/a\"]\n[app.b]\nbake = \"none\"\nroutes = [\"/\"]\n";

async fn deploy(host: &Host, app: &str, path: &Path) {
    let path = path.to_str().unwrap();
    host.cli(["deploy", "--app", app, path])
        .await
        .expect_code(0);
}

/// Sends a request that ends the process.
async fn abort(host: &mut Host, path: &str) {
    if let Ok(mut http) = Http1::connect(host.address).await {
        let _ = http.get(path).await; // nobody is left to answer
    }
    host.came_back().await;
}

#[tokio::test]
async fn whatever_the_clock_does_the_version_that_came_last_goes_back() {
    let (v1, v2) = (fixture("probe", "1.0.0"), fixture("probe", "2.0.0"));
    for ahead in [2 * DAYS, -2 * DAYS, 3650 * DAYS] {
        let clock = Clock::new();
        let mut host = clock.setup(APPS).start().await;
        deploy(&host, "a", &v1).await;
        clock.shift(ahead);
        deploy(&host, "a", &v2).await;
        clock.shift(0);
        deploy(&host, "b", &v1).await;
        deploy(&host, "b", &v2).await;
        let order = async |host: &Host| {
            let history = host.ask("GET", "/v1/history").await.unwrap().json();
            let entries = history["history"].as_array().unwrap().clone();
            let shown = entries.iter().map(|entry| {
                format!(
                    "{} {} {}",
                    entry["app"].as_str().unwrap(),
                    entry["version"].as_str().unwrap(),
                    entry["cause"].as_str().unwrap()
                )
            });
            shown.collect::<Vec<_>>()
        };
        let deployed = [
            "a 1.0.0 deploy",
            "a 2.0.0 deploy",
            "b 1.0.0 deploy",
            "b 2.0.0 deploy",
        ];
        assert_eq!(order(&host).await, deployed);
        // Between the crashes it jumps too: they are close to each other all the same.
        abort(&mut host, "/abort").await;
        host.live("b", "2.0.0").await;
        clock.shift(-ahead);
        abort(&mut host, "/abort").await;
        host.live("b", "1.0.0").await;
        host.live("a", "2.0.0").await;
        let told = host
            .event("the rollback", |event| event.kind == "rolled_back")
            .await;
        assert_eq!(told.app.as_deref(), Some("b"));
        let after = order(&host).await;
        assert_eq!(after[..4], deployed);
        // The apps come up side by side.
        let last = after.iter().rfind(|entry| entry.starts_with('b'));
        assert_eq!(last.unwrap(), "b 1.0.0 crash", "{after:?}");
    }
}

#[tokio::test]
async fn a_deadline_is_kept_when_the_clock_jumps() {
    let config = "[app.probe]\ndrain_deadline = \"2s\"\nbake = \"3s\"\n";
    let clock = Clock::new();
    let host = clock.setup(config).start().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    for (path, version, other, shift) in [
        ("/slow?ms=600000", "2.0.0", "1.0.0", -3 * DAYS),
        ("/slow?ms=600001", "1.0.0", "2.0.0", 3 * DAYS),
    ] {
        let mut http = Http1::connect(host.address).await.unwrap();
        http.send_head("GET", path, &[]).await.unwrap();
        host.app_when("probe", "the request to be in flight", |app| {
            app.generations
                .iter()
                .any(|generation| generation.version == other && generation.in_flight == 1)
        })
        .await;
        clock.shift(shift);
        host.deploy(&fixture("probe", version)).await.expect_code(7);
        assert_eq!(http.answer("GET").await.unwrap().status, 503);
    }
    host.event("the probation to end", |event| event.kind == "proven")
        .await;
    let status = host.status().await;
    assert!(status.host.uptime_ms < 600_000, "{}", status.host.uptime_ms);
}

#[tokio::test]
async fn what_has_its_time_in_the_state_keeps_it_whatever_the_clock_does() {
    let clock = Clock::new();
    let mut host = clock.setup("").start().await;
    host.deploy(&fixture("state", "1.0.0")).await.expect_code(0);
    let put = async |host: &Host, path: &str| {
        let mut http = Http1::connect(host.address).await.unwrap();
        let answer = http.request("PUT", path, &[], Some(b"x")).await.unwrap();
        assert_eq!(answer.status, 200, "{path}");
    };
    let has = async |host: &Host, path: &str| host.get(path).await.status == 200;
    put(&host, "/kv/hour?ttl_ms=3600000").await;
    for ahead in [3650 * DAYS, -3650 * DAYS] {
        clock.shift(ahead);
        assert!(has(&host, "/kv/hour").await, "after {ahead} s");
        put(&host, "/kv/brief?ttl_ms=300").await;
        host.until("what has less time to be gone", async || {
            (!has(&host, "/kv/brief").await).then_some(())
        })
        .await;
        // What is written later is swept with what has expired.
        put(&host, "/kv/other").await;
        // The next process of this boot has the same time.
        host.signal_inner(Signal::KILL);
        host.came_back().await;
        host.live("state", "1.0.0").await;
        assert!(
            has(&host, "/kv/hour").await,
            "after {ahead} s and a restart"
        );
    }
    // Time passes for it while the machine sleeps.
    clock.sleep(2 * DAYS);
    assert!(!has(&host, "/kv/hour").await);
    assert!(has(&host, "/kv/other").await);
}

#[tokio::test]
async fn a_machine_that_was_asleep_ends_nothing_early_and_blames_nobody_for_what_is_long_ago() {
    let clock = Clock::new();
    let config = "[server]\nversion_header = true\nmax_crashes = 2\n\
                  [app.probe]\ndrain_deadline = \"300s\"\nbake = \"none\"\n";
    let mut host = clock.setup(config).start().await;
    for version in ["1.0.0", "2.0.0"] {
        host.deploy(&fixture("probe", version)).await.expect_code(0);
    }
    // A request is under way, and a generation drains, while it sleeps.
    let mut slow = Http1::connect(host.address).await.unwrap();
    slow.send_head("GET", "/slow?ms=2000", &[]).await.unwrap();
    host.app_when("probe", "the request to be in flight", |app| {
        app.generations
            .iter()
            .any(|generation| generation.in_flight == 1)
    })
    .await;
    let bytes = fs::read(fixture("probe", "1.0.0")).unwrap();
    let deploying = host.deploy_bytes(&bytes);
    let sleeping = async {
        host.app_when("probe", "the old one to drain", |app| {
            app.generations
                .iter()
                .any(|generation| generation.state == "draining")
        })
        .await;
        clock.sleep(3 * DAYS);
    };
    let (deployed, ()) = tokio::join!(deploying, sleeping);
    deployed.expect_code(0);
    assert_eq!(slow.answer("GET").await.unwrap().status, 200);
    // Two crashes, with a night between them.
    abort(&mut host, "/abort").await;
    host.live("probe", "1.0.0").await;
    clock.sleep(4 * DAYS);
    abort(&mut host, "/abort").await;
    host.live("probe", "1.0.0").await;
    // And one more at once, which is the second of its minute.
    abort(&mut host, "/abort").await;
    host.live("probe", "2.0.0").await;
}

#[tokio::test]
async fn the_longest_times_that_can_be_set_do_no_harm() {
    let host = Setup::new()
        .config(
            "[server]\nversion_header = true\nstall_after = \"3650days\"\nshutdown_deadline = \"3650days\"\n\
             crash_window = \"3650days\"\n[log]\nmax_age = \"3650days\"\n[app.probe]\ndrain_deadline = \"3650days\"\n\
             job_deadline = \"3650days\"\nbake = \"3650days\"\nrequest_timeout = \"3650days\"\nmax_concurrent = 1000000000\n\
             queue = 1000000000\nkeep_artifacts = 1000000000\n[app.probe.check]\ndeadline = \"3650days\"\n",
        )
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    let mut http = Http1::connect(host.address).await.unwrap();
    http.send_head("GET", "/slow?ms=300", &[]).await.unwrap();
    let path = fixture("probe", "2.0.0");
    let path = path.to_str().unwrap();
    host.cli(["deploy", path, "--timeout", "3650days"])
        .await
        .expect_code(0);
    assert_eq!(http.answer("GET").await.unwrap().status, 200);
    host.settled("probe").await;
    host.cli(["deploy", path, "--timeout", "400000000000years"])
        .await
        .expect_code(2)
        .expect_words(&["not a length of time"]);
    let mut host = host;
    host.signal(Signal::TERM);
    assert_eq!(host.ended().await, Some(0));
    let panics = host
        .log()
        .into_iter()
        .filter(|line| line.contains("panicked"));
    assert_eq!(panics.collect::<Vec<_>>(), [""; 0]);
}
