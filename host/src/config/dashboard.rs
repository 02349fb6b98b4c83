//! `[dashboard]`: the page for browsers.

use std::{fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize};

/// `[dashboard]`
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Dashboard {
    /// Where the page is. Default nowhere, until somebody asks for it with `handover dashboard`.
    pub(crate) listen: Option<LoopbackAddress>,
}

/// An address that only this machine reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct LoopbackAddress(SocketAddr);

impl LoopbackAddress {
    /// The address.
    pub(crate) fn get(self) -> SocketAddr {
        self.0
    }
}

impl fmt::Display for LoopbackAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for LoopbackAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address: SocketAddr = text.parse().map_err(|_| {
            format!("`{text}` is not an address and a port: write e.g. \"127.0.0.1:9000\"")
        })?;
        if address.ip().is_loopback() {
            return Ok(Self(address));
        }
        let port = address.port();
        Err(format!(
            "other machines reach {address}, and the dashboard has neither TLS nor passwords: write \"127.0.0.1:{port}\", and \
             from another machine go through `ssh -L {port}:127.0.0.1:{port} HOST`"
        ))
    }
}

impl<'de> Deserialize<'de> for LoopbackAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn only_what_this_machine_alone_reaches_is_taken() {
        for text in ["127.0.0.1:9000", "127.8.8.8:1", "[::1]:0"] {
            assert_eq!(text.parse::<LoopbackAddress>().unwrap().to_string(), text);
        }
        for text in ["0.0.0.0:9000", "[::]:9000", "192.0.2.7:80"] {
            let error = text.parse::<LoopbackAddress>().unwrap_err();
            assert!(error.contains("ssh -L"), "{error}");
        }
        let error = "localhost".parse::<LoopbackAddress>().unwrap_err();
        assert!(error.contains("127.0.0.1:9000"), "{error}");
    }
}
