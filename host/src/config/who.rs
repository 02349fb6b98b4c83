//! Somebody whom the configuration gives a role: a user or a group, by name or number.

use std::{fmt, str::FromStr};

use crate::values;

/// A user or a group. Names are looked up when the host starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// `1001`
    Uid(u32),
    /// `deploy`
    User(String),
    /// `@ops`, `@1001`
    Group(String),
}

/// A text that can be nobody.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is nobody: write a user's name or number, or a group's after an `@`")]
pub struct InvalidWho(String);

values::as_text!(Who);

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "{uid}"),
            Self::User(name) => f.write_str(name),
            Self::Group(name) => write!(f, "@{name}"),
        }
    }
}

impl FromStr for Who {
    type Err = InvalidWho;

    fn from_str(text: &str) -> Result<Self, InvalidWho> {
        let name = text.strip_prefix('@').unwrap_or(text);
        let wrong = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '@' | ':' | '/');
        if name.is_empty() || name.contains(wrong) {
            return Err(InvalidWho(text.to_owned()));
        }
        Ok(match (text.starts_with('@'), name.parse()) {
            (true, _) => Self::Group(name.to_owned()),
            (false, Ok(uid)) => Self::Uid(uid),
            (false, Err(_)) => Self::User(name.to_owned()),
        })
    }
}
