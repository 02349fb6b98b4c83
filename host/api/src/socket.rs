//! Reaching the control socket by its path, however long that is.

use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};
use tokio::net::UnixStream;

/// The longest path that fits into a socket address, without its ending zero.
pub const LONGEST_ADDRESS: usize = 107;

/// Connects to the host whose control socket is at `path`.
///
/// # Errors
/// When no host listens there, or its socket may not be used by the caller.
pub async fn connect(path: &Path) -> io::Result<UnixStream> {
    let address = Address::of(path)?;
    UnixStream::connect(address.path()).await
}

/// The same without a runtime. Blocks.
///
/// # Errors
/// Those of [`connect`].
pub fn dial(path: &Path) -> io::Result<std::os::unix::net::UnixStream> {
    std::os::unix::net::UnixStream::connect(Address::of(path)?.path())
}

/// Returns the folder of a path, `.` where it names none.
pub fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A path that fits into a socket address. Deep folders make longer ones, and those are reached
/// through their open folder.
#[derive(Debug)]
pub struct Address {
    path: PathBuf,
    _folder: Option<OwnedFd>,
}

impl Address {
    /// Returns the address of `path`.
    ///
    /// # Errors
    /// When the path is too long, and its folder cannot be opened or there is no `/proc`.
    pub fn of(path: &Path) -> io::Result<Self> {
        if path.as_os_str().as_bytes().len() <= LONGEST_ADDRESS {
            return Ok(Self {
                path: path.to_owned(),
                _folder: None,
            });
        }
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        if !Path::new("/proc/self/fd").exists() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "its path is longer than {LONGEST_ADDRESS} bytes, and there is no /proc to reach it by: name a shorter one with --control"
                ),
            ));
        }
        let open = rustix::fs::open(
            folder(path),
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let short = format!("/proc/self/fd/{}", open.as_raw_fd());
        Ok(Self {
            path: Path::new(&short).join(name),
            _folder: Some(open),
        })
    }

    /// Returns the path to bind or to connect to.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
