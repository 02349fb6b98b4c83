//! Limits of requests by whose they are: `[[app.NAME.limit]]`.

use std::{fmt, num::NonZeroU32, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::RequestKey;
use crate::values::{self, MANY};

/// `[[app.NAME.limit]]`
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limit {
    /// Whose requests count together. Default: those of the whole app.
    pub by: LimitedBy,
    /// How many there may be in each `per`. Default: any number.
    pub requests: Option<NonZeroU32>,
    /// The time in which they are counted. Default 1 s.
    #[serde(with = "values::span")]
    pub per: Duration,
    /// How many of them may come at once. Default: `requests`.
    pub burst: Option<NonZeroU32>,
    /// How many there may be at a time, until their answers have ended. Default: any number.
    pub concurrent: Option<NonZeroU32>,
    /// How many of those beyond `concurrent` may wait for their turn. Default 0.
    #[serde(deserialize_with = "values::count::<0, MANY, _, _>")]
    pub queue: usize,
    /// How long each of them waits at the longest. Default 1 s.
    #[serde(with = "values::span")]
    pub queue_wait: Duration,
}

/// Whose requests count together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LimitedBy {
    /// All of the app.
    #[default]
    App,
    /// Those of one tenant, as `[app.NAME.tenant] from` tells it.
    Tenant,
    /// Those that have the same.
    Key(RequestKey),
}

values::as_text!(LimitedBy);

impl Default for Limit {
    fn default() -> Self {
        Self {
            by: LimitedBy::App,
            requests: None,
            per: Duration::from_secs(1),
            burst: None,
            concurrent: None,
            queue: 0,
            queue_wait: Duration::from_secs(1),
        }
    }
}

impl fmt::Display for LimitedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::App => f.write_str("app"),
            Self::Tenant => f.write_str("tenant"),
            Self::Key(key) => key.fmt(f),
        }
    }
}

impl FromStr for LimitedBy {
    type Err = <RequestKey as FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "app" => Ok(Self::App),
            "tenant" => Ok(Self::Tenant),
            key => key.parse().map(Self::Key),
        }
    }
}
