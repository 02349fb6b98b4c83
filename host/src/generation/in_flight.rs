//! Counting in and out.
//!
//! A generation has one [`Shard`] for each worker, on cache lines of its own. Being in flight *is*
//! holding a reference to a shard, so counting in is cloning an `Arc` that no other worker touches,
//! and counting out is dropping it: it cannot be forgotten, and it travels with whatever holds it
//! (a request, the stream of an answer, an upgraded connection).
//!
//! What belongs to one of those and may outlive it by a moment (the body of the request, bytes of
//! the answer that still belong to the plugin) has a [`KeepAlive`] instead: the generation stays
//! for it as well, and people are not told of it as if it were a request more.
//!
//! The race with retirement is decided by the gate: a request first counts in, then looks at the
//! gate, and goes back out if it is closed; whoever retires first closes the gate, then looks at
//! the counts. Both put a sequentially consistent fence between the two, so at least one sees the
//! other. Whoever counts in at a shard that was found empty behind a closed gate goes back out, and
//! has called nothing. `tests/count_in_model.rs` runs this file in every order.

use super::{
    shared::Shared,
    sync::{Arc, AtomicBool, AtomicU64, Ordering, fence, fence_after_update},
    worker,
};

/// Whether requests come in.
#[derive(Debug)]
pub(super) struct Gate(AtomicBool);

/// One worker's share of a generation.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Shard {
    /// Requests that came through this shard.
    requests: AtomicU64,
    shared: Arc<Shared>,
    kept_alive: Arc<KeptAlive>,
}

/// One worker's share of what is held: as with the shard, its references are the count.
#[derive(Debug)]
#[repr(align(128))]
struct KeptAlive {
    shared: Arc<Shared>,
}

/// The shards of a generation.
#[derive(Debug)]
pub(super) struct Shards(Box<[Arc<Shard>]>);

/// Something is in flight on a generation, which is therefore neither retired nor unloaded.
#[derive(Clone, Debug)]
pub struct InFlight(Arc<Shard>);

/// Something of a generation is still there, which is therefore neither retired nor unloaded.
#[derive(Clone, Debug)]
pub struct KeepAlive(Arc<KeptAlive>);

impl Gate {
    pub(super) fn closed() -> Self {
        Self(AtomicBool::new(true))
    }

    pub(super) fn open(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    pub(super) fn close(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_closed(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl Shards {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self(
            (0..worker::shards())
                .map(|_| {
                    Arc::new(Shard {
                        requests: AtomicU64::new(0),
                        shared: Arc::clone(shared),
                        kept_alive: Arc::new(KeptAlive {
                            shared: Arc::clone(shared),
                        }),
                    })
                })
                .collect(),
        )
    }

    /// Counts a request in, unless the gate is closed.
    pub(super) fn enter(&self) -> Option<InFlight> {
        let shard = &self.0[worker::number() & (self.0.len() - 1)];
        let in_flight = InFlight(Arc::clone(shard));
        fence_after_update();
        if shard.shared.gate().is_closed() {
            return None;
        }
        shard.requests.fetch_add(1, Ordering::Relaxed);
        Some(in_flight)
    }

    /// How many are in flight. With the gate closed, 0 is final but for those who come, find it
    /// closed, and go.
    pub(super) fn in_flight(&self) -> u64 {
        fence(Ordering::SeqCst);
        let in_flight: u64 = self
            .0
            .iter()
            .map(|shard| Arc::strong_count(shard) as u64 - 1)
            .sum();
        // Looked at after those in flight, who alone can make new ones: so none is missed that is
        // made between the two looks.
        fence(Ordering::SeqCst);
        let is_held = self
            .0
            .iter()
            .any(|shard| Arc::strong_count(&shard.kept_alive) > 1);
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

impl KeepAlive {
    /// The generation.
    pub fn shared(&self) -> &Shared {
        &self.0.shared
    }
}

impl InFlight {
    /// A hold on the same generation.
    pub fn keep_alive(&self) -> KeepAlive {
        KeepAlive(Arc::clone(&self.0.kept_alive))
    }

    /// The generation.
    pub fn shared(&self) -> &Shared {
        &self.0.shared
    }
}
