//! What becomes of a generation with each leaky or hostile habit, and what its clients see of it:
//! nothing.
//!
//! docs/unloading.md has the table of this.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use handover_tests::{
    client::Http1,
    host::{Event, Host, Setup},
    load::{Load, Running},
    plugins::fixture,
};

/// Light: the habits are what is hard.
fn load(host: &Host) -> Running {
    Load::LIGHT.start(host.address)
}

/// A host on which the first generation has `habit`, and did it under load before it was replaced.
struct Zoo {
    host: Host,
}

impl Zoo {
    async fn with(habit: &str) -> Self {
        Self::configured(habit, "").await
    }

    async fn configured(habit: &str, more: &str) -> Self {
        let config = format!(
            "{more}\n[app.zoo]\nroutes = [\"/\"]\ndrain_deadline = \"500ms\"\n[app.zoo.config]\nhabit = \"{habit}\"\nuntil = \"HOME/until\"\n"
        );
        let host = Setup::new().config(&config).start().await;
        host.deploy(&fixture("zoo", "1.0.0")).await.expect_code(0);
        Self { host }
    }

    /// Has generation 1 do its habit some times, replaces it under load, and gives the event of its
    /// end.
    async fn replaced(&self) -> Event {
        let running = load(&self.host);
        running.more(20).await;
        for _ in 0..3 {
            let answer = self.host.get("/habit").await;
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        self.host
            .deploy(&fixture("zoo", "2.0.0"))
            .await
            .expect_code(0);
        running.more(20).await;
        let end = self.end_of_first().await;
        running.more(20).await;
        running.stop().await.expect_unnoticed();
        end
    }

    async fn end_of_first(&self) -> Event {
        self.host
            .event("the first generation's end", |event| {
                event.generation == Some(1)
                    && ["unloaded", "retained"].contains(&event.kind.as_str())
            })
            .await
    }

    fn mapped_when(&self, libraries: usize) {
        assert_eq!(self.host.mapped_plugins(), libraries);
    }
}

/// The habit costs nothing: the library is unmapped, no descriptor is lost, and less than `heap`
/// bytes are.
async fn leaves(habit: &str, heap: u64) -> (Zoo, Event) {
    let zoo = Zoo::with(habit).await;
    let end = zoo.replaced().await;
    assert_eq!(end.kind, "unloaded", "{}", end.message);
    assert_eq!(end.leaked_descriptors, Some(0), "{}", end.message);
    let bytes = end.leaked_bytes.unwrap();
    assert!(bytes < heap, "{}", end.message);
    zoo.mapped_when(1);
    assert_eq!(zoo.host.status().await.host.leaks.retained, 0);
    println!("{habit}: {}", end.message);
    (zoo, end)
}

#[tokio::test]
async fn a_plugin_without_a_habit_is_unloaded() {
    leaves("nothing", 64 << 10).await;
}

#[tokio::test]
async fn the_two_sockets_of_tokios_signal_registry_are_closed() {
    let (_, end) = leaves("tokio-signals", 64 << 10).await;
    let closed = end.message.split("closed for it: ").nth(1);
    let closed = closed.unwrap_or_else(|| panic!("{}", end.message));
    assert_eq!(closed.matches("(socket)").count(), 2, "{}", end.message);
}

#[tokio::test]
async fn a_client_in_a_static_leaves_with_its_connections() {
    let asked = Zoo::with("nothing").await;
    let config = format!(
        "[app.zoo]\nroutes = [\"/\"]\n[app.zoo.config]\nhabit = \"static-client\"\nurl = \"http://{}\"\n",
        asked.host.address
    );
    let host = Setup::new().config(&config).start().await;
    host.deploy(&fixture("zoo", "1.0.0")).await.expect_code(0);
    let zoo = Zoo { host };
    let end = zoo.replaced().await;
    println!("static-client: {}", end.message);
    assert_eq!(end.kind, "unloaded", "{}", end.message);
    assert_eq!(end.leaked_descriptors, Some(0), "{}", end.message);
    zoo.mapped_when(1);
}

#[tokio::test]
async fn threads_that_end_when_told_to_drain_are_waited_for() {
    leaves("threads-that-end", 64 << 10).await;
}

#[tokio::test]
async fn thread_locals_with_destructors_are_ended_on_their_threads() {
    leaves("thread-locals", 64 << 10).await;
}

#[tokio::test]
async fn a_c_library_leaves_with_its_keys_and_threads() {
    leaves("c-library", 64 << 10).await;
}

#[tokio::test]
async fn what_is_registered_for_the_end_of_the_process_is_run_or_forgotten() {
    leaves("at-exit", 64 << 10).await;
}

#[tokio::test]
async fn a_leaked_box_is_freed() {
    let (zoo, end) = leaves("leaked-box", 4 << 20).await;
    assert!(end.leaked_bytes.unwrap() >= 3 << 20, "{}", end.message);
    assert!(
        end.message.contains("MiB of heap freed for it"),
        "{}",
        end.message
    );
    let leaks = zoo.host.status().await.host.leaks;
    assert_eq!(leaks.bytes, 0);
}

#[tokio::test]
async fn leaked_sockets_are_closed() {
    let (_, end) = leaves("leaked-socket", 64 << 10).await;
    let closed = end.message.split("closed for it: ").nth(1).unwrap();
    // Two are tokio's.
    assert!(closed.contains("and 1 more"), "{}", end.message);
}

#[tokio::test]
async fn leaked_files_are_named_and_stay_open() {
    let zoo = Zoo::with("leaked-file").await;
    let end = zoo.replaced().await;
    assert_eq!(end.kind, "unloaded");
    assert_eq!(end.leaked_descriptors, Some(3), "{}", end.message);
    assert_eq!(end.message.matches("(/dev/zero)").count(), 3);
    assert_eq!(zoo.host.status().await.host.leaks.descriptors, 3);
}

#[tokio::test]
async fn threads_that_never_end_retain_the_library_and_are_named() {
    let zoo = Zoo::with("threads-that-stay").await;
    let end = zoo.replaced().await;
    assert_eq!(end.kind, "retained");
    assert!(
        end.message
            .starts_with("generation 1 stays mapped: 3 threads that it started still live: tid ")
            && end.message.matches("`stayer`").count() == 3,
        "{}",
        end.message
    );
    zoo.mapped_when(2);
    assert_eq!(zoo.host.status().await.host.leaks.retained, 1);
}

#[tokio::test]
async fn a_global_pool_retains_the_library_and_its_threads_are_named() {
    let zoo = Zoo::with("global-pool").await;
    let end = zoo.replaced().await;
    println!("global-pool: {}", end.message);
    assert_eq!(end.kind, "retained");
    assert!(
        end.message.contains(" that it started still live: tid "),
        "{}",
        end.message
    );
    zoo.mapped_when(2);
}

#[tokio::test]
async fn the_leak_budget_is_told_once_when_it_is_crossed() {
    let zoo = Zoo::configured(
        "leaked-file",
        "[server]\nversion_header = true\nleak_budget = { descriptors = 2 }",
    )
    .await;
    zoo.replaced().await;
    let told = |event: &Event| event.kind == "leak-budget";
    let event = zoo.host.event("the budget to be crossed", told).await;
    assert!(
        event
            .message
            .contains("hold 3 descriptors, more than the 2 descriptors of leak_budget.descriptors"),
        "{}",
        event.message
    );
    zoo.host
        .deploy(&fixture("zoo", "1.0.0"))
        .await
        .expect_code(0);
    zoo.host.settled("zoo").await;
    let events = zoo.host.events().await;
    assert_eq!(events.iter().filter(|event| told(event)).count(), 1);
}

/// Has one worker of four do its habit for good, and replaces the generation under load, which goes
/// on.
async fn stuck(habit: &str) -> (Zoo, Running) {
    let zoo = Zoo::configured(habit, "[server]\nworkers = 4\nversion_header = true").await;
    let running = load(&zoo.host);
    running.more(20).await;
    let mut http = Http1::connect(zoo.host.address).await.unwrap();
    let asking = tokio::spawn(async move { http.get("/habit").await });
    zoo.host
        .event("the habit to be told", |event| event.kind == "stalled")
        .await;
    running.more(20).await;
    let deployed = zoo.host.deploy(&fixture("zoo", "2.0.0")).await;
    assert!([Some(0), Some(7)].contains(&deployed.code), "{deployed:?}");
    let told = zoo
        .host
        .event("the stuck request to be told", |event| {
            event.kind == "deadline_passed" && event.message.contains("did not notice")
        })
        .await;
    assert_eq!(
        told.message,
        "1 request of generation 1 did not notice being cancelled (blocking code?), so it stays loaded until they return"
    );
    let app = zoo.host.app("zoo").await;
    assert_eq!(app.generations[0].state, "draining");
    assert_eq!(app.active.unwrap().version, "2.0.0");
    asking.abort();
    running.more(20).await;
    (zoo, running)
}

#[tokio::test]
async fn a_spinning_handler_holds_its_generation_until_it_returns() {
    let (zoo, running) = stuck("spin").await;
    std::fs::write(zoo.host.state().parent().unwrap().join("until"), "").unwrap();
    let end = zoo.end_of_first().await;
    assert_eq!(end.kind, "unloaded", "{}", end.message);
    zoo.mapped_when(1);
    running.more(20).await;
    running.stop().await.expect_unnoticed();
}

#[tokio::test]
async fn a_deadlock_holds_its_generation_and_nobody_else() {
    let (zoo, running) = stuck("deadlock").await;
    let answer = zoo.host.get("/version").await;
    assert_eq!(answer.text(), "2.0.0");
    zoo.mapped_when(2);
    running.stop().await.expect_unnoticed();
}
