//! How what never ends by itself is ended at the drain deadline: streams whose clients understand
//! an end and come back, one after the other, so that they do not come back all at once.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// How many of them are ended in a second, at the least.
const PER_SECOND: u64 = 200;
/// How long the last of them waits at the most.
const LONGEST: Duration = Duration::from_secs(3);

/// The streams of a generation that can be ended without a loss: event streams, gRPC, WebSockets.
#[derive(Debug, Default)]
pub(super) struct Endings {
    /// Those that there are.
    open: AtomicU64,
    /// Those that there were at the drain deadline.
    at_deadline: AtomicU64,
    /// Those that were given their time since then.
    given: AtomicU64,
}

impl Endings {
    pub(super) fn opened(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn closed(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns how many there are.
    pub(super) fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// The deadline passed. Returns how many there are to end, and how long that takes.
    pub(super) fn begin(&self) -> (u64, Duration) {
        let open = self.open.load(Ordering::Relaxed);
        self.at_deadline.store(open, Ordering::Relaxed);
        (open, span(open))
    }

    /// How long after the deadline the next of them is ended.
    pub(super) fn next(&self) -> Duration {
        let number = self.given.fetch_add(1, Ordering::Relaxed);
        let all = self.at_deadline.load(Ordering::Relaxed).max(1);
        span(all).mul_f64((number as f64 / all as f64).min(1.0))
    }
}

/// In which time so many are ended.
fn span(number: u64) -> Duration {
    Duration::from_millis(number.saturating_sub(1).saturating_mul(1000) / PER_SECOND).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_spread_and_one_alone_waits_for_nobody() {
        let endings = Endings::default();
        endings.opened();
        assert_eq!(endings.begin(), (1, Duration::ZERO));
        assert_eq!(endings.next(), Duration::ZERO);

        let endings = Endings::default();
        for _ in 0..5_000 {
            endings.opened();
        }
        endings.closed();
        assert_eq!(endings.begin(), (4_999, LONGEST));
        let times: Vec<_> = (0..5_000).map(|_| endings.next()).collect();
        assert!(times.is_sorted());
        assert_eq!((times[0], times[4_999]), (Duration::ZERO, LONGEST));
    }
}
