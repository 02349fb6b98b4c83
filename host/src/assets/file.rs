//! One file, and its compressed variants.

use std::{io::Write, sync::OnceLock};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};

use super::name::content_type;
use crate::artifact::Sha256;

/// What is smaller is not worth compressing: it goes in one packet anyway.
const SMALL: usize = 1024;

/// A file in memory. It is the same one wherever its content and its type are the same.
#[derive(Debug)]
pub(crate) struct File {
    /// The identity of its bytes.
    pub(super) sha256: Sha256,
    pub(super) bytes: Bytes,
    pub(super) content_type: &'static str,
    /// Whether it is worth compressing.
    pub(super) is_compressible: bool,
    /// Whether its name has a hash of its content.
    pub(super) is_immutable: bool,
    /// None as long as they are not made.
    pub(super) variants: OnceLock<Variants>,
}

/// What a file is when it is compressed; none where that is not smaller.
#[derive(Debug, Default)]
pub(super) struct Variants {
    pub(super) br: Option<Bytes>,
    pub(super) gzip: Option<Bytes>,
}

/// How the body of an answer is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Br,
    Gzip,
}

impl Encoding {
    /// All, the one that is preferred first.
    pub(super) const ALL: [Self; 2] = [Self::Br, Self::Gzip];

    /// The name in header fields.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Br => "br",
            Self::Gzip => "gzip",
        }
    }

    /// Compresses `bytes`. Takes long.
    fn compress(self, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
                encoder.write_all(bytes)?;
                encoder.finish()
            }
            Self::Br => {
                let mut compressed = Vec::new();
                // The best quality takes many times as long, which is too much for large files.
                let (quality, window) = if bytes.len() > 256 << 10 {
                    (9, 22)
                } else {
                    (11, 22)
                };
                let mut encoder =
                    brotli::CompressorWriter::new(&mut compressed, 4096, quality, window);
                encoder.write_all(bytes)?;
                encoder.flush()?;
                drop(encoder);
                Ok(compressed)
            }
        }
    }
}

impl File {
    /// The file of these bytes at `path`.
    pub(super) fn new(path: &str, sha256: Sha256, bytes: Bytes, is_immutable: bool) -> Self {
        let (content_type, is_compressible) = content_type(path);
        Self {
            sha256,
            is_compressible: is_compressible && bytes.len() >= SMALL,
            bytes,
            content_type,
            is_immutable,
            variants: OnceLock::new(),
        }
    }

    /// Returns its variant of `encoding`, if it is there.
    pub(super) fn variant(&self, encoding: Encoding) -> Option<&Bytes> {
        let variants = self.variants.get()?;
        match encoding {
            Encoding::Br => variants.br.as_ref(),
            Encoding::Gzip => variants.gzip.as_ref(),
        }
    }

    /// Makes its variants, which `find` may have from before, and which `keep` is given where they
    /// were made. Takes long.
    pub(super) fn compress(
        &self,
        find: impl Fn(Encoding) -> Option<Bytes>,
        keep: impl Fn(Encoding, &[u8]),
    ) {
        if !self.is_compressible || self.variants.get().is_some() {
            return;
        }
        let make = |encoding: Encoding| {
            find(encoding).or_else(|| {
                let made = encoding.compress(&self.bytes).ok()?;
                // A browser has to decompress it, which takes more than a few bytes do.
                if made.len() > self.bytes.len() / 20 * 19 {
                    return None;
                }
                keep(encoding, &made);
                Some(Bytes::from(made))
            })
        };
        let variants = Variants {
            br: make(Encoding::Br),
            gzip: make(Encoding::Gzip),
        };
        // Somebody else has made the same ones.
        let _ = self.variants.set(variants);
    }

    /// The entity tag of what is sent.
    pub(super) fn etag(&self, encoding: Option<Encoding>) -> String {
        let mut text = self.sha256.to_string();
        text.truncate(32);
        match encoding {
            None => format!("\"{text}\""),
            Some(encoding) => format!("\"{text}-{}\"", encoding.as_str()),
        }
    }
}
