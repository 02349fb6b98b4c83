//! How long answers took in the last minutes: a histogram for each minute, written without a lock.

use std::{
    array,
    sync::atomic::{AtomicU32, AtomicUsize, Ordering},
    time::Duration,
};

/// How many minutes are looked back.
const MINUTES: usize = 10;
/// Each power of two is divided into so many buckets, so that a bound is at most an eighth off.
const FINE: usize = 8;
/// Enough for more than an hour in microseconds.
const BUCKETS: usize = 30 * FINE;

/// The times of the last minutes.
#[derive(Debug)]
pub(super) struct Latency {
    minutes: [[AtomicU32; BUCKETS]; MINUTES],
    now: AtomicUsize,
}

impl Latency {
    pub(super) fn new() -> Self {
        Self {
            minutes: array::from_fn(|_| array::from_fn(|_| AtomicU32::new(0))),
            now: AtomicUsize::new(0),
        }
    }

    /// Counts an answer.
    pub(super) fn record(&self, took: Duration) {
        let minute = &self.minutes[self.now.load(Ordering::Relaxed)];
        minute[bucket(micros(took))].fetch_add(1, Ordering::Relaxed);
    }

    /// Begins the next minute, in the place of the oldest.
    pub(super) fn next_minute(&self) {
        let next = (self.now.load(Ordering::Relaxed) + 1) % MINUTES;
        for count in &self.minutes[next] {
            count.store(0, Ordering::Relaxed);
        }
        self.now.store(next, Ordering::Relaxed);
    }

    /// Returns the time that `part` of the answers, between 0 and 1, took at most; none of fewer
    /// than `least` answers.
    pub(super) fn quantile(&self, part: f64, least: u64) -> Option<Duration> {
        let counts: [u64; BUCKETS] = array::from_fn(|at| {
            let minutes = self.minutes.iter();
            minutes
                .map(|minute| u64::from(minute[at].load(Ordering::Relaxed)))
                .sum()
        });
        let all: u64 = counts.iter().sum();
        if all < least.max(1) {
            return None;
        }
        let wanted = (all as f64 * part).ceil() as u64;
        let mut seen = 0;
        let at = counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        })?;
        Some(Duration::from_micros(bound(at)))
    }
}

/// Returns `took` in microseconds.
pub(super) fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

/// The bucket of a time.
fn bucket(micros: u64) -> usize {
    let fine = FINE as u64;
    if micros < fine {
        return micros as usize;
    }
    let power = micros.ilog2() - FINE.ilog2();
    let within = (micros >> power) - fine;
    ((power as usize + 1) * FINE + within as usize).min(BUCKETS - 1)
}

/// The longest time of a bucket.
fn bound(bucket: usize) -> u64 {
    let (power, within) = (bucket / FINE, bucket % FINE);
    match power.checked_sub(1) {
        None => within as u64,
        Some(power) => (((FINE + within + 1) as u64) << power) - 1,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn a_bucket_holds_what_its_bound_says() {
        for at in 0..BUCKETS - 1 {
            assert_eq!(bucket(bound(at)), at);
            assert_eq!(bucket(bound(at) + 1), at + 1);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_quantile_is_at_most_an_eighth_too_high() {
        let latency = Latency::new();
        assert_eq!(latency.quantile(0.5, 0), None);
        for millis in 1..=100 {
            latency.record(Duration::from_millis(millis));
        }
        let middle = latency.quantile(0.5, 100).unwrap();
        assert!(middle >= Duration::from_millis(50) && middle <= Duration::from_millis(57));
        assert_eq!(latency.quantile(0.5, 101), None);
        for _ in 0..MINUTES {
            latency.next_minute();
        }
        assert_eq!(latency.quantile(0.5, 1), None);
    }
}
