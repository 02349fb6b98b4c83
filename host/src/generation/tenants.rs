//! Which tenants have something in flight on a generation, so that each can stay on it until it has
//! not.
//!
//! Tenants are counted in slots, by the hash of their names: that takes no lock and the same memory
//! for a million of them. Two that share a slot wait for each other, and nothing else comes of it.
//!
//! While a generation is live, everybody comes in. Once it was replaced only those do who have
//! something there still; the first request of a tenant that has nothing closes its slot for good,
//! and goes to the next generation. So nobody comes back.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, LazyLock, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

/// How many slots there are.
const SLOTS: usize = 1 << 18;

/// The slot is closed: its tenants have moved.
const MOVED: u32 = 1 << 31;

/// The tenants of one generation.
#[derive(Default)]
pub struct Tenants {
    /// None of an app without tenants. In each how many are in flight, and whether it is closed.
    slots: OnceLock<Box<[AtomicU32]>>,
    /// How many are in flight in all.
    in_flight: AtomicU64,
    /// Whether all slots are closed.
    released: AtomicBool,
}

/// Something of a tenant is in flight. Dropping it counts it out.
#[derive(Debug)]
pub struct TenantPlace {
    tenants: Arc<Tenants>,
    slot: usize,
    name: Box<str>,
}

impl fmt::Debug for Tenants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tenants")
            .field("in_flight", &self.in_flight)
            .field("released", &self.released)
            .finish_non_exhaustive()
    }
}

impl Tenants {
    /// Begins to count tenants, if nobody has.
    pub fn begin(&self) {
        self.slots
            .get_or_init(|| (0..SLOTS).map(|_| AtomicU32::new(0)).collect());
    }

    fn slot(&self, name: &str) -> Option<(usize, &AtomicU32)> {
        static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let slots = self.slots.get()?;
        let slot = HASHER.hash_one(name) as usize % slots.len();
        Some((slot, &slots[slot]))
    }

    fn place(self: &Arc<Self>, slot: usize, name: &str) -> TenantPlace {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        TenantPlace {
            tenants: Arc::clone(self),
            slot,
            name: name.into(),
        }
    }

    /// Counts something of the tenant `name` in, as long as the generation is live. None where the
    /// tenant has moved on, or where tenants are not counted.
    pub fn enter(self: &Arc<Self>, name: &str) -> Option<TenantPlace> {
        let (slot, count) = self.slot(name)?;
        let more = |count: u32| (count & MOVED == 0).then_some(count + 1);
        count
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, more)
            .ok()?;
        Some(self.place(slot, name))
    }

    /// Counts a request of the tenant `name` in if it has something here still. None where it has
    /// not: then it goes to the next generation, from now on.
    pub fn stay(self: &Arc<Self>, name: &str) -> Option<TenantPlace> {
        let (slot, count) = self.slot(name)?;
        let is_released = self.released.load(Ordering::SeqCst);
        let next = |count: u32| match count {
            closed if closed & MOVED != 0 => None,
            busy if busy > 0 && !is_released => Some(busy + 1),
            idle => Some(idle | MOVED),
        };
        match count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next) {
            Ok(before) if before > 0 && !is_released => Some(self.place(slot, name)),
            _ => None,
        }
    }

    /// Has the tenant `name` move with its next request, whatever it has here. Returns whether it
    /// had something here.
    pub fn release(&self, name: &str) -> bool {
        let Some((_, count)) = self.slot(name) else {
            return false;
        };
        let before = count.fetch_or(MOVED, Ordering::SeqCst);
        before & MOVED == 0 && before > 0
    }

    /// The same for all of them.
    pub fn release_all(&self) {
        self.released.store(true, Ordering::SeqCst);
    }

    /// Returns whether all were released.
    pub fn is_released(&self) -> bool {
        self.released.load(Ordering::SeqCst)
    }

    /// Returns how much of tenants is in flight.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::SeqCst)
    }
}

impl TenantPlace {
    /// The name of the tenant.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for TenantPlace {
    fn drop(&mut self) {
        if let Some(slots) = self.tenants.slots.get() {
            slots[self.slot].fetch_sub(1, Ordering::SeqCst);
        }
        self.tenants.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use super::*;

    fn tenants() -> Arc<Tenants> {
        let tenants = Arc::new(Tenants::default());
        tenants.begin();
        tenants
    }

    #[test]
    fn who_has_something_stays_and_who_has_not_never_comes_back() {
        let old = tenants();
        let job = old.enter("acme").unwrap();
        let request = old.stay("acme").unwrap();
        assert_eq!(request.name(), "acme");
        assert!(old.stay("other").is_none());
        // One who was on its way when the generation was replaced.
        assert!(old.enter("other").is_none());
        drop(job);
        let next = old.stay("acme").unwrap();
        drop((request, next));
        assert_eq!(old.in_flight(), 0);
        assert!(old.stay("acme").is_none() && old.enter("acme").is_none());
    }

    #[test]
    fn who_is_released_moves_though_it_has_something() {
        let old = tenants();
        let (one, other) = (old.enter("one").unwrap(), old.enter("other").unwrap());
        assert!(old.release("one") && !old.release("one") && !old.release("nobody"));
        assert!(old.stay("one").is_none());
        let stays = old.stay("other").unwrap();
        old.release_all();
        assert!(old.stay("other").is_none());
        assert_eq!(old.in_flight(), 3);
        drop((one, other, stays));
        assert_eq!(old.in_flight(), 0);
    }

    #[test]
    fn an_app_without_tenants_counts_none() {
        let none = Arc::new(Tenants::default());
        assert!(none.enter("acme").is_none() && none.stay("acme").is_none());
        assert_eq!(none.in_flight(), 0);
    }

    #[test]
    fn threads_that_race_move_each_tenant_once() {
        let old = tenants();
        let names: Vec<String> = (0..200).map(|number| number.to_string()).collect();
        let working: Vec<_> = names.iter().map(|name| old.enter(name).unwrap()).collect();
        let moved: Vec<AtomicUsize> = names.iter().map(|_| AtomicUsize::new(0)).collect();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        for (name, moved) in names.iter().zip(&moved) {
                            match old.stay(name) {
                                Some(place) => {
                                    let has_moved = moved.load(Ordering::SeqCst) > 0;
                                    assert!(!has_moved, "{name} came back");
                                    drop(place);
                                }
                                None => drop(moved.fetch_add(1, Ordering::SeqCst)),
                            }
                        }
                    }
                });
            }
            scope.spawn(|| working.into_iter().for_each(drop));
        });
        assert_eq!(old.in_flight(), 0);
    }
}
