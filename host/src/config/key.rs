//! What of a request tells whose it is: `address`, `host`, `path:1`, `header:x-tenant`,
//! `cookie:session`.

use std::{fmt, num::NonZeroUsize, str::FromStr};

use http::HeaderName;

use crate::values;

/// What of a request tells whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestKey {
    /// The address of its client, as far as trusted proxies tell it.
    Address,
    /// The host name that it asks for.
    Host,
    /// A segment of its path; the first has the number 1.
    Path(NonZeroUsize),
    /// A header field.
    Header(HeaderName),
    /// A cookie.
    Cookie(String),
}

/// A text that is no [`RequestKey`].
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` tells nothing of a request: write `address`, `host`, `path:1`, `header:NAME` or `cookie:NAME`"
)]
pub struct InvalidRequestKey(String);

values::as_text!(RequestKey);

impl fmt::Display for RequestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address => f.write_str("address"),
            Self::Host => f.write_str("host"),
            Self::Path(number) => write!(f, "path:{number}"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
        }
    }
}

impl FromStr for RequestKey {
    type Err = InvalidRequestKey;

    fn from_str(text: &str) -> Result<Self, InvalidRequestKey> {
        let (kind, name) = text.split_once(':').unwrap_or((text, ""));
        let key = match kind {
            "address" if text == kind => Some(Self::Address),
            "host" if text == kind => Some(Self::Host),
            "path" => name.parse().ok().map(Self::Path),
            "header" => name.parse().ok().map(Self::Header),
            // The name of a cookie is a token, as that of a header is, but for its case.
            "cookie" => name
                .parse::<HeaderName>()
                .ok()
                .map(|_| Self::Cookie(name.to_owned())),
            _ => None,
        };
        key.ok_or_else(|| InvalidRequestKey(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn a_key_is_written_as_it_is_read() {
        for text in [
            "address",
            "host",
            "path:1",
            "header:x-tenant",
            "cookie:Session_id",
        ] {
            assert_eq!(text.parse::<RequestKey>().unwrap().to_string(), text);
        }
        for wrong in [
            "",
            "adress",
            "address:1",
            "path",
            "path:0",
            "header:",
            "header:a b",
            "cookie:a=b",
        ] {
            wrong.parse::<RequestKey>().unwrap_err();
        }
    }
}
