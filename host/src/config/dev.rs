//! `[dev]`: how `handover dev` works on the crate beside the file. A server ignores it.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{Ipv4Addr, SocketAddr, ToSocketAddrs},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::app::{Argument, EnvName};
use crate::values;

/// `[dev]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Dev {
    /// Where to serve. Default `127.0.0.1:8080`.
    pub listen: Option<NamedAddress>,
    /// Environment variables of the app. Default none.
    #[serde(deserialize_with = "values::each_of_table::<EnvName, Argument, _>")]
    pub env: BTreeMap<String, String>,
    /// Features of the crate to switch on. Default none.
    pub features: Vec<String>,
    /// Whether it is built with optimisations. Default false.
    pub release: bool,
    /// Whether pages of the app load themselves anew after a swap. Default true.
    pub reload: bool,
}

impl Default for Dev {
    fn default() -> Self {
        Self {
            listen: None,
            env: BTreeMap::new(),
            features: Vec::new(),
            release: false,
            reload: true,
        }
    }
}

/// `HOST:PORT`, where the host may be a name that the machine knows; `:PORT` is of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedAddress {
    host: String,
    port: u16,
}

/// A text that is no [`NamedAddress`].
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no address: write e.g. `127.0.0.1:8080`, `localhost:8080` or `:8080`")]
pub(crate) struct InvalidAddress(String);

impl NamedAddress {
    /// Where `handover dev` serves unless told otherwise.
    pub(crate) fn usual() -> Self {
        Self {
            host: Ipv4Addr::LOCALHOST.to_string(),
            port: 8080,
        }
    }

    /// Returns the address that the name stands for, one of IPv4 where it has both. Blocks on the
    /// resolver of the system.
    ///
    /// # Errors
    /// When nothing has that name.
    pub(crate) fn resolve(&self) -> io::Result<SocketAddr> {
        if self.host.is_empty() {
            return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)));
        }
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let found: Vec<_> = (host, self.port).to_socket_addrs()?.collect();
        let first = found.iter().find(|address| address.is_ipv4());
        first
            .or(found.first())
            .copied()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
    }
}

values::as_text!(NamedAddress);

impl FromStr for NamedAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = || InvalidAddress(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let port = port.parse().map_err(|_| invalid())?;
        let is_literal = host.starts_with('[')
            && text
                .parse::<SocketAddr>()
                .is_ok_and(|address| address.is_ipv6());
        let is_name = host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        if !is_literal && !is_name {
            return Err(invalid());
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for NamedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn an_address_may_be_a_name() {
        for (text, address) in [
            ("127.0.0.1:9000", "127.0.0.1:9000"),
            ("localhost:9000", "127.0.0.1:9000"),
            (":9000", "127.0.0.1:9000"),
            ("[::1]:9000", "[::1]:9000"),
        ] {
            let read: NamedAddress = text.parse().unwrap();
            assert_eq!(read.to_string(), text);
            assert_eq!(read.resolve().unwrap(), address.parse().unwrap(), "{text}");
        }
        for wrong in [
            "",
            "9000",
            "localhost",
            "localhost:http",
            "::1:80",
            "a b:80",
            "[::1:80",
        ] {
            wrong.parse::<NamedAddress>().unwrap_err();
        }
        let nobody: NamedAddress = "nobody.invalid:80".parse().unwrap();
        nobody.resolve().unwrap_err();
    }
}
