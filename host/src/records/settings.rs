//! The live settings of an app, as its record has them: the values, and who changed which.

use std::collections::BTreeMap;

use handover_api::SettingChange;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How many changes are remembered.
const CHANGES: usize = 100;

/// What is remembered.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct AppSettings {
    /// The values, by key.
    pub(crate) values: BTreeMap<String, Value>,
    /// The changes, newest last.
    pub(crate) changes: Vec<SettingChange>,
}

impl AppSettings {
    /// Whether there is nothing to remember.
    pub(crate) fn is_empty(&self) -> bool {
        self.values.is_empty() && self.changes.is_empty()
    }

    /// Returns the values as `change` would leave them.
    pub(crate) fn with(&self, change: &SettingChange) -> BTreeMap<String, Value> {
        let mut values = self.values.clone();
        match &change.value {
            Some(value) => values.insert(change.key.clone(), value.clone()),
            None => values.remove(&change.key),
        };
        values
    }

    /// Makes a change.
    pub(crate) fn apply(&mut self, change: SettingChange) {
        self.values = self.with(&change);
        self.changes.push(change);
        let surplus = self.changes.len().saturating_sub(CHANGES);
        self.changes.drain(..surplus);
    }

    /// Returns the change that a value is of, if it is remembered.
    pub(crate) fn last(&self, key: &str) -> Option<&SettingChange> {
        self.changes.iter().rev().find(|change| change.key == key)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn the_last_changes_are_remembered_and_every_value() {
        let mut settings = AppSettings::default();
        let change = |number: usize| SettingChange {
            at_ms: number as u64,
            key: format!("k{}", number % 2),
            value: Some(number.into()),
            by: None,
        };
        (0..CHANGES + 10).for_each(|number| settings.apply(change(number)));
        assert_eq!(settings.changes.len(), CHANGES);
        assert_eq!(settings.changes[0].at_ms, 10);
        assert_eq!(settings.values["k1"], CHANGES + 9);
        assert_eq!(settings.last("k0").unwrap().at_ms, CHANGES as u64 + 8);
        settings.apply(SettingChange {
            value: None,
            ..change(1)
        });
        assert_eq!(settings.values.len(), 1);
    }
}
