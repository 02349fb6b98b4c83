//! Where an app answers: one entry of `routes`.

use std::{fmt, str::FromStr};

use crate::values;

/// Where an app answers: an optional host name, and a path prefix of whole segments.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoutePrefix {
    /// The host name in lower case without port; none = any.
    pub host: Option<String>,
    /// `/` or `/a/b`, never with a slash at its end.
    pub path: String,
}

/// A text that is no [`RoutePrefix`].
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is not a route ({what}): write `/`, `/path` or `example.org/path`")]
pub struct InvalidRoute {
    text: String,
    what: &'static str,
}

impl RoutePrefix {
    /// Whether a request for `host` (a [`bare_host`] in lower case) and `path` (without the query)
    /// belongs here. `/api` takes `/api` and `/api/x`, not `/apiary`.
    #[inline]
    pub fn matches(&self, host: Option<&str>, path: &str) -> bool {
        let host_matches = self.host.as_deref().is_none_or(|own| host == Some(own));
        // At the root there are targets that are no path, such as `*`. A table of routes has no
        // slash there.
        host_matches
            && (self.path.len() <= 1
                || path
                    .strip_prefix(self.path.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    }
}

/// A host name without its port and without the dot of the root, as it is written in a route.
pub(crate) fn bare_host(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        // Not the inside of `[::1]`.
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

values::as_text!(RoutePrefix);

impl FromStr for RoutePrefix {
    type Err = InvalidRoute;

    fn from_str(text: &str) -> Result<Self, InvalidRoute> {
        let invalid = |what| InvalidRoute {
            text: text.to_owned(),
            what,
        };
        let Some(slash) = text.find('/') else {
            return Err(invalid("it has no `/`"));
        };
        let (host, path) = text.split_at(slash);
        if host.contains(':') && !host.ends_with(']') {
            return Err(invalid("a route has no scheme and no port"));
        }
        if !host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._[]:".contains(&b))
        {
            return Err(invalid("that is no host name"));
        }
        let host = bare_host(host);
        // A dot at the end is the root; between others it is a name that nobody can have.
        if !text.starts_with('/') && host.split('.').any(str::is_empty) {
            return Err(invalid("that is no host name"));
        }
        if !path
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b"?#*\"<>\\^`{|}".contains(&b))
        {
            return Err(invalid(
                "a path is literal and percent-encoded, without query",
            ));
        }
        let path = path.strip_suffix('/').unwrap_or(path);
        if path
            .split('/')
            .skip(1)
            .any(|segment| matches!(segment, "" | "." | ".."))
        {
            return Err(invalid("it has an empty, `.` or `..` segment"));
        }
        Ok(Self {
            host: (!host.is_empty()).then(|| host.to_ascii_lowercase()),
            path: if path.is_empty() { "/" } else { path }.to_owned(),
        })
    }
}

impl fmt::Display for RoutePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.host.as_deref().unwrap_or(""), self.path)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn route(text: &str) -> RoutePrefix {
        text.parse().unwrap()
    }

    #[test]
    fn routes_are_normalised() {
        for (text, shown) in [
            ("/", "/"),
            ("/api/", "/api"),
            ("Example.ORG/", "example.org/"),
            ("example.org./a/b", "example.org/a/b"),
            ("[::1]/x", "[::1]/x"),
        ] {
            assert_eq!(route(text).to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_route_is_refused() {
        for text in [
            "",
            "api",
            "http://a/",
            "a:80/",
            "//",
            "/a//b",
            "/a/../b",
            "/a?b",
            "/a*",
            "/a b",
            "ex ample/",
            "./",
            "../",
            "a../",
            ".a/",
            "a..b/",
        ] {
            assert!(text.parse::<RoutePrefix>().is_err(), "{text}");
        }
    }

    #[test]
    fn whole_segments_match() {
        let api = route("/api");
        for path in ["/api", "/api/", "/api/v1/x"] {
            assert!(api.matches(None, path), "{path}");
        }
        for path in ["/", "/apiary", "/ap", "/x/api", "*", ""] {
            assert!(!api.matches(Some("a"), path), "{path}");
        }
        for path in ["/", "/x", "*"] {
            assert!(route("/").matches(None, path), "{path}");
        }
    }

    #[test]
    fn a_route_with_a_host_is_for_that_host_only() {
        let site = route("Example.org./");
        assert!(site.matches(Some("example.org"), "/x"));
        for host in [Some("www.example.org"), Some("example.com"), Some(""), None] {
            assert!(!site.matches(host, "/x"), "{host:?}");
        }
    }

    #[test]
    fn a_bare_host_has_no_port_and_no_dot_of_the_root() {
        for (host, bare) in [
            ("a.example", "a.example"),
            ("a.example:80", "a.example"),
            ("a.example.:80", "a.example"),
            ("a.example.", "a.example"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            ("", ""),
        ] {
            assert_eq!(bare_host(host), bare);
        }
    }
}
