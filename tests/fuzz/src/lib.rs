//! What the targets that read files share.
#![cfg(feature = "host")]
#![forbid(unsafe_code)]

pub mod elf;
pub mod file;
