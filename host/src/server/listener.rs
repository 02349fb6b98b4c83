//! Accepts connections, and keeps accepting whatever happens.

use std::{
    io,
    os::fd::AsRawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::net::TcpListener;

use super::{
    connection::{Protocols, Settings},
    open::Connections,
};
use crate::dispatch::Routes;

/// How long the log says nothing more of connections that could not be taken.
const QUIET: Duration = Duration::from_secs(10);

/// How long nothing is tried when there is neither a descriptor nor a connection that could give
/// its own.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop` ends; then accepts no more, and waits until the open connections have ended
/// what they have.
pub async fn serve(
    listener: TcpListener,
    routes: Arc<Routes>,
    settings: Settings,
    connections: Connections,
    stop: impl Future<Output = ()>,
) {
    let protocols = Protocols::new(routes, settings, connections.clone());
    let mut stop = std::pin::pin!(stop);
    let mut complaint = Complaint::default();
    loop {
        let (stream, peer) = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    not_accepted(&error, &connections, &mut complaint).await;
                    continue;
                }
            },
        };
        let (open, place) = match connections.admit(peer.ip(), stream.as_raw_fd()).await {
            Ok(admitted) => admitted,
            Err(why) => {
                drop(stream);
                complaint.about(&format!(
                    "connections are refused: {} is reached, and no connection is idle",
                    why.as_str()
                ));
                continue;
            }
        };
        // A socket whose peer is gone already fails here, and is found gone when it is read.
        let _ = stream.set_nodelay(true);
        let serving = protocols.serve(stream, peer, open, place);
        tokio::spawn(async move {
            if let Err(reason) = serving.await {
                tracing::debug!(%peer, "a connection ended: {reason}");
            }
        });
    }
    drop(listener);
    connections.finish().await;
}

/// What to do when a connection could not be accepted.
async fn not_accepted(error: &io::Error, connections: &Connections, complaint: &mut Complaint) {
    match error.kind() {
        // The client left while it waited in the queue.
        io::ErrorKind::ConnectionAborted
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionRefused => {}
        _ => {
            // Out of descriptors or memory.
            complaint.about(&format!(
                "no connection can be accepted: {error}; idle ones go, and the limit of open files (ulimit -n) may be too low"
            ));
            if !connections.make_room().await {
                // Trying again at once would only burn the processor.
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// What the log is told once in a while, with how often it happened.
#[derive(Debug, Default)]
struct Complaint {
    told: Option<Instant>,
    since: u64,
}

impl Complaint {
    fn about(&mut self, what: &str) {
        self.since += 1;
        if self.told.is_some_and(|told| told.elapsed() < QUIET) {
            return;
        }
        tracing::error!(times = self.since, "{what}");
        *self = Self {
            told: Some(Instant::now()),
            since: 0,
        };
    }
}
