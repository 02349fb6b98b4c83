//! Why the host ended a connection, or took none.

/// Why the host ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// No byte of it came.
    NoByte,
    /// The head of a request did not, or what HTTP/2 begins with.
    NoHead,
    /// No more of the body of a request did.
    NoBody,
    /// No other request came.
    Idle,
    /// It did not take what was sent to it.
    NotRead,
    /// It did not begin with a header of the PROXY protocol where that is asked for.
    NoProxyHeader,
    /// Its handshake of TLS failed.
    NoHandshake,
    /// Another one needed its place, and this one had been idle for the longest time.
    ForAnother,
}

/// Why the host took no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// There are `max_connections`, and none of them is idle.
    Connections,
    /// The client has `max_connections_per_address`, and none of them is idle.
    PerAddress,
    /// It is none of the proxies that a listener with the PROXY protocol trusts.
    UntrustedProxy,
    /// What descriptors are left are kept for the host itself.
    Descriptors,
}

impl Ended {
    pub(super) const ALL: [Self; 8] = [
        Self::NoByte,
        Self::NoHead,
        Self::NoBody,
        Self::Idle,
        Self::NotRead,
        Self::NoProxyHeader,
        Self::NoHandshake,
        Self::ForAnother,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::NoByte => "first_byte_timeout",
            Self::NoHead => "head_timeout",
            Self::NoBody => "body_timeout",
            Self::Idle => "idle_timeout",
            Self::NotRead => "write_timeout",
            Self::NoProxyHeader => "proxy_header",
            Self::NoHandshake => "tls_handshake",
            Self::ForAnother => "for_another",
        }
    }
}

impl Refused {
    pub(super) const ALL: [Self; 4] = [
        Self::Connections,
        Self::PerAddress,
        Self::UntrustedProxy,
        Self::Descriptors,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "max_connections",
            Self::PerAddress => "max_connections_per_address",
            Self::UntrustedProxy => "untrusted_proxy",
            Self::Descriptors => "descriptors",
        }
    }
}
