//! A file replaced as a whole: a crash leaves the old one or the new one.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    path::Path,
};

/// Writes `bytes` to the file at `path`, in the place of what is there. Blocks on the disk.
///
/// The new file has `permissions`, whatever mask a plugin has set.
///
/// # Errors
/// When it cannot be written. What was there stays.
pub(crate) fn replace(path: &Path, bytes: &[u8], permissions: Permissions) -> io::Result<()> {
    let fresh = path.with_extension("json.new");
    let written = File::create(&fresh).and_then(|mut file| {
        file.set_permissions(permissions)?;
        file.write_all(bytes)?;
        file.sync_all()
    });
    if let Err(cause) = written.and_then(|()| fs::rename(&fresh, path)) {
        // Half a file takes room that the whole one needs.
        let _ = fs::remove_file(&fresh);
        return Err(cause);
    }
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
