//! The long bad day of a host: whatever goes wrong around it, one thing after the other, in an
//! order that chance decides.
//!
//! ```text
//! cargo bench --profile dev -p handover-tests --bench day                       # ten minutes, another seed each time
//! cargo bench --profile dev -p handover-tests --bench day -- --minutes 60
//! cargo bench --profile dev -p handover-tests --bench day -- --seed 7           # the same steps again
//! cargo bench --profile dev -p handover-tests --bench day -- --only crash       # those whose names contain it
//! ```
//!
//! One supervised host serves six apps to clients that never stop asking; deploys go on all day.
//! After each step every client of a healthy app has had answers, and none has had another one
//! unless the step ended the process; what was acknowledged to the clients of a database is in it;
//! no app but those that do wrong was rolled back; the host and its supervisor have no child that
//! they should not have. At the end descriptors, threads, mappings and memory are what they were at
//! the beginning.
//!
//! - [`steps`]: what goes wrong
//! - [`clients`]: who must not notice
//! - [`place`]: disk, clock and limits of the host

mod clients;
mod place;
mod random;
mod steps;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use clients::Clients;
use handover_tests::{
    client::Http1,
    elf,
    host::{DEADLINE, Host, Output},
    plugins::fixture,
};
use place::Place;
use random::Random;
use steps::{Kind, STEPS};

/// Apps that do nothing wrong, and the fixture that each is made of.
pub(crate) const HEALTHY: [(&str, &str); 4] = [
    ("front", "probe"),
    ("hello", "hello"),
    ("service", "service"),
    ("sqlite", "sqlite"),
];

/// All of them. `shop` crashes now and then, so it may be rolled back; `misfit` does whatever it
/// can.
const APPS: [&str; 6] = ["front", "hello", "service", "sqlite", "shop", "misfit"];

/// After how many steps it is looked whether every row is there, beside the end and each death of
/// the host.
const ROWS_EVERY: u64 = 10;

/// The day.
pub(crate) struct Day {
    pub(crate) host: Host,
    pub(crate) place: Place,
    pub(crate) clients: Clients,
    pub(crate) random: Random,
    /// How many artifacts were made: the version of the next one.
    made: u64,
    /// What they are made of, read once: others may build it anew meanwhile.
    fixtures: BTreeMap<(&'static str, &'static str), Vec<u8>>,
    /// Events up to here were looked at. Each host begins anew.
    seen: (u32, u64),
}

/// What the host costs.
#[derive(Clone, Copy, Debug)]
struct Cost {
    plugins: usize,
    mappings: usize,
    threads: usize,
    descriptors: usize,
    resident: u64,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let after = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        Some(arguments.get(at + 1).expect("it wants a value").as_str())
    };
    let number =
        |name: &str| after(name).map(|value| value.parse::<u64>().expect("it wants a number"));
    let seed = number("--seed").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(1, |now| now.as_secs() % 1_000_000)
    });
    let minutes = number("--minutes").unwrap_or(10);
    let only = after("--only");
    // A script that is over has nobody left to tell.
    let beside = number("--beside").map(|pid| format!("/proc/{pid}"));
    let goes_on = move || {
        beside
            .as_ref()
            .is_none_or(|script| Path::new(script).exists())
    };
    println!(
        "a bad day of {minutes} minutes; the same again: cargo bench --profile dev -p handover-tests --bench day -- --seed {seed} --minutes {minutes}{}",
        only.map(|only| format!(" --only {only}"))
            .unwrap_or_default()
    );
    match day(seed, Duration::from_secs(60 * minutes), only, goes_on).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!("FAILED with seed {seed}: {why}");
            ExitCode::FAILURE
        }
    }
}

async fn day(
    seed: u64,
    length: Duration,
    only: Option<&str>,
    goes_on: impl Fn() -> bool,
) -> Result<(), String> {
    let mut day = Day::begin(seed).await?;
    let chosen: Vec<_> = STEPS
        .iter()
        .filter(|step| only.is_none_or(|only| step.name.contains(only)))
        .filter(|step| day.place.has_disk || !step.name.contains("disk"))
        .collect();
    assert!(!chosen.is_empty(), "no step has such a name");
    let before = day.cost().await?;
    println!("at the beginning {before:?}");
    let began = Instant::now();
    let (mut number, mut forgiven) = (0, 0);
    // Each once, in an order of chance, then again in another: what is rare is not left out of a
    // short day.
    let mut left = Vec::new();
    while began.elapsed() < length && goes_on() {
        if left.is_empty() {
            left.clone_from(&chosen);
        }
        let at = day.random.below(left.len() as u64);
        let step = left.swap_remove(usize::try_from(at).expect("it is an index"));
        number += 1;
        let at = began.elapsed().as_secs();
        print!("{:02}:{:02} {number:4} {}", at / 60, at % 60, step.name);
        let _ = std::io::stdout().flush();
        let (started, answered) = (Instant::now(), day.clients.answered());
        let done = step.run(&mut day).await;
        let faults = match done {
            Ok(()) => day.look(step.kind, number).await,
            Err(why) => Err(why),
        };
        let faults = faults.map_err(|why| {
            let log = day.host.log();
            format!(
                "step {number} ({}): {why}\nthe log ends: {:#?}",
                step.name,
                &log[log.len().saturating_sub(30)..]
            )
        })?;
        forgiven += faults;
        println!(
            ": {:.1} s, {} answered, {faults} lost with the process",
            started.elapsed().as_secs_f64(),
            day.clients.answered() - answered
        );
    }
    let after = day.end(&before).await?;
    println!("at the end {after:?}");
    println!(
        "{number} steps, {} answered, {forgiven} lost with a process that ended, {} rows acknowledged and there",
        day.clients.answered(),
        day.clients.acknowledged().len()
    );
    before
        .is_again(&after)
        .map_err(|why| format!("{why}; its threads: {:?}", threads_of(day.host.pid())))
}

impl Day {
    async fn begin(seed: u64) -> Result<Self, String> {
        let mut place = Place::new();
        let host = place.start().await;
        let mut day = Self {
            clients: Clients::start(host.address),
            seen: (host.pid(), 0),
            host,
            place,
            random: Random::new(seed),
            made: 0,
            fixtures: BTreeMap::new(),
        };
        // More than once, so that everything that grows to a size has it.
        for _ in 0..3 {
            for app in APPS {
                let bytes = day.artifact(app, "none");
                day.deploy(app, &bytes).await?;
            }
        }
        day.clients.all_answered().await?;
        let faults = day.clients.all_answered().await?;
        day.answers_only(Kind::Unnoticed, &faults)?;
        Ok(day)
    }

    /// A new version of `app`, which only `misfit` gives a habit.
    pub(crate) fn artifact(&mut self, app: &str, habit: &str) -> Vec<u8> {
        self.made += 1;
        let odd = self.made % 2 == 1;
        let made_of = match app {
            "misfit" => "misfit",
            "shop" => "probe",
            healthy => {
                let found = HEALTHY.iter().find(|(app, _)| *app == healthy);
                found.expect("it is one of them").1
            }
        };
        let compiled = match made_of {
            "service" | "misfit" => "1.0.0",
            _ if odd => "1.0.0",
            _ => "2.0.0",
        };
        let kept = self.fixtures.entry((made_of, compiled));
        let mut bytes = kept
            .or_insert_with(|| fs::read(fixture(made_of, compiled)).expect("it was just built"))
            .clone();
        if made_of == "misfit" {
            elf::set_habit(&mut bytes, habit);
        }
        elf::set_version(&mut bytes, &format!("3.0.{}", self.made));
        bytes
    }

    /// The version of the artifact that was made last.
    pub(crate) fn last_version(&self) -> String {
        format!("3.0.{}", self.made)
    }

    /// `handover deploy`, whatever it comes to.
    pub(crate) async fn try_deploy(&self, app: &str, bytes: &[u8], more: &[&str]) -> Output {
        let path = self.host.scratch(&format!("deployed-{}.so", self.made));
        fs::write(&path, bytes).expect("the temporary folder can be written");
        let path = path.to_str().expect("a plain path").to_owned();
        let output = self
            .host
            .cli(["deploy", "--app", app, &path].iter().chain(more))
            .await;
        let _ = fs::remove_file(path);
        output
    }

    /// A deploy that must go well.
    pub(crate) async fn deploy(&self, app: &str, bytes: &[u8]) -> Result<(), String> {
        is_code(&self.try_deploy(app, bytes, &["--queue"]).await, &[0])
    }

    pub(crate) async fn get(&self, path: &str) -> Result<handover_tests::client::Answer, String> {
        let asked = async { Http1::connect(self.host.address).await?.get(path).await };
        asked.await.map_err(|fault| format!("GET {path}: {fault}"))
    }

    /// Looks whether everything is as it should be after a step. Returns how many requests ended
    /// with the process.
    async fn look(&mut self, kind: Kind, number: u64) -> Result<usize, String> {
        self.clients.ask_at(self.host.address);
        let faults = self.clients.all_answered().await?;
        self.answers_only(kind, &faults)?;
        if kind == Kind::Deadly {
            // What had begun before it was over is over by now.
            self.clients.all_answered().await?;
        }
        if kind == Kind::Deadly || number.is_multiple_of(ROWS_EVERY) {
            self.rows_are_there().await?;
        }
        self.nobody_is_rolled_back().await?;
        self.nobody_is_left_over().await?;
        Ok(faults.len())
    }

    fn answers_only(&self, kind: Kind, faults: &[String]) -> Result<(), String> {
        if kind == Kind::Unnoticed && !faults.is_empty() {
            let some: Vec<_> = faults.iter().take(10).collect();
            return Err(format!("{} requests were lost: {some:#?}", faults.len()));
        }
        Ok(())
    }

    async fn rows_are_there(&self) -> Result<(), String> {
        let acknowledged = self.clients.acknowledged();
        let answer = self.get("/sqlite/rows").await?;
        if answer.status != 200 {
            return Err(format!("the rows: {} {}", answer.status, answer.text()));
        }
        let rows: BTreeSet<i64> =
            serde_json::from_value(answer.json()).map_err(|e| e.to_string())?;
        let lost = self.clients.missing_in(&acknowledged, &rows);
        if lost.is_empty() {
            return Ok(());
        }
        Err(format!(
            "{} rows of {} were acknowledged and are not there: {:?}",
            lost.len(),
            acknowledged.len(),
            &lost[..lost.len().min(20)]
        ))
    }

    /// Only what crashed is taken back.
    async fn nobody_is_rolled_back(&mut self) -> Result<(), String> {
        if self.seen.0 != self.host.pid() {
            self.seen = (self.host.pid(), 0);
        }
        let since = self.seen.1;
        for event in self.host.events().await {
            if event.seq <= since {
                continue;
            }
            self.seen.1 = event.seq;
            let is_healthy = |app: &str| HEALTHY.iter().any(|(healthy, _)| *healthy == app);
            if event.kind == "rolled_back" && event.app.as_deref().is_some_and(is_healthy) {
                return Err(format!("an innocent app was taken back: {event:?}"));
            }
        }
        Ok(())
    }

    /// The supervisor has the host, and the host nobody: no child is left, and none waits to be
    /// asked how it ended.
    async fn nobody_is_left_over(&self) -> Result<(), String> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let (of_supervisor, of_host) =
                (children(self.host.outer_pid()), children(self.host.pid()));
            if of_supervisor == [self.host.pid()] && of_host.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!(
                    "processes are left over: the supervisor's {of_supervisor:?}, the host's {of_host:?}"
                ));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What the host costs when nothing drains any more.
    async fn cost(&self) -> Result<Cost, String> {
        for app in APPS {
            self.host.settled(app).await;
        }
        let now = || Cost {
            plugins: self.host.mapped_plugins(),
            mappings: self.host.mappings(),
            threads: self.host.threads(),
            descriptors: self.host.descriptors(),
            resident: self.host.resident(),
        };
        // The least of some looks: what comes and goes counts only while it is there.
        let mut least = now();
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let next = now();
            least = Cost {
                plugins: least.plugins.min(next.plugins),
                mappings: least.mappings.min(next.mappings),
                threads: least.threads.min(next.threads),
                descriptors: least.descriptors.min(next.descriptors),
                resident: least.resident.min(next.resident),
            };
        }
        Ok(least)
    }

    /// Deploys everything as often as at the beginning, and returns what the host costs once that
    /// is no more than `before`, or what it still costs after a while.
    async fn end(&mut self, before: &Cost) -> Result<Cost, String> {
        for _ in 0..3 {
            for app in APPS {
                let bytes = self.artifact(app, "none");
                self.deploy(app, &bytes).await?;
            }
        }
        self.look(Kind::Unnoticed, 0).await?;
        self.rows_are_there().await?;
        let integrity = self.get("/sqlite/integrity").await?.text();
        if integrity != "ok" {
            return Err(format!("the database: {integrity}"));
        }
        // A thread of a pool ends when nothing has asked for it for ten seconds, and work that
        // never ceases asks for all of them in turn: only without clients is a pool told from a
        // leak.
        self.clients.stop().await;
        let deadline = Instant::now() + DEADLINE;
        loop {
            let after = self.cost().await?;
            if before.is_again(&after).is_ok() || Instant::now() > deadline {
                return Ok(after);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

impl Cost {
    /// Whether `after` is what it was. Some are allowed for: the clients connect anew all the time,
    /// each connection has a descriptor and some memory; a pool for blocking work has threads while
    /// they are needed; and an allocator maps arenas and keeps pieces of what it had
    /// at the worst moment of the day.
    fn is_again(&self, after: &Self) -> Result<(), String> {
        let within = after.plugins <= self.plugins
            && after.mappings <= self.mappings + 80
            && after.threads <= self.threads + 8
            && after.descriptors <= self.descriptors + 8
            && after.resident <= self.resident + self.resident / 4 + (48 << 20);
        if within {
            Ok(())
        } else {
            Err(format!(
                "the host costs more than at the beginning: {self:?}, then {after:?}"
            ))
        }
    }
}

/// Whether a command ended with one of `codes`.
pub(crate) fn is_code(output: &Output, codes: &[i32]) -> Result<(), String> {
    if output.code.is_some_and(|code| codes.contains(&code)) {
        Ok(())
    } else {
        Err(format!(
            "exit code {:?} in place of {codes:?}: {}",
            output.code,
            output.text()
        ))
    }
}

/// The names of the threads of `process`, and how many have each.
fn threads_of(process: u32) -> BTreeMap<String, usize> {
    let mut names = BTreeMap::new();
    let tasks = fs::read_dir(format!("/proc/{process}/task"));
    for task in tasks.into_iter().flatten().flatten() {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        *names.entry(name.trim().to_owned()).or_default() += 1;
    }
    names
}

/// The processes that `parent` has started, those included that have ended and were not asked for.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{parent}/task"));
    let lists = tasks
        .into_iter()
        .flatten()
        .flatten()
        .map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    lists
        .flat_map(|list| {
            let pids = list.split_whitespace();
            pids.filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
        })
        .collect()
}
