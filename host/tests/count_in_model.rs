//! The race between requests that count in and a generation that is retired, in every order that
//! the memory model allows.
//!
//! What runs is `generation::in_flight` itself, compiled a second time, with loom's atomics in
//! place of std's, and an `Arc` whose count is made of one as std's is. What the library is in
//! memory is a cell: a request in flight reads it, unmapping writes it. loom fails on a read and a
//! write of which neither happens before the other. Leaving out one of the fences there makes a
//! test here fail.

use loom::{cell::UnsafeCell, thread};

use self::{
    in_flight::{Gate, InFlight, Shards},
    shared::Shared,
    sync::Arc,
};

#[path = "../src/generation/in_flight.rs"]
#[allow(unreachable_pub, reason = "it is part of another crate")]
mod in_flight;

/// In place of `generation::sync`.
mod sync {
    use std::{ops::Deref, ptr::NonNull};

    use loom::sync::atomic::AtomicUsize;
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

    /// What the update and the processor make of it, where that needs an instruction of its own.
    pub(super) fn fence_after_update() {
        fence(Ordering::SeqCst);
    }

    /// An `Arc` as std has it, with the same orderings. The one of loom knows its count without
    /// reading it as others would.
    #[derive(Debug)]
    pub(super) struct Arc<T>(NonNull<Counted<T>>);

    #[derive(Debug)]
    struct Counted<T> {
        count: AtomicUsize,
        value: T,
    }

    // SAFETY: as std's: it gives shared references to the value, and drops it on whichever thread
    // is last.
    unsafe impl<T: Send + Sync> Send for Arc<T> {}
    // SAFETY: as above.
    unsafe impl<T: Send + Sync> Sync for Arc<T> {}

    impl<T> Arc<T> {
        pub(super) fn new(value: T) -> Self {
            let count = AtomicUsize::new(1);
            Self(NonNull::from(Box::leak(Box::new(Counted { count, value }))))
        }

        pub(super) fn strong_count(this: &Self) -> usize {
            this.counted().count.load(Ordering::Relaxed)
        }

        fn counted(&self) -> &Counted<T> {
            // SAFETY: it is freed when the last `Arc` is dropped, and this is one.
            unsafe { self.0.as_ref() }
        }
    }

    impl<T> Deref for Arc<T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.counted().value
        }
    }

    impl<T> Clone for Arc<T> {
        fn clone(&self) -> Self {
            self.counted().count.fetch_add(1, Ordering::Relaxed);
            Self(self.0)
        }
    }

    impl<T> Drop for Arc<T> {
        fn drop(&mut self) {
            if self.counted().count.fetch_sub(1, Ordering::Release) == 1 {
                fence(Ordering::Acquire);
                // SAFETY: made by `new`, and nobody else has it any more.
                drop(unsafe { Box::from_raw(self.0.as_ptr()) });
            }
        }
    }
}

/// In place of `generation::worker`: as few shards as there can be of both kinds, one's own and
/// another's.
mod worker {
    use std::cell::Cell;

    loom::thread_local! {
        static NUMBER: Cell<usize> = Cell::new(0);
    }

    pub(super) fn shards() -> usize {
        2
    }

    pub(super) fn number() -> usize {
        NUMBER.with(Cell::get)
    }

    pub(super) fn set(number: usize) {
        NUMBER.with(|own| own.set(number));
    }
}

/// In place of `generation::core`.
mod shared {
    use super::{Gate, UnsafeCell};

    #[derive(Debug)]
    pub(super) struct Shared {
        pub(super) gate: Gate,
        pub(super) library: UnsafeCell<u32>,
    }

    // SAFETY: loom fails where the library is raced for.
    unsafe impl Sync for Shared {}

    impl Shared {
        pub(super) fn gate(&self) -> &Gate {
            &self.gate
        }
    }
}

struct Generation {
    shared: Arc<Shared>,
    shards: Shards,
}

impl Generation {
    /// An active one.
    fn new() -> Arc<Self> {
        let shared = Arc::new(Shared {
            gate: Gate::closed(),
            library: UnsafeCell::new(1),
        });
        shared.gate.open();
        Arc::new(Self {
            shards: Shards::new(&shared),
            shared,
        })
    }

    /// `Active::drain`, one look of `Draining::quiet`, and the end.
    fn retire(&self) {
        self.shared.gate.close();
        if self.shards.in_flight() == 0 {
            // SAFETY: loom fails where this races.
            self.shared
                .library
                .with_mut(|library| unsafe { *library = 0 });
        }
    }
}

/// Code of the plugin runs.
fn call(shared: &Shared) {
    shared.library.with(|library| {
        // SAFETY: loom fails where this races.
        assert_eq!(unsafe { *library }, 1);
    });
}

/// A request on a worker of that number, and what it does when it is in.
fn request(
    generation: &Arc<Generation>,
    worker: usize,
    then: impl FnOnce(InFlight) + 'static,
) -> thread::JoinHandle<()> {
    let generation = Arc::clone(generation);
    thread::spawn(move || {
        worker::set(worker);
        if let Some(in_flight) = generation.shards.enter() {
            then(in_flight);
        }
    })
}

/// All orders with up to so many switches that no thread asked for: that is where faults are, and
/// it takes seconds.
fn model(switches: usize, run: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(switches);
    model.check(run);
}

#[test]
fn a_request_that_is_in_finds_the_library_mapped() {
    for other in [0, 1] {
        model(3, move || {
            let generation = Generation::new();
            let requests = [0, other]
                .map(|worker| request(&generation, worker, |in_flight| call(in_flight.shared())));
            generation.retire();
            for request in requests {
                request.join().expect("it does not panic");
            }
        });
    }
}

#[test]
fn what_outlives_its_request_finds_the_library_mapped() {
    model(3, || {
        let generation = Generation::new();
        let request = request(&generation, 1, |in_flight| {
            // Bytes of the answer.
            let hold = in_flight.keep_alive();
            drop(in_flight);
            call(hold.shared());
        });
        generation.retire();
        request.join().expect("it does not panic");
    });
}

#[test]
fn what_travels_to_another_thread_finds_the_library_mapped() {
    model(3, || {
        let generation = Generation::new();
        let request = request(&generation, 0, |in_flight| {
            // An upgraded connection.
            let theirs = in_flight.clone();
            let upgraded = thread::spawn(move || call(theirs.shared()));
            drop(in_flight);
            upgraded.join().expect("it does not panic");
        });
        generation.retire();
        request.join().expect("it does not panic");
    });
}

#[test]
fn whoever_came_in_is_counted_until_it_left_and_nobody_comes_after() {
    model(3, || {
        let generation = Generation::new();
        let request = request(&generation, 0, |in_flight| call(in_flight.shared()));
        generation.retire();
        assert!(generation.shards.enter().is_none());
        request.join().expect("it does not panic");
        assert_eq!(generation.shards.in_flight(), 0);
        assert!(generation.shards.requests() <= 1);
    });
}
