//! What keeps other sites out: the checks of a request, and the rules that an answer sets for the
//! browser.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header};

/// What is wrong with a request, as a sentence.
pub(super) type Denied = String;

/// Rules for the browser, in every answer. The page loads nothing but its own files, sends nothing
/// to anybody else, and stands in no frame.
const RULES: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
         frame-ancestors 'none'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
];

/// Writes the rules for the browser into an answer.
pub(super) fn protect(headers: &mut HeaderMap) {
    for (name, value) in RULES {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// Checks that a request was meant for this page, and comes from it if it changes something.
///
/// # Errors
/// The sentence for whoever sent it.
pub(super) fn check<B>(request: &Request<B>) -> Result<(), Denied> {
    let headers = request.headers();
    // Another site's name may lead here: its pages would be of the same origin as this one.
    let host = one(headers, &header::HOST)?.unwrap_or_default();
    if request.uri().authority().is_some() || !is_loopback(host) {
        return Err(format!(
            "`{host}` is no name of this page: open it at its loopback address, as `handover dashboard` prints it"
        ));
    }
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    match one(headers, &header::ORIGIN)? {
        Some(origin) if origin.strip_prefix("http://") != Some(host) => Err(format!(
            "this request is of a page of `{origin}`, and only the dashboard's own may make it"
        )),
        None if !is_read => {
            Err("this request does not say which page it is of (Origin)".to_owned())
        }
        _ => Ok(()),
    }
}

/// The value of a header; none where it is not there.
fn one<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h str>, Denied> {
    let mut all = headers.get_all(name).iter();
    let value = all.next().map(|value| value.to_str());
    match (value, all.next()) {
        (None, _) => Ok(None),
        (Some(Ok(value)), None) => Ok(Some(value)),
        _ => Err(format!("the header {name} makes no sense")),
    }
}

/// Whether a `Host` names this machine by a name that nobody else has a say in. Its port is any,
/// since `ssh -L` may have another one.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        _ => host,
    };
    let address = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'));
    let address: Option<IpAddr> = address.unwrap_or(name).parse().ok();
    name.eq_ignore_ascii_case("localhost") || address.is_some_and(|address| address.is_loopback())
}

/// The value of a cookie.
pub(super) fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let all = headers.get_all(header::COOKIE).iter();
    let mut pairs = all
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    pairs.find_map(|(found, value)| (found == name).then_some(value))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    fn checked(method: &str, headers: &[(&str, &str)]) -> Result<(), Denied> {
        let mut request = Request::builder().method(method).uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check(&request.body(()).unwrap())
    }

    #[test]
    fn only_names_of_loopback_lead_here() {
        for host in [
            "127.0.0.1:9000",
            "localhost:1",
            "LOCALHOST",
            "[::1]:9000",
            "127.0.0.1",
        ] {
            checked("GET", &[("host", host)]).unwrap();
        }
        for host in [
            "",
            "evil.example",
            "evil.example:9000",
            "127.0.0.1.evil.example:9000",
            "localhost.evil.example",
            "192.0.2.1:9000",
            "[::]:9000",
            "127.0.0.1:x",
            "127.0.0.1:1@evil.example",
        ] {
            assert!(checked("GET", &[("host", host)]).is_err(), "{host}");
        }
        let twice = [("host", "127.0.0.1:9000"), ("host", "evil.example")];
        assert!(checked("GET", &twice).is_err());
    }

    #[test]
    fn only_this_page_changes_something() {
        let at = ("host", "127.0.0.1:9000");
        checked("POST", &[at, ("origin", "http://127.0.0.1:9000")]).unwrap();
        for origin in [
            "http://127.0.0.1:8080",
            "http://localhost:9000",
            "https://127.0.0.1:9000",
            "http://evil.example",
            "null",
        ] {
            for method in ["GET", "POST"] {
                assert!(checked(method, &[at, ("origin", origin)]).is_err());
            }
        }
        assert!(checked("POST", &[at]).is_err());
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, HeaderValue::from_static("a=1; handover=x"));
        headers.append(header::COOKIE, HeaderValue::from_static("b=2"));
        assert_eq!(cookie(&headers, "handover"), Some("x"));
        assert_eq!(cookie(&headers, "b"), Some("2"));
        assert_eq!(cookie(&headers, "hand"), None);
    }
}
