//! What is replaced is really gone: its library, its threads, its descriptors, its memory.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::time::Duration;

use handover_tests::{
    client::{Http1, Http2},
    host::{DEADLINE, Host, Setup},
    load::Load,
    plugins::{fixture, misfit},
};

/// What a process costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cost {
    mapped: usize,
    threads: usize,
    descriptors: usize,
}

impl Cost {
    /// Whether it is no more, but for what the host itself has more threads on a busy machine: for
    /// blocking work, and in place of workers that are held up. What leaks does so at each of many
    /// swaps.
    fn is_within(self, other: Self) -> bool {
        const OF_THE_HOST: usize = 4;
        self.mapped <= other.mapped
            && self.threads <= other.threads + OF_THE_HOST
            && self.descriptors <= other.descriptors
    }

    /// The cost once it stands still: connections that were just closed still count for a moment.
    async fn settled(host: &Host, goal: Option<Self>) -> Self {
        let now = || Self {
            mapped: host.mapped_plugins(),
            threads: host.threads(),
            descriptors: host.descriptors(),
        };
        // Threads for blocking work end when they had none for ten seconds.
        let deadline = tokio::time::Instant::now() + DEADLINE;
        let mut last = now();
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let next = now();
            let arrived = goal.map_or(next == last, |goal| next.is_within(goal));
            if arrived || tokio::time::Instant::now() > deadline {
                return next;
            }
            last = next;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_swaps_under_load_leave_nothing_behind() {
    const SWAPS: usize = 60;
    let host = Setup::new()
        .config("[app.probe]\nmax_old_generations = 1000\n")
        .start()
        .await;
    let files = [fixture("probe", "2.0.0"), fixture("probe", "1.0.0")];
    host.deploy(&files[1]).await.expect_code(0);
    let load = Load {
        keep_alive: 8,
        closing: 2,
        streams: 8,
        pause: Duration::from_millis(5),
    };

    // The first swaps warm up what every later one uses.
    let (mut before, mut resident) = (None, 0);
    for n in 0..SWAPS {
        if n == 10 {
            before = Some(Cost::settled(&host, None).await);
            resident = host.resident();
        }
        let running = load.start(host.address);
        running.more(30).await;
        host.deploy(&files[n % 2]).await.expect_code(0);
        running.more(10).await;
        running.stop().await.expect_unnoticed();
        host.settled("probe").await;
    }
    let before = before.unwrap();
    let after = Cost::settled(&host, Some(before)).await;
    assert!(
        after.is_within(before),
        "{after:?} after {SWAPS} swaps, {before:?} before"
    );
    assert_eq!(after.mapped, 1);
    let grown = host.resident().saturating_sub(resident);
    assert!(grown < 12 << 20, "{grown} bytes more after {SWAPS} swaps");

    let events = host.events().await;
    assert!(
        events.iter().all(|event| event.kind != "retained"),
        "{events:#?}"
    );
    let unloaded = events
        .iter()
        .filter(|event| event.kind == "unloaded")
        .count();
    assert_eq!(unloaded, SWAPS, "each of them says so");
}

#[tokio::test]
async fn panics_spawned_work_and_errors_leave_nothing_behind_either() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    for version in ["2.0.0", "1.0.0", "2.0.0"] {
        let mut http = Http1::connect(host.address).await.unwrap();
        assert_eq!(http.get("/panic").await.unwrap().status, 500);
        let _ = Http1::connect(host.address)
            .await
            .unwrap()
            .get("/panic-in-body")
            .await;
        http.get("/panic-in-spawn").await.unwrap();
        http.get("/spawn?ms=50").await.unwrap();
        http.get("/job?ms=50").await.unwrap();
        let (h2, _connection) = Http2::connect(host.address).await.unwrap();
        assert_eq!(h2.get("/panic").await.unwrap().status, 500);
        assert!(h2.get("/panic-in-body").await.is_err());
        host.app_when("probe", "the panics to be counted", |app| {
            app.generations.last().is_some_and(|last| last.panics >= 5)
        })
        .await;
        host.deploy(&fixture("probe", version)).await.expect_code(0);
        host.settled("probe").await;
    }
    host.until("the libraries to be unmapped", async || {
        (host.mapped_plugins() == 1).then_some(())
    })
    .await;
    assert!(
        host.events()
            .await
            .iter()
            .all(|event| event.kind != "retained")
    );
}

#[tokio::test]
async fn what_leaves_a_thread_behind_stays_mapped_and_says_why() {
    let host = Host::start().await;
    host.deploy_bytes(&misfit("leak-thread"))
        .await
        .expect_code(0);
    assert_eq!(host.get("/").await.status, 200);
    host.deploy_bytes(&misfit("none")).await.expect_code(0);
    host.event("it to be retained", |event| event.kind == "retained")
        .await;
    let retained = host.app("misfit").await.generations[0].clone();
    assert_eq!(retained.state, "retained");
    let reason = retained.retained_because.unwrap();
    assert!(
        reason.contains("thread") && reason.contains("leaked"),
        "{reason}"
    );
    assert_eq!(host.mapped_plugins(), 2);
    // It costs what it costs, and nothing else.
    assert_eq!(host.get("/").await.text(), "misfit: none");
    for habit in ["tidy", "none", "tidy"] {
        host.deploy_bytes(&misfit(habit)).await.expect_code(0);
        assert_eq!(host.get("/").await.text(), format!("misfit: {habit}"));
    }
    host.until("all others to be unmapped", async || {
        (host.mapped_plugins() == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_generation_that_served_nobody_unloads_too() {
    let host = Host::serving(&fixture("hello", "1.0.0")).await;
    for n in 0..4 {
        host.deploy(&fixture("hello", ["2.0.0", "1.0.0"][n % 2]))
            .await
            .expect_code(0);
    }
    host.settled("hello").await;
    host.until("the libraries to be unmapped", async || {
        (host.mapped_plugins() == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_plugin_that_looked_up_the_names_of_a_backtrace_leaves() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    assert!(host.get("/backtrace").await.text().contains("probe"));
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    host.settled("probe").await;
    host.event("the unload", |event| event.kind == "unloaded")
        .await;
    assert_eq!(host.get("/version").await.text(), "2.0.0");
}
