//! What a listener does with a request before it is dispatched, and with its answer afterwards:
//! whose word on the client is believed, where the request is sent instead, and what browsers are
//! told.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header, uri::Authority};

use super::preview;
use crate::{
    config::{Listen, TrustedProxies},
    dispatch::{ConnectionInfo, Malformed, ResponseBody, bad_request, redirect},
    preview::Preview,
};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_PREFIX: &str = "x-forwarded-";
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

const HTTPS_PORT: u16 = 443;

/// What a listener does with each request.
#[derive(Debug)]
pub(crate) struct Policy {
    /// None: what proxies say is passed on.
    trusted: Option<TrustedProxies>,
    /// The port that requests are sent to with `https`, if they are.
    to_https: Option<u16>,
    canonical_host: Option<String>,
    hsts: Option<HeaderValue>,
    preview: Option<Preview>,
}

/// What becomes of a request.
pub(super) enum Admitted {
    /// It is dispatched as what came over this connection.
    Dispatch(Arc<ConnectionInfo>, IsHttps),
    /// It is answered without an app.
    Answer(Box<Response<ResponseBody>>),
}

/// Whether the client speaks `https`, to this listener or to a proxy that is believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct IsHttps(bool);

/// What a proxy says of the client.
#[derive(Debug, Default, PartialEq, Eq)]
struct Forwarded {
    client: Option<SocketAddr>,
    is_https: bool,
}

impl Policy {
    /// That of `listen`; none for the one line `server.listen`, which passes everything on as it
    /// comes. `https` is the port of the listener with TLS, if there is one.
    pub(crate) fn new(listen: &Listen, https: Option<u16>) -> Option<Self> {
        if listen.is_one_line() && listen.preview.is_none() {
            return None;
        }
        Some(Self {
            trusted: listen.trusted_proxies.clone(),
            preview: listen.preview.clone(),
            to_https: listen.http_to_https.then_some(https.unwrap_or(HTTPS_PORT)),
            canonical_host: listen.canonical_host.clone(),
            hsts: listen.hsts.map(strict_transport_security),
        })
    }

    /// Whether what the peer of `connection` says of requests is believed.
    pub(super) fn trusts(&self, connection: &ConnectionInfo) -> bool {
        let peer = connection.client.map(|address| address.ip());
        let trusted = self.trusted.as_ref();
        trusted.is_some_and(|trusted| trusted.trusts(peer))
    }

    /// Looks at `request`, which came over `connection`, and takes out of it what nobody vouches
    /// for.
    pub(super) fn admit<B>(
        &self,
        request: &mut Request<B>,
        connection: &Arc<ConnectionInfo>,
    ) -> Admitted {
        if let Some(preview) = &self.preview {
            if let Some(answer) = preview::answer(preview, request) {
                return Admitted::Answer(Box::new(answer));
            }
            preview::ask_plainly(preview, request.headers_mut());
        }
        let peer = connection.client.map(|address| address.ip());
        let headers = request.headers_mut();
        let forwarded = match &self.trusted {
            Some(trusted) if trusted.trusts(peer) => Forwarded::by(headers, trusted),
            Some(_) => {
                distrust(headers);
                Forwarded::default()
            }
            None => Forwarded::default(),
        };
        let is_https = connection.is_tls() || forwarded.is_https;
        if connection.is_tls() && !headers.contains_key(&FORWARDED_PROTO) {
            // Where extractors look for the scheme: a request of HTTP/1 names none.
            headers.insert(FORWARDED_PROTO, HeaderValue::from_static("https"));
        }
        if let Some(answer) = self.elsewhere(request, is_https) {
            return Admitted::Answer(Box::new(answer));
        }
        let connection = match forwarded.client {
            Some(client) => Arc::new(connection.with_client(client)),
            None => Arc::clone(connection),
        };
        Admitted::Dispatch(connection, IsHttps(is_https))
    }

    /// The answer that sends the request elsewhere, if it is to go there.
    fn elsewhere<B>(&self, request: &Request<B>, is_https: bool) -> Option<Response<ResponseBody>> {
        let upgrades = self.to_https.filter(|_| !is_https);
        if upgrades.is_none() && self.canonical_host.is_none() {
            return None;
        }
        let uri = request.uri();
        let bad_host = || bad_request(request.version(), Malformed::Host);
        let authority = match uri.authority() {
            Some(authority) => Some(authority.clone()),
            None => request
                .headers()
                .get(header::HOST)
                .and_then(|host| Authority::try_from(host.as_bytes()).ok()),
        };
        let Some(authority) = authority.filter(|authority| !authority.as_str().contains('@'))
        else {
            return Some(bad_host());
        };
        let canonical = self.canonical_host.as_deref();
        let is_canonical = canonical.is_none_or(|canonical| {
            let host = authority.host();
            host.strip_suffix('.')
                .unwrap_or(host)
                .eq_ignore_ascii_case(canonical)
        });
        if upgrades.is_none() && is_canonical {
            return None;
        }
        let host = canonical.unwrap_or_else(|| authority.host());
        let (scheme, port) = match upgrades {
            Some(port) => ("https", Some(port).filter(|port| *port != HTTPS_PORT)),
            None if is_https => ("https", authority.port_u16()),
            None => ("http", authority.port_u16()),
        };
        let port = port.map_or(String::new(), |port| format!(":{port}"));
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let target = if target.starts_with('/') { target } else { "/" };
        let location = HeaderValue::try_from(format!("{scheme}://{host}{port}{target}"));
        Some(location.map_or_else(|_| bad_host(), redirect))
    }

    /// Completes the answer to a request.
    pub(super) fn complete(&self, IsHttps(is_https): IsHttps, answer: &mut Response<ResponseBody>) {
        if let Some(preview) = &self.preview {
            preview::add_script(preview, answer);
        }
        let headers = answer.headers_mut();
        if is_https
            && let Some(hsts) = &self.hsts
            && !headers.contains_key(header::STRICT_TRANSPORT_SECURITY)
        {
            headers.insert(header::STRICT_TRANSPORT_SECURITY, hsts.clone());
        }
    }
}

fn strict_transport_security(span: Duration) -> HeaderValue {
    HeaderValue::try_from(format!("max-age={}", span.as_secs()))
        .unwrap_or(HeaderValue::from_static("max-age=0"))
}

/// Takes out what only a proxy that is believed may say.
fn distrust(headers: &mut HeaderMap) {
    let is_said = |name: &HeaderName| {
        *name == header::FORWARDED
            || *name == REAL_IP
            || name.as_str().starts_with(FORWARDED_PREFIX)
    };
    while let Some(name) = headers.keys().find(|name| is_said(name)).cloned() {
        headers.remove(name);
    }
}

impl Forwarded {
    /// What `headers` say, from the last proxy back to the first address that is none of a trusted
    /// one.
    fn by(headers: &HeaderMap, trusted: &TrustedProxies) -> Self {
        let mut found = Self::default();
        if headers.contains_key(header::FORWARDED) {
            for element in values(headers, &header::FORWARDED).iter().rev() {
                let mut client = None;
                found.is_https = false;
                for pair in split(element, ';') {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    let (name, value) = (name.trim(), value.trim().trim_matches('"'));
                    if name.eq_ignore_ascii_case("for") {
                        client = node(value);
                    } else if name.eq_ignore_ascii_case("proto") {
                        found.is_https = value.eq_ignore_ascii_case("https");
                    }
                }
                if !found.goes_on(client, trusted) {
                    break;
                }
            }
            return found;
        }
        for element in values(headers, &FORWARDED_FOR).iter().rev() {
            if !found.goes_on(node(element), trusted) {
                break;
            }
        }
        found.is_https = values(headers, &FORWARDED_PROTO)
            .last()
            .is_some_and(|proto| proto.eq_ignore_ascii_case("https"));
        found
    }

    /// Takes `client` for the client, and returns whether it is a trusted proxy, whose own client
    /// comes next.
    fn goes_on(&mut self, client: Option<SocketAddr>, trusted: &TrustedProxies) -> bool {
        let Some(client) = client else { return false };
        self.client = Some(client);
        trusted.trusts(Some(client.ip()))
    }
}

/// The elements of a list that may be in several fields, in order.
fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    let texts = headers.get_all(name).iter();
    texts
        .map(|value| value.to_str().unwrap_or_default())
        .flat_map(|text| split(text, ','))
        .map(str::trim)
        .filter(|element| !element.is_empty())
        .collect()
}

/// The parts of `text` between those of `separator` that are not in quotes.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    text.split(move |c| {
        is_quoted ^= c == '"';
        c == separator && !is_quoted
    })
}

/// The address that names a client, with or without a port, with IPv6 in brackets or bare.
fn node(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    bare.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    fn policy(toml: &str) -> Policy {
        let text = format!("[[listen]]\naddress = \"127.0.0.1:80\"\n{toml}");
        let config = crate::config::Config::parse(&text).unwrap();
        Policy::new(&config.listen[0], Some(8443)).unwrap()
    }

    fn connection(peer: &str) -> Arc<ConnectionInfo> {
        Arc::new(ConnectionInfo::new(
            peer.parse().ok(),
            None,
            None,
            false,
            None,
        ))
    }

    fn request(uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    /// The client that the app sees, whether it came by https, and the headers.
    fn seen(
        policy: &Policy,
        peer: &str,
        headers: &[(&str, &str)],
    ) -> (Option<SocketAddr>, bool, HeaderMap) {
        let mut request = request("/", headers);
        match policy.admit(&mut request, &connection(peer)) {
            Admitted::Dispatch(connection, IsHttps(https)) => {
                (connection.client, https, request.headers().clone())
            }
            Admitted::Answer(answer) => panic!("{answer:?}"),
        }
    }

    fn location(
        policy: &Policy,
        peer: &str,
        uri: &str,
        headers: &[(&str, &str)],
    ) -> Option<String> {
        let mut request = request(uri, headers);
        match policy.admit(&mut request, &connection(peer)) {
            Admitted::Dispatch(..) => None,
            Admitted::Answer(answer) => Some(match answer.headers().get(header::LOCATION) {
                Some(location) => location.to_str().unwrap().to_owned(),
                None => answer.status().to_string(),
            }),
        }
    }

    #[test]
    fn the_word_of_a_trusted_proxy_is_believed_and_that_of_others_is_taken_out() {
        let policy = policy("trusted_proxies = [\"10.0.0.0/8\"]");
        let (proxy, stranger) = ("10.0.0.1:5", "192.0.2.1:5");
        type Headers = &'static [(&'static str, &'static str)];
        let cases: &[(Headers, &str, bool)] = &[
            (
                &[("x-forwarded-for", "203.0.113.9")],
                "203.0.113.9:0",
                false,
            ),
            (
                &[
                    ("x-forwarded-for", "1.1.1.1, 203.0.113.9, 10.9.9.9"),
                    ("x-forwarded-proto", "https"),
                ],
                "203.0.113.9:0",
                true,
            ),
            (
                &[
                    ("x-forwarded-for", "203.0.113.9"),
                    ("x-forwarded-for", "10.2.2.2"),
                ],
                "203.0.113.9:0",
                false,
            ),
            (&[("x-forwarded-for", "10.3.3.3")], "10.3.3.3:0", false),
            (
                &[("x-forwarded-for", "203.0.113.9, unknown, 10.4.4.4")],
                "10.4.4.4:0",
                false,
            ),
            (
                &[("x-forwarded-for", "2001:db8::7")],
                "[2001:db8::7]:0",
                false,
            ),
            (
                &[(
                    "forwarded",
                    "for=\"[2001:db8::7]:4711\";proto=https, for=10.1.1.1;proto=http",
                )],
                "[2001:db8::7]:4711",
                true,
            ),
            (
                &[
                    ("forwarded", "for=203.0.113.9;by=\"a,b;c\""),
                    ("x-forwarded-for", "9.9.9.9"),
                ],
                "203.0.113.9:0",
                false,
            ),
            (&[("forwarded", "for=_hidden")], "10.0.0.1:5", false),
            (&[], "10.0.0.1:5", false),
        ];
        for (headers, client, is_https) in cases {
            let (found, https, kept) = seen(&policy, proxy, headers);
            assert_eq!(found.unwrap().to_string(), *client, "{headers:?}");
            assert_eq!(https, *is_https, "{headers:?}");
            assert_eq!(kept.len(), headers.len());
            let (found, https, kept) = seen(&policy, stranger, headers);
            assert_eq!(found.unwrap().to_string(), stranger, "{headers:?}");
            assert!(!https && kept.is_empty(), "{kept:?}");
        }
        let (_, _, kept) = seen(
            &policy,
            stranger,
            &[
                ("x-real-ip", "1.1.1.1"),
                ("x-forwarded-port", "1"),
                ("x-forwarded-anything", "1"),
                ("x-forward", "stays"),
            ],
        );
        assert_eq!(
            kept.keys().map(HeaderName::as_str).collect::<Vec<_>>(),
            ["x-forward"]
        );
    }

    #[test]
    fn requests_are_sent_to_https_and_to_the_canonical_host() {
        let stranger = "192.0.2.1:5";
        let to_https = policy("http_to_https = true\ntrusted_proxies = [\"10.0.0.0/8\"]");
        for (uri, host, expected) in [
            ("/a?b=c", "example.org", "https://example.org:8443/a?b=c"),
            ("/", "example.org:8080", "https://example.org:8443/"),
            ("/", "[::1]:8080", "https://[::1]:8443/"),
            (
                "http://example.org/x",
                "ignored",
                "https://example.org:8443/x",
            ),
            ("/", "a@evil", "400 Bad Request"),
            ("/", "a b", "400 Bad Request"),
        ] {
            let sent = location(&to_https, stranger, uri, &[("host", host)]);
            assert_eq!(sent.as_deref(), Some(expected), "{uri} {host}");
        }
        assert_eq!(
            location(&to_https, stranger, "/", &[]).as_deref(),
            Some("400 Bad Request")
        );
        let by_proxy = [("host", "example.org"), ("x-forwarded-proto", "https")];
        assert_eq!(location(&to_https, "10.0.0.1:5", "/", &by_proxy), None);
        assert!(location(&to_https, stranger, "/", &by_proxy).is_some());

        let canonical = policy("canonical_host = \"Example.org\"");
        for (host, expected) in [
            ("example.org", None),
            ("EXAMPLE.org.:81", None),
            ("www.example.org", Some("http://example.org/a")),
            ("www.example.org:81", Some("http://example.org:81/a")),
        ] {
            let sent = location(&canonical, stranger, "/a", &[("host", host)]);
            assert_eq!(sent.as_deref(), expected, "{host}");
        }
        let both = policy("canonical_host = \"example.org\"\nhttp_to_https = true");
        let sent = location(&both, stranger, "/a", &[("host", "www.example.org")]);
        assert_eq!(sent.as_deref(), Some("https://example.org:8443/a"));
    }

    #[test]
    fn browsers_are_told_to_come_by_https_only_where_they_did() {
        let policy = policy("hsts = \"365days\"\ntrusted_proxies = [\"10.0.0.0/8\"]");
        let told = |https, own: Option<&'static str>| {
            let mut answer = Response::new(ResponseBody::empty());
            if let Some(own) = own {
                answer.headers_mut().insert(
                    header::STRICT_TRANSPORT_SECURITY,
                    HeaderValue::from_static(own),
                );
            }
            policy.complete(IsHttps(https), &mut answer);
            let told = answer
                .headers()
                .get(header::STRICT_TRANSPORT_SECURITY)
                .cloned();
            told.map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(told(true, None).as_deref(), Some("max-age=31536000"));
        assert_eq!(told(true, Some("max-age=0")).as_deref(), Some("max-age=0"));
        assert_eq!(told(false, None), None);
    }
}
