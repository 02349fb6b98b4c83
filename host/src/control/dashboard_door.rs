//! The way from a call to the dashboard, which lies above the control socket: whoever asks is given
//! a link.

use tokio::sync::{mpsc, oneshot};

use crate::access::Peer;

/// How many may ask at a time.
const WAITING: usize = 16;

/// Asks for links. That of a host without a dashboard refuses.
#[derive(Clone, Debug, Default)]
pub struct DashboardDoor(Option<mpsc::Sender<LinkRequest>>);

/// Somebody wants a link.
#[derive(Debug)]
pub(crate) struct LinkRequest {
    /// Whose rights the page is to have.
    pub(crate) peer: Peer,
    /// Takes the link, or the sentence that says why there is none.
    pub(crate) reply: oneshot::Sender<Result<String, String>>,
}

impl DashboardDoor {
    /// A door, and where those who ask are heard.
    pub(crate) fn new() -> (Self, mpsc::Receiver<LinkRequest>) {
        let (tx, rx) = mpsc::channel(WAITING);
        (Self(Some(tx)), rx)
    }

    /// Asks for a link for `peer`.
    ///
    /// # Errors
    /// The sentence that says why there is none.
    pub(crate) async fn link(&self, peer: Peer) -> Result<String, String> {
        let (reply, link) = oneshot::channel();
        if let Some(door) = &self.0
            && door.send(LinkRequest { peer, reply }).await.is_ok()
            && let Ok(link) = link.await
        {
            return link;
        }
        Err("this host has no dashboard, or ends".to_owned())
    }
}
