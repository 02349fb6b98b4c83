//! What apps have counted in the last minutes, second by second: the charts of a page that is
//! opened after a swap show what was before it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use handover_api::AppName;
use parking_lot::Mutex;
use serde::Serialize;

use crate::{clock, dispatch::BOUNDS, report::figures::Figures};

/// How often it is counted.
pub(super) const EVERY: Duration = Duration::from_secs(1);

/// How many samples are kept: those of ten minutes.
const KEPT: usize = 600;

/// All of them. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// What had been counted when it was looked last; none while nobody wants to know.
    before: Option<(Instant, HashMap<AppName, Figures>)>,
    /// The number of the last sample.
    last: u64,
    kept: VecDeque<(u64, Arc<Sample>)>,
}

/// What was counted between two looks.
#[derive(Debug, Serialize)]
pub(super) struct Sample {
    /// When it ended, in milliseconds since 1970.
    at_ms: u64,
    /// How long it took.
    ms: u64,
    /// The apps that had something to count.
    apps: BTreeMap<AppName, Counted>,
}

#[derive(Debug, Serialize)]
struct Counted {
    requests: u64,
    errors: u64,
    /// How many requests took no longer than each bound, without the zeros at the end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    within: Vec<u64>,
}

/// What the page is told of samples.
#[derive(Debug, Serialize)]
pub(super) struct Told {
    /// Whether durations are counted.
    measures: bool,
    /// What the figures in `within` are bounded by, in milliseconds; the last one has no bound.
    bounds_ms: [f64; BOUNDS.len()],
    samples: Vec<Arc<Sample>>,
}

impl Samples {
    /// Takes a sample of what has been counted so far.
    pub(super) fn take(&self, counted: Vec<(AppName, Figures)>) {
        self.take_at(Instant::now(), counted);
    }

    fn take_at(&self, now: Instant, counted: Vec<(AppName, Figures)>) {
        let counted: HashMap<_, _> = counted.into_iter().collect();
        let mut inner = self.0.lock();
        let Some((since, before)) = inner.before.replace((now, counted.clone())) else {
            return;
        };
        let nothing = Figures::default();
        let apps = counted.into_iter().filter_map(|(app, figures)| {
            let more = more(before.get(&app).unwrap_or(&nothing), &figures)?;
            Some((app, more))
        });
        let took = now.duration_since(since);
        let sample = Sample {
            at_ms: clock::now_ms(),
            ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            apps: apps.collect(),
        };
        inner.last += 1;
        let last = inner.last;
        inner.kept.push_back((last, Arc::new(sample)));
        while inner.kept.len() > KEPT {
            inner.kept.pop_front();
        }
    }

    /// Nobody wants to know: what is counted until somebody does is of no second.
    pub(super) fn rest(&self) {
        self.0.lock().before = None;
    }

    /// What has come behind the sample `last`, which becomes the last one; none where nothing has.
    pub(super) fn behind(&self, last: &mut Option<u64>, measures: bool) -> Option<Told> {
        let inner = self.0.lock();
        if *last == Some(inner.last) {
            return None;
        }
        let known = last.replace(inner.last).unwrap_or(0);
        let new = inner.kept.iter().filter(|(number, _)| *number > known);
        Some(Told {
            measures,
            bounds_ms: BOUNDS.map(|seconds| seconds * 1000.0),
            samples: new.map(|(_, sample)| Arc::clone(sample)).collect(),
        })
    }
}

/// What was counted since `before`; none where that is nothing.
fn more(before: &Figures, now: &Figures) -> Option<Counted> {
    let pairs = now.within.iter().zip(before.within);
    let mut within: Vec<_> = pairs
        .map(|(now, before)| now.saturating_sub(before))
        .collect();
    let used = within.iter().rposition(|number| *number > 0);
    within.truncate(used.map_or(0, |at| at + 1));
    let counted = Counted {
        requests: now.requests.saturating_sub(before.requests),
        errors: now.server_errors.saturating_sub(before.server_errors),
        within,
    };
    let is_any = counted.requests > 0 || counted.errors > 0 || !counted.within.is_empty();
    is_any.then_some(counted)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use serde_json::{Value, json};

    use super::*;

    fn shop(requests: u64, fast: u64) -> Vec<(AppName, Figures)> {
        let mut figures = Figures {
            requests,
            ..Figures::default()
        };
        figures.within[1] = fast;
        vec![("shop".parse().unwrap(), figures)]
    }

    fn told(samples: &Samples, last: &mut Option<u64>) -> Vec<Value> {
        let told = samples.behind(last, true);
        let told = told.map(|told| serde_json::to_value(told).unwrap());
        let of = |told: Value| told["samples"].as_array().cloned();
        told.and_then(of).unwrap_or_default()
    }

    #[test]
    fn a_sample_is_what_came_since_the_one_before() {
        let (samples, mut last) = (Samples::default(), None);
        let began = Instant::now();
        samples.take_at(began, shop(100, 7));
        assert!(told(&samples, &mut last).is_empty());
        samples.take_at(began + EVERY, shop(103, 9));
        samples.take_at(began + EVERY * 3, shop(103, 9));
        let new = told(&samples, &mut last);
        assert_eq!(
            new[0]["apps"]["shop"],
            json!({"requests": 3, "errors": 0, "within": [0, 2]})
        );
        assert_eq!(new[0]["ms"], 1000);
        assert_eq!((&new[1]["apps"], &new[1]["ms"]), (&json!({}), &json!(2000)));
        // Each is told once, and who comes later is told all of them.
        assert!(samples.behind(&mut last, true).is_none());
        assert_eq!(told(&samples, &mut None).len(), 2);
    }

    #[test]
    fn what_came_while_nobody_looked_is_of_no_second() {
        let samples = Samples::default();
        let began = Instant::now();
        samples.take_at(began, shop(1, 0));
        samples.rest();
        samples.take_at(began + EVERY * 60, shop(5000, 0));
        assert!(told(&samples, &mut None).is_empty());
    }

    #[test]
    fn old_samples_make_room() {
        let samples = Samples::default();
        let began = Instant::now();
        for second in 0..=KEPT as u32 + 5 {
            samples.take_at(began + EVERY * second, shop(0, 0));
        }
        assert_eq!(told(&samples, &mut None).len(), KEPT);
    }
}
