//! The identity of bytes.

use std::{
    fmt,
    io::{self, Read},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// A SHA-256, shown and serialised as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256(pub [u8; 32]);

/// A text that is no [`Sha256`].
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a SHA-256: use 64 hexadecimal digits")]
pub struct InvalidSha256(String);

impl Sha256 {
    /// The identity of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The identity of everything that `reader` gives, and how many bytes that was. Blocks.
    ///
    /// # Errors
    /// When reading fails.
    pub fn of_reader(mut reader: impl Read) -> io::Result<(Self, u64)> {
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; CHUNK];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(hasher.finish()),
                Ok(n) => hasher.update(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The first 12 hexadecimal digits, for people.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(12);
        text
    }
}

/// How many bytes are read at once when a file is hashed or copied. More would be no faster, and
/// the allocator of the C library keeps what is freed of larger ones, in each of its arenas.
pub(crate) const CHUNK: usize = 64 * 1024;

/// Hashes bytes that come in pieces, and counts them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hasher {
    state: sha2::Sha256,
    size: u64,
}

impl Hasher {
    /// Takes the next bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
        self.size += bytes.len() as u64;
    }

    /// The identity and the number of the bytes taken.
    pub(crate) fn finish(self) -> (Sha256, u64) {
        (Sha256(self.state.finalize().into()), self.size)
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256({self})")
    }
}

impl FromStr for Sha256 {
    type Err = InvalidSha256;

    fn from_str(text: &str) -> Result<Self, InvalidSha256> {
        let invalid = || InvalidSha256(text.chars().take(80).collect());
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(invalid());
        }
        let value = |digit: u8| (digit as char).to_digit(16).map(|v| v as u8);
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let (Some(high), Some(low)) = (value(pair[0]), value(pair[1])) else {
                return Err(invalid());
            };
            *byte = high << 4 | low;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Sha256 {
    type Error = InvalidSha256;

    fn try_from(text: String) -> Result<Self, InvalidSha256> {
        text.parse()
    }
}

impl From<Sha256> for String {
    fn from(sha256: Sha256) -> Self {
        sha256.to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn the_digest_is_the_one_everybody_computes() {
        assert_eq!(Sha256::of(b"abc").to_string(), ABC);
        assert_eq!(
            Sha256::of_reader(&b"abc"[..]).unwrap(),
            (Sha256::of(b"abc"), 3)
        );
        assert_eq!(Sha256::of(b"abc").short(), "ba7816bf8f01");
    }

    #[test]
    fn text_and_json_go_there_and_back() {
        let sha256 = Sha256::of(b"abc");
        assert_eq!(ABC.parse::<Sha256>().unwrap(), sha256);
        assert_eq!(ABC.to_uppercase().parse::<Sha256>().unwrap(), sha256);
        let json = serde_json::to_string(&sha256).unwrap();
        assert_eq!(json, format!("\"{ABC}\""));
        assert_eq!(serde_json::from_str::<Sha256>(&json).unwrap(), sha256);
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "abc",
            &ABC[1..],
            &format!("{ABC}0"),
            &format!("g{}", &ABC[1..]),
            &"é".repeat(32),
        ] {
            assert!(text.parse::<Sha256>().is_err(), "{text}");
        }
    }
}
