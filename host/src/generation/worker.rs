//! Which of its shards a generation counts a thread's requests in.

use std::{
    cell::Cell,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Threads beyond this many share shards, which costs them a little and breaks nothing.
const MOST: usize = 64;

thread_local! {
    static NUMBER: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// How many shards a generation has: a power of two.
pub(crate) fn shards() -> usize {
    let workers = std::thread::available_parallelism().map_or(4, usize::from);
    (workers * 2).next_power_of_two().min(MOST)
}

/// The number of this thread, in every generation; the shard is its remainder.
pub(crate) fn number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let own = NUMBER.get();
    if own != usize::MAX {
        return own;
    }
    let own = NEXT.fetch_add(1, Ordering::Relaxed);
    NUMBER.set(own);
    own
}
