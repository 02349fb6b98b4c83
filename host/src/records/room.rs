//! Room on the disk for the records of a recovery: a file that is given up when there is none.
//!
//! A disk is full just when things go wrong. What the host writes then is small: who is live, what
//! crashed. So room for it is taken in advance, and taken again when there is some. What does not
//! fit all the same is kept for the next host in memory of the supervisor's ([`Spill`]).

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::FallocateFlags;

use crate::spill::Spill;

/// How many bytes are kept free: some records of all apps of a large host.
const SIZE: u64 = 1 << 20;

/// The file that takes it.
#[derive(Debug)]
pub(crate) struct Room {
    path: PathBuf,
    spill: Option<Spill>,
}

impl Room {
    /// In the state directory. [`Room::take`] takes it.
    pub(crate) fn in_state(state: &Path, spill: Option<Spill>) -> Self {
        Self {
            path: state.join("reserve"),
            spill,
        }
    }

    /// Takes the room, unless it is taken. Without success where there is none, which is nobody's
    /// business before it is needed. Blocks.
    pub(crate) fn take(&self) {
        if fs::metadata(&self.path).is_ok_and(|facts| facts.len() >= SIZE) {
            return;
        }
        if self.make().is_err() {
            // A part of it is of no use.
            let _ = fs::remove_file(&self.path);
        }
    }

    fn make(&self) -> io::Result<()> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.path)?;
        Ok(rustix::fs::fallocate(
            &file,
            FallocateFlags::empty(),
            0,
            SIZE,
        )?)
    }

    /// Runs `write`, which gives the file at `path` the content `text`, and once more in the room
    /// that is given up for it if there was no other. What cannot be written is kept for the next
    /// host. Blocks.
    pub(crate) fn write(
        &self,
        path: &Path,
        text: &[u8],
        mut write: impl FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let written = match write() {
            Err(error) if is_full(&error) && fs::remove_file(&self.path).is_ok() => write(),
            written => written,
        };
        if let Some(spill) = &self.spill {
            spill.keep(path, written.is_err().then_some(text));
        }
        written
    }

    /// What the host before could not write to `path`.
    pub(crate) fn kept(&self, path: &Path) -> Option<String> {
        self.spill.as_ref()?.text(path)
    }

    /// Has the next host find `text` for the file at `path`, or nothing.
    pub(crate) fn keep(&self, path: &Path, text: Option<&[u8]>) {
        if let Some(spill) = &self.spill {
            spill.keep(path, text);
        }
    }

    /// Nothing is kept of the file at `path` any more.
    pub(crate) fn forget(&self, path: &Path) {
        if let Some(spill) = &self.spill {
            spill.keep(path, None);
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
