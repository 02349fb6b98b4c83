//! What a generation allocated and never freed: with a heap of its own it leaves with the
//! generation, without one it is counted.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::path::PathBuf;

use handover_tests::{
    host::{Event, Host, Setup},
    plugins::fixture,
};
use tempfile::TempDir;

/// `leaky` keeps so much: what a constructor allocated, and what a request did.
const KEPT: u64 = (3 + 8) << 20;

/// With a heap of its own.
const OWN: &str = "2.0.0";

/// Without.
const SYSTEM: &str = "1.0.0";

/// A host that `leaky` is deployed to again and again.
struct Reloads {
    host: Host,
    version: &'static str,
    files: TempDir,
    done: u64,
}

impl Reloads {
    async fn of(version: &'static str, config: &str) -> Self {
        let config = format!("{config}\n[app.leaky]\nroutes = [\"/\"]\n");
        Self {
            host: Setup::new().config(&config).start().await,
            version,
            files: tempfile::tempdir().unwrap(),
            done: 0,
        }
    }

    /// The plugin as nobody has deployed it yet.
    fn fresh(&self) -> PathBuf {
        let mut bytes = std::fs::read(fixture("leaky", self.version)).unwrap();
        bytes.extend(format!("build {}", self.done).into_bytes());
        let path = self.files.path().join(format!("{}.so", self.done));
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Deploys, and has the new generation fill its cache.
    async fn deploy(&mut self) {
        let file = self.fresh();
        self.host.deploy(&file).await.expect_code(0);
        let answer = self.host.get("/cache").await;
        assert_eq!(answer.text(), KEPT.to_string());
        self.done += 1;
    }

    /// Does that, and returns the event of the old generation's end, if there was one.
    async fn next(&mut self) -> Option<Event> {
        let old = self.done;
        self.deploy().await;
        if old == 0 {
            return None;
        }
        let end = self.host.event("the old generation's end", |event| {
            event.generation == Some(old) && ["unloaded", "retained"].contains(&event.kind.as_str())
        });
        let end = end.await;
        assert_eq!(end.kind, "unloaded", "{}", end.message);
        Some(end)
    }

    async fn rss(&self) -> u64 {
        self.host.status().await.host.rss_bytes
    }
}

#[tokio::test]
async fn what_statics_keep_leaves_with_the_generation_fifty_times() {
    let mut reloads = Reloads::of(OWN, "").await;
    for _ in 0..5 {
        reloads.next().await;
    }
    let begin = reloads.rss().await;
    for _ in 0..50 {
        let left = reloads.next().await.unwrap();
        let bytes = left.leaked_bytes.unwrap();
        // Not twice as much, since the one before has left; tokio's share is some KiB.
        assert!((KEPT..KEPT + (1 << 20)).contains(&bytes), "{bytes}");
    }
    let end = reloads.rss().await;
    assert!(end < begin + 5 * KEPT, "{begin} {end}");
    let leaks = reloads.host.status().await.host.leaks;
    assert_eq!((leaks.bytes, leaks.estimated), (0, 0));
}

#[tokio::test]
async fn what_is_lost_without_an_own_heap_counts_against_the_budget() {
    let config = "[server.leak_budget]\nbytes = \"40MiB\"\n";
    let mut reloads = Reloads::of(SYSTEM, config).await;
    let mut end = None;
    for _ in 0..14 {
        end = reloads.next().await;
    }
    let leaks = reloads.host.status().await.host.leaks;
    assert_eq!(leaks.bytes, leaks.estimated);
    // Thirteen are gone; the first four are what the others are compared with.
    let expected = 9 * KEPT;
    assert!(
        (expected - 2 * KEPT..expected + 2 * KEPT).contains(&leaks.bytes),
        "{leaks:?}"
    );
    let end = end.unwrap();
    assert_eq!(end.leaked_bytes, None);
    assert!(end.message.contains("no heap of its own"), "{end:?}");
    let told = reloads.host.event("that the budget is overdrawn", |event| {
        event.kind == "leak-budget"
    });
    assert!(told.await.message.contains("40 MiB"));
}

#[tokio::test]
async fn a_generation_that_stays_mapped_says_what_its_heap_holds() {
    let mut reloads = Reloads::of(OWN, "").await;
    reloads.deploy().await;
    assert_eq!(reloads.host.get("/stay").await.text(), "stays");
    let leaks = reloads.host.status().await.host.leaks;
    assert_eq!(leaks.bytes, 0, "it is live");
    reloads.deploy().await;
    let retained = reloads.host.event("the old generation's end", |event| {
        event.generation == Some(1) && event.kind == "retained"
    });
    retained.await;
    let leaks = reloads.host.status().await.host.leaks;
    assert!((KEPT..KEPT + (2 << 20)).contains(&leaks.bytes), "{leaks:?}");
    assert_eq!((leaks.estimated, leaks.retained), (0, 1));
}
