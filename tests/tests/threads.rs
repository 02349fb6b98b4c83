//! Threads are known by who made them, whatever made them, and none is left behind: what a
//! generation has libc, C++ or a library that came along do on threads ends with it, or keeps it
//! mapped with the threads named.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use handover_tests::{
    host::{Event, Host, Setup},
    load::{Load, Running},
    plugins::fixture,
};

/// A host on which the first generation has `habit`.
struct Lab {
    host: Host,
    load: Running,
    pid: u32,
}

impl Lab {
    async fn with(habit: &str) -> Self {
        let config = format!(
            "[app.foreign-threads]\nroutes = [\"/\"]\ndrain_deadline = \"500ms\"\n[app.foreign-threads.config]\nhabit = \"{habit}\"\nuntil = \"HOME/until\"\n"
        );
        let host = Setup::new().config(&config).start().await;
        host.deploy(&fixture("foreign-threads", "1.0.0"))
            .await
            .expect_code(0);
        let load = Load::LIGHT.start(host.address);
        let pid = host.pid();
        let lab = Self { host, load, pid };
        lab.load.more(20).await;
        for _ in 0..3 {
            let answer = lab.host.get("/habit").await;
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        lab
    }

    async fn replace(&self, version: &str) {
        self.host
            .deploy(&fixture("foreign-threads", version))
            .await
            .expect_code(0);
        self.load.more(20).await;
    }

    async fn end(&self, generation: u64, kind: &str) -> Event {
        self.host
            .event(&format!("{kind} of generation {generation}"), |event| {
                event.generation == Some(generation) && event.kind == kind
            })
            .await
    }

    /// How the generation ended at first.
    async fn first_end(&self, generation: u64) -> Event {
        self.host
            .event(&format!("the end of generation {generation}"), |event| {
                event.generation == Some(generation)
                    && ["unloaded", "retained"].contains(&event.kind.as_str())
            })
            .await
    }

    /// Waits until libc has called the plugin.
    async fn called(&self) {
        self.host
            .until("libc to call the plugin", async || {
                (self.host.get("/calls").await.text() != "0").then_some(())
            })
            .await;
    }

    fn let_end(&self) {
        std::fs::write(self.host.home().join("until"), "").unwrap();
    }

    /// Nobody saw anything of it.
    async fn stop(self) {
        self.load.more(20).await;
        self.load.stop().await.expect_unnoticed();
        assert_eq!(self.host.pid(), self.pid);
        assert!(
            !self
                .host
                .events()
                .await
                .iter()
                .any(|event| event.kind == "crash"),
        );
    }
}

/// The first generation is retained as long as its threads live, for a reason that says all of
/// `words`, and unloaded after that.
async fn stays(habit: &str, words: &[&str]) {
    let lab = Lab::with(habit).await;
    lab.replace("2.0.0").await;
    let end = lab.first_end(1).await;
    println!("{habit}: {}", end.message);
    assert_eq!(end.kind, "retained", "{}", end.message);
    for word in words {
        assert!(end.message.contains(word), "{word}: {}", end.message);
    }
    assert_eq!(lab.host.mapped_plugins(), 2);
    lab.let_end();
    lab.end(1, "unloaded").await;
    assert_eq!(lab.host.mapped_plugins(), 1);
    lab.stop().await;
}

/// The first generation is unloaded, though its habit goes on.
async fn leaves(habit: &str) {
    let lab = Lab::with(habit).await;
    if !["timer-signal", "registered-briefly"].contains(&habit) {
        lab.called().await;
    }
    lab.replace("2.0.0").await;
    let end = lab.end(1, "unloaded").await;
    println!("{habit}: {}", end.message);
    assert_eq!(lab.host.mapped_plugins(), 1);
    let timers = std::fs::read_to_string(format!("/proc/{}/timers", lab.pid)).unwrap_or_default();
    assert_eq!(timers, "");
    lab.stop().await;
}

#[tokio::test]
async fn a_thread_of_cpp_is_the_plugins() {
    stays(
        "cpp-thread",
        &[
            "3 threads that it started still live: tid ",
            "started by libstdc++.so",
        ],
    )
    .await;
}

#[tokio::test]
async fn a_thread_of_a_library_that_came_along_is_the_plugins() {
    stays(
        "came-along",
        &[
            "3 threads that it started still live: tid ",
            "`came-along` (started by libcame_along.so",
        ],
    )
    .await;
}

#[tokio::test]
async fn a_cloned_thread_is_the_plugins() {
    stays("clone", &["3 threads that it started still live: tid "]).await;
}

#[tokio::test]
async fn a_thread_that_nobody_can_account_for_holds_the_library_that_it_is_in() {
    let words = [
        "3 threads that nobody can account for still live: tid ",
        "its code",
    ];
    stays("hidden-thread", &words).await;
    stays("hidden-clone", &words).await;
}

#[tokio::test]
async fn a_thread_that_nobody_can_account_for_holds_what_is_older_than_it_and_nothing_newer() {
    let lab = Lab::with("came-along-hidden").await;
    lab.replace("2.0.0").await;
    let end = lab.first_end(1).await;
    println!("came-along-hidden: {}", end.message);
    assert_eq!(end.kind, "retained", "{}", end.message);
    assert!(
        end.message
            .contains("3 threads that nobody can account for still live: tid ")
            && end.message.contains("`came-along` (on its stack: ")
            && end.message.contains("libcame_along.so"),
        "{}",
        end.message
    );
    for (generation, version) in [(2, "1.0.0"), (3, "2.0.0")] {
        lab.replace(version).await;
        let end = lab.first_end(generation).await;
        assert_eq!(end.kind, "unloaded", "{}", end.message);
    }
    assert_eq!(lab.host.mapped_plugins(), 2);
    lab.let_end();
    lab.end(1, "unloaded").await;
    lab.stop().await;
}

#[tokio::test]
async fn a_callback_that_a_shared_library_keeps_holds_the_library_that_it_is_in() {
    let lab = Lab::with("registered").await;
    for (generation, version) in [(1, "2.0.0"), (2, "1.0.0")] {
        lab.replace(version).await;
        let end = lab.first_end(generation).await;
        assert_eq!(end.kind, "retained", "{}", end.message);
        assert!(
            end.message
                .contains("libcame_along.so keeps a pointer to it"),
            "{}",
            end.message
        );
        // Calls what is registered, and takes its place: nothing keeps the one before.
        assert_eq!(lab.host.get("/habit").await.status, 200);
        lab.end(generation, "unloaded").await;
    }
    assert_eq!(lab.host.mapped_plugins(), 1);
    lab.stop().await;
}

#[tokio::test]
async fn a_callback_that_was_taken_back_holds_nothing() {
    leaves("registered-briefly").await;
}

#[tokio::test]
async fn timers_end_with_the_library_and_their_last_calls_are_waited_for() {
    leaves("timer-thread").await;
}

#[tokio::test]
async fn timers_that_send_signals_end_with_the_library() {
    leaves("timer-signal").await;
}

#[tokio::test]
async fn calls_of_deleted_timers_that_are_on_their_way_are_waited_for() {
    leaves("timers-deleted").await;
}

#[tokio::test]
async fn a_library_that_is_told_of_messages_leaves() {
    leaves("told-of-messages").await;
}

#[tokio::test]
async fn a_library_that_libc_has_called_after_reading_leaves() {
    leaves("reading-calls").await;
}

#[tokio::test]
async fn a_library_that_libc_has_called_after_looking_up_a_name_leaves() {
    leaves("looking-up").await;
}

#[tokio::test]
async fn what_libc_reads_into_a_library_keeps_it_mapped_until_it_is_read() {
    let lab = Lab::with("reading").await;
    lab.replace("2.0.0").await;
    let end = lab.first_end(1).await;
    println!("reading: {}", end.message);
    assert_eq!(end.kind, "retained", "{}", end.message);
    assert!(
        end.message
            .contains("for it (aio), which cannot be cancelled"),
        "{}",
        end.message
    );
    std::fs::write(lab.host.home().join("until.pipe"), "x").unwrap();
    lab.end(1, "unloaded").await;
    lab.stop().await;
}
