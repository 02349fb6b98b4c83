//! The configuration, whole: every key, its default, its unit, its check.
//!
//! A file is read into the types that the host works with, section by section: each value is
//! checked by its own type or the functions of [`values`](crate::values), and what must hold
//! between several keys afterwards. An error says file, line, key, what is wrong and what to do.
//!
//! `apps.d/*.toml` beside the file hold sections `[app.NAME]` of their own.

mod access;
mod access_log;
mod acme;
mod app;
mod audit;
mod canary;
mod dashboard;
mod dev;
mod freeze;
mod hooks;
mod key;
mod labels;
mod limit;
mod listen;
mod log;
mod route;
mod server;
mod shadow;
mod source;
mod tenant;
#[cfg(test)]
mod tests;
mod tls;
mod who;

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use handover_api::AppName;
use serde::{Deserialize, Serialize};

pub use self::route::RoutePrefix;
pub(crate) use self::{
    access::{Control, Metrics, Trust},
    access_log::{AccessLog, AccessLogFile, AccessLogFormat},
    acme::{Acme, AcmeChallenge},
    app::{
        App, Cutover, Execution, Handover, Leave, SmokeRequest, Verify, Watch, WhenFull,
        environment,
    },
    audit::Audit,
    canary::Canary,
    dashboard::Dashboard,
    dev::{Dev, NamedAddress},
    freeze::frozen,
    hooks::{Hooks, Program},
    key::RequestKey,
    labels::Labels,
    limit::{Limit, LimitedBy},
    listen::{Listen, ListenAddress, ListenSocket, Protocols, SocketOptions, TrustedProxies},
    log::{Log, LogFormat, LogRotation},
    route::bare_host,
    server::{Clients, LeakBudget, Overrides, Server, Timeouts},
    shadow::Shadow,
    source::Source,
    tenant::{Moves, Tenant},
    tls::{CertificateFiles, ListenTls, TlsVersion},
    who::Who,
};
use crate::{ownership, replace::replace};

use self::{
    listen::{ListenTable, Mismatch},
    source::Step,
};

/// The folder of further files, beside the main one.
const APPS_FOLDER: &str = "apps.d";

/// The whole configuration, every default filled in.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Config {
    /// `[server]`
    pub server: Server,
    /// `[[listen]]`
    pub listen: Vec<Listen>,
    /// `[acme]`
    pub(crate) acme: Acme,
    /// `[control]`
    pub control: Control,
    /// `[metrics]`
    pub metrics: Metrics,
    /// `[dashboard]`
    pub(crate) dashboard: Dashboard,
    /// `[trust]`
    pub trust: Trust,
    /// `[log]`
    pub log: Log,
    /// `[access_log]`
    pub(crate) access_log: AccessLog,
    /// `[audit]`
    pub(crate) audit: Audit,
    /// `[dev]`
    pub(crate) dev: Dev,
    /// `[app.NAME]`
    #[serde(rename = "app")]
    pub apps: BTreeMap<AppName, App>,
    /// The files that it was read from, the main one first. None for a host without any.
    #[serde(skip)]
    pub(crate) sources: Arc<[Source]>,
}

/// The main file.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct MainFile {
    server: Server,
    listen: Vec<ListenTable>,
    acme: Acme,
    control: Control,
    metrics: Metrics,
    dashboard: Dashboard,
    trust: Trust,
    log: Log,
    access_log: AccessLog,
    audit: Audit,
    dev: Dev,
    app: BTreeMap<AppName, App>,
}

/// A file of [`APPS_FOLDER`].
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct AppsFile {
    app: BTreeMap<AppName, App>,
}

/// What was wrong with the configuration: file, line, key, what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

impl Config {
    /// The defaults of a host that is run without a configuration file, its folders in the working
    /// directory.
    pub fn without_file() -> Self {
        let mut config = Self::default();
        config.server.resolve(&absolute(Path::new(".")), false);
        config.server.version_header = true;
        config
    }

    /// Reads and checks the file at `path`, and those of `apps.d` beside it. Relative paths in a
    /// file are relative to its folder; those that this gives are absolute.
    ///
    /// # Errors
    /// The first thing that is wrong: `FILE:LINE: KEY: what: what to do`.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let files = files(path)?;
        let sources = files.iter().map(|file| Source::read(file));
        Self::of_sources(sources.collect::<Result<_, _>>()?)
    }

    /// Reads `text` as a file that lies nowhere.
    #[cfg(test)]
    pub(crate) fn parse(text: &str) -> Result<Self, ConfigError> {
        Self::of_sources(vec![Source {
            path: "/handover.toml".into(),
            text: text.to_owned(),
        }])
    }

    /// Returns what `sources` say, of which the first is the main file.
    ///
    /// # Errors
    /// See [`Config::read`].
    pub(crate) fn of_sources(sources: Vec<Source>) -> Result<Self, ConfigError> {
        let Some((main, others)) = sources.split_first() else {
            return Ok(Self::without_file());
        };
        let folder = &main.folder();
        let mut config = Self::of_main(main, folder)?;
        let mut from: BTreeMap<AppName, &Source> =
            config.apps.keys().map(|app| (app.clone(), main)).collect();
        for source in others {
            let file: AppsFile = source.parse()?;
            for (name, mut app) in file.app {
                if let Some(other) = from.insert(name.clone(), source) {
                    let steps = [Step::Key("app"), Step::Key(name.as_str())];
                    return Err(source.error(
                        &steps,
                        &format!(
                            "app `{name}` has a section in {} already: take one of them out",
                            other.path.display()
                        ),
                    ));
                }
                app.resolve(&source.folder());
                config.apps.insert(name, app);
            }
        }
        config.check_routes(&from)?;
        config.check_limits(&from)?;
        config.sources = sources.into();
        Ok(config)
    }

    fn of_main(source: &Source, folder: &Path) -> Result<Self, ConfigError> {
        let file: MainFile = source.parse()?;
        let mut listen: Vec<Listen> = Vec::new();
        for (at, table) in file.listen.into_iter().enumerate() {
            let steps = [Step::Key("listen"), Step::At(at)];
            let one = Listen::of_table(source.place(&steps), table, folder).map_err(
                |Mismatch { key, what }| {
                    let mut steps = steps.to_vec();
                    steps.extend(key.map(Step::Key));
                    source.error(&steps, what)
                },
            )?;
            if let Some(other) = listen.iter().find(|other| other.socket == one.socket)
                && !one.is_at_any_port()
            {
                return Err(source.error(
                    &steps,
                    &format!(
                        "the same is listened at already ({}): take one of them out",
                        other.place
                    ),
                ));
            }
            if let Some(other) = conflict(&listen, &one) {
                return Err(source.error(
                    &[
                        Step::Key("listen"),
                        Step::At(at),
                        Step::Key("tls"),
                        Step::Key("acme"),
                    ],
                    &format!(
                        "another list begins with the same name ({}), and the first one names the certificate: \
                         write the same list in both places, or another name first",
                        other.place
                    ),
                ));
            }
            listen.push(one);
        }
        if let Some((key, what)) = file.acme.incomplete() {
            return Err(source.error(&[Step::Key("acme"), Step::Key(key)], what));
        }
        if file.control.group.is_none() {
            let named = [
                ("operate", &file.control.operate),
                ("observe", &file.control.observe),
            ];
            if let Some((key, _)) = named.iter().find(|(_, list)| !list.is_empty()) {
                return Err(source.error(
                    &[Step::Key("control"), Step::Key(key), Step::At(0)],
                    "nobody but the host's user and root can open the control socket: set control.group to a group of those named here",
                ));
            }
        }
        let mut config = Self {
            server: file.server,
            listen,
            acme: file.acme,
            control: file.control,
            metrics: file.metrics,
            dashboard: file.dashboard,
            trust: file.trust,
            log: file.log,
            access_log: file.access_log,
            audit: file.audit,
            dev: file.dev,
            apps: file.app,
            sources: Arc::default(),
        };
        config.server.resolve(folder, !config.listen.is_empty());
        config.acme.resolve(folder);
        config.log.resolve(folder);
        config.access_log.resolve(folder);
        config.audit.resolve(folder);
        for app in config.apps.values_mut() {
            app.resolve(folder);
        }
        Ok(config)
    }

    /// Checks that each route has one app. `from` is where the section of each app is written.
    fn check_routes(&self, from: &BTreeMap<AppName, &Source>) -> Result<(), ConfigError> {
        let mut taken: BTreeMap<&RoutePrefix, &AppName> = BTreeMap::new();
        for (name, app) in &self.apps {
            for (at, prefix) in app.routes.iter().enumerate() {
                let Some(other) = taken.insert(prefix, name) else {
                    continue;
                };
                let what = format!(
                    "the route `{prefix}` of app `{name}` is also a route of app `{other}`: a route has one app"
                );
                let steps = [
                    Step::Key("app"),
                    Step::Key(name.as_str()),
                    Step::Key("routes"),
                    Step::At(at),
                ];
                return Err(match from.get(name) {
                    Some(source) => source.error(&steps, &what),
                    None => ConfigError(what),
                });
            }
        }
        Ok(())
    }

    fn check_limits(&self, from: &BTreeMap<AppName, &Source>) -> Result<(), ConfigError> {
        for (name, app) in &self.apps {
            for (at, limit) in app.limit.iter().enumerate() {
                let what = if limit.requests.is_none() && limit.concurrent.is_none() {
                    "a limit has `requests` or `concurrent`, or both"
                } else if limit.queue > 0 && limit.concurrent.is_none() {
                    "nothing waits where any number may be under way: set `concurrent` beside `queue`"
                } else if limit.by == LimitedBy::Tenant && app.tenant.from.is_none() {
                    "the app has no tenants: set its `tenant.from`, or another `by`"
                } else {
                    continue;
                };
                let steps = [
                    Step::Key("app"),
                    Step::Key(name.as_str()),
                    Step::Key("limit"),
                    Step::At(at),
                ];
                return Err(match from.get(name) {
                    Some(source) => source.error(&steps, what),
                    None => ConfigError(what.to_owned()),
                });
            }
        }
        Ok(())
    }

    /// All listeners: that of the one line `server.listen` first.
    pub fn listeners(&self) -> Vec<Listen> {
        let one = self.server.listen.map(Listen::plain);
        let mut all: Vec<_> = one.into_iter().chain(self.listen.iter().cloned()).collect();
        for tls in all.iter_mut().filter_map(|listen| listen.tls.as_mut()) {
            let first = tls.acme.first();
            tls.acme_file = first.map(|name| self.acme.file(&self.server.state, name));
        }
        all
    }

    /// The settings of `app`, or the defaults for an app that no section names.
    pub fn app(&self, app: &AppName) -> App {
        self.apps.get(app).cloned().unwrap_or_default()
    }
}

/// Returns which of `listeners` has another list of names to order a certificate for that begins
/// with the same one as that of `one`.
fn conflict<'a>(listeners: &'a [Listen], one: &Listen) -> Option<&'a Listen> {
    let wanted = &one.tls.as_ref()?.acme;
    let first = wanted.first()?;
    listeners.iter().find(|other| {
        let names = other.tls.as_ref().map(|tls| &tls.acme);
        names.is_some_and(|names| names.first() == Some(first) && names != wanted)
    })
}

/// `path` from the root on: the working directory may be another one later, plugins can change it.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    // Fails for an empty path and without a working directory: then there is nothing better.
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Where a configuration comes from: the file, and what a command line says in its place.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConfigOrigin {
    /// The main file. None: there is none, and nothing to read again.
    pub(crate) file: Option<PathBuf>,
    /// What is said of the server.
    pub(crate) overrides: Overrides,
    /// Whether files and folders that others may write are taken.
    pub(crate) insecure_paths: bool,
}

impl ConfigOrigin {
    /// Reads and checks the files, and who may write them.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place and what to do.
    pub(crate) fn read(&self) -> Result<Config, ConfigError> {
        let config = match &self.file {
            Some(file) => {
                // Who may write them may say in them that this is fine, so only the command line
                // can.
                if !self.insecure_paths {
                    for file in files(file)? {
                        ownership::check(&file).map_err(|error| {
                            ConfigError(format!("the configuration is not to be trusted: {error}"))
                        })?;
                    }
                }
                Config::read(file)?
            }
            None => Config::without_file(),
        };
        Ok(self.overrule(config))
    }

    /// Returns the configuration that a host kept at `path` when it took effect.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn read_kept(&self, path: &Path) -> io::Result<Config> {
        let sources: Vec<Source> = serde_json::from_slice(&fs::read(path)?)?;
        let config = Config::of_sources(sources).map_err(io::Error::other)?;
        Ok(self.overrule(config))
    }

    /// Whether the files have what `config` was read from.
    pub(crate) fn is_as_kept(&self, config: &Config) -> bool {
        self.read().is_ok_and(|read| read.sources == config.sources)
    }

    fn overrule(&self, mut config: Config) -> Config {
        config.trust.insecure_paths |= self.insecure_paths;
        config.server.overrule(self.overrides.clone());
        config
    }
}

impl Config {
    /// Keeps the files that it was read from at `path`, for [`ConfigOrigin::read_kept`]. Blocks.
    ///
    /// # Errors
    /// When they cannot be written. What was there stays.
    pub(crate) fn keep(&self, path: &Path) -> io::Result<()> {
        let sources = serde_json::to_vec(&*self.sources)?;
        if fs::read(path).is_ok_and(|kept| kept == sources) {
            return Ok(());
        }
        replace(path, &sources, Permissions::from_mode(0o600))
    }

    /// Takes from `running` what holds until the host is started again.
    pub(crate) fn keep_until_next_start(&mut self, running: &Self) {
        let (server, old) = (&mut self.server, &running.server);
        server.workers = old.workers;
        server.spare_workers = old.spare_workers;
        server.stall_after = old.stall_after;
        server.plugins.clone_from(&old.plugins);
        server.state.clone_from(&old.state);
        server.control.clone_from(&old.control);
        server.max_connections = old.max_connections;
        server.max_connections_per_address = old.max_connections_per_address;
        self.control.group.clone_from(&running.control.group);
        self.metrics = running.metrics;
        self.dashboard = running.dashboard;
        self.access_log.clone_from(&running.access_log);
        self.audit.clone_from(&running.audit);
        let level = std::mem::take(&mut self.log.level);
        self.log = Log {
            level,
            ..running.log.clone()
        };
        for listen in &mut self.listen {
            let mut before = running.listen.iter();
            if let Some(before) = before.find(|before| before.socket == listen.socket) {
                listen.options = before.options;
            }
        }
    }
}

/// Returns the files of the configuration whose main one is at `path`: that one, and those of
/// `apps.d` beside it by name, but for hidden ones.
///
/// # Errors
/// When the folder is there and cannot be listed.
pub(crate) fn files(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let mut files = vec![path.to_owned()];
    let folder = path.with_file_name(APPS_FOLDER);
    let unreadable = |error: io::Error| {
        ConfigError(format!(
            "{}: the folder cannot be listed: {error}; let the user of the host read it, or take it away",
            folder.display()
        ))
    };
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
        Err(error) => return Err(unreadable(error)),
    };
    for entry in entries {
        let file = entry.map_err(unreadable)?.path();
        let name = file.file_name().map(|name| name.as_encoded_bytes());
        let is_hidden = name.is_some_and(|name| name.starts_with(b"."));
        if !is_hidden && file.extension().is_some_and(|end| end == "toml") {
            files.push(file);
        }
    }
    files[1..].sort();
    Ok(files)
}
