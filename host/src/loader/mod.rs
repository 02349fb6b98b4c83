//! dlopen and dlclose of artifacts, and the root table in them.
//!
//! - [`library`]: a mapped library, from the artifact to the proof that it is gone
//! - [`initialisers`]: its ELF initialisers and finalisers in memory, which the host runs instead
//!   of the dynamic linker
//! - [`code`]: what may be run of it besides its app: those, and the root table
//! - [`linker_lock`]: turns with the dynamic linker, with a deadline
//! - [`heap`]: the heap of one load, freed whole after the unload
//! - [`mod@start`]: the constructor of a plugin
//! - [`missing`]: why the dynamic linker did not find a library that a plugin needs
//! - [`references`]: the pointers to a library that shared libraries which came along keep
//! - [`mapped`]: what the dynamic linker and the kernel say about what is mapped
//!
//! Rules that hold for every load:
//! - the bytes that were hashed are the bytes that are mapped, but for the entries of `.dynamic`
//!   that name its initialisers and finalisers, so that none of them runs under the dynamic
//!   linker's lock;
//! - they are mapped under an inode that no other load has, since `dlopen` gives an old library
//!   back when it has seen the inode or the name before, and says nothing;
//! - code of a plugin that runs while it is opened, asked for its table, or closed runs on a thread
//!   that ends before the library is unmapped, so it leaves nothing on one that serves;
//! - dropping never unmaps; only [`Library::close`] does, and only a library whose account is
//!   quiet.
#![allow(
    unsafe_code,
    reason = "dlopen, dlsym and dlclose, and the program headers of what they map"
)]

mod code;
mod companions;
mod heap;
mod initialisers;
mod library;
mod linker_lock;
mod mapped;
mod missing;
mod own_environ;
mod references;
mod start;

use std::{ffi::CStr, io, os::fd::BorrowedFd, ptr};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

pub(crate) use self::code::Running;
pub use self::library::{Layouts, Library, LoadError};
pub(crate) use self::{
    companions::Companion,
    heap::{collect_here, free_bytes, give_back, give_back_of_heaps},
    linker_lock::LONGEST as LONGEST_LINKER_WAIT,
    start::start,
};

/// Maps the beginning of `file` as code and takes the mapping away again, to find out whether that
/// can be done here.
///
/// # Errors
/// What the kernel says.
pub(crate) fn can_map_code(file: BorrowedFd<'_>) -> io::Result<()> {
    let length = rustix::param::page_size();
    let flags = ProtFlags::READ | ProtFlags::EXEC;
    // SAFETY: a mapping where the kernel has room, which nobody but this function knows of: nothing
    // in it is read or run before it is gone.
    unsafe {
        let at = mmap(ptr::null_mut(), length, flags, MapFlags::PRIVATE, file, 0)?;
        munmap(at, length)?;
    }
    Ok(())
}

/// The version of the C library, such as `2.36`.
pub(crate) fn libc_version() -> &'static str {
    // SAFETY: libc returns a string that it never changes.
    let version = unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) };
    version.to_str().unwrap_or("of an unknown version")
}

/// Ends this process well, at once. What libraries that stay mapped have registered with `atexit`
/// does not run: their threads may be alive, and it may block for ever.
pub(crate) fn end_process() -> ! {
    // SAFETY: ends the process. Nothing of the host waits in a buffer.
    unsafe { libc::_exit(0) }
}
