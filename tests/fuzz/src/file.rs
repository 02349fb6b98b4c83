//! A file that is never on a disk.

use std::{
    fs::File,
    io::Write,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

/// Some bytes as a file.
#[derive(Debug)]
pub struct MemoryFile {
    file: File,
    path: PathBuf,
}

impl MemoryFile {
    /// A file that holds `bytes`.
    ///
    /// # Panics
    /// When the kernel has none to give.
    pub fn new(bytes: &[u8]) -> Self {
        let mut file: File = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC)
            .expect("a file in memory")
            .into();
        file.write_all(bytes).expect("room in memory");
        let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        Self { file, path }
    }

    /// It, open.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it can be opened.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
