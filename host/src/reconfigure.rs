//! The configuration changed while the host runs: read again, compared with what the host works
//! with, and put into effect as a whole or not at all.
//!
//! What takes effect is what a restart with the same files would give. What a generation is
//! started with holds for the next one, and what the process is built on for the next start of the
//! host; each such key is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use arc_swap::ArcSwap;
use handover_api::{ConfigChange, ConfigEffect, ConfigPlan, EventKind};
use parking_lot::Mutex;
use serde_json::Value;

use crate::{
    access::Access,
    config::{Config, ConfigOrigin},
    human,
    net::{self, ClientListeners},
    orchestrator::Orchestrator,
    telemetry,
};

/// The file in the state directory with the configuration that took effect last.
pub(crate) const KEPT: &str = "config.json";

/// Keys of an app that hold for its next generation.
const NEXT_GENERATION: &[&str] = &["config", "env", "args", "runtime_threads"];

/// What puts a changed configuration into effect. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reconfigurer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    origin: ConfigOrigin,
    orchestrator: Orchestrator,
    listeners: ClientListeners,
    access: Arc<ArcSwap<Access>>,
    /// Where the files are kept that are in effect.
    kept: PathBuf,
    /// One change at a time.
    changing: Mutex<()>,
}

/// Why nothing was changed, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ReconfigureError {
    /// There is no file.
    #[error(
        "this host was started without a configuration file, so there is none to read again: start it with --config FILE"
    )]
    NoFile,
    /// Something in it is wrong, or cannot be had.
    #[error("{0}; nothing was changed")]
    Refused(String),
}

impl Reconfigurer {
    /// That of a host whose configuration comes from `origin`, with what it changes.
    pub(crate) fn new(
        origin: ConfigOrigin,
        orchestrator: Orchestrator,
        listeners: ClientListeners,
        access: Arc<ArcSwap<Access>>,
    ) -> Self {
        let kept = orchestrator.config().server.state.join(KEPT);
        Self(Arc::new(Inner {
            origin,
            orchestrator,
            listeners,
            access,
            kept,
            changing: Mutex::default(),
        }))
    }

    /// That of a host without a file.
    pub fn without_file(orchestrator: Orchestrator, listeners: ClientListeners) -> Self {
        let access = Arc::default();
        Self::new(ConfigOrigin::default(), orchestrator, listeners, access)
    }

    /// Returns whether there is a file to read again.
    pub(crate) fn has_file(&self) -> bool {
        self.0.origin.file.is_some()
    }

    /// Returns the configuration that the host works with.
    pub(crate) fn current(&self) -> Arc<Config> {
        self.0.orchestrator.config()
    }

    /// Keeps what is in effect, for a host that is started again after a crash and finds a file
    /// that cannot be read. Blocks.
    pub(crate) fn keep(&self) {
        let config = self.current();
        if config.sources.is_empty() {
            return;
        }
        if let Err(error) = config.keep(&self.0.kept) {
            tracing::warn!(
                file = %self.0.kept.display(), %error,
                "the configuration cannot be kept: a host that is started again after a crash finds what lies in the file then"
            );
        }
    }

    /// Reads the files again and compares. Changes nothing. Blocks.
    ///
    /// # Errors
    /// What is wrong in them.
    pub(crate) fn plan(&self) -> Result<ConfigPlan, ReconfigureError> {
        self.read().map(|(_, plan)| plan)
    }

    /// Reads the files again and puts what has changed into effect, all of it or nothing. Blocks;
    /// to be called within the host's runtime.
    ///
    /// # Errors
    /// What is wrong in them, or cannot be had.
    pub(crate) fn reload(&self) -> Result<ConfigPlan, ReconfigureError> {
        let _changing = self.0.changing.lock();
        let reloaded = self.reload_locked();
        let (kind, message) = match &reloaded {
            Ok(plan) if plan.changes.is_empty() => (
                EventKind::ConfigLoaded,
                "the configuration was read again: nothing differs".to_owned(),
            ),
            Ok(plan) => (
                EventKind::ConfigLoaded,
                format!(
                    "the configuration was read again, with {}: {}",
                    human::pluralize(plan.changes.len() as u64, "change"),
                    keys(plan)
                ),
            ),
            Err(error) => (
                EventKind::ConfigFailed,
                format!("the configuration was read again: {error}"),
            ),
        };
        self.0.orchestrator.record(kind, message);
        reloaded
    }

    fn reload_locked(&self) -> Result<ConfigPlan, ReconfigureError> {
        let inner = &*self.0;
        let (mut config, plan) = self.read()?;
        let refused = |error: String| ReconfigureError::Refused(error);
        config.keep_until_next_start(&self.current());
        let access = Access::resolve(&config.control).map_err(refused)?;
        let ready = inner.listeners.prepare(&config);
        let ready = ready.map_err(|error| refused(error.to_string()))?;
        // Its level was read with it.
        telemetry::set_level(&config.log.level).map_err(|error| refused(error.to_string()))?;
        // From here on nothing of it fails.
        inner.access.store(Arc::new(access));
        let serving = net::Settings::of(&config.server);
        inner.orchestrator.retune(config);
        if let Err(error) = inner.listeners.open(ready, serving) {
            tracing::error!(%error, "a listening socket that was bound cannot be used");
        }
        self.keep();
        Ok(plan)
    }

    fn read(&self) -> Result<(Config, ConfigPlan), ReconfigureError> {
        let Some(file) = &self.0.origin.file else {
            return Err(ReconfigureError::NoFile);
        };
        let config = self.0.origin.read();
        let config = config.map_err(|error| ReconfigureError::Refused(error.to_string()))?;
        let plan = ConfigPlan {
            file: file.display().to_string(),
            changes: changes(&self.current(), &config),
        };
        Ok((config, plan))
    }
}

/// The keys that differ, as a list for a sentence.
fn keys(plan: &ConfigPlan) -> String {
    let keys: Vec<_> = plan.changes.iter().map(|change| &*change.key).collect();
    keys.join(", ")
}

/// What differs between `old` and `new`, by key.
fn changes(old: &Config, new: &Config) -> Vec<ConfigChange> {
    let mut soon = new.clone();
    soon.keep_until_next_start(old);
    let (old, new, soon) = (flat(old), flat(new), flat(&soon));
    let mut changes = Vec::new();
    let keys: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    for at in keys {
        let (from, to) = (old.get(at), new.get(at));
        if from == to {
            continue;
        }
        let (section, key) = at;
        changes.push(ConfigChange {
            key: if key.is_empty() {
                section.clone()
            } else {
                format!("{section}.{key}")
            },
            from: from.and_then(text),
            to: to.and_then(text),
            effect: if soon.get(at) == from {
                ConfigEffect::NextStart
            } else if section.starts_with("app.") && NEXT_GENERATION.contains(&key.as_str()) {
                ConfigEffect::NextGeneration
            } else {
                ConfigEffect::Now
            },
        });
    }
    // An app or a listener that is there once says so in one line.
    let whole: BTreeSet<String> = changes
        .iter()
        .filter(|change| is_whole(&change.key))
        .map(|change| format!("{}.", change.key))
        .collect();
    changes.retain(|change| !whole.iter().any(|of| change.key.starts_with(of)));
    changes
}

fn is_whole(section: &str) -> bool {
    section.starts_with("listen[") && section.ends_with(']')
        || section
            .strip_prefix("app.")
            .is_some_and(|name| !name.contains('.'))
}

/// What is shown of a value; none of what an app keeps there, which may be secret.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null | Value::Object(_) => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// Every key with its value, by its section: `server`, `listen[ADDRESS]`, `app.NAME`. A section of
/// an app or a listener has an entry of its own.
fn flat(config: &Config) -> BTreeMap<(String, String), Value> {
    let mut found = BTreeMap::new();
    // Our own types of strings, numbers and tables: this cannot fail.
    let Ok(Value::Object(sections)) = serde_json::to_value(config) else {
        return found;
    };
    for (section, value) in sections {
        match (section.as_str(), value) {
            ("app", Value::Object(apps)) => {
                for (name, app) in apps {
                    let section = format!("app.{name}");
                    found.insert((section.clone(), String::new()), "configured".into());
                    flatten(&section, "", app, &mut found);
                }
            }
            ("listen", Value::Array(listeners)) => {
                for listener in listeners {
                    let named = ["address", "socket"].map(|key| listener[key].as_str());
                    let name = named.into_iter().flatten().next().unwrap_or_default();
                    let section = format!("listen[{name}]");
                    found.insert((section.clone(), String::new()), "configured".into());
                    flatten(&section, "", listener, &mut found);
                }
            }
            // It is about no host but the one of `handover dev`.
            ("dev", _) => {}
            (_, value) => flatten(&section, "", value, &mut found),
        }
    }
    found
}

fn flatten(
    section: &str,
    prefix: &str,
    value: Value,
    found: &mut BTreeMap<(String, String), Value>,
) {
    match value {
        Value::Object(table) if prefix != "config" => {
            for (key, value) in table {
                let key = if prefix.is_empty() {
                    key
                } else {
                    format!("{prefix}.{key}")
                };
                flatten(section, &key, value, found);
            }
        }
        value => drop(found.insert((section.to_owned(), prefix.to_owned()), value)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    fn between(
        old: &str,
        new: &str,
    ) -> Vec<(String, Option<String>, Option<String>, ConfigEffect)> {
        let read = |text| Config::parse(text).unwrap();
        changes(&read(old), &read(new))
            .into_iter()
            .map(|change| (change.key, change.from, change.to, change.effect))
            .collect()
    }

    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn each_key_is_told_with_when_it_takes_effect() {
        let old = "[server]\nworkers = 1\n[app.shop]\ndrain_deadline = \"30s\"\nenv = [\"A\"]\n";
        let new = "[server]\nworkers = 2\n[app.shop]\ndrain_deadline = \"none\"\nenv = [\"B\"]\n";
        assert_eq!(
            between(old, new),
            [
                (
                    "app.shop.drain_deadline".to_owned(),
                    text("30s"),
                    text("none"),
                    ConfigEffect::Now
                ),
                (
                    "app.shop.env".to_owned(),
                    text("[\"A\"]"),
                    text("[\"B\"]"),
                    ConfigEffect::NextGeneration
                ),
                (
                    "server.workers".to_owned(),
                    text("1"),
                    text("2"),
                    ConfigEffect::NextStart
                ),
            ]
        );
        assert_eq!(between(old, old), []);
    }

    #[test]
    fn what_an_app_reads_is_not_shown() {
        let changed = between(
            "[app.shop.config]\nkey = \"secret\"\n",
            "[app.shop.config]\nkey = \"other\"\n",
        );
        assert_eq!(
            changed,
            [(
                "app.shop.config".to_owned(),
                None,
                None,
                ConfigEffect::NextGeneration
            )]
        );
    }

    #[test]
    fn what_comes_or_goes_is_one_line() {
        let changed = between(
            "[app.shop]\n[[listen]]\naddress = \"127.0.0.1:81\"\n",
            "[app.blog]\n[[listen]]\naddress = \"127.0.0.1:81\"\nhsts = \"1d\"\n[[listen]]\nsocket = \"web\"\n",
        );
        let keys: Vec<_> = changed.iter().map(|change| change.0.as_str()).collect();
        assert_eq!(
            keys,
            [
                "app.blog",
                "app.shop",
                "listen[127.0.0.1:81].hsts",
                "listen[web]"
            ]
        );
    }
}
