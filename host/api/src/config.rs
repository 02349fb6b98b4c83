//! The configuration, as the control socket tells how it differs and what became of it.

use serde::{Deserialize, Serialize};

use crate::words::ConfigEffect;

/// What differs between the files of the configuration and what the host works with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfigPlan {
    /// The main file.
    pub file: String,
    /// What differs, by key. Empty: nothing.
    pub changes: Vec<ConfigChange>,
}

/// A key that differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfigChange {
    /// `app.shop.bake`, `server.idle_timeout`, `listen[0.0.0.0:80].hsts`; an app or a listener that
    /// is there only before or afterwards is one key.
    pub key: String,
    /// Its value before, where it has one that is shown. What `app.NAME.config` holds is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Its value in the files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// When it takes effect.
    pub effect: ConfigEffect,
}
