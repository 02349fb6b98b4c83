//! Code of a plugin that runs outside of requests, and blocks, holds up nobody but its own app, and
//! is told.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::fs;

use handover_tests::{
    client::Http1,
    host::{Event, Host, Setup},
    plugins::fixture,
};
use tempfile::TempDir;

/// A host with one worker, on which the app `slow-ends` does what the files of a folder say, and
/// `hello` is somebody else.
struct Slow {
    host: Host,
    folder: TempDir,
}

impl Slow {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = "[server]\nversion_header = true\nworkers = 1\nspare_workers = 2\nstall_after = \"300ms\"\n\
            [app.slow-ends]\nroutes = [\"/\"]\nbake = \"none\"\n[app.slow-ends.check]\ndeadline = \"5s\"\n\
            [app.hello]\nroutes = [\"hello.test/\"]\nbake = \"none\"\n";
        let host = Setup::new()
            .config(config)
            .env("SLOW_ENDS", folder.path().to_str().unwrap())
            .start()
            .await;
        host.deploy(&fixture("hello", "1.0.0")).await.expect_code(0);
        Self { host, folder }
    }

    /// One that serves `slow-ends` already.
    async fn serving() -> Self {
        let slow = Self::start().await;
        slow.deploy("1.0.0").await;
        slow
    }

    async fn deploy(&self, version: &str) {
        self.host
            .deploy(&fixture("slow-ends", version))
            .await
            .expect_code(0);
    }

    /// From now on what has this name blocks.
    fn block(&self, name: &str) {
        fs::write(self.folder.path().join(name), "").unwrap();
    }

    /// What has this name goes on.
    fn release(&self, name: &str) {
        fs::remove_file(self.folder.path().join(name)).unwrap();
    }

    /// What the plugin wrote down.
    fn told(&self) -> Vec<String> {
        let told = fs::read_to_string(self.folder.path().join("told")).unwrap_or_default();
        told.lines().map(str::to_owned).collect()
    }

    /// Whether it blocks there now.
    fn is_in(&self, name: &str) -> bool {
        let told = self.told();
        let number = |line: String| told.iter().filter(|told| **told == line).count();
        number(format!("in {name}")) > number(format!("out of {name}"))
    }

    async fn comes_to(&self, name: &str) {
        let what = format!("the plugin to block in {name}");
        self.host
            .until(&what, async || self.is_in(name).then_some(()))
            .await;
    }

    /// Somebody else is served, while it blocks there.
    async fn others_are_served(&self, while_in: &str) {
        for _ in 0..20 {
            let mut http = Http1::connect(self.host.address).await.unwrap();
            let headers = [("host", "hello.test")];
            let answer = http.request("GET", "/", &headers, None).await;
            assert_eq!(answer.unwrap().status, 200);
        }
        assert!(self.is_in(while_in), "{:?}", self.told());
    }

    /// Somebody else deploys both of its versions, while it blocks there.
    async fn others_deploy(&self, while_in: &str) {
        for version in ["2.0.0", "1.0.0"] {
            let deployed = self.host.deploy(&fixture("hello", version)).await;
            deployed.expect_code(0);
        }
        assert!(self.is_in(while_in), "{:?}", self.told());
    }

    /// The event of `kind` of generation `number` of the slow app.
    async fn event(&self, kind: &str, number: u64) -> Event {
        let what = format!("generation {number} to be {kind}");
        let is_it = |event: &Event| {
            event.app.as_deref() == Some("slow-ends")
                && event.kind == kind
                && event.generation == Some(number)
        };
        self.host.event(&what, is_it).await
    }

    /// The watchdog tells of it, once, and of its end when it goes on.
    async fn is_told_while_it_blocks(&self, name: &str, place: &str) {
        self.comes_to(name).await;
        let event = self.event("stalled", 1).await;
        assert!(event.message.contains(place), "{}", event.message);
        self.others_are_served(name).await;
        self.release(name);
        let event = self.event("stall_ended", 1).await;
        assert!(event.message.contains(place), "{}", event.message);
    }

    /// What status says keeps generation `number` mapped.
    async fn retained_because(&self, number: u64) -> String {
        let app = self.host.app("slow-ends").await;
        let mut generations = app.generations.into_iter();
        let generation = generations.find(|generation| generation.generation == number);
        generation.unwrap().retained_because.unwrap()
    }
}

#[tokio::test]
async fn initialisers_and_finalisers_run_once_in_order_and_with_the_arguments_of_their_app() {
    let slow = Slow::serving().await;
    // The first after its name: it has none.
    assert_eq!(slow.told(), ["init 1 argv= null=1 env=1", "init 2"]);
    slow.deploy("2.0.0").await;
    slow.event("unloaded", 1).await;
    let told = slow.told();
    let ends: Vec<_> = told.iter().skip(4).map(String::as_str).collect();
    // What was registered with `atexit` runs first or last, as the compiler's own finaliser has it.
    let in_order: Vec<_> = ends.iter().filter(|line| **line != "atexit").collect();
    assert_eq!(in_order, [&"fini 2", &"fini 1"], "{told:?}");
    assert_eq!(ends.len(), 3, "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_constructor_that_blocks_is_given_up_and_holds_up_nobody() {
    let slow = Slow::start().await;
    slow.block("init");
    let deploy = async {
        let deployed = slow.host.deploy(&fixture("slow-ends", "1.0.0")).await;
        deployed
            .expect_code(4)
            .expect_words(&["static constructors", "did not end within 5s"]);
    };
    let others = async {
        slow.comes_to("init").await;
        slow.others_deploy("init").await;
    };
    tokio::join!(deploy, others);
    let event = slow.event("retained", 1).await;
    let because = "the static constructors (ELF initialisers) of slow-ends 1.0.0 (";
    assert!(event.message.contains(because), "{}", event.message);
    assert!(slow.retained_because(1).await.contains(because));
    slow.others_deploy("init").await;
    slow.release("init");
    slow.event("unloaded", 1).await;
    slow.deploy("1.0.0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_destructor_that_blocks_is_told_and_holds_up_nobody() {
    let slow = Slow::serving().await;
    slow.block("fini");
    slow.deploy("2.0.0").await;
    slow.comes_to("fini").await;
    slow.others_deploy("fini").await;
    let event = slow.event("retained", 1).await;
    let because = "the static destructors (ELF finalisers) of slow-ends 1.0.0 (";
    assert!(event.message.contains(because), "{}", event.message);
    assert!(slow.retained_because(1).await.contains(because));
    slow.others_deploy("fini").await;
    slow.release("fini");
    slow.event("unloaded", 1).await;
    let finalised = slow.told().iter().filter(|line| *line == "fini 1").count();
    assert_eq!(finalised, 1, "{:?}", slow.told());
}

#[tokio::test]
async fn the_drop_of_a_request_that_blocks_is_told_and_others_are_served() {
    let slow = Slow::serving().await;
    slow.block("drop");
    let mut http = Http1::connect(slow.host.address).await.unwrap();
    http.send_head("GET", "/drop?secret=1", &[]).await.unwrap();
    slow.host
        .app_when("slow-ends", "the request to be there", |app| {
            app.generations[0].in_flight == 1
        })
        .await;
    drop(http);
    slow.is_told_while_it_blocks("drop", "the drop of /drop")
        .await;
}

#[tokio::test]
async fn the_drop_of_a_body_that_blocks_is_told_and_others_are_served() {
    let slow = Slow::serving().await;
    slow.block("body");
    let mut http = Http1::connect(slow.host.address).await.unwrap();
    http.send_head("GET", "/body", &[]).await.unwrap();
    http.head("GET").await.unwrap();
    http.chunk(&mut Vec::new()).await.unwrap();
    drop(http);
    slow.is_told_while_it_blocks("body", "the drop of the body of an answer")
        .await;
}

#[tokio::test]
async fn bytes_whose_owner_blocks_are_told_and_others_are_served() {
    let slow = Slow::serving().await;
    slow.block("bytes");
    let answer = slow.host.get("/bytes").await;
    assert_eq!(answer.body.len(), 64 << 10);
    slow.is_told_while_it_blocks("bytes", "the drop of bytes of an answer")
        .await;
}

#[tokio::test]
async fn a_thread_local_whose_destructor_blocks_is_told_and_others_are_served() {
    let slow = Slow::serving().await;
    slow.host.get("/local").await;
    slow.block("local");
    slow.deploy("2.0.0").await;
    slow.comes_to("local").await;
    let event = slow.event("retained", 1).await;
    assert!(
        event.message.contains("running a thread-local destructor"),
        "{}",
        event.message
    );
    slow.is_told_while_it_blocks("local", "the destructor of a thread-local")
        .await;
    slow.event("unloaded", 1).await;
}

#[tokio::test]
async fn an_app_that_blocks_whoever_tells_it_to_drain_is_told_and_others_are_served() {
    let slow = Slow::serving().await;
    assert_eq!(slow.host.get("/hook").await.text(), "done");
    slow.block("hook");
    slow.deploy("2.0.0").await;
    slow.comes_to("hook").await;
    slow.others_are_served("hook").await;
    slow.others_deploy("hook").await;
    let event = slow.event("retained", 1).await;
    assert!(
        event.message.contains("when it is told to drain"),
        "{}",
        event.message
    );
    slow.release("hook");
    slow.event("unloaded", 1).await;
}

#[tokio::test]
async fn what_is_retained_leaves_the_workers_alone() {
    let slow = Slow::serving().await;
    slow.block("thread");
    for version in ["2.0.0", "1.0.0", "2.0.0"] {
        slow.host.get("/thread").await;
        slow.comes_to("thread").await;
        slow.deploy(version).await;
    }
    for number in 1..=3 {
        slow.event("retained", number).await;
    }
    // One look at each of them, and more: they were tried again every three seconds, for one second
    // each.
    let before = switches(slow.host.pid());
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    let switches = switches(slow.host.pid()) - before;
    assert!(switches < 400, "{switches} context switches of workers");
    slow.release("thread");
    for number in 1..=3 {
        slow.event("unloaded", number).await;
    }
}

#[tokio::test]
async fn what_is_retained_is_not_run_when_the_host_ends() {
    let mut slow = Slow::serving().await;
    slow.block("thread");
    slow.host.get("/thread").await;
    slow.comes_to("thread").await;
    slow.deploy("2.0.0").await;
    slow.event("retained", 1).await;
    slow.host.signal(rustix::process::Signal::TERM);
    assert_eq!(slow.host.ended().await, Some(0));
    let told = slow.told();
    let number = |what: &str| told.iter().filter(|line| *line == what).count();
    // That of the generation that was live, and is unloaded.
    assert_eq!((number("atexit"), number("fini 1")), (1, 1), "{told:?}");
}

/// How often the workers of a process have gone to sleep.
fn switches(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let workers = tasks.filter_map(|task| {
        let task = task.ok()?.path();
        let comm = fs::read_to_string(task.join("comm")).ok()?;
        let status = fs::read_to_string(task.join("status")).ok()?;
        comm.starts_with("handover-worke").then_some(status)
    });
    let count = |status: String| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    workers.map(count).sum()
}
