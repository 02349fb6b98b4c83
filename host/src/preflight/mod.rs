//! A verdict on an artifact, found in a child process: whatever its code does there, the host never
//! notices.
//!
//! - [`parent`]: starts the child, listens, and turns its end into a verdict
//! - [`child`]: does the checks
//! - [`report`]: what they say to each other

pub(crate) mod child;
mod parent;
mod report;

pub(crate) use self::parent::check;

use serde::{Deserialize, Serialize};

use crate::{artifact::Remark, loader::Companion};

/// The argument with which a program that is a host is started again, to try an artifact where a
/// crash of it hurts nobody.
pub(crate) const CHILD: &str = "preflight-child";

/// What preflight is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Scope {
    /// All that the settings of the app say.
    All,
    /// Of what was live before under another version of the host: whether this one can run it.
    /// Nothing is started, and nothing that a deploy is refused for otherwise counts.
    Again,
}

/// What preflight found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may be loaded.
    Passed(Passed),
    /// It may not be loaded, exit code 4: the reason.
    Rejected(String),
    /// Its smoke requests failed, exit code 5: the reason.
    Unhealthy(String),
}

/// What was found of an artifact that may be loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Passed {
    /// What was checked, for people.
    pub checks: Vec<String>,
    /// What people should know of it.
    pub remarks: Vec<Remark>,
    /// The libraries that were mapped beside it.
    pub(crate) companions: Vec<Companion>,
}
