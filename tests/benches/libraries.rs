//! Libraries that nobody here wrote, each in a plugin that is swapped under load.
//!
//! ```text
//! tests/libraries/fetch.sh                                              # installs them
//! cargo bench -p handover-tests --bench libraries                       # all of them; writes docs/libraries.md
//! cargo bench -p handover-tests --bench libraries -- --only rdkafka,lua --swaps 5
//! cargo bench -p handover-tests --bench libraries -- --host PATH        # another build of the host
//! cargo bench -p handover-tests --bench libraries -- --plugins FOLDER   # plugins built before, as NAME.so (none.so without a library)
//! cargo bench -p handover-tests --bench libraries -- --logs FOLDER      # keeps the host's log and the reasons
//! ```
//!
//! Each plugin (`tests/libraries`) answers every request with its library, and is replaced by
//! another version of itself, then in turn by the same app without a library and back. Once it
//! shuts its library down as its documentation has it (tidy), once never (untidy). Told are: lost
//! requests, crashes, what was unloaded, and what was retained, with the reasons in `status`.
//!
//! Fails when the host crashed, a request was lost, or a generation was neither unloaded nor
//! retained.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use handover_tests::{
    bench::{self, report},
    client::Http1,
    elf,
    host::{DEADLINE, Host, Setup, Status},
    load::{Load, Running},
    plugins,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// How often each is swapped for another version of itself.
const SWAPS: u32 = 50;
/// How often it then leaves for the app without a library, and comes back.
const ROUND_TRIPS: u32 = 5;

/// A library, and how it is linked.
struct Library {
    /// The feature of `tests/libraries`.
    name: &'static str,
    /// What brings it.
    package: &'static str,
    needs: Needs,
    /// Its habits.
    habits: &'static str,
    /// Whether there is anything to shut down.
    ends: bool,
}

/// How it is known to be installed.
#[derive(Clone, Copy)]
enum Needs {
    Nothing,
    PkgConfig(&'static str),
    File(&'static str),
}

const LIBRARIES: &[Library] = &[
    Library {
        name: "curl",
        package: "libcurl4-openssl-dev",
        needs: Needs::PkgConfig("libcurl"),
        habits: "global state, kept connections, resolver threads that are detached when given up",
        ends: true,
    },
    Library {
        name: "duckdb",
        package: "@duckdb/node-bindings-linux-x64 (npm)",
        needs: Needs::File("libduckdb.so"),
        habits: "C++ task threads, jemalloc inside, 68 MiB",
        ends: true,
    },
    Library {
        name: "git2",
        package: "libgit2-dev",
        needs: Needs::PkgConfig("libgit2"),
        habits: "global state counted by init and shutdown, thread-local errors",
        ends: true,
    },
    Library {
        name: "git2-static",
        package: "libgit2-sys (crates.io)",
        needs: Needs::PkgConfig("libgit2"),
        habits: "the same, linked into the plugin as the crate `git2` has it",
        ends: true,
    },
    Library {
        name: "gstreamer",
        package: "libgstreamer1.0-dev, gstreamer1.0-plugins-base",
        needs: Needs::PkgConfig("gstreamer-1.0"),
        habits: "forks a scanner, loads plugins of its own, types registered for ever, pooled threads that call the plugin",
        ends: true,
    },
    Library {
        name: "jemalloc",
        package: "libjemalloc-dev",
        needs: Needs::PkgConfig("jemalloc"),
        habits: "static TLS, background threads made past the host's `pthread_create`",
        ends: true,
    },
    Library {
        name: "jemalloc-allocator",
        package: "tikv-jemallocator (crates.io)",
        needs: Needs::Nothing,
        habits: "the plugin's global allocator, background threads",
        ends: true,
    },
    Library {
        name: "lua",
        package: "liblua5.4-dev",
        needs: Needs::PkgConfig("lua5.4"),
        habits: "errors by longjmp",
        ends: false,
    },
    Library {
        name: "lua-static",
        package: "lua-src (crates.io)",
        needs: Needs::Nothing,
        habits: "the same, linked into the plugin",
        ends: false,
    },
    Library {
        name: "onnxruntime",
        package: "onnxruntime (PyPI)",
        needs: Needs::File("libonnxruntime.so"),
        habits: "opened by `dlopen`, C++ threads that spin, one environment for the process that logs by a function of the first plugin",
        ends: true,
    },
    Library {
        name: "openssl",
        package: "libssl-dev",
        needs: Needs::PkgConfig("openssl"),
        habits: "`atexit`, thread-local state with destructors, a register of the plugin's functions that nobody leaves by himself",
        ends: true,
    },
    Library {
        name: "openssl-static",
        package: "libssl-dev",
        needs: Needs::PkgConfig("openssl"),
        habits: "the same, linked into the plugin",
        ends: true,
    },
    Library {
        name: "python",
        package: "libpython3-dev",
        needs: Needs::PkgConfig("python3-embed"),
        habits: "one interpreter for the process, threads of Python's that call the plugin",
        ends: true,
    },
    Library {
        name: "python-static",
        package: "libpython3-dev",
        needs: Needs::PkgConfig("python3-embed"),
        habits: "an interpreter for each generation, linked into the plugin",
        ends: true,
    },
    Library {
        name: "rdkafka",
        package: "librdkafka-dev",
        needs: Needs::PkgConfig("rdkafka"),
        habits: "threads for every broker and handle that log by the plugin, listeners of a mock cluster",
        ends: true,
    },
    Library {
        name: "rdkafka-static",
        package: "rdkafka-sys (crates.io), librdkafka-dev",
        needs: Needs::PkgConfig("rdkafka"),
        habits: "the same, linked into the plugin as the crate `rdkafka` has it",
        ends: true,
    },
    Library {
        name: "rocksdb",
        package: "librocksdb-dev",
        needs: Needs::PkgConfig("rocksdb"),
        habits: "a pool of C++ threads for the process that calls the plugin, thread-locals with destructors, `fcntl` locks",
        ends: true,
    },
];

/// What became of one plugin.
#[derive(Default)]
struct Outcome {
    swaps: u32,
    round_trips: u32,
    answers: u64,
    /// Requests that were lost, and why.
    lost: Vec<String>,
    /// Answers that came from an older version than one before, or from two at once, and
    /// connections that were closed.
    wrong: Vec<String>,
    /// What the host said when it would not take a version.
    refused: Option<String>,
    /// The last words about a host that is gone.
    crashed: Option<String>,
    unloaded: usize,
    /// How many are retained for which reason, with the numbers taken out.
    retained: BTreeMap<String, usize>,
    /// Generations that were still on their way out at the end.
    undecided: Vec<String>,
    /// With the first version, after the swaps, and once the library has left.
    costs: Vec<Cost>,
}

/// What the process has.
struct Cost {
    threads: usize,
    descriptors: usize,
    resident: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    if !bench::asked_for(&[
        "--only LIBRARY",
        "--swaps NUMBER",
        "--host PATH",
        "--plugins FOLDER",
        "--logs FOLDER",
    ]) {
        return ExitCode::SUCCESS;
    }
    let only = bench::option("--only");
    let swaps = bench::option("--swaps").map_or(SWAPS, |number| {
        number.parse().expect("--swaps wants a number")
    });
    let files = plugins::target_dir().join("libraries").join("files");
    let server = answering().await;
    let plain = build("", &files).expect("the app without a library can be built");
    let (mut rows, mut failed) = (Vec::new(), false);
    for library in LIBRARIES {
        if only
            .as_deref()
            .is_some_and(|only| !only.split(',').any(|one| one == library.name))
        {
            continue;
        }
        if !library.needs.met(&files) {
            println!(
                "{}: SKIPPED, {} is not installed",
                library.name, library.package
            );
            continue;
        }
        let built = match build(library.name, &files) {
            Ok(built) => built,
            Err(why) => {
                println!("{}: SKIPPED, it cannot be built:\n{why}", library.name);
                continue;
            }
        };
        let manners: &[bool] = if library.ends {
            &[true, false]
        } else {
            &[false]
        };
        for &tidy in manners {
            let manner = match (library.ends, tidy) {
                (false, _) => "-",
                (true, true) => "tidy",
                (true, false) => "untidy",
            };
            let config = format!(
                "[app.libraries]\nroutes = [\"/\"]\nkeep_artifacts = 3\ndrain_deadline = \"5s\"\n\
                 [app.libraries.config]\ntidy = {tidy}\nfolder = \"HOME/data\"\nfile = \"{}\"\nurl = \"http://localhost:{server}/\"\n\
                 [log]\nlevel = \"info\"\n",
                files.join("libonnxruntime.so").display()
            );
            let began = Instant::now();
            let outcome = run(
                &format!("{}-{manner}", library.name),
                &config,
                &built,
                &plain,
                swaps,
            )
            .await;
            println!(
                "{} {manner} ({:.0?}): {}",
                library.name,
                began.elapsed(),
                outcome.told()
            );
            failed |= outcome.failed();
            rows.push(outcome.cells(library, manner));
        }
    }
    let table = report::table(
        &[
            "Library",
            "habits",
            "",
            "swaps",
            "answers",
            "lost",
            "unloaded",
            "retained",
            "threads",
            "descriptors",
            "RSS, MiB",
            "what `status` says",
        ],
        &rows,
    );
    println!("\n{table}");
    if only.is_none() && bench::option("--host").is_none() && swaps == SWAPS {
        let machine = report::machine();
        let text = |name: &str| machine[name].as_str().unwrap_or_default().to_owned();
        let table = format!(
            "Commit {}, {} cores, kernel {}.\n\n{table}",
            text("commit"),
            machine["cores"],
            text("kernel")
        );
        report::write_tables(
            &plugins::workspace().join("docs/libraries.md"),
            &[("libraries", table)],
        );
    }
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Swaps one plugin under load.
async fn run(name: &str, config: &str, built: &[u8], plain: &[u8], swaps: u32) -> Outcome {
    let mut setup = Setup::new()
        .config(config)
        .env("GST_REGISTRY", "registry.bin");
    if let Some(program) = bench::option("--host") {
        setup = setup.program(program.into());
    }
    let host = setup.start().await;
    let [first, second, without] =
        [("1.0.0", built), ("2.0.0", built), ("3.0.0", plain)].map(|(version, bytes)| {
            let mut bytes = bytes.to_vec();
            elf::set_version(&mut bytes, version);
            bytes
        });
    let mut outcome = Outcome::default();
    let mut seen = Seen {
        host: &host,
        outcome: &mut outcome,
    };
    // Each step says whether the next is worth it.
    if seen.deploy(&second).await {
        let load = Load {
            keep_alive: 2,
            closing: 1,
            streams: 2,
            pause: Duration::from_millis(10),
        };
        let running = load.start(host.address);
        seen.steps(&running, [&first, &second, &without], swaps)
            .await;
        let answered = tokio::time::timeout(DEADLINE * 2, running.stop()).await;
        match answered {
            Ok(report) => {
                outcome.answers = report.ok;
                outcome.lost.extend(report.failed);
                outcome.lost.extend(report.cut);
                outcome.wrong.extend(report.out_of_order);
                outcome.wrong.extend(report.stale);
                outcome.wrong.extend(report.mixed);
                if report.closed > 0 {
                    outcome
                        .wrong
                        .push(format!("{} kept connections closed", report.closed));
                }
            }
            Err(_) => outcome
                .lost
                .push("requests that were never answered".into()),
        }
    }
    if let Some(folder) = bench::option("--logs") {
        keep(&host, Path::new(&folder), name, &outcome);
    }
    outcome
}

/// A host, and what is noted of it. Nothing here panics when it is gone.
struct Seen<'a> {
    host: &'a Host,
    outcome: &'a mut Outcome,
}

impl Seen<'_> {
    async fn steps(&mut self, running: &Running, [first, second, without]: [&[u8]; 3], swaps: u32) {
        if !self.heard(running, 50).await {
            return;
        }
        self.cost();
        for n in 1..=swaps {
            if !self.deploy(if n % 2 == 1 { first } else { second }).await
                || !self.heard(running, 10).await
            {
                return;
            }
            self.outcome.swaps = n;
        }
        if !self.settled().await {
            return;
        }
        self.cost();
        for n in 1..=ROUND_TRIPS {
            for artifact in [without, first] {
                if !self.deploy(artifact).await || !self.heard(running, 10).await {
                    return;
                }
            }
            self.outcome.round_trips = n;
        }
        if self.deploy(without).await && self.settled().await && self.heard(running, 50).await {
            self.cost();
        }
    }

    /// Makes an artifact live.
    async fn deploy(&mut self, artifact: &[u8]) -> bool {
        let asked = async {
            let mut control = Http1::connect_unix(&self.host.control()).await?;
            control.post("/v1/deploy?name=library.so", artifact).await
        };
        let answer = match tokio::time::timeout(DEADLINE, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(fault)) => {
                tokio::time::sleep(Duration::from_millis(500)).await;
                if self.alive() {
                    self.outcome.refused = Some(fault.to_string());
                }
                return false;
            }
            Err(_) => {
                self.outcome.refused = Some("the deploy did not end".into());
                return false;
            }
        };
        let text = answer.text();
        let last = text.lines().last().unwrap_or_default();
        if last.contains("\"outcome\":\"done\"") {
            return self.alive();
        }
        if self.alive() {
            self.outcome.refused = Some(last.to_owned());
        }
        false
    }

    /// Waits for that many answers more.
    async fn heard(&mut self, running: &Running, answers: u64) -> bool {
        let goal = running.answered() + answers;
        let deadline = Instant::now() + DEADLINE;
        while running.answered() < goal {
            if !self.alive() {
                return false;
            }
            if Instant::now() > deadline {
                self.outcome.lost.push("the load stands still".into());
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.alive()
    }

    /// Waits until every generation but the active one is unloaded or retained, and counts them.
    async fn settled(&mut self) -> bool {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if !self.alive() {
                return false;
            }
            if let Some(status) = self.status().await
                && let Some(app) = status.apps.first()
            {
                let active = app.active.as_ref().map(|active| active.generation);
                let others = || {
                    app.generations
                        .iter()
                        .filter(|one| Some(one.generation) != active)
                };
                let undecided: Vec<_> = others()
                    .filter(|one| one.retained_because.is_none())
                    .map(|one| format!("generation {} is {}", one.generation, one.state))
                    .collect();
                if undecided.is_empty() || Instant::now() > deadline {
                    self.outcome.undecided = undecided;
                    self.outcome.retained.clear();
                    for reason in others().filter_map(|one| one.retained_because.as_deref()) {
                        *self
                            .outcome
                            .retained
                            .entry(without_numbers(reason))
                            .or_default() += 1;
                    }
                    self.count_unloaded().await;
                    return true;
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn status(&self) -> Option<Status> {
        let answer = self.host.ask("GET", "/v1/status").await.ok()?;
        serde_json::from_slice(&answer.body).ok()
    }

    async fn count_unloaded(&mut self) {
        let Ok(answer) = self.host.ask("GET", "/v1/events").await else {
            return;
        };
        let text = answer.text();
        let generations: BTreeSet<_> = text
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter(|event| event["kind"] == "unloaded")
            .filter_map(|event| event["generation"].as_u64())
            .collect();
        self.outcome.unloaded = generations.len();
    }

    fn cost(&mut self) {
        if self.alive() {
            self.outcome.costs.push(Cost {
                threads: self.host.threads(),
                descriptors: self.host.descriptors(),
                resident: self.host.resident(),
            });
        }
    }

    /// Whether the process that was started still serves; if not, that is noted.
    fn alive(&mut self) -> bool {
        let status =
            fs::read_to_string(format!("/proc/{}/stat", self.host.pid())).unwrap_or_default();
        let state = status
            .rsplit_once(") ")
            .map(|(_, rest)| rest.starts_with('Z'));
        if state == Some(false) {
            return true;
        }
        if self.outcome.crashed.is_none() {
            // The supervisor tells what it saw.
            std::thread::sleep(Duration::from_millis(500));
            let log = self.host.log();
            let told = log.iter().rev().find(|line| {
                line.contains("SIG") || line.contains("signal") || line.contains("crash")
            });
            self.outcome.crashed = Some(told.cloned().unwrap_or_else(|| "the host is gone".into()));
        }
        false
    }
}

impl Outcome {
    fn failed(&self) -> bool {
        self.crashed.is_some()
            || !self.lost.is_empty()
            || !self.wrong.is_empty()
            || !self.undecided.is_empty()
    }

    /// Everything, for whoever looks on.
    fn told(&self) -> String {
        let mut text = format!(
            "{} swaps, {} round trips, {} answers, {} lost, {} unloaded, {} retained",
            self.swaps,
            self.round_trips,
            self.answers,
            self.lost.len(),
            self.unloaded,
            self.retained.values().sum::<usize>()
        );
        for (reason, count) in &self.retained {
            text += &format!("\n    {count} retained: {reason}");
        }
        for (what, list) in [
            ("lost", &self.lost),
            ("wrong", &self.wrong),
            ("undecided", &self.undecided),
        ] {
            for one in list.iter().take(3) {
                text += &format!("\n    {what}: {one}");
            }
        }
        for (what, one) in [("REFUSED", &self.refused), ("CRASHED", &self.crashed)] {
            if let Some(one) = one {
                text += &format!("\n    {what}: {one}");
            }
        }
        text
    }

    fn cells(&self, library: &Library, manner: &str) -> Vec<String> {
        let over = |value: fn(&Cost) -> u64| {
            let values: Vec<_> = self
                .costs
                .iter()
                .map(|cost| value(cost).to_string())
                .collect();
            values.join(" → ")
        };
        let mut said: Vec<String> = Vec::new();
        if let Some(crashed) = &self.crashed {
            said.push(format!("**crashed**: {crashed}"));
        }
        if let Some(refused) = &self.refused {
            said.push(format!("refused: {refused}"));
        }
        said.extend(
            self.retained
                .iter()
                .map(|(reason, count)| format!("{count} × {reason}")),
        );
        said.extend(self.undecided.iter().take(1).cloned());
        vec![
            library.name.to_owned(),
            library.habits.to_owned(),
            manner.to_owned(),
            format!("{} + {}", self.swaps, 2 * self.round_trips),
            self.answers.to_string(),
            self.lost.len().to_string(),
            self.unloaded.to_string(),
            self.retained.values().sum::<usize>().to_string(),
            over(|cost| cost.threads as u64),
            over(|cost| cost.descriptors as u64),
            over(|cost| cost.resident >> 20),
            said.join("; ").replace('|', "\\|"),
        ]
    }
}

impl Needs {
    fn met(self, files: &Path) -> bool {
        match self {
            Self::Nothing => true,
            Self::File(name) => files.join(name).exists(),
            Self::PkgConfig(package) => Command::new("pkg-config")
                .args(["--exists", package])
                .status()
                .is_ok_and(|status| status.success()),
        }
    }
}

/// Builds the plugin with one library, and gives its bytes. The profile is always that of
/// development: the library is what counts.
fn build(feature: &str, files: &Path) -> Result<Vec<u8>, String> {
    if let Some(folder) = bench::option("--plugins") {
        let name = if feature.is_empty() { "none" } else { feature };
        let path = Path::new(&folder).join(format!("{name}.so"));
        return fs::read(&path).map_err(|error| format!("{}: {error}", path.display()));
    }
    let target = plugins::target_dir().join("libraries");
    // An allocator of its own takes the place of the heap that each load is given.
    let own_heap = (feature != "jemalloc-allocator").then_some("handover-plugin/own-heap");
    let features: Vec<_> = own_heap.into_iter().chain([feature]).collect();
    let output = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked"])
        .args(["--features", &features.join(",")])
        .current_dir(plugins::workspace().join("tests/libraries"))
        .env("CARGO_TARGET_DIR", &target)
        .env("LIBRARIES_FOLDER", files)
        .env_remove("HANDOVER_VERSION")
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    fs::read(target.join("debug/liblibraries.so")).map_err(|error| error.to_string())
}

/// A server that answers everything, and the port of it: what a client library talks to.
async fn answering() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("there is a free port");
    let port = listener.local_addr().expect("it listens").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 4096];
                while let Ok(1..) = stream.read(&mut head).await {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

/// A reason with every number as `N` and every list of the same thing once, so that the same reason
/// is counted as one.
fn without_numbers(reason: &str) -> String {
    let mut text = String::new();
    for letter in reason.chars() {
        if !letter.is_ascii_digit() {
            text.push(letter);
        } else if !text.ends_with('N') {
            text.push('N');
        }
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split(", ") {
        if !parts.contains(&part) {
            parts.push(part);
        }
    }
    parts.join(", ")
}

/// Keeps what is needed to find out why.
fn keep(host: &Host, folder: &Path, name: &str, outcome: &Outcome) {
    fs::create_dir_all(folder).expect("the folder of the logs can be made");
    let log = host.log().join("\n");
    fs::write(
        folder.join(format!("{name}.log")),
        format!("{}\n\n{log}\n", outcome.told()),
    )
    .expect("it can be written");
    let cores = fs::read_dir(host.home())
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    for core in cores.filter(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("core"))
    }) {
        let kept: PathBuf = folder.join(format!("{name}.core"));
        let _ = fs::rename(&core, &kept).or_else(|_| fs::copy(&core, &kept).map(drop));
    }
}
