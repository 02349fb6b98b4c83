//! A plugin that takes the process down: the host comes back by itself, and goes back to what was
//! good.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{os::fd::AsRawFd, sync::Arc};

use handover_tests::{
    client::{Fault, Http1},
    host::{Host, Setup},
    plugins::fixture,
};
use rustix::process::Signal;
use tokio::sync::{Mutex, Notify};

/// What clients saw that asked all the time, each request on a connection of its own.
#[derive(Debug, Default)]
struct Seen {
    sent: u64,
    answered: u64,
    refused: Vec<Fault>,
    lost: Vec<Fault>,
}

/// Clients that ask until they are told to stop.
struct Clients {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<Notify>,
    tasks: tokio::task::JoinSet<()>,
}

const CLIENTS: usize = 4;

impl Clients {
    fn ask(host: &Host) -> Self {
        let (seen, stop) = (Arc::<Mutex<Seen>>::default(), Arc::new(Notify::new()));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..CLIENTS {
            let (seen, stop, address) = (Arc::clone(&seen), Arc::clone(&stop), host.address);
            tasks.spawn(async move {
                let stopped = stop.notified();
                tokio::pin!(stopped);
                loop {
                    tokio::select! {
                        biased;
                        () = &mut stopped => return,
                        () = tokio::time::sleep(std::time::Duration::from_millis(3)) => {}
                    }
                    let answer = async { Http1::connect(address).await?.get("/version").await };
                    let answer = answer.await;
                    let mut seen = seen.lock().await;
                    seen.sent += 1;
                    match answer {
                        Ok(answer) if answer.status == 200 => seen.answered += 1,
                        Ok(answer) => seen.lost.push(Fault::Malformed(answer.status.to_string())),
                        Err(Fault::Connect(why)) => seen.refused.push(Fault::Connect(why)),
                        Err(fault) => seen.lost.push(fault),
                    }
                }
            });
        }
        Self { seen, stop, tasks }
    }

    async fn more(&self, answers: u64) {
        let goal = self.seen.lock().await.answered + answers;
        let deadline = tokio::time::Instant::now() + handover_tests::host::DEADLINE;
        while self.seen.lock().await.answered < goal {
            assert!(tokio::time::Instant::now() < deadline, "no more answers");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    async fn stop(self) -> Seen {
        self.stop.notify_waiters();
        self.tasks.join_all().await;
        Arc::into_inner(self.seen).unwrap().into_inner()
    }
}

/// A request that takes the host down.
async fn deadly(host: &Host, path: &str) {
    let asked = async { Http1::connect(host.address).await?.get(path).await };
    let cut = asked.await;
    assert!(matches!(cut, Err(Fault::Cut(_))), "{path}: {cut:?}");
}

async fn trusted() -> Host {
    let host = Setup::new()
        .config("[app.probe]\nbake = \"1ms\"\n")
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    host.event("1.0.0 to be trusted", |event| event.kind == "proven")
        .await;
    host
}

impl Seen {
    /// No connect was refused, and lost is at most what was in flight in the processes that died:
    /// one request of each client.
    #[track_caller]
    fn expect_lost_in_flight_only(&self, deaths: usize, what: &str) {
        println!(
            "{what}: {} sent, {} answered, {} lost with the process",
            self.sent,
            self.answered,
            self.lost.len()
        );
        assert!(self.refused.is_empty(), "{what}: {self:?}");
        assert_eq!(self.sent, self.answered + self.lost.len() as u64);
        assert!(self.lost.len() <= deaths * CLIENTS, "{what}: {self:?}");
        let cut = |fault: &Fault| matches!(fault, Fault::Cut(_));
        assert!(self.lost.iter().all(cut), "{what}: {self:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_kills_the_process_it_comes_back_and_connects_wait_for_it() {
    // Four crashes in a minute, none of which is to take anything back.
    let mut host = Setup::new()
        .config("[server]\nversion_header = true\nmax_crashes = 100\n[app.probe]\nbake = \"1ms\"\n")
        .start()
        .await;
    host.deploy(&fixture("probe", "1.0.0")).await.expect_code(0);
    host.event("1.0.0 to be trusted", |event| event.kind == "proven")
        .await;
    let address = host.address;
    for path in ["/segfault", "/abort", "/overflow", "/exit"] {
        let clients = Clients::ask(&host);
        clients.more(20).await;
        deadly(&host, path).await;
        host.came_back().await;
        clients.more(20).await;
        let seen = clients.stop().await;
        assert_eq!(host.address, address);
        seen.expect_lost_in_flight_only(1, path);
        host.event("the crash to be told", |event| event.kind == "crash")
            .await;
    }
    assert_eq!(host.active("probe").await.version, "1.0.0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_version_that_crashes_the_host_is_rolled_back_loudly() {
    let mut host = Host::serving(&fixture("probe", "1.0.0")).await;
    let good = host.active("probe").await;
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    let bad = host.active("probe").await;
    let clients = Clients::ask(&host);
    clients.more(20).await;
    deadly(&host, "/segfault").await;
    host.came_back().await;

    let back = host.live("probe", "1.0.0").await;
    clients.more(20).await;
    let seen = clients.stop().await;
    seen.expect_lost_in_flight_only(1, "a crash on probation");
    assert_eq!(back.artifact, good.artifact);
    assert_eq!(host.get("/version").await.text(), "1.0.0");
    let event = host
        .event("the rollback", |event| event.kind == "rolled_back")
        .await;
    assert_eq!(event.generation, Some(bad.generation));
    assert!(event.message.contains("SIGSEGV"), "{event:?}");
    host.logged("the log to say so loudly", |line| {
        line.contains("ERROR") && line.contains("is rolled back to 1.0.0")
    })
    .await;
    let history = host.cli(["history", "--json"]).await.expect_code(0).json();
    let entries: Vec<_> = history["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            (
                entry["version"].as_str().unwrap(),
                entry["cause"].as_str().unwrap(),
                entry["outcome"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        entries[entries.len() - 2..],
        [
            ("2.0.0", "crash", "rolled_back"),
            ("1.0.0", "crash", "done")
        ]
    );

    // It stays so, and a rollback does not go back to what crashed.
    host.signal_inner(Signal::KILL);
    host.came_back().await;
    host.live("probe", "1.0.0").await;
    host.cli(["rollback"])
        .await
        .expect_code(1)
        .expect_words(&["nothing to go back to"]);
    // Who insists gets it again.
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proven_version_stays_unless_it_crashes_again_and_again() {
    let mut host = trusted().await;
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    host.event("2.0.0 to be trusted", |event| {
        event.kind == "proven" && event.message.contains("2.0.0")
    })
    .await;
    let clients = Clients::ask(&host);
    clients.more(20).await;
    for _ in 0..2 {
        deadly(&host, "/abort").await;
        host.came_back().await;
        host.live("probe", "2.0.0").await;
    }
    deadly(&host, "/abort").await;
    host.came_back().await;
    host.live("probe", "1.0.0").await;
    clients.more(20).await;
    let seen = clients.stop().await;
    seen.expect_lost_in_flight_only(3, "a crash loop");
    let event = host
        .event("the rollback", |event| event.kind == "rolled_back")
        .await;
    assert!(event.message.contains("3 times"), "{event:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_killed_from_outside_is_not_to_blame() {
    let mut host = Host::serving(&fixture("probe", "1.0.0")).await;
    host.deploy(&fixture("probe", "2.0.0")).await.expect_code(0);
    let clients = Clients::ask(&host);
    clients.more(20).await;
    for _ in 0..4 {
        host.signal_inner(Signal::KILL);
        host.came_back().await;
        host.live("probe", "2.0.0").await;
    }
    clients.more(20).await;
    let seen = clients.stop().await;
    seen.expect_lost_in_flight_only(4, "kill -9 of the host");
}

#[tokio::test]
async fn with_nothing_to_go_back_to_it_is_tried_again() {
    let mut host = Host::serving(&fixture("probe", "1.0.0")).await;
    deadly(&host, "/abort").await;
    host.came_back().await;
    host.live("probe", "1.0.0").await;
    host.event("it to be said", |event| {
        event.kind == "failed" && event.message.contains("nothing to go back to")
    })
    .await;
}

#[tokio::test]
async fn the_host_ends_with_its_supervisor_and_signals_reach_it() {
    let mut host = Host::serving(&fixture("probe", "1.0.0")).await;
    assert_ne!(host.pid(), host.outer_pid());
    host.signal(Signal::HUP);
    host.logged("the reload to be logged", |line| line.contains("SIGHUP"))
        .await;
    // Which waits until the host has gone with it.
    host.crash(|_| ()).await;
    host.live("probe", "1.0.0").await;
    host.signal(Signal::INT);
    assert_eq!(host.ended().await, Some(0));
}

#[tokio::test]
async fn without_a_supervisor_there_is_one_process() {
    let mut host = Setup::new().alone().start().await;
    assert_eq!(host.pid(), host.outer_pid());
    host.signal(Signal::TERM);
    assert_eq!(host.ended().await, Some(0));
}

#[tokio::test]
async fn what_systemd_says_of_the_end_counts_as_well() {
    let mut host = Setup::new().alone().start().await;
    for version in ["1.0.0", "2.0.0"] {
        host.deploy(&fixture("probe", version)).await.expect_code(0);
    }
    // As ExecStopPost= of docs/systemd/handover.service does.
    host.crash(|host| std::fs::write(host.state().join("crashed"), "dumped SEGV\n").unwrap())
        .await;
    host.live("probe", "1.0.0").await;
    host.event("the rollback", |event| event.kind == "rolled_back")
        .await;
}

#[tokio::test]
async fn with_a_socket_handed_over_there_is_no_parent_and_the_manager_hears_how_it_is() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = tokio::net::UnixDatagram::bind(&path).unwrap();
    let hear = async |wanted: &str| {
        let mut bytes = [0; 200];
        loop {
            let heard =
                tokio::time::timeout(handover_tests::host::DEADLINE, manager.recv(&mut bytes));
            let length = heard.await.expect("the host speaks").unwrap();
            let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
            if text.lines().any(|line| line == wanted) {
                return text;
            }
        }
    };
    let mut host = Setup::new()
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDS_FIRST_FD", &listener.as_raw_fd().to_string())
        .env("NOTIFY_SOCKET", path.to_str().unwrap())
        .env("WATCHDOG_USEC", "100000")
        .start()
        .await;
    assert_eq!(host.pid(), host.outer_pid());
    assert_eq!(host.address, listener.local_addr().unwrap());
    let ready = hear("READY=1").await;
    assert!(
        ready.contains(&format!("MAINPID={}", host.pid())),
        "{ready}"
    );
    hear("WATCHDOG=1").await;
    hear("WATCHDOG=1").await;
    host.signal(Signal::TERM);
    hear("STOPPING=1").await;
    assert_eq!(host.ended().await, Some(0));
}

#[tokio::test]
async fn a_supervisor_passes_on_what_its_host_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = tokio::net::UnixDatagram::bind(&path).unwrap();
    let mut host = Setup::new()
        .env("NOTIFY_SOCKET", path.to_str().unwrap())
        .start()
        .await;
    assert_ne!(host.pid(), host.outer_pid());
    host.signal(Signal::TERM);
    assert_eq!(host.ended().await, Some(0));
    let (mut heard, mut bytes) = (Vec::new(), [0; 200]);
    while let Ok(length) = manager.try_recv(&mut bytes) {
        heard.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
    }
    // Which process to watch it knows already.
    assert_eq!(heard, ["READY=1", "STOPPING=1"]);
}
