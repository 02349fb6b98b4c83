//! What the host and a preflight child say to each other: one byte with the image of the artifact,
//! one task, then lines of JSON.

use std::{collections::BTreeMap, path::PathBuf};

use handover_api::AppName;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Answer, Scope};
use crate::{
    artifact::{MigrationPath, Remark, Sha256},
    config::{Leave, SmokeRequest},
    ledger::RefusedLock,
    loader::Companion,
    shown,
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
    pub(super) config: Value,
    /// The environment variables that it may read.
    pub(super) env: Vec<(String, String)>,
    /// Those that are others here than in the host.
    pub(super) check_env: BTreeMap<String, String>,
    /// Those that it has here and in the host, whatever is listed.
    pub(super) given_env: BTreeMap<String, String>,
    /// Those that it may read where they are set; none for all.
    pub(super) listed: Vec<String>,
    /// The arguments that it is told of, its name first.
    pub(super) arguments: Vec<String>,
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
    /// Whether its answers to the smoke requests are told, whatever they are.
    pub(super) answers: bool,
    /// A backup of its state, to be begun with; none for an empty one.
    pub(super) state: Option<PathBuf>,
    /// How large its assets may be.
    pub(super) assets_max_size: u64,
    /// Its folder for files.
    pub(super) data_dir: Option<PathBuf>,
}

/// The longest line, in bytes.
pub(super) const LONGEST: usize = 1024 * 1024;

impl Line {
    /// The line as it is said, whole. Its texts may be a plugin's and of any length, so they are
    /// cut.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub(super) fn text(&self) -> serde_json::Result<String> {
        let mut line = serde_json::to_value(self)?;
        cut_texts(&mut line);
        let mut text = line.to_string();
        text.push('\n');
        Ok(text)
    }

    /// A refusal that nobody's lock has to do with.
    pub(super) fn rejected(reason: impl ToString) -> Self {
        Self::Rejected {
            reason: reason.to_string(),
            refused: Vec::new(),
        }
    }
}

/// Cuts every text in `value`, and every list: what is left fits into [`LONGEST`].
fn cut_texts(value: &mut Value) {
    match value {
        Value::String(text) => *text = shown::truncate(std::mem::take(text), shown::SENTENCE),
        Value::Array(list) => {
            list.truncate(LIST);
            list.iter_mut().for_each(cut_texts);
        }
        Value::Object(fields) => fields.values_mut().for_each(cut_texts),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The most entries of a list in a line.
const LIST: usize = 16;

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
    /// What it answered to a smoke request.
    Answered {
        /// That.
        answer: Answer,
    },
    /// A library that is mapped beside it.
    Beside {
        /// That.
        companion: Companion,
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
    /// A migration runs on a copy of the state.
    Migrating {
        /// From which schema to which.
        path: MigrationPath,
    },
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
            Self::Migrating { path } => format!(
                "in its migration of the state from schema {} to {}",
                path.from, path.to
            ),
            Self::Starting => "in the constructor of the app".to_owned(),
            Self::Smoke { path } => format!("while it answered GET {path}"),
            Self::Leaving => "while its end was rehearsed (drained, stopped, unloaded)".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn a_line_of_any_length_is_cut_to_one_that_is_heard() {
        for letter in ["x", "\x1b", "é\n"] {
            let text = Line::rejected(letter.repeat(3 << 20)).text().unwrap();
            assert!(text.len() < LONGEST && text.matches('\n').count() == 1);
            let Line::Rejected { reason, .. } = serde_json::from_str(&text).unwrap() else {
                panic!("{text}")
            };
            assert!(reason.starts_with(letter) && reason.ends_with(" more bytes)"));
        }
    }
}
