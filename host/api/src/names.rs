//! The names and numbers that pass through the whole host, parsed once at the edge.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The name of an app: 1 to 64 characters of `a-z`, `0-9`, `-` and `_`, beginning with a letter or
/// digit.
///
/// It names folders in the state directory, so nothing that could escape one is accepted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AppName(Box<str>);

/// A text that cannot be an [`AppName`].
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is not an app name: use 1 to 64 of a-z, 0-9, - and _, beginning with a letter or digit"
)]
pub struct InvalidAppName(String);

impl AppName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AppName {
    type Err = InvalidAppName;

    fn from_str(text: &str) -> Result<Self, InvalidAppName> {
        let fits = matches!(text.len(), 1..=64)
            && text
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
            && !text.starts_with(['-', '_']);
        if fits {
            Ok(Self(text.into()))
        } else {
            Err(InvalidAppName(text.to_owned()))
        }
    }
}

impl TryFrom<String> for AppName {
    type Error = InvalidAppName;

    fn try_from(text: String) -> Result<Self, InvalidAppName> {
        text.parse()
    }
}

impl From<AppName> for String {
    fn from(name: AppName) -> Self {
        name.0.into()
    }
}

impl fmt::Display for AppName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a version that is up beside the live one: 1 to 63 of `a-z`, `0-9` and `-`, beginning
/// and ending with a letter or digit, so that it can be a part of a host name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(Box<str>);

/// A text that cannot be a [`Label`].
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a label: use 1 to 63 of a-z, 0-9 and -, with a letter or digit at both ends")]
pub struct InvalidLabel(String);

impl Label {
    /// The label of what answers where no label is asked for.
    pub const LIVE: &'static str = "live";
    /// The label of the version that was replaced and is kept warm.
    pub const PREVIOUS: &'static str = "previous";
    /// The label of a version that was brought up without a name for it.
    pub const NEXT: &'static str = "next";
    /// The label of a version on trial, which gets a share of the requests.
    pub const CANARY: &'static str = "canary";

    /// The label of a version that gets copies of requests.
    pub const SHADOW: &'static str = "shadow";

    /// The label of that name, which is one.
    pub fn of(name: &'static str) -> Self {
        Self(name.into())
    }

    /// The label as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether the host gives it: nobody else may.
    pub fn is_reserved(&self) -> bool {
        matches!(
            self.as_str(),
            Self::LIVE | Self::PREVIOUS | Self::CANARY | Self::SHADOW
        )
    }
}

impl FromStr for Label {
    type Err = InvalidLabel;

    fn from_str(text: &str) -> Result<Self, InvalidLabel> {
        let fits = matches!(text.len(), 1..=63)
            && text
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && !text.starts_with('-')
            && !text.ends_with('-');
        if fits {
            Ok(Self(text.into()))
        } else {
            Err(InvalidLabel(text.to_owned()))
        }
    }
}

impl TryFrom<String> for Label {
    type Error = InvalidLabel;

    fn try_from(text: String) -> Result<Self, InvalidLabel> {
        text.parse()
    }
}

impl From<Label> for String {
    fn from(label: Label) -> Self {
        label.0.into()
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The number of one load of one artifact. It only grows, per app, also over restarts of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GenerationId(pub u64);

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
