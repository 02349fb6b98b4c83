//! Files whose appearance is a command: `touch shop.rollback` in the drop folder.
//!
//! The file is taken away when the command is taken, and how it ended lies in `shop.rollback.done`
//! or `shop.rollback.failed` afterwards. Its first line, if it has one, is the reason for the
//! history, and its owner is who asked.

use std::{
    ffi::OsStr,
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use handover_api::AppName;

use super::answer;
use crate::ownership;

/// How much of the file is read for its reason, in bytes.
const REASON: u64 = 1024;

/// What can be commanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// What `handover reload APP` does.
    Reload,
    /// What `handover rollback APP` does.
    Rollback,
    /// What `handover promote APP` does.
    Promote,
    /// What `handover abort APP` does.
    Abort,
    /// To be told when what was replaced has ended, as `handover drain APP --wait` does.
    Drain,
    /// What `handover stop APP` does.
    Stop,
    /// What `handover start APP` does.
    Start,
    /// What `handover restart APP` does.
    Restart,
}

const VERBS: [(&str, Verb); 8] = [
    ("reload", Verb::Reload),
    ("rollback", Verb::Rollback),
    ("promote", Verb::Promote),
    ("abort", Verb::Abort),
    ("drain", Verb::Drain),
    ("stop", Verb::Stop),
    ("start", Verb::Start),
    ("restart", Verb::Restart),
];

/// A command that somebody gave by a file.
#[derive(Clone, Debug)]
pub(crate) struct Trigger {
    /// What it is about.
    pub(crate) app: AppName,
    /// What is to be done.
    pub(crate) verb: Verb,
    /// Who owned the file.
    pub(crate) by: String,
    /// The first line of the file.
    pub(crate) message: Option<String>,
}

/// A trigger's file.
#[derive(Debug)]
pub(super) struct TriggerFile {
    pub(super) path: PathBuf,
    pub(super) app: AppName,
    pub(super) verb: Verb,
    facts: Metadata,
}

/// Returns the app and the verb that a file of this name stands for.
fn parse(name: &OsStr) -> Option<(AppName, Verb)> {
    let (app, verb) = name.to_str()?.rsplit_once('.')?;
    let (_, verb) = VERBS.iter().find(|(name, _)| *name == verb)?;
    Some((app.parse().ok()?, *verb))
}

/// Returns whether the file of this name is a trigger.
pub(super) fn is_one(name: &OsStr) -> bool {
    parse(name).is_some()
}

/// Returns whether the file of this name is the answer to a trigger.
pub(super) fn is_answer(name: &OsStr) -> bool {
    let name = name.to_str().unwrap_or_default();
    let subject = name
        .strip_suffix(DONE)
        .or_else(|| name.strip_suffix(FAILED));
    subject.is_some_and(|subject| parse(OsStr::new(subject)).is_some())
}

const DONE: &str = ".done";
const FAILED: &str = ".failed";

impl TriggerFile {
    /// Returns the trigger that the file at `path` is, in the folder of `of` or in that of all;
    /// none when it is no file, or none of such a name.
    pub(super) fn at(path: &Path, facts: &Metadata, of: Option<&AppName>) -> Option<Self> {
        let (app, verb) = parse(path.file_name()?)?;
        let is_here = of.is_none_or(|of| *of == app);
        (is_here && facts.is_file()).then(|| Self {
            path: path.to_owned(),
            app,
            verb,
            facts: facts.clone(),
        })
    }

    /// Takes the file away, and returns what it asks for. Blocks.
    ///
    /// # Errors
    /// When it cannot be taken away: it would ask again for ever.
    pub(super) fn take(self) -> io::Result<Trigger> {
        let mut text = Vec::new();
        // A command without its reason is better than none.
        let _ = File::open(&self.path).and_then(|file| file.take(REASON).read_to_end(&mut text));
        fs::remove_file(&self.path)?;
        for suffix in [DONE, FAILED] {
            answer::remove(&answer_file(&self.path, suffix));
        }
        let text = String::from_utf8_lossy(&text);
        let reason = text.lines().next().unwrap_or_default().trim();
        Ok(Trigger {
            app: self.app,
            verb: self.verb,
            by: ownership::user_name(self.facts.uid()),
            message: (!reason.is_empty()).then(|| reason.to_owned()),
        })
    }
}

/// Writes beside where the trigger lay how it ended. Blocks.
pub(super) fn answer(path: &Path, ended: &Result<String, String>) {
    let (suffix, text) = match ended {
        Ok(text) => (DONE, text),
        Err(text) => (FAILED, text),
    };
    let file = answer_file(path, suffix);
    if let Err(error) = answer::replace(&file, &format!("{}\n", text.trim())) {
        tracing::warn!(
            file = %file.display(), %error, answer = text,
            "cannot write the answer to a command in the drop folder: make the folder writable"
        );
    }
}

fn answer_file(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_an_app_and_a_verb() {
        let of = |name: &str| parse(OsStr::new(name)).map(|(app, verb)| (app.to_string(), verb));
        assert_eq!(
            of("shop.rollback"),
            Some(("shop".to_owned(), Verb::Rollback))
        );
        assert_eq!(of("shop.stop"), Some(("shop".to_owned(), Verb::Stop)));
        for other in [
            "shop.so",
            "shop.toml",
            ".stop",
            "stop",
            "shop.rollback.done",
            "a b.stop",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
        assert!(is_answer(OsStr::new("shop.rollback.done")));
        assert!(is_answer(OsStr::new("shop.stop.failed")));
        assert!(!is_answer(OsStr::new("shop.so.failed")));
    }
}
