//! Whose address is this? The table of the address ranges of all loaded plugins.
//!
//! It is read on every registration that any thread of the process makes, from the first instruction on and in forked
//! children, so reading takes no lock and allocates nothing.

use std::{
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering, fence},
    },
};

use super::AccountId;

/// How many libraries can be mapped at once, retained ones included. A generation costs one slot.
const CAPACITY: usize = 1024;

struct Slot {
    /// Zero while the slot is free. Written last when claimed and first when given back.
    owner: AtomicU64,
    start: AtomicUsize,
    end: AtomicUsize,
}

static SLOTS: [Slot; CAPACITY] = [const {
    Slot {
        owner: AtomicU64::new(0),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
    }
}; CAPACITY];

/// No slot at or above this index was ever claimed.
static HIGH: AtomicUsize = AtomicUsize::new(0);

/// Serializes claims; readers never take it.
static CLAIM: Mutex<()> = Mutex::new(());

/// The account whose library contains `address`.
///
/// A library's own code only asks about its own addresses while it is mapped, and its slot does not change as long as it
/// is, so an answer about a slot that changes under the reader is never an answer that somebody waits for.
pub(super) fn lookup(address: usize) -> Option<AccountId> {
    let high = HIGH.load(Ordering::Acquire).min(CAPACITY);
    SLOTS[..high].iter().find_map(|slot| {
        let owner = slot.owner.load(Ordering::Acquire);
        if owner == 0 {
            return None;
        }
        let inside = (slot.start.load(Ordering::Relaxed)..slot.end.load(Ordering::Relaxed))
            .contains(&address);
        fence(Ordering::Acquire);
        (inside && slot.owner.load(Ordering::Relaxed) == owner).then_some(owner)
    })
}

/// Enters `range` for `owner`. `false` when the table is full.
pub(super) fn claim(owner: AccountId, range: &Range<usize>) -> bool {
    let _claim = CLAIM.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(index) = SLOTS
        .iter()
        .position(|slot| slot.owner.load(Ordering::Relaxed) == 0)
    else {
        return false;
    };
    let slot = &SLOTS[index];
    fence(Ordering::Release);
    slot.start.store(range.start, Ordering::Relaxed);
    slot.end.store(range.end, Ordering::Relaxed);
    slot.owner.store(owner, Ordering::Release);
    HIGH.fetch_max(index + 1, Ordering::Release);
    true
}

/// Whether `owner` has a range.
pub(super) fn is_known(owner: AccountId) -> bool {
    SLOTS[..HIGH.load(Ordering::Acquire).min(CAPACITY)]
        .iter()
        .any(|slot| slot.owner.load(Ordering::Acquire) == owner)
}

/// Gives the slots of `owner` back. Its library is unmapped, or was never a plugin.
pub(super) fn give_back(owner: AccountId) {
    let _claim = CLAIM.lock().unwrap_or_else(PoisonError::into_inner);
    for slot in &SLOTS {
        if slot.owner.load(Ordering::Relaxed) == owner {
            slot.owner.store(0, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_belongs_to_the_range_that_contains_it_until_it_is_given_back() {
        let owner = AccountId::MAX;
        assert!(claim(owner, &(0x1000..0x2000)));
        assert_eq!(lookup(0x0fff), None);
        assert_eq!(lookup(0x1000), Some(owner));
        assert_eq!(lookup(0x1fff), Some(owner));
        assert_eq!(lookup(0x2000), None);
        give_back(owner);
        assert_eq!(lookup(0x1000), None);
    }
}
