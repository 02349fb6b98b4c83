//! The processes that nobody waits for where this one is the first of a container.
//!
//! What a plugin starts and leaves becomes a child of process 1 when the host ends. There a dead
//! one stays in the kernel's table until process 1 asks for its end.

use std::process;

use nix::{
    sys::wait::{Id, WaitPidFlag, waitid},
    unistd::Pid,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The ends of children, heard by process 1 only: everybody else has none but its own.
#[derive(Debug)]
pub(super) struct Orphans(Option<Signal>);

impl Orphans {
    /// Listens from now on.
    ///
    /// # Errors
    /// When no handler can be installed.
    pub(super) fn new() -> std::io::Result<Self> {
        let is_first = process::id() == 1;
        is_first
            .then(|| signal(SignalKind::child()))
            .transpose()
            .map(Self)
    }

    /// Waits until a child has ended.
    pub(super) async fn come(&mut self) {
        match &mut self.0 {
            Some(ended) => {
                ended.recv().await;
            }
            None => std::future::pending().await,
        }
    }
}

/// Takes the ends of all children but `host`, whose end means something and is waited for
/// elsewhere.
pub(super) fn reap(host: u32) {
    let host = i32::try_from(host).ok().map(Pid::from_raw);
    // The kernel tells the end of one child again and again until it is taken. With the host's not
    // taken yet, what else has ended is taken at the next signal, which the end of the next host
    // is.
    while let Ok(status) = waitid(
        Id::All,
        WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT,
    ) && let Some(pid) = status.pid()
        && Some(pid) != host
    {
        if waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG).is_err() {
            return;
        }
    }
}
