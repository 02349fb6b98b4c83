//! What an app may know of the connection of a request.

use std::net::SocketAddr;

use bytes::Bytes;

use crate::abi::{self, lent::Lent};

/// What is known of the connection of a request beside the address of its client: see
/// [`Context::connection_as`](crate::Context::connection_as).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Where the client connected to; none over a unix socket.
    pub local: Option<SocketAddr>,
    /// What is known of it when the client speaks TLS to the host.
    pub tls: Option<Tls>,
}

/// What is known of a connection with TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The version as the protocol writes it: 0x0303 is 1.2, 0x0304 is 1.3.
    pub version: u16,
    /// The name of the host that the client asked for by SNI.
    pub server_name: Option<String>,
    /// The certificate of the client in DER, which the host has verified.
    pub client_certificate: Option<Bytes>,
}

impl Connection {
    /// A copy of what the host lends.
    pub(super) fn of(lent: Lent<'_, abi::head::Connection<'_>>) -> Self {
        let (name, certificate) = (lent.server_name(), lent.client_certificate());
        let tls = lent.tls_version().map(|version| Tls {
            version,
            server_name: (!name.is_empty()).then(|| name.to_owned()),
            client_certificate: (!certificate.is_empty())
                .then(|| Bytes::copy_from_slice(certificate)),
        });
        Self {
            local: lent.local(),
            tls,
        }
    }
}
