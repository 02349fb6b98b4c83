//! The host process put together: runtime, sockets, apps, drop folders, control socket, signals.

use std::net::SocketAddr;

use crate::{apps::Apps, artifact::Store, config::Config};

/// A running host.
#[derive(Debug)]
pub struct Daemon;

/// Why the host did not start, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DaemonError(pub String);

/// The runtime of a host process: its workers are known to the ledger, so everything that calls plugins runs on it.
pub fn runtime(_config: &Config) -> std::io::Result<tokio::runtime::Runtime> { todo!() }

impl Daemon {
    /// Starts everything: state directory (locked against a second host), listener, control socket, the artifacts that were live before, the drop folders.
    pub async fn start(_config: Config) -> Result<Self, DaemonError> { todo!() }
    /// The apps.
    pub fn apps(&self) -> &Apps { todo!() }
    /// The artifact store.
    pub fn store(&self) -> &Store { todo!() }
    /// Where it serves.
    pub fn listen(&self) -> Vec<SocketAddr> { todo!() }
    /// Waits until SIGTERM, SIGINT or `handover shutdown`, then drains and ends.
    pub async fn wait(self) { todo!() }
}
