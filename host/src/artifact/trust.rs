//! Signatures: which keys an artifact must be signed by, and whether it is. In the format of
//! minisign.
//!
//! What is verified are bytes with a known SHA-256, in one read of the file: the loader compares
//! what it maps with the same SHA-256, so the bytes that were verified are the bytes that run.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use minisign_verify::{Error, PublicKey};
use serde::{Deserialize, Serialize};

use super::{
    Artifact, Sha256,
    digest::{CHUNK, Hasher},
};
use crate::values;

/// The longest text that is taken for a signature, in bytes. One of minisign has some 300.
const LONGEST: u64 = 4 * 1024;

/// What is added to the name of a file for the name of its signature.
pub(crate) const SUFFIX: &str = ".minisig";

/// The number that names a key, as minisign prints it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyId([u8; 8]);

impl KeyId {
    /// Of the base64 text of a key or signature: two bytes name the algorithm, then comes the id.
    fn of_base64(text: &str) -> Option<Self> {
        let bytes = BASE64_STANDARD.decode(text.trim()).ok()?;
        bytes.get(2..10)?.try_into().ok().map(Self)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", u64::from_le_bytes(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A key that artifacts may be signed by: the base64 text that minisign writes into `minisign.pub`.
#[derive(Clone, Debug)]
pub struct Key {
    id: KeyId,
    key: PublicKey,
    text: Box<str>,
}

/// A text that is no [`Key`].
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is not a public key of minisign: write the second line of minisign.pub, which begins with `RW`"
)]
pub struct InvalidKey(String);

impl FromStr for Key {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let invalid = || InvalidKey(text.to_owned());
        Ok(Self {
            id: KeyId::of_base64(text).ok_or_else(invalid)?,
            key: PublicKey::from_base64(text).map_err(|_| invalid())?,
            text: text.into(),
        })
    }
}

values::as_text!(Key);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The signature that came with an artifact: readable as one, not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    text: Arc<str>,
    key: KeyId,
}

/// A text that is no [`Signature`].
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("it is not a signature of minisign: make one with `minisign -S -m FILE.so`")]
pub struct InvalidSignature;

impl Signature {
    /// The text, as minisign writes it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Reads the signature at `path`; none when there is no such file. Blocks.
    ///
    /// # Errors
    /// When it cannot be read, or is none (`InvalidData`).
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        // Looked at before it is opened: opening a pipe would wait for its writer.
        match std::fs::metadata(path) {
            Ok(facts) if facts.is_file() => {}
            Ok(_) => return Err(io::Error::other("it is not a file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
        let mut text = String::new();
        File::open(path)?
            .take(LONGEST + 1)
            .read_to_string(&mut text)?;
        text.parse()
            .map(Some)
            .map_err(|error: InvalidSignature| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Where the signature of the file at `path` lies: beside it.
    pub fn beside(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(SUFFIX);
        name.into()
    }

    /// As it travels in a header.
    pub fn to_header(&self) -> String {
        BASE64_STANDARD.encode(self.as_str())
    }

    /// What [`Signature::to_header`] gave.
    ///
    /// # Errors
    /// When it is nothing of that kind.
    pub fn from_header(value: &[u8]) -> Result<Self, InvalidSignature> {
        let text = BASE64_STANDARD
            .decode(value)
            .map_err(|_| InvalidSignature)?;
        str::from_utf8(&text).map_err(|_| InvalidSignature)?.parse()
    }
}

impl FromStr for Signature {
    type Err = InvalidSignature;

    fn from_str(text: &str) -> Result<Self, InvalidSignature> {
        if text.len() as u64 > LONGEST || minisign_verify::Signature::decode(text).is_err() {
            return Err(InvalidSignature);
        }
        let key = text
            .lines()
            .nth(1)
            .and_then(KeyId::of_base64)
            .ok_or(InvalidSignature)?;
        Ok(Self {
            text: text.into(),
            key,
        })
    }
}

/// Why an artifact is not what somebody with a key of `[trust]` has signed: the sentence for a
/// person.
#[derive(Debug, thiserror::Error)]
pub enum Untrusted {
    /// Nothing came with it.
    #[error(
        "it is not signed, and this host takes only what is signed by {keys}: sign it with `minisign -S -m FILE.so`, and put \
         FILE.so.minisig beside it"
    )]
    Unsigned {
        /// The keys.
        keys: String,
    },
    /// The key is none of ours.
    #[error("it is signed by key {id}, and this host takes only what is signed by {keys}")]
    UnknownKey {
        /// Who signed.
        id: KeyId,
        /// The keys.
        keys: String,
    },
    /// The bytes or the signature were changed.
    #[error(
        "its signature by key {id} is not one of these bytes: the file or the signature was changed, or they do not belong together"
    )]
    Wrong {
        /// Who should have signed.
        id: KeyId,
    },
    /// Made by an old program, in a way that needs the whole file in memory.
    #[error(
        "its signature by key {id} is of the old kind: sign it anew with `minisign -S -H -m FILE.so`"
    )]
    Legacy {
        /// Who signed.
        id: KeyId,
    },
    /// The stored copy is not what was stored.
    #[error("the stored copy of it is damaged (its SHA-256 is {found}): deploy it again")]
    Damaged {
        /// What is there.
        found: Sha256,
    },
    /// The stored copy cannot be read.
    #[error("the stored copy of it cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// The keys of `[trust]`. Without any, everything is taken.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Keys(Vec<Key>);

impl Keys {
    /// Whether artifacts must be signed.
    pub fn are_set(&self) -> bool {
        !self.0.is_empty()
    }

    /// Verifies the bytes of `artifact` (those in memory, which will be mapped, else the stored
    /// ones) against the signature that came with it. Gives who signed it, or none when no keys are
    /// set. Blocks on the disk.
    ///
    /// # Errors
    /// The sentence about what is missing or wrong.
    pub fn verify(&self, artifact: &Artifact) -> Result<Option<KeyId>, Untrusted> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let Some(given) = &artifact.signature else {
            return Err(Untrusted::Unsigned { keys: self.names() });
        };
        let id = given.key;
        // Was readable when it was made; two keys of one id are no case that minisign knows.
        let signature = minisign_verify::Signature::decode(given.as_str())
            .map_err(|_| Untrusted::Wrong { id })?;
        let mut unknown = true;
        for known in self.0.iter().filter(|known| known.id == id) {
            unknown = false;
            let mut verifier = match known.key.verify_stream(&signature) {
                Ok(verifier) => verifier,
                Err(Error::UnsupportedLegacyMode) => return Err(Untrusted::Legacy { id }),
                Err(_) => continue,
            };
            let found = read(artifact, |bytes| verifier.update(bytes))?;
            if found != artifact.sha256 {
                return Err(Untrusted::Damaged { found });
            }
            if verifier.finalize().is_ok() {
                return Ok(Some(id));
            }
        }
        Err(if unknown {
            let keys = self.names();
            Untrusted::UnknownKey { id, keys }
        } else {
            Untrusted::Wrong { id }
        })
    }

    /// `key A`, `one of the keys A, B`
    fn names(&self) -> String {
        let ids: Vec<_> = self.0.iter().map(|key| key.id.to_string()).collect();
        match ids.as_slice() {
            [one] => format!("key {one}"),
            all => format!("one of the keys {}", all.join(", ")),
        }
    }
}

impl From<Vec<Key>> for Keys {
    fn from(keys: Vec<Key>) -> Self {
        Self(keys)
    }
}

/// Reads the bytes once, for `take` and for their identity.
fn read(artifact: &Artifact, mut take: impl FnMut(&[u8])) -> io::Result<Sha256> {
    let mut from: Box<dyn Read> = match artifact.image.reader()? {
        Some(image) => Box::new(image),
        None => Box::new(File::open(&artifact.path)?),
    };
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish().0),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                take(&buffer[..n]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::{fs, io::Cursor};

    use minisign::KeyPair;

    use super::*;
    use crate::artifact::{Store, testing::TestElf};

    fn sign(pair: &KeyPair, bytes: &[u8]) -> Signature {
        minisign::sign(None, &pair.sk, Cursor::new(bytes), None, None)
            .unwrap()
            .into_string()
            .parse()
            .unwrap()
    }

    fn pair() -> KeyPair {
        KeyPair::generate_unencrypted_keypair().unwrap()
    }

    fn keys(pairs: &[&KeyPair]) -> Keys {
        let keys: Vec<Key> = pairs
            .iter()
            .map(|pair| pair.pk.to_base64().parse().unwrap())
            .collect();
        keys.into()
    }

    fn stored(bytes: &[u8]) -> (tempfile::TempDir, Store, Artifact) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("artifacts")).unwrap();
        let file = dir.path().join("shop.so");
        fs::write(&file, bytes).unwrap();
        let artifact = store.add_file(&file).unwrap();
        store.keep(&artifact).unwrap();
        (dir, store, artifact)
    }

    #[test]
    fn only_what_a_known_key_signed_is_taken_and_the_reason_names_the_key() {
        let bytes = TestElf::new("shop", "1.0.0").bytes();
        let (_dir, _store, mut artifact) = stored(&bytes);
        let (ours, other, foreign) = (pair(), pair(), pair());
        let keys = keys(&[&other, &ours]);
        let why = |artifact: &Artifact| keys.verify(artifact).unwrap_err().to_string();
        assert!(Keys::default().verify(&artifact).unwrap().is_none());

        let text = why(&artifact);
        assert!(
            text.contains("not signed") && text.contains(&keys.0[1].id.to_string()),
            "{text}"
        );
        artifact.signature = Some(sign(&foreign, &bytes));
        let text = why(&artifact);
        let id = KeyId::of_base64(&foreign.pk.to_base64()).unwrap();
        assert!(text.contains(&format!("signed by key {id}")), "{text}");
        artifact.signature = Some(sign(&ours, b"other bytes"));
        let text = why(&artifact);
        assert!(text.contains("is not one of these bytes"), "{text}");
        artifact.signature = Some(sign(&ours, &bytes));
        assert_eq!(keys.verify(&artifact).unwrap(), Some(keys.0[1].id));
    }

    #[test]
    fn the_id_is_the_one_that_minisign_prints() {
        // The key that the documentation of minisign shows, and its id.
        let key: Key = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"
            .parse()
            .unwrap();
        assert_eq!(key.id.to_string(), "E7620F1842B4E81F");
        for wrong in ["", "RW", "untrusted comment: minisign public key", "RWé"] {
            assert!(wrong.parse::<Key>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_signature_is_kept_with_its_artifact_and_goes_with_it() {
        let bytes = TestElf::new("shop", "1.0.0").bytes();
        let (_dir, store, mut artifact) = stored(&bytes);
        let pair = pair();
        assert_eq!(store.get(artifact.sha256).unwrap().signature, None);
        artifact.signature = Some(sign(&pair, &bytes));
        store.keep_signature(&artifact).unwrap();
        let again = store.get(artifact.sha256).unwrap();
        assert_eq!(again.signature, artifact.signature);
        keys(&[&pair]).verify(&again).unwrap();
        drop((artifact, again));
        store.collect(&[]).unwrap();
        assert_eq!(fs::read_dir(store.dir()).unwrap().count(), 0);
    }

    #[test]
    fn a_stored_copy_that_was_changed_is_not_trusted() {
        let bytes = TestElf::new("shop", "1.0.0").bytes();
        let (_dir, _store, mut artifact) = stored(&bytes);
        let pair = pair();
        artifact.signature = Some(sign(&pair, &bytes));
        let other = TestElf::new("shop", "6.6.6").bytes();
        fs::remove_file(&artifact.path).unwrap();
        fs::write(&artifact.path, other).unwrap();
        // It matters once what was verified is no longer in memory.
        assert!(keys(&[&pair]).verify(&artifact).is_ok());
        artifact.take_image().unwrap();
        assert!(matches!(
            keys(&[&pair]).verify(&artifact),
            Err(Untrusted::Damaged { .. })
        ));
    }

    #[test]
    fn a_header_carries_a_signature_unharmed_and_nothing_else() {
        let signature = sign(&pair(), b"bytes");
        assert_eq!(
            Signature::from_header(signature.to_header().as_bytes()).unwrap(),
            signature
        );
        for wrong in ["", "%", "aGVsbG8="] {
            assert!(Signature::from_header(wrong.as_bytes()).is_err());
        }
        let long = format!("{}{}", signature.as_str(), "\n".repeat(5000));
        assert!(long.parse::<Signature>().is_err());
    }
}
