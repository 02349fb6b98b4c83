//! The answer files beside what was dropped.

use std::{
    borrow::Cow,
    ffi::{OsStr, OsString},
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::trigger;
use crate::{artifact::Sha256, origin::origin};

/// What was answered about some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// `.deployed`
    Deployed,
    /// `.failed`
    Failed,
    /// `.failed`, because the file in the same folder whose name is shown so arrived with it and
    /// was offered instead.
    Superseded(String),
}

impl Verdict {
    /// The sentence of a superseded file. [`read`] finds the name in it again.
    pub(super) fn superseded(by: &str, version: &semver::Version) -> (Self, String) {
        let text = format!("{SUPERSEDED}{by} (version {version}), which arrived with it");
        (Self::Superseded(by.to_owned()), text)
    }

    fn suffix(&self) -> &'static str {
        match self {
            Self::Deployed => DEPLOYED,
            Self::Failed | Self::Superseded(_) => FAILED,
        }
    }
}

const DEPLOYED: &str = ".deployed";
const FAILED: &str = ".failed";
const SUPERSEDED: &str = "superseded by ";
const TEMP: &str = ".handover-";

/// The longest name of a file, in bytes, of every file system that Linux has.
const LONGEST: usize = 255;

/// The file that an answer file is about, by its name; none for other files. A name that is
/// [`shortened`] is given as it is.
pub(super) fn subject(name: &OsStr) -> Option<&OsStr> {
    let bytes = name.as_bytes();
    bytes
        .strip_suffix(DEPLOYED.as_bytes())
        .or_else(|| bytes.strip_suffix(FAILED.as_bytes()))
        .filter(|bytes| bytes.ends_with(b".so"))
        .map(OsStr::from_bytes)
}

/// Whether the file of this name is written by this module.
pub(super) fn is_ours(name: &OsStr) -> bool {
    subject(name).is_some()
        || trigger::is_answer(name)
        || name.as_bytes().starts_with(TEMP.as_bytes())
}

/// What was answered last about the file at `path`, and about which bytes.
pub(super) fn read(path: &Path) -> Option<(Sha256, Verdict)> {
    let one = |suffix| {
        let file = beside(path, suffix);
        let text = fs::read_to_string(&file).ok()?;
        let mut lines = text.lines();
        let first = lines.next()?;
        let sha256 = lines.next()?.strip_prefix("sha256 ")?.trim().parse().ok()?;
        let verdict = match first.strip_prefix(SUPERSEDED) {
            _ if suffix == DEPLOYED => Verdict::Deployed,
            Some(rest) => match rest.split_once(" (version ") {
                Some((by, _)) => Verdict::Superseded(by.to_owned()),
                None => Verdict::Failed,
            },
            None => Verdict::Failed,
        };
        let written = fs::metadata(&file).and_then(|facts| facts.modified()).ok();
        Some((written, sha256, verdict))
    };
    // Both are there when a host died between writing one and deleting the other.
    let (_, sha256, verdict) = [one(DEPLOYED), one(FAILED)]
        .into_iter()
        .flatten()
        .max_by_key(|(written, ..)| *written)?;
    Some((sha256, verdict))
}

/// Answers about the file at `path`, unless it is gone. A folder that cannot be written gets a
/// warning in the log.
pub(super) fn write(path: &Path, verdict: &Verdict, message: &str, sha256: Sha256) {
    if fs::symlink_metadata(path).is_err() {
        return;
    }
    let (first, more) = message
        .trim()
        .split_once('\n')
        .unwrap_or((message.trim(), ""));
    let mut text = format!("{}\nsha256 {sha256}\n", first.trim_end());
    if !more.is_empty() {
        text.extend([more, "\n"]);
    }
    let file = beside(path, verdict.suffix());
    match replace(&file, &text) {
        Ok(()) => {
            let other = match verdict.suffix() {
                DEPLOYED => FAILED,
                _ => DEPLOYED,
            };
            remove(&beside(path, other));
        }
        Err(error) => {
            tracing::warn!(
                file = %file.display(), %error, answer = first,
                "cannot write the answer to a dropped file: make the drop folder writable"
            );
        }
    }
}

/// Writes `text` as the file at `path`, whole or not at all. Blocks.
pub(super) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut name = OsString::from(TEMP);
    name.push(hash(path.file_name().unwrap_or_default()));
    let temp = path.with_file_name(name);
    // Others may write where this is: never through a link or into a file of theirs.
    remove(&temp);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&temp)
        .and_then(|mut fresh| {
            fresh.set_permissions(origin().permissions())?; // whatever mask a plugin has set
            fresh.write_all(text.as_bytes())
        })
        .and_then(|()| fs::rename(&temp, path));
    if written.is_err() {
        let _ = fs::remove_file(&temp); // the first error is the one to tell
    }
    written
}

/// Takes the answers about the file at `path` away: they are about other bytes.
pub(super) fn clear(path: &Path) {
    remove(&beside(path, DEPLOYED));
    remove(&beside(path, FAILED));
}

/// Deletes the answer file at `file` whose subject is gone, if it is an answer.
pub(super) fn clear_orphan(file: &Path) {
    let answer = fs::read_to_string(file).is_ok_and(|text| {
        text.lines()
            .nth(1)
            .is_some_and(|l| l.starts_with("sha256 "))
    });
    if answer {
        remove(file);
    }
}

pub(super) fn remove(file: &Path) {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(file = %file.display(), %error, "cannot delete an outdated answer: make the drop folder writable");
        }
        _ => {}
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = shortened(path.file_name().unwrap_or_default()).into_owned();
    name.push(suffix);
    path.with_file_name(name)
}

/// The name that answers are named for: that of the file, or where it is too long for that its
/// beginning and a hash of it.
pub(super) fn shortened(name: &OsStr) -> Cow<'_, OsStr> {
    let longest = LONGEST - DEPLOYED.len();
    if name.len() <= longest {
        return Cow::Borrowed(name);
    }
    let end = format!("~{}.so", hash(name));
    let bytes = name.as_bytes();
    let mut length = longest - end.len();
    // Not in the middle of a character.
    while length > 0 && bytes[length] & 0xc0 == 0x80 {
        length -= 1;
    }
    let mut short = OsStr::from_bytes(&bytes[..length]).to_owned();
    short.push(end);
    Cow::Owned(short)
}

/// The first bytes of a name's SHA-256, in hexadecimal.
fn hash(name: &OsStr) -> String {
    let mut text = Sha256::of(name.as_bytes()).to_string();
    text.truncate(16);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_of_a_name_that_is_too_long_has_a_shorter_one_of_its_own() {
        for part in ["x", "\u{fc}", "\u{1f980}"] {
            let long = |end: &str| {
                let number = (LONGEST - end.len()) / part.len();
                OsString::from(part.repeat(number) + end)
            };
            let names = [long("1.so"), long("2.so")];
            let answers = names.each_ref().map(|name| {
                let answer = beside(Path::new("/plugins").join(name).as_path(), DEPLOYED);
                let answer = answer.file_name().unwrap_or_default().to_owned();
                assert!(answer.len() <= LONGEST && answer.to_str().is_some());
                assert_eq!(subject(&answer), Some(&*shortened(name)));
                answer
            });
            assert_ne!(answers[0], answers[1]);
        }
        let name = OsStr::new("a.so");
        assert_eq!(shortened(name), name);
    }
}
