//! dlopen and dlclose of artifacts, and the root table in them.
//!
//! - [`library`]: a mapped library, from the artifact to the proof that it is gone
//! - [`heap`]: the heap of one load, freed whole after the unload
//! - [`mod@start`]: the constructor of a plugin
//! - [`mapped`]: what the dynamic linker and the kernel say about what is mapped
//!
//! Rules that hold for every load:
//! - the bytes that were hashed are the bytes that are mapped, under an inode that no other load has, since `dlopen` gives an
//!   old library back when it has seen the inode or the name before, and says nothing;
//! - code of a plugin that runs while it is opened, asked for its table, or closed runs on a thread of its own that has ended
//!   when the function returns, so it leaves nothing on the caller's;
//! - dropping never unmaps; only [`Library::close`] does, and only a library whose account is quiet.
#![allow(
    unsafe_code,
    reason = "dlopen, dlsym and dlclose, and the program headers of what they map"
)]

mod heap;
mod library;
mod mapped;
mod start;

pub use self::library::{Layouts, Library, LoadError};
pub(crate) use self::start::start;
