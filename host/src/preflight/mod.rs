//! A verdict on an artifact, found in a child process.

use crate::{artifact::{Artifact, Store}, config, names::AppName};

/// What preflight found.
#[derive(Debug)]
pub enum Verdict {
    /// It may be loaded. What was checked, for people.
    Passed(Vec<String>),
    /// It may not be loaded, exit code 4: the reason.
    Rejected(String),
    /// Its smoke requests failed, exit code 5: the reason.
    Unhealthy(String),
}

/// Checks `artifact` in a child process as `app` with its settings. An error is the host's fault (exit code 1).
pub async fn check(_artifact: &Artifact, _app: &AppName, _settings: &config::App) -> std::io::Result<Verdict> { let _: Option<Store>; todo!() }

/// The child's side: `handover preflight-child`.
pub mod child {
    /// Reads the task from standard input, does it, reports on it, and exits.
    pub fn main() -> std::process::ExitCode { todo!() }
}
