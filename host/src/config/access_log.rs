//! `[access_log]`: whether and where requests are logged.

use std::{
    convert::Infallible,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::LogRotation;
use crate::values::{self, FILES, MANY};

/// The word for standard output.
const STDOUT: &str = "stdout";

/// `[access_log]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AccessLog {
    /// Where lines go. Default nowhere: requests are not logged.
    pub(crate) file: Option<AccessLogFile>,
    /// Default `json`.
    pub(crate) format: AccessLogFormat,
    /// Whether queries are shown, of targets and of referers. Default no: they may be secret.
    pub(crate) query: bool,
    /// So many lines a second are written at most. Default any number.
    #[serde(deserialize_with = "values::count::<1, MANY, _, _>")]
    pub(crate) sample: Option<NonZeroUsize>,
    /// [`LogRotation::max_size`]
    #[serde(with = "values::size_limit")]
    pub(crate) max_size: Option<u64>,
    /// [`LogRotation::max_age`]
    #[serde(with = "values::limit")]
    pub(crate) max_age: Option<Duration>,
    /// [`LogRotation::keep`]
    #[serde(deserialize_with = "values::count::<0, FILES, _, _>")]
    pub(crate) keep: usize,
}

/// Where the lines of requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AccessLogFile {
    /// Standard output.
    Stdout,
    /// A file, which is rotated.
    Path(PathBuf),
}

/// How a line looks.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AccessLogFormat {
    /// One JSON object.
    Json,
    /// The combined format of Apache and nginx.
    Combined,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self {
            file: None,
            format: AccessLogFormat::Json,
            query: false,
            sample: None,
            max_size: Some(64 << 20),
            max_age: None,
            keep: 5,
        }
    }
}

impl AccessLog {
    /// Returns when its file is made anew.
    pub(crate) fn rotation(&self) -> LogRotation {
        LogRotation {
            max_size: self.max_size,
            max_age: self.max_age,
            keep: self.keep,
        }
    }

    /// Makes its path one of `folder`.
    pub(super) fn resolve(&mut self, folder: &Path) {
        if let Some(AccessLogFile::Path(path)) = &mut self.file {
            *path = folder.join(&*path);
        }
    }
}

impl FromStr for AccessLogFile {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            STDOUT => Self::Stdout,
            path => Self::Path(path.into()),
        })
    }
}

impl<'de> Deserialize<'de> for AccessLogFile {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        values::parsed(from)
    }
}

impl Serialize for AccessLogFile {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Stdout => to.serialize_str(STDOUT),
            Self::Path(path) => path.serialize(to),
        }
    }
}
