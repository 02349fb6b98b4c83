//! How a call ends the host: the request to shut down, and the ear of the process for it.

use tokio::sync::watch;

/// What the host was asked to do with itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shutdown {
    /// Go on.
    #[default]
    Running,
    /// Finish what is in flight, up to the shutdown deadline, then end.
    Drain,
    /// End without waiting for anything.
    Now,
    /// Everything has ended but the answers on the control socket.
    Ended,
}

/// Both ends of the request. Cheap to clone; every clone sees and makes the same request.
#[derive(Clone, Debug, Default)]
pub struct ShutdownHandle(watch::Sender<Shutdown>);

impl ShutdownHandle {
    /// A host that goes on.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for `shutdown`. A request is never taken back: `Now` overrules `Drain`, and nothing but
    /// the end overrules `Now`.
    pub fn request(&self, shutdown: Shutdown) {
        self.0.send_if_modified(|current| {
            let overruled = *current < shutdown;
            *current = (*current).max(shutdown);
            overruled
        });
    }

    /// What is asked for at this moment.
    pub fn current(&self) -> Shutdown {
        *self.0.borrow()
    }

    /// Waits until at least `shutdown` is asked for, and gives what is.
    pub async fn requested(&self, shutdown: Shutdown) -> Shutdown {
        let mut receiver = self.0.subscribe();
        // The sender is `self`, so the channel cannot close while this waits.
        receiver
            .wait_for(|current| *current >= shutdown)
            .await
            .map_or(Shutdown::Ended, |current| *current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_is_seen_by_every_clone_and_never_taken_back() {
        let handle = ShutdownHandle::new();
        let other = handle.clone();
        assert_eq!(other.current(), Shutdown::Running);
        handle.request(Shutdown::Now);
        handle.request(Shutdown::Drain);
        assert_eq!(other.requested(Shutdown::Drain).await, Shutdown::Now);
    }
}
