//! What a poll across the boundary gives.

use abi_stable::StableAbi;

/// The outcome of one poll. What was produced travels through the sink that was given to the poll.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, StableAbi)]
pub enum PollState {
    /// Nothing yet: the waker is woken when another poll is worth while.
    Pending,
    /// Something went into the sink.
    Ready,
    /// It ended; it is not polled again.
    Ended,
    /// It failed, and said why in the sink; it is not polled again.
    Failed,
    /// It panicked, which was caught; it is not polled again.
    Panicked,
}
