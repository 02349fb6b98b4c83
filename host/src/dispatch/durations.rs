//! How long requests took: a histogram for each kind of request, counted without a lock and without
//! a cache line that another worker writes.

use std::{
    array,
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use handover_api::AppName;
use http::{Method, StatusCode};
use parking_lot::Mutex;

use crate::generation::{Role, worker};

/// The bounds, in seconds, that OpenTelemetry recommends for `http.server.request.duration`.
pub(crate) const BOUNDS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

/// The same in microseconds.
const MICROS: [u64; BOUNDS.len()] = [
    5_000, 10_000, 25_000, 50_000, 75_000, 100_000, 250_000, 500_000, 750_000, 1_000_000,
    2_500_000, 5_000_000, 7_500_000, 10_000_000,
];

/// How long the requests of one app took, or those that no app was asked for.
#[derive(Debug)]
pub(crate) struct Durations {
    /// None: those that no app was asked for.
    pub(crate) app: Option<AppName>,
    shards: Box<[Shard]>,
}

/// What requests are told apart by. There are not many: the codes that have a meaning, the methods
/// that are known, three roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RequestKind {
    /// Which generation has answered; none: the host itself.
    role: Option<Role>,
    method: &'static str,
    code: Code,
}

/// A status code, or only its first digit where it means nothing to anybody: an app can make up
/// hundreds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Code {
    Known(u16),
    Class(u16),
}

/// What was counted of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Counted {
    /// How many took no longer than each of [`BOUNDS`] but longer than the one before.
    pub(crate) within: [u64; BOUNDS.len()],
    pub(crate) count: u64,
    pub(crate) sum: Duration,
}

/// One worker's share.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    /// Grows with each kind that comes for the first time.
    series: ArcSwap<Vec<(RequestKind, Arc<Series>)>>,
    adding: Mutex<()>,
}

#[derive(Debug)]
struct Series {
    within: [AtomicU64; BOUNDS.len()],
    count: AtomicU64,
    micros: AtomicU64,
}

impl RequestKind {
    pub(crate) fn new(role: Option<Role>, method: &Method, status: StatusCode) -> Self {
        const KNOWN: [Method; 9] = [
            Method::GET,
            Method::POST,
            Method::HEAD,
            Method::PUT,
            Method::DELETE,
            Method::PATCH,
            Method::OPTIONS,
            Method::CONNECT,
            Method::TRACE,
        ];
        const NAMES: [&str; 9] = [
            "GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE",
        ];
        let known = KNOWN.iter().position(|known| known == method);
        let code = match status.canonical_reason() {
            Some(_) => Code::Known(status.as_u16()),
            None => Code::Class(status.as_u16() / 100),
        };
        Self {
            role,
            // As OpenTelemetry has it for others.
            method: known.map_or("_OTHER", |at| NAMES[at]),
            code,
        }
    }

    /// Returns the word for who has answered.
    pub(crate) fn role(&self) -> &'static str {
        self.role.map_or("host", Role::as_str)
    }

    /// Returns the method, `_OTHER` for one that is not known.
    pub(crate) fn method(&self) -> &'static str {
        self.method
    }

    /// Returns the status code.
    pub(crate) fn code(&self) -> Code {
        self.code
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(code) => write!(f, "{code}"),
            Self::Class(class) => write!(f, "{class}xx"),
        }
    }
}

impl Durations {
    pub(crate) fn new(app: Option<AppName>) -> Self {
        let shards = (0..worker::shards()).map(|_| Shard::default());
        Self {
            app,
            shards: shards.collect(),
        }
    }

    /// Counts a request that took so long.
    pub(crate) fn record(&self, kind: RequestKind, took: Duration) {
        let shard = &self.shards[worker::number() & (self.shards.len() - 1)];
        let series = shard.series.load();
        match series.iter().find(|(known, _)| *known == kind) {
            Some((_, series)) => series.add(took),
            None => shard.add(kind).add(took),
        }
    }

    /// Returns what has been counted so far.
    pub(crate) fn counted(&self) -> BTreeMap<RequestKind, Counted> {
        let mut sums = BTreeMap::<RequestKind, Counted>::new();
        for shard in &self.shards {
            for (kind, series) in shard.series.load().iter() {
                sums.entry(*kind).or_default().merge(series);
            }
        }
        sums
    }
}

impl Shard {
    /// Returns the series of `kind`, which is new mostly.
    #[cold]
    fn add(&self, kind: RequestKind) -> Arc<Series> {
        let _adding = self.adding.lock();
        let known = self.series.load();
        // Threads may share a shard.
        if let Some((_, series)) = known.iter().find(|(known, _)| *known == kind) {
            return Arc::clone(series);
        }
        let series = Arc::new(Series::new());
        let mut more = Vec::clone(&known);
        more.push((kind, Arc::clone(&series)));
        self.series.store(Arc::new(more));
        series
    }
}

impl Series {
    fn new() -> Self {
        Self {
            within: array::from_fn(|_| AtomicU64::new(0)),
            count: AtomicU64::new(0),
            micros: AtomicU64::new(0),
        }
    }

    fn add(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(at) = MICROS.iter().position(|bound| micros <= *bound) {
            self.within[at].fetch_add(1, Ordering::Relaxed);
        }
        self.micros.fetch_add(micros, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }
}

impl Counted {
    fn merge(&mut self, series: &Series) {
        let mut within = 0;
        for (sum, more) in self.within.iter_mut().zip(&series.within) {
            let more = more.load(Ordering::Relaxed);
            *sum += more;
            within += more;
        }
        // Counted after the bucket, and read after it: never fewer than are in buckets.
        self.count += series.count.load(Ordering::Relaxed).max(within);
        self.sum += Duration::from_micros(series.micros.load(Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn requests_of_one_kind_are_one_histogram_whoever_counts_them() {
        let durations = Arc::new(Durations::new(None));
        let kind = |method: &Method, code| {
            let status = StatusCode::from_u16(code).unwrap();
            RequestKind::new(Some(Role::Live), method, status)
        };
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let durations = Arc::clone(&durations);
                std::thread::spawn(move || {
                    for millis in [5, 6, 60_000] {
                        let took = Duration::from_millis(millis);
                        durations.record(kind(&Method::GET, 200), took);
                    }
                })
            })
            .collect();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        let odd = Method::from_bytes(b"BREW").unwrap();
        durations.record(kind(&odd, 299), Duration::ZERO);
        let counted = durations.counted();
        let get = counted[&kind(&Method::GET, 200)];
        assert_eq!((get.within[0], get.within[1], get.count), (4, 4, 12));
        assert_eq!(get.sum, Duration::from_millis(4 * 60_011));
        let other = counted
            .keys()
            .find(|kind| kind.method() == "_OTHER")
            .unwrap();
        assert_eq!(
            (other.code().to_string(), other.role()),
            ("2xx".into(), "live")
        );
    }

    #[test]
    fn the_bounds_are_the_same_in_both_units() {
        for (seconds, micros) in BOUNDS.iter().zip(MICROS) {
            assert_eq!((seconds * 1e6).round() as u64, micros);
        }
    }
}
