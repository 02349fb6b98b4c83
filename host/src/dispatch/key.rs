//! What of a request tells whose it is.

use std::{borrow::Cow, net::SocketAddr};

use http::{HeaderMap, Uri, header::COOKIE};

use super::route::host_of;
use crate::config::RequestKey;

/// Returns what `key` names of a request of `client`; none where it has no such thing, or it is no
/// text.
pub(super) fn key_of<'a>(
    key: &RequestKey,
    uri: &'a Uri,
    headers: &'a HeaderMap,
    client: &Option<SocketAddr>,
) -> Option<Cow<'a, str>> {
    match key {
        RequestKey::Address => client.map(|client| client.ip().to_string().into()),
        RequestKey::Host => host_of(uri, headers),
        RequestKey::Path(number) => {
            let mut segments = uri.path().split('/').filter(|segment| !segment.is_empty());
            segments.nth(number.get() - 1).map(Cow::Borrowed)
        }
        RequestKey::Header(name) => headers.get(name)?.to_str().ok().map(Cow::Borrowed),
        RequestKey::Cookie(name) => cookie(headers, name).map(Cow::Borrowed),
    }
}

/// Returns the value of the cookie `name`.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(COOKIE).iter();
    lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use http::Request;

    use super::*;

    #[test]
    fn a_key_is_found_where_it_says() {
        let request = Request::get("/eu/acme/x?y=1")
            .header("host", "Acme.example.org:80")
            .header("x-tenant", "acme")
            .header("cookie", "a=b; Session=12; session2=x")
            .body(())
            .unwrap();
        let client = Some("[2001:db8::1]:99".parse().unwrap());
        for (key, value) in [
            ("address", Some("2001:db8::1")),
            ("host", Some("acme.example.org")),
            ("path:1", Some("eu")),
            ("path:2", Some("acme")),
            ("path:4", None),
            ("header:X-Tenant", Some("acme")),
            ("header:x-other", None),
            ("cookie:Session", Some("12")),
            ("cookie:session", None),
        ] {
            let key = key.parse().unwrap();
            let found = key_of(&key, request.uri(), request.headers(), &client);
            assert_eq!(found.as_deref(), value, "{key}");
        }
    }
}
