//! The queries of the calls, for both sides, and the paths that they go to.

use serde::{Deserialize, Serialize};

use crate::{AppName, JobState, Label, LogLevel, Percent, Steps};

/// The path of `GET /v1/status`.
pub const STATUS: &str = "/v1/status";
/// The path of `GET /v1/history`.
pub const HISTORY: &str = "/v1/history";
/// The path of `GET /v1/artifact`.
pub const ARTIFACT: &str = "/v1/artifact";
/// The path of `GET /v1/audit`.
pub const AUDIT: &str = "/v1/audit";
/// The path of `GET /v1/events`.
pub const EVENTS: &str = "/v1/events";
/// The path of `GET /v1/logs`.
pub const LOGS: &str = "/v1/logs";
/// The path of `POST /v1/deploy`.
pub const DEPLOY: &str = "/v1/deploy";
/// The path of `POST /v1/reload`.
pub const RELOAD: &str = "/v1/reload";
/// The path of `POST /v1/rollback`.
pub const ROLLBACK: &str = "/v1/rollback";
/// The path of `POST /v1/promote`.
pub const PROMOTE: &str = "/v1/promote";
/// The path of `POST /v1/abort`.
pub const ABORT: &str = "/v1/abort";
/// The path of `POST /v1/canary/pause`.
pub const CANARY_PAUSE: &str = "/v1/canary/pause";
/// The path of `POST /v1/canary/resume`.
pub const CANARY_RESUME: &str = "/v1/canary/resume";
/// The path of `GET /v1/shadow`.
pub const SHADOW: &str = "/v1/shadow";
/// The path of `POST /v1/verify`.
pub const VERIFY: &str = "/v1/verify";
/// The path of `POST /v1/stop`.
pub const STOP: &str = "/v1/stop";
/// The path of `POST /v1/start`.
pub const START: &str = "/v1/start";
/// The path of `POST /v1/restart`.
pub const RESTART: &str = "/v1/restart";
/// The path of `POST /v1/pause`.
pub const PAUSE: &str = "/v1/pause";
/// The path of `POST /v1/resume`.
pub const RESUME: &str = "/v1/resume";
/// The path of `GET /v1/holders`.
pub const HOLDERS: &str = "/v1/holders";
/// The path of `GET /v1/tenants`.
pub const TENANTS: &str = "/v1/tenants";
/// The path of `POST /v1/move`.
pub const MOVE: &str = "/v1/move";
/// The path of `GET /v1/jobs`.
pub const JOBS: &str = "/v1/jobs";
/// What the path of `GET /v1/jobs/ID` begins with.
pub const JOB: &str = "/v1/jobs/";
/// The path of `POST /v1/cancel`.
pub const CANCEL: &str = "/v1/cancel";
/// The path of `POST /v1/retry`.
pub const RETRY: &str = "/v1/retry";
/// The path of `GET /v1/schedules`.
pub const SCHEDULES: &str = "/v1/schedules";
/// The path of `GET /v1/leases`.
pub const LEASES: &str = "/v1/leases";
/// The path of `GET /v1/config`.
pub const CONFIG: &str = "/v1/config";
/// The path of `GET /v1/config/plan`.
pub const CONFIG_PLAN: &str = "/v1/config/plan";
/// The path of `POST /v1/config/reload`.
pub const CONFIG_RELOAD: &str = "/v1/config/reload";
/// The path of `GET /v1/settings`.
pub const SETTINGS: &str = "/v1/settings";
/// The path of `POST /v1/set`.
pub const SET: &str = "/v1/set";
/// The path of `POST /v1/send`.
pub const SEND: &str = "/v1/send";
/// The path of `POST /v1/dashboard`.
pub const DASHBOARD: &str = "/v1/dashboard";
/// The path of `POST /v1/drain-node`.
pub const DRAIN_NODE: &str = "/v1/drain-node";
/// The path of `POST /v1/shutdown`.
pub const SHUTDOWN: &str = "/v1/shutdown";
/// The path of `GET /metrics`.
pub const METRICS: &str = "/metrics";
/// What the path of `GET /v1/operations/ID` begins with.
pub const OPERATIONS: &str = "/v1/operations/";

/// What the paths of calls for the state of an app begin with: the app follows, and what is asked
/// for.
pub const STATE: &str = "/v1/state/";

/// The queries of calls for the state of an app; each takes some of it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct State<'a> {
    /// The namespace; none is `default`, or all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<&'a str>,
    /// The key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<&'a str>,
    /// What keys begin with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<&'a str>,
    /// The key to go on behind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<&'a str>,
    /// How many keys at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// How long it stays, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
}

impl State<'_> {
    /// Returns the path of the call `what` for `app`, with this query.
    pub fn on(&self, app: &AppName, what: &str) -> String {
        uri(&format!("{STATE}{app}/{what}"), self)
    }
}

/// A call without a query.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct None {}

/// The query of `/v1/history`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// Only this app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
}

/// The query of `/v1/audit`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// Only what was about this app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// Only what was asked for since then, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    /// The newest so many; none is 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// The query of `/v1/artifact`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// The app, where there is more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// A label, the number of a generation, a version, or what a SHA-256 begins with; none is
    /// `live`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub which: Option<String>,
}

/// The query of `/v1/jobs`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jobs {
    /// Only those of this app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// Only those in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<JobState>,
    /// Only those of this tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// At most so many; none is 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// The query of `/v1/schedules` and `/v1/leases`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfApp {
    /// Only those of this app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
}

/// The query of `/v1/cancel` and `/v1/retry`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// What is meant: a job, or a lease to be taken away.
    pub id: String,
    /// Who asks for it, for the audit log; else the user of the process that calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// The query of `/v1/events`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Events {
    /// Whether the answer goes on with the events to come, for ever.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follow: bool,
}

/// The query of `/v1/logs`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logs {
    /// Only records of this app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// Only records of this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Only records that matter as much as this or more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<LogLevel>,
    /// Of the past, only the last so many that are left by the rest of the query; none is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<usize>,
    /// Only records after this number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// The run of the host that `since` is a number of. When the host is in another run, all of
    /// its records are after that number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// Whether the answer goes on with the records to come, for ever.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follow: bool,
}

/// The query of `/v1/deploy`, whose body is the artifact.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deploy {
    /// The name of the file, for messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The app, where it is not the one of the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// Milliseconds until the deploy is given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// The label under which it is brought up beside what is live; none: it becomes live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<Label>,
    /// Milliseconds until it is ended, with a label; none: it stays until `promote` or `abort`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// The shares of the requests that it gets one after the other as a canary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Steps>,
    /// Milliseconds that each of them lasts, where it is not the configured time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bake_ms: Option<u64>,
    /// The share of the requests of which it gets copies, as a shadow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Percent>,
    /// What stays on its side while the share grows, such as `cookie:session`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<String>,
    /// Whether jobs may lose their handler.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub orphan_jobs: bool,
    /// Whether it goes live in a freeze, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub override_freeze: bool,
    /// What the caller calls this deploy, so that asking again with the same key does not deploy
    /// again: the answer is that of the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// Who asks for it, for the history; else the user of the process that calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// See [`Wait`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub queue: bool,
    /// See [`Wait`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detach: bool,
}

/// The query of `/v1/reload`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reload {
    /// Only this app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// Who asks for it, for the audit log; else the user of the process that calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// See [`Wait`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub queue: bool,
    /// See [`Wait`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detach: bool,
}

/// The query of `/v1/rollback`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// The app, where there is more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// A version or the number of a generation; else the version before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Whether the state becomes what it was before it was migrated, where there is no way back:
    /// what was written since then is lost.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restore_snapshot: bool,
    /// Who asks for it, for the history; else the user of the process that calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// See [`Wait`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub queue: bool,
    /// See [`Wait`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detach: bool,
}

/// The query of `/v1/promote` and `/v1/abort`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Labelled {
    /// The app, where there is more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// The label; none is `next`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<Label>,
    /// Who asks for it, for the history; else the user of the process that calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// See [`Wait`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub queue: bool,
    /// See [`Wait`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detach: bool,
    /// Whether it goes live in a freeze, too; for `promote` only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub override_freeze: bool,
    /// Whether jobs may lose their handler; for `promote` only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub orphan_jobs: bool,
}

/// The query of `/v1/canary/pause`, `/v1/canary/resume`, `/v1/start`, `/v1/restart` and
/// `/v1/resume`. Only those that start something wait for their turn.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    /// The app, where there is more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// Who asks for it, for the history and the audit log; else the user of the process that calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// See [`Wait`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub queue: bool,
    /// See [`Wait`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detach: bool,
}

/// The query of `/v1/holders`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holders {
    /// Only this app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// This generation, instead of all that were replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// How many at the most; none is 1,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// The query of `/v1/move`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Move {
    /// The app.
    pub app: AppName,
    /// The tenant.
    pub tenant: String,
    /// Whether what it has in flight on the version before is ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub now: bool,
    /// Who asks for it, for the audit log; else the user of the process that calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// The query of `/v1/set`, whose body is the value as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Set {
    /// The app, where there is more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// The key.
    pub key: String,
    /// Whether the setting is taken away; there is no body then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unset: bool,
    /// Who changes it, for the history; else the user of the process that calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// The query of `/v1/send`, whose body is the message.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Send {
    /// The app, where there is more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// Milliseconds that an answer is waited for; none is 30 seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Who sends it, for the audit log; else the user of the process that calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// The query of `/v1/stop`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// The app, where there is more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// What its clients are told meanwhile, with 503. Text, or HTML where it begins with `<`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Who asks for it, for the audit log; else the user of the process that calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// See [`Wait`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub queue: bool,
    /// See [`Wait`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detach: bool,
}

/// The query of `/v1/pause`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    /// The app, where there is more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// Milliseconds that a request waits at the longest; none is 30 seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_wait_ms: Option<u64>,
    /// Who asks for it, for the audit log; else the user of the process that calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// The query of `/v1/drain-node`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainNode {
    /// Whether the node is no longer to be drained.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub undo: bool,
    /// Milliseconds that the answer may wait until nothing is under way and nothing comes; none:
    /// it comes at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
    /// Who asks for it, for the audit log; else the user of the process that calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// The query of `/v1/shutdown`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shutdown {
    /// Whether the host ends without waiting for anything.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub now: bool,
}

/// What an operation does while another one of its app is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// It ends as a conflict.
    #[default]
    No,
    /// It waits until it is first in the queue, as long as its caller stays.
    WhileWanted,
    /// It waits until it is first in the queue.
    Detached,
}

impl Wait {
    /// Reads the `queue` and `detach` of a query.
    pub fn from_query(queue: bool, detach: bool) -> Self {
        match (queue, detach) {
            (false, _) => Self::No,
            (true, false) => Self::WhileWanted,
            (true, true) => Self::Detached,
        }
    }

    /// Returns the `queue` of a query.
    pub fn queue(self) -> bool {
        self != Self::No
    }

    /// Returns the `detach` of a query.
    pub fn detach(self) -> bool {
        self == Self::Detached
    }
}

/// Returns `path` with `query` behind it.
pub fn uri(path: &str, query: &impl Serialize) -> String {
    // Strings, numbers and flags only: serialising them cannot fail.
    let query = serde_urlencoded::to_string(query).unwrap_or_default();
    if query.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{query}")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn names_of_files_travel_in_a_query_unharmed() {
        let sent = Deploy {
            name: Some("a b&c=d/é.so".to_owned()),
            queue: true,
            ..Deploy::default()
        };
        let text = uri(DEPLOY, &sent);
        let query = text.split_once('?').unwrap().1;
        let read: Deploy = serde_urlencoded::from_str(query).unwrap();
        assert_eq!((read.name, read.queue), (sent.name, true));
        assert!(!read.detach && text.starts_with("/v1/deploy?"));
    }

    #[test]
    fn a_query_that_says_nothing_is_left_out() {
        assert_eq!(uri(STATUS, &None {}), "/v1/status");
        assert_eq!(
            uri(EVENTS, &Events { follow: true }),
            "/v1/events?follow=true"
        );
    }
}
