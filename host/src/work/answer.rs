//! What is answered to a plugin over the ABI, and why something is not done.

use bytes::Bytes;
use handover_plugin::abi::{
    state::codes,
    work::{SUPERSEDED, UNKNOWN_JOB},
};

use super::record::JobId;
use crate::{state::StateError, wakers::Promise};

/// What is answered over the ABI: JSON, and bytes beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) bytes: Bytes,
}

impl Answer {
    /// Identities of jobs.
    pub(super) fn ids(ids: &[JobId]) -> Self {
        let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
        Self {
            text: serde_json::json!({ "ids": ids }).to_string(),
            bytes: Bytes::new(),
        }
    }
}

/// Why something is not done, with the code that crosses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub(crate) struct Refused {
    pub(super) code: u32,
    pub(super) why: String,
}

impl Refused {
    pub(super) fn invalid(why: impl Into<String>) -> Self {
        Self {
            code: codes::INVALID,
            why: why.into(),
        }
    }

    pub(super) fn superseded() -> Self {
        Self {
            code: SUPERSEDED,
            why: "the job was ended, or given to another attempt".to_owned(),
        }
    }

    pub(super) fn unknown(id: JobId) -> Self {
        Self {
            code: UNKNOWN_JOB,
            why: format!("there is no job {id} that could be ended: `handover jobs` shows them"),
        }
    }
}

impl From<StateError> for Refused {
    fn from(error: StateError) -> Self {
        Self {
            code: error.code(),
            why: error.to_string(),
        }
    }
}

/// What somebody waits for.
pub(super) type Outcome = Promise<Result<Answer, Refused>>;
