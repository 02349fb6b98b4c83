//! What a plugin does wrong while it runs hurts the request that it does it in, and nobody else.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use handover_tests::{
    client::{Answer, Fault, Http1, Http2},
    host::{Host, Setup},
    load::Load,
    plugins::{fixture, misfit},
};
use tokio::task::JoinSet;

/// A host with this many workers.
async fn host_with(workers: usize, rest: &str) -> Host {
    let host = Setup::new()
        .config(&format!(
            "[server]\nversion_header = true\nworkers = {workers}\nstall_after = \"300ms\"\n{rest}\n"
        ))
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    host
}

async fn panics(host: &Host) -> u64 {
    host.app("probe").await.generations[0].panics
}

/// Waits until the counter of panics has moved to `count`.
async fn counted(host: &Host, count: u64) {
    host.app_when("probe", &format!("{count} panics"), |app| {
        app.generations[0].panics >= count
    })
    .await;
    assert_eq!(panics(host).await, count);
}

/// Somebody else is served all the while, on connections of all kinds.
struct Others(handover_tests::load::Running);

impl Others {
    fn of(host: &Host) -> Self {
        Self(Load::LIGHT.start(host.address))
    }

    async fn noticed_nothing(self) {
        self.0.more(30).await;
        self.0.stop().await.expect_unnoticed();
    }
}

async fn get(host: &Host, path: &str) -> Result<Answer, Fault> {
    Http1::connect(host.address).await?.get(path).await
}

#[tokio::test]
async fn a_handler_that_panics_answers_500_on_a_connection_that_lives_on() {
    let host = host_with(2, "").await;
    let others = Others::of(&host);
    let mut http = Http1::connect(host.address).await.unwrap();
    for n in 1..=3 {
        assert_eq!(http.get("/panic").await.unwrap().status, 500);
        counted(&host, n).await;
    }
    assert_eq!(http.get("/version").await.unwrap().text(), "1.0.0");
    others.noticed_nothing().await;
}

#[tokio::test]
async fn a_handler_that_panics_with_something_that_panics_answers_500_too() {
    let host = host_with(2, "").await;
    let others = Others::of(&host);
    for n in [2, 4] {
        let answer = get(&host, "/panic-with-panic").await.unwrap();
        assert_eq!(answer.status, 500);
        counted(&host, n).await;
    }
    others.noticed_nothing().await;
}

/// The host made room for as many names, which was more than a map may have: it panicked where it
/// may not, and ended.
#[tokio::test]
async fn a_name_with_more_values_than_a_map_may_have_names_is_an_answer() {
    let host = host_with(2, "").await;
    let others = Others::of(&host);
    let answer = get(&host, "/fields?n=30000").await.unwrap();
    assert_eq!((answer.status, answer.text()), (200, "1.0.0".into()));
    let many = answer.headers.iter().filter(|(name, _)| name == "x-many");
    assert_eq!(many.count(), 30_000);
    others.noticed_nothing().await;
}

#[tokio::test]
async fn a_body_that_panics_resets_its_stream_and_no_other() {
    let host = host_with(2, "").await;
    let others = Others::of(&host);
    assert!(matches!(
        get(&host, "/panic-in-body").await,
        Err(Fault::Cut(_))
    ));
    counted(&host, 1).await;
    let (http, connection) = Http2::connect(host.address).await.unwrap();
    assert!(http.get("/panic-in-body").await.is_err());
    counted(&host, 2).await;
    assert_eq!(http.get("/version").await.unwrap().text(), "1.0.0");
    assert!(!connection.is_finished());
    others.noticed_nothing().await;
}

#[tokio::test]
async fn work_that_panics_is_counted_and_its_request_is_answered() {
    let host = host_with(2, "").await;
    let others = Others::of(&host);
    for (n, path) in [(1, "/panic-in-spawn"), (2, "/panic-in-job")] {
        assert_eq!(get(&host, path).await.unwrap().text(), "1.0.0");
        counted(&host, n).await;
    }
    host.app_when("probe", "no work to be left", |app| {
        app.generations[0].jobs == 0
    })
    .await;
    others.noticed_nothing().await;
}

#[tokio::test]
async fn destructors_that_panic_are_counted_and_the_generation_leaves_all_the_same() {
    let host = host_with(2, "").await;
    // Two that wait, before there are others to be taken for them.
    let mut http = Http1::connect(host.address).await.unwrap();
    http.send_head("GET", "/panic-when-dropped", &[])
        .await
        .unwrap();
    let (h2, connection) = Http2::connect(host.address).await.unwrap();
    let given_up = tokio::spawn(async move { h2.get("/panic-when-dropped").await.is_ok() });
    host.app_when("probe", "both to be asked", |app| {
        app.generations[0].in_flight == 2
    })
    .await;
    let others = Others::of(&host);
    // The body is whole when it is dropped.
    let answer = get(&host, "/panic-when-body-dropped").await.unwrap();
    assert_eq!(answer.text(), "piecepiece");
    counted(&host, 1).await;
    // The clients leave, so the handlers are dropped.
    drop(http);
    given_up.abort();
    connection.abort();
    counted(&host, 3).await;
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    host.settled("probe").await;
    others.noticed_nothing().await;
}

#[tokio::test]
async fn a_constructor_that_panics_is_rejected_and_the_live_version_stays() {
    let host = host_with(2, "").await;
    let others = Others::of(&host);
    let path = host.scratch("misfit.so");
    std::fs::write(&path, misfit("start-panic")).unwrap();
    host.cli(["deploy", "--app", "probe", path.to_str().unwrap()])
        .await
        .expect_code(4)
        .expect_words(&["panic"]);
    assert_eq!(panics(&host).await, 0);
    others.noticed_nothing().await;
}

#[tokio::test]
async fn a_goodbye_that_panics_does_not_hold_up_the_drain() {
    let host = host_with(2, "").await;
    let others = Others::of(&host);
    get(&host, "/panic-when-draining").await.unwrap();
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    host.settled("probe").await;
    host.logged("the panic to be logged", |line| {
        line.contains("the goodbye panics")
    })
    .await;
    others.noticed_nothing().await;
}

/// Sends `number` requests in turn while something else is held up, and gives how many were
/// answered before it came back.
async fn answered_while(held: &mut JoinSet<Answer>, host: &Host, number: usize) -> usize {
    let mut answered = 0;
    for n in 0..number {
        // New connections and old ones: both need the I/O driver.
        assert_eq!(get(host, "/version").await.unwrap().status, 200, "{n}");
        if held.try_join_next().is_some() {
            break;
        }
        answered += 1;
    }
    answered
}

fn hold(host: &Host, paths: &[&'static str]) -> JoinSet<Answer> {
    let mut held = JoinSet::new();
    for path in paths.iter().copied() {
        let address = host.address;
        held.spawn(async move {
            let mut http = Http1::connect(address).await.unwrap();
            http.get(path).await.unwrap()
        });
    }
    held
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_spins_is_told_and_two_hundred_others_are_answered_meanwhile() {
    let host = host_with(2, "").await;
    let others = Others::of(&host);
    let mut held = hold(&host, &["/spin?ms=8000"]);
    let event = host
        .event("the stall", |event| event.kind == "stalled")
        .await;
    assert_eq!(event.app.as_deref(), Some("probe"));
    assert!(event.generation.is_some());
    assert!(event.message.contains("/spin"), "{event:?}");
    assert_eq!(answered_while(&mut held, &host, 200).await, 200);
    assert_eq!(host.app("probe").await.generations[0].stalls, 1);
    assert_eq!(held.join_next().await.unwrap().unwrap().status, 200);
    let event = host
        .event("its end", |event| event.kind == "stall_ended")
        .await;
    assert!(event.message.contains("/spin"), "{event:?}");
    others.noticed_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_all_workers_blocked_spare_ones_answer() {
    let host = host_with(2, "spare_workers = 1").await;
    let others = Others::of(&host);
    let mut held = hold(&host, &["/block?ms=8000", "/block?ms=8000"]);
    assert_eq!(answered_while(&mut held, &host, 50).await, 50);
    host.app_when("probe", "both to be counted", |app| {
        app.generations[0].stalls == 2
    })
    .await;
    while let Some(answer) = held.join_next().await {
        assert_eq!(answer.unwrap().status, 200);
    }
    others.noticed_nothing().await;
    // And the generation leaves, though a spare worker ran its code.
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    host.settled("probe").await;
    host.until("its library to be unmapped", async || {
        (host.mapped_plugins() == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_host_with_sleeping_spares_ends_at_once_and_with_grace() {
    let mut host = host_with(1, "spare_workers = 3").await;
    host.signal(rustix::process::Signal::TERM);
    assert_eq!(host.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_blocks_on_threads_of_its_own_holds_up_its_own_app_alone() {
    let host = host_with(
        1,
        "spare_workers = 0\n[app.probe]\nexecution = \"own\"\nexecution_threads = 2\n",
    )
    .await;
    host.deploy(&fixture("hello", "1.0.0")).await.expect_code(0);
    // The first app has the root, the second its name.
    let mut held = hold(&host, &["/block?ms=4000", "/block?ms=4000"]);
    let event = host
        .event("the stall", |event| event.kind == "stalled")
        .await;
    assert_eq!(event.app.as_deref(), Some("probe"));
    for _ in 0..100 {
        assert_eq!(
            get(&host, "/hello").await.unwrap().text().trim(),
            "hello 1.0.0"
        );
    }
    assert!(held.try_join_next().is_none(), "they ended too early");
    // Its own are answered when it has a thread again.
    assert_eq!(get(&host, "/version").await.unwrap().text(), "1.0.0");
    while let Some(answer) = held.join_next().await {
        assert_eq!(answer.unwrap().status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_with_threads_of_its_own_is_swapped_unnoticed_and_unloaded() {
    let host = host_with(
        2,
        "[app.probe]\nexecution = \"own\"\nexecution_threads = 2\n",
    )
    .await;
    let others = Others::of(&host);
    for version in ["2.0.0", "1.0.0", "2.0.0"] {
        others.0.more(50).await;
        host.deploy(&fixture("probe", version)).await.expect_code(0);
        others.0.more(50).await;
        host.settled("probe").await;
    }
    // Panics, cut bodies, clients that leave, upgrades and large bodies go the same ways.
    assert_eq!(get(&host, "/panic").await.unwrap().status, 500);
    assert!(matches!(
        get(&host, "/panic-in-body").await,
        Err(Fault::Cut(_))
    ));
    let answer = get(&host, "/download?bytes=3000000").await.unwrap();
    assert_eq!(answer.body.len(), 3_000_000);
    let mut http = Http1::connect(host.address).await.unwrap();
    let answer = http
        .request("GET", "/trailers", &[("te", "trailers")], None)
        .await
        .unwrap();
    assert_eq!(answer.trailer("x-checksum"), Some("4711"));
    http.send_head("GET", "/slow?ms=600000", &[]).await.unwrap();
    host.app_when("probe", "it to be asked", |app| {
        app.generations[0].in_flight >= 1
    })
    .await;
    drop(http);
    others.noticed_nothing().await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    host.settled("probe").await;
    host.until("the libraries to be unmapped", async || {
        (host.mapped_plugins() == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_thread_of_a_constructor_that_failed_logs_on_with_its_own_name() {
    let host = Host::serving(&fixture("hello", "1.0.0")).await;
    let before = host.pid();
    let path = host.scratch("orphan.so");
    std::fs::write(&path, misfit("live-orphan")).unwrap();
    host.cli(["deploy", "--app", "hello", path.to_str().unwrap()])
        .await
        .expect_code(4)
        .expect_words(&["the database of the misfit is not there"]);
    // What the thread was given a pointer to is used long after the constructor has failed, while
    // others take memory.
    host.until("the thread to have logged for long", async || {
        assert_eq!(host.get("/").await.text(), "hello 1.0.0");
        let log = host.log();
        let beats = log
            .iter()
            .filter(|line| line.contains("the heart of the misfit beats"));
        let whole = beats
            .inspect(|line| assert!(line.contains("app=hello generation=2"), "{line}"))
            .count();
        (whole > 200).then_some(())
    })
    .await;
    assert_eq!(host.pid(), before);
    host.app_when("hello", "its library to stay mapped", |app| {
        app.generations.iter().any(|generation| {
            generation.generation == 2
                && generation
                    .retained_because
                    .as_ref()
                    .is_some_and(|why| why.contains("heartbeat"))
        })
    })
    .await;
}
