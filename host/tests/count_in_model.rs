//! A model of the race between a request that counts in and a generation that is retired, in every order that the memory model
//! allows: `generation::in_flight` and the gate of `generation::core`, with a reference count spelled out as what `Arc` does.
//!
//! Leaving out one of the fences makes a test here fail. What the library is in memory is a cell: a request in flight reads it, unmapping writes it. loom fails on a read and a write
//! of which neither happens before the other.

use loom::{
    cell::UnsafeCell,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering, fence},
    },
    thread,
};

struct Generation {
    gate_closed: AtomicBool,
    /// One shard's references, but for the one that the generation itself has.
    in_flight: AtomicUsize,
    /// Those of its holds.
    held: AtomicUsize,
    library: UnsafeCell<u32>,
}

impl Generation {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            gate_closed: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            library: UnsafeCell::new(1),
        })
    }

    /// `Shards::enter`
    fn enter(&self) -> bool {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.gate_closed.load(Ordering::SeqCst) {
            self.leave();
            return false;
        }
        true
    }

    /// `Drop for InFlight`
    fn leave(&self) {
        self.in_flight.fetch_sub(1, Ordering::Release);
    }

    fn call(&self) {
        self.library.with(|library| {
            // SAFETY: loom fails where this races.
            assert_eq!(unsafe { *library }, 1);
        });
    }

    /// `Shards::in_flight` is 0
    fn is_quiet(&self) -> bool {
        fence(Ordering::SeqCst);
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let held = self.held.load(Ordering::Relaxed);
        fence(Ordering::SeqCst);
        in_flight == 0 && held == 0
    }

    /// `Active::drain`, then one look of `Draining::quiet`.
    fn retire(&self) {
        self.gate_closed.store(true, Ordering::SeqCst);
        if self.is_quiet() {
            // SAFETY: loom fails where this races.
            self.library.with_mut(|library| unsafe { *library = 0 });
        }
    }
}

#[test]
fn a_request_that_is_in_finds_the_library_mapped() {
    // Three threads: all orders with up to three switches that none of them asked for, which is where faults are, in seconds.
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let generation = Generation::new();
        let requests: Vec<_> = (0..2)
            .map(|_| {
                let generation = Arc::clone(&generation);
                thread::spawn(move || {
                    if generation.enter() {
                        generation.call();
                        generation.leave();
                    }
                })
            })
            .collect();
        generation.retire();
        for request in requests {
            request.join().expect("it does not panic");
        }
    });
}

#[test]
fn what_outlives_its_request_finds_the_library_mapped() {
    loom::model(|| {
        let generation = Generation::new();
        let request = {
            let generation = Arc::clone(&generation);
            thread::spawn(move || {
                if generation.enter() {
                    // `InFlight::hold`, for bytes of the answer.
                    generation.held.fetch_add(1, Ordering::Relaxed);
                    generation.leave();
                    generation.call();
                    generation.held.fetch_sub(1, Ordering::Release);
                }
            })
        };
        generation.retire();
        request.join().expect("it does not panic");
    });
}
