//! Which versions there are files of, on the disk: `<state>/assets/APP/versions.json`, and beside
//! it each file as `<sha256>`, its variants as `<sha256>.br` and `<sha256>.gzip`.
//!
//! A file is synced before the list names it, and deleted after the list does not.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File as DiskFile, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    app::Settings,
    file::{Encoding, File},
    name,
};
use crate::{artifact::Sha256, replace::replace};

const LIST: &str = "versions.json";

/// The immutable files of one version.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    /// The artifact that brought them.
    pub(super) artifact: Sha256,
    /// Its version.
    pub(super) version: semver::Version,
    /// When another one took its place, in milliseconds since 1970; none while it is live.
    pub(super) replaced_ms: Option<u64>,
    /// What the paths begin with, each with a slash at its end.
    pub(super) prefixes: Vec<String>,
    pub(super) files: BTreeMap<String, Arc<File>>,
}

/// The same as it is written.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    artifact: Sha256,
    version: semver::Version,
    #[serde(default)]
    replaced_ms: Option<u64>,
    prefixes: Vec<String>,
    files: BTreeMap<String, Sha256>,
}

/// Takes away what is not kept any more: beyond the last versions and the time, or beyond the size.
/// `versions` are the newest first. Returns whether there was any.
pub(super) fn prune(versions: &mut Vec<Kept>, settings: &Settings, now_ms: u64) -> bool {
    let before = versions.len();
    let mut replaced = 0;
    versions.retain(|kept| {
        let Some(at) = kept.replaced_ms else {
            return true;
        };
        replaced += 1;
        let age = Duration::from_millis(now_ms.saturating_sub(at));
        replaced <= settings.keep || settings.keep_for.is_some_and(|longest| age < longest)
    });
    let mut known = HashSet::new();
    let mut size = 0;
    let fits = versions.iter().take_while(|kept| {
        let files = kept.files.values();
        let new = files.filter(|file| known.insert(file.sha256));
        size += new.map(|file| file.bytes.len() as u64).sum::<u64>();
        kept.replaced_ms.is_none() || size <= settings.max_size
    });
    let fits = fits.count();
    versions.truncate(fits);
    versions.len() != before
}

/// Reads what is kept in `dir`, the newest first, with the reasons why some of it is not. Blocks.
pub(super) fn read(
    dir: &Path,
    make: impl Fn(&str, Sha256, Vec<u8>) -> Arc<File>,
) -> (Vec<Kept>, Vec<String>) {
    let path = dir.join(LIST);
    let entries: Vec<Entry> = match fs::read(&path).map(|text| serde_json::from_slice(&text)) {
        Ok(Ok(entries)) => entries,
        Ok(Err(error)) => return (Vec::new(), vec![format!("{}: {error}", path.display())]),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Default::default(),
        Err(error) => return (Vec::new(), vec![format!("{}: {error}", path.display())]),
    };
    let mut trouble = Vec::new();
    let mut kept = Vec::new();
    for entry in entries {
        let mut files = BTreeMap::new();
        for (path, sha256) in entry.files {
            match read_file(&dir.join(sha256.to_string()), sha256) {
                Ok(bytes) => {
                    let file = make(&path, sha256, bytes);
                    files.insert(path, file);
                }
                Err(why) => trouble.push(why),
            }
        }
        kept.push(Kept {
            artifact: entry.artifact,
            version: entry.version,
            replaced_ms: entry.replaced_ms,
            prefixes: entry.prefixes,
            files,
        });
    }
    (kept, trouble)
}

fn read_file(path: &Path, sha256: Sha256) -> Result<Vec<u8>, String> {
    let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    match Sha256::of(&bytes) == sha256 {
        true => Ok(bytes),
        false => Err(format!("{} is damaged", path.display())),
    }
}

/// Writes what is kept to `dir`, and deletes what is not. Blocks.
///
/// # Errors
/// When the disk does not take it.
pub(super) fn write(dir: &Path, versions: &[Kept]) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let mut names = HashSet::new();
    for file in versions.iter().flat_map(|kept| kept.files.values()) {
        let name = file.sha256.to_string();
        let path = dir.join(&name);
        if names.insert(name) && !path.exists() {
            write_file(&path, &file.bytes)?;
        }
    }
    let entries: Vec<_> = versions
        .iter()
        .map(|kept| Entry {
            artifact: kept.artifact,
            version: kept.version.clone(),
            replaced_ms: kept.replaced_ms,
            prefixes: kept.prefixes.clone(),
            files: kept
                .files
                .iter()
                .map(|(path, file)| (path.clone(), file.sha256))
                .collect(),
        })
        .collect();
    let text = serde_json::to_vec(&entries)?;
    replace(&dir.join(LIST), &text, Permissions::from_mode(0o600))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let identity = name.split('.').next().unwrap_or_default();
        if name != LIST && !names.contains(identity) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The bytes under the name of `path`, read-only and in one step.
fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = DiskFile::create(&fresh)?;
    file.set_permissions(Permissions::from_mode(0o444))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)
}

fn variant_path(dir: &Path, file: &File, encoding: Encoding) -> PathBuf {
    dir.join(format!("{}.{}", file.sha256, encoding.as_str()))
}

/// Makes the variants of `file`, or takes them from `dir`, where those of immutable files are left
/// for the next start. Takes long.
pub(super) fn compress(dir: &Path, file: &File) {
    let find = |encoding| {
        let bytes = fs::read(variant_path(dir, file, encoding)).ok()?;
        Some(Bytes::from(bytes))
    };
    let keep = |encoding, bytes: &[u8]| {
        if !file.is_immutable {
            return;
        }
        // Without it, it is made again after the next start.
        if let Err(error) = write_file(&variant_path(dir, file, encoding), bytes) {
            tracing::debug!(%error, "a compressed asset cannot be written");
        }
    };
    file.compress(find, keep);
}

/// The immutable ones of `files`.
pub(super) fn immutable(files: &BTreeMap<String, Arc<File>>) -> BTreeMap<String, Arc<File>> {
    let files = files.iter();
    let immutable = files.filter(|(path, _)| name::has_hash(path));
    immutable
        .map(|(path, file)| (path.clone(), Arc::clone(file)))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn kept(number: u8, replaced_ms: Option<u64>, size: usize) -> Kept {
        let bytes = Bytes::from(vec![number; size]);
        let path = format!("/assets/app.0000000{number}a.js");
        let file = File::new(&path, Sha256::of(&bytes), bytes, true);
        Kept {
            artifact: Sha256([number; 32]),
            version: semver::Version::new(u64::from(number), 0, 0),
            replaced_ms,
            prefixes: vec!["/assets/".to_owned()],
            files: [(path, Arc::new(file))].into(),
        }
    }

    fn settings(keep: usize, keep_for_ms: Option<u64>, max_size: u64) -> Settings {
        Settings {
            keep,
            keep_for: keep_for_ms.map(Duration::from_millis),
            max_size,
        }
    }

    #[test]
    fn the_last_versions_are_kept_or_those_of_some_time_as_far_as_they_fit() {
        let all = || {
            let ages = [None, Some(90), Some(60), Some(30)];
            let numbers = (1..=4).rev().zip(ages);
            numbers
                .map(|(number, at)| kept(number, at, 100))
                .collect::<Vec<_>>()
        };
        for (limits, left) in [
            (settings(3, None, 1000), 4),
            (settings(1, None, 1000), 2),
            (settings(0, None, 1000), 1),
            (settings(0, Some(50), 1000), 3),
            (settings(3, None, 250), 2),
            (settings(3, None, 1), 1),
        ] {
            let mut versions = all();
            let changed = prune(&mut versions, &limits, 100);
            assert_eq!((versions.len(), changed), (left, left != 4), "{limits:?}");
        }
    }

    #[test]
    fn what_is_written_is_read_again_and_what_is_damaged_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("shop");
        let read = || {
            read(&dir, |path, sha256, bytes| {
                Arc::new(File::new(path, sha256, bytes.into(), true))
            })
        };
        assert!(read().0.is_empty());
        let (new, old) = (kept(2, None, 5000), kept(1, Some(7), 100));
        write(&dir, &[new.clone(), old.clone()]).unwrap();
        let file = new.files.values().next().unwrap();
        compress(&dir, file);
        let (found, trouble) = read();
        assert_eq!((found.len(), trouble), (2, Vec::new()));
        assert_eq!(found[1].replaced_ms, Some(7));
        assert_eq!(found[0].files.keys().count(), 1);

        fs::write(dir.join(".left"), b"x").unwrap();
        write(&dir, std::slice::from_ref(&new)).unwrap();
        let mut names: Vec<_> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let sha256 = file.sha256;
        let expected = [
            format!("{sha256}"),
            format!("{sha256}.br"),
            format!("{sha256}.gzip"),
            LIST.to_owned(),
        ];
        assert_eq!(names, expected);

        fs::remove_file(dir.join(sha256.to_string())).unwrap();
        fs::write(dir.join(sha256.to_string()), b"rot").unwrap();
        let (found, trouble) = read();
        assert!(found[0].files.is_empty() && trouble[0].contains("is damaged"));
    }
}
