//! What may run on what.

use std::fmt;

use abi_stable::StableAbi;

/// A version of the ABI.
///
/// A host runs every plugin of its own major and of an equal or lower minor.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, StableAbi)]
pub struct AbiVersion {
    /// Changes when an old plugin can no longer run.
    pub major: u32,
    /// Grows when something was added at the end of a table.
    pub minor: u32,
}

/// The layout that majors and minors are counted in. What was built for another one runs on no host
/// of this one, whatever its major.
pub const LAYOUT: u32 = 2;

/// The ABI that this crate was compiled for.
pub const ABI: AbiVersion = AbiVersion { major: 1, minor: 4 };

impl AbiVersion {
    /// Whether a host of this version runs a plugin of version `plugin`.
    pub const fn runs(self, plugin: Self) -> bool {
        self.major == plugin.major && self.minor >= plugin.minor
    }
}

impl fmt::Display for AbiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}
