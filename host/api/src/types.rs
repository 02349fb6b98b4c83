//! The JSON of the control socket. A contract: other programs read and write these shapes.
//!
//! | call | answer |
//! | --- | --- |
//! | `GET /v1/status` | [`Status`] |
//! | `GET /v1/history?app=A` | [`History`] |
//! | `GET /v1/audit?app=A&since_ms=N&limit=N` | [`AuditList`] |
//! | `GET /v1/artifact?app=A&which=W` | [`ArtifactReport`] |
//! | `GET /v1/events?follow=true` | one [`Event`] a line; with `follow` it never ends |
//! | `GET /v1/logs?app=A&generation=G&level=L&lines=N&since=SEQ&run=RUN&follow=true` | one [`LogRecord`] a line; with `follow` it never ends |
//! | `POST /v1/deploy?name=FILE&app=A&timeout_ms=N&label=L&ttl_ms=N&canary=5%25,25%25&bake_ms=N&sticky=KEY&shadow=10%25&orphan_jobs=true&override_freeze=true&idempotency_key=K&queue=true&detach=true`, body = the artifact's bytes | one [`Progress`] a line |
//! | `POST /v1/reload?app=A&queue=true` | one [`Progress`] a line |
//! | `POST /v1/rollback?app=A&to=VERSION-OR-GENERATION&queue=true` | one [`Progress`] a line |
//! | `POST /v1/promote?app=A&label=L&orphan_jobs=true&queue=true` | one [`Progress`] a line |
//! | `POST /v1/abort?app=A&label=L&queue=true` | one [`Progress`] a line |
//! | `GET /v1/shadow?app=A` | [`ShadowList`] |
//! | `POST /v1/verify?app=A` | one [`Progress`] a line |
//! | `POST /v1/stop?app=A&message=TEXT&queue=true`, `POST /v1/start?app=A&queue=true`, `POST /v1/restart?…` | one [`Progress`] a line |
//! | `POST /v1/pause?app=A&max_wait_ms=N`, `POST /v1/resume?app=A` | one [`Progress`] a line |
//! | `POST /v1/canary/pause?app=A`, `POST /v1/canary/resume?app=A` | one [`Progress`] a line |
//! | `GET /v1/holders?app=A&generation=N&limit=N` | [`HolderList`] |
//! | `GET /v1/tenants?app=A` | [`TenantList`] |
//! | `POST /v1/move?app=A&tenant=T&now=true` | [`crate::Done`] |
//! | `GET /v1/operations/ID` | the [`Progress`] lines of that operation, from its beginning |
//! | `GET /v1/settings?app=A` | [`crate::SettingsList`] |
//! | `POST /v1/set?app=A&key=K&unset=true&by=WHO`, body = the value as JSON | [`crate::Done`] |
//! | `POST /v1/send?app=A&timeout_ms=N&by=WHO`, body = the message | [`crate::MessageAnswers`] |
//! | `GET /metrics` | the metrics, as the text that Prometheus reads |
//! | `POST /v1/dashboard` | [`DashboardLink`] |
//! | `POST /v1/drain-node?undo=true&wait_ms=N` | [`NodeDrain`] |
//! | `POST /v1/shutdown?now=true` | [`ShuttingDown`], then the host ends |
//!
//! While another operation of the app is under way, those that change something end as a
//! conflict; with `queue` they wait for their turn. What waits is given up when its caller leaves,
//! unless `detach` was said; what has begun goes on anyway.
//!
//! A deploy may carry a header [`SIGNATURE`]: the base64 of the text that minisign writes. Who has
//! the role of an observer only may make the first five calls and the one for metrics.
//!
//! A call that cannot be taken answers a 4xx or 5xx status with [`Problem`].

use std::collections::BTreeMap;

use semver::Version;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    AppName, AppState, AuditSource, Cause, EventKind, GenerationId, GenerationState, Label,
    LeaseInfo, LogLevel,
};

/// The header of a deploy that holds the signature of the artifact: the base64 of the text that
/// minisign writes.
pub const SIGNATURE: &str = "handover-signature";

/// What `handover status --json` prints.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Every app the host knows, by name.
    pub apps: Vec<AppStatus>,
    /// The process.
    pub host: HostStatus,
}

/// One app.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AppStatus {
    /// Its name.
    pub name: AppName,
    /// What it does.
    pub state: AppState,
    /// Where it answers, as `host/path` prefixes.
    pub routes: Vec<String>,
    /// What answers new requests, if anything does.
    pub active: Option<ActiveStatus>,
    /// The operation that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationStatus>,
    /// Those that wait for their turn, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queue: Vec<OperationStatus>,
    /// A checked artifact that waits for `handover reload`.
    pub staged: Option<StagedStatus>,
    /// Why the disk does not have yet what is kept in memory of it. It is written when that is
    /// possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_durable: Option<String>,
    /// What its limits hold and did, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsStatus>,
    /// The files that the host serves for it, if it has handed over any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assets: Option<AssetsStatus>,
    /// What clients are told, while somebody has stopped it; may be empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// Why nothing new goes live now, and until when, while that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<String>,
    /// What waits, while somebody has paused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<PausedStatus>,
    /// What is held, while one version hands the app to the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<PausedStatus>,
    /// The version that gets copies of requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowStatus>,
    /// The version that is on trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryStatus>,
    /// Every generation of this run of the host that is not unloaded, oldest first.
    pub generations: Vec<GenerationStatus>,
    /// Its leases, each with who has it and who waits for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leases: Vec<LeaseInfo>,
    /// Where generations of it listen by themselves, beside the host: sockets that go from each to
    /// the next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listening: Vec<String>,
}

/// The files that the host serves for an app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssetsStatus {
    /// How many the live version has.
    pub files: u64,
    /// The versions before it whose files are kept, the newest first.
    pub kept: Vec<Version>,
    /// How large all of them are, as they are.
    pub bytes: u64,
    /// Requests that were answered with one.
    pub requests: u64,
    /// Requests for one of a version that is not kept.
    pub skewed: u64,
}

/// The generation that answers new requests.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ActiveStatus {
    /// Its number.
    pub generation: GenerationId,
    /// The version its manifest names.
    pub version: Version,
    /// The SHA-256 of its artifact, in hexadecimal.
    pub artifact: String,
}

/// An operation that is under way, or waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationStatus {
    /// Its id, for `GET /v1/operations/ID`.
    pub id: String,
    /// What it is, for people: `deploy of 1.2.0`.
    pub what: String,
}

impl std::fmt::Display for OperationStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.id, self.what)
    }
}

/// An artifact that waits for `handover reload`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StagedStatus {
    /// The version its manifest names.
    pub version: Version,
    /// Its SHA-256, in hexadecimal.
    pub artifact: String,
}

/// A version that gets copies of requests, whose answers are compared with those that clients were
/// given.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShadowStatus {
    /// The app.
    pub app: AppName,
    /// The generation.
    pub generation: GenerationId,
    /// Its version.
    pub version: Version,
    /// The share of the requests of which it gets copies, in percent.
    pub percent: f64,
    /// How many answers were the same.
    pub same: u64,
    /// How many were not, those that did not come included.
    pub differ: u64,
    /// How many of those did not come.
    pub failed: u64,
    /// How many copies were not made, because many were under way.
    pub skipped: u64,
    /// The last answers that differ, oldest first; in the list only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<ShadowDifference>,
}

/// An answer of a shadow that differs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShadowDifference {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// What was asked: the method and the target.
    pub request: String,
    /// How they differ: what the client was given, then what it would have been.
    pub differences: Vec<String>,
}

/// The answer to `GET /v1/shadow`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShadowList {
    /// The shadows.
    pub shadows: Vec<ShadowStatus>,
}

/// An app whose requests wait.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct PausedStatus {
    /// How many wait.
    pub waiting: u64,
    /// Milliseconds that each waits at the longest.
    pub max_wait_ms: u64,
}

/// The limits of an app: `request_timeout`, `max_concurrent`, `queue`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct LimitsStatus {
    /// `max_concurrent`, if it is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrent: Option<u64>,
    /// `queue`
    #[serde(default)]
    pub queue: u64,
    /// `request_timeout` in milliseconds, if it is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_timeout_ms: Option<u64>,
    /// Requests that count against `max_concurrent`.
    pub running: u64,
    /// Requests that wait for their turn.
    pub waiting: u64,
    /// Requests that wait for others of the same client or tenant: `queue` of a `limit`.
    #[serde(default)]
    pub queued: u64,
    /// Requests that were refused with 503 since the host started.
    pub refused: u64,
    /// Requests that were refused with 429.
    #[serde(default)]
    pub too_many: u64,
    /// Requests that were ended with 504 since the host started.
    pub timed_out: u64,
}

/// A version on trial: it gets a share of the requests, and is compared with the live one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CanaryStatus {
    /// Its generation.
    pub generation: GenerationId,
    /// The version its manifest names.
    pub version: Version,
    /// The share of the requests that it gets, in percent.
    pub percent: f64,
    /// What stays on its side while the share grows, such as `cookie:session`; none: each request
    /// is left to chance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<String>,
    /// The number of the step, beginning with 1.
    pub step: u64,
    /// How many there are.
    pub steps: u64,
    /// Milliseconds that this step lasts still.
    pub left_ms: u64,
    /// Whether it stands still until somebody says otherwise.
    pub paused: bool,
    /// Whether its time is over, and too few of its requests were answered to go on.
    pub inconclusive: bool,
    /// How many of its requests must have been answered.
    pub min_requests: u64,
    /// What was counted of it.
    pub canary: CanaryCounts,
    /// What was counted of the live version meanwhile.
    pub live: CanaryCounts,
    /// How strongly the figures say that it fails more often than the live version: a likelihood
    /// ratio, at 100 it is ended. Below 1 they say the contrary.
    pub failing: f64,
    /// The same of being slow.
    pub slow: f64,
    /// The highest failure rate that leaves a chance of 5 % for none of its requests to have
    /// failed, which is 3/n; none where one has failed, or none was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_at_most: Option<f64>,
    /// Whether all requests came from one client, whose failures count once. Behind a proxy that is
    /// not trusted that is no client.
    pub one_client: bool,
}

/// What was counted of one side of a trial.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct CanaryCounts {
    /// Requests that were answered.
    pub requests: u64,
    /// Failures: answers of 5xx, panics, timeouts and stalls, one for each client.
    pub failed: u64,
    /// Microseconds that half of the answers took at most, in the last ten minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50_us: Option<u64>,
    /// The same of 99 % of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<u64>,
}

/// One generation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GenerationStatus {
    /// Its number.
    pub generation: GenerationId,
    /// The version its manifest names.
    pub version: Version,
    /// The SHA-256 of its artifact, in hexadecimal.
    pub artifact: String,
    /// What it does.
    pub state: GenerationState,
    /// The label that it answers to beside the live one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<Label>,
    /// Milliseconds until it is ended, where its label has a TTL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_in_ms: Option<u64>,
    /// Requests, streams, upgraded connections and spawned work that are still on it, jobs
    /// included.
    pub in_flight: u64,
    /// Jobs among them.
    pub jobs: u64,
    /// Requests it was given since it became active.
    pub requests: u64,
    /// Panics caught in it.
    pub panics: u64,
    /// Requests that held a worker for longer than `stall_after` in one go.
    #[serde(default)]
    pub stalls: u64,
    /// Answers with a status of 5xx.
    #[serde(default)]
    pub server_errors: u64,
    /// What of tenants is in flight on it, where it was replaced and stays for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staying_for: Option<u64>,
    /// Milliseconds since it was loaded.
    pub age_ms: u64,
    /// The jobs, workers and tasks among what is in flight, the oldest first; of very many only
    /// those.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub work: Vec<WorkStatus>,
    /// The requests, streams and connections that hold it, once it was replaced: the oldest first,
    /// of very many only those.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<HolderStatus>,
    /// Why its library is still mapped though it is retired.
    pub retained_because: Option<String>,
}

/// Work that outlives its request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkStatus {
    /// `job`, `worker` or `task`.
    pub kind: String,
    /// What it is.
    pub name: String,
    /// Whose it is; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tenant: String,
    /// Milliseconds since it began.
    pub age_ms: u64,
}

/// Who holds generations that were replaced, or the one that was asked about.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HolderList {
    /// The oldest first.
    pub holders: Vec<HolderStatus>,
}

/// One that holds a generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderStatus {
    /// What `handover cancel` ends it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its app.
    pub app: AppName,
    /// Its generation.
    pub generation: GenerationId,
    /// `request`, `stream`, `connection`, `task`, `job` or `worker`.
    pub kind: String,
    /// What it is: the method and the path of a request, of the one that began a stream or a
    /// connection; the name of work.
    pub name: String,
    /// The address of the client; none over a unix socket, and of work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Whose it is; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tenant: String,
    /// Milliseconds since it began.
    pub age_ms: u64,
}

/// The tenants that stay on generations that were replaced.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TenantList {
    /// By app, generation and name.
    pub tenants: Vec<TenantStatus>,
}

/// A tenant that stays on a generation that was replaced.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TenantStatus {
    /// Its app.
    pub app: AppName,
    /// Its name.
    pub tenant: String,
    /// Where it stays.
    pub generation: GenerationId,
    /// What it has there.
    pub holders: Vec<HolderStatus>,
}

/// The process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostStatus {
    /// The version of the host.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Its resident memory.
    pub rss_bytes: u64,
    /// How many files and connections it may have open at a time; null = any number.
    #[serde(default)]
    pub max_open_files: Option<u64>,
    /// The addresses it listens on.
    pub listen: Vec<String>,
    /// The connections of clients.
    #[serde(default)]
    pub connections: ConnectionsStatus,
    /// Whether an operator has drained the node.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drained: bool,
    /// Why `/readyz` says that no more traffic should come, while it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_ready: Option<String>,
    /// The certificates that it orders.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateStatus>,
    /// Where it tells its metrics over TCP, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<String>,
    /// The ABI it offers, as `major.minor`.
    pub abi: String,
    /// What replaced generations hold.
    #[serde(default)]
    pub leaks: LeakStatus,
    /// How much of that is tolerated: `server.leak_budget`.
    #[serde(default)]
    pub leak_budget: LeakStatus,
}

/// A certificate that the host orders from an authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// The names that it is for.
    pub names: Vec<String>,
    /// When it ends; none while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
    /// When the next one is ordered.
    pub next_try: String,
    /// Why the last order failed, until one succeeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// The answer to `POST /v1/drain-node`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDrain {
    /// Whether the node is drained.
    pub drained: bool,
    /// Requests, streams and upgraded connections that are under way.
    pub in_flight: u64,
    /// Connections on which a request is under way or has begun to come.
    pub busy_connections: u64,
    /// Whether the traffic has gone; none where nobody waited for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_quiet: Option<bool>,
    /// What was done and what is left, as a sentence.
    pub message: String,
}

/// The connections of clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionsStatus {
    /// Those that are open, upgraded ones not included.
    pub open: u64,
    /// How many there may be at a time, by `server.max_connections` or by what the machine has.
    #[serde(default)]
    pub most: u64,
    /// All that were accepted.
    pub accepted: u64,
    /// Those that the host ended because their clients did nothing: `first_byte_timeout`,
    /// `head_timeout`, `body_timeout`, `idle_timeout`, `write_timeout`, `for_another` (idle, and
    /// another one needed its place).
    pub ended: BTreeMap<String, u64>,
    /// Those that the host closed as soon as they came: `max_connections`,
    /// `max_connections_per_address`, `descriptors`.
    pub refused: BTreeMap<String, u64>,
}

/// What replaced generations hold that they should have given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeakStatus {
    /// Bytes of heap that retained generations hold, of plugins with a heap of their own, and
    /// `estimated`.
    pub bytes: u64,
    /// Of `bytes`, what unloaded generations without a heap of their own left in memory. An
    /// estimate, from the memory of the process after each such unload, the least of the last four:
    /// of what was lost, the last three reloads are not in it yet.
    #[serde(default)]
    pub estimated: u64,
    /// Descriptors that unloaded generations left open and retained ones hold.
    pub descriptors: u64,
    /// Libraries that stay mapped.
    pub retained: u64,
}

/// What was deployed, newest last.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct History {
    /// The entries.
    pub history: Vec<HistoryEntry>,
}

/// One deploy that was tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// The app.
    pub app: AppName,
    /// The generation, if it came to be loaded.
    pub generation: Option<GenerationId>,
    /// The version its manifest names, if it could be read.
    pub version: Option<Version>,
    /// The SHA-256 of the artifact, in hexadecimal.
    pub artifact: String,
    /// What asked for it.
    pub cause: Cause,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, when it did not become active.
    pub reason: Option<String>,
    /// What preflight warned of, though it was taken: each a sentence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Who asked for it: what the caller said, else the user of its process. None of what nobody
    /// asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why, as the caller said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The commit that it was built from, with `-dirty` where files differed from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Its steps up to the cutover, and how long each took.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepTook>,
    /// What its generation has done: until it was replaced, or until now. None of one that never
    /// was live, or that ended in another way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served: Option<Served>,
}

/// A step of a deploy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTook {
    /// Which: see [`Progress::Step`].
    pub step: String,
    /// How long it took, in microseconds.
    pub took_us: u64,
}

/// What a generation has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// Requests that it was given.
    pub requests: u64,
    /// Its answers with a status of 5xx.
    pub server_errors: u64,
    /// Panics caught in it.
    pub panics: u64,
    /// Milliseconds since it was loaded.
    pub for_ms: u64,
}

/// What an artifact says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArtifactReport {
    /// The app that it wants to be.
    pub app: AppName,
    /// Its version.
    pub version: Version,
    /// Its identity, in hexadecimal.
    pub sha256: String,
    /// Its size in bytes.
    pub size: u64,
    /// The ABI that it was built against, as `major.minor`.
    pub abi: String,
    /// The version of its state schema.
    pub schema: u32,
    /// The revisions of its database that it runs with, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub db: Option<String>,
    /// The commit, where the build said so.
    pub commit: Option<String>,
    /// Whether the sources differed from it.
    pub dirty: bool,
    /// What git calls the content of its `Cargo.lock`, where the build said so.
    pub lockfile: Option<String>,
    /// `rustc --version`.
    pub rustc: String,
    /// The target triple.
    pub target: String,
    /// `debug` or `release`.
    pub profile: String,
    /// `unwind` or `abort`.
    pub panic: String,
    /// The version of handover-plugin.
    pub sdk: String,
    /// The libraries that it needs, by name.
    pub needed: Vec<String>,
    /// The jobs that it handles.
    pub jobs: Vec<String>,
    /// Its schedules: the job, and when it is due.
    pub schedules: Vec<String>,
    /// The packages that it was built from, where `cargo auditable` has built it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dependencies: Option<Vec<Dependency>>,
}

/// A package that an artifact was built from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Dependency {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// Something that happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    /// Its number, from 1 in each run of the host.
    pub seq: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// A short word for programs.
    pub kind: EventKind,
    /// The app it is about.
    pub app: Option<AppName>,
    /// The generation it is about.
    pub generation: Option<GenerationId>,
    /// The sentence for a person.
    pub message: String,
    /// `unloaded` only: the bytes of heap that the generation never freed, and that were freed for
    /// it; of plugins with a heap of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaked_bytes: Option<u64>,
    /// `unloaded` only: the descriptors that the generation left open and that could not be closed
    /// for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaked_descriptors: Option<u64>,
}

/// One record of the log of the host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogRecord {
    /// Its number, from 1 in each run of the host.
    pub seq: u64,
    /// The run of the host that it is of: a text that no other run has.
    pub run: String,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// How much it matters.
    pub level: LogLevel,
    /// The app it is about.
    pub app: Option<AppName>,
    /// The generation it is about.
    pub generation: Option<GenerationId>,
    /// The module of the host that logged it, or `plugin`.
    pub target: String,
    /// The sentence for a person.
    pub message: String,
    /// What else it says, by name.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub fields: Map<String, Value>,
    /// This line stands for so many records that are lost, of which `seq` is the last: they made
    /// room for newer ones before they were sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
}

/// One line of a running operation.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Progress {
    /// The operation was taken.
    Accepted {
        /// Its id, for `GET /v1/operations/ID`.
        operation: String,
    },
    /// It waits for its turn. Said again whenever what it waits for has changed.
    Queued {
        /// The app.
        app: AppName,
        /// The operation right ahead.
        behind: OperationStatus,
        /// How many are ahead.
        ahead: u64,
    },
    /// A step ended well.
    Step {
        /// `notice`, `store`, `trust`, `preflight`, `load`, `start` or `cutover`.
        step: String,
        /// The app.
        app: AppName,
        /// The sentence for a person.
        message: String,
        /// How long the step took, in microseconds.
        took_us: u64,
        /// What it found that people should know; of `preflight` only.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        notes: Vec<Note>,
    },
    /// The replaced generation still has work.
    Draining {
        /// The app.
        app: AppName,
        /// The generation that drains.
        generation: GenerationId,
        /// What is still on it, jobs included.
        in_flight: u64,
        /// Jobs among them.
        jobs: u64,
        /// Milliseconds until the drain deadline; none when there is no deadline.
        deadline_ms: Option<u64>,
    },
    /// The operation ended. Always the last line.
    Result(OperationResult),
}

/// How an operation ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OperationResult {
    /// The kind of ending.
    pub outcome: Outcome,
    /// The sentence for a person.
    pub message: String,
    /// The app, when it came to be known.
    pub app: Option<AppName>,
    /// The generation that is active now.
    pub generation: Option<GenerationId>,
    /// Its version.
    pub version: Option<Version>,
    /// The SHA-256 of its artifact, in hexadecimal.
    pub artifact: Option<String>,
    /// What preflight found that people should know, of an artifact that was taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Note>,
    /// Streams of the old generation that would not end, and were ended at its drain deadline in a
    /// way that their clients understand: event streams, gRPC, WebSockets.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ended_streams: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The answer to `GET /v1/audit`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AuditList {
    /// The changes, newest last.
    pub entries: Vec<AuditEntry>,
}

/// Something that was asked of the host and changes something: a line of the audit log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AuditEntry {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Where.
    pub source: AuditSource,
    /// What: the method and the path of the call, or of the call that does the same; or the name of
    /// the signal.
    pub call: String,
    /// The app, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// What was said with it. Values of settings and of the state, and artifacts, are not here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub arguments: BTreeMap<String, String>,
    /// Who, as the caller says (`--by`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The user of the process that called, or who owns the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The number of that user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The process that called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// The status of the answer to a call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The operation that it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// How it ended; none while it is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// The artifact that it was about, by its SHA-256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<String>,
    /// Why, when it did not end well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Something to know of an artifact that is taken all the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// A short word for programs: `never_unloads`, `text_relocations`, `origin_path`,
    /// `bundled_allocator`, `bundled_sqlite`, `retained`, `left_open`, `slow_drain`, `slow_end`,
    /// `bare_tasks`.
    pub kind: String,
    /// Whether something is lost with each deploy, so that somebody should act. Else it is only
    /// good to know.
    pub warning: bool,
    /// The sentence for a person.
    pub message: String,
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.warning { "warning" } else { "note" };
        write!(f, "{kind}: {}", self.message)
    }
}

/// The kinds of ending, each with its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done; 0.
    Done,
    /// Nothing to do: those bytes are live already; 0.
    Unchanged,
    /// Checked and staged, `handover reload` activates it; 0.
    Staged,
    /// It failed for a reason of the host, the old generation is live; 1.
    Failed,
    /// The artifact was refused, the old generation is live; 4.
    Rejected,
    /// The smoke requests failed, the old generation is live; 5.
    Unhealthy,
    /// The new generation was taken back after it had been active; 6.
    RolledBack,
    /// Done, but the old generation had to be ended at its drain deadline; 7.
    DeadlinePassed,
    /// Another operation of this app is under way; 8.
    Conflict,
    /// The caller may not do this; 9.
    Denied,
}

impl Outcome {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::Done,
        Self::Unchanged,
        Self::Staged,
        Self::Failed,
        Self::Rejected,
        Self::Unhealthy,
        Self::RolledBack,
        Self::DeadlinePassed,
        Self::Conflict,
        Self::Denied,
    ];

    /// The word for it, which is that of the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Unchanged => "unchanged",
            Self::Staged => "staged",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Unhealthy => "unhealthy",
            Self::RolledBack => "rolled_back",
            Self::DeadlinePassed => "deadline_passed",
            Self::Conflict => "conflict",
            Self::Denied => "denied",
        }
    }

    /// The exit code of the command line for this ending.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Done | Self::Unchanged | Self::Staged => 0,
            Self::Failed => 1,
            Self::Rejected => 4,
            Self::Unhealthy => 5,
            Self::RolledBack => 6,
            Self::DeadlinePassed => 7,
            Self::Conflict => 8,
            Self::Denied => 9,
        }
    }
}

/// The answer to `POST /v1/dashboard`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DashboardLink {
    /// What a browser opens. Good for one of them, once.
    pub url: String,
}

/// The answer to `POST /v1/shutdown`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShuttingDown {
    /// The process that is ending.
    pub pid: u32,
}

/// Why a call was not taken.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// What was wrong and what to do.
    pub error: String,
    /// The exit code a command line should end with.
    pub exit_code: u8,
}

/// What `handover state stats` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateStats {
    /// The app.
    pub app: String,
    /// The engine.
    pub engine: String,
    /// Keys on the disk, those that have expired and are not removed yet included.
    pub keys: u64,
    /// Their bytes and those of their values, with 32 for each.
    pub bytes: u64,
    /// How many of those are allowed.
    pub max_bytes: u64,
    /// The size of the file.
    pub file_bytes: u64,
    /// The version of the last commit.
    pub version: u64,
    /// The namespaces, those in memory behind the others.
    pub namespaces: Vec<String>,
    /// Keys in memory.
    pub memory_keys: u64,
    /// Their bytes.
    pub memory_bytes: u64,
}

/// A line of `GET /v1/state/APP/keys`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateKey {
    /// The key, if it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The key, if it is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
    /// Bytes of its value.
    pub size: u64,
    /// The version of the commit that wrote it.
    pub version: u64,
    /// When it expires, in milliseconds since 1970; never without this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
}

/// A line of `GET /v1/state/APP/keys` as a client reads it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum StateKeyLine {
    /// A key.
    Key(StateKey),
    /// The end, before there was one.
    Problem(StateProblem),
}

/// The last line of a stream of the state that could not go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateProblem {
    /// Why.
    pub error: String,
}

/// What became of a call that changes or checks the state of an app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateDone {
    /// The entries that were written, or checked.
    pub entries: u64,
    /// The version of the commit, where it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The digest of a backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn an_outcome_has_one_word() {
        for outcome in Outcome::ALL {
            assert_eq!(
                serde_json::to_value(outcome).unwrap(),
                Value::from(outcome.as_str())
            );
        }
    }
}
