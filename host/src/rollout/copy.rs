//! Copies of the state of an app, for what is tried in a child process.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
};

use handover_api::AppName;
use tempfile::NamedTempFile;

use crate::state::{Bounds, Store, write_dump};

/// The largest state that is copied, in bytes.
pub(super) const LARGEST: u64 = 256 << 20;

/// A copy of the state of an app.
#[derive(Debug)]
pub(super) enum Copy {
    /// There is none.
    Empty,
    /// A backup, and its size in bytes.
    Whole(NamedTempFile, u64),
    /// There is more than is copied: how many bytes.
    TooLarge(u64),
}

/// Copies what is on the disk: what is in memory does not come over a restart. Blocks.
///
/// # Errors
/// When it cannot be read, or no file can be written.
pub(super) fn of(store: &Store, app: &AppName) -> io::Result<Copy> {
    if !store.exists() {
        return Ok(Copy::Empty);
    }
    let size = store.stats().map_err(io::Error::other)?.bytes;
    if size > LARGEST {
        return Ok(Copy::TooLarge(size));
    }
    let file = NamedTempFile::new()?;
    let mut to = BufWriter::new(File::options().write(true).open(file.path())?);
    let snapshot = store.snapshot(false).map_err(io::Error::other)?;
    let mut written = Ok(0);
    let take = |lines: Vec<u8>| {
        if let Ok(size) = &mut written {
            *size += lines.len() as u64;
            if let Err(error) = to.write_all(&lines) {
                written = Err(error);
            }
        }
        written.is_ok()
    };
    write_dump(&snapshot, false, Bounds::all(), Some(app.as_str()), take)
        .map_err(io::Error::other)?;
    let size = written?;
    to.flush()?;
    Ok(Copy::Whole(file, size))
}
