//! How answers to copies of requests are compared: `[app.NAME.shadow]`.

use serde::{Deserialize, Serialize};

/// `[app.NAME.shadow]`
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shadow {
    /// Header fields that may differ, beside those that always do. Default none.
    pub ignore_headers: Vec<String>,
    /// Fields of JSON objects, at any depth, that may differ. Default none.
    pub ignore_fields: Vec<String>,
}
