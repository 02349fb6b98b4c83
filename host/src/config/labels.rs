//! How versions are reached that are up beside the live one: `[app.NAME.labels]`.

use std::{fmt, str::FromStr, time::Duration};

use handover_api::Label;
use serde::{Deserialize, Serialize};

use super::{RoutePrefix, TrustedProxies};
use crate::values;

/// What stands for the label in a [`LabelHost`].
const PLACE: &str = "{label}";

/// `[app.NAME.labels]`
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Labels {
    /// Who may ask for a version by the header or the cookie `handover-version`. Default nobody.
    pub allow: TrustedProxies,
    /// The host name of each label. Default none.
    pub host: Option<LabelHost>,
    /// After which time a version is ended that was brought up without a TTL of its own. Default
    /// none: when it is promoted or aborted.
    #[serde(with = "values::limit")]
    pub ttl: Option<Duration>,
}

/// A host name with a place for the label: `{label}.preview.example.org`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelHost {
    before: String,
    after: String,
}

/// A text that is no [`LabelHost`].
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is no host name with a place for the label: write e.g. `{{label}}.preview.example.org`"
)]
pub struct InvalidLabelHost(String);

values::as_text!(LabelHost);

impl fmt::Display for LabelHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.of(PLACE))
    }
}

impl FromStr for LabelHost {
    type Err = InvalidLabelHost;

    fn from_str(text: &str) -> Result<Self, InvalidLabelHost> {
        let invalid = || InvalidLabelHost(text.to_owned());
        let (before, after) = text.split_once(PLACE).ok_or_else(invalid)?;
        let host = Self {
            before: before.to_ascii_lowercase(),
            after: after.to_ascii_lowercase(),
        };
        let is_host = |name: &str| {
            let route = format!("{name}/").parse::<RoutePrefix>();
            route.is_ok_and(|route| route.host.as_deref() == Some(name))
        };
        if is_host(&host.of("label")) {
            Ok(host)
        } else {
            Err(invalid())
        }
    }
}

impl LabelHost {
    fn of(&self, label: &str) -> String {
        format!("{}{label}{}", self.before, self.after)
    }
}

impl Labels {
    /// Returns the host name at which `label` answers, if labels have one.
    pub fn host_of(&self, label: &Label) -> Option<String> {
        Some(self.host.as_ref()?.of(label.as_str()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn a_label_has_its_place_in_a_host_name() {
        let host: LabelHost = "{label}.Preview.example.org".parse().unwrap();
        assert_eq!(host.of("next"), "next.preview.example.org");
        let host: LabelHost = "shop-{label}.example.org".parse().unwrap();
        assert_eq!(host.of("a"), "shop-a.example.org");
        for wrong in [
            "",
            "preview.example.org",
            "{label}.example.org/x",
            "{label}..example.org",
            "{label}.{label}.example.org",
            "http://{label}.example.org",
            "{label}.example.org:80",
            "{label}.example.org.",
        ] {
            wrong.parse::<LabelHost>().unwrap_err();
        }
    }
}
