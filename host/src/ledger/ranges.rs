//! Whose address is this? The table of the address ranges of all loaded plugins.
//!
//! It is read on every registration that any thread of the process makes, from the first
//! instruction on and in forked children, so reading takes no lock and allocates nothing. It is
//! sorted by address, so that a library which is retained costs the others nothing. There are two
//! copies: one is read while the other is written, so that a signal handler which interrupts the
//! writer reads a whole one as well.

use std::{
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering, fence},
    },
};

use super::AccountId;

/// How many libraries can be mapped at once, retained ones included. A generation costs one entry.
const CAPACITY: usize = 1024;

struct Entry {
    owner: AtomicU64,
    start: AtomicUsize,
    end: AtomicUsize,
}

struct Table {
    length: AtomicUsize,
    /// Up to `length`, by their address; they do not overlap.
    entries: [Entry; CAPACITY],
}

static TABLES: [Table; 2] = [const {
    Table {
        length: AtomicUsize::new(0),
        entries: [const {
            Entry {
                owner: AtomicU64::new(0),
                start: AtomicUsize::new(0),
                end: AtomicUsize::new(0),
            }
        }; CAPACITY],
    }
}; 2];

/// Counts the versions. The last bit is the table that holds the current one.
static VERSION: AtomicUsize = AtomicUsize::new(0);

/// Serializes changes; readers never take it.
static CHANGE: Mutex<()> = Mutex::new(());

impl Table {
    fn entry(&self, index: usize) -> (AccountId, Range<usize>) {
        let entry = &self.entries[index];
        let range = entry.start.load(Ordering::Relaxed)..entry.end.load(Ordering::Relaxed);
        (entry.owner.load(Ordering::Relaxed), range)
    }

    fn length(&self) -> usize {
        self.length.load(Ordering::Relaxed).min(CAPACITY)
    }

    fn find(&self, address: usize) -> Option<AccountId> {
        let (mut low, mut high) = (0, self.length());
        while low < high {
            let middle = usize::midpoint(low, high);
            let (owner, range) = self.entry(middle);
            if address < range.start {
                high = middle;
            } else if address >= range.end {
                low = middle + 1;
            } else {
                return Some(owner);
            }
        }
        None
    }

    fn all(&self) -> impl Iterator<Item = (AccountId, Range<usize>)> {
        (0..self.length()).map(|index| self.entry(index))
    }
}

/// Reads the current table, again when it was written meanwhile.
fn read<R>(look: impl Fn(&Table) -> R) -> R {
    loop {
        let version = VERSION.load(Ordering::Acquire);
        let answer = look(&TABLES[version & 1]);
        fence(Ordering::Acquire);
        // The table of this version is written for the one after the next, which begins when the
        // next one is there.
        if VERSION.load(Ordering::Relaxed) == version {
            return answer;
        }
    }
}

/// Makes `entries`, sorted by address, the current version. `false` when they are too many.
fn write(entries: impl Iterator<Item = (AccountId, Range<usize>)>) -> bool {
    let version = VERSION.load(Ordering::Relaxed);
    let table = &TABLES[(version + 1) & 1];
    // Who reads anything that is written from here on sees that the version was changed before.
    fence(Ordering::Release);
    let mut length = 0;
    for (owner, range) in entries {
        let Some(entry) = table.entries.get(length) else {
            return false;
        };
        entry.owner.store(owner, Ordering::Relaxed);
        entry.start.store(range.start, Ordering::Relaxed);
        entry.end.store(range.end, Ordering::Relaxed);
        length += 1;
    }
    table.length.store(length, Ordering::Relaxed);
    VERSION.store(version + 1, Ordering::Release);
    true
}

/// The account whose library contains `address`.
///
/// A library's own code only asks about its own addresses while it is mapped, and its entry does
/// not change as long as it is, so an answer about one that changes under the reader is never an
/// answer that somebody waits for.
pub(super) fn lookup(address: usize) -> Option<AccountId> {
    read(|table| table.find(address))
}

/// Enters `range` for `owner`. `false` when the table is full.
pub(super) fn claim(owner: AccountId, range: &Range<usize>) -> bool {
    let _change = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
    let current = &TABLES[VERSION.load(Ordering::Relaxed) & 1];
    let before = current
        .all()
        .take_while(|(_, other)| other.start < range.start);
    let after = current
        .all()
        .skip_while(|(_, other)| other.start < range.start);
    write(before.chain([(owner, range.clone())]).chain(after))
}

/// Whether `owner` has a range.
pub(super) fn is_known(owner: AccountId) -> bool {
    read(|table| table.all().any(|(other, _)| other == owner))
}

/// Gives the ranges of `owner` back. Its library is unmapped, or was never a plugin.
pub(super) fn give_back(owner: AccountId) {
    let _change = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
    let current = &TABLES[VERSION.load(Ordering::Relaxed) & 1];
    write(current.all().filter(|(other, _)| *other != owner));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

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

    #[test]
    fn what_stays_is_found_while_others_come_and_go() {
        const STAYS: AccountId = AccountId::MAX - 1;
        const COMES: AccountId = AccountId::MAX - 100;
        let at = |number: usize| 0x10_0000 + number * 0x1000..0x10_0800 + number * 0x1000;
        assert!(claim(STAYS, &at(50)));
        std::thread::scope(|scope| {
            let changing = scope.spawn(|| {
                for round in 0..200 {
                    for number in (0..40).chain(60..100) {
                        assert!(claim(COMES + round % 2, &at(number)));
                    }
                    give_back(COMES + round % 2);
                }
            });
            while !changing.is_finished() {
                assert_eq!(lookup(at(50).start), Some(STAYS));
                assert_eq!(lookup(at(50).end), None);
                let other = lookup(at(70).start);
                assert!(other.is_none_or(|other| other == COMES || other == COMES + 1));
            }
            changing.join().unwrap();
        });
        assert!(is_known(STAYS));
        give_back(STAYS);
        assert!(!is_known(STAYS));
    }

    #[test]
    fn a_table_that_is_full_takes_no_more_and_stays_what_it_was() {
        // Apart from the others, which change the same table.
        let entries = (1..=CAPACITY + 1).map(|number| (number as AccountId, number..number + 1));
        let _change = CHANGE.lock().unwrap();
        let version = VERSION.load(Ordering::Relaxed);
        assert!(!write(entries));
        assert_eq!(VERSION.load(Ordering::Relaxed), version);
    }
}
