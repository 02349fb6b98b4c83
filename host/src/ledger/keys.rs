//! The thread-specific keys that libraries created. Each copy of std takes one, and a process has
//! 1,024.

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use libc::pthread_key_t;

use super::{AccountId, interpose};

/// `PTHREAD_KEYS_MAX` of glibc, on every architecture.
pub(super) const MAX: usize = 1024;

struct Key {
    /// The account of the library that created it; zero for every key that is no plugin's.
    owner: AtomicU64,
    /// The destructor, zero for none.
    destructor: AtomicUsize,
    /// Where the library keeps the key's number: tells whose key it is when it has no destructor.
    place: AtomicUsize,
}

static KEYS: [Key; MAX] = [const {
    Key {
        owner: AtomicU64::new(0),
        destructor: AtomicUsize::new(0),
        place: AtomicUsize::new(0),
    }
}; MAX];

/// Enters a key that was just created. `owner` is zero when it is no plugin's.
pub(super) fn created(key: pthread_key_t, owner: AccountId, destructor: usize, place: usize) {
    if let Some(slot) = KEYS.get(key as usize) {
        slot.destructor.store(destructor, Ordering::Relaxed);
        slot.place.store(place, Ordering::Relaxed);
        slot.owner.store(owner, Ordering::Release);
    }
}

/// Strikes a key out: it is about to be deleted, and its number can be handed out again.
pub(super) fn deleted(key: pthread_key_t) {
    created(key, 0, 0, 0);
}

/// The account that `key` belongs to, if it is a plugin's.
pub(super) fn owner(key: pthread_key_t) -> Option<AccountId> {
    let owner = KEYS.get(key as usize)?.owner.load(Ordering::Acquire);
    (owner != 0).then_some(owner)
}

/// The destructor of `key`, zero for none.
pub(super) fn destructor(key: pthread_key_t) -> usize {
    KEYS.get(key as usize)
        .map_or(0, |slot| slot.destructor.load(Ordering::Relaxed))
}

/// The keys of `account`.
pub(super) fn of(account: AccountId) -> impl Iterator<Item = pthread_key_t> {
    (0..MAX as pthread_key_t).filter(move |key| owner(*key) == Some(account))
}

/// The library of `account` is mapped at `ranges` now: of the keys that the loading thread made
/// meanwhile, those that are not the library's are struck from its account, and those that other
/// threads made for it (its own, started by a constructor) are entered.
pub(super) fn sort_out(account: AccountId, ranges: &[Range<usize>]) {
    for slot in &KEYS {
        let destructor = slot.destructor.load(Ordering::Relaxed);
        let place = slot.place.load(Ordering::Relaxed);
        let is_its = ranges
            .iter()
            .any(|range| range.contains(&destructor) || range.contains(&place));
        let (from, to) = if is_its { (0, account) } else { (account, 0) };
        let _ = slot
            .owner
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// Deletes all keys of `account`; gives how many. Its library is unmapped, and no thread has a
/// value for any of them.
pub(super) fn delete_all(account: AccountId) -> usize {
    of(account)
        .inspect(|key| {
            deleted(*key);
            // SAFETY: the key was created and not deleted since: `pthread_key_delete` strikes it
            // out of this table.
            unsafe { interpose::real_key_delete(*key) };
        })
        .count()
}
