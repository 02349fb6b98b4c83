//! What libraries changed for the whole process, kept until somebody who can tell people of it
//! takes it.
//!
//! Written once for each library and kind of change. A library is noted by its account; [`known`]
//! says which app's generation that is.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use super::{AccountId, known, surroundings};
use handover_api::{AppName, GenerationId};

/// Something of the process that is everybody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    /// Its working directory, which was refused.
    WorkingDirectory,
    /// Nothing, but it opened a file by a relative path.
    RelativePath,
    /// Its mask for the modes of new files.
    FileMask,
    /// Nothing, though it called `exit`, as it was to end itself.
    Exit,
}

/// A generation changed something that is everybody's, for the first time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    /// The app.
    pub app: AppName,
    /// The generation.
    pub generation: GenerationId,
    /// What it changed.
    pub changed: Changed,
    /// How, for people: ``set `PATH` ``.
    pub how: String,
}

struct Notes {
    /// What was noted of libraries that are mapped, taken or not.
    noted: Vec<(AccountId, Changed)>,
    /// What nobody took yet, of libraries that are mapped.
    waiting: Vec<(AccountId, Changed, String)>,
    /// What nobody took yet, of libraries that are gone.
    left: Vec<Note>,
}

static NOTES: Mutex<Notes> = Mutex::new(Notes {
    noted: Vec::new(),
    waiting: Vec::new(),
    left: Vec::new(),
});

/// How often a change is tried to be noted while others note theirs.
const TRIES: usize = 10_000;

fn lock() -> MutexGuard<'static, Notes> {
    NOTES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes what was noted since it was taken last. What a library did before it was said whose it is
/// waits for that.
pub(crate) fn take_notes() -> Vec<Note> {
    let mut notes = lock();
    let mut taken = std::mem::take(&mut notes.left);
    notes.waiting.retain(|(account, changed, how)| {
        let note = told(*account, *changed, how);
        let is_told = note.is_some();
        taken.extend(note);
        !is_told
    });
    drop(notes);
    // To ask for it one has to set it, and set it back.
    taken.retain(|note| note.changed != Changed::FileMask || surroundings::file_mask_is_changed());
    taken
}

/// The note that the library of `account` changed something; none while nobody has said whose it
/// is.
fn told(account: AccountId, changed: Changed, how: &str) -> Option<Note> {
    known::of(account).map(|known| Note {
        app: known.app,
        generation: known.generation,
        changed,
        how: how.to_owned(),
    })
}

/// Notes that the library of `account` changed something. Not in a forked child.
pub(super) fn note(account: AccountId, changed: Changed, how: impl FnOnce() -> String) {
    // Never waits for the thread that it may have interrupted.
    let notes = (0..TRIES).find_map(|_| match NOTES.try_lock() {
        Ok(notes) => Some(notes),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => {
            std::thread::yield_now();
            None
        }
    });
    let Some(mut notes) = notes else {
        return; // the next change of it is noted
    };
    if !notes.noted.contains(&(account, changed)) {
        notes.noted.push((account, changed));
        notes.waiting.push((account, changed, how()));
    }
}

/// Forgets an account, whose library is unmapped, before [`known::forget`]. What it did can still
/// be told.
pub(super) fn forget(account: AccountId) {
    let mut notes = lock();
    notes.noted.retain(|(noted, _)| *noted != account);
    let mut left = Vec::new();
    notes.waiting.retain(|(whose, changed, how)| {
        let is_its = *whose == account;
        if is_its {
            left.extend(told(account, *changed, how));
        }
        !is_its
    });
    notes.left.extend(left);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::{known::Known, *};

    #[test]
    fn each_kind_of_change_is_told_once_with_its_generation() {
        let account = AccountId::MAX - 7;
        let app: AppName = "noted".parse().unwrap();
        let of_app = |notes: Vec<Note>| -> Vec<_> {
            let ours = notes.into_iter().filter(|note| note.app == app);
            ours.map(|note| (note.generation.0, note.changed, note.how))
                .collect()
        };
        note(account, Changed::RelativePath, || "set `A`".into());
        assert!(of_app(take_notes()).is_empty(), "nobody knows who it is");
        let known = Known {
            app: app.clone(),
            generation: GenerationId(3),
            version: "1.0.0".to_owned(),
        };
        known::add(account, known);
        note(account, Changed::RelativePath, || "set `B`".into());
        note(account, Changed::WorkingDirectory, || "went to /".into());
        assert_eq!(
            of_app(take_notes()),
            [
                (3, Changed::RelativePath, "set `A`".to_owned()),
                (3, Changed::WorkingDirectory, "went to /".to_owned()),
            ]
        );
        note(account, Changed::WorkingDirectory, || "went to /tmp".into());
        assert!(of_app(take_notes()).is_empty());
        forget(account);
        known::forget(account);
    }
}
