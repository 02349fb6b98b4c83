//! `[audit]`: where it is written who changed what.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::values::{self, FILES};

/// `[audit]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Audit {
    /// The file. Default `audit.jsonl` in the state directory.
    pub(crate) file: Option<PathBuf>,
    /// It is rotated from this size on; none: never.
    #[serde(with = "values::size_limit")]
    pub(crate) max_size: Option<u64>,
    /// How many old files are kept; `NAME.1` is the newest.
    #[serde(deserialize_with = "values::count::<1, FILES, _, _>")]
    pub(crate) keep: usize,
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            file: None,
            max_size: Some(16 << 20),
            keep: 5,
        }
    }
}

impl Audit {
    /// Makes its path one of `folder`.
    pub(super) fn resolve(&mut self, folder: &Path) {
        self.file = self.file.take().map(|path| folder.join(path));
    }

    /// Returns the file of a host with this state directory.
    pub(crate) fn path(&self, state: &Path) -> PathBuf {
        let of_state = || state.join("audit.jsonl");
        self.file.clone().unwrap_or_else(of_state)
    }
}
