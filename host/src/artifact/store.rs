//! Immutable copies of artifacts under their SHA-256.

use std::path::{Path, PathBuf};

use super::{Artifact, Sha256};

/// The store: a folder in the state directory.
#[derive(Clone, Debug)]
pub struct Store;

/// Why bytes did not become an artifact.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The bytes are not an acceptable artifact: exit code 4.
    #[error("{reason}")]
    Refused {
        /// What was wrong and what to do.
        reason: String,
        /// The identity of the refused bytes.
        sha256: Option<Sha256>,
    },
    /// The file or the store could not be read or written: exit code 1.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// Bytes on their way into the store.
#[derive(Debug)]
pub struct Writer;

impl Store {
    /// Opens the store in `dir`, making it, and sweeping what a crash left half-written.
    pub fn open(_dir: &Path) -> Result<Self, StoreError> { todo!() }
    /// Copies the file at `path` in: hashed while copying, synced, read-only, renamed into place.
    pub fn add_file(&self, _path: &Path) -> Result<Artifact, StoreError> { todo!() }
    /// A writer for bytes that come in pieces.
    pub fn writer(&self) -> Result<Writer, StoreError> { todo!() }
    /// The artifact with this identity.
    pub fn get(&self, _sha256: Sha256) -> Result<Artifact, StoreError> { todo!() }
    /// Deletes all artifacts but those in `keep`.
    pub fn collect(&self, _keep: &[Sha256]) -> Result<(), StoreError> { todo!() }
}

impl Writer {
    /// Takes the next bytes.
    pub fn write(&mut self, _bytes: &[u8]) -> Result<(), StoreError> { todo!() }
    /// Ends the file: checks what it is, syncs and renames it into place.
    pub fn finish(self) -> Result<Artifact, StoreError> { todo!() }
}
