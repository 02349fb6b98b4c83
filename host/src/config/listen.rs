//! Where the host listens.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

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
