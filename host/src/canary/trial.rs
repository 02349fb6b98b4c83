//! One version on trial: its share of the requests, the counts of both sides, and the verdict.

use std::{
    collections::HashSet,
    fmt,
    hash::{BuildHasher, Hash, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    evidence::{Evidence, TOO_MUCH, highest_rate},
    latency::{Latency, micros},
};

/// The share of all requests.
pub(crate) const FULL: Share = Share(1_000_000);

/// How many clients are remembered of whom a failure was counted. Those beyond count no more: by
/// then the figures have said what they can.
const CLIENTS: usize = 1 << 16;

/// How many answers of the live version are enough to know its p99.
const ENOUGH: u64 = 1000;

/// No answer that took less is a slow one, whatever the live version does: a version that has just
/// been loaded, and gets few requests, finds colder caches, and nobody notices.
const NOTICEABLE: Duration = Duration::from_millis(10);

/// A share of the requests, in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Share(u32);

impl Share {
    /// Returns `part` of the requests, between 0 and 1.
    pub(crate) fn of(part: f64) -> Self {
        Self(((part.clamp(0.0, 1.0) * f64::from(FULL.0)).round()) as u32)
    }

    /// Returns it as a number between 0 and 1.
    pub(crate) fn part(self) -> f64 {
        f64::from(self.0) / f64::from(FULL.0)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.part() * 100.0)
    }
}

/// One of the two versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The live one.
    Live,
    /// The one on trial.
    Canary,
}

/// A trial. Requests are recorded from the threads that serve; what it takes of them is some
/// counters, and a lock where one failed.
#[derive(Debug)]
pub(crate) struct Trial {
    /// In millionths.
    share: AtomicU32,
    /// Which clients go first is another each time.
    salt: RandomState,
    random: AtomicU64,
    live: Counted,
    canary: Counted,
    /// In microseconds; an answer that took longer is a slow one.
    slow: AtomicU64,
    /// So many requests of the canary are not called slow: the first ones open its pools and fill
    /// its caches.
    warm_up: u64,
    /// The first client; 0: none yet.
    first: AtomicU64,
    /// Whether there were more.
    several: AtomicBool,
    judged: Mutex<Judged>,
    /// None: the figures say nothing against it.
    verdict: watch::Sender<Option<Against>>,
}

/// What was counted of one side.
#[derive(Debug)]
struct Counted {
    requests: AtomicU64,
    /// Each client once.
    failed: AtomicU64,
    latency: Latency,
}

/// What is decided with.
#[derive(Debug, Default)]
struct Judged {
    failures: Question,
    slowness: Question,
    /// While the canary has all requests: what the live one is expected to do at worst, and how
    /// many requests and failures of the canary are in the evidence.
    undivided: Option<Undivided>,
}

#[derive(Clone, Copy, Debug)]
struct Undivided {
    rate: f64,
    requests: u64,
    failed: u64,
}

#[derive(Debug, Default)]
struct Question {
    evidence: Evidence,
    /// Whose failure was counted.
    clients: HashSet<u64>,
}

impl Question {
    /// Whether one of `client` counts: the first.
    fn counts(&mut self, client: Option<u64>) -> bool {
        let Some(client) = client else { return true };
        self.clients.len() < CLIENTS && self.clients.insert(client)
    }
}

/// Why a canary is ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Against {
    /// It fails more often than the live version.
    Failures,
    /// It is slow more often.
    Slowness,
    /// Something else, which is said here.
    Other(String),
}

/// What was counted, for people.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    /// Requests that were answered.
    pub(crate) requests: u64,
    /// Clients with an answer that failed.
    pub(crate) failed: u64,
    /// What half of the answers took at most, in the last ten minutes.
    pub(crate) p50: Option<Duration>,
    /// What 99 % of them took at most.
    pub(crate) p99: Option<Duration>,
}

/// A request of a trial. Tells what became of it; one that is dropped was left by its client.
#[derive(Debug)]
pub(crate) struct Sample {
    trial: Arc<Trial>,
    side: Side,
    client: Option<u64>,
    /// The share at that time; none where the side was not left to chance.
    share: Option<Share>,
    began: Instant,
}

impl Counted {
    fn new() -> Self {
        Self {
            requests: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            latency: Latency::new(),
        }
    }

    fn counts(&self) -> Counts {
        Counts {
            requests: self.requests.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            p50: self.latency.quantile(0.5, 1),
            p99: self.latency.quantile(0.99, 1),
        }
    }
}

impl Trial {
    /// A trial that begins with `share` of the requests, of which the canary needs `warm_up` to
    /// come up to speed.
    pub(crate) fn new(share: Share, warm_up: u64) -> Self {
        let salt = RandomState::new();
        Self {
            share: AtomicU32::new(share.0),
            random: AtomicU64::new(salt.hash_one(0)),
            salt,
            live: Counted::new(),
            canary: Counted::new(),
            slow: AtomicU64::new(u64::MAX),
            warm_up,
            first: AtomicU64::new(0),
            several: AtomicBool::new(false),
            judged: Mutex::default(),
            verdict: watch::Sender::new(None),
        }
    }

    /// Returns the share of requests that the canary gets.
    pub(crate) fn share(&self) -> Share {
        Share(self.share.load(Ordering::Relaxed))
    }

    /// Gives the canary `share` of the requests from now on. Who is told by a key goes to the same
    /// side as before while the share grows.
    ///
    /// `live` are the requests and the failures of the live version in all its life, which a canary
    /// is compared with that gets all requests.
    pub(crate) fn set_share(&self, share: Share, live: (u64, u64)) {
        let mut judged = self.judged.lock();
        if self.is_condemned() {
            return;
        }
        self.bring_up_to_date(&mut judged);
        judged.undivided = (share >= FULL).then(|| {
            let (requests, failed) = live;
            Undivided {
                rate: highest_rate(requests, failed),
                requests: self.canary.requests.load(Ordering::Relaxed),
                failed: self.canary.failed.load(Ordering::Relaxed),
            }
        });
        self.share.store(share.0, Ordering::Relaxed);
    }

    /// Returns the number that stands for a key or a client in this trial.
    pub(crate) fn number(&self, key: impl Hash) -> u64 {
        self.salt.hash_one(key)
    }

    /// Chooses a side by `key`, or by chance where there is none.
    pub(crate) fn choose(&self, key: Option<u64>) -> (Side, Share) {
        let share = self.share();
        let number = key.unwrap_or_else(|| {
            // One step of splitmix64.
            let mut mixed = self
                .random
                .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        });
        let below = ((u128::from(number) * u128::from(FULL.0)) >> 64) as u32;
        let side = if below < share.0 {
            Side::Canary
        } else {
            Side::Live
        };
        (side, share)
    }

    /// Begins to watch a request of `client` on `side`; `share` is that of the choice, none where
    /// chance had no part in it.
    pub(crate) fn sample(
        self: &Arc<Self>,
        side: Side,
        client: Option<u64>,
        share: Option<Share>,
    ) -> Sample {
        Sample {
            trial: Arc::clone(self),
            side,
            client,
            share,
            began: Instant::now(),
        }
    }

    /// Returns whether all requests were of one client.
    pub(crate) fn is_of_one_client(&self) -> bool {
        self.first.load(Ordering::Relaxed) != 0 && !self.several.load(Ordering::Relaxed)
    }

    fn see(&self, client: u64) {
        if self.several.load(Ordering::Relaxed) {
            return;
        }
        let (first, client) = (&self.first, client.max(1));
        let known = first.compare_exchange(0, client, Ordering::Relaxed, Ordering::Relaxed);
        if known.is_err_and(|known| known != client) {
            self.several.store(true, Ordering::Relaxed);
        }
    }

    fn counted(&self, side: Side) -> &Counted {
        match side {
            Side::Live => &self.live,
            Side::Canary => &self.canary,
        }
    }

    /// Returns what was counted of one side.
    pub(crate) fn counts(&self, side: Side) -> Counts {
        self.counted(side).counts()
    }

    /// Returns how strongly the figures speak for the canary failing more often, and for its being
    /// slow more often: likelihood ratios, see [`TOO_MUCH`].
    pub(crate) fn evidence(&self) -> (f64, f64) {
        let mut judged = self.judged.lock();
        self.bring_up_to_date(&mut judged);
        (
            judged.failures.evidence.ratio(),
            judged.slowness.evidence.ratio(),
        )
    }

    /// Returns why the canary is to be ended, as soon as there is a reason.
    pub(crate) fn verdict(&self) -> watch::Receiver<Option<Against>> {
        self.verdict.subscribe()
    }

    /// Returns whether it was decided to end the canary.
    pub(crate) fn is_condemned(&self) -> bool {
        self.verdict.borrow().is_some()
    }

    /// Ends it for `reason`: no request goes to the canary from now on.
    pub(crate) fn condemn(&self, reason: Against) {
        self.verdict.send_if_modified(|verdict| {
            let is_first = verdict.is_none();
            if is_first {
                *verdict = Some(reason);
            }
            is_first
        });
        self.share.store(0, Ordering::Relaxed);
    }

    /// Begins the next minute of what is known of latency, if `minute`, and looks anew at what is
    /// slow and at what the figures say. To be called every second or so.
    pub(crate) fn tick(&self, minute: bool) {
        if minute {
            self.live.latency.next_minute();
            self.canary.latency.next_minute();
        }
        // Without the other one's answers nothing says what is slow now.
        let slow = match self.share() {
            FULL => None,
            _ => self.live.latency.quantile(0.99, ENOUGH),
        };
        let slow = slow.map_or(u64::MAX, |slow| micros(slow.max(NOTICEABLE)));
        self.slow.store(slow, Ordering::Relaxed);
        let mut judged = self.judged.lock();
        self.bring_up_to_date(&mut judged);
        self.decide(&judged);
    }

    /// Adds the requests of a canary that gets all of them.
    fn bring_up_to_date(&self, judged: &mut Judged) {
        let Some(known) = &mut judged.undivided else {
            return;
        };
        let requests = self.canary.requests.load(Ordering::Relaxed);
        let failed = self.canary.failed.load(Ordering::Relaxed);
        let more = (
            requests.saturating_sub(known.requests),
            failed.saturating_sub(known.failed),
        );
        (known.requests, known.failed) = (requests, failed);
        let evidence = &mut judged.failures.evidence;
        evidence.add_undivided(more.0, more.1, known.rate);
    }

    fn decide(&self, judged: &Judged) {
        if judged.failures.evidence.ratio() >= TOO_MUCH {
            self.condemn(Against::Failures);
        } else if judged.slowness.evidence.ratio() >= TOO_MUCH {
            self.condemn(Against::Slowness);
        }
    }

    #[cold]
    fn add_failure(&self, sample: &Sample) {
        let mut judged = self.judged.lock();
        if !judged.failures.counts(sample.client) {
            return;
        }
        self.counted(sample.side)
            .failed
            .fetch_add(1, Ordering::Relaxed);
        if judged.undivided.is_some() {
            self.bring_up_to_date(&mut judged);
        } else if let Some(share) = sample.share {
            let of_canary = sample.side == Side::Canary;
            let evidence = &mut judged.failures.evidence;
            evidence.add_failure(of_canary, share.part());
        }
        self.decide(&judged);
    }

    #[cold]
    fn add_slow(&self, sample: &Sample) {
        let Some(share) = sample.share else { return };
        let mut judged = self.judged.lock();
        if judged.undivided.is_none() && judged.slowness.counts(sample.client) {
            let of_canary = sample.side == Side::Canary;
            let evidence = &mut judged.slowness.evidence;
            evidence.add_failure(of_canary, share.part());
            self.decide(&judged);
        }
    }

    /// Adds requests of the canary that held a worker for too long.
    pub(crate) fn add_stalls(self: &Arc<Self>, side: Side, stalls: u64) {
        for _ in 0..stalls {
            self.add_failure(&self.sample(side, None, Some(self.share())));
        }
    }
}

impl Sample {
    /// The request was answered, or its time is over.
    pub(crate) fn answered(&self, failed: bool) {
        let took = self.began.elapsed();
        let counted = self.trial.counted(self.side);
        let before = counted.requests.fetch_add(1, Ordering::Relaxed);
        counted.latency.record(took);
        match self.client {
            Some(client) => self.trial.see(client),
            None => self.trial.several.store(true, Ordering::Relaxed),
        }
        if failed {
            self.trial.add_failure(self);
        }
        let is_warm = self.side == Side::Live || before >= self.trial.warm_up;
        if is_warm && micros(took) > self.trial.slow.load(Ordering::Relaxed) {
            self.trial.add_slow(self);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(trial: &Arc<Trial>, side: Side, client: Option<u64>) {
        let sample = trial.sample(side, client, Some(trial.share()));
        sample.answered(true);
    }

    fn verdict(trial: &Trial) -> Option<Against> {
        trial.verdict().borrow().clone()
    }

    #[test]
    fn each_share_gets_its_part_and_nobody_goes_back() {
        let trial = Trial::new(Share::of(0.0), 0);
        let canaries = |trial: &Trial| -> HashSet<u32> {
            (0..20_000)
                .filter(|key| trial.choose(Some(trial.number(key))).0 == Side::Canary)
                .collect()
        };
        let mut before = HashSet::new();
        for part in [0.0, 0.05, 0.25, 0.5, 1.0] {
            trial.set_share(Share::of(part), (0, 0));
            let now = canaries(&trial);
            assert!(now.is_superset(&before));
            let got = now.len() as f64 / 20_000.0;
            assert!((got - part).abs() < 0.02, "{got} of {part}");
            before = now;
        }
        trial.set_share(Share::of(0.1), (0, 0));
        let by_chance = (0..20_000)
            .filter(|_| trial.choose(None).0 == Side::Canary)
            .count();
        assert!((1_700..2_300).contains(&by_chance), "{by_chance}");
    }

    #[test]
    fn what_fails_more_often_is_ended_and_gets_nothing_more() {
        let trial = Arc::new(Trial::new(Share::of(0.05), 0));
        let mut failures = 0;
        while verdict(&trial).is_none() {
            failure(&trial, Side::Canary, None);
            failures += 1;
        }
        assert_eq!(verdict(&trial), Some(Against::Failures));
        assert!(failures <= 4, "{failures}");
        assert_eq!(trial.share(), Share::of(0.0));
        trial.set_share(FULL, (0, 0));
        assert_eq!(trial.share(), Share::of(0.0));
    }

    #[test]
    fn a_broken_client_counts_once() {
        let trial = Arc::new(Trial::new(Share::of(0.5), 0));
        for _ in 0..1000 {
            for client in 0..3 {
                failure(&trial, Side::Canary, Some(client % 2));
            }
        }
        assert_eq!(verdict(&trial), None);
        assert_eq!(trial.counts(Side::Canary).failed, 2);
        assert_eq!(trial.counts(Side::Canary).requests, 3000);
    }

    #[test]
    fn with_all_requests_a_canary_is_compared_with_what_was() {
        let trial = Arc::new(Trial::new(Share::of(0.5), 0));
        trial.set_share(FULL, (100_000, 20));
        for at in 0..5000 {
            let sample = trial.sample(Side::Canary, None, Some(FULL));
            sample.answered(at % 50 == 0);
        }
        trial.tick(false);
        assert_eq!(verdict(&trial), Some(Against::Failures));
        let trial = Arc::new(Trial::new(Share::of(0.5), 0));
        trial.set_share(FULL, (100_000, 2_000));
        for at in 0..5000 {
            let sample = trial.sample(Side::Canary, None, Some(FULL));
            sample.answered(at % 50 == 0);
        }
        trial.tick(true);
        assert_eq!(verdict(&trial), None);
    }

    #[test]
    fn what_is_slow_more_often_is_ended() {
        let trial = Arc::new(Trial::new(Share::of(0.2), 5));
        for _ in 0..ENOUGH {
            trial.live.latency.record(Duration::from_millis(100));
        }
        trial.tick(false);
        let slow = trial.slow.load(Ordering::Relaxed);
        assert!((100_000..115_000).contains(&slow), "{slow}");
        let mut sample = trial.sample(Side::Canary, None, Some(trial.share()));
        sample.began = Instant::now() - Duration::from_millis(200);
        for _ in 0..5 {
            sample.answered(false);
        }
        assert_eq!(trial.evidence().1, 1.0, "it warms up");
        for _ in 0..10 {
            sample.answered(false);
        }
        assert_eq!(verdict(&trial), Some(Against::Slowness));
    }
}
