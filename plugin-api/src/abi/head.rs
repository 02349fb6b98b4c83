//! The head of a request and of a response.

#[cfg(any(test, fuzzing))]
pub mod forged;

use std::net::{IpAddr, SocketAddr};

use abi_stable::{
    StableAbi,
    std_types::{RSlice, RStr},
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri, Version, response, uri};

use super::{
    headers::{self, Buffer, Field},
    lent::{Grows, Lent, Size},
};

/// The head of a request, borrowed for the length of a call.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct RequestHead<'a> {
    pub(super) size: Size,
    pub(super) peer: Peer,
    /// The version of HTTP: 9, 10, 11, 20 or 30. Any other is 1.1.
    pub(super) version: u8,
    pub(super) target: RStr<'a>,
    pub(super) method: RStr<'a>,
    pub(super) scheme: RStr<'a>,
    pub(super) authority: RStr<'a>,
    pub(super) fields: RSlice<'a, Field<'a>>,
}

// SAFETY: `repr(C)`, and the size is first.
unsafe impl Grows for RequestHead<'_> {}

/// A [`RequestHead`], and what the minor 1.1 added to it.
#[repr(C)]
pub(super) struct RequestHead1<'a> {
    pub(super) head: RequestHead<'a>,
    /// The `:protocol` of an extended CONNECT; empty in any other request.
    pub(super) protocol: RStr<'a>,
}

/// A [`RequestHead`], and what the minors 1.1 and 1.2 added to it.
#[repr(C)]
pub(super) struct RequestHead2<'a> {
    pub(super) head: RequestHead1<'a>,
    /// What is known of the connection beside the address of the client.
    pub(super) connection: Lent<'a, Connection<'a>>,
}

/// What is known of the connection of a request beside the address of the client, borrowed for the
/// length of a call.
#[repr(C)]
#[derive(Debug)]
pub struct Connection<'a> {
    pub(super) size: Size,
    /// Where the client connected to.
    pub(super) local: Peer,
    /// The version of TLS as the protocol writes it: 0x0303 is 1.2, 0x0304 is 1.3; 0 is none.
    pub(super) tls_version: u16,
    /// The name of the host that the client asked for by SNI; empty if it did not.
    pub(super) server_name: RStr<'a>,
    /// The certificate of the client in DER; empty if it has shown none.
    pub(super) client_certificate: RSlice<'a, u8>,
}

// SAFETY: `repr(C)`, and the size is first.
unsafe impl Grows for Connection<'_> {}

/// An address, as it crosses: that of the client, and where it connected to. `family` is 4 or 6;
/// any other is no address, and 0 the one of a unix socket. It lies inside a head, and so does not
/// grow.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct Peer {
    pub(super) address: [u8; 16],
    pub(super) port: u16,
    pub(super) family: u8,
}

impl From<Option<SocketAddr>> for Peer {
    fn from(address: Option<SocketAddr>) -> Self {
        let mut peer = Self {
            address: [0; 16],
            port: address.map_or(0, |address| address.port()),
            family: 0,
        };
        match address.map(|address| address.ip()) {
            None => {}
            Some(IpAddr::V4(ip)) => {
                peer.address[..4].copy_from_slice(&ip.octets());
                peer.family = 4;
            }
            Some(IpAddr::V6(ip)) => {
                peer.address = ip.octets();
                peer.family = 6;
            }
        }
        peer
    }
}

impl<'a> Connection<'a> {
    /// One without TLS, to `local`.
    #[inline]
    pub fn plain(local: Peer) -> Self {
        Self::tls(local, 0, "", &[])
    }

    /// One with this version of TLS, to `local`; no name and no certificate are empty.
    #[inline]
    pub fn tls(
        local: Peer,
        version: u16,
        server_name: &'a str,
        client_certificate: &'a [u8],
    ) -> Self {
        Self {
            size: Size::of::<Self>(),
            local,
            tls_version: version,
            server_name: server_name.into(),
            client_certificate: client_certificate.into(),
        }
    }

    /// Where the client connected to; none over a unix socket.
    pub fn local(&self) -> Option<SocketAddr> {
        self.local.address()
    }

    /// The version of TLS as the protocol writes it; none without TLS.
    pub fn tls_version(&self) -> Option<u16> {
        (self.tls_version != 0).then_some(self.tls_version)
    }

    /// The name of the host that the client asked for by SNI; empty if it did not.
    pub fn server_name(&self) -> &str {
        std::str::from_utf8(self.server_name.as_str().as_bytes()).unwrap_or("")
    }

    /// The certificate of the client in DER; empty if it has shown none.
    pub fn client_certificate(&self) -> &[u8] {
        self.client_certificate.as_slice()
    }
}

impl Peer {
    fn address(self) -> Option<SocketAddr> {
        let ip = match (self.family, self.address) {
            (4, [a, b, c, d, ..]) => IpAddr::from([a, b, c, d]),
            (6, octets) => IpAddr::from(octets),
            _ => return None,
        };
        Some(SocketAddr::new(ip, self.port))
    }
}

fn version_number(version: Version) -> u8 {
    match version {
        Version::HTTP_09 => 9,
        Version::HTTP_10 => 10,
        Version::HTTP_2 => 20,
        Version::HTTP_3 => 30,
        _ => 11,
    }
}

fn version_of(number: u8) -> Version {
    match number {
        9 => Version::HTTP_09,
        10 => Version::HTTP_10,
        20 => Version::HTTP_2,
        30 => Version::HTTP_3,
        _ => Version::HTTP_11,
    }
}

impl RequestHead<'_> {
    /// Lends the head of `request` to `f` in the shape that crosses. `target` is the path and query
    /// that the app is to see, and empty where the request names an authority only; `protocol` is
    /// that of an extended CONNECT, else empty; `peer` is the client, who need not be the other end
    /// of `connection`.
    #[inline]
    pub fn lend<B, R>(
        request: &Request<B>,
        target: &str,
        protocol: &str,
        peer: Peer,
        connection: &Connection<'_>,
        f: impl FnOnce(Lent<'_, RequestHead<'_>>) -> R,
    ) -> R {
        let uri = request.uri();
        headers::lend(request.headers(), None, |fields| {
            let head = RequestHead2 {
                head: RequestHead1 {
                    head: RequestHead {
                        size: Size::of::<RequestHead2<'_>>(),
                        target: target.into(),
                        method: request.method().as_str().into(),
                        scheme: uri.scheme_str().unwrap_or_default().into(),
                        authority: uri.authority().map_or("", uri::Authority::as_str).into(),
                        fields: fields.into(),
                        peer,
                        version: version_number(request.version()),
                    },
                    protocol: protocol.into(),
                },
                connection: Lent::of(connection),
            };
            // SAFETY: it begins with a `RequestHead`, and the size is its own.
            f(unsafe { Lent::longer(&head) })
        })
    }

    /// The address of the client; none over a unix socket.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer.address()
    }

    /// Takes the head in as the owner of a copy, into a request that is new. It is filled where it
    /// lies, as it is large.
    ///
    /// # Errors
    /// When the method or the target is not what HTTP allows, which a host that speaks HTTP never
    /// sends.
    #[inline]
    pub fn fill<B>(&self, request: &mut Request<B>) -> Result<(), http::Error> {
        let fields = self.fields.as_slice();
        // A new request is a GET of `/`.
        let is_root = self.target.as_bytes() == b"/" && self.authority.is_empty();
        let target = if is_root { &[] } else { self.target.as_bytes() };
        let mut buffer = Buffer::copy(target, fields, request.headers_mut());
        if target.is_empty() && !is_root {
            let authority = self.authority.as_str();
            *request.uri_mut() = Uri::builder().authority(authority).build()?;
        } else if !is_root {
            let target = uri::PathAndQuery::from_maybe_shared(buffer.next(target.len()))?;
            *request.uri_mut() = self.uri(target)?;
        }
        if self.method.as_bytes() != b"GET" {
            *request.method_mut() = Method::from_bytes(self.method.as_bytes())?;
        }
        *request.version_mut() = version_of(self.version);
        buffer.fields(fields, request.headers_mut());
        Ok(())
    }

    fn uri(&self, target: uri::PathAndQuery) -> Result<Uri, http::Error> {
        if self.authority.is_empty() {
            return Ok(Uri::from(target));
        }
        let scheme = if self.scheme.is_empty() {
            "http"
        } else {
            self.scheme.as_str()
        };
        Uri::builder()
            .scheme(scheme)
            .authority(self.authority.as_str())
            .path_and_query(target)
            .build()
    }
}

impl<'a> Lent<'a, RequestHead<'a>> {
    /// The `:protocol` of an extended CONNECT; empty in any other request, and from a host that
    /// does not know it.
    pub fn protocol(self) -> &'a str {
        // SAFETY: since 1.1 there is a text at this offset.
        let protocol: Option<RStr<'a>> =
            unsafe { self.later(std::mem::offset_of!(RequestHead1<'_>, protocol)) };
        protocol.map_or("", |text| {
            std::str::from_utf8(text.as_str().as_bytes()).unwrap_or("")
        })
    }

    /// What is known of the connection beside the address of the client; none from a host that does
    /// not tell it.
    pub fn connection(self) -> Option<Lent<'a, Connection<'a>>> {
        // SAFETY: since 1.2 there is such a pointer at this offset, which is lent for as long as
        // the head is.
        unsafe { self.later(std::mem::offset_of!(RequestHead2<'_>, connection)) }
    }
}

/// The head of a response, borrowed for the length of a call.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct ResponseHead<'a> {
    pub(super) size: Size,
    /// A number that is no status is 500.
    pub(super) status: u16,
    pub(super) fields: RSlice<'a, Field<'a>>,
}

// SAFETY: `repr(C)`, and the size is first.
unsafe impl Grows for ResponseHead<'_> {}

/// The same since 1.2. Lent only where there is something in what it adds.
#[repr(C)]
#[derive(Debug)]
pub struct ResponseHead1<'a> {
    pub(super) head: ResponseHead<'a>,
    /// The reason phrase of HTTP/1, where it is another than that of the status.
    pub(super) reason: RSlice<'a, u8>,
}

impl<'a> Lent<'a, ResponseHead<'a>> {
    /// The reason phrase; empty where it is that of the status, and from a plugin that does not
    /// know it.
    #[inline]
    pub fn reason(self) -> &'a [u8] {
        // SAFETY: since 1.2 there are bytes at this offset.
        let reason: Option<RSlice<'a, u8>> =
            unsafe { self.later(std::mem::offset_of!(ResponseHead1<'_>, reason)) };
        reason.map_or(&[], |reason| reason.as_slice())
    }
}

impl ResponseHead<'_> {
    /// Lends the head `response` to `f` in the shape that crosses. `whole` is the length of a body
    /// that crosses with it: a `content-length` that says no more than that is left to whoever
    /// writes the answer, who says it anyway. `reason` is a reason phrase of its own, and else
    /// empty.
    #[inline]
    pub fn lend<R>(
        response: &response::Parts,
        whole: Option<usize>,
        reason: &[u8],
        f: impl FnOnce(Lent<'_, ResponseHead<'_>>) -> R,
    ) -> R {
        headers::lend(&response.headers, whole, |fields| {
            let head = ResponseHead {
                size: Size::of::<ResponseHead<'_>>(),
                fields: fields.into(),
                status: response.status.as_u16(),
            };
            if reason.is_empty() {
                return f(Lent::of(&head));
            }
            let longer = ResponseHead1 {
                head: ResponseHead {
                    size: Size::of::<ResponseHead1<'_>>(),
                    ..head
                },
                reason: reason.into(),
            };
            // SAFETY: it begins with a `ResponseHead`, and the size is its own.
            f(unsafe { Lent::longer(&longer) })
        })
    }

    /// Takes the head in as the owner of a copy, into a response that is new, and gives a copy of
    /// `body`, which is borrowed as well. It is filled where it lies, as it is large. A status that
    /// is none becomes 500.
    #[inline]
    pub fn fill<B>(&self, response: &mut Response<B>, body: &[u8]) -> Bytes {
        let fields = self.fields.as_slice();
        let mut buffer = Buffer::copy(body, fields, response.headers_mut());
        let body = buffer.next(body.len());
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        buffer.fields(fields, response.headers_mut());
        body
    }
}
