//! The socket's file: bound by one host at a time, reachable by its user and perhaps a group, gone
//! when the host ends.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use handover_api::socket::{Address, folder};
use rustix::{
    fs::Mode,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use tokio::net::UnixListener;

/// Why the control socket could not be bound, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A host answers there.
    #[error(
        "another host (pid {pid}) is running on {path}: stop it with `handover shutdown --control {path}`, or give this one its own \
         --state or --control",
        path = path.display()
    )]
    InUse {
        /// The process that listens.
        pid: i32,
        /// The socket.
        path: PathBuf,
    },
    /// Something else lies there.
    #[error("{path} is not a socket, so it is left alone: move it away, or give another --control", path = .0.display())]
    NotASocket(PathBuf),
    /// The file system said no.
    #[error("the control socket {path} cannot be made: {source}", path = path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// The bound control socket. Dropping it removes the file, unless another host has taken the path
/// by then.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    group: Option<u32>,
    /// Device and inode of our own file.
    identity: (u64, u64),
}

impl SocketError {
    /// Whether it may be made another time, since only the disk is full or read-only.
    pub fn is_for_want_of_room(&self) -> bool {
        matches!(self, Self::Io { source, .. } if matches!(
            source.kind(),
            io::ErrorKind::ReadOnlyFilesystem
                | io::ErrorKind::StorageFull
                | io::ErrorKind::QuotaExceeded
        ))
    }
}

impl ControlSocket {
    /// Binds `path` and listens there. A socket that a dead host left is replaced. The folder is
    /// made where it is missing.
    ///
    /// The file has mode 0600 from its first moment, or 0660 when it is given to a `group`, and
    /// appears under its name only when it already listens. Must be called within a tokio runtime.
    pub fn bind(path: &Path, group: Option<u32>) -> Result<(UnixListener, Self), SocketError> {
        let failed = |source| SocketError::Io {
            path: path.to_owned(),
            source,
        };
        if let Some(pid) = answering(path).map_err(failed)? {
            return Err(SocketError::InUse {
                pid,
                path: path.to_owned(),
            });
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let bound = Self::bind_and_rename(path, group).map_err(failed)?;
        Ok(bound)
    }

    fn bind_and_rename(path: &Path, group: Option<u32>) -> io::Result<(UnixListener, Self)> {
        let folder = folder(path);
        if !folder.exists() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)?;
            if let Some(group) = group {
                std::os::unix::fs::chown(folder, None, Some(group))?;
                fs::set_permissions(folder, fs::Permissions::from_mode(0o750))?;
            }
        }
        // Bound under a name of its own and renamed, so the path goes from dead to listening in one
        // step.
        let temporary = folder.join(format!(".control.{}", std::process::id()));
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        // Linux gives the file the mode that the socket has when it is bound; umask is the whole
        // process's and would race.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        {
            let address = Address::of(&temporary)?;
            rustix::net::bind(&socket, &SocketAddrUnix::new(address.path())?)?;
        }
        match group {
            None => fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?,
            Some(group) => {
                // Given away first: no other group may open it, not even for a moment.
                std::os::unix::fs::chown(&temporary, None, Some(group))?;
                fs::set_permissions(&temporary, fs::Permissions::from_mode(0o660))?;
            }
        }
        rustix::net::listen(&socket, 128)?;
        let found = fs::symlink_metadata(&temporary)?;
        fs::rename(&temporary, path)?;
        let listener = UnixListener::from_std(socket.into())?;
        Ok((
            listener,
            Self {
                path: path.to_owned(),
                group,
                identity: (found.dev(), found.ino()),
            },
        ))
    }

    /// Whether nothing lies at its path any more: somebody deleted it, so that nobody can connect.
    pub fn is_gone(&self) -> bool {
        fs::symlink_metadata(&self.path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// Makes the file anew, and returns what listens there from now on.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn bind_again(&mut self) -> Result<UnixListener, SocketError> {
        let (listener, socket) = Self::bind(&self.path, self.group)?;
        // What is dropped finds that the file at the path is not its own, and leaves it.
        *self = socket;
        Ok(listener)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if ours {
            // Nobody is left to tell, and a stale socket is replaced at the next start anyway.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The process that listens at `path`, if one does.
///
/// # Errors
/// When the path can be neither connected to nor found dead, e.g. for want of permission.
pub(crate) fn answering(path: &Path) -> io::Result<Option<i32>> {
    let address = Address::of(path);
    let connected =
        address.and_then(|address| std::os::unix::net::UnixStream::connect(address.path()));
    match connected {
        Ok(stream) => {
            let pid = rustix::net::sockopt::socket_peercred(&stream)
                .map_or(0, |peer| peer.pid.as_raw_nonzero().get());
            Ok(Some(pid))
        }
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
            // Something that is no socket; the caller looks at what it is.
            _ if error.raw_os_error() == Some(rustix::io::Errno::NOTSOCK.raw_os_error()) => {
                Ok(None)
            }
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[tokio::test]
    async fn only_the_user_of_the_host_can_open_the_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/control.sock");
        let (_listener, _socket) = ControlSocket::bind(&path, None).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(
            fs::metadata(folder.path().join("state"))
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o700
        );
        assert_eq!(
            fs::read_dir(folder.path().join("state")).unwrap().count(),
            1,
            "nothing but the socket is left"
        );
    }

    #[tokio::test]
    async fn a_group_can_open_the_socket_when_it_is_told_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/control.sock");
        let group = nix::unistd::Gid::effective().as_raw();
        let (_listener, _socket) = ControlSocket::bind(&path, Some(group)).unwrap();
        for (path, mode) in [(path.as_path(), 0o660), (path.parent().unwrap(), 0o750)] {
            let facts = fs::metadata(path).unwrap();
            assert_eq!(facts.permissions().mode() & 0o777, mode);
            assert_eq!(facts.gid(), group);
        }
    }

    #[tokio::test]
    async fn a_second_host_is_told_who_runs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let (_listener, _socket) = ControlSocket::bind(&path, None).unwrap();
        let again = path.clone();
        let error = tokio::task::spawn_blocking(move || answering(&again))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(error, Some(i32::try_from(std::process::id()).unwrap()));
        let error = ControlSocket::bind(&path, None).unwrap_err();
        assert!(
            error.to_string().starts_with(&format!(
                "another host (pid {}) is running",
                std::process::id()
            )),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_socket_of_a_dead_host_is_replaced_and_ours_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (listener, socket) = ControlSocket::bind(&path, None).unwrap();
        drop(listener);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.txt");
        fs::write(&path, "keep").unwrap();
        assert!(matches!(
            ControlSocket::bind(&path, None),
            Err(SocketError::NotASocket(_))
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "keep");
    }

    #[tokio::test]
    async fn a_socket_taken_over_by_another_host_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let (listener, old) = ControlSocket::bind(&path, None).unwrap();
        drop(listener);
        let (_listener, _new) = ControlSocket::bind(&path, None).unwrap();
        drop(old);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_path_longer_than_a_socket_address_works() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a".repeat(120)).join("control.sock");
        let (listener, _socket) = ControlSocket::bind(&path, None).unwrap();
        let (connected, accepted) =
            tokio::join!(handover_api::socket::connect(&path), listener.accept());
        connected.unwrap();
        accepted.unwrap();
    }
}
