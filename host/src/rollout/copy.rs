//! Copies of the state of an app: for what is tried in a child process, and of before a migration.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use handover_api::AppName;
use tempfile::NamedTempFile;

use crate::state::{Bounds, Snapshot, Store, write_dump};

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
    let snapshot = store.snapshot(false).map_err(io::Error::other)?;
    let size = write(&snapshot, app, &file)?;
    Ok(Copy::Whole(file, size))
}

/// Keeps `snapshot`, of the state of `app`, as a backup at `path`. Blocks.
///
/// # Errors
/// When it cannot be read or written.
pub(super) fn keep(snapshot: &Snapshot, app: &AppName, path: &Path) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let file = NamedTempFile::new_in(folder)?;
    write(snapshot, app, &file)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

/// Writes `snapshot` as a backup, and returns its size in bytes.
fn write(snapshot: &Snapshot, app: &AppName, file: &NamedTempFile) -> io::Result<u64> {
    let mut to = BufWriter::new(file.as_file());
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
    write_dump(snapshot, false, Bounds::all(), Some(app.as_str()), take)
        .map_err(io::Error::other)?;
    let size = written?;
    to.flush()?;
    Ok(size)
}
