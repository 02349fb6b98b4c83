//! Heads made of bytes: everything that `http` takes, and nothing else.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use arbitrary::{Result, Unstructured};
use handover_plugin::abi::head::Connection;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header, request, response,
    uri::{Authority, PathAndQuery},
};

/// What is sent.
#[derive(Debug)]
pub(super) struct RequestHead {
    pub(super) whole: Request<()>,
    /// The path and query that the app is to see.
    pub(super) target: String,
    /// That of an extended CONNECT, or nothing.
    pub(super) protocol: &'static str,
    pub(super) peer: Option<SocketAddr>,
    pub(super) connection: KnownConnection,
}

/// What is known of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KnownConnection {
    local: Option<SocketAddr>,
    tls_version: Option<u16>,
    server_name: String,
    client_certificate: Vec<u8>,
}

/// What came of it.
pub(super) type CameRequest = (
    request::Parts,
    Option<SocketAddr>,
    String,
    Option<KnownConnection>,
);

impl KnownConnection {
    fn make(u: &mut Unstructured<'_>) -> Result<Self> {
        let tls_version = u.choose(&[None, Some(0x0303), Some(0x0304)])?;
        Ok(Self {
            local: peer(u)?,
            tls_version: *tls_version,
            server_name: match tls_version {
                Some(_) => u.choose(&["", "example.org"])?.to_string(),
                None => String::new(),
            },
            client_certificate: match tls_version {
                Some(_) => bytes(u)?.to_vec(),
                None => Vec::new(),
            },
        })
    }

    pub(super) fn of(came: &crate::theirs::head::Connection<'_>) -> Self {
        Self {
            local: came.local(),
            tls_version: came.tls_version(),
            server_name: came.server_name().to_owned(),
            client_certificate: came.client_certificate().to_vec(),
        }
    }
}

/// A head of a request.
pub(super) fn request(u: &mut Unstructured<'_>) -> Result<RequestHead> {
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = method(u)?;
    let target = text(u, "/")?;
    let target: PathAndQuery = target
        .parse()
        .unwrap_or_else(|_| PathAndQuery::from_static("/"));
    parts.uri = uri(u, &target)?;
    let target = match parts.uri.path_and_query() {
        Some(_) => target.to_string(),
        None => String::new(),
    };
    parts.version = version(u)?;
    parts.headers = map(u)?;
    Ok(RequestHead {
        whole: Request::from_parts(parts, ()),
        target,
        protocol: u.choose(&["", "websocket"])?,
        peer: peer(u)?,
        connection: KnownConnection::make(u)?,
    })
}

impl RequestHead {
    pub(super) fn connection(&self) -> Connection<'_> {
        let known = &self.connection;
        let local = known.local.into();
        match known.tls_version {
            None => Connection::plain(local),
            Some(version) => Connection::tls(
                local,
                version,
                &known.server_name,
                &known.client_certificate,
            ),
        }
    }

    pub(super) fn came_as(&self, (came, peer, protocol, connection): &CameRequest) {
        let sent = &self.whole;
        assert_eq!(*sent.method(), came.method);
        assert_eq!(sent.version(), came.version);
        assert_eq!(sent.uri().authority(), came.uri.authority());
        assert_eq!(sent.uri().scheme(), came.uri.scheme());
        assert_eq!(
            came.uri.path_and_query().map_or("", PathAndQuery::as_str),
            self.target
        );
        assert_eq!(self.protocol, protocol);
        same(sent.headers(), &came.headers);
        assert_eq!(self.peer, *peer);
        assert_eq!(Some(&self.connection), connection.as_ref());
    }
}

/// A head of a response.
#[derive(Debug)]
pub(super) struct ResponseHead(pub(super) response::Parts);

impl ResponseHead {
    pub(super) fn make(u: &mut Unstructured<'_>) -> Result<Self> {
        let (mut parts, ()) = Response::new(()).into_parts();
        parts.status = StatusCode::from_u16(u.int_in_range(100..=999)?).unwrap_or_default();
        parts.headers = map(u)?;
        // What it says of its body's length, true or not.
        if u.ratio(1, 4)? {
            let length = u.int_in_range(0..=40)?;
            parts
                .headers
                .append(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        Ok(Self(parts))
    }

    pub(super) fn came_as(&self, came: &response::Parts) {
        assert_eq!(self.0.status, came.status);
        same(&self.0.headers, &came.headers);
    }

    /// The same with a body of `length` bytes, for which the host says so.
    pub(super) fn came_with(&self, length: usize, came: &response::Parts) {
        assert_eq!(self.0.status, came.status);
        let length = length.to_string();
        let sent = self.0.headers.iter();
        let sent = sent.filter(|(name, value)| {
            // What is not sent has no length but this one.
            let is_sent = !matches!(
                self.0.status,
                StatusCode::NOT_MODIFIED | StatusCode::NO_CONTENT
            );
            !is_sent || *name != header::CONTENT_LENGTH || **value != *length
        });
        assert!(sent.eq(came.headers.iter()));
    }
}

/// Header fields.
pub(super) fn map(u: &mut Unstructured<'_>) -> Result<HeaderMap> {
    let mut map = HeaderMap::new();
    for _ in 0..u.int_in_range(0..=24)? {
        let name = name(u)?;
        let Ok(mut value) = HeaderValue::from_bytes(bytes(u)?) else {
            continue;
        };
        value.set_sensitive(u.arbitrary()?);
        // Now and then a name has many values.
        let times = match u.arbitrary()? {
            0..8_u8 => u.arbitrary()?,
            _ => 1_u8,
        };
        for _ in 0..times {
            map.append(name.clone(), value.clone());
        }
    }
    Ok(map)
}

pub(super) fn same(sent: &HeaderMap, came: &HeaderMap) {
    assert_eq!(sent.len(), came.len());
    for (sent, came) in sent.iter().zip(came) {
        assert_eq!(sent, came);
        assert_eq!(sent.1.is_sensitive(), came.1.is_sensitive());
    }
}

fn name(u: &mut Unstructured<'_>) -> Result<HeaderName> {
    const REGISTERED: [HeaderName; 8] = [
        header::ACCEPT,
        header::CONTENT_TYPE,
        header::HOST,
        header::SET_COOKIE,
        header::TE,
        header::UPGRADE,
        header::WWW_AUTHENTICATE,
        header::X_XSS_PROTECTION,
    ];
    if u.arbitrary()? {
        return Ok(u.choose(&REGISTERED)?.clone());
    }
    Ok(HeaderName::from_bytes(bytes(u)?).unwrap_or(HeaderName::from_static("x-custom")))
}

fn method(u: &mut Unstructured<'_>) -> Result<Method> {
    const KNOWN: [Method; 5] = [
        Method::GET,
        Method::POST,
        Method::OPTIONS,
        Method::CONNECT,
        Method::HEAD,
    ];
    if u.arbitrary()? {
        return Ok(u.choose(&KNOWN)?.clone());
    }
    Ok(Method::from_bytes(bytes(u)?).unwrap_or_default())
}

fn version(u: &mut Unstructured<'_>) -> Result<Version> {
    Ok(*u.choose(&[
        Version::HTTP_09,
        Version::HTTP_10,
        Version::HTTP_11,
        Version::HTTP_2,
        Version::HTTP_3,
    ])?)
}

/// With an authority and a scheme, as HTTP/2 has them, or without, or an authority alone.
fn uri(u: &mut Unstructured<'_>, target: &PathAndQuery) -> Result<Uri> {
    if u.arbitrary()? {
        return Ok(target.clone().into());
    }
    let scheme = *u.choose(&["http", "https", "x-other"])?;
    let authority: Authority = match text(u, "")?.parse() {
        Ok(authority) => authority,
        Err(_) => Authority::from_static("example.org:8080"),
    };
    if u.ratio(1, 4)? {
        return Ok(authority
            .as_str()
            .parse()
            .unwrap_or_else(|_| target.clone().into()));
    }
    let whole = Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query(target.clone());
    Ok(whole.build().unwrap_or_else(|_| target.clone().into()))
}

fn peer(u: &mut Unstructured<'_>) -> Result<Option<SocketAddr>> {
    Ok(match u.int_in_range(0..=2)? {
        0 => None,
        1 => Some((Ipv4Addr::from(u.arbitrary::<[u8; 4]>()?), u.arbitrary()?).into()),
        _ => Some((Ipv6Addr::from(u.arbitrary::<[u8; 16]>()?), u.arbitrary()?).into()),
    })
}

/// Some bytes, mostly few.
pub(super) fn bytes<'a>(u: &mut Unstructured<'a>) -> Result<&'a [u8]> {
    let length = match u.arbitrary::<u8>()? {
        250.. => usize::from(u.arbitrary::<u16>()?),
        few => usize::from(few % 32),
    };
    u.bytes(length.min(u.len()))
}

fn text(u: &mut Unstructured<'_>, begin: &str) -> Result<String> {
    let text = bytes(u)?.iter().map(|byte| char::from(byte & 0x7f));
    Ok(begin.chars().chain(text).collect())
}
