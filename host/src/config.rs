//! The configuration file, whole: every key, its default, its unit, its check.
//!
//! The file is read in two steps: [`file`] is the TOML as it is written, each value checked by its
//! own type, and this module is what the host works with, every default filled in. An error says
//! file, line, key, what is wrong and what to do.

mod file;
mod labels;
mod listen;
mod route;
mod tls;
mod who;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use handover_api::AppName;

pub use self::route::RoutePrefix;
pub(crate) use self::{file::duration, route::bare_host};
pub(crate) use self::{
    labels::{LabelHost, Labels},
    listen::{
        Listen, ListenAddress, ListenSocket, Protocols, SocketOptions, TrustedProxies, TrustedProxy,
    },
    tls::{CertificateFiles, ListenTls, TlsVersion},
    who::Who,
};
use crate::{artifact::Keys, origin::origin, state, work};

const MAX_CRASHES: NonZeroUsize = NonZeroUsize::new(3).unwrap();

/// The whole configuration, every default filled in.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[server]`
    pub server: Server,
    /// `[[listen]]`
    pub listen: Vec<Listen>,
    /// `[control]`
    pub control: Control,
    /// `[metrics]`
    pub metrics: Metrics,
    /// `[trust]`
    pub trust: Trust,
    /// `[log]`
    pub log: Log,
    /// `[app.NAME]`
    pub apps: BTreeMap<AppName, App>,
}

/// `[server]`
#[derive(Clone, Debug)]
pub struct Server {
    /// Where to serve. Default `127.0.0.1:8080`, and nowhere where there is a `[[listen]]`.
    pub listen: Option<SocketAddr>,
    /// Worker threads. Default: one for each core.
    pub workers: Option<NonZeroUsize>,
    /// Workers that sleep until a request holds one of the others for longer than
    /// [`Server::stall_after`]. Default 2.
    pub spare_workers: usize,
    /// How long a plugin may hold a worker in one go before people are told. None = never looked
    /// at. Default 1 s.
    pub stall_after: Option<Duration>,
    /// The drop folder. Default `./plugins`.
    pub plugins: PathBuf,
    /// The state directory. Default `./.handover`.
    pub state: PathBuf,
    /// The control socket. Default `<state>/control.sock`.
    pub control: PathBuf,
    /// Whether answers carry `handover-version` and `handover-generation`. Default: without a
    /// configuration file only.
    pub version_header: bool,
    /// How long `shutdown` waits for what is in flight. Default 30 s.
    pub shutdown_deadline: Duration,
    /// After how many crashes within [`Server::crash_window`] the app that was changed last is
    /// rolled back. Default 3.
    pub max_crashes: NonZeroUsize,
    /// Default 60 s.
    pub crash_window: Duration,
    /// How much replaced generations may leave behind before the operator is told.
    pub leak_budget: LeakBudget,
    /// How long clients are waited for.
    pub timeouts: Timeouts,
    /// How many connections there may be.
    pub clients: Clients,
}

/// How long the client of a connection is waited for; none = for ever. An answer that is under way
/// knows no other limit than [`Timeouts::write`], and neither does what was upgraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// `first_byte_timeout`: until its first byte. Default 30 s.
    pub first_byte: Option<Duration>,
    /// `head_timeout`: from the first byte of a request until its head is whole, or HTTP/2 has
    /// begun. Default 30 s.
    pub head: Option<Duration>,
    /// `body_timeout`: until more comes of the body of a request that its app waits for and has not
    /// begun to answer. Default 60 s.
    pub body: Option<Duration>,
    /// `idle_timeout`: until its next request. Default 65 s, a little more than what proxies in
    /// front of it wait.
    pub idle: Option<Duration>,
    /// `write_timeout`: until it takes more of what is there for it. Default for ever.
    pub write: Option<Duration>,
    /// `http2_ping`: how long HTTP/2 may be silent before it is asked whether the client is still
    /// there. Default never: one that is idle is asked to leave, and one whose machine is gone is
    /// found by the keep-alive of TCP.
    pub http2_ping: Option<Duration>,
    /// `http2_ping_timeout`: how long the answer to that may take. Default 20 s.
    pub http2_pong: Duration,
}

/// How many connections clients may have. When one more comes, the one that has been idle for the
/// longest time goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clients {
    /// In all. Default: what the limit of open files leaves, less those that the host keeps for
    /// itself.
    pub max_connections: Option<NonZeroUsize>,
    /// From one IPv4 address, or one /64 of IPv6. Default: any number, since a proxy is one
    /// address.
    pub max_connections_per_address: Option<NonZeroUsize>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            first_byte: Some(Duration::from_secs(30)),
            head: Some(Duration::from_secs(30)),
            body: Some(Duration::from_secs(60)),
            idle: Some(Duration::from_secs(65)),
            write: None,
            http2_ping: None,
            http2_pong: Duration::from_secs(20),
        }
    }
}

/// `leak_budget` of `[server]`: how much all replaced generations together may hold. More is told
/// as an event, once each time it is crossed, and changes nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeakBudget {
    /// Bytes of heap, of plugins with a heap of their own. Default 64 MiB.
    pub bytes: u64,
    /// Descriptors that could not be closed for them. Default 64.
    pub descriptors: u64,
    /// Libraries that stay mapped. Default 8.
    pub retained: u64,
}

impl Default for LeakBudget {
    fn default() -> Self {
        Self {
            bytes: 64 << 20,
            descriptors: 64,
            retained: 8,
        }
    }
}

/// `[control]`: who may call, beside the host's own user and root, who operate.
#[derive(Clone, Debug, Default)]
pub struct Control {
    /// Who may do everything. Default nobody else.
    pub operate: Vec<Who>,
    /// Who may see status, history and events. Default nobody else.
    pub observe: Vec<Who>,
    /// The group, by name or number, that may open the control socket, which has mode 0660 then.
    /// Default none: 0600.
    pub group: Option<String>,
}

/// `[metrics]`
#[derive(Clone, Copy, Debug, Default)]
pub struct Metrics {
    /// Where `GET /metrics` is answered over TCP, to whoever reaches it. Default nowhere: on the
    /// control socket only.
    pub listen: Option<SocketAddr>,
}

/// `[trust]`: what may become code of the host.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Public keys of minisign: an artifact must be signed by one of them. Default none: unsigned
    /// ones are taken.
    pub keys: Keys,
    /// Whether drop folders and the state directory may lie where others can write. Default false.
    pub insecure_paths: bool,
}

/// `[log]`
#[derive(Clone, Debug)]
pub struct Log {
    /// Levels by target, as `tracing_subscriber::filter::Targets` reads them. Default `info`.
    pub level: String,
    /// `text` or `json`. Default `text`.
    pub format: LogFormat,
    /// Lines go to this file; none, the default: to standard error.
    pub file: Option<PathBuf>,
    /// When the file is renamed and made anew.
    pub rotation: LogRotation,
}

/// When the file of the log is renamed and made anew. The host does that itself; where something
/// else does, as `logrotate`, it notices, or is told by SIGUSR1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRotation {
    /// From how many bytes on. Default 64 MiB.
    pub max_size: Option<u64>,
    /// From what age on. Default none.
    pub max_age: Option<Duration>,
    /// How many old files are kept: `NAME.1` is the newest. Default 5.
    pub keep: usize,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[app.NAME]`
#[derive(Clone, Debug)]
pub struct App {
    /// Where it answers: `HOST/PATH`, `/PATH`. Empty, the default: the host chooses (`/` for the
    /// first app, `/NAME` for others).
    pub routes: Vec<RoutePrefix>,
    /// What the drop folder does. Default `deploy`.
    pub watch: Watch,
    /// Older versions than this are refused, whoever brings them. Default none.
    pub min_version: Option<semver::Version>,
    /// How long requests on a replaced generation may go on; none = for ever. Default 30 s.
    pub drain_deadline: Option<Duration>,
    /// How long jobs may go on; none = for ever, the default.
    pub job_deadline: Option<Duration>,
    /// How long a new artifact is on probation: a crash of the host meanwhile rolls it back. None =
    /// never. Default 60 s.
    pub bake: Option<Duration>,
    /// How long the head of an answer may take, waiting included; past it the client gets 504.
    /// Default: for ever.
    pub request_timeout: Option<Duration>,
    /// How many requests may be under way at a time, until their answers have ended. Default: any
    /// number.
    pub max_concurrent: Option<NonZeroUsize>,
    /// How many more may wait for their turn; those beyond get 503. Default 0.
    pub queue: usize,
    /// Where its handlers run. Default: on the workers that all apps share.
    pub execution: Execution,
    /// How many replaced generations may still be draining. Default 4.
    pub max_old_generations: usize,
    /// What a deploy beyond that does. Default `refuse`.
    pub when_full: WhenFull,
    /// Threads of the runtime of each generation. Default 1.
    pub runtime_threads: NonZeroUsize,
    /// The names of the environment variables that the app may read. Default none, which leaves it
    /// all of them in its own environment.
    pub env: Vec<String>,
    /// What it is told as the arguments of its program, after its name. Default none.
    pub args: Vec<String>,
    /// How many old artifacts stay in the store for rollback. Default 5.
    pub keep_artifacts: usize,
    /// What the app reads with `Context::config`. Default `{}`.
    pub config: serde_json::Value,
    /// How long the version that a deploy replaces stays up under the label `previous`; a rollback
    /// to it is one pointer meanwhile. Default none: it is drained at once.
    pub keep_warm: Option<Duration>,
    /// `[app.NAME.labels]`
    pub labels: Arc<Labels>,
    /// `[app.NAME.state]`
    pub state: state::Settings,
    /// `[app.NAME.jobs]`
    pub jobs: work::Settings,
    /// `[app.NAME.lease.LEASE] mirror`: the files that are locked with leases, by their names.
    pub leases: BTreeMap<String, PathBuf>,
    /// `[app.NAME.check]`
    pub check: Check,
}

impl App {
    /// The arguments that the app is told of, its name first.
    pub fn arguments(&self, name: &AppName) -> Vec<String> {
        let name = name.as_str().to_owned();
        std::iter::once(name).chain(self.args.clone()).collect()
    }

    /// Why `version` is refused, if it is.
    pub fn too_old(&self, version: &semver::Version) -> Option<String> {
        let least = self.min_version.as_ref()?;
        version.cmp_precedence(least).is_lt().then(|| {
            format!("{version} is older than {least}, and min_version lets nothing older in: lower min_version, or take a newer one")
        })
    }

    /// The variables that the app may read: those of [`App::env`] that this process began with, and
    /// that are text.
    pub fn readable_env(&self) -> Vec<(String, String)> {
        self.env
            .iter()
            .filter_map(|name| origin().text(name).map(|value| (name.clone(), value)))
            .collect()
    }
}

/// Where the handlers of an app run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Execution {
    /// On the workers of the host, which all apps share: no hand-over between threads.
    Shared,
    /// On threads of its own, so that what blocks there holds up nobody else.
    Own {
        /// How many. Default: one for each core.
        threads: Option<NonZeroUsize>,
    },
}

/// What the drop folder does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// What arrives is deployed.
    Deploy,
    /// What arrives is checked and waits for `handover reload`.
    Stage,
    /// Nothing.
    Off,
}

/// What a deploy does when `max_old_generations` are still draining.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// It is refused.
    Refuse,
    /// The oldest is ended as if its drain deadline had passed.
    EndOldest,
}

/// `[app.NAME.check]`: what preflight does beyond reading.
#[derive(Clone, Debug)]
pub struct Check {
    /// Whether the constructor of the app is run in the child. Default true.
    pub start: bool,
    /// The deadline of the whole preflight. Default 30 s.
    pub deadline: Duration,
    /// Environment variables that are others in preflight, such as the address of a database.
    /// Default none.
    pub env: BTreeMap<String, String>,
    /// Smoke requests, in order.
    pub requests: Vec<SmokeRequest>,
    /// What becomes of an artifact that would be retained, as the rehearsal of its end finds.
    /// Default `warn`.
    pub leave: Leave,
}

/// `leave` of `[app.NAME.check]`: what preflight does with the end of a generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Leave {
    /// It is rehearsed; what would be retained is a warning.
    #[default]
    Warn,
    /// It is rehearsed; what would be retained is refused.
    Refuse,
    /// It is not rehearsed.
    Off,
}

/// One smoke request.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmokeRequest {
    /// The path of a `GET`.
    pub path: String,
    /// The status that must come back. Default 200.
    #[serde(default = "ok")]
    pub status: u16,
    /// Header fields that are sent, beside `host`, which is `localhost` where it is not among them.
    #[serde(default)]
    pub send: BTreeMap<String, String>,
    /// Header fields that must come back, each with this value.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Text that the body must contain. Default none.
    #[serde(default)]
    pub body: Option<String>,
    /// How long the whole answer may take, as [`duration`] reads it. Default: until the deadline of
    /// preflight.
    #[serde(default)]
    pub within: Option<String>,
}

fn ok() -> u16 {
    200
}

/// What was wrong with the configuration: file, line, key, what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

impl Config {
    /// The defaults of a host that is run without a configuration file, its folders in the working
    /// directory.
    pub fn without_file() -> Self {
        let mut config = Self {
            server: Server::under(&absolute(Path::new("."))),
            listen: Vec::new(),
            control: Control::default(),
            metrics: Metrics::default(),
            trust: Trust::default(),
            log: Log::default(),
            apps: BTreeMap::new(),
        };
        config.server.version_header = true;
        config
    }

    /// Reads and checks the file at `path`. Relative paths in it are relative to its folder; those
    /// that this gives are absolute.
    ///
    /// # Errors
    /// The first thing that is wrong: `FILE:LINE: KEY: what: what to do`.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            ConfigError(format!(
                "{}: cannot read the configuration: {error}",
                path.display()
            ))
        })?;
        file::parse(path, &text)
    }

    /// Reads `text` as a file that lies nowhere.
    #[cfg(test)]
    pub(crate) fn parse(text: &str) -> Result<Self, ConfigError> {
        file::parse(Path::new("/handover.toml"), text)
    }

    /// All listeners: that of the one line `server.listen` first.
    pub fn listeners(&self) -> Vec<Listen> {
        let one = self.server.listen.map(Listen::plain);
        one.into_iter().chain(self.listen.iter().cloned()).collect()
    }

    /// The settings of `app`, or the defaults for an app that no section names.
    pub fn app(&self, app: &AppName) -> App {
        self.apps.get(app).cloned().unwrap_or_default()
    }
}

/// `path` from the root on: the working directory may be another one later, plugins can change it.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    // Fails for an empty path and without a working directory: then there is nothing better.
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// What a command line, or a program around the host, says of the server in place of the file.
/// Paths are relative to the working directory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    /// `server.listen`
    pub(crate) listen: Option<SocketAddr>,
    /// `server.plugins`
    pub(crate) plugins: Option<PathBuf>,
    /// `server.state`
    pub(crate) state: Option<PathBuf>,
    /// `server.control`
    pub(crate) control: Option<PathBuf>,
}

impl Server {
    /// The defaults, their paths in `folder`.
    fn under(folder: &Path) -> Self {
        let state = folder.join(".handover");
        Self {
            listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))),
            workers: None,
            spare_workers: 2,
            stall_after: Some(Duration::from_secs(1)),
            plugins: folder.join("plugins"),
            control: state.join("control.sock"),
            state,
            version_header: false,
            shutdown_deadline: Duration::from_secs(30),
            max_crashes: MAX_CRASHES,
            crash_window: Duration::from_secs(60),
            leak_budget: LeakBudget::default(),
            timeouts: Timeouts::default(),
            clients: Clients::default(),
        }
    }

    /// Puts what was said elsewhere in the place of what the file says. A state directory without a
    /// control socket brings its own.
    pub(crate) fn overrule(&mut self, overrides: Overrides) {
        let Overrides {
            listen,
            plugins,
            state,
            control,
        } = overrides;
        if listen.is_some() {
            self.listen = listen;
        }
        if let Some(plugins) = plugins {
            self.plugins = absolute(&plugins);
        }
        if let Some(state) = state {
            self.state = absolute(&state);
            self.control = self.state.join("control.sock");
        }
        if let Some(control) = control {
            self.control = absolute(&control);
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Text,
            file: None,
            rotation: LogRotation::default(),
        }
    }
}

impl Default for LogRotation {
    fn default() -> Self {
        Self {
            max_size: Some(64 << 20),
            max_age: None,
            keep: 5,
        }
    }
}

impl Default for App {
    fn default() -> Self {
        Self {
            routes: Vec::new(),
            watch: Watch::Deploy,
            min_version: None,
            drain_deadline: Some(Duration::from_secs(30)),
            job_deadline: None,
            bake: Some(Duration::from_secs(60)),
            request_timeout: None,
            max_concurrent: None,
            queue: 0,
            execution: Execution::Shared,
            max_old_generations: 4,
            when_full: WhenFull::Refuse,
            runtime_threads: NonZeroUsize::MIN,
            env: Vec::new(),
            args: Vec::new(),
            keep_artifacts: 5,
            config: serde_json::Value::Object(serde_json::Map::new()),
            keep_warm: None,
            labels: Arc::default(),
            state: state::Settings::default(),
            jobs: work::Settings::default(),
            leases: BTreeMap::new(),
            check: Check::default(),
        }
    }
}

impl Default for Check {
    fn default() -> Self {
        Self {
            start: true,
            deadline: Duration::from_secs(30),
            env: BTreeMap::new(),
            requests: Vec::new(),
            leave: Leave::default(),
        }
    }
}
