//! Where the host listens.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use ipnet::IpNet;

use super::tls::ListenTls;

/// The address of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// An address and a port; port 0 leaves the choice to the system.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

/// The text is no address.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is no address: write e.g. \"0.0.0.0:8080\", \"[::]:8080\" or \"unix:/run/handover/web.sock\""
)]
pub struct InvalidAddress(String);

/// How a listening socket is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketOptions {
    /// Whether other processes may listen at the same address (`SO_REUSEPORT`).
    pub reuse_port: bool,
    /// Whether an IPv6 address takes no IPv4 connections (`IPV6_V6ONLY`).
    pub ipv6_only: bool,
    /// The mode of the file of a unix socket. Default 0660.
    pub mode: Option<u32>,
}

impl FromStr for ListenAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => text
                .parse()
                .map(Self::Tcp)
                .map_err(|_| InvalidAddress(text.to_owned())),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

/// One `[[listen]]` table, or the one line `server.listen`.
#[derive(Clone, Debug)]
pub struct Listen {
    /// Where it is written, as `FILE:LINE: listen`, for what is found wrong when the file has been
    /// read.
    pub place: String,
    /// `address` or `socket`.
    pub socket: ListenSocket,
    /// How its socket is made.
    pub options: SocketOptions,
    /// `protocols`: which versions of HTTP it speaks. Default both.
    pub protocols: Protocols,
    /// `proxy_protocol`: whether each connection begins with a header of the PROXY protocol,
    /// version 1 or 2. Default false.
    pub proxy_protocol: bool,
    /// `trusted_proxies`. None, on the one line only: what proxies say is passed on as it comes,
    /// and nothing of it is believed.
    pub trusted_proxies: Option<TrustedProxies>,
    /// `tls`. Default none: bytes are sent as they are.
    pub tls: Option<ListenTls>,
    /// `http_to_https`: every request is sent to the same place with `https`. Default false.
    pub http_to_https: bool,
    /// `hsts`: for how long browsers that came by `https` are to come by nothing else. Default
    /// none.
    pub hsts: Option<Duration>,
    /// `canonical_host`: requests for another host are sent to this one. Default none.
    pub canonical_host: Option<String>,
}

/// Where a listener has its socket from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenSocket {
    /// The host binds this address, or is handed a socket that is bound there.
    Address(ListenAddress),
    /// The host is handed a socket of this name (`FileDescriptorName=` of a systemd socket unit).
    Named(String),
}

/// Which versions of HTTP a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocols {
    /// HTTP/1.1 and 1.0.
    pub http1: bool,
    /// HTTP/2.
    pub http2: bool,
}

impl Default for Protocols {
    fn default() -> Self {
        Self {
            http1: true,
            http2: true,
        }
    }
}

/// The proxies whose word on a client is believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    networks: Vec<IpNet>,
    unix: bool,
}

/// One entry of `trusted_proxies`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustedProxy {
    /// A network, or one address.
    Network(IpNet),
    /// Whoever may connect to the unix socket.
    Unix,
}

/// The text is no proxy.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is no network: write e.g. \"10.0.0.0/8\", \"192.0.2.7\", \"fd00::/8\", or \"unix\" for whoever connects to a unix socket"
)]
pub struct InvalidProxy(String);

impl FromStr for TrustedProxy {
    type Err = InvalidProxy;

    fn from_str(text: &str) -> Result<Self, InvalidProxy> {
        if text == "unix" {
            return Ok(Self::Unix);
        }
        let network = text
            .parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        network
            .map(Self::Network)
            .map_err(|_| InvalidProxy(text.to_owned()))
    }
}

impl FromIterator<TrustedProxy> for TrustedProxies {
    fn from_iter<I: IntoIterator<Item = TrustedProxy>>(proxies: I) -> Self {
        let mut trusted = Self::default();
        for proxy in proxies {
            match proxy {
                TrustedProxy::Network(network) => trusted.networks.push(network),
                TrustedProxy::Unix => trusted.unix = true,
            }
        }
        trusted
    }
}

impl TrustedProxies {
    /// Whether the word of `peer` is believed; none is the other end of a unix socket.
    pub fn trusts(&self, peer: Option<IpAddr>) -> bool {
        match peer {
            None => self.unix,
            Some(address) => {
                let address = address.to_canonical();
                self.networks
                    .iter()
                    .any(|network| network.contains(&address))
            }
        }
    }

    /// Whether nobody is trusted.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty() && !self.unix
    }
}

impl Listen {
    /// Whether it is the one line `server.listen`.
    pub fn is_one_line(&self) -> bool {
        self.trusted_proxies.is_none()
    }

    /// What the one line `server.listen` stands for.
    pub fn plain(address: SocketAddr) -> Self {
        Self {
            place: "server.listen".to_owned(),
            socket: ListenSocket::Address(address.into()),
            options: SocketOptions::default(),
            protocols: Protocols::default(),
            proxy_protocol: false,
            trusted_proxies: None,
            tls: None,
            http_to_https: false,
            hsts: None,
            canonical_host: None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn only_the_networks_that_are_named_are_trusted() {
        let trusted: TrustedProxies = ["10.0.0.0/8", "192.0.2.7", "fd00::/8"]
            .map(|text| text.parse().unwrap())
            .into_iter()
            .collect();
        let trusts = |text: &str| trusted.trusts(Some(text.parse().unwrap()));
        for yes in ["10.1.2.3", "192.0.2.7", "fd12::1", "::ffff:10.1.2.3"] {
            assert!(trusts(yes), "{yes}");
        }
        for no in ["11.0.0.1", "192.0.2.8", "fe80::1", "::1"] {
            assert!(!trusts(no), "{no}");
        }
        assert!(!trusted.trusts(None));
        assert!("unix".parse::<TrustedProxy>().unwrap() == TrustedProxy::Unix);
        for wrong in ["", "10.0.0.0/33", "example.org", "10.0.0"] {
            wrong.parse::<TrustedProxy>().unwrap_err();
        }
    }
}
