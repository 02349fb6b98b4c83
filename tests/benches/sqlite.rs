//! A SQLite database across a thousand deploys under load, and the same app as processes that
//! follow each other.
//!
//! ```text
//! cargo bench -p handover-tests --bench sqlite                       # 1,000 deploys, and 100 restarts to compare with
//! cargo bench -p handover-tests --bench sqlite -- --deploys 10 --restarts 5
//! cargo bench -p handover-tests --bench sqlite -- --only rusqlite
//! ```
//!
//! Eight ways: rusqlite and sqlx, a write-ahead log and a rollback journal, with and without a job
//! that writes across the deploys. Clients write rows all the time; the next deploy begins when the
//! last one is live, so jobs keep generations open beside each other. In the end another process
//! opens the file: every row that was acknowledged has to be there, what was counted has to be the
//! number of rows, and SQLite has to find the file whole. As processes, each version is a host of
//! its own on the same file, and clients go to the next one's port before the last one is told to
//! end.
//!
//! Fails when a generation lost a row, or a request failed.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use handover_tests::{
    bench,
    client::Http1,
    elf,
    host::{Host, Setup},
    plugins::{self, fixture},
};

const CLIENTS: usize = 3;
/// What a client waits between two rows: a database that is locked all the time lets nobody else
/// in, in one process or in two.
const PAUSE: Duration = Duration::from_millis(5);
/// How many rows a job writes: it goes on over some deploys.
const ROWS_OF_JOB: i64 = 150;
/// A job is started with each so many deploys.
const JOB_EVERY: u64 = 3;

#[derive(Clone, Copy)]
struct Way {
    library: &'static str,
    journal: &'static str,
    with_job: bool,
}

#[derive(Default)]
struct Tally {
    swaps: u64,
    refused: u64,
    acknowledged: usize,
    lost: usize,
    failed: u64,
    torn: bool,
    integrity: String,
    slowest: Duration,
}

impl Tally {
    fn is_clean(&self) -> bool {
        self.lost == 0 && self.failed == 0 && !self.torn && self.integrity == "ok"
    }
}

/// Clients that write rows, and what was acknowledged to them.
struct Writers {
    stop: Arc<AtomicBool>,
    target: Arc<Mutex<SocketAddr>>,
    failed: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<(Vec<i64>, Duration)>>,
}

impl Writers {
    fn start(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let target = Arc::new(Mutex::new(address));
        let failed = Arc::new(AtomicU64::new(0));
        let next = Arc::new(AtomicI64::new(0));
        let tasks = (0..CLIENTS)
            .map(|_| {
                let (stop, target) = (Arc::clone(&stop), Arc::clone(&target));
                let (failed, next) = (Arc::clone(&failed), Arc::clone(&next));
                tokio::spawn(async move {
                    let mut connected: Option<(SocketAddr, Http1)> = None;
                    let (mut acknowledged, mut slowest) = (Vec::new(), Duration::ZERO);
                    while !stop.load(Ordering::Relaxed) {
                        let address = *target.lock().expect("nobody panics with it");
                        let mut client = match connected.take() {
                            Some((to, client)) if to == address => client,
                            _ => Http1::connect(address).await.expect("a host listens"),
                        };
                        let id = next.fetch_add(1, Ordering::Relaxed);
                        let began = Instant::now();
                        match client.post(&format!("/write?id={id}"), b"").await {
                            Ok(answer) if answer.status == 200 => {
                                acknowledged.push(id);
                                slowest = slowest.max(began.elapsed());
                                connected = Some((address, client));
                            }
                            Ok(answer) => {
                                println!("  row {id}: {} {}", answer.status, answer.text());
                                failed.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(fault) => {
                                println!("  row {id}: {fault}");
                                failed.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                        tokio::time::sleep(PAUSE).await;
                    }
                    (acknowledged, slowest)
                })
            })
            .collect();
        Self {
            stop,
            target,
            failed,
            tasks,
        }
    }

    async fn stop(self, tally: &mut Tally) -> Vec<i64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut acknowledged = Vec::new();
        for task in self.tasks {
            let (its, slowest) = task.await.expect("a client does not panic");
            acknowledged.extend(its);
            tally.slowest = tally.slowest.max(slowest);
        }
        tally.failed = self.failed.load(Ordering::Relaxed);
        acknowledged
    }
}

struct Bench {
    way: Way,
    folder: tempfile::TempDir,
    artifacts: [PathBuf; 2],
    jobs: Vec<i64>,
}

impl Bench {
    fn new(way: Way, artifacts: [PathBuf; 2]) -> Self {
        Self {
            way,
            folder: tempfile::tempdir().expect("there is a temporary folder"),
            artifacts,
            jobs: Vec::new(),
        }
    }

    fn setup(&self) -> Setup {
        Setup::new().config(&format!(
            "[app.sqlite]\nroutes = [\"/\"]\nkeep_artifacts = 2\n[app.sqlite.config]\nfolder = \"{}\"\njournal = \"{}\"\n\
             [app.sqlite.check]\nstart = false\n[log]\nlevel = \"warn\"\n",
            self.folder.path().display(),
            self.way.journal,
        ))
    }

    /// Whether it is live.
    async fn deploy(&self, host: &Host, number: u64) -> bool {
        let artifact = fs::read(&self.artifacts[(number % 2) as usize]).expect("it was just built");
        let mut control = Http1::connect_unix(&host.control())
            .await
            .expect("the host runs");
        let answer = control
            .post("/v1/deploy?name=sqlite.so", &artifact)
            .await
            .unwrap_or_else(|fault| panic!("the control socket: {fault}"));
        let text = answer.text();
        let result = text.lines().last().unwrap_or_default();
        let done = result.contains("\"outcome\":\"done\"");
        if !done {
            println!("  {result}");
        }
        done
    }

    async fn job(&mut self, address: SocketAddr, number: u64) {
        if !self.way.with_job || !number.is_multiple_of(JOB_EVERY) {
            return;
        }
        let id = (1 << 40) + ((number as i64) << 20);
        self.jobs.push(id);
        let mut client = Http1::connect(address).await.expect("a host listens");
        let job = format!("/job?id={id}&rows={ROWS_OF_JOB}");
        let answer = client.post(&job, b"").await.expect("it is answered");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// In one host, a generation after the other.
    async fn generations(mut self, deploys: u64) -> Tally {
        let mut tally = Tally::default();
        let host = self.setup().start().await;
        assert!(self.deploy(&host, 0).await);
        let writers = Writers::start(host.address);
        for number in 1..=deploys {
            self.job(host.address, number).await;
            match self.deploy(&host, number).await {
                true => tally.swaps += 1,
                false => tally.refused += 1,
            }
        }
        let acknowledged = writers.stop(&mut tally).await;
        host.settled("sqlite").await;
        drop(host);
        self.judge(acknowledged, tally).await
    }

    /// In a host for each of them.
    async fn processes(mut self, restarts: u64) -> Tally {
        let mut tally = Tally::default();
        let mut host = self.setup().start().await;
        assert!(self.deploy(&host, 0).await);
        let writers = Writers::start(host.address);
        let mut ending = Vec::new();
        for number in 1..=restarts {
            self.job(host.address, number).await;
            let next = self.setup().start().await;
            if !self.deploy(&next, number).await {
                tally.refused += 1;
                continue;
            }
            tally.swaps += 1;
            *writers.target.lock().expect("nobody panics with it") = next.address;
            let last = std::mem::replace(&mut host, next);
            ending.push(tokio::spawn(async move {
                // Clients that have sent to it are answered first.
                tokio::time::sleep(Duration::from_secs(1)).await;
                last.cli(["shutdown"]).await;
            }));
        }
        let acknowledged = writers.stop(&mut tally).await;
        for ending in ending {
            ending.await.expect("it does not panic");
        }
        self.until_jobs_have_ended().await;
        host.cli(["shutdown"]).await;
        self.judge(acknowledged, tally).await
    }

    fn entered(&self, job: i64) -> Vec<String> {
        fs::read_to_string(self.folder.path().join(format!("job-{job}")))
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    async fn until_jobs_have_ended(&self) {
        for job in &self.jobs {
            while self.entered(*job).last().is_none_or(|last| last != "end") {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// What another process finds in the file.
    async fn judge(self, mut acknowledged: Vec<i64>, mut tally: Tally) -> Tally {
        for job in &self.jobs {
            for line in self.entered(*job) {
                match line.parse() {
                    Ok(id) => acknowledged.push(id),
                    Err(_) if line == "end" => {}
                    Err(_) => {
                        println!("  job {job}: {line}");
                        tally.failed += 1;
                    }
                }
            }
        }
        let host = self.setup().start().await;
        assert!(self.deploy(&host, 0).await, "the file can be opened");
        let rows = host.get("/rows").await;
        let rows: Vec<i64> = serde_json::from_str(&rows.text()).unwrap_or_default();
        let counted = host.get("/counted").await.text();
        tally.integrity = host.get("/integrity").await.text();
        tally.torn = counted.parse() != Ok(rows.len());
        tally.lost = acknowledged
            .iter()
            .filter(|id| rows.binary_search(id).is_err())
            .count();
        tally.acknowledged = acknowledged.len();
        tally
    }
}

fn print(way: Way, how: &str, tally: &Tally) {
    println!(
        "| {} | {} | {} | {how} | {} | {} | {} | {} | {} | {}{} | {:.0} ms |",
        way.library,
        way.journal,
        if way.with_job { "yes" } else { "no" },
        tally.swaps,
        tally.refused,
        tally.acknowledged,
        tally.lost,
        tally.failed,
        tally.integrity.lines().next().unwrap_or_default(),
        if tally.torn { ", torn" } else { "" },
        tally.slowest.as_secs_f64() * 1e3,
    );
}

/// The artifact at `path`, as two versions.
fn versions(path: &Path, folder: &Path) -> [PathBuf; 2] {
    ["1.0.0", "2.0.0"].map(|version| {
        let mut bytes = fs::read(path).expect("it was just built");
        elf::set_version(&mut bytes, version);
        let name = path.file_stem().expect("it is a file").to_string_lossy();
        let to = folder.join(format!("{name}-{version}.so"));
        fs::write(&to, bytes).expect("the temporary folder can be written");
        to
    })
}

/// The plugin that uses sqlx, in the profile of this bench.
async fn sqlx() -> PathBuf {
    let folder = plugins::workspace().join("tests/benches/sqlx");
    let (profile, built) = if cfg!(debug_assertions) {
        ("dev", "debug")
    } else {
        ("release", "release")
    };
    plugins::cargo_in(&folder, &["build", "--locked", "--profile", profile]).await;
    plugins::target_dir().join(built).join("libsqlx_plugin.so")
}

#[tokio::main]
async fn main() {
    if !bench::asked_for(&["--deploys NUMBER", "--restarts NUMBER", "--only NAME"]) {
        return;
    }
    let number = |flag, otherwise| match bench::option(flag) {
        Some(number) => number.parse().expect("a number"),
        None => otherwise,
    };
    let (deploys, restarts): (u64, u64) = (number("--deploys", 1000), number("--restarts", 100));
    let only = bench::one_of("--only", &["rusqlite", "sqlx"]);
    let folder = tempfile::tempdir().expect("there is a temporary folder");
    let mut ways = Vec::new();
    for library in ["rusqlite", "sqlx"] {
        if only.as_deref().is_some_and(|only| only != library) {
            continue;
        }
        let built = match library {
            "sqlx" => sqlx().await,
            _ => fixture("sqlite", "1.0.0"),
        };
        let artifacts = versions(&built, folder.path());
        for journal in ["wal", "delete"] {
            for with_job in [false, true] {
                let way = Way {
                    library,
                    journal,
                    with_job,
                };
                ways.push((way, artifacts.clone()));
            }
        }
    }
    println!(
        "| library | journal | job | as | swaps | refused | rows acknowledged | lost | failed | integrity | slowest row |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let each = |all: u64| all.div_ceil(ways.len() as u64);
    let mut clean = true;
    for (way, artifacts) in &ways {
        if deploys > 0 {
            let bench = Bench::new(*way, artifacts.clone());
            let tally = bench.generations(each(deploys)).await;
            print(*way, "generations", &tally);
            clean &= tally.is_clean();
        }
        if restarts > 0 {
            let bench = Bench::new(*way, artifacts.clone());
            let tally = bench.processes(each(restarts)).await;
            print(*way, "processes", &tally);
        }
    }
    assert!(clean, "rows were lost, or requests failed");
}
