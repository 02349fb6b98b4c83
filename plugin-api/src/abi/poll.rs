//! What a poll across the boundary gives.

use abi_stable::StableAbi;

/// The outcome of one poll. What was produced travels through the sink that was given to the poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// A [`PollState`] as it crosses: 0 to 4, in its order. A number that is none of these is a
/// failure.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, StableAbi)]
pub struct PollCode(u8);

impl From<PollState> for PollCode {
    #[inline]
    fn from(state: PollState) -> Self {
        Self(state as u8)
    }
}

impl PollCode {
    /// The code of this number, whatever it is.
    #[cfg(any(test, fuzzing))]
    pub const fn forged(number: u8) -> Self {
        Self(number)
    }

    /// What it means.
    #[inline]
    pub const fn state(self) -> PollState {
        match self.0 {
            0 => PollState::Pending,
            1 => PollState::Ready,
            2 => PollState::Ended,
            4 => PollState::Panicked,
            _ => PollState::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_means_its_state_and_an_unknown_one_a_failure() {
        for (number, state) in [
            (0, PollState::Pending),
            (1, PollState::Ready),
            (2, PollState::Ended),
            (3, PollState::Failed),
            (4, PollState::Panicked),
        ] {
            assert_eq!(PollCode::from(state), PollCode::forged(number));
            assert_eq!(PollCode::forged(number).state(), state);
        }
        for number in 5..=u8::MAX {
            assert_eq!(PollCode::forged(number).state(), PollState::Failed);
        }
    }
}
