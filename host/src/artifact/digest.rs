//! The identity of bytes.

use serde::{Deserialize, Serialize};

/// A SHA-256, shown as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug)]
pub struct Sha256(pub [u8; 32]);

impl Sha256 {
    /// The first 12 hexadecimal digits, for people.
    pub fn short(&self) -> String { todo!() }
}

impl std::fmt::Display for Sha256 {
    fn fmt(&self, _f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { todo!() }
}
