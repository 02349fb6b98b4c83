//! Two generations have record locks as two processes have them: a database that both have open
//! keeps what was written to it.
//!
//! docs/unloading.md has what is kept apart, and what is not.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

use handover_tests::{
    client::Http1,
    host::{Host, Setup},
    plugins::fixture,
};

fn setup(journal: &str, more: &str) -> Setup {
    Setup::new().config(&format!(
        "[app.sqlite]\nroutes = [\"/\"]\n{more}\n[app.sqlite.config]\nfolder = \"HOME\"\njournal = \"{journal}\"\n"
    ))
}

async fn deploy(host: &Host, version: &str) {
    host.deploy(&fixture("sqlite", version))
        .await
        .expect_code(0);
}

async fn rows(host: &Host) -> Vec<i64> {
    let answer = host.get("/rows").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_value(answer.json()).unwrap()
}

/// Writes some rows one after the other.
async fn write(host: &Host, ids: std::ops::Range<i64>) {
    let mut client = Http1::connect(host.address).await.unwrap();
    for id in ids {
        let answer = client.post(&format!("/write?id={id}"), b"").await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

/// Nothing is torn: what was counted is there, and SQLite finds the file to be whole.
async fn is_whole(host: &Host) {
    let counted = host.get("/counted").await.json().as_i64().unwrap();
    assert_eq!(counted, rows(host).await.len() as i64);
    assert_eq!(host.get("/integrity").await.text(), "ok");
}

/// No descriptor of the host stands for a file that SQLite has deleted because it thought to be
/// alone.
fn has_no_deleted_file(host: &Host) {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", host.pid())).unwrap();
    for descriptor in descriptors {
        let target = fs::read_link(descriptor.unwrap().path()).unwrap_or_default();
        let target = target.to_string_lossy();
        assert!(
            !(target.contains("/database") && target.ends_with("(deleted)")),
            "{target}"
        );
    }
}

#[tokio::test]
async fn what_is_written_before_and_after_a_deploy_is_there() {
    let host = setup("wal", "").start().await;
    deploy(&host, "1.0.0").await;
    write(&host, 0..10).await;
    deploy(&host, "2.0.0").await;
    host.settled("sqlite").await;
    write(&host, 10..20).await;
    has_no_deleted_file(&host);
    assert_eq!(rows(&host).await, (0..20).collect::<Vec<_>>());
    is_whole(&host).await;
}

/// Clients that write all the time, and what was acknowledged to them.
struct Writers {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<Vec<i64>>>,
}

impl Writers {
    fn start(host: &Host) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let next = Arc::new(AtomicI64::new(0));
        let tasks = (0..3)
            .map(|_| {
                let (stop, next, address) = (Arc::clone(&stop), Arc::clone(&next), host.address);
                tokio::spawn(async move {
                    let mut client = Http1::connect(address).await.unwrap();
                    let mut acknowledged = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let id = next.fetch_add(1, Ordering::Relaxed);
                        let answer = client.post(&format!("/write?id={id}"), b"").await.unwrap();
                        assert_eq!(answer.status, 200, "{}", answer.text());
                        acknowledged.push(id);
                        // A database that is locked all the time lets nobody else in, in one
                        // process or in two.
                        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
                    }
                    acknowledged
                })
            })
            .collect();
        Self { stop, tasks }
    }

    async fn stop(self) -> Vec<i64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut acknowledged = Vec::new();
        for task in self.tasks {
            acknowledged.extend(task.await.unwrap());
        }
        acknowledged
    }
}

async fn nothing_is_lost(journal: &str, with_job: bool) {
    let host = setup(journal, "").start().await;
    deploy(&host, "1.0.0").await;
    let writers = Writers::start(&host);
    let mut jobs = Vec::new();
    for deploys in 0..10_i64 {
        if with_job && deploys % 3 == 0 {
            let id = (1 << 40) + (deploys << 20);
            jobs.push(id);
            let mut client = Http1::connect(host.address).await.unwrap();
            let job = format!("/job?id={id}&rows=100");
            let answer = client.post(&job, b"").await.unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        let version = if deploys % 2 == 0 { "2.0.0" } else { "1.0.0" };
        deploy(&host, version).await;
    }
    let mut acknowledged = writers.stop().await;
    host.settled("sqlite").await;
    for job in jobs {
        let entered = fs::read_to_string(host.home().join(format!("job-{job}"))).unwrap();
        let entered: Vec<_> = entered.lines().collect();
        assert_eq!(entered.last(), Some(&"end"));
        assert_eq!(entered.len(), 101, "{entered:?}");
        let done = entered[..100].iter();
        acknowledged.extend(done.map(|id| id.parse::<i64>().unwrap()));
    }
    let rows = rows(&host).await;
    for id in &acknowledged {
        assert!(rows.binary_search(id).is_ok(), "row {id} is lost");
    }
    assert_eq!(rows.len(), acknowledged.len());
    is_whole(&host).await;
    has_no_deleted_file(&host);
}

#[tokio::test]
async fn deploys_under_load_lose_nothing_with_a_write_ahead_log() {
    nothing_is_lost("wal", false).await;
}

#[tokio::test]
async fn deploys_under_load_lose_nothing_with_a_rollback_journal() {
    nothing_is_lost("delete", false).await;
}

#[tokio::test]
async fn a_job_writes_across_deploys_with_a_write_ahead_log() {
    nothing_is_lost("wal", true).await;
}

#[tokio::test]
async fn a_job_writes_across_deploys_with_a_rollback_journal() {
    nothing_is_lost("delete", true).await;
}

/// A file that may be open only once, the second time: why it is refused says who has it and what
/// to do.
async fn is_told_who_has_it(how: &str, called: &str, check: &str) {
    let config = format!(
        "[app.sqlite]\nroutes = [\"/\"]\n[app.sqlite.config]\nfolder = \"HOME\"\njournal = \"wal\"\nonce = \"{how}\"\n{check}"
    );
    let host = Setup::new().config(&config).start().await;
    deploy(&host, "1.0.0").await;
    let refused = host.deploy(&fixture("sqlite", "2.0.0")).await;
    let refused = refused.expect_code(4);
    let text = refused.stderr.replace('\n', " ");
    let path = host.home().join("once");
    let said = format!(
        "generation 1 of sqlite (1.0.0) has {} locked ({called})",
        path.display()
    );
    assert!(text.contains(&said), "{text}");
    assert!(text.contains("Context::draining()"), "{text}");
    write(&host, 0..1).await;
}

const NOT_IN_THE_CHILD: &str = "[app.sqlite.check]\nstart = false\n";

#[tokio::test]
async fn a_constructor_that_finds_a_file_locked_in_preflight_is_told_who_has_it() {
    is_told_who_has_it("flock", "flock", "").await;
    is_told_who_has_it("fcntl", "a record lock", "").await;
}

#[tokio::test]
async fn a_constructor_that_finds_a_file_locked_in_the_host_is_told_who_has_it() {
    is_told_who_has_it("flock", "flock", NOT_IN_THE_CHILD).await;
    is_told_who_has_it("fcntl", "a record lock", NOT_IN_THE_CHILD).await;
}
