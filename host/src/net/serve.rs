//! Serves the clients of a listener: each connection takes its place among the open ones, and is a
//! task of its own.

use std::{io, os::fd::AsRawFd, sync::Arc};

use super::{
    accept::{self, Serve},
    connection::{ListenerSettings, Protocols, Settings},
    connections::Connections,
    ended::Refused,
    transport::{Accepted, Listener},
};
use crate::dispatch::Routes;

/// What serves clients.
struct Clients {
    protocols: Protocols,
    connections: Connections,
}

/// Serves until `stop` ends; then accepts no more, and waits until the open connections have ended
/// what they have.
pub(crate) async fn serve(
    (listener, of_listener): (Listener, ListenerSettings),
    routes: Arc<Routes>,
    settings: Settings,
    connections: Connections,
    stop: impl Future<Output = ()> + Send,
) {
    let clients = Clients {
        protocols: Protocols::new(routes, settings, Arc::new(of_listener), connections.clone()),
        connections,
    };
    let Clients { connections, .. } = accept::accept(listener, clients, stop).await;
    connections.finish().await;
}

impl Serve<Accepted> for Clients {
    async fn serve(&mut self, accepted: Accepted) -> Result<(), String> {
        if !self.protocols.welcomes(accepted.peer) {
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
        let serving = self.protocols.serve(accepted, open, place);
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
