//! Counting in and out.
//!
//! A generation has one [`Shard`] for each worker, on cache lines of its own. Being in flight *is* holding a reference to a shard, so
//! counting in is cloning an `Arc` that no other worker touches, and counting out is dropping it: it cannot be forgotten, and it
//! travels with whatever holds it (a request, the stream of an answer, an upgraded connection).
//!
//! What belongs to one of those and may outlive it by a moment (the body of the request, bytes of the answer that still belong to the
//! plugin) has a [`Hold`] instead: the generation stays for it as well, and people are not told of it as if it were a request more.
//!
//! The race with retirement is decided by the gate: a request first counts in, then looks at the gate, and goes back out if
//! it is closed; whoever retires first closes the gate, then looks at the counts. Both put a sequentially consistent fence between the two, so at
//! least one sees the other. Once the gate is closed a shard that is found empty stays empty.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering, fence},
    },
};

use handover_plugin::abi::body::Guard;

use super::core::Core;

/// One worker's share of a generation.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Shard {
    /// Requests that came through this shard.
    requests: AtomicU64,
    core: Arc<Core>,
    holds: Arc<Holds>,
}

/// One worker's share of what is held: as with the shard, its references are the count.
#[derive(Debug)]
#[repr(align(128))]
struct Holds;

/// The shards of a generation.
#[derive(Debug)]
pub(super) struct Shards(Box<[Arc<Shard>]>);

/// Something is in flight on a generation, which is therefore neither retired nor unloaded.
#[derive(Clone, Debug)]
pub struct InFlight(Arc<Shard>);

/// Something of a generation is still there, which is therefore neither retired nor unloaded.
#[derive(Debug)]
pub struct Hold(#[expect(dead_code, reason = "held for its drop")] Arc<Holds>);

/// Threads beyond this many share shards, which costs them a little and breaks nothing.
const MOST: usize = 64;

thread_local! {
    static SHARD: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The number of this thread's shard, in every generation.
fn own_shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let own = SHARD.get();
    if own != usize::MAX {
        return own;
    }
    let own = NEXT.fetch_add(1, Ordering::Relaxed);
    SHARD.set(own);
    own
}

impl Shards {
    pub(super) fn new(core: &Arc<Core>) -> Self {
        let workers = std::thread::available_parallelism().map_or(4, usize::from);
        let count = (workers * 2).next_power_of_two().min(MOST);
        Self(
            (0..count)
                .map(|_| {
                    Arc::new(Shard {
                        requests: AtomicU64::new(0),
                        core: Arc::clone(core),
                        holds: Arc::new(Holds),
                    })
                })
                .collect(),
        )
    }

    /// Counts a request in, unless the gate is closed.
    pub(super) fn enter(&self) -> Option<InFlight> {
        let shard = &self.0[own_shard() & (self.0.len() - 1)];
        let in_flight = InFlight(Arc::clone(shard));
        fence(Ordering::SeqCst);
        if shard.core.gate_is_closed() {
            return None;
        }
        shard.requests.fetch_add(1, Ordering::Relaxed);
        Some(in_flight)
    }

    /// How many are in flight. With the gate closed, 0 is final.
    pub(super) fn in_flight(&self) -> u64 {
        fence(Ordering::SeqCst);
        let in_flight: u64 = self
            .0
            .iter()
            .map(|shard| Arc::strong_count(shard) as u64 - 1)
            .sum();
        // Looked at after those in flight, who alone can make new ones: so none is missed that is made between the two looks.
        fence(Ordering::SeqCst);
        let is_held = self
            .0
            .iter()
            .any(|shard| Arc::strong_count(&shard.holds) > 1);
        // What was done before the last of them counted out is visible after this.
        fence(Ordering::SeqCst);
        // The last bytes of an answer are an answer that is in flight.
        in_flight.max(u64::from(is_held))
    }

    pub(super) fn requests(&self) -> u64 {
        self.0
            .iter()
            .map(|shard| shard.requests.load(Ordering::Relaxed))
            .sum()
    }
}

impl Guard for InFlight {
    type Hold = Hold;

    fn hold(&self) -> Hold {
        Hold(Arc::clone(&self.0.holds))
    }
}

impl InFlight {
    /// The generation.
    pub fn core(&self) -> &Core {
        &self.0.core
    }
}
