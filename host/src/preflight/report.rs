//! What the host and a preflight child say to each other: one byte with the image of the artifact, one task, then lines of JSON.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Scope;
use crate::{
    artifact::{Remark, Sha256},
    config::{Leave, SmokeRequest},
    ledger::RefusedLock,
    names::AppName,
};

/// What the child is to check.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Task {
    /// The process that asked. The child ends when it is gone.
    pub(super) parent: u32,
    /// The file that it will have, for people.
    pub(super) artifact: PathBuf,
    /// The identity of the image.
    pub(super) sha256: Sha256,
    /// As which app.
    pub(super) app: AppName,
    /// What the app reads with `Context::config`.
    pub(super) config: serde_json::Value,
    /// The environment variables that it may read.
    pub(super) env: Vec<(String, String)>,
    /// Threads of its runtime.
    pub(super) runtime_threads: usize,
    /// Whether its constructor is run.
    pub(super) start: bool,
    /// What it is asked then.
    pub(super) requests: Vec<SmokeRequest>,
    /// Whether its end is rehearsed after that.
    pub(super) leave: Leave,
    /// How strict to be.
    pub(super) scope: Scope,
}

impl Line {
    /// A refusal that nobody's lock has to do with.
    pub(super) fn rejected(reason: impl ToString) -> Self {
        Self::Rejected {
            reason: reason.to_string(),
            refused: Vec::new(),
        }
    }
}

/// One line of the child.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub(super) enum Line {
    /// What it begins now, so that its death can be explained.
    Begins {
        /// The stage.
        stage: Stage,
    },
    /// What it found to be right.
    Checked {
        /// For people.
        what: String,
    },
    /// What it found that people should know.
    Remarked {
        /// That.
        remark: Remark,
    },
    /// Everything was right. The last line.
    Passed,
    /// The artifact is refused. The last line.
    Rejected {
        /// Why, and what to do.
        reason: String,
        /// The locks on files that others had when it wanted them.
        #[serde(default)]
        refused: Vec<RefusedLock>,
    },
    /// A smoke request failed. The last line.
    Unhealthy {
        /// Which, and how.
        reason: String,
    },
    /// The check could not be made, by no fault of the artifact. The last line.
    Broken {
        /// Why.
        reason: String,
    },
}

/// Where the child is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// The child process comes up.
    #[default]
    Preparing,
    /// The file is read.
    Reading,
    /// The library is mapped, its ELF constructors run, its layouts are compared.
    Mapping,
    /// The constructor of the app runs.
    Starting,
    /// A smoke request is answered.
    Smoke {
        /// Its path.
        path: String,
    },
    /// Its end is rehearsed.
    Leaving,
}

impl Stage {
    /// When it was, for a sentence like "it crashed …".
    pub(super) fn during(&self) -> String {
        match self {
            Self::Preparing => "before anything of it was touched".to_owned(),
            Self::Reading => "while its file was read".to_owned(),
            Self::Mapping => "while its library was loaded (ELF constructors run there)".to_owned(),
            Self::Starting => "in the constructor of the app".to_owned(),
            Self::Smoke { path } => format!("while it answered GET {path}"),
            Self::Leaving => "while its end was rehearsed (drained, stopped, unloaded)".to_owned(),
        }
    }
}
