//! `[app.NAME]`: what is set of one app.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use handover_api::AppName;
use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use super::{Canary, Hooks, Labels, Limit, RoutePrefix, Shadow, Tenant, freeze::FreezeWindow};
use crate::{
    assets,
    origin::origin,
    state,
    values::{self, FILES, MANY, THREADS},
    work,
};

/// `[app.NAME]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct App {
    /// Where it answers: `HOST/PATH`, `/PATH`. Empty, the default: the host chooses (`/` for the
    /// first app, `/NAME` for others).
    pub routes: Vec<RoutePrefix>,
    /// Whether the path of its route is taken off the paths that the app sees. Default true.
    pub strip_prefix: bool,
    /// What the drop folder does. Default `deploy`.
    pub watch: Watch,
    /// Older versions than this are refused, whoever brings them. Default none.
    pub min_version: Option<semver::Version>,
    /// Whether what is deployed must say which commit it was built from, and that nothing differed
    /// from it. Default false.
    pub require_clean: bool,
    /// When nothing new goes live, whoever brings it. Default never.
    pub freeze: Vec<FreezeWindow>,
    /// How new requests come to a new version. Default `overlap`.
    pub cutover: Cutover,
    /// How long requests may be held during a handoff. Default 10 s.
    #[serde(with = "values::span")]
    pub max_hold: Duration,
    /// `[app.NAME.handover]`
    pub handover: Handover,
    /// How long requests on a replaced generation may go on; none = for ever. Default 30 s.
    #[serde(with = "values::limit")]
    pub drain_deadline: Option<Duration>,
    /// How long jobs may go on; none = for ever, the default.
    #[serde(with = "values::limit")]
    pub job_deadline: Option<Duration>,
    /// How long a new artifact is on probation: a crash of the host meanwhile rolls it back. None =
    /// never. Default 60 s.
    #[serde(with = "values::limit")]
    pub bake: Option<Duration>,
    /// How long the head of an answer may take, waiting included; past it the client gets 504.
    /// Default: for ever.
    #[serde(with = "values::limit")]
    pub request_timeout: Option<Duration>,
    /// How many requests may be under way at a time, until their answers have ended. Default: any
    /// number.
    #[serde(deserialize_with = "values::count::<1, MANY, _, _>")]
    pub max_concurrent: Option<NonZeroUsize>,
    /// `[[app.NAME.limit]]`: how many requests there may be, by whose they are. Default none.
    pub limit: Vec<Limit>,
    /// How many more may wait for their turn; those beyond get 503. Default 0.
    #[serde(deserialize_with = "values::count::<0, MANY, _, _>")]
    pub queue: usize,
    /// Where its handlers run. Default: on the workers that all apps share.
    pub execution: Execution,
    /// How many threads it has there, where they are its own. Default: one for each core.
    #[serde(deserialize_with = "values::count::<1, THREADS, _, _>")]
    pub execution_threads: Option<NonZeroUsize>,
    /// How many replaced generations may still be draining. Default 4.
    #[serde(deserialize_with = "values::count::<1, FILES, _, _>")]
    pub max_old_generations: usize,
    /// What a deploy beyond that does. Default `refuse`.
    pub when_full: WhenFull,
    /// Threads of the runtime of each generation. Default 1.
    #[serde(deserialize_with = "values::count::<1, THREADS, _, _>")]
    pub runtime_threads: NonZeroUsize,
    /// The names of the environment variables that the app may read. Default none, which leaves it
    /// all of them in its own environment.
    #[serde(deserialize_with = "values::each::<EnvName, _>")]
    pub env: Vec<String>,
    /// What it is told as the arguments of its program, after its name. Default none.
    #[serde(deserialize_with = "values::each::<Argument, _>")]
    pub args: Vec<String>,
    /// How many old artifacts stay in the store for rollback. Default 5.
    #[serde(deserialize_with = "values::count::<0, MANY, _, _>")]
    pub keep_artifacts: usize,
    /// Of how many versions before the live one the assets are served. Default 3.
    #[serde(deserialize_with = "values::count::<0, MANY, _, _>")]
    pub keep_assets: usize,
    /// For how long those of older versions are served as well, from when they were replaced.
    /// Default none.
    #[serde(with = "values::limit")]
    pub keep_assets_for: Option<Duration>,
    /// How large the assets of all versions may be together. Default 64 MiB.
    #[serde(with = "values::size")]
    pub assets_max_size: u64,
    /// What the app reads with `Context::config`. Default `{}`.
    #[serde(deserialize_with = "json_table")]
    pub config: serde_json::Value,
    /// How long the version that a deploy replaces stays up under the label `previous`; a rollback
    /// to it is one pointer meanwhile. Default none: it is drained at once.
    #[serde(with = "values::limit")]
    pub keep_warm: Option<Duration>,
    /// `[app.NAME.labels]`
    pub labels: Arc<Labels>,
    /// `[app.NAME.canary]`
    pub canary: Canary,
    /// `[app.NAME.shadow]`
    pub shadow: Arc<Shadow>,
    /// `[app.NAME.tenant]`
    pub tenant: Tenant,
    /// `[app.NAME.state]`
    pub state: state::Settings,
    /// `[app.NAME.jobs]`
    pub jobs: work::Settings,
    /// `[app.NAME.lease.LEASE]`
    #[serde(rename = "lease")]
    pub leases: BTreeMap<String, Lease>,
    /// `[app.NAME.hooks]`
    pub hooks: Hooks,
    /// `[app.NAME.check]`
    pub check: Check,
    /// Variables that it has in place of those of the host, whatever [`App::env`] lists. No key:
    /// `handover dev` sets them.
    #[serde(skip)]
    pub given_env: BTreeMap<String, String>,
}

impl App {
    /// The arguments that the app is told of, its name first.
    pub fn arguments(&self, name: &AppName) -> Vec<String> {
        let name = name.as_str().to_owned();
        std::iter::once(name).chain(self.args.clone()).collect()
    }

    /// The files that are locked with leases, by the names of those.
    pub fn mirrors(&self) -> BTreeMap<String, PathBuf> {
        let leases = self.leases.iter();
        leases
            .filter_map(|(name, lease)| Some((name.clone(), lease.mirror.clone()?)))
            .collect()
    }

    /// What is kept of its assets.
    pub(crate) fn assets(&self) -> assets::Settings {
        assets::Settings {
            keep: self.keep_assets,
            keep_for: self.keep_assets_for,
            max_size: self.assets_max_size,
        }
    }

    /// Makes its paths those of `folder`.
    pub(super) fn resolve(&mut self, folder: &Path) {
        for lease in self.leases.values_mut() {
            lease.mirror = lease.mirror.take().map(|path| folder.join(path));
        }
        self.hooks.resolve(folder);
    }

    /// Why `version` is refused, if it is.
    pub fn too_old(&self, version: &semver::Version) -> Option<String> {
        let least = self.min_version.as_ref()?;
        version.cmp_precedence(least).is_lt().then(|| {
            format!("{version} is older than {least}, and min_version lets nothing older in: lower min_version, or take a newer one")
        })
    }

    /// The variables that the app may read: those of [`App::env`] that this process began with, and
    /// that are text, and those that it is given.
    pub fn readable_env(&self) -> Vec<(String, String)> {
        let listed = self.env.iter();
        let listed = listed
            .filter(|name| !self.given_env.contains_key(*name))
            .filter_map(|name| origin().text(name).map(|value| (name.clone(), value)));
        listed.chain(self.given_env.clone()).collect()
    }

    /// The environment of the app: what it may have of the host's, and what it is given.
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        environment(&self.env, &self.given_env)
    }
}

/// Returns the environment of an app that may have the variables `listed` of the host, with `given`
/// in the place of those of the same names.
pub(crate) fn environment(
    listed: &[String],
    given: &BTreeMap<String, String>,
) -> Vec<(OsString, OsString)> {
    let mut environment = origin().for_app(listed);
    environment.retain(|(name, _)| {
        let name = name.to_str();
        name.is_none_or(|name| !given.contains_key(name))
    });
    environment.extend(
        given
            .iter()
            .map(|(name, value)| (name.into(), value.into())),
    );
    environment
}

/// `[app.NAME.lease.LEASE]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lease {
    /// The file that is locked while somebody holds the lease. Default none.
    pub mirror: Option<PathBuf>,
}

/// Where the handlers of an app run.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Execution {
    /// On the workers of the host, which all apps share: no hand-over between threads.
    Shared,
    /// On threads of its own, so that what blocks there holds up nobody else.
    Own,
}

/// What the drop folder does.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Watch {
    /// What arrives is deployed.
    Deploy,
    /// What arrives is checked and waits for `handover reload`.
    Stage,
    /// Nothing.
    Off,
}

/// What a deploy does when `max_old_generations` are still draining.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// It is refused.
    Refuse,
    /// The oldest is ended as if its drain deadline had passed.
    EndOldest,
}

/// `[app.NAME.check]`: what preflight does beyond reading.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Check {
    /// Whether the constructor of the app is run in the child. Default true.
    pub start: bool,
    /// The deadline of the whole preflight. Default 30 s.
    #[serde(with = "values::span")]
    pub deadline: Duration,
    /// Environment variables that are others in preflight, such as the address of a database.
    /// Default none.
    #[serde(deserialize_with = "values::each_of_table::<EnvName, Argument, _>")]
    pub env: BTreeMap<String, String>,
    /// Smoke requests, in order.
    #[serde(deserialize_with = "smoke_requests")]
    pub requests: Vec<SmokeRequest>,
    /// Whether what is live is compared with a boot from nothing. Default: only when asked for.
    pub verify: Verify,
    /// What becomes of an artifact that would be retained, as the rehearsal of its end finds.
    /// Default `warn`.
    pub leave: Leave,
}

/// `cutover` of `[app.NAME]`: how new requests come to a new version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cutover {
    /// At once: the old one drains beside it.
    #[default]
    Overlap,
    /// When the old one is gone: they are held as long.
    Handoff,
}

/// `verify` of `[app.NAME.check]`: when what is live is compared with a boot from nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verify {
    /// When `handover verify` asks.
    #[default]
    WhenAsked,
    /// After each deploy as well.
    AfterDeploy,
}

/// `leave` of `[app.NAME.check]`: what preflight does with the end of a generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
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
    /// How long the whole answer may take, as [`values::duration`] reads it. Default: until the
    /// deadline of preflight.
    #[serde(default)]
    pub within: Option<String>,
}

fn ok() -> u16 {
    200
}

impl Default for App {
    fn default() -> Self {
        Self {
            routes: Vec::new(),
            watch: Watch::Deploy,
            min_version: None,
            require_clean: false,
            freeze: Vec::new(),
            drain_deadline: Some(Duration::from_secs(30)),
            job_deadline: None,
            bake: Some(Duration::from_secs(60)),
            request_timeout: None,
            max_concurrent: None,
            queue: 0,
            execution: Execution::Shared,
            execution_threads: None,
            max_old_generations: 4,
            when_full: WhenFull::Refuse,
            runtime_threads: NonZeroUsize::MIN,
            env: Vec::new(),
            args: Vec::new(),
            keep_artifacts: 5,
            keep_assets: 3,
            keep_assets_for: None,
            assets_max_size: 64 << 20,
            config: serde_json::Value::Object(serde_json::Map::new()),
            strip_prefix: true,
            limit: Vec::new(),
            keep_warm: None,
            cutover: Cutover::Overlap,
            max_hold: Duration::from_secs(10),
            handover: Handover::default(),
            labels: Arc::default(),
            canary: Canary::default(),
            shadow: Arc::default(),
            tenant: Tenant::default(),
            hooks: Hooks::default(),
            state: state::Settings::default(),
            jobs: work::Settings::default(),
            leases: BTreeMap::new(),
            check: Check::default(),
            given_env: BTreeMap::new(),
        }
    }
}

/// `[app.NAME.handover]`: what a version hands over to the next one in memory.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Handover {
    /// How long it may take to give it. Default 5 s.
    #[serde(with = "values::span")]
    pub deadline: Duration,
    /// How much it may be. Default 64 MiB.
    #[serde(with = "values::size")]
    pub max_size: u64,
}

impl Default for Handover {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(5),
            max_size: 64 << 20,
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
            verify: Verify::default(),
            leave: Leave::default(),
        }
    }
}

/// The name of an environment variable.
pub(super) struct EnvName(String);

impl FromStr for EnvName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(format!(
                "`{name}` is not the name of a variable: list names only, their values come from the host's own environment"
            ));
        }
        Ok(Self(name.to_owned()))
    }
}

impl From<EnvName> for String {
    fn from(EnvName(name): EnvName) -> Self {
        name
    }
}

/// An argument of a program, or the value of a variable.
pub(super) struct Argument(String);

impl FromStr for Argument {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        if text.contains('\0') {
            return Err("there is no zero byte in it");
        }
        Ok(Self(text.to_owned()))
    }
}

impl From<Argument> for String {
    fn from(Argument(text): Argument) -> Self {
        text
    }
}

fn smoke_requests<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<SmokeRequest>, D::Error> {
    let requests = Vec::<SmokeRequest>::deserialize(from)?;
    for request in &requests {
        request.check().map_err(D::Error::custom)?;
    }
    Ok(requests)
}

impl SmokeRequest {
    fn check(&self) -> Result<(), String> {
        if !self.path.starts_with('/') {
            return Err(format!(
                "the path `{}` does not begin with `/`: write e.g. \"/healthz\"",
                self.path
            ));
        }
        if !(200..=599).contains(&self.status) {
            return Err(format!(
                "{} is not a final HTTP status: use 200 to 599",
                self.status
            ));
        }
        for (name, value) in self.send.iter().chain(&self.headers) {
            if HeaderName::try_from(name).is_err() || HeaderValue::try_from(value).is_err() {
                return Err(format!("`{name}: {value}` is not a header field"));
            }
        }
        if let Some(within) = &self.within {
            values::duration(within)?;
        }
        Ok(())
    }
}

/// Reads a table as JSON, in which dates are text.
fn json_table<'de, D: Deserializer<'de>>(from: D) -> Result<serde_json::Value, D::Error> {
    json(toml::Value::Table(toml::Table::deserialize(from)?)).map_err(D::Error::custom)
}

/// The JSON of a TOML value.
fn json(value: toml::Value) -> Result<serde_json::Value, String> {
    Ok(match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => serde_json::Number::from_f64(number)
            .ok_or_else(|| format!("{number} has no place in JSON: write a finite number"))?
            .into(),
        toml::Value::Boolean(truth) => truth.into(),
        toml::Value::Datetime(date) => date.to_string().into(),
        toml::Value::Array(values) => values.into_iter().map(json).collect::<Result<_, _>>()?,
        toml::Value::Table(table) => table
            .into_iter()
            .map(|(key, value)| Ok((key, json(value)?)))
            .collect::<Result<serde_json::Map<_, _>, String>>()?
            .into(),
    })
}
