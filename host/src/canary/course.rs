//! The course of a trial: its steps, how long each has lasted, whether it stands still.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Share;

/// The course of a trial.
#[derive(Debug)]
pub(crate) struct Course {
    steps: Vec<Share>,
    bake: Duration,
    min_requests: u64,
    place: Mutex<Place>,
}

/// Where it is.
#[derive(Clone, Copy, Debug)]
struct Place {
    step: usize,
    /// How long this step has lasted, without the time that it stood still.
    baked: Duration,
    looked: Instant,
    paused: bool,
    inconclusive: bool,
}

/// Where a course is, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The number of the step, beginning with 1.
    pub(crate) step: usize,
    /// How many there are.
    pub(crate) steps: usize,
    /// How long this one has to last still.
    pub(crate) left: Duration,
    /// Whether it stands still because somebody said so.
    pub(crate) paused: bool,
    /// Whether its time is over and too few requests were answered.
    pub(crate) inconclusive: bool,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing yet.
    Wait,
    /// The time of the step is over, and too few requests were answered. Said once.
    Inconclusive,
    /// The next step, with its share.
    Step(Share),
    /// The last step is over.
    Promote,
}

impl Course {
    /// A course that begins now, of at least one step.
    pub(crate) fn new(steps: Vec<Share>, bake: Duration, min_requests: u64) -> Self {
        Self {
            steps,
            bake,
            min_requests,
            place: Mutex::new(Place {
                step: 0,
                baked: Duration::ZERO,
                looked: Instant::now(),
                paused: false,
                inconclusive: false,
            }),
        }
    }

    /// Returns how many requests of the canary must have been answered.
    pub(crate) fn min_requests(&self) -> u64 {
        self.min_requests
    }

    /// Has it stand still, or go on. Returns whether that changed.
    pub(crate) fn pause(&self, paused: bool) -> bool {
        let mut place = self.place.lock();
        std::mem::replace(&mut place.paused, paused) != paused
    }

    /// Goes on to `now`, when `answered` requests of the canary were answered in all.
    pub(crate) fn advance(&self, now: Instant, answered: u64) -> Next {
        let mut place = self.place.lock();
        let since = now.saturating_duration_since(place.looked);
        place.looked = now;
        if place.paused {
            return Next::Wait;
        }
        place.baked += since;
        if place.baked < self.bake {
            return Next::Wait;
        }
        if answered < self.min_requests {
            return if std::mem::replace(&mut place.inconclusive, true) {
                Next::Wait
            } else {
                Next::Inconclusive
            };
        }
        place.inconclusive = false;
        match self.steps.get(place.step + 1) {
            Some(share) => {
                place.step += 1;
                place.baked = Duration::ZERO;
                Next::Step(*share)
            }
            None => Next::Promote,
        }
    }

    /// Returns where it is.
    pub(crate) fn progress(&self) -> Progress {
        let place = *self.place.lock();
        Progress {
            step: place.step + 1,
            steps: self.steps.len(),
            left: self.bake.saturating_sub(place.baked),
            paused: place.paused,
            inconclusive: place.inconclusive,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_lasts_and_waits_for_enough_requests() {
        let steps = [0.05, 0.5].map(Share::of);
        let course = Course::new(steps.to_vec(), Duration::from_secs(10), 100);
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        assert_eq!(course.advance(at(9), 1000), Next::Wait);
        assert!(course.pause(true) && !course.pause(true));
        assert_eq!(course.advance(at(30), 1000), Next::Wait);
        assert!(course.pause(false));
        assert_eq!(course.advance(at(32), 99), Next::Inconclusive);
        assert_eq!(course.advance(at(33), 99), Next::Wait);
        assert!(course.progress().inconclusive);
        assert_eq!(course.advance(at(34), 100), Next::Step(steps[1]));
        assert_eq!(course.progress().step, 2);
        assert!(!course.progress().inconclusive);
        assert_eq!(course.advance(at(40), 200), Next::Wait);
        assert_eq!(course.advance(at(45), 200), Next::Promote);
    }
}
