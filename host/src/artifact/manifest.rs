//! What an artifact says of itself, read from its own ELF section without loading it.
//!
//! The section [`SECTION`] holds:
//!
//! | bytes | what |
//! | --- | --- |
//! | 0..8 | ASCII `HANDOVER` |
//! | 8..12 | the format, little endian: 2, which is the layout that the ABI's versions are counted in; 1 is read, and never run |
//! | 12..16 | the length of the JSON in bytes, little endian, at most 64 KiB |
//! | 16.. | the JSON of [`Manifest`]; zeros may follow |
//!
//! Unknown keys of the JSON are ignored and the build facts may be missing, so that an artifact of
//! another ABI can still say which ABI that is.

use std::fmt;

pub(crate) use handover_plugin::abi::manifest::{FORMAT, SECTION};
use handover_plugin::abi::{
    manifest::{HEADER, MAGIC},
    version::ABI,
};
use semver::Version;
use serde::{Deserialize, Serialize};

use handover_api::AppName;

/// The ABI that this host offers.
pub(crate) const HOST_ABI: AbiVersion = AbiVersion(ABI.major, ABI.minor);

/// The layout before the first release: its plugins say that they are of ABI 1.0 or 1.1, and are
/// neither.
const FIRST_LAYOUT: u32 = 1;

const JSON_LIMIT: usize = 64 * 1024;

/// A version of the ABI. A host runs plugins of the same major and an equal or lower minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbiVersion(pub u32, pub u32);

/// A plugin that this host cannot run, both versions named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("built for ABI {plugin}, this host offers {host}: {}", self.advice())]
pub struct AbiMismatch {
    /// What the host offers.
    pub host: AbiVersion,
    /// What the plugin was built against.
    pub plugin: AbiVersion,
}

impl AbiMismatch {
    fn advice(&self) -> String {
        if self.plugin.0 < self.host.0 {
            format!("build it again with handover-plugin {}", self.host)
        } else {
            "upgrade the host or build with an older handover-plugin".to_owned()
        }
    }
}

impl AbiVersion {
    /// Whether a host that offers `self` runs a plugin built against `plugin`.
    ///
    /// # Errors
    /// A sentence with both versions and what to do.
    pub fn accepts(self, plugin: AbiVersion) -> Result<(), AbiMismatch> {
        if self.0 == plugin.0 && plugin.1 <= self.1 {
            Ok(())
        } else {
            Err(AbiMismatch { host: self, plugin })
        }
    }
}

impl fmt::Display for AbiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The manifest: JSON in the section `.handover.manifest`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The app that it wants to be.
    pub app: AppName,
    /// Its version.
    pub version: Version,
    /// The ABI that it was built against.
    pub abi: AbiVersion,
    /// The layout that its ABI is counted in: the format of the section. What was kept without it
    /// is of the first.
    #[serde(default = "first_layout")]
    pub layout: u32,
    /// The version of its state schema.
    pub schema: u32,
    /// How it was built.
    pub build: BuildFacts,
}

fn first_layout() -> u32 {
    FIRST_LAYOUT
}

/// How an artifact was built. What the build did not say is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
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
    /// Whether the sources differed from the commit.
    pub dirty: bool,
    /// What git calls the content of its `Cargo.lock`, where the build said so.
    pub lockfile: Option<String>,
}

impl BuildFacts {
    /// Returns why nobody could build it again from a commit alone; none where one could.
    pub(crate) fn unclean(&self) -> Option<String> {
        match &self.commit {
            None => Some(
                "it does not say which commit it was built from: build it with optimisation in a git checkout, or with HANDOVER_COMMIT set".to_owned(),
            ),
            Some(commit) if self.dirty => Some(format!(
                "it was built from files that differ from commit {commit}: commit them, and build again"
            )),
            Some(_) => None,
        }
    }
}

/// Why a section is not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// There is no such section, or an empty one.
    #[error(
        "it has no manifest (section `{SECTION}`): was it not built with #[handover_plugin::app]?"
    )]
    Missing,
    /// The section ends before what it announces.
    #[error("its manifest is cut off ({have} of {need} bytes): build it again")]
    Truncated {
        /// The bytes that are there.
        have: usize,
        /// The bytes that it takes.
        need: usize,
    },
    /// The section is somebody else's.
    #[error(
        "its manifest does not begin with `HANDOVER`: is `{SECTION}` used by something else than handover-plugin?"
    )]
    Magic,
    /// A later handover wrote it.
    #[error(
        "its manifest has format {0}, this host reads format {FORMAT}: upgrade the host or build with an older handover-plugin"
    )]
    Format(u32),
    /// It is longer than any manifest.
    #[error("its manifest claims {0} bytes, at most {JSON_LIMIT} are read: build it again")]
    TooLong(usize),
    /// Something follows the manifest.
    #[error(
        "it holds more than one manifest: a plugin has one #[handover_plugin::app], its dependencies none"
    )]
    Several,
    /// The JSON is not what it must be.
    #[error("its manifest is not the JSON it must be: {0}: build it again with handover-plugin")]
    Json(#[from] serde_json::Error),
    /// The app cannot be an app.
    #[error("its manifest names an impossible app: {0}")]
    App(#[from] handover_api::InvalidAppName),
    /// The version has no order.
    #[error(
        "its manifest has the version `{text}`, which is no semantic version ({source}): set `version` in its Cargo.toml, e.g. 1.2.0"
    )]
    Version {
        /// What it says.
        text: String,
        /// What is wrong with it.
        source: semver::Error,
    },
}

/// The JSON before its names are checked, so that each of them gets its own error.
#[derive(Deserialize)]
struct Unchecked {
    app: String,
    version: String,
    abi: AbiVersion,
    #[serde(default)]
    schema: u32,
    #[serde(default)]
    build: BuildFacts,
}

impl Manifest {
    /// Reads the bytes of the section. Never panics, whatever they are.
    ///
    /// # Errors
    /// What is wrong with the section and what to do.
    pub fn from_section(section: &[u8]) -> Result<Self, ManifestError> {
        let truncated = |need| ManifestError::Truncated {
            have: section.len(),
            need,
        };
        if section.is_empty() {
            return Err(ManifestError::Missing);
        }
        let (magic, rest) = section.split_first_chunk().ok_or(truncated(HEADER))?;
        if *magic != MAGIC {
            return Err(ManifestError::Magic);
        }
        let (format, rest) = rest.split_first_chunk().ok_or(truncated(HEADER))?;
        let format = u32::from_le_bytes(*format);
        if !(FIRST_LAYOUT..=FORMAT).contains(&format) {
            return Err(ManifestError::Format(format));
        }
        let (length, rest) = rest.split_first_chunk().ok_or(truncated(HEADER))?;
        let length = u32::from_le_bytes(*length) as usize;
        if length > JSON_LIMIT {
            return Err(ManifestError::TooLong(length));
        }
        let (json, after) = rest
            .split_at_checked(length)
            .ok_or(truncated(HEADER.saturating_add(length)))?;
        if after.iter().any(|byte| *byte != 0) {
            return Err(ManifestError::Several);
        }
        let unchecked: Unchecked = serde_json::from_slice(json)?;
        Ok(Self {
            app: unchecked.app.parse()?,
            version: Version::parse(&unchecked.version).map_err(|source| {
                ManifestError::Version {
                    text: unchecked.version,
                    source,
                }
            })?,
            abi: unchecked.abi,
            layout: format,
            schema: unchecked.schema,
            build: unchecked.build,
        })
    }

    /// Whether this host runs it, as far as the ABI says.
    ///
    /// # Errors
    /// A sentence with both versions and what to do.
    pub fn runs_here(&self) -> Result<(), String> {
        if self.layout != FORMAT {
            return Err(format!(
                "built for ABI {} of layout {}, this host offers {HOST_ABI} of layout {FORMAT}: build it again with handover-plugin {HOST_ABI}",
                self.abi, self.layout
            ));
        }
        HOST_ABI
            .accepts(self.abi)
            .map_err(|mismatch| mismatch.to_string())
    }

    /// The ABI that it was built against, for people.
    pub fn abi_named(&self) -> String {
        match self.layout {
            FORMAT => self.abi.to_string(),
            other => format!("{} of layout {other}", self.abi),
        }
    }

    /// The bytes of the section that says this.
    pub fn to_section(&self) -> Vec<u8> {
        // Strings and numbers: it cannot fail.
        let json = serde_json::to_vec(self).unwrap_or_default();
        let mut section = MAGIC.to_vec();
        section.extend(self.layout.to_le_bytes());
        section.extend((json.len() as u32).to_le_bytes());
        section.extend(json);
        section
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    const JSON: &str = r#"{"app":"shop","version":"1.2.3","abi":[1,1],"schema":4,"build":{"rustc":"r","target":"t","profile":"release","panic":"unwind","sdk":"1.1.0","commit":null}}"#;

    fn section(json: &str) -> Vec<u8> {
        let mut bytes = b"HANDOVER\x02\0\0\0".to_vec();
        bytes.extend((json.len() as u32).to_le_bytes());
        bytes.extend(json.as_bytes());
        bytes
    }

    fn error(bytes: &[u8]) -> String {
        Manifest::from_section(bytes).unwrap_err().to_string()
    }

    #[test]
    fn a_manifest_is_read_and_written() {
        let manifest = Manifest::from_section(&section(JSON)).unwrap();
        assert_eq!(manifest.app.as_str(), "shop");
        assert_eq!(manifest.version, Version::new(1, 2, 3));
        assert_eq!((manifest.abi, manifest.schema), (AbiVersion(1, 1), 4));
        assert_eq!(manifest.build.panic, "unwind");
        assert_eq!(
            Manifest::from_section(&manifest.to_section()).unwrap(),
            manifest
        );
    }

    #[test]
    fn padding_and_unknown_keys_are_no_matter() {
        let mut padded = section(
            r#"{"app":"a","version":"1.0.0","abi":[2,0],"new":1,"build":{"more":true,"panic":"unwind"}}"#,
        );
        padded.extend([0; 13]);
        assert_eq!(
            Manifest::from_section(&padded).unwrap().abi,
            AbiVersion(2, 0)
        );
    }

    #[test]
    fn each_fault_is_named() {
        let good = section(JSON);
        assert!(error(b"").contains("#[handover_plugin::app]"));
        assert!(error(&good[..5]).contains("cut off"));
        assert!(error(&good[..good.len() - 1]).contains("cut off"));
        assert!(error(b"HANDOVEX\x01\0\0\0\0\0\0\0").contains("does not begin"));
        assert!(error(b"HANDOVER\x03\0\0\0\0\0\0\0").contains("format 3"));
        assert!(error(b"HANDOVER\x02\0\0\0\xff\xff\xff\xff").contains("4294967295"));
        assert!(error(&[good.clone(), good.clone()].concat()).contains("more than one"));
        assert!(error(&section("{")).contains("JSON"));
        assert!(error(&section(&JSON.replace("shop", "../up"))).contains("`../up`"));
        let version = error(&section(&JSON.replace("1.2.3", "1.2")));
        assert!(
            version.contains("`1.2`") && version.contains("Cargo.toml"),
            "{version}"
        );
    }

    #[test]
    fn a_plugin_of_the_first_layout_is_read_and_not_run() {
        for abi in ["[1,0]", "[1,1]"] {
            let mut bytes = section(&JSON.replace("[1,1]", abi));
            bytes[8] = 1;
            let manifest = Manifest::from_section(&bytes).unwrap();
            assert_eq!(manifest.layout, 1);
            assert_eq!(manifest.to_section()[..12], bytes[..12]);
            let refused = manifest.runs_here().unwrap_err();
            assert!(
                refused.contains("of layout 1") && refused.contains("build it again"),
                "{refused}"
            );
            // As it was kept by a host that knew only the first.
            let mut kept = serde_json::to_value(&manifest).unwrap();
            kept.as_object_mut().unwrap().remove("layout");
            let kept: Manifest = serde_json::from_value(kept).unwrap();
            assert!(kept.runs_here().is_err());
        }
        let ours = JSON.replace("[1,1]", &format!("[{},{}]", ABI.major, ABI.minor));
        assert!(
            Manifest::from_section(&section(&ours))
                .unwrap()
                .runs_here()
                .is_ok()
        );
    }

    #[test]
    fn no_bytes_panic() {
        let good = section(JSON);
        for end in 0..good.len() {
            let _ = Manifest::from_section(&good[..end]);
        }
        let mut state = 0x9e37_79b9_7f4a_7c15_u64; // xorshift: the same bytes each time
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..4 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let at = state as usize % bytes.len();
                bytes[at] = (state >> 40) as u8;
            }
            let _ = Manifest::from_section(&bytes);
        }
    }

    #[test]
    fn a_host_runs_its_own_and_lower_minors() {
        let host = AbiVersion(1, 3);
        assert!(host.accepts(AbiVersion(1, 3)).is_ok());
        assert!(host.accepts(AbiVersion(1, 0)).is_ok());
        let newer = host.accepts(AbiVersion(1, 4)).unwrap_err().to_string();
        assert_eq!(
            newer,
            "built for ABI 1.4, this host offers 1.3: upgrade the host or build with an older handover-plugin"
        );
        assert!(host.accepts(AbiVersion(2, 0)).is_err());
        let older = host.accepts(AbiVersion(0, 9)).unwrap_err().to_string();
        assert!(
            older.contains("0.9") && older.contains("1.3") && older.contains("again"),
            "{older}"
        );
    }
}
