//! What a plugin says of itself in its own ELF section, `.handover.manifest`: it is read from the
//! file, so no code runs.
//!
//! `HANDOVER`, then the format (2) and the length of what follows as little-endian `u32`, then JSON
//! in UTF-8:
//!
//! ```text
//! {"app","version","abi":[major,minor],"schema","build":{"rustc","target","profile","panic","sdk","commit","dirty","lockfile"}}
//! ```

use super::version::{ABI, LAYOUT};

/// The section's name.
pub const SECTION: &str = ".handover.manifest";
/// The first eight bytes.
pub const MAGIC: [u8; 8] = *b"HANDOVER";
/// The format, which is the number of the ABI's layout as well: a reader of another layout must not
/// take the versions for its own.
pub const FORMAT: u32 = LAYOUT;
/// Bytes before the JSON.
pub const HEADER: usize = 16;

/// What differs from plugin to plugin.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// The app's name.
    pub app: &'static str,
    /// Its version, semver.
    pub version: &'static str,
    /// The version of its state schema.
    pub schema: u32,
    /// `debug` or `release`.
    pub profile: &'static str,
    /// `unwind` or `abort`.
    pub panic: &'static str,
    /// The commit, or empty.
    pub commit: &'static str,
    /// Whether the sources differ from that commit.
    pub dirty: bool,
    /// What git calls the content of `Cargo.lock`, or empty.
    pub lockfile: &'static str,
}

/// Returns whether the name of a commit says that the sources differ from it, as that of `git
/// describe --dirty` does.
pub const fn says_dirty(commit: &str) -> bool {
    let (commit, end) = (commit.as_bytes(), b"-dirty");
    if commit.len() < end.len() {
        return false;
    }
    let (_, last) = commit.split_at(commit.len() - end.len());
    let mut at = 0;
    while at < end.len() {
        if last[at] != end[at] {
            return false;
        }
        at += 1;
    }
    true
}

impl Facts {
    /// The whole section's length in bytes.
    pub const fn length(&self) -> usize {
        self.write([0; 0]).1
    }

    /// The whole section.
    pub const fn section<const N: usize>(&self) -> [u8; N] {
        self.write([0; N]).0
    }

    const fn write<const N: usize>(&self, buffer: [u8; N]) -> ([u8; N], usize) {
        let mut writer = Writer {
            buffer,
            length: HEADER,
        };
        writer.raw("{\"app\":\"").text(self.app);
        writer.raw("\",\"version\":\"").text(self.version);
        writer.raw("\",\"abi\":[").number(ABI.major);
        writer.raw(",").number(ABI.minor);
        writer.raw("],\"schema\":").number(self.schema);
        writer
            .raw(",\"build\":{\"rustc\":\"")
            .text(env!("HANDOVER_RUSTC"));
        writer.raw("\",\"target\":\"").text(env!("HANDOVER_TARGET"));
        writer.raw("\",\"profile\":\"").text(self.profile);
        writer.raw("\",\"panic\":\"").text(self.panic);
        writer.raw("\",\"sdk\":\"").text(env!("CARGO_PKG_VERSION"));
        writer.raw("\"");
        if !self.commit.is_empty() {
            writer.raw(",\"commit\":\"").text(self.commit);
            writer.raw("\",\"dirty\":");
            writer.raw(if self.dirty { "true" } else { "false" });
        }
        if !self.lockfile.is_empty() {
            writer.raw(",\"lockfile\":\"").text(self.lockfile);
            writer.raw("\"");
        }
        writer.raw("}}");
        let length = writer.length;
        writer.length = 0;
        writer.bytes(&MAGIC);
        writer.bytes(&FORMAT.to_le_bytes());
        writer.bytes(&((length - HEADER) as u32).to_le_bytes());
        (writer.buffer, length)
    }
}

/// Writes what fits, and counts all of it.
struct Writer<const N: usize> {
    buffer: [u8; N],
    length: usize,
}

impl<const N: usize> Writer<N> {
    const fn byte(&mut self, byte: u8) {
        if self.length < N {
            self.buffer[self.length] = byte;
        }
        self.length += 1;
    }

    const fn bytes(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() {
            self.byte(bytes[at]);
            at += 1;
        }
    }

    const fn raw(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes());
        self
    }

    /// Text within quotes; what JSON would want escaped is left out.
    const fn text(&mut self, text: &str) {
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            if bytes[at] >= 0x20 && bytes[at] != b'"' && bytes[at] != b'\\' {
                self.byte(bytes[at]);
            }
            at += 1;
        }
    }

    const fn number(&mut self, number: u32) {
        let mut unit = 1;
        while number / unit >= 10 {
            unit *= 10;
        }
        while unit > 0 {
            self.byte(b'0' + (number / unit % 10) as u8);
            unit /= 10;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dirty_commit_is_told_by_its_end() {
        assert!(says_dirty("v1.2-3-gabc-dirty") && says_dirty("-dirty"));
        assert!(!says_dirty("abc") && !says_dirty("") && !says_dirty("abc-dirt"));
    }

    #[test]
    fn the_section_holds_its_own_length_and_plain_json() {
        const FACTS: Facts = Facts {
            app: "a",
            version: "1.20.3",
            schema: 10,
            profile: "debug",
            panic: "unwind",
            commit: "x\"y",
            dirty: true,
            lockfile: "1f2e",
        };
        const LENGTH: usize = FACTS.length();
        let section: [u8; LENGTH] = FACTS.section();
        assert_eq!(section[..8], MAGIC);
        assert_eq!(
            u32::from_le_bytes([section[12], section[13], section[14], section[15]]) as usize,
            LENGTH - HEADER
        );
        let json = std::str::from_utf8(&section[HEADER..]).expect("UTF-8");
        assert!(
            json.starts_with("{\"app\":\"a\",\"version\":\"1.20.3\",\"abi\":[1,"),
            "{json}"
        );
        assert!(
            json.contains("\"schema\":10,")
                && json.ends_with(",\"commit\":\"xy\",\"dirty\":true,\"lockfile\":\"1f2e\"}}"),
            "{json}"
        );
    }
}
