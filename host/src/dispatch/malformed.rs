//! Requests that no app is given, since two who read them could take them for different ones.
//!
//! hyper refuses what is no HTTP. What it takes beyond that, as other servers do not, is refused
//! here: a request of HTTP/1 with its connection, so that nothing that follows it is read as
//! another one.

use http::{
    HeaderMap, Request, Uri, Version,
    header::{HOST, TRANSFER_ENCODING},
};
use http_body::Body;

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// It names no host, several, or what is no host (RFC 9112, 3.2; RFC 9113, 8.3.1).
    #[error("a request names one host")]
    Host,
    /// Its `:scheme` is empty (RFC 9113, 8.3.1).
    #[error("a request has a scheme")]
    Scheme,
    /// Its body is encoded as something else than `chunked`, once (RFC 9112, 6.1).
    #[error("the one transfer coding that a request may have is chunked")]
    TransferEncoding,
}

/// Returns what is wrong with `request`, if anything is.
#[inline]
pub(crate) fn malformed<B: Body>(request: &Request<B>) -> Option<Malformed> {
    let headers = request.headers();
    if request.version() > Version::HTTP_11 {
        return malformed_http2(request.uri(), headers);
    }
    if !names_its_host(request.version(), headers) {
        return Some(Malformed::Host);
    }
    // What is encoded has a body, be it an empty one.
    if !request.body().is_end_stream() && !is_chunked_once(headers) {
        return Some(Malformed::TransferEncoding);
    }
    None
}

fn malformed_http2(uri: &Uri, headers: &HeaderMap) -> Option<Malformed> {
    if uri.scheme_str().is_some_and(str::is_empty) {
        return Some(Malformed::Scheme);
    }
    let mut hosts = headers.get_all(HOST).iter();
    let names_one = match (uri.authority(), hosts.next()) {
        (Some(_), None) => true,
        (None, None) => false,
        (authority, Some(host)) => {
            let host = host.as_bytes();
            hosts.next().is_none()
                && is_host(host)
                && authority
                    .is_none_or(|known| known.as_str().as_bytes().eq_ignore_ascii_case(host))
        }
    };
    (!names_one).then_some(Malformed::Host)
}

/// Whether a body, if its length is not given, is encoded as `chunked` and nothing else.
fn is_chunked_once(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(coding), None) => coding
            .as_bytes()
            .trim_ascii()
            .eq_ignore_ascii_case(b"chunked"),
        (Some(_), Some(_)) => false,
    }
}

/// Whether a request of HTTP/1 has one `Host` with a valid value, which only HTTP/1.0 may do
/// without.
#[inline]
fn names_its_host(version: Version, headers: &HeaderMap) -> bool {
    // As clients send it, without looking for anything: the first of fields that are there once
    // each.
    if headers.len() == headers.keys_len()
        && let Some((name, value)) = headers.iter().next()
        && name == HOST
    {
        return is_host(value.as_bytes());
    }
    names_one(version, headers)
}

#[cold]
fn names_one(version: Version, headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(HOST).iter();
    match (values.next(), values.next()) {
        (None, _) => version < Version::HTTP_11,
        (Some(value), None) => is_host(value.as_bytes()),
        (Some(_), Some(_)) => false,
    }
}

/// Whether `value` is `uri-host [ ":" port ]` (RFC 3986, 3.2.2 and 3.2.3). It may be empty.
#[inline]
fn is_host(value: &[u8]) -> bool {
    let end = value.iter().position(|byte| !OF_NAMES[usize::from(*byte)]);
    let Some(end) = end else { return true };
    match &value[end..] {
        [b':', port @ ..] => port.iter().all(u8::is_ascii_digit),
        address if end == 0 => is_address(address),
        _ => false,
    }
}

/// Whether `value` is an address in brackets, with or without a port.
#[cold]
fn is_address(value: &[u8]) -> bool {
    let Some(close) = value.iter().position(|byte| *byte == b']') else {
        return false;
    };
    let of_addresses = |byte: &u8| *byte == b':' || OF_NAMES[usize::from(*byte)];
    let (address, rest) = value.split_at(close);
    matches!(address, [b'[', inside @ ..] if !inside.is_empty() && inside.iter().all(of_addresses))
        && match rest {
            [_] => true,
            [_, b':', port @ ..] => port.iter().all(u8::is_ascii_digit),
            _ => false,
        }
}

/// The bytes of a `reg-name` of RFC 3986: unreserved ones, sub-delimiters and the percent sign.
static OF_NAMES: [bool; 256] = {
    let mut is_one = [false; 256];
    let bytes = *b"-._~!$&'()*+,;=%";
    let mut at = 0;
    while at < bytes.len() {
        is_one[bytes[at] as usize] = true;
        at += 1;
    }
    let mut byte = 0;
    while byte < 128 {
        if (byte as u8).is_ascii_alphanumeric() {
            is_one[byte] = true;
        }
        byte += 1;
    }
    is_one
};

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use http::HeaderValue;
    use http_body_util::{Empty, Full};

    use super::*;

    #[test]
    fn a_request_of_http_1_1_names_one_host() {
        let is = |version, hosts: &[&'static str], before: Option<&'static str>| {
            let mut fields = HeaderMap::new();
            if let Some(before) = before {
                fields.append("accept", HeaderValue::from_static(before));
                fields.append("accept", HeaderValue::from_static(before));
            }
            for host in hosts {
                fields.append(HOST, HeaderValue::from_static(host));
            }
            names_its_host(version, &fields)
        };
        for before in [None, Some("text/html")] {
            assert!(is(Version::HTTP_11, &["a"], before));
            assert!(!is(Version::HTTP_11, &[], before));
            assert!(!is(Version::HTTP_11, &["a", "a"], before));
            assert!(is(Version::HTTP_10, &[], before));
            assert!(!is(Version::HTTP_10, &["a", "b"], before));
        }
    }

    #[test]
    fn the_value_of_a_host_is_a_name_or_an_address_with_or_without_a_port() {
        for right in [
            "",
            "a",
            "Example.org",
            "example.org.",
            "example.org:8080",
            "a_b.example:",
            "127.0.0.1:80",
            "[::1]",
            "[::1]:80",
            "[fe80::1%25eth0]:80",
            "xn--bcher-kva.example",
            "a%20b",
        ] {
            assert!(is_host(right.as_bytes()), "{right}");
        }
        for wrong in [
            "a b",
            "a/b",
            "a:b",
            "a:80:90",
            "user@a",
            "a?b",
            "a#b",
            "[::1",
            "::1]",
            "[]",
            "[::1]x",
            "a[::1]",
            "a\\b",
            "a\"b",
            "b\u{fc}cher.example",
            "a,b c",
            "<a>",
            "a\tb",
        ] {
            assert!(!is_host(wrong.as_bytes()), "{wrong}");
        }
    }

    #[test]
    fn a_request_of_http_2_names_one_host_as_its_authority_or_in_a_header() {
        let of = |uri: &str, hosts: &[&str]| {
            let mut request = Request::builder().version(Version::HTTP_2).uri(uri);
            for host in hosts {
                request = request.header(HOST, *host);
            }
            malformed(&request.body(Empty::<&[u8]>::new()).unwrap())
        };
        for (uri, hosts) in [
            ("http://shop.example/", &[][..]),
            ("http://shop.example/", &["Shop.example"]),
            ("/", &["shop.example:80"]),
        ] {
            assert_eq!(of(uri, hosts), None, "{uri} {hosts:?}");
        }
        for (uri, hosts) in [
            ("/", &[][..]),
            ("/", &["a b"]),
            ("/", &["a", "a"]),
            ("http://shop.example/", &["admin.example"]),
            ("http://shop.example/", &["shop.example", "shop.example"]),
        ] {
            assert_eq!(of(uri, hosts), Some(Malformed::Host), "{uri} {hosts:?}");
        }
    }

    #[test]
    fn a_scheme_is_not_empty() {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some("".parse().unwrap());
        parts.authority = Some("shop.example".parse().unwrap());
        parts.path_and_query = Some("/".parse().unwrap());
        let mut request = Request::new(Empty::<&[u8]>::new());
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = Uri::from_parts(parts).unwrap();
        assert_eq!(malformed(&request), Some(Malformed::Scheme));
    }

    #[test]
    fn a_body_is_chunked_once_and_nothing_else() {
        let of = |codings: &[&str]| {
            let mut request = Request::post("/").header(HOST, "a");
            for coding in codings {
                request = request.header(TRANSFER_ENCODING, *coding);
            }
            malformed(&request.body(Full::new(&b"x"[..])).unwrap())
        };
        for right in [&[][..], &["chunked"], &["Chunked"]] {
            assert_eq!(of(right), None, "{right:?}");
        }
        for wrong in [
            &["chunked, chunked"][..],
            &["gzip, chunked"],
            &["chunked", "chunked"],
            &["identity", "chunked"],
            &["chunked;q=1"],
        ] {
            assert_eq!(of(wrong), Some(Malformed::TransferEncoding), "{wrong:?}");
        }
    }
}
