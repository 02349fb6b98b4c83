//! Whose the requests of an app are, and when each tenant moves to a new version:
//! `[app.NAME.tenant]`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::RequestKey;
use crate::values;

/// `[app.NAME.tenant]`
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tenant {
    /// What of a request names its tenant. Default none: the app has no tenants.
    pub from: Option<RequestKey>,
    /// When a tenant moves to a version that has become live. Default `at-once`.
    #[serde(rename = "move")]
    pub moves: Moves,
    /// After which time all move that have not; none: never. Default 1 hour.
    #[serde(with = "values::limit")]
    pub move_deadline: Option<Duration>,
}

/// `move` of `[app.NAME.tenant]`
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Moves {
    /// At the cutover, as everybody.
    #[default]
    AtOnce,
    /// When it has nothing in flight on the version before.
    WhenIdle,
}

impl Default for Tenant {
    fn default() -> Self {
        Self {
            from: None,
            moves: Moves::AtOnce,
            move_deadline: Some(Duration::from_secs(3600)),
        }
    }
}

impl Tenant {
    /// Returns what names the tenant of a request, where tenants move each by itself.
    pub fn when_idle(&self) -> Option<&RequestKey> {
        match self.moves {
            Moves::AtOnce => None,
            Moves::WhenIdle => self.from.as_ref(),
        }
    }
}
