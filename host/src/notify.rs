//! What the host tells whoever started it: that it serves, that it ends, that it is alive.
//!
//! The words are those of systemd's `sd_notify`. They go to `NOTIFY_SOCKET`, or to our own
//! supervisor, which passes them on.

use std::{
    env,
    ffi::{OsStr, OsString},
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    path::Path,
    process,
    sync::Arc,
    time::Duration,
};

use rustix::{
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    process::getppid,
};

/// The host serves.
pub(crate) const READY: &[u8] = b"READY=1";
/// The host ends, and means to.
pub(crate) const STOPPING: &[u8] = b"STOPPING=1";
/// The host could not start, and has said why: only to our own supervisor, as everybody else sees
/// the exit code.
pub(crate) const FAILED: &[u8] = b"X_HANDOVER_FAILED=1";
/// The host has ended as it was meant to, and its process does next: to our own supervisor only.
pub(crate) const ENDED: &[u8] = b"X_HANDOVER_ENDED=1";
/// A listening socket comes with it, to be kept under the key that follows: to our own supervisor
/// only.
pub(crate) const KEEP: &[u8] = b"X_HANDOVER_KEEP=";
/// The listening socket of the key that follows is not to be kept any more: to our own supervisor
/// only.
pub(crate) const FORGET: &[u8] = b"X_HANDOVER_FORGET=";
/// The host is alive.
pub(crate) const WATCHDOG: &[u8] = b"WATCHDOG=1";

/// Whom the host tells how it is. Cheap to clone; what nobody wants to hear is not sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notifier(Option<Arc<UnixDatagram>>);

impl Notifier {
    /// Tells nobody.
    pub(crate) fn silent() -> Self {
        Self::default()
    }

    /// Tells the other end of `socket`.
    ///
    /// # Errors
    /// When the socket cannot be set up.
    pub(crate) fn over(socket: UnixDatagram) -> io::Result<Self> {
        // Whoever does not listen must not hold up the host.
        socket.set_nonblocking(true)?;
        Ok(Self(Some(Arc::new(socket))))
    }

    /// Tells the service manager that `NOTIFY_SOCKET` names, if it names one that can be reached: a
    /// container inherits the name from outside, and to serve matters more than to be heard.
    pub(crate) fn from_env() -> Self {
        match env::var_os("NOTIFY_SOCKET") {
            Some(name) if !name.is_empty() => Self::to(&name).unwrap_or_else(|error| {
                tracing::warn!(
                    "the service manager at NOTIFY_SOCKET={} cannot be reached ({error}), so it is not told how the host is; unset the variable if there is none",
                    name.display()
                );
                Self::silent()
            }),
            _ => Self::silent(),
        }
    }

    fn to(name: &OsString) -> io::Result<Self> {
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            path => SocketAddr::from_pathname(Path::new(OsStr::from_bytes(path)))?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        Self::over(socket)
    }

    /// Sends a message: lines of `NAME=VALUE`.
    pub(crate) fn tell(&self, message: &[u8]) {
        if let Some(socket) = &self.0
            && let Err(error) = socket.send(message)
        {
            tracing::debug!(%error, "the service manager does not listen");
        }
    }

    /// Has our own supervisor keep the listening socket `socket` under this key, and hand it to the
    /// next host.
    pub(crate) fn keep(&self, key: &str, socket: &impl AsFd) {
        let Some(supervisor) = &self.0 else { return };
        let message = [KEEP, key.as_bytes()].concat();
        let sockets = [socket.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&sockets));
        let sent = sendmsg(
            supervisor,
            &[IoSlice::new(&message)],
            &mut control,
            SendFlags::NOSIGNAL,
        );
        if let Err(error) = sent {
            tracing::warn!(key, %error, "the supervisor cannot keep a listening socket: clients find nobody there while a crashed host comes back");
        }
    }

    /// Has our own supervisor close the listening socket that it keeps under this key.
    pub(crate) fn forget(&self, key: &str) {
        self.tell(&[FORGET, key.as_bytes()].concat());
    }

    /// Whom it tells, for somebody who says something in a way of its own.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub(crate) fn listener(&self) -> io::Result<Option<OwnedFd>> {
        let socket = self.0.as_ref();
        socket
            .map(|socket| socket.try_clone().map(OwnedFd::from))
            .transpose()
    }

    /// Says that the host serves, and which process it is.
    pub(crate) fn ready(&self) {
        self.tell(&[READY, format!("\nMAINPID={}", process::id()).as_bytes()].concat());
    }

    /// Says that the host could not start, and that it has said why.
    pub(crate) fn failed(&self) {
        self.tell(FAILED);
    }

    /// Says that the host ends, and means to.
    pub(crate) fn stopping(&self) {
        self.tell(STOPPING);
    }

    /// Says that the host has ended as it was meant to.
    pub(crate) fn ended(&self) {
        self.tell(ENDED);
    }

    /// Says that the host is alive, again and again, if the service manager wants to hear it. Ends
    /// only with its task.
    pub(crate) async fn keep_alive(self) {
        let Some(period) = watchdog().filter(|_| self.0.is_some()) else {
            return;
        };
        let mut tick = tokio::time::interval(period / 2);
        loop {
            tick.tick().await;
            self.tell(WATCHDOG);
        }
    }
}

/// How long the service manager waits for a sign of life of this process, or of the one that
/// supervises it.
fn watchdog() -> Option<Duration> {
    let number = |name: &str| env::var(name).ok()?.parse::<u64>().ok();
    let supervisor = getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
    let meant = number("WATCHDOG_PID")
        .is_none_or(|pid| pid == u64::from(process::id()) || pid == u64::from(supervisor));
    number("WATCHDOG_USEC")
        .filter(|usec| meant && *usec > 0)
        .map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn a_service_manager_hears_it_at_a_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        Notifier::to(&path.into_os_string()).unwrap().ready();
        let mut heard = [0; 100];
        let length = manager.recv(&mut heard).unwrap();
        let expected = format!("READY=1\nMAINPID={}", process::id());
        assert_eq!(&heard[..length], expected.as_bytes());
    }

    #[test]
    fn a_service_manager_that_is_gone_does_not_matter() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        drop(theirs);
        Notifier::over(ours).unwrap().stopping();
        Notifier::silent().stopping();
    }
}
