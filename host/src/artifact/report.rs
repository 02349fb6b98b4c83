//! What people are told of an artifact: its manifest, what its functions declare, and what it was
//! built from.

use std::{
    fs::File,
    io::{self, Read},
};

use handover_api::{ArtifactReport, Dependency};
use object::{
    Object, ObjectSection,
    read::{ReadCache, ReadRef},
};
use serde::Deserialize;

use super::Artifact;

/// Where `cargo auditable` writes the packages that it has built: JSON, compressed by zlib.
const SECTION: &str = ".dep-v0";

/// The longest JSON that is read.
const LONGEST: usize = 16 << 20;

#[derive(Debug, Deserialize)]
struct Audited {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    version: String,
    #[serde(default)]
    kind: Option<String>,
}

impl Artifact {
    /// Returns what people are told of it, whose bytes are in `file`. Blocks.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn report(&self, mut file: &File) -> io::Result<ArtifactReport> {
        // Asked once, so that what follows fails for the content only.
        Read::by_ref(&mut file).read_exact(&mut [0])?;
        let build = &self.manifest.build;
        let handlers = self.declared.values();
        let schedule = |handler: &super::JobHandler| {
            let when = match (&handler.schedule, handler.every_ms) {
                (Some(cron), _) => cron.clone(),
                (None, Some(every)) => format!("every {every} ms"),
                (None, None) => return None,
            };
            let zone = handler.tz.as_ref().map(|tz| format!(" {tz}"));
            Some(format!(
                "{}: {when}{}",
                handler.job,
                zone.unwrap_or_default()
            ))
        };
        Ok(ArtifactReport {
            app: self.manifest.app.clone(),
            version: self.manifest.version.clone(),
            sha256: self.sha256.to_string(),
            size: self.size,
            abi: self.manifest.abi_named(),
            schema: self.manifest.schema,
            db: self.db.map(|db| db.to_string()),
            commit: build.commit.clone(),
            dirty: build.dirty,
            lockfile: build.lockfile.clone(),
            rustc: build.rustc.clone(),
            target: build.target.clone(),
            profile: build.profile.clone(),
            panic: build.panic.clone(),
            sdk: build.sdk.clone(),
            needed: self.elf.linkage.needed.clone(),
            jobs: handlers
                .clone()
                .map(|handler| handler.job.clone())
                .collect(),
            schedules: handlers.filter_map(schedule).collect(),
            dependencies: dependencies(&ReadCache::new(file)),
        })
    }
}

/// Returns the packages that the ELF file `data` was built from, sorted; none where it does not say
/// them, or not so that they can be read.
fn dependencies<'d>(data: impl ReadRef<'d>) -> Option<Vec<Dependency>> {
    let file = object::File::parse(data).ok()?;
    unpacked(file.section_by_name(SECTION)?.data().ok()?)
}

/// The packages in the bytes of the section.
fn unpacked(packed: &[u8]) -> Option<Vec<Dependency>> {
    let json = miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(packed, LONGEST).ok()?;
    let audited: Audited = serde_json::from_slice(&json).ok()?;
    let packages = audited.packages.into_iter();
    let mut found: Vec<_> = packages
        // What only helped to build it is not in it.
        .filter(|package| package.kind.as_deref() != Some("build"))
        .map(|Package { name, version, .. }| Dependency { name, version })
        .collect();
    found.sort();
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_was_built_from_is_read_without_what_only_helped() {
        let json = r#"{"packages":[{"name":"tokio","version":"1.2.3","source":"crates.io","dependencies":[1]},
          {"name":"cc","version":"1.0.0","source":"crates.io","kind":"build"},
          {"name":"axum","version":"0.8.0","source":"local","root":true}]}"#;
        let packed = miniz_oxide::deflate::compress_to_vec_zlib(json.as_bytes(), 6);
        let names = unpacked(&packed).map(|found| {
            found
                .into_iter()
                .map(|package| format!("{} {}", package.name, package.version))
                .collect::<Vec<_>>()
        });
        let expected = ["axum 0.8.0", "tokio 1.2.3"].map(str::to_owned).to_vec();
        assert_eq!(names, Some(expected));
    }

    #[test]
    fn what_cannot_be_read_is_none() {
        let bomb = miniz_oxide::deflate::compress_to_vec_zlib(&vec![b' '; LONGEST + 1], 6);
        let not_json = miniz_oxide::deflate::compress_to_vec_zlib(b"[1]", 6);
        for packed in [&b"plain"[..], &[], &bomb, &not_json] {
            assert_eq!(unpacked(packed), None);
        }
    }
}
