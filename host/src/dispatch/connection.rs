//! What a request needs to know of the connection that it came on.

use std::{net::SocketAddr, sync::Arc};

use handover_plugin::abi::head::{Connection, Peer};

use crate::generation::CloseHandle;

/// What a request needs to know of the connection that it came on. One for all requests of a
/// connection, but for those whose client a proxy names.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionInfo {
    /// The client; none over a unix socket.
    pub client: Option<SocketAddr>,
    /// The same as it crosses to the app.
    pub(super) peer: Peer,
    /// Where the client connected to, as it crosses; none over a unix socket.
    local: Peer,
    tls: Option<Tls>,
    /// Whether answers name the version that they are from.
    pub(super) name_version: bool,
    /// Whether answers carry [`AnsweredBy`](crate::generation::AnsweredBy) to the connection.
    pub(super) tells_generation: bool,
    /// Whether either is so: a request that has neither costs one look.
    pub(super) is_marked: bool,
    /// The close handle of the connection, for what is streamed over it.
    pub(super) close_handle: Option<Arc<CloseHandle>>,
}

/// What is known of a connection with TLS.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    /// The version as the protocol writes it: 0x0303 or 0x0304.
    pub version: u16,
    /// The name of the host that the client asked for, if it did.
    pub server_name: Option<Box<str>>,
    /// The certificate of the client in DER, if it has shown one.
    pub client_certificate: Option<Arc<[u8]>>,
}

impl ConnectionInfo {
    /// A connection of `client` to `local`, whose handle is `close_handle`.
    pub(crate) fn new(
        client: Option<SocketAddr>,
        local: Option<SocketAddr>,
        tls: Option<Tls>,
        name_version: bool,
        close_handle: Option<Arc<CloseHandle>>,
    ) -> Self {
        Self {
            client,
            peer: client.into(),
            local: local.into(),
            tls,
            name_version,
            tells_generation: false,
            is_marked: name_version,
            close_handle,
        }
    }

    /// The same with answers that say which generation they are from.
    #[must_use]
    pub(crate) fn telling_generation(self) -> Self {
        Self {
            tells_generation: true,
            is_marked: true,
            ..self
        }
    }

    /// The same for a client whom a proxy names.
    #[must_use]
    pub(crate) fn with_client(&self, client: SocketAddr) -> Self {
        Self {
            client: Some(client),
            peer: Some(client).into(),
            ..self.clone()
        }
    }

    /// The same for a request whose answer goes to nobody.
    pub(super) fn quiet(&self) -> Arc<Self> {
        Arc::new(Self {
            name_version: false,
            tells_generation: false,
            is_marked: false,
            close_handle: None,
            ..self.clone()
        })
    }

    /// Whether the client speaks TLS to the host.
    pub(crate) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The version of TLS that the client speaks to the host, if it does.
    pub(crate) fn tls_version(&self) -> Option<&'static str> {
        match self.tls.as_ref()?.version {
            0x0303 => Some("TLSv1.2"),
            0x0304 => Some("TLSv1.3"),
            _ => Some("TLS"),
        }
    }

    /// What of it crosses beside the address of the client.
    #[inline]
    pub(super) fn crossing(&self) -> Connection<'_> {
        let Some(tls) = &self.tls else {
            return Connection::plain(self.local);
        };
        Connection::tls(
            self.local,
            tls.version,
            tls.server_name.as_deref().unwrap_or_default(),
            tls.client_certificate.as_deref().unwrap_or_default(),
        )
    }
}
