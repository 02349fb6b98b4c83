//! A durable job as it lies in the state of its app, in namespaces of the host's own.

use std::{fmt, str::FromStr, time::Duration};

use handover_api::JobState;
use serde::{Deserialize, Serialize};

use crate::{
    artifact::declared::JobHandler,
    state::{Namespace, Place, StateError},
};

/// Attempts before a job is a dead letter, where nobody said how many.
const MAX_ATTEMPTS: u32 = 20;
/// The pause after the first attempt that failed, and the longest, where nobody said.
const BACKOFF: (u64, u64) = (1000, 3_600_000);

/// The identity of a job: when it was made, and a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct JobId(pub(super) u64);

/// The digits of an identity: those that nobody takes for one another.
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// Digits of an identity.
const LENGTH: u32 = 13;

impl JobId {
    /// The first identity of this time, which later ones follow.
    pub(super) fn at(now_ms: u64) -> Self {
        Self(now_ms << 16)
    }

    /// The identity that a key or a value of the state is.
    pub(super) fn of_text(bytes: &[u8]) -> Option<Self> {
        std::str::from_utf8(bytes).ok()?.parse().ok()
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for digit in (0..LENGTH).rev() {
            let digit = (self.0 >> (digit * 5)) & 31;
            let letter = DIGITS.get(digit as usize).copied().unwrap_or(b'0');
            write!(f, "{}", char::from(letter))?;
        }
        Ok(())
    }
}

/// A text is no identity of a job.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no identity of a job: `handover jobs` shows them")]
pub(crate) struct InvalidJobId(String);

impl FromStr for JobId {
    type Err = InvalidJobId;

    fn from_str(text: &str) -> Result<Self, InvalidJobId> {
        let invalid = || InvalidJobId(text.chars().take(40).collect());
        if text.len() != LENGTH as usize {
            return Err(invalid());
        }
        let mut number: u64 = 0;
        for byte in text.bytes() {
            let digit = DIGITS.iter().position(|known| *known == byte);
            let digit = digit.ok_or_else(invalid)? as u64;
            number = number
                .checked_mul(32)
                .and_then(|number| number.checked_add(digit))
                .ok_or_else(invalid)?;
        }
        Ok(Self(number))
    }
}

/// Where the parts of a job lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The record of a job that has not ended.
    Open,
    /// The record of one that has.
    Ended,
    /// What its handler is given.
    Input,
    /// What its handler gave.
    Result,
    /// That it is to be cancelled.
    Cancel,
}

impl Part {
    pub(super) fn namespace(self) -> Namespace {
        Namespace::own(match self {
            Self::Open => "job",
            Self::Ended => "job-ended",
            Self::Input => "job-payload",
            Self::Result => "job-result",
            Self::Cancel => "job-cancel",
        })
    }

    pub(super) fn of(self, id: JobId) -> Result<Place, StateError> {
        Ok(self.namespace().place(id.to_string().as_bytes())?)
    }
}

/// Where it lies which job has `key`.
pub(super) fn key_place(name: &str, key: &str) -> Result<Place, StateError> {
    let text = format!("{name}\0{key}");
    Ok(Namespace::own("job-key").place(text.as_bytes())?)
}

/// A durable job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct JobRecord {
    /// The name of its handler.
    pub(super) name: String,
    /// Whose it is; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) tenant: String,
    /// What becomes of it.
    pub(super) state: JobState,
    /// Attempts that were begun.
    #[serde(default)]
    pub(super) attempt: u32,
    /// Those with a higher number go first.
    #[serde(default)]
    pub(super) priority: i32,
    /// Not before this time, in milliseconds since 1970.
    pub(super) due_ms: u64,
    /// When it was enqueued.
    pub(super) enqueued_ms: u64,
    /// When its last attempt began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) begun_ms: Option<u64>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ended_ms: Option<u64>,
    /// The generation of its last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) generation: Option<u64>,
    /// What its last attempt failed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    /// What makes it the same job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    /// What it was enqueued with.
    #[serde(flatten)]
    pub(super) options: Options,
}

/// What a job is enqueued with, beyond what its handler declares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Options {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) backoff_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) longest_backoff_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timeout_ms: Option<u64>,
}

impl Options {
    /// With what `handler` declares where they say nothing.
    pub(super) fn over(self, handler: Option<&JobHandler>) -> Self {
        let Some(handler) = handler else { return self };
        Self {
            max_attempts: self.max_attempts.or(handler.max_attempts),
            backoff_ms: self.backoff_ms.or(handler.backoff_ms),
            longest_backoff_ms: self.longest_backoff_ms.or(handler.longest_backoff_ms),
            timeout_ms: self.timeout_ms.or(handler.timeout_ms),
        }
    }

    /// Attempts before it is a dead letter.
    pub(super) fn max_attempts(&self) -> u32 {
        self.max_attempts.unwrap_or(MAX_ATTEMPTS).max(1)
    }

    /// The pause after so many attempts that failed; `random` is from 0 to 1.
    pub(super) fn pause(&self, attempts: u32, random: f64) -> Duration {
        let first = self.backoff_ms.unwrap_or(BACKOFF.0);
        let longest = self.longest_backoff_ms.unwrap_or(BACKOFF.1).max(first);
        let doubled = 1_u64
            .checked_shl(attempts.saturating_sub(1))
            .map_or(longest, |factor| first.saturating_mul(factor));
        Duration::from_millis(doubled.min(longest)).mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }
}

impl JobRecord {
    /// Its bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        // Strings and numbers: it cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// What `bytes` say; none when that is no job.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn an_identity_is_read_as_it_was_written_and_sorts_by_time() {
        for number in [0, 1, 31, 32, u64::MAX, 0x0123_4567_89ab_cdef] {
            let id = JobId(number);
            assert_eq!(id.to_string().parse::<JobId>().unwrap(), id);
        }
        assert!(JobId::at(1000).to_string() < JobId::at(1001).to_string());
        for wrong in [
            "",
            "0",
            "zzzzzzzzzzzzz",
            "000000000000i",
            "0000000000000000",
        ] {
            assert!(wrong.parse::<JobId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let options = Options {
            backoff_ms: Some(100),
            longest_backoff_ms: Some(1000),
            ..Options::default()
        };
        let pauses: Vec<_> = (1..=6).map(|n| options.pause(n, 1.0).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(options.pause(1, 0.0).as_millis(), 50);
        assert_eq!(options.pause(u32::MAX, 1.0).as_millis(), 1000);
    }
}
