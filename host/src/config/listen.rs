//! Where the host listens.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::tls::{ListenTls, TlsTable};
use crate::{preview::Preview, values};

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

values::as_text!(ListenAddress);
values::as_text!(TrustedProxy);
values::as_text!(FileMode);
values::as_text!(HostName);

impl FromStr for FileMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 => Ok(Self(mode)),
            _ => Err(format!(
                "`{text}` is no mode of a file: write e.g. \"0660\""
            )),
        }
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl FromStr for HostName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_host = text
            .parse::<http::uri::Authority>()
            .is_ok_and(|authority| authority.host() == text);
        if !is_host {
            return Err(format!(
                "`{text}` is no name of a host: write e.g. \"example.org\", without a port"
            ));
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn socket_name<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let name = String::deserialize(from)?;
    if name.is_empty() || name.contains([':', ',']) {
        return Err(serde::de::Error::custom(
            "it is no name of a socket: write what FileDescriptorName= of the socket unit says",
        ));
    }
    Ok(Some(name))
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

/// `[[listen]]` as it is written. What must hold between its keys, [`Listen::of_table`] looks at.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ListenTable {
    address: Option<ListenAddress>,
    #[serde(deserialize_with = "socket_name")]
    socket: Option<String>,
    reuse_port: bool,
    ipv6_only: bool,
    mode: Option<FileMode>,
    protocols: Option<Vec<Protocol>>,
    proxy_protocol: bool,
    trusted_proxies: TrustedProxies,
    tls: Option<TlsTable>,
    http_to_https: bool,
    #[serde(with = "values::limit")]
    hsts: Option<Duration>,
    canonical_host: Option<HostName>,
}

/// What does not go together in a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mismatch {
    /// The key that it is about; none: several of them.
    pub(super) key: Option<&'static str>,
    /// What it is, and what to do.
    pub(super) what: &'static str,
}

impl Mismatch {
    const fn whole(what: &'static str) -> Self {
        Self { key: None, what }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
enum Protocol {
    #[serde(rename = "h1")]
    Http1,
    #[serde(rename = "h2")]
    Http2,
}

/// The mode of a file, in octal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileMode(u32);

/// The name of a host, in small letters.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HostName(String);

/// One `[[listen]]` table, or the one line `server.listen`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(into = "ListenTable")]
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
    /// What browsers are shown in `dev`, beside what the app answers. No key.
    pub(crate) preview: Option<Preview>,
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
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(from = "Vec<TrustedProxy>", into = "Vec<TrustedProxy>")]
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

impl fmt::Display for TrustedProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => write!(f, "{network}"),
            Self::Unix => f.write_str("unix"),
        }
    }
}

impl From<Vec<TrustedProxy>> for TrustedProxies {
    fn from(proxies: Vec<TrustedProxy>) -> Self {
        proxies.into_iter().collect()
    }
}

impl From<TrustedProxies> for Vec<TrustedProxy> {
    fn from(trusted: TrustedProxies) -> Self {
        let networks = trusted.networks.into_iter().map(TrustedProxy::Network);
        networks
            .chain(trusted.unix.then_some(TrustedProxy::Unix))
            .collect()
    }
}

impl From<Listen> for ListenTable {
    fn from(listen: Listen) -> Self {
        let (address, socket) = match listen.socket {
            ListenSocket::Address(address) => (Some(address), None),
            ListenSocket::Named(name) => (None, Some(name)),
        };
        let Protocols { http1, http2 } = listen.protocols;
        let protocols = [
            http1.then_some(Protocol::Http1),
            http2.then_some(Protocol::Http2),
        ];
        Self {
            address,
            socket,
            reuse_port: listen.options.reuse_port,
            ipv6_only: listen.options.ipv6_only,
            mode: listen.options.mode.map(FileMode),
            protocols: Some(protocols.into_iter().flatten().collect()),
            proxy_protocol: listen.proxy_protocol,
            trusted_proxies: listen.trusted_proxies.unwrap_or_default(),
            tls: listen.tls.map(TlsTable::from),
            http_to_https: listen.http_to_https,
            hsts: listen.hsts,
            canonical_host: listen.canonical_host.map(HostName),
        }
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
    /// What `table` says, which is written at `place`, its paths those of `folder`.
    ///
    /// # Errors
    /// What does not go together, and what to do.
    pub(super) fn of_table(
        place: String,
        table: ListenTable,
        folder: &Path,
    ) -> Result<Self, Mismatch> {
        let socket = match (table.address, table.socket) {
            (Some(ListenAddress::Unix(path)), None) => {
                ListenSocket::Address(ListenAddress::Unix(folder.join(path)))
            }
            (Some(address), None) => ListenSocket::Address(address),
            (None, Some(name)) => ListenSocket::Named(name),
            _ => {
                return Err(Mismatch::whole(
                    "a listener has either an `address` (\"0.0.0.0:80\", \"unix:/run/web.sock\") or the name of a `socket` \
                     that systemd hands over: write one of them",
                ));
            }
        };
        let is_unix = matches!(socket, ListenSocket::Address(ListenAddress::Unix(_)));
        if is_unix && (table.reuse_port || table.ipv6_only) {
            return Err(Mismatch::whole(
                "a unix socket has no port to share and no IPv6: take `reuse_port` and `ipv6_only` out",
            ));
        }
        if !is_unix && table.mode.is_some() {
            return Err(Mismatch::whole(
                "only a unix socket has a `mode`: take it out",
            ));
        }
        let protocols = match table.protocols {
            None => Protocols::default(),
            Some(list) if list.is_empty() => {
                return Err(Mismatch::whole(
                    "`protocols` names none: write \"h1\", \"h2\" or both, or leave it out",
                ));
            }
            Some(list) => Protocols {
                http1: list.contains(&Protocol::Http1),
                http2: list.contains(&Protocol::Http2),
            },
        };
        if table.proxy_protocol && table.trusted_proxies.is_empty() {
            return Err(Mismatch::whole(
                "`proxy_protocol` believes whoever connects: name the proxies in `trusted_proxies`, e.g. [\"10.0.0.0/8\"]",
            ));
        }
        if table.tls.is_some() && table.http_to_https {
            return Err(Mismatch::whole(
                "`http_to_https` is for listeners without `tls`, whose clients came by https already: \
                 take one of them out",
            ));
        }
        Ok(Self {
            place,
            socket,
            options: SocketOptions {
                reuse_port: table.reuse_port,
                ipv6_only: table.ipv6_only,
                mode: table.mode.map(|mode| mode.0),
            },
            protocols,
            proxy_protocol: table.proxy_protocol,
            trusted_proxies: Some(table.trusted_proxies),
            tls: table
                .tls
                .map(|tls| ListenTls::of_table(tls, folder))
                .transpose()
                .map_err(|what| Mismatch {
                    key: Some("tls"),
                    what,
                })?,
            http_to_https: table.http_to_https,
            hsts: table.hsts,
            canonical_host: table.canonical_host.map(|host| host.0),
            preview: None,
        })
    }

    /// Whether the system chooses its port, so that another one of the same address is not the
    /// same.
    pub(crate) fn is_at_any_port(&self) -> bool {
        matches!(&self.socket, ListenSocket::Address(ListenAddress::Tcp(address)) if address.port() == 0)
    }

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
            preview: None,
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
