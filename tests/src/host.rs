//! A host as a process: its folders, its control socket, its command line, what the kernel knows of
//! it.

use std::{
    ffi::OsStr,
    fmt::Debug,
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    client::{Answer, Fault, Http1},
    plugins,
};

/// Nothing that a test waits for takes longer; past it the test fails and says what it waited for.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How often what cannot be awaited is looked at.
const GLANCE: Duration = Duration::from_millis(20);

/// How a host is to be run.
#[derive(Debug, Default)]
pub struct Setup {
    config: Option<String>,
    /// Arguments more.
    arguments: Vec<String>,
    /// The user that it runs as, if not ours.
    user: Option<u32>,
    environment: Vec<(String, String)>,
    alone: bool,
    /// Its standard error, if not a pipe that is read.
    stderr: Option<OwnedFd>,
    /// Whether its folders are given by relative paths.
    relative: bool,
    /// The program, if not the one that is built with the tests.
    program: Option<PathBuf>,
}

/// A running host. It is killed when dropped, and its log is shown when the test failed.
#[derive(Debug)]
pub struct Host {
    setup: Setup,
    home: TempDir,
    /// What was run: the supervisor, unless the setup does without.
    child: Child,
    /// The process that serves.
    pid: u32,
    log: Arc<Mutex<Vec<String>>>,
    /// Where it serves.
    pub address: SocketAddr,
}

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it printed beside.
    pub stderr: String,
}

/// `status --json`, as far as the tests read it.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the contract says what they are")]
pub struct Status {
    pub apps: Vec<AppStatus>,
    pub host: HostStatus,
}

#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the contract says what they are")]
pub struct AppStatus {
    pub name: String,
    pub state: String,
    pub active: Option<Active>,
    #[serde(default)]
    pub staged: Option<Value>,
    #[serde(default)]
    pub assets: Option<Value>,
    #[serde(default)]
    pub canary: Option<Value>,
    #[serde(default)]
    pub queue: Vec<Value>,
    pub generations: Vec<Generation>,
}

#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the contract says what they are")]
pub struct Active {
    pub generation: u64,
    pub version: String,
    pub artifact: String,
}

#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the contract says what they are")]
pub struct Generation {
    pub generation: u64,
    pub version: String,
    pub state: String,
    pub in_flight: u64,
    pub jobs: u64,
    pub requests: u64,
    pub panics: u64,
    pub stalls: u64,
    pub age_ms: u64,
    pub retained_because: Option<String>,
    #[serde(default)]
    pub label: Option<String>,
    #[serde(default)]
    pub ends_in_ms: Option<u64>,
}

#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the contract says what they are")]
pub struct HostStatus {
    pub version: String,
    pub pid: u32,
    pub uptime_ms: u64,
    pub rss_bytes: u64,
    pub listen: Vec<String>,
    pub leaks: Leaks,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[expect(missing_docs, reason = "the contract says what they are")]
pub struct Leaks {
    pub bytes: u64,
    pub estimated: u64,
    pub descriptors: u64,
    pub retained: u64,
}

/// One event.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the contract says what they are")]
pub struct Event {
    pub seq: u64,
    pub kind: String,
    pub app: Option<String>,
    pub generation: Option<u64>,
    pub message: String,
    #[serde(default)]
    pub leaked_bytes: Option<u64>,
    #[serde(default)]
    pub leaked_descriptors: Option<u64>,
}

impl Status {
    /// Where the host listens.
    pub fn listen(&self) -> Vec<String> {
        self.host.listen.clone()
    }
}

impl Setup {
    /// Without a configuration file.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a configuration file, where `HOME` stands for the folder that holds the folders of the
    /// host and of the test. Unless it has a section `[server]`, answers carry their version, as
    /// without a file.
    pub fn config(mut self, toml: &str) -> Self {
        let server = if toml.contains("[server]") {
            ""
        } else {
            "[server]\nversion_header = true\n"
        };
        self.config = Some(format!("{server}{toml}"));
        self
    }

    /// With an argument more, where `HOME` stands for what it does in the configuration.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// As another user, which takes root. Its folders are given to that user.
    pub fn user(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    /// With an environment variable more.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With this as its standard error, instead of a pipe that is read.
    pub fn stderr(mut self, stderr: impl Into<OwnedFd>) -> Self {
        self.stderr = Some(stderr.into());
        self
    }

    /// With relative paths for its folders and its configuration.
    pub fn relative(mut self) -> Self {
        self.relative = true;
        self
    }

    /// Without a supervisor.
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Another build of the program, to compare with.
    pub fn program(mut self, path: PathBuf) -> Self {
        self.program = Some(path);
        self
    }

    /// Runs it with empty folders, and waits until it answers.
    pub async fn start(self) -> Host {
        let home = tempfile::Builder::new()
            .prefix("handover-")
            .tempdir()
            .expect("there is a temporary folder");
        fs::create_dir(home.path().join("plugins")).expect("the temporary folder can be written");
        if let Some(user) = self.user {
            for folder in [home.path(), &home.path().join("plugins")] {
                std::os::unix::fs::chown(folder, Some(user), None).expect("we are root");
            }
        }
        let log = Arc::default();
        let child = self.spawn(home.path(), &log);
        let mut host = Host {
            setup: self,
            home,
            pid: child.id(),
            child,
            log,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        host.answers().await;
        host
    }

    fn spawn(&self, home: &Path, log: &Arc<Mutex<Vec<String>>>) -> Child {
        let program = self.program.as_deref();
        let mut command = Command::new(program.unwrap_or_else(|| plugins::handover()));
        command.args(["run", "--listen", "127.0.0.1:0"]);
        if self.alone {
            command.arg("--no-supervisor");
        }
        // It is run in there.
        let folder = if self.relative { Path::new("") } else { home };
        command
            .arg("--plugins")
            .arg(folder.join("plugins"))
            .arg("--state")
            .arg(folder.join("state"));
        if let Some(config) = &self.config {
            let config = config.replace("HOME", home.to_str().expect("a plain path"));
            fs::write(home.join("handover.toml"), config)
                .expect("the temporary folder can be written");
            command.arg("--config").arg(folder.join("handover.toml"));
        }
        let home_text = home.to_str().expect("a plain path");
        command.args(
            self.arguments
                .iter()
                .map(|argument| argument.replace("HOME", home_text)),
        );
        if let Some(user) = self.user {
            command.uid(user);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.env_remove("HANDOVER_CONTROL").current_dir(home);
        let stderr = self.stderr.as_ref().map_or_else(Stdio::piped, |stderr| {
            stderr.try_clone().expect("it is open").into()
        });
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        let mut child = loop {
            match command.spawn() {
                // A child that another test forks has a copy open for writing until it executes.
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                    std::thread::yield_now();
                }
                spawned => break spawned.expect("the host can be run"),
            }
        };
        let Some(stderr) = child.stderr.take() else {
            return child;
        };
        let lines = BufReader::new(stderr).lines();
        let log = Arc::clone(log);
        std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .for_each(|line| log.lock().expect("nobody panics with it").push(line))
        });
        child
    }
}

impl Host {
    /// A host without a configuration file.
    pub async fn start() -> Self {
        Setup::new().start().await
    }

    /// A host on which `path` is live.
    pub async fn serving(path: &Path) -> Self {
        let host = Self::start().await;
        host.deploy(path).await.expect_code(0);
        host
    }

    /// The drop folder.
    pub fn plugins(&self) -> PathBuf {
        self.home.path().join("plugins")
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.home.path().join("state")
    }

    /// A path for a file of the test, on the file system of the drop folder.
    pub fn scratch(&self, name: &str) -> PathBuf {
        let dir = self.home.path().join("scratch");
        fs::create_dir_all(&dir).expect("the temporary folder can be written");
        dir.join(name)
    }

    /// The folder that holds all others.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Other settings, for the next start.
    pub fn reconfigure(&mut self, toml: &str) {
        self.setup = std::mem::take(&mut self.setup).config(toml);
    }

    /// The control socket.
    pub fn control(&self) -> PathBuf {
        let mut arguments = self.setup.arguments.iter();
        if arguments.any(|argument| argument == "--control")
            && let Some(path) = arguments.next()
        {
            return path
                .replace("HOME", self.home.path().to_str().expect("a plain path"))
                .into();
        }
        self.state().join("control.sock")
    }

    /// The process that serves.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The process that was run: the supervisor of the one that serves, or the same.
    pub fn outer_pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().expect("nobody panics with it").clone()
    }

    /// Waits for a line of its log, which comes through a pipe and so a moment after what it tells
    /// of.
    pub async fn logged(&self, what: &str, is_it: impl Fn(&str) -> bool) {
        self.until(what, async || {
            self.log().iter().any(|line| is_it(line)).then_some(())
        })
        .await;
    }

    /// Writes `bytes` beside the drop folder and renames them in as `name` (which may name a folder
    /// in it).
    pub fn drop_in(&self, name: &str, bytes: &[u8]) {
        let waiting = self.scratch("arriving.so");
        fs::write(&waiting, bytes).expect("the temporary folder can be written");
        let target = self.plugins().join(name);
        fs::create_dir_all(target.parent().expect("it lies in the drop folder"))
            .expect("the drop folder can be written");
        fs::rename(waiting, target).expect("the drop folder can be written");
    }

    /// The text of `name.deployed` or `name.failed` once it is there.
    pub async fn verdict(&self, name: &str, kind: &str) -> String {
        let path = self.plugins().join(format!("{name}.{kind}"));
        let found = || {
            fs::read_to_string(&path)
                .ok()
                .filter(|text| !text.is_empty())
        };
        self.until(&format!("{} to be written", path.display()), async || {
            found()
        })
        .await
    }

    /// Runs a command against this host.
    pub async fn cli<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Output {
        handover_with(&self.control(), arguments).await
    }

    /// `handover deploy PATH`
    pub async fn deploy(&self, path: &Path) -> Output {
        self.cli([OsStr::new("deploy"), path.as_os_str()]).await
    }

    /// `handover deploy` of a file with these bytes.
    pub async fn deploy_bytes(&self, bytes: &[u8]) -> Output {
        let path = self.scratch("deployed.so");
        fs::write(&path, bytes).expect("the temporary folder can be written");
        self.deploy(&path).await
    }

    /// Asks the control socket.
    pub async fn ask(&self, method: &str, path: &str) -> Result<Answer, Fault> {
        Http1::connect_unix(&self.control())
            .await?
            .request(method, path, &[], None)
            .await
    }

    /// What it says of itself.
    pub async fn status(&self) -> Status {
        let answer = self
            .ask("GET", "/v1/status")
            .await
            .unwrap_or_else(|fault| panic!("the control socket: {fault}"));
        serde_json::from_slice(&answer.body)
            .unwrap_or_else(|error| panic!("{error} in {}", answer.text()))
    }

    /// What it says of `app`.
    pub async fn app(&self, app: &str) -> AppStatus {
        let status = self.status().await;
        let found = status.apps.iter().find(|known| known.name == app);
        found
            .cloned()
            .unwrap_or_else(|| panic!("no app `{app}` in {status:?}"))
    }

    /// The generation of `app` that answers new requests.
    pub async fn active(&self, app: &str) -> Active {
        self.app(app)
            .await
            .active
            .unwrap_or_else(|| panic!("nothing of `{app}` is active"))
    }

    /// Everything that happened.
    pub async fn events(&self) -> Vec<Event> {
        let answer = self
            .ask("GET", "/v1/events")
            .await
            .unwrap_or_else(|fault| panic!("the control socket: {fault}"));
        let text = answer.text();
        text.lines()
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"))
            })
            .collect()
    }

    /// Waits for an event.
    pub async fn event(&self, what: &str, is_it: impl Fn(&Event) -> bool) -> Event {
        self.until(what, async || self.events().await.into_iter().find(&is_it))
            .await
    }

    /// Waits until the status of `app` is as told.
    pub async fn app_when(
        &self,
        app: &str,
        what: &str,
        is_it: impl Fn(&AppStatus) -> bool,
    ) -> AppStatus {
        self.until(what, async || {
            self.status()
                .await
                .apps
                .into_iter()
                .find(|known| known.name == app && is_it(known))
        })
        .await
    }

    /// Waits until `version` of `app` answers new requests and no operation of it is under way, so
    /// that the next may begin.
    pub async fn live(&self, app: &str, version: &str) -> Active {
        let is_live = |status: &AppStatus| {
            status.state == "serving"
                && status
                    .active
                    .as_ref()
                    .is_some_and(|active| active.version == version)
        };
        let status = self
            .app_when(app, &format!("{app} {version} to be live"), is_live)
            .await;
        status.active.expect("it was just there")
    }

    /// Waits until nothing of `app` is left but its active generation.
    pub async fn settled(&self, app: &str) -> AppStatus {
        self.app_when(app, "all old generations to be gone", |status| {
            status.generations.len() <= 1
        })
        .await
    }

    /// Looks until there is something.
    ///
    /// # Panics
    /// Past the deadline.
    pub async fn until<T>(&self, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(found) = look().await {
                return found;
            }
            assert!(
                Instant::now() < deadline,
                "waited in vain for {what}; {:#?}",
                self.status().await
            );
            tokio::time::sleep(GLANCE).await;
        }
    }

    /// Asks `GET path` on a connection of its own.
    pub async fn get(&self, path: &str) -> Answer {
        let asked = async { Http1::connect(self.address).await?.get(path).await };
        asked
            .await
            .unwrap_or_else(|fault| panic!("GET {path}: {fault}"))
    }

    /// Sends a signal to what was run, as an operator does.
    pub fn signal(&self, signal: Signal) {
        kill_process(process(self.outer_pid()), signal).expect("the host runs");
    }

    /// Sends a signal to the process that serves.
    pub fn signal_inner(&self, signal: Signal) {
        kill_process(process(self.pid()), signal).expect("the host runs");
    }

    /// Waits until another process serves than did before, which the supervisor has started.
    pub async fn came_back(&mut self) {
        let before = self.pid;
        let deadline = Instant::now() + DEADLINE;
        while self.pid == before {
            assert!(Instant::now() < deadline, "the host did not come back");
            tokio::time::sleep(GLANCE).await;
            if let Some(ended) = self.child.try_wait().expect("it is a child") {
                panic!("the supervisor ended with {ended}");
            }
            if let Ok(answer) = self.ask("GET", "/v1/status").await
                && let Ok(status) = serde_json::from_slice::<Status>(&answer.body)
            {
                self.pid = status.host.pid;
            }
        }
    }

    /// Asks which process serves by now, which may have ended since it came back.
    pub async fn is_followed(&mut self) {
        let status = self
            .until("the host to answer", async || {
                let answer = self.ask("GET", "/v1/status").await.ok()?;
                serde_json::from_slice::<Status>(&answer.body).ok()
            })
            .await;
        self.pid = status.host.pid;
    }

    /// Waits until the process has ended, and gives its exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is a child") {
                return status.code();
            }
            assert!(Instant::now() < deadline, "the host did not end");
            tokio::time::sleep(GLANCE).await;
        }
    }

    /// Kills it as a power cut would, supervisor and all, calls `meanwhile`, and runs it again on
    /// the same folders.
    pub async fn crash(&mut self, meanwhile: impl FnOnce(&Self)) {
        self.child.kill().expect("the host runs");
        self.child.wait().expect("it is a child");
        let deadline = Instant::now() + DEADLINE;
        while self.proc("").exists() {
            assert!(
                Instant::now() < deadline,
                "the host outlived its supervisor"
            );
            tokio::time::sleep(GLANCE).await;
        }
        meanwhile(self);
        self.again().await;
    }

    /// Runs it again on the same folders, after it has ended.
    pub async fn again(&mut self) {
        self.child = self.setup.spawn(self.home.path(), &self.log);
        self.answers().await;
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(self.proc("fd"))
            .expect("the host runs")
            .count()
    }

    /// Threads.
    pub fn threads(&self) -> usize {
        fs::read_dir(self.proc("task"))
            .expect("the host runs")
            .count()
    }

    /// Mapped libraries that came out of memory files: the loaded plugins.
    pub fn mapped_plugins(&self) -> usize {
        let maps = fs::read_to_string(self.proc("maps")).expect("the host runs");
        let code = maps.lines().filter(|line| line.contains(" r-xp "));
        code.filter(|line| {
            line.contains("memfd:") || line.contains(&*self.state().to_string_lossy())
        })
        .count()
    }

    /// Mappings of any kind.
    pub fn mappings(&self) -> usize {
        let maps = fs::read_to_string(self.proc("maps")).expect("the host runs");
        maps.lines().count()
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> u64 {
        self.status_of_memory("VmRSS:")
    }

    /// The most resident memory it ever had, in bytes.
    pub fn resident_peak(&self) -> u64 {
        self.status_of_memory("VmHWM:")
    }

    fn status_of_memory(&self, field: &str) -> u64 {
        let status = fs::read_to_string(self.proc("status")).expect("the host runs");
        let line = status
            .lines()
            .find(|line| line.starts_with(field))
            .expect("the kernel counts memory");
        let kilobytes: u64 = line
            .split_whitespace()
            .nth(1)
            .and_then(|number| number.parse().ok())
            .expect("a number");
        kilobytes * 1024
    }

    fn proc(&self, file: &str) -> PathBuf {
        Path::new("/proc").join(self.pid().to_string()).join(file)
    }

    async fn answers(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(ended) = self.child.try_wait().expect("it is a child") {
                panic!("the host ended with {ended} before it answered");
            }
            if let Ok(answer) = self.ask("GET", "/v1/status").await {
                let status: Status = serde_json::from_slice(&answer.body)
                    .unwrap_or_else(|error| panic!("{error} in {}", answer.text()));
                // After a crash the socket of the host before could not answer, but let us be sure
                // who does.
                let pid = status.host.pid;
                if pid == self.child.id() || parent(pid) == Some(self.child.id()) {
                    self.pid = pid;
                    self.address = status.host.listen[0].parse().expect("an address");
                    return;
                }
            }
            assert!(
                Instant::now() < deadline,
                "the host does not answer on its control socket"
            );
            tokio::time::sleep(GLANCE).await;
        }
    }
}

fn process(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).expect("a process id")).expect("a process id")
}

/// The parent of a process.
fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            eprintln!("--- the last lines of the host's log");
            log[log.len().saturating_sub(60)..]
                .iter()
                .for_each(|line| eprintln!("{line}"));
        }
    }
}

/// Runs a command that needs no host.
pub async fn handover<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Output {
    handover_with(Path::new("/nonexistent/control.sock"), arguments).await
}

/// Runs a command against the host at `control`.
pub async fn handover_with<A: AsRef<OsStr>>(
    control: &Path,
    arguments: impl IntoIterator<Item = A>,
) -> Output {
    let mut command = tokio::process::Command::new(plugins::handover());
    command
        .args(arguments)
        .env("HANDOVER_CONTROL", control)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output())
        .await
        .expect("the command ends")
        .expect("the command can be run");
    Output {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Output {
    /// # Panics
    /// When it ended with another exit code.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "stdout:\n{}\nstderr:\n{}",
            self.stdout,
            self.stderr
        );
        self
    }

    /// Everything it printed.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// # Panics
    /// When one of `words` is not in what it printed, in any case of letters.
    #[track_caller]
    pub fn expect_words(self, words: &[&str]) -> Self {
        let text = self.text().to_lowercase();
        for word in words {
            assert!(
                text.contains(&word.to_lowercase()),
                "`{word}` is not in:\n{}",
                self.text()
            );
        }
        self
    }

    /// What it printed as JSON.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error} in:\n{}", self.text()))
    }
}
