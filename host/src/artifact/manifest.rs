//! What an artifact says of itself, read from its own ELF section without loading it.

use semver::Version;
use serde::{Deserialize, Serialize};

use crate::names::AppName;

/// A version of the ABI. A host runs plugins of the same major and an equal or lower minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbiVersion(pub u32, pub u32);

/// The manifest: JSON in the section `.handover.manifest`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// The app that it wants to be.
    pub app: AppName,
    /// Its version.
    pub version: Version,
    /// The ABI that it was built against.
    pub abi: AbiVersion,
    /// The version of its state schema.
    pub schema: u32,
    /// How it was built.
    pub build: BuildFacts,
}

/// How an artifact was built.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct BuildFacts {
    /// `rustc --version`.
    pub rustc: String,
    /// The target triple.
    pub target: String,
    /// `debug` or `release`.
    pub profile: String,
    /// `unwind` or `abort`.
    pub panic: String,
    /// The version of handover-plugin.
    pub sdk: String,
    /// The commit, where the build said so.
    pub commit: Option<String>,
}
