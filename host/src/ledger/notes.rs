//! What libraries changed for the whole process, kept until somebody who can tell people of it takes it.
//!
//! Written once for each library and kind of change. A library is noted by its account; whoever starts it says which app's generation that is.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use super::{AccountId, surroundings};
use crate::names::{AppName, GenerationId};

/// Something of the process that is everybody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Its environment variables.
    Environment,
    /// Its working directory.
    WorkingDirectory,
    /// Its mask for the modes of new files.
    FileMask,
}

/// A generation changed something that is everybody's, for the first time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
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
    /// Who is who, as long as its library is mapped.
    known: Vec<(AccountId, AppName, GenerationId)>,
    /// What was noted of libraries that are mapped, taken or not.
    noted: Vec<(AccountId, Changed)>,
    /// What nobody took yet, of libraries that are not known yet.
    unknown: Vec<(AccountId, Changed, String)>,
    waiting: Vec<Note>,
}

static NOTES: Mutex<Notes> = Mutex::new(Notes {
    known: Vec::new(),
    noted: Vec::new(),
    unknown: Vec::new(),
    waiting: Vec::new(),
});

/// How often a change is tried to be noted while others note theirs.
const TRIES: usize = 10_000;

fn lock() -> MutexGuard<'static, Notes> {
    NOTES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says whose the account is. Before code of it runs that is to be told of.
pub fn known_as(account: AccountId, app: &AppName, generation: GenerationId) {
    let mut notes = lock();
    notes.known.push((account, app.clone(), generation));
    let unknown = std::mem::take(&mut notes.unknown);
    for (whose, changed, how) in unknown {
        if whose == account {
            notes.wait(account, changed, how);
        } else {
            notes.unknown.push((whose, changed, how));
        }
    }
}

/// Takes what was noted since it was taken last.
pub fn take_notes() -> Vec<Note> {
    let mut taken = std::mem::take(&mut lock().waiting);
    // To ask for it one has to set it, and set it back.
    taken.retain(|note| note.changed != Changed::FileMask || surroundings::file_mask_is_changed());
    taken
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
        notes.wait(account, changed, how());
    }
}

/// Forgets an account, whose library is unmapped. What it did can still be told.
pub(super) fn forget(account: AccountId) {
    let mut notes = lock();
    notes.known.retain(|(known, ..)| *known != account);
    notes.noted.retain(|(noted, _)| *noted != account);
    notes.unknown.retain(|(unknown, ..)| *unknown != account);
}

impl Notes {
    fn wait(&mut self, account: AccountId, changed: Changed, how: String) {
        match self.known.iter().find(|(known, ..)| *known == account) {
            Some((_, app, generation)) => self.waiting.push(Note {
                app: app.clone(),
                generation: *generation,
                changed,
                how,
            }),
            None => self.unknown.push((account, changed, how)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn each_kind_of_change_is_told_once_with_its_generation() {
        let account = AccountId::MAX - 7;
        let app: AppName = "noted".parse().unwrap();
        let of_app = |notes: Vec<Note>| -> Vec<_> {
            let ours = notes.into_iter().filter(|note| note.app == app);
            ours.map(|note| (note.generation.0, note.changed, note.how))
                .collect()
        };
        note(account, Changed::Environment, || "set `A`".into());
        assert!(of_app(take_notes()).is_empty(), "nobody knows who it is");
        known_as(account, &app, GenerationId(3));
        note(account, Changed::Environment, || "set `B`".into());
        note(account, Changed::WorkingDirectory, || "went to /".into());
        assert_eq!(
            of_app(take_notes()),
            [
                (3, Changed::Environment, "set `A`".to_owned()),
                (3, Changed::WorkingDirectory, "went to /".to_owned()),
            ]
        );
        note(account, Changed::WorkingDirectory, || "went to /tmp".into());
        assert!(of_app(take_notes()).is_empty());
        forget(account);
    }
}
