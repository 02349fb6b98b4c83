//! Signals belong to the host: each generation has dispositions of its own, and none outlives it.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
};

use handover_tests::{
    host::{Event, Host, Setup},
    plugins::fixture,
};
use rustix::process::{Pid, Signal, kill_process};

const USR1: i32 = 10;
const SEGV: i32 = 11;
const USR2: i32 = 12;
const PIPE: i32 = 13;
const ALRM: i32 = 14;
const TERM: i32 = 15;
const CHLD: i32 = 17;
const PROF: i32 = 27;
/// One of those that C programs choose for themselves.
const REAL_TIME: i32 = 40;

/// The apps `app`, at `/`, and `other`, at `/other`.
const TWO_APPS: &str = "[app.app]\nroutes = [\"/\"]\n[app.other]\nroutes = [\"/other\"]\n";

/// A host for the apps `app` and `other`.
async fn host() -> Host {
    Setup::new().config(TWO_APPS).start().await
}

async fn deploy(host: &Host, app: &str, version: &str) {
    let file = fixture("signals", version);
    let arguments = ["deploy", "--app", app, file.to_str().unwrap()];
    host.cli(arguments).await.expect_code(0);
}

/// What an app answers when it is told to do something, which it can do.
async fn does(host: &Host, what: &str) -> String {
    let app = what.strip_prefix("other/");
    let (prefix, what) = app.map_or(("", what), |what| ("/other", what));
    let answer = host.get(&format!("{prefix}/do/{what}")).await;
    assert_eq!(answer.status, 200, "{what}: {}", answer.text());
    answer.text()
}

async fn heard(host: &Host, app: &str, signal: i32) -> i32 {
    let answer = does(host, &format!("{app}heard?number={signal}")).await;
    answer.parse().unwrap()
}

/// Sends a signal to the process that serves, of any number.
fn send(host: &Host, signal: i32) {
    let sent = std::process::Command::new("kill")
        .args([format!("-{signal}"), host.pid().to_string()])
        .status();
    assert!(sent.unwrap().success());
}

/// Sends a signal until the app has heard it: one that was sent is not one that was delivered.
async fn send_until_heard(host: &Host, app: &str, signal: i32) {
    let before = heard(host, app, signal).await;
    send(host, signal);
    host.until(&format!("signal {signal} to be heard"), async || {
        (heard(host, app, signal).await > before).then_some(())
    })
    .await;
}

/// The lines of `/proc/PID/status` that say what the process does on signals.
fn dispositions(host: &Host) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{}/status", host.pid())).unwrap();
    let lines = status.lines().filter(|line| line.starts_with("SigIgn"));
    lines.map(ToOwned::to_owned).collect()
}

/// Replaces generation 1 of `app` and waits until it is unloaded.
async fn replace(host: &Host) -> Event {
    deploy(host, "app", "2.0.0").await;
    let end = end(host).await;
    assert_eq!(end.kind, "unloaded", "{}", end.message);
    end
}

async fn end(host: &Host) -> Event {
    host.event("the end of generation 1", |event| {
        event.app.as_deref() == Some("app")
            && event.generation == Some(1)
            && ["unloaded", "retained"].contains(&event.kind.as_str())
    })
    .await
}

#[tokio::test]
async fn no_generation_is_handed_the_handler_of_another_by_whatever_way_it_asks() {
    for way in [
        "sigaction",
        "info",
        "query",
        "signal",
        "bsd_signal",
        "ssignal",
        "sysv_signal",
        "sigset",
    ] {
        let host = host().await;
        let (pid, until) = (host.pid(), host.scratch("until"));
        deploy(&host, "app", "1.0.0").await;
        let listen = format!("listen?way={way}&number={USR1}");
        assert_eq!(does(&host, &listen).await, "default", "{way}");
        assert_eq!(does(&host, &listen).await, "own", "{way}");
        let wait = format!("/wait?value={}", until.display());
        let waits = host.get(&wait);
        let next = async {
            // Generation 1 has a request, so it is mapped while the next one asks.
            let has_it = |generation: &handover_tests::host::Generation| {
                generation.generation == 1 && generation.in_flight > 0
            };
            host.app_when("app", "the request to be there", |app| {
                app.generations.iter().any(has_it)
            })
            .await;
            let file = fixture("signals", "2.0.0");
            let arguments = ["deploy", "--detach", "--app", "app", file.to_str().unwrap()];
            host.cli(arguments).await.expect_code(0);
            host.until("2.0.0 to be live", async || {
                let version = host.get("/version").await;
                (version.text() == "2.0.0").then_some(())
            })
            .await;
            let ask = format!("ask?number={USR1}");
            assert_eq!(does(&host, &ask).await, "default", "{way}");
            assert_eq!(does(&host, &listen).await, "default", "{way}");
            fs::write(&until, "").unwrap();
        };
        let (waited, ()) = tokio::join!(waits, next);
        assert_eq!(waited.text(), "waited");
        assert_eq!(end(&host).await.kind, "unloaded");
        send_until_heard(&host, "", USR1).await;
        assert_eq!(host.status().await.host.pid, pid, "{way}");
    }
}

#[tokio::test]
async fn two_apps_hear_one_signal_and_the_one_that_stays_goes_on_hearing_it() {
    let host = host().await;
    let pid = host.pid();
    deploy(&host, "app", "1.0.0").await;
    deploy(&host, "other", "1.0.0").await;
    for app in ["", "other/"] {
        does(&host, &format!("{app}listen?way=query&number={USR1}")).await;
        does(&host, &format!("{app}stream?number={USR1}")).await;
    }
    // `stream` is tokio's, which goes on to what its own library had before.
    let both = async |app: &str| {
        let streamed = does(&host, &format!("{app}streamed")).await;
        (heard(&host, app, USR1).await > 0 && streamed != "0").then_some(())
    };
    send(&host, USR1);
    host.until("the first app to hear it", async || both("").await)
        .await;
    host.until("the second app to hear it", async || both("other/").await)
        .await;
    replace(&host).await;
    send_until_heard(&host, "other/", USR1).await;
    assert_eq!(heard(&host, "", USR1).await, 0, "nobody listens there");
    assert_eq!(host.status().await.host.pid, pid);
}

#[tokio::test]
async fn a_signal_that_nobody_listens_to_any_more_does_not_kill() {
    let host = host().await;
    deploy(&host, "app", "1.0.0").await;
    let signals = [USR1, USR2, ALRM, PROF, REAL_TIME];
    for (way, signal) in ["sigaction", "once", "signal", "sigset", "ignore"]
        .into_iter()
        .zip(signals)
    {
        does(&host, &format!("listen?way={way}&number={signal}")).await;
    }
    replace(&host).await;
    for signal in signals {
        send(&host, signal);
    }
    // A signal to the process is taken before the next system call of some thread returns; the
    // answers are several.
    for _ in 0..10 {
        assert_eq!(host.get("/version").await.text(), "2.0.0");
    }
    assert_eq!(host.status().await.host.pid, host.pid());
}

#[tokio::test]
async fn a_handler_for_one_time_hears_one_signal() {
    let host = host().await;
    deploy(&host, "app", "1.0.0").await;
    does(&host, &format!("listen?way=once&number={USR1}")).await;
    does(&host, &format!("listen?way=sigaction&number={USR2}")).await;
    send_until_heard(&host, "", USR1).await;
    assert_eq!(does(&host, &format!("ask?number={USR1}")).await, "default");
    send(&host, USR1);
    send_until_heard(&host, "", USR2).await;
    assert_eq!(heard(&host, "", USR1).await, 1);
}

#[tokio::test]
async fn a_timer_ends_with_the_generation_that_armed_it_and_with_no_other() {
    let host = host().await;
    deploy(&host, "app", "1.0.0").await;
    deploy(&host, "other", "1.0.0").await;
    does(&host, &format!("listen?way=sigaction&number={ALRM}")).await;
    assert_eq!(does(&host, "arm?number=20").await, "0");
    host.until("the timer to be heard", async || {
        (heard(&host, "", ALRM).await > 1).then_some(())
    })
    .await;
    // It is for the app that armed it.
    does(&host, &format!("other/listen?way=sigaction&number={ALRM}")).await;
    let before = heard(&host, "", ALRM).await;
    host.until("the timer to be heard again", async || {
        (heard(&host, "", ALRM).await > before + 1).then_some(())
    })
    .await;
    assert_eq!(heard(&host, "other/", ALRM).await, 0);
    replace(&host).await;
    assert_eq!(does(&host, "is-armed").await, "0");

    assert_eq!(does(&host, "arm?number=20").await, "0");
    assert_eq!(does(&host, "other/arm?number=20").await, "0");
    deploy(&host, "app", "1.0.0").await;
    host.settled("app").await;
    assert_eq!(does(&host, "is-armed").await, "1");
    let before = heard(&host, "other/", ALRM).await;
    host.until("the other timer to be heard", async || {
        (heard(&host, "other/", ALRM).await > before + 1).then_some(())
    })
    .await;
    assert_eq!(host.status().await.host.pid, host.pid());
}

#[tokio::test]
async fn what_a_plugin_ignores_or_resets_is_its_own_affair() {
    let mut host = Setup::new().config(TWO_APPS).alone().start().await;
    deploy(&host, "app", "1.0.0").await;
    let before = dispositions(&host);
    let changes = [
        ("default", PIPE),
        ("ignore", CHLD),
        ("ignore", TERM),
        ("sigignore", USR2),
    ];
    for (way, signal) in changes {
        does(&host, &format!("listen?way={way}&number={signal}")).await;
        let expected = if way == "default" { way } else { "ignored" };
        let asked = does(&host, &format!("ask?number={signal}")).await;
        assert_eq!(asked, expected, "signal {signal}");
    }
    assert_eq!(dispositions(&host), before);
    // The host waits for the child of its preflight, and hears its own end.
    deploy(&host, "app", "2.0.0").await;
    deploy(&host, "app", "1.0.0").await;
    send(&host, TERM);
    assert_eq!(host.ended().await, Some(0));
}

#[tokio::test]
async fn children_are_waited_for_in_apps_and_generations_at_once() {
    let host = host().await;
    let pid = host.pid();
    deploy(&host, "app", "1.0.0").await;
    deploy(&host, "other", "1.0.0").await;
    for version in ["2.0.0", "1.0.0", "2.0.0"] {
        // Both at once, and with the children of the host's own preflight.
        let run = async |app: &str| {
            for _ in 0..5 {
                let ended = does(&host, &format!("{app}child")).await;
                assert_eq!(ended, "Some(0) Some(3)");
            }
        };
        let chld = format!("stream?number={CHLD}");
        does(&host, &chld).await;
        tokio::join!(run(""), run("other/"), deploy(&host, "app", version));
        run("").await;
    }
    host.settled("app").await;
    assert_eq!(host.status().await.host.pid, pid);
}

#[tokio::test]
async fn a_child_does_not_inherit_what_the_host_ignores() {
    let host = host().await;
    deploy(&host, "app", "1.0.0").await;
    let ignored = does(&host, "ignored-by-child").await;
    let ignored = u64::from_str_radix(&ignored, 16).unwrap();
    assert_eq!(ignored & 1 << (PIPE - 1), 0, "{ignored:x}");
}

#[tokio::test]
async fn a_signal_to_a_thread_is_heard_by_the_library_that_the_thread_is_of() {
    let host = host().await;
    deploy(&host, "app", "1.0.0").await;
    deploy(&host, "other", "1.0.0").await;
    for app in ["", "other/"] {
        does(&host, &format!("{app}listen?way=info&number={USR2}")).await;
    }
    assert_eq!(
        does(&host, &format!("tell-thread?number={USR2}")).await,
        "0"
    );
    assert_eq!(heard(&host, "", USR2).await, 1);
    assert_eq!(heard(&host, "other/", USR2).await, 0);
}

#[tokio::test]
async fn a_fault_is_for_the_code_that_ran_into_it() {
    let mut host = host().await;
    deploy(&host, "app", "1.0.0").await;
    deploy(&host, "other", "1.0.0").await;
    for app in ["", "other/"] {
        assert_eq!(does(&host, &format!("{app}listen-to-faults")).await, "0");
    }
    assert_eq!(does(&host, "fault").await, "7");
    assert_eq!(heard(&host, "", SEGV).await, 1);
    assert_eq!(heard(&host, "other/", SEGV).await, 0);

    // The next one does not listen: the process ends by it, and the handler of the other app, which
    // would say 99, is not asked.
    replace(&host).await;
    let crashes = async {
        let connection = handover_tests::client::Http1::connect(host.address).await;
        // The connection ends without an answer.
        let _ = connection.unwrap().get("/do/crash").await;
    };
    crashes.await;
    host.came_back().await;
    host.logged("the end of the host", |line| {
        line.contains("the host crashed: SIGSEGV")
    })
    .await;
}

#[tokio::test]
async fn a_thread_that_lives_on_its_faults_is_not_left_without_a_handler() {
    let host = host().await;
    let pid = host.pid();
    deploy(&host, "app", "1.0.0").await;
    let until = host.scratch("until");
    assert_eq!(does(&host, "listen-to-faults").await, "0");
    let fault_on = format!("fault-on?value={}", until.display());
    assert_eq!(does(&host, &fault_on).await, "0");
    deploy(&host, "app", "2.0.0").await;
    assert_eq!(end(&host).await.kind, "retained");
    // It has faulted ever since.
    assert_eq!(host.get("/version").await.text(), "2.0.0");
    assert_eq!(host.mapped_plugins(), 2);
    fs::write(&until, "").unwrap();
    host.settled("app").await;
    assert_eq!(host.mapped_plugins(), 1);
    assert_eq!(host.status().await.host.pid, pid);
}

#[tokio::test]
async fn a_handler_that_runs_keeps_its_library() {
    let host = host().await;
    deploy(&host, "app", "1.0.0").await;
    let until = host.scratch("until");
    let hold = format!("hold?number={USR1}&value={}", until.display());
    assert_eq!(does(&host, &hold).await, "default");
    send_until_heard(&host, "", USR1).await;
    deploy(&host, "app", "2.0.0").await;
    let held = end(&host).await;
    assert_eq!(held.kind, "retained");
    assert!(
        held.message
            .contains("a handler of it for SIGUSR1 (10) has not returned"),
        "{}",
        held.message
    );
    fs::write(&until, "").unwrap();
    host.settled("app").await;
    assert_eq!(host.mapped_plugins(), 1);
    assert_eq!(host.get("/version").await.text(), "2.0.0");
}

#[tokio::test]
async fn blocked_signals_and_alternate_stacks_leave_the_threads_of_the_host() {
    let config = format!("[server]\nworkers = 1\nspare_workers = 0\n{TWO_APPS}");
    let host = Setup::new().config(&config).start().await;
    deploy(&host, "app", "1.0.0").await;
    assert_eq!(does(&host, &format!("block?number={USR2}")).await, "0");
    assert_eq!(does(&host, "give-stack").await, "0");
    let blocked = || {
        let threads = fs::read_dir(format!("/proc/{}/task", host.pid())).unwrap();
        let status =
            threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("status")));
        let blocks = |status: &String| {
            let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
            let mask = u64::from_str_radix(mask.unwrap().trim(), 16).unwrap();
            mask & 1 << (USR2 - 1) != 0
        };
        let names = status.flatten().filter(blocks).map(|status| {
            let name = status.lines().next().unwrap_or_default();
            name.trim_start_matches("Name:").trim().to_owned()
        });
        names.collect::<Vec<_>>()
    };
    assert_eq!(blocked(), ["handover-worker"], "the only one");
    replace(&host).await;
    // Threads that the worker started meanwhile do not block it either.
    assert!(blocked().is_empty(), "{:?}", blocked());
    assert_eq!(does(&host, "stack-is-there").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_that_never_stop_harm_no_generation_that_comes_or_goes() {
    let host = host().await;
    let pid = host.pid();
    deploy(&host, "app", "1.0.0").await;
    let listen = format!("listen?way=info&number={USR1}");
    does(&host, &listen).await;
    let (stop, process) = (
        AtomicBool::new(false),
        Pid::from_raw(pid.cast_signed()).unwrap(),
    );
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // Fails when the host is gone, which is found below.
                let _ = kill_process(process, Signal::USR1);
                std::thread::yield_now();
            }
        });
        let swaps = async {
            for version in ["2.0.0", "1.0.0"].into_iter().cycle().take(20) {
                deploy(&host, "app", version).await;
                assert_eq!(does(&host, &listen).await, "default");
                host.until("it to be heard", async || {
                    (heard(&host, "", USR1).await > 0).then_some(())
                })
                .await;
            }
            host.settled("app").await;
        };
        let runtime = tokio::runtime::Handle::current();
        let swapped = tokio::task::block_in_place(|| {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(swaps)))
        });
        stop.store(true, Ordering::Relaxed);
        swapped.unwrap();
    });
    assert_eq!(host.status().await.host.pid, pid);
    assert_eq!(host.mapped_plugins(), 1);
}

#[tokio::test]
async fn the_host_hears_its_own_signals_beside_the_plugins() {
    let mut host = Setup::new().config(TWO_APPS).alone().start().await;
    deploy(&host, "app", "1.0.0").await;
    does(&host, "listen?way=sigaction&number=1").await;
    host.signal(Signal::HUP);
    host.until("the app to hear SIGHUP", async || {
        (heard(&host, "", 1).await > 0).then_some(())
    })
    .await;
    host.logged("the host to hear SIGHUP", |line| line.contains("SIGHUP"))
        .await;
    does(&host, &format!("listen?way=signal&number={TERM}")).await;
    host.signal(Signal::TERM);
    assert_eq!(host.ended().await, Some(0));
}
