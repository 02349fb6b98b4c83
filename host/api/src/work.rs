//! Work that outlives code, as the control socket shows it: jobs, schedules, leases, settings,
//! messages.

use semver::Version;
use serde::{Deserialize, Serialize};

use crate::{
    names::{AppName, GenerationId},
    words::JobState,
};

/// A durable job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobInfo {
    /// Its identity.
    pub id: String,
    /// The app.
    pub app: AppName,
    /// The name of its handler.
    pub name: String,
    /// Whose it is; may be empty.
    pub tenant: String,
    /// What becomes of it.
    pub state: JobState,
    /// Attempts that were begun.
    pub attempt: u32,
    /// Attempts before it is a dead letter.
    pub max_attempts: u32,
    /// Those with a higher number go first.
    pub priority: i32,
    /// Not before this time, in milliseconds since 1970.
    pub due_ms: u64,
    /// When it was enqueued, in milliseconds since 1970.
    pub enqueued_ms: u64,
    /// When its last attempt began.
    pub begun_ms: Option<u64>,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// The generation of its last attempt.
    pub generation: Option<u64>,
    /// What its last attempt failed with.
    pub error: Option<String>,
    /// How far it is, from 0 to 1, where it said so.
    pub progress: Option<f64>,
    /// What it said with that.
    pub progress_text: String,
    /// How long its attempt has run, in milliseconds.
    pub age_ms: Option<u64>,
    /// Why it waits, where that is not for its time or for others.
    pub note: Option<String>,
}

/// The answer of `GET /v1/jobs`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobList {
    /// Those that have not ended, the oldest first; then those that have, the youngest first.
    pub jobs: Vec<JobInfo>,
}

/// The answer of `GET /v1/jobs/APP/ID`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobDetails {
    /// The job.
    pub job: JobInfo,
    /// What it was enqueued with, if that is JSON and still there.
    pub payload: Option<serde_json::Value>,
    /// What its handler gave, if that is JSON.
    pub result: Option<serde_json::Value>,
}

/// A schedule of what is live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleInfo {
    /// The app.
    pub app: AppName,
    /// The name of its handler, and of its jobs.
    pub name: String,
    /// The cron expression, or `every` and the interval.
    pub when: String,
    /// The time zone of the expression; none is UTC.
    pub tz: Option<String>,
    /// What is done of times that were missed: `none`, `one` or `all`.
    pub missed: String,
    /// When it was due last, in milliseconds since 1970.
    pub last_ms: Option<u64>,
    /// When it is due next.
    pub next_ms: Option<u64>,
}

/// The answer of `GET /v1/schedules`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleList {
    /// By app and name.
    pub schedules: Vec<ScheduleInfo>,
}

/// A lease that somebody has, or waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseInfo {
    /// What `handover cancel` takes it away by.
    pub id: String,
    /// The app.
    pub app: AppName,
    /// Its name.
    pub name: String,
    /// The generation that has it; none when nobody does.
    pub generation: Option<u64>,
    /// The number of the holder, which only grows; none until that is on the disk.
    pub fence: Option<u64>,
    /// How long it is held, in milliseconds.
    pub held_ms: Option<u64>,
    /// Whether the holder was asked to give it back.
    pub asked_back: bool,
    /// Who waits, the first first.
    pub waiting: Vec<LeaseWaiter>,
}

/// Somebody who waits for a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseWaiter {
    /// The generation.
    pub generation: u64,
    /// How long it waits, in milliseconds.
    pub age_ms: u64,
}

/// The answer of `GET /v1/leases`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseList {
    /// By app and name.
    pub leases: Vec<LeaseInfo>,
}

/// The answer of a call that cancels something, or tries it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// What was done, as a sentence.
    pub message: String,
}

/// A live setting of an app.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SettingInfo {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: serde_json::Value,
    /// When it was changed last, in milliseconds since 1970, where that is remembered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<u64>,
    /// Who changed it, where that is remembered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// A change of a live setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SettingChange {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Its key.
    pub key: String,
    /// Its value since then; none where it was taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<serde_json::Value>,
    /// Who.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// The answer of `GET /v1/settings`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SettingsList {
    /// The app.
    pub app: AppName,
    /// What is set, by key.
    pub settings: Vec<SettingInfo>,
    /// The last changes, newest last.
    pub history: Vec<SettingChange>,
}

/// The answer of `POST /v1/send`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MessageAnswers {
    /// The app.
    pub app: AppName,
    /// What each of its versions answered, the oldest first.
    pub answers: Vec<MessageAnswer>,
}

/// What a version answered to a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MessageAnswer {
    /// The generation.
    pub generation: GenerationId,
    /// Its version.
    pub version: Version,
    /// The answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<serde_json::Value>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
