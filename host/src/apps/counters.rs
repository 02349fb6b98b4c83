//! What is counted of one app over all its generations: how its operations ended, and how long
//! their steps took.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::Mutex;

use handover_api::Outcome;

/// The bounds of the histogram of steps, in seconds: a cutover takes microseconds, a drain may take
/// minutes.
pub(crate) const BOUNDS: [f64; 14] = [
    0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0,
];

/// The counts of one app.
#[derive(Debug, Default)]
pub(crate) struct Counters(Mutex<Counts>);

/// What has been counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// How many operations ended in which way, up to the cutover.
    pub(crate) outcomes: BTreeMap<Outcome, u64>,
    /// How many replaced generations finished what they had by themselves.
    pub(crate) drained: u64,
    /// How many were ended at a deadline.
    pub(crate) deadlines: u64,
    /// How long steps took, by their names.
    pub(crate) steps: BTreeMap<&'static str, Steps>,
}

/// How long one kind of step took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Steps {
    /// How many took no longer than each of [`BOUNDS`] but longer than the one before.
    pub(crate) within: [u64; BOUNDS.len()],
    /// How many there were.
    pub(crate) count: u64,
    /// How long they took together.
    pub(crate) sum: Duration,
    /// How long the last one took.
    pub(crate) last: Duration,
}

impl Counters {
    /// An operation ended, or came to its cutover.
    pub(crate) fn ended(&self, outcome: Outcome) {
        *self.0.lock().outcomes.entry(outcome).or_default() += 1;
    }

    /// A step was taken.
    pub(crate) fn step(&self, step: &'static str, took: Duration) {
        self.0.lock().steps.entry(step).or_default().add(took);
    }

    /// A replaced generation is quiet; `cut` when it had to be ended.
    pub(crate) fn drained(&self, took: Duration, aborted: bool) {
        let mut counts = self.0.lock();
        counts.steps.entry("drain").or_default().add(took);
        if aborted {
            counts.deadlines += 1;
        } else {
            counts.drained += 1;
        }
    }

    /// What has been counted so far.
    pub(crate) fn counts(&self) -> Counts {
        self.0.lock().clone()
    }
}

impl Steps {
    fn add(&mut self, took: Duration) {
        if let Some(at) = BOUNDS.iter().position(|bound| took.as_secs_f64() <= *bound) {
            self.within[at] += 1;
        }
        self.count += 1;
        self.sum += took;
        self.last = took;
    }

    /// Adds those of another app.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (sum, more) in self.within.iter_mut().zip(other.within) {
            *sum += more;
        }
        self.count += other.count;
        self.sum += other.sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_counts_in_the_first_bucket_that_holds_it() {
        let mut steps = Steps::default();
        for millis in [1, 2, 1_000_000] {
            steps.add(Duration::from_millis(millis));
        }
        assert_eq!(&steps.within[..4], [0, 1, 1, 0]);
        assert_eq!(steps.within.iter().sum::<u64>(), 2);
        assert_eq!(steps.count, 3);
        let mut sum = steps;
        sum.merge(&steps);
        assert_eq!((sum.count, sum.within[1]), (6, 2));
    }
}
