//! `[log]`: what the host tells, and where.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize};
use tracing_subscriber::filter::Targets;

use crate::values::{self, FILES};

/// `[log]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Levels by target, as [`Targets`] reads them. Default `info`.
    #[serde(deserialize_with = "level")]
    pub level: String,
    /// `text` or `json`. Default `text`.
    pub format: LogFormat,
    /// Lines go to this file; none, the default: to standard error.
    pub file: Option<PathBuf>,
    /// [`LogRotation::max_size`]
    #[serde(with = "values::size_limit")]
    pub max_size: Option<u64>,
    /// [`LogRotation::max_age`]
    #[serde(with = "values::limit")]
    pub max_age: Option<Duration>,
    /// [`LogRotation::keep`]
    #[serde(deserialize_with = "values::count::<0, FILES, _, _>")]
    pub keep: usize,
}

/// When the file of the log is renamed and made anew. The host does that itself; where something
/// else does, as `logrotate`, it notices, or is told by SIGUSR1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRotation {
    /// `max_size`: from how many bytes on. Default 64 MiB.
    pub max_size: Option<u64>,
    /// `max_age`: from what age on. Default none.
    pub max_age: Option<Duration>,
    /// `keep`: how many old files are kept; `NAME.1` is the newest. Default 5.
    pub keep: usize,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Text,
            file: None,
            max_size: Some(64 << 20),
            max_age: None,
            keep: 5,
        }
    }
}

impl Log {
    /// Returns when its file is made anew.
    pub fn rotation(&self) -> LogRotation {
        LogRotation {
            max_size: self.max_size,
            max_age: self.max_age,
            keep: self.keep,
        }
    }

    /// Makes its path one of `folder`.
    pub(super) fn resolve(&mut self, folder: &Path) {
        self.file = self.file.take().map(|path| folder.join(path));
    }
}

/// A filter of the log.
struct Filter(String);

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<Targets>() {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(error) => Err(format!(
                "`{text}` is not a log filter ({error}): write e.g. \"info\" or \"info,handover=debug\""
            )),
        }
    }
}

fn level<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    values::parsed(from).map(|Filter(text)| text)
}
