//! The listening socket: bound here, or handed over by whoever started this process.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use listenfd::ListenFd;
use rustix::net::sockopt;

/// How many connections wait to be accepted, e.g. while a crashed host comes back. The kernel caps
/// it (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// How long a connection may be silent before the kernel asks whether the other machine is still
/// there, how often it asks again, and how many questions without an answer end the connection. Who
/// answers is a kernel, so no client is too slow for it.
const KEEP_ALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(15), 4);

/// Why there is no listening socket, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The address cannot be bound.
    #[error("the host cannot serve at {address}: {cause}; {}", advice(*.address, .cause))]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The cause.
        cause: io::Error,
    },
    /// What was handed over is of no use.
    #[error(
        "descriptor {number} of LISTEN_FDS cannot be served on: {cause}; the host takes stream sockets of IPv4 and IPv6 \
         (ListenStream= of a systemd socket unit)"
    )]
    Inherited {
        /// Its place, from 0.
        number: usize,
        /// The cause.
        cause: io::Error,
    },
}

impl SocketError {
    /// Whether somebody else has the address.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::Bind { cause, .. } if cause.kind() == io::ErrorKind::AddrInUse)
    }
}

/// Listens at `address`.
///
/// # Errors
/// What is in the way, and what to do.
pub fn bind(address: SocketAddr) -> Result<TcpListener, SocketError> {
    let bound = TcpListener::bind(address).and_then(|listener| {
        // The standard library asks for a backlog of 128. Listening again only changes that.
        rustix::net::listen(&listener, BACKLOG)?;
        Ok(listener)
    });
    bound.map_err(|cause| SocketError::Bind { address, cause })
}

/// Takes the sockets that this process was started with, by the protocol of `LISTEN_FDS` (systemd
/// socket activation, or our own supervisor). Empty when there are none.
///
/// Takes the variables out of the environment, so it is called before there is a second thread, and
/// once.
///
/// # Errors
/// When one of them is no listening TCP socket.
pub fn inherited() -> Result<Vec<TcpListener>, SocketError> {
    let mut given = ListenFd::from_env();
    (0..given.len())
        .filter_map(|number| {
            given
                .take_tcp_listener(number)
                .map_err(|cause| SocketError::Inherited { number, cause })
                .transpose()
        })
        .collect()
}

/// Finds clients whose machine is gone: what `listener` accepts is asked after by the kernel.
pub fn keep_alive(listener: &TcpListener) -> io::Result<()> {
    let (idle, again, times) = KEEP_ALIVE;
    sockopt::set_socket_keepalive(listener, true)?;
    sockopt::set_tcp_keepidle(listener, idle)?;
    sockopt::set_tcp_keepintvl(listener, again)?;
    sockopt::set_tcp_keepcnt(listener, times)?;
    Ok(())
}

fn advice(address: SocketAddr, cause: &io::Error) -> String {
    match cause.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another process has it: `ss -ltnp 'sport = :{}'` names it; end it, or choose another address with --listen",
            address.port()
        ),
        io::ErrorKind::PermissionDenied => format!(
            "ports below 1024 take a privilege: give it with `setcap cap_net_bind_service=+ep`, or choose another port \
             than {} with --listen",
            address.port()
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!(
                "{} is no address of this machine: `ip address` lists them",
                address.ip()
            )
        }
        _ => "choose another address with --listen".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn a_taken_port_is_named_with_what_to_do() {
        let taken = bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = taken.local_addr().unwrap();
        let error = bind(address).unwrap_err();
        assert!(error.is_in_use());
        let error = error.to_string();
        assert!(
            error.contains(&address.to_string()) && error.contains("--listen"),
            "{error}"
        );
    }
}
