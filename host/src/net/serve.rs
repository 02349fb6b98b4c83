//! Serves the clients of a listener: each connection takes its place among the open ones, and is a
//! task of its own.

use std::{io, os::fd::AsRawFd, sync::Arc};

use arc_swap::ArcSwap;

use super::{
    accept::{self, Serve},
    connection::Protocols,
    connections::Connections,
    ended::Refused,
    transport::{Accepted, Listener},
};

/// What serves clients.
struct Clients {
    /// What the next connection is served with.
    serving: Arc<ArcSwap<Protocols>>,
    connections: Connections,
}

/// Accepts clients until `stop` ends. Their connections go on.
pub(super) async fn accept_clients(
    listener: Listener,
    serving: Arc<ArcSwap<Protocols>>,
    connections: Connections,
    stop: impl Future<Output = ()> + Send,
) {
    let clients = Clients {
        serving,
        connections,
    };
    accept::accept(listener, clients, stop).await;
}

impl Serve<Accepted> for Clients {
    async fn serve(&mut self, accepted: Accepted) -> Result<(), String> {
        let protocols = self.serving.load_full();
        if !protocols.welcomes(accepted.peer) {
            self.connections.refused(Refused::UntrustedProxy);
            let peer = accepted
                .peer
                .map_or("a unix socket".to_owned(), |peer| peer.ip().to_string());
            return Err(format!(
                "connections are refused: the PROXY protocol is spoken here with trusted_proxies only, and {peer} is none"
            ));
        }
        let (client, socket) = (accepted.peer, accepted.transport.as_raw_fd());
        let admitted = self.connections.admit(client, socket).await;
        let (open, place) = admitted.map_err(|why| {
            format!(
                "connections are refused: {} is reached, and no connection is idle",
                why.as_str()
            )
        })?;
        let serving = protocols.serve(accepted, open, place);
        tokio::spawn(async move {
            if let Err(reason) = serving.await {
                let peer = client.map(tracing::field::display);
                tracing::debug!(peer, "a connection ended: {reason}");
            }
        });
        Ok(())
    }

    async fn make_room(&mut self) -> bool {
        self.connections.make_room().await
    }

    fn not_accepted(&self, error: &io::Error) -> String {
        format!(
            "no connection can be accepted: {error}; idle ones go, and the limit of open files (ulimit -n) may be too low"
        )
    }
}
