//! Accepts connections, and keeps accepting whatever happens.

use std::{io, sync::Arc, time::Duration};

use tokio::net::TcpListener;

use super::{
    connection::{Protocols, Settings},
    count::Connections,
    open::OpenConnections,
};
use crate::dispatch::Routes;

/// Serves until `stop` ends; then accepts no more, and waits until the open connections have ended what they have.
pub async fn serve(
    listener: TcpListener,
    routes: Arc<Routes>,
    settings: Settings,
    counted: Connections,
    stop: impl Future<Output = ()>,
) {
    let protocols = Protocols::new(routes, settings);
    let connections = OpenConnections::default();
    let mut stop = std::pin::pin!(stop);
    loop {
        let (stream, peer) = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    refused(error).await;
                    continue;
                }
            },
        };
        // A socket whose peer is gone already fails here, and is found gone when it is read.
        let _ = stream.set_nodelay(true);
        let counted = counted.accepted();
        let serving = protocols.serve(stream, peer, connections.add());
        tokio::spawn(async move {
            let _counted = counted;
            if let Err(reason) = serving.await {
                tracing::debug!(%peer, "a connection ended: {reason}");
            }
        });
    }
    drop(listener);
    connections.finish().await;
}

/// What to do when a connection could not be accepted.
async fn refused(error: io::Error) {
    match error.kind() {
        // The client left while it waited in the queue.
        io::ErrorKind::ConnectionAborted
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionRefused => {}
        _ => {
            // Out of descriptors or memory: trying again at once would only burn the processor.
            tracing::error!(
                "no connection can be accepted: {error}; raise the limit of open files (ulimit -n) if this goes on"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
