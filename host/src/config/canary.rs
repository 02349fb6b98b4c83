//! How a version is tried beside the live one: `[app.NAME.canary]`.

use std::time::Duration;

use handover_api::{Percent, Steps};
use serde::{Deserialize, Serialize};

use super::RequestKey;
use crate::values::{self, MANY};

/// `[app.NAME.canary]`
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Canary {
    /// What stays on its side while the share grows. Default none: each request is left to chance.
    pub sticky: Option<RequestKey>,
    /// Values of `sticky` that get the canary whatever its share. Default none.
    pub always: Vec<String>,
    /// Whose failures count once. Default: what is sticky, else the address.
    pub client: Option<RequestKey>,
    /// The shares after the first one that `--canary` names, which each lasts for `bake`. Default
    /// none.
    #[serde(deserialize_with = "steps")]
    pub steps: Option<Steps>,
    /// How long each step lasts. Default 10 minutes.
    #[serde(with = "values::span")]
    pub bake: Duration,
    /// How many of its requests must have been answered before the next step, or before it is
    /// promoted. Default 100.
    #[serde(deserialize_with = "values::count::<1, MANY, _, _>")]
    pub min_requests: u64,
}

impl Default for Canary {
    fn default() -> Self {
        Self {
            sticky: None,
            always: Vec::new(),
            client: None,
            steps: None,
            bake: Duration::from_secs(600),
            min_requests: 100,
        }
    }
}

impl Canary {
    /// Returns the shares of a canary that begins with the first of `asked`: those, or where that
    /// is one, it and the configured ones above it.
    pub fn steps_from(&self, asked: &Steps) -> Vec<Percent> {
        let mut steps = asked.shares().to_vec();
        if let ([first], Some(configured)) = (asked.shares(), &self.steps) {
            let more = configured.shares().iter();
            steps.extend(more.filter(|step| *step > first));
        }
        steps
    }
}

fn steps<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Steps>, D::Error> {
    values::parsed(from).map(Some)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn configured_steps_follow_the_first() {
        let steps = |configured: Option<&str>, asked: &str| {
            let canary = Canary {
                steps: configured.map(|steps| steps.parse().unwrap()),
                ..Canary::default()
            };
            let steps = canary.steps_from(&asked.parse().unwrap());
            Steps::new(steps).unwrap().to_string()
        };
        assert_eq!(steps(None, "5%"), "5%");
        assert_eq!(steps(Some("5%,25%,100%"), "5%"), "5%,25%,100%");
        assert_eq!(steps(Some("5%,25%,100%"), "10%"), "10%,25%,100%");
        assert_eq!(steps(Some("5%,25%,100%"), "10%,20%"), "10%,20%");
    }
}
