//! A rate limiter whose counts survive swaps.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::state::{State, StateError};

/// Lets so many through in each window of time, for each key. Cheap to clone.
///
/// Windows begin at multiples of their length by the clock of the machine, so at the border of two
/// of them up to twice as many may come within one length. In a namespace of [`State::memory`]
/// counts survive swaps, and cost no sync of the disk.
#[derive(Clone, Debug)]
pub struct RateLimiter {
    state: State,
    limit: u32,
    window: Duration,
}

/// Whether one may go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it may.
    pub is_allowed: bool,
    /// How many more may in this window.
    pub remaining: u32,
    /// When the next window begins: what `retry-after` says.
    pub reset_after: Duration,
}

impl RateLimiter {
    /// Lets `limit` through in each `window`, of at least a millisecond, and counts in `state`.
    pub fn new(state: State, limit: u32, window: Duration) -> Self {
        Self {
            state,
            limit,
            window: window.max(Duration::from_millis(1)),
        }
    }

    /// Counts one more for `key`, an address or a user, and says whether it may go through.
    ///
    /// # Errors
    /// When the state is not available: the app decides then.
    pub async fn check(&self, key: &str) -> Result<Decision, StateError> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let (number, reset_after) = self.window_at(now);
        let counter = format!("{key}/{number}");
        // It is gone some time after its window has ended.
        let ttl = self.window.saturating_mul(2);
        let count = self.state.add_ttl(counter, 1, ttl).await?;
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        Ok(Decision {
            is_allowed: count <= self.limit,
            remaining: self.limit.saturating_sub(count),
            reset_after,
        })
    }

    /// The number of the window at `now`, and how long it lasts from then on.
    fn window_at(&self, now: Duration) -> (u128, Duration) {
        let length = self.window.as_nanos();
        let left = length - now.as_nanos() % length;
        let left = Duration::from_nanos(u64::try_from(left).unwrap_or(u64::MAX));
        (now.as_nanos() / length, left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_ends_where_the_next_begins() {
        let limiter = RateLimiter::new(State::new(None, None), 5, Duration::from_secs(60));
        let at = |seconds| limiter.window_at(Duration::from_secs(seconds));
        assert_eq!(at(60), (1, Duration::from_secs(60)));
        assert_eq!(at(119), (1, Duration::from_secs(1)));
        assert_eq!(at(120), (2, Duration::from_secs(60)));
    }

    #[tokio::test]
    async fn without_a_state_the_app_decides() {
        let limiter = RateLimiter::new(State::new(None, None), 5, Duration::from_secs(60));
        assert!(matches!(
            limiter.check("a").await,
            Err(StateError::Unavailable(_))
        ));
    }
}
