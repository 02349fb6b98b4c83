//! Who a generation is and what it is started with.

use std::{ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use handover_api::{AppName, GenerationId};
use semver::Version;

use super::states::Retained;
use crate::{
    artifact::Sha256,
    assets::AppAssets,
    ledger::{self, RefusedLock},
    state::Store,
    work::AppWork,
};

/// Who a generation is and what it is started with.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The app.
    pub app: AppName,
    /// The number.
    pub id: GenerationId,
    /// The version of its manifest.
    pub version: Version,
    /// The identity of its artifact.
    pub artifact: Sha256,
    /// What the plugin reads with `Context::config`.
    pub config: serde_json::Value,
    /// The environment variables that it may read.
    pub env: Vec<(String, String)>,
    /// The arguments of a program that it is told of, the name of the app first.
    pub arguments: Vec<String>,
    /// What is taken off the paths of its requests.
    pub base_path: String,
    /// The folder for its files.
    pub data_dir: Option<PathBuf>,
    /// Its environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Threads of its runtime.
    pub runtime_threads: usize,
    /// How long its constructor may take.
    pub start_deadline: Duration,
    /// Whether this is a preflight child, where it will never serve a user.
    pub preflight: bool,
    /// The state of its app; none where it has none.
    pub state: Option<Arc<Store>>,
    /// The work of its app that outlives it; none where it has none.
    pub(crate) work: Option<Arc<AppWork>>,
    /// The assets of its app; none where it hands none over.
    pub(crate) assets: Option<Arc<AppAssets>>,
    /// The migration that is run in place of its constructor: from which schema of the state to
    /// which.
    pub migration: Option<(u32, u32)>,
    /// What the version before hands over, as JSON.
    pub handed_over: Option<Arc<str>>,
    /// Why its library is never unmapped, if it is not.
    pub stays: Option<String>,
}

/// Why a generation did not start.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct StartError {
    /// The reason, as the operator should read it.
    pub reason: String,
    /// The locks on files that others had when it wanted them. The reason does not speak of them.
    pub refused: Vec<RefusedLock>,
    /// Its library, where it could not be unmapped.
    pub retained: Option<Box<Retained>>,
}

impl StartError {
    /// The reason, with who has the files locked that it wanted. To be called in the process of the
    /// host.
    pub(crate) fn explained(&self) -> String {
        ledger::explained(&self.reason, &self.refused)
    }
}
