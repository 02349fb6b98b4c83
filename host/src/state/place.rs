//! Namespaces and keys, checked once at the edge and encoded so that the order of places is the
//! order of keys in a namespace.

use std::{fmt, str::FromStr};

/// The longest name of a namespace, in bytes.
const MAX_NAMESPACE: usize = 64;
/// The longest key, in bytes.
pub(super) const MAX_KEY: usize = 2048;
/// What begins the name of a namespace that is kept in memory only.
const MEMORY: &str = "memory:";
/// What begins the name of a namespace of the host's own, which no plugin can name.
const OWN: char = '#';

/// Why a namespace or a key is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPlace {
    /// The name is none.
    #[error(
        "`{0}` is no namespace: use 1 to 64 of a-z, 0-9, `.`, `_` and `-`, with `memory:` before it for one that is kept in memory only"
    )]
    Namespace(String),
    /// The key is empty.
    #[error("the key is empty")]
    EmptyKey,
    /// The key is too long.
    #[error("the key has {0} bytes, and at most {MAX_KEY} are allowed")]
    LongKey(usize),
}

/// A namespace of an app: its keys are ordered among themselves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Namespace {
    /// Whether it is kept in memory only: it survives swaps, not the host.
    memory: bool,
    name: Box<str>,
}

impl Namespace {
    /// Whether it is kept in memory only.
    pub(crate) fn is_memory(&self) -> bool {
        self.memory
    }

    /// Whether `name`, as a backup has it, is that of a namespace of the host's own.
    pub(super) fn is_own(name: &str) -> bool {
        name.starts_with(OWN)
    }

    /// A namespace of the host's own, on the disk.
    pub(crate) fn own(name: &str) -> Self {
        Self {
            memory: false,
            name: format!("{OWN}{name}").into(),
        }
    }

    /// The namespace that a backup names, which may be one of the host's own.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn of_backup(text: &str) -> Result<Self, InvalidPlace> {
        match text.strip_prefix(OWN) {
            Some(name) => name
                .parse::<Self>()
                .map(|namespace| Self::own(&namespace.name)),
            None => text.parse(),
        }
    }

    /// The place of `key` in it.
    ///
    /// # Errors
    /// When the key is empty or longer than [`MAX_KEY`].
    pub(crate) fn place(&self, key: &[u8]) -> Result<Place, InvalidPlace> {
        match key.len() {
            0 => Err(InvalidPlace::EmptyKey),
            1..=MAX_KEY => Ok(Place(self.encode(key))),
            length => Err(InvalidPlace::LongKey(length)),
        }
    }

    /// The places of all keys that begin with `prefix`; all of the namespace with an empty one.
    pub(crate) fn prefix(&self, prefix: &[u8]) -> Bounds {
        let from = self.encode(prefix);
        let to = after_prefix(&from);
        Bounds { from, to }
    }

    /// The places of keys from `from` on, up to and without `to`; to the end of the namespace
    /// without one.
    pub(crate) fn range(&self, from: &[u8], to: Option<&[u8]>) -> Bounds {
        let whole = self.prefix(&[]);
        Bounds {
            from: self.encode(from),
            to: to.map_or(whole.to, |to| Some(self.encode(to))),
        }
    }

    fn encode(&self, key: &[u8]) -> Vec<u8> {
        let mut place = Vec::with_capacity(1 + self.name.len() + key.len());
        // At most 64, by the check of `from_str`.
        place.push(u8::try_from(self.name.len()).unwrap_or(u8::MAX));
        place.extend_from_slice(self.name.as_bytes());
        place.extend_from_slice(key);
        place
    }
}

/// The first text that is behind all that begin with `prefix`; none when there is no such text.
fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut after = prefix[..=last].to_vec();
    after[last] += 1;
    Some(after)
}

impl FromStr for Namespace {
    type Err = InvalidPlace;

    fn from_str(text: &str) -> Result<Self, InvalidPlace> {
        let (memory, name) = match text.strip_prefix(MEMORY) {
            Some(name) => (true, name),
            None => (false, text),
        };
        let fits = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > MAX_NAMESPACE || !name.bytes().all(fits) {
            return Err(InvalidPlace::Namespace(text.chars().take(80).collect()));
        }
        Ok(Self {
            memory,
            name: name.into(),
        })
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = if self.memory { MEMORY } else { "" };
        write!(f, "{memory}{}", self.name)
    }
}

/// The place of a value: its namespace and its key, encoded in the order of keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(pub(super) Vec<u8>);

impl Place {
    /// The key of an encoded place.
    pub fn key_of(place: &[u8]) -> &[u8] {
        split(place).1
    }

    /// The encoded bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Splits an encoded place into the name of its namespace, without `memory:`, and its key.
pub(super) fn split(place: &[u8]) -> (&str, &[u8]) {
    let Some((length, rest)) = place.split_first() else {
        return ("", &[]);
    };
    let (name, key) = rest.split_at(usize::from(*length).min(rest.len()));
    (std::str::from_utf8(name).unwrap_or_default(), key)
}

/// Places from one on, up to and without another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub(super) from: Vec<u8>,
    pub(super) to: Option<Vec<u8>>,
}

impl Bounds {
    /// All places.
    pub fn all() -> Self {
        Self {
            from: Vec::new(),
            to: None,
        }
    }

    /// Whether `place` lies within.
    pub fn contains(&self, place: &[u8]) -> bool {
        place >= &self.from[..] && self.to.as_ref().is_none_or(|to| place < &to[..])
    }

    /// Goes on behind `place` in the direction that is read in.
    pub fn resume_behind(&mut self, place: &[u8], reverse: bool) {
        if reverse {
            self.to = Some(place.to_vec());
        } else {
            self.from = place.to_vec();
            self.from.push(0);
        }
    }

    /// Whether nothing can lie within.
    pub fn is_empty(&self) -> bool {
        self.to.as_ref().is_some_and(|to| *to <= self.from)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn places_are_in_the_order_of_keys_and_come_apart_again() {
        let namespace: Namespace = "carts".parse().unwrap();
        let one = namespace.place(b"a\xff").unwrap();
        let two = namespace.place(b"b").unwrap();
        assert!(one < two);
        assert_eq!(split(one.as_bytes()), ("carts", &b"a\xff"[..]));
        assert!(namespace.prefix(b"a").contains(one.as_bytes()));
        assert!(!namespace.prefix(b"a").contains(two.as_bytes()));
        assert!(namespace.prefix(b"").contains(two.as_bytes()));
        let other: Namespace = "cart".parse().unwrap();
        assert!(!other.prefix(b"").contains(one.as_bytes()));
    }

    #[test]
    fn a_prefix_of_only_the_highest_bytes_ends_with_its_namespace() {
        let namespace: Namespace = "n".parse().unwrap();
        let bounds = namespace.prefix(&[255, 255]);
        assert!(bounds.contains(namespace.place(&[255, 255, 255]).unwrap().as_bytes()));
        let next: Namespace = "o".parse().unwrap();
        assert!(!bounds.contains(next.place(b"a").unwrap().as_bytes()));
    }

    #[test]
    fn names_and_keys_that_are_none_are_refused() {
        for name in [
            "",
            "A",
            "a b",
            "memory:",
            "memory:memory:x",
            "a/b",
            &"x".repeat(65),
        ] {
            assert!(name.parse::<Namespace>().is_err(), "{name}");
        }
        let memory: Namespace = "memory:cache".parse().unwrap();
        assert!(memory.is_memory());
        assert_eq!(memory.to_string(), "memory:cache");
        assert_eq!(memory.place(b"").unwrap_err(), InvalidPlace::EmptyKey);
        assert_eq!(
            memory.place(&[0; 2049]).unwrap_err(),
            InvalidPlace::LongKey(2049)
        );
        memory.place(&[0; 2048]).unwrap();
    }
}
