//! Listening sockets: bound here, or handed over by whoever started this process.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use listenfd::ListenFd;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::{
    listeners::{ListenerKey, ListenerKind},
    transport::Listener,
};
use crate::config::{ListenAddress, ListenSocket, SocketOptions};

/// How many connections wait to be accepted, e.g. while a crashed host comes back. The kernel caps
/// it (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// How long a connection may be silent before the kernel asks whether the other machine is still
/// there, how often it asks again, and how many questions without an answer end the connection. Who
/// answers is a kernel, so no client is too slow for it.
const KEEP_ALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(15), 4);

/// The mode of the file of a unix socket: its user and its group may connect.
const MODE: u32 = 0o660;

/// Why there is no listening socket, and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// The address cannot be bound.
    #[error("the host cannot serve at {address}: {cause}; {}", advice(*.address, .cause))]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The cause.
        cause: io::Error,
    },
    /// One of the host's own, which a key names, cannot be bound.
    #[error("{key}: {address} cannot be listened at: {cause}; {}", own_advice(.cause))]
    Own {
        /// The key.
        key: &'static str,
        /// The address.
        address: ListenAddress,
        /// The cause.
        cause: io::Error,
    },
    /// The file of a unix socket cannot be made.
    #[error(
        "the host cannot serve at unix:{path}: {cause}; choose another path, or make its folder and let the host write there",
        path = path.display()
    )]
    BindUnix {
        /// The path.
        path: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// Something else lies at the path of a unix socket.
    #[error(
        "the host cannot serve at unix:{path}: what lies there is {what}; move it away, or choose another path",
        path = path.display()
    )]
    Occupied {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A socket that only a service manager has was not handed over.
    #[error(
        "{place}.socket: no socket named `{}` was handed over: start the host by a socket unit with FileDescriptorName={}, or write an \
         `address`", name_of(.socket), name_of(.socket)
    )]
    NotHandedOver {
        /// Where it is written.
        place: String,
        /// Its name.
        socket: ListenSocket,
    },
    /// Sockets were handed over that nobody listens at.
    #[error(
        "sockets were handed over that no [[listen]] names ({0}): add `socket = \"NAME\"` or their `address`, or take them out of the \
         socket unit"
    )]
    NotListened(String),
    /// What was handed over is of no use.
    #[error(
        "descriptor {number} of LISTEN_FDS cannot be served on: {cause}; the host takes stream sockets of IPv4, IPv6 and unix \
         (ListenStream= of a systemd socket unit)"
    )]
    Inherited {
        /// Its place, from 0.
        number: usize,
        /// The cause.
        cause: io::Error,
    },
}

/// A listening socket of this process.
#[derive(Debug)]
pub(crate) enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl SocketError {
    /// Whether somebody else has the address.
    pub(crate) fn is_in_use(&self) -> bool {
        matches!(self, Self::Bind { cause, .. } | Self::Own { cause, .. } if cause.kind() == io::ErrorKind::AddrInUse)
    }
}

impl Bound {
    /// Takes the one at place `number` of those that were handed over.
    pub(super) fn inherited(given: &mut ListenFd, number: usize) -> Result<Self, SocketError> {
        let is_unix = given.take_unix_listener(number);
        if let Ok(Some(listener)) = is_unix {
            return Ok(Self::Unix(listener));
        }
        let taken = given.take_tcp_listener(number);
        let cause = match taken {
            Ok(Some(listener)) => return Ok(Self::Tcp(listener)),
            Ok(None) => io::ErrorKind::NotFound.into(),
            Err(cause) => cause,
        };
        Err(SocketError::Inherited { number, cause })
    }

    /// Takes over `socket`.
    ///
    /// # Errors
    /// When it is no stream socket of IPv4, IPv6 or unix.
    pub(super) fn of(socket: OwnedFd) -> io::Result<Self> {
        match sockopt::socket_domain(&socket)? {
            AddressFamily::UNIX => Ok(Self::Unix(socket.into())),
            AddressFamily::INET | AddressFamily::INET6 => Ok(Self::Tcp(socket.into())),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Where clients reach it.
    pub(crate) fn local_address(&self) -> io::Result<ListenAddress> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(ListenAddress::Tcp),
            Self::Unix(listener) => {
                let address = listener.local_addr()?;
                let path = address.as_pathname().unwrap_or(Path::new("(unnamed)"));
                Ok(ListenAddress::Unix(path.to_owned()))
            }
        }
    }

    /// Hands it to the runtime.
    pub(crate) fn into_listener(self) -> io::Result<Listener> {
        match self {
            Self::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                if let Err(error) = keep_alive(&listener) {
                    tracing::warn!("clients whose machine is gone are not found: {error}");
                }
                let local = listener.local_addr()?;
                Ok(Listener::Tcp {
                    listener: tokio::net::TcpListener::from_std(listener)?,
                    local: (!local.ip().is_unspecified()).then_some(local),
                })
            }
            Self::Unix(listener) => {
                listener.set_nonblocking(true)?;
                tokio::net::UnixListener::from_std(listener).map(Listener::Unix)
            }
        }
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

/// Listens at the address of `key`.
///
/// # Errors
/// What is in the way, and what to do.
pub(super) fn bind(key: &ListenerKey, options: &SocketOptions) -> Result<Bound, SocketError> {
    match &key.address {
        ListenAddress::Tcp(address) => {
            bind_tcp(*address, options)
                .map(Bound::Tcp)
                .map_err(|cause| match key.kind {
                    ListenerKind::Metrics => SocketError::Own {
                        key: "metrics.listen",
                        address: key.address.clone(),
                        cause,
                    },
                    ListenerKind::Dashboard => SocketError::Own {
                        key: "dashboard.listen",
                        address: key.address.clone(),
                        cause,
                    },
                    ListenerKind::Http | ListenerKind::Control => SocketError::Bind {
                        address: *address,
                        cause,
                    },
                })
        }
        ListenAddress::Unix(path) => bind_unix(path, options.mode.unwrap_or(MODE)).map(Bound::Unix),
    }
}

fn bind_tcp(address: SocketAddr, options: &SocketOptions) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // As the standard library does, so that a restart does not wait for connections of the last one
    // to be forgotten.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if options.reuse_port {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    if options.ipv6_only && address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Makes the file at `path`. One that a dead process left is replaced.
fn bind_unix(path: &Path, mode: u32) -> Result<UnixListener, SocketError> {
    let occupied = |what| SocketError::Occupied {
        path: path.to_owned(),
        what,
    };
    let failed = |cause| SocketError::BindUnix {
        path: path.to_owned(),
        cause,
    };
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(occupied("no socket")),
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(occupied("a socket that another process listens on"));
        }
        Ok(_) => fs::remove_file(path).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let make = || {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        // Linux gives the file the mode that the socket has when it is bound; umask is the whole
        // process's and would race.
        rustix::fs::fchmod(&socket, rustix::fs::Mode::from_bits_truncate(mode))?;
        rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(path)?)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(UnixListener::from(socket))
    };
    make().map_err(failed)
}

/// Finds clients whose machine is gone: what `listener` accepts is asked after by the kernel.
fn keep_alive(listener: &TcpListener) -> io::Result<()> {
    let (idle, again, times) = KEEP_ALIVE;
    sockopt::set_socket_keepalive(listener, true)?;
    sockopt::set_tcp_keepidle(listener, idle)?;
    sockopt::set_tcp_keepintvl(listener, again)?;
    sockopt::set_tcp_keepcnt(listener, times)?;
    Ok(())
}

fn name_of(socket: &ListenSocket) -> String {
    match socket {
        ListenSocket::Named(name) => name.clone(),
        ListenSocket::Address(address) => address.to_string(),
    }
}

fn own_advice(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::AddrInUse => "another process has it: choose another address",
        io::ErrorKind::AddrNotAvailable => "it is no address of this machine",
        _ => "choose another address",
    }
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

    fn key(address: &ListenAddress) -> ListenerKey {
        ListenerKey {
            kind: ListenerKind::Http,
            name: String::new(),
            address: address.clone(),
        }
    }

    fn listen(address: &ListenAddress) -> Result<Bound, SocketError> {
        bind(&key(address), &SocketOptions::default())
    }

    #[test]
    fn a_taken_port_is_named_with_what_to_do() {
        let taken = listen(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let address = taken.local_address().unwrap();
        let error = listen(&address).unwrap_err();
        assert!(error.is_in_use());
        let error = error.to_string();
        assert!(
            error.contains(&address.to_string()) && error.contains("--listen"),
            "{error}"
        );
    }

    #[test]
    fn a_port_is_shared_only_where_both_want_that() {
        let shared = SocketOptions {
            reuse_port: true,
            ..SocketOptions::default()
        };
        let first = bind(&key(&"127.0.0.1:0".parse().unwrap()), &shared).unwrap();
        let address = first.local_address().unwrap();
        bind(&key(&address), &shared).unwrap();
        listen(&address).unwrap_err();
    }

    #[test]
    fn a_unix_socket_of_a_dead_process_is_replaced_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.sock");
        let address = ListenAddress::Unix(path.clone());
        let bound = listen(&address).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        let error = listen(&address).unwrap_err().to_string();
        assert!(error.contains("another process listens"), "{error}");
        drop(bound);
        listen(&address).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "keep").unwrap();
        let error = listen(&address).unwrap_err().to_string();
        assert!(error.contains("no socket"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "keep");
    }
}
