//! A verdict on an artifact, found in a child process: whatever its code does there, the host never notices.
//!
//! - [`parent`]: starts the child, listens, and turns its end into a verdict
//! - [`child`]: does the checks
//! - [`report`]: what they say to each other

pub mod child;
mod parent;
mod report;

pub use self::parent::check;

/// What preflight found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may be loaded. What was checked, for people.
    Passed(Vec<String>),
    /// It may not be loaded, exit code 4: the reason.
    Rejected(String),
    /// Its smoke requests failed, exit code 5: the reason.
    Unhealthy(String),
}
