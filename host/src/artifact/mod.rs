//! Artifacts at rest: what their bytes say, and the store that keeps them. Knows nothing of running code.
//!
//! - [`digest`]: the identity of bytes
//! - [`manifest`]: what an artifact says of itself, read from its own ELF section without loading it
//! - [`elf`]: the facts of the file (architecture, completeness, build id)
//! - [`store`]: immutable copies under their SHA-256

pub mod digest;
pub mod elf;
pub mod manifest;
pub mod store;

use std::path::{Path, PathBuf};

pub use self::{
    digest::Sha256,
    elf::ElfFacts,
    manifest::{AbiVersion, BuildFacts, Manifest},
    store::{Store, StoreError},
};

/// One immutable plugin file in the store, with what its bytes say.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// Its identity.
    pub sha256: Sha256,
    /// Its size in bytes.
    pub size: u64,
    /// Where it lies in the store.
    pub path: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
    /// What its ELF header says.
    pub elf: ElfFacts,
}

/// Reads what the file at `path` says of itself, without loading or storing it.
pub fn inspect(_path: &Path) -> Result<Artifact, StoreError> {
    todo!()
}
