//! dlopen and dlclose of artifacts, and the root table in them.

use abi_stable::std_types::RStr;

use crate::artifact::Artifact;

/// Whether the layouts of the root module are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layouts {
    /// Compared; what abi_stable caches of it points into the library for ever, so only in a preflight child.
    Check,
    /// Trusted, because preflight compared the very same bytes.
    Trust,
}

/// A mapped library. Dropping it leaves it mapped; [`Library::close`] unmaps it.
#[derive(Debug)]
pub struct Library;

/// Why an artifact could not be loaded.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LoadError(pub String);

impl Library {
    /// Maps the bytes of `artifact` from a sealed memfd, and takes its root table.
    pub fn open(_artifact: &Artifact, _layouts: Layouts) -> Result<Self, LoadError> { let _: RStr<'_> = "".into(); todo!() }
    /// Unmaps it.
    pub fn close(self) -> Result<(), (Self, String)> { todo!() }
}
