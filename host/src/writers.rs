//! Whether somebody has a file open for writing, and a hold that keeps it as it is while it is
//! read.
//!
//! Only the kernel knows all of them: those of other users and other containers, and those that
//! mapped the file and closed it. It tells by refusing a read lease. Who grants none (a file of
//! another user without `CAP_LEASE`, a file system without leases) leaves what `/proc` shows: the
//! processes that this user may look into.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
};

/// File systems over a network, whose `EAGAIN` may only mean that their server has granted nothing:
/// NFS, SMB in its three numbers, Ceph, 9P and FUSE.
const REMOTE: [u32; 7] = [
    0x6969,
    0x517b,
    0xff53_4d42,
    0xfe53_4d42,
    0x00c3_6400,
    0x0102_1997,
    0x6573_5546,
];

/// Who has a file open for writing.
#[derive(Debug)]
pub(crate) enum Writers {
    /// Nobody has. Whoever opens it for writing waits until this is dropped.
    Nobody(WriteLease),
    /// Somebody has.
    Somebody,
    /// Nobody whom this process can see has.
    Unknown,
}

/// A read lease on a file: nobody opens it for writing meanwhile.
#[derive(Debug)]
pub(crate) struct WriteLease(File);

impl WriteLease {
    /// Whether `path` leads to the held file.
    pub(crate) fn is_of(&self, path: &Path) -> bool {
        matches!((self.0.metadata(), fs::metadata(path)), (Ok(held), Ok(there)) if same(&held, &there))
    }
}

impl Drop for WriteLease {
    fn drop(&mut self) {
        // By name: a child that is being started may have a copy of the descriptor.
        let _ = lease(self.0.as_raw_fd(), libc::F_UNLCK); // there is none then
    }
}

/// Finds out who has the file at `path` open for writing. Follows links, waits for nobody.
///
/// # Errors
/// When it cannot be opened, or is no file.
pub(crate) fn writers(path: &Path) -> io::Result<Writers> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    let file = match opened {
        // Somebody else has a write lease, as file servers take for their clients.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Writers::Somebody),
        opened => opened?,
    };
    let facts = file.metadata()?;
    if !facts.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
    }
    match lease(file.as_raw_fd(), libc::F_RDLCK) {
        Ok(()) => return Ok(Writers::Nobody(WriteLease(file))),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock && !is_remote(&file) => {
            return Ok(Writers::Somebody);
        }
        Err(_) => {}
    }
    Ok(match visible(&facts) {
        Some(_) => Writers::Somebody,
        None => Writers::Unknown,
    })
}

/// A process that has the file at `path` open for writing, as `cp (process 12)`, if this one may
/// look into it. Slow: it looks at all.
pub(crate) fn name_of_one(path: &Path) -> Option<String> {
    visible(&fs::metadata(path).ok()?)
}

fn is_remote(file: &File) -> bool {
    // The kernel's numbers have 32 bits, whatever the type.
    rustix::fs::fstatfs(file).is_ok_and(|facts| REMOTE.contains(&(facts.f_type as u32)))
}

fn visible(file: &Metadata) -> Option<String> {
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let id = process.file_name();
        let Some(id) = id.to_str().filter(|id| id.parse::<u32>().is_ok()) else {
            continue;
        };
        // Another user's, or ended meanwhile.
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        for descriptor in descriptors.flatten() {
            let is_it = fs::metadata(descriptor.path()).is_ok_and(|open| same(&open, file));
            let how = process.path().join("fdinfo").join(descriptor.file_name());
            if is_it && fs::read_to_string(how).is_ok_and(|how| writes(&how)) {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Some(format!("{} (process {id})", name.trim_end().escape_debug()));
            }
        }
    }
    None
}

/// Whether the descriptor that `/proc/PID/fdinfo` describes is open for writing.
fn writes(fdinfo: &str) -> bool {
    let flags = fdinfo
        .lines()
        .find_map(|line| line.strip_prefix("flags:"))
        .and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
}

fn same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

fn lease(descriptor: RawFd, kind: libc::c_int) -> io::Result<()> {
    let call = |command, argument: libc::c_int| {
        // SAFETY: these commands take a number and touch no memory. The callers have the descriptor
        // open.
        #[expect(unsafe_code, reason = "no crate has leases")]
        let answer = unsafe { libc::fcntl(descriptor, command, argument) };
        if answer < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    };
    // Who wants to write makes the kernel send a signal, by default one that ends the process. This
    // one is ignored by default.
    call(F_SETSIG, libc::SIGURG)?;
    call(libc::F_SETLEASE, kind)
}

/// The C library has it, its Rust types for glibc have not.
const F_SETSIG: libc::c_int = 10;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::io::Write;

    use super::*;

    #[test]
    fn a_writer_is_seen_until_it_closes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.so");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        assert!(matches!(writers(&path).unwrap(), Writers::Somebody));
        let named = name_of_one(&path).unwrap();
        assert!(
            named.ends_with(&format!("(process {})", std::process::id())),
            "{named}"
        );
        drop(file);
        assert!(!matches!(writers(&path).unwrap(), Writers::Somebody));
        assert!(name_of_one(&path).is_none());
    }

    #[test]
    fn who_wants_to_write_waits_for_the_hold_and_hurts_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.so");
        fs::write(&path, "whole").unwrap();
        let Writers::Nobody(hold) = writers(&path).unwrap() else {
            return; // no leases here
        };
        assert!(hold.is_of(&path) && !hold.is_of(folder.path()));
        let open = || {
            OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(&path)
        };
        assert_eq!(open().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(hold);
        open().unwrap();
    }

    #[test]
    fn a_pipe_is_no_file_and_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.so");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        assert!(writers(&path).is_err());
    }

    #[test]
    fn the_flags_of_a_descriptor_say_whether_it_writes() {
        assert!(!writes("pos:\t0\nflags:\t02100000\nmnt_id:\t1\n"));
        assert!(writes("pos:\t0\nflags:\t0100001\n"));
        assert!(writes("pos:\t0\nflags:\t0100002\n"));
        assert!(!writes(""));
    }
}
