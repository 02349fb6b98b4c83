//! Limits of requests by whose they are: how many in a time (the generic cell rate algorithm, as
//! ITU-T I.371 has it), how many at once, and how many wait for their turn.
//!
//! Who waits has a place in the queue of its own key, so that it holds up nobody else: places that
//! all of an app share are taken last, when those of one client or tenant are held already.
//!
//! What is kept of a client is one instant, for as long as it says anything; so what a flood of
//! clients costs is what those of the last `per` cost.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http::{HeaderMap, Uri};
use parking_lot::Mutex;
use tokio::{sync::oneshot, time::timeout};

use super::key::key_of;
use crate::config::{Limit, LimitedBy, RequestKey};

/// Parts of the table, so that clients seldom wait for each other.
const PARTS: usize = 16;

/// How many entries a part has before those that say nothing any more are looked for.
const FIRST_SWEEP: usize = 1024;

/// After which time one that found no place may be tried again.
const NO_PLACE: TooMany = TooMany(Duration::from_secs(1));

/// The limits of one app, over all its generations.
#[derive(Debug)]
pub(super) struct Rates {
    limits: Vec<Rate>,
    /// What tells a tenant.
    tenant: Option<RequestKey>,
    /// Those of them that limit how many there are at once, in the order in which places are taken.
    places: Vec<usize>,
    /// How many requests wait.
    waiting: AtomicUsize,
}

#[derive(Debug)]
struct Rate {
    settings: Limit,
    keys: RandomState,
    parts: [Mutex<Part>; PARTS],
}

#[derive(Debug)]
struct Part {
    known: HashMap<u64, Known>,
    sweep_at: usize,
    /// Who waits for a place, by key, in the order of their numbers.
    queues: HashMap<u64, BTreeMap<u64, oneshot::Sender<Admitted>>>,
    /// The number of the last one.
    last: u64,
}

impl Default for Part {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            sweep_at: FIRST_SWEEP,
            queues: HashMap::new(),
            last: 0,
        }
    }
}

/// What is kept of a key, by its keyed hash.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// When the next request would come if they came as evenly as they may.
    due: Instant,
    /// How many are under way.
    running: u32,
}

/// That requests are counted as under way. Dropping it ends that.
#[derive(Debug)]
pub(super) struct Admitted {
    rates: Arc<Rates>,
    /// The limit, and the key.
    of: Vec<(usize, u64)>,
}

impl Admitted {
    /// Whether it is counted anywhere.
    pub(super) fn is_under_way(&self) -> bool {
        !self.of.is_empty()
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        for (limit, key) in std::mem::take(&mut self.of) {
            self.rates.ended(limit, key);
        }
    }
}

/// Whether a request is admitted.
pub(super) enum RateAdmission {
    /// It is.
    Now(Admitted),
    /// It is when its turn has come, or is refused then.
    Later(AwaitPlace),
}

/// Waits for a turn. Dropping it gives the place in the queue up.
pub(super) type AwaitPlace = Pin<Box<dyn Future<Output = Result<Admitted, TooMany>> + Send>>;

/// What became of a request for a place.
enum Place {
    Taken,
    /// It is the turn of others.
    Queued(Queued),
    Full,
}

/// A place in a queue. Dropping it gives it up, also when the client has left.
struct Queued {
    rates: Arc<Rates>,
    limit: usize,
    key: u64,
    number: u64,
    turn: oneshot::Receiver<Admitted>,
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.rates.waiting.fetch_sub(1, Ordering::Relaxed);
        let mut part = self.rates.limits[self.limit].part(self.key).lock();
        if let Some(queue) = part.queues.get_mut(&self.key) {
            // None when its turn has come.
            queue.remove(&self.number);
            if queue.is_empty() {
                part.queues.remove(&self.key);
            }
        }
    }
}

/// After which time it may be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMany(pub(super) Duration);

impl Rates {
    /// Returns the limits of these `settings`; none where there are none. What is known of clients
    /// stays where `before` has the very same ones.
    pub(super) fn new(
        settings: &[Limit],
        tenant: Option<&RequestKey>,
        before: Option<&Arc<Self>>,
    ) -> Option<Arc<Self>> {
        if settings.is_empty() {
            return None;
        }
        if let Some(before) = before
            && before.tenant.as_ref() == tenant
            && before
                .limits
                .iter()
                .map(|limit| &limit.settings)
                .eq(settings)
        {
            return Some(Arc::clone(before));
        }
        let limited = settings.iter().enumerate();
        let limited = limited.filter(|(_, limit)| limit.concurrent.is_some());
        let (of_all, of_some): (Vec<_>, Vec<_>) =
            limited.partition(|(_, limit)| limit.by == LimitedBy::App);
        let places = of_some.iter().chain(&of_all).map(|(number, _)| *number);
        Some(Arc::new(Self {
            limits: settings.iter().cloned().map(Rate::new).collect(),
            tenant: tenant.cloned(),
            places: places.collect(),
            waiting: AtomicUsize::new(0),
        }))
    }

    /// Returns how many requests wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Counts a request.
    ///
    /// # Errors
    /// When it is one too many.
    pub(super) fn admit(
        self: &Arc<Self>,
        uri: &Uri,
        headers: &HeaderMap,
        client: &Option<SocketAddr>,
    ) -> Result<RateAdmission, TooMany> {
        let now = Instant::now();
        let mut keys = Vec::with_capacity(self.limits.len());
        for limit in &self.limits {
            let key = limit.key(self.tenant.as_ref(), uri, headers, client);
            if let Err(too_many) = limit.count(key, now) {
                self.forgive(&keys);
                return Err(too_many);
            }
            keys.push(key);
        }
        let mut admitted = Admitted {
            rates: Arc::clone(self),
            of: Vec::new(),
        };
        for (at, limit) in self.places.iter().enumerate() {
            let key = keys[*limit];
            match self.place(*limit, key) {
                Place::Taken => admitted.of.push((*limit, key)),
                Place::Queued(queued) => {
                    let waits = Arc::clone(self).wait(keys, admitted, at, queued);
                    return Ok(RateAdmission::Later(Box::pin(waits)));
                }
                Place::Full => {
                    self.forgive(&keys);
                    return Err(NO_PLACE);
                }
            }
        }
        Ok(RateAdmission::Now(admitted))
    }

    /// Waits for the place with the number `at` of [`places`](Self::places), and takes those after
    /// it.
    async fn wait(
        self: Arc<Self>,
        keys: Vec<u64>,
        mut admitted: Admitted,
        mut at: usize,
        queued: Queued,
    ) -> Result<Admitted, TooMany> {
        let mut place = Place::Queued(queued);
        while let Some(limit) = self.places.get(at) {
            match place {
                Place::Taken => admitted.of.push((*limit, keys[*limit])),
                Place::Full => {
                    self.forgive(&keys);
                    return Err(NO_PLACE);
                }
                Place::Queued(mut queued) => {
                    let longest = self.limits[*limit].settings.queue_wait;
                    let turn = timeout(longest, &mut queued.turn).await;
                    let Ok(Ok(mut turn)) = turn else {
                        self.forgive(&keys);
                        return Err(NO_PLACE);
                    };
                    admitted.of.append(&mut turn.of);
                }
            }
            at += 1;
            if let Some(limit) = self.places.get(at) {
                place = self.place(*limit, keys[*limit]);
            } else {
                break;
            }
        }
        Ok(admitted)
    }

    /// Takes a place of `key`, or one in its queue.
    fn place(self: &Arc<Self>, limit: usize, key: u64) -> Place {
        let settings = &self.limits[limit].settings;
        let mut part = self.limits[limit].part(key).lock();
        let known = part.known.entry(key).or_insert_with(Known::fresh);
        // Nobody waits while there is a place: who leaves one gives it to the first who does.
        if settings
            .concurrent
            .is_none_or(|most| known.running < most.get())
        {
            known.running += 1;
            return Place::Taken;
        }
        if settings.queue == 0 {
            return Place::Full;
        }
        part.last += 1;
        let number = part.last;
        let queue = part.queues.entry(key).or_default();
        if queue.len() >= settings.queue {
            return Place::Full;
        }
        let (gives, turn) = oneshot::channel();
        queue.insert(number, gives);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Place::Queued(Queued {
            rates: Arc::clone(self),
            limit,
            key,
            number,
            turn,
        })
    }

    /// Gives a place of `key` to the first who waits for it, or frees it.
    fn ended(self: &Arc<Self>, limit: usize, key: u64) {
        loop {
            let next = {
                let mut part = self.limits[limit].part(key).lock();
                let next = part.queues.get_mut(&key).and_then(BTreeMap::pop_first);
                if next.is_none() {
                    return self.limits[limit].freed(&mut part, key);
                }
                next
            };
            // Not under the lock: whoever has left meanwhile gives the place back, which takes it.
            let Some((_, gives)) = next else { return };
            let place = Admitted {
                rates: Arc::clone(self),
                of: vec![(limit, key)],
            };
            match gives.send(place) {
                Ok(()) => return,
                // The client has left, and the next one is asked.
                Err(mut place) => place.of.clear(),
            }
        }
    }

    /// Takes back that a request was counted in time, in the limits that have the first keys.
    fn forgive(&self, keys: &[u64]) {
        for (limit, key) in self.limits.iter().zip(keys) {
            limit.forgive(*key);
        }
    }
}

impl Known {
    fn fresh() -> Self {
        Self {
            due: Instant::now(),
            running: 0,
        }
    }
}

impl Rate {
    fn new(settings: Limit) -> Self {
        Self {
            settings,
            keys: RandomState::new(),
            parts: Default::default(),
        }
    }

    /// Whose a request is. One that does not say it is its client's.
    fn key(
        &self,
        tenant: Option<&RequestKey>,
        uri: &Uri,
        headers: &HeaderMap,
        client: &Option<SocketAddr>,
    ) -> u64 {
        let key = match &self.settings.by {
            LimitedBy::App => return 0,
            LimitedBy::Tenant => tenant,
            LimitedBy::Key(RequestKey::Address) => None,
            LimitedBy::Key(key) => Some(key),
        };
        match key.and_then(|key| key_of(key, uri, headers, client)) {
            Some(text) => self.keys.hash_one(text),
            None => self
                .keys
                .hash_one(client.map(|client| network(client.ip()))),
        }
    }

    /// How far apart requests are that come evenly.
    fn interval(&self) -> Option<Duration> {
        let requests = self.settings.requests?;
        Some(self.settings.per / requests.get())
    }

    fn part(&self, key: u64) -> &Mutex<Part> {
        &self.parts[(key >> 60) as usize % PARTS]
    }

    /// Counts a request in time.
    fn count(&self, key: u64, now: Instant) -> Result<(), TooMany> {
        let Some(interval) = self.interval() else {
            return Ok(());
        };
        let mut part = self.part(key).lock();
        if part.known.len() >= part.sweep_at {
            part.known
                .retain(|_, known| known.running > 0 || known.due > now);
            part.sweep_at = (part.known.len() * 2).max(FIRST_SWEEP);
        }
        let fresh = Known {
            due: now,
            running: 0,
        };
        let known = part.known.entry(key).or_insert(fresh);
        let due = known.due.max(now);
        let burst = self.settings.burst.or(self.settings.requests);
        let ahead = interval * burst.map_or(1, std::num::NonZeroU32::get);
        let next = due + interval;
        if let Some(too_early) = next
            .checked_duration_since(now + ahead)
            .filter(|early| !early.is_zero())
        {
            return Err(TooMany(too_early));
        }
        known.due = next;
        Ok(())
    }

    /// Takes back that a request was counted in time, which another limit refuses.
    fn forgive(&self, key: u64) {
        if let Some(interval) = self.interval()
            && let Some(known) = self.part(key).lock().known.get_mut(&key)
            && let Some(due) = known.due.checked_sub(interval)
        {
            known.due = due;
        }
    }

    /// One of `key` has ended, and nobody waits for its place.
    fn freed(&self, part: &mut Part, key: u64) {
        let Some(known) = part.known.get_mut(&key) else {
            return;
        };
        known.running = known.running.saturating_sub(1);
        if known.running == 0 && self.settings.requests.is_none() {
            part.known.remove(&key);
        }
    }
}

/// The network that one client has: of IPv6 it is given 64 bits and chooses the others.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let kept = u128::from(address) >> 64 << 64;
            IpAddr::V6(kept.into())
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use std::task::{Context, Poll, Waker};

    use super::*;

    fn limit(requests: u32, burst: u32, concurrent: u32) -> Limit {
        Limit {
            requests: requests.try_into().ok(),
            burst: burst.try_into().ok(),
            concurrent: concurrent.try_into().ok(),
            ..Limit::default()
        }
    }

    #[test]
    fn a_burst_is_let_through_and_then_as_many_as_there_may_be() {
        let rate = Rate::new(limit(10, 3, 0));
        let now = Instant::now();
        for _ in 0..3 {
            rate.count(7, now).unwrap();
        }
        let TooMany(wait) = rate.count(7, now).unwrap_err();
        assert_eq!(wait, Duration::from_millis(100));
        rate.count(8, now).unwrap();
        rate.count(7, now + wait).unwrap();
        rate.count(7, now + wait).unwrap_err();
        // A refused request is not held against it.
        rate.count(7, now + wait * 2).unwrap();
    }

    #[test]
    fn what_one_limit_refuses_no_other_counts() {
        let per_client = |requests| Limit {
            per: Duration::from_secs(3600),
            ..limit(requests, 0, 0)
        };
        let tight = Limit {
            by: LimitedBy::Key("header:x-key".parse().unwrap()),
            ..per_client(1)
        };
        let rates = Rates::new(&[per_client(3), tight], None, None).unwrap();
        let ask = |key: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-key", http::HeaderValue::from_static(key));
            rates.admit(&Uri::from_static("/"), &headers, &None).is_ok()
        };
        assert!(ask("a"));
        for _ in 0..5 {
            assert!(!ask("a"));
        }
        assert!(ask("b") && ask("c"));
        assert!(!ask("d"));
    }

    /// Asks as the client `key`.
    fn ask(rates: &Arc<Rates>, key: &'static str) -> Result<RateAdmission, TooMany> {
        let mut headers = HeaderMap::new();
        headers.insert("x-key", http::HeaderValue::from_static(key));
        rates.admit(&Uri::from_static("/"), &headers, &None)
    }

    fn now(turn: Result<RateAdmission, TooMany>) -> Admitted {
        match turn {
            Ok(RateAdmission::Now(admitted)) => admitted,
            Ok(RateAdmission::Later(_)) => panic!("it waits"),
            Err(TooMany(wait)) => panic!("it is refused for {wait:?}"),
        }
    }

    fn later(turn: Result<RateAdmission, TooMany>) -> AwaitPlace {
        match turn {
            Ok(RateAdmission::Later(turn)) => turn,
            _ => panic!("it does not wait"),
        }
    }

    fn by_key(concurrent: u32, queue: usize) -> Limit {
        Limit {
            by: LimitedBy::Key("header:x-key".parse().unwrap()),
            queue,
            queue_wait: Duration::from_secs(3600),
            ..limit(0, 0, concurrent)
        }
    }

    fn is_ready(turn: &mut AwaitPlace) -> Option<Result<Admitted, TooMany>> {
        let mut cx = Context::from_waker(Waker::noop());
        match turn.as_mut().poll(&mut cx) {
            Poll::Ready(turn) => Some(turn),
            Poll::Pending => None,
        }
    }

    fn nothing_is_kept(rates: &Rates) {
        assert_eq!(rates.waiting(), 0);
        for part in rates.limits.iter().flat_map(|limit| &limit.parts) {
            let part = part.lock();
            assert!(part.known.is_empty() && part.queues.is_empty(), "{part:?}");
        }
    }

    #[test]
    fn so_many_at_a_time_and_an_end_makes_room() {
        let rates = Rates::new(&[by_key(2, 0)], None, None).unwrap();
        let held = [now(ask(&rates, "a")), now(ask(&rates, "a"))];
        assert!(ask(&rates, "a").is_err());
        now(ask(&rates, "b"));
        drop(held);
        now(ask(&rates, "a"));
        nothing_is_kept(&rates);
    }

    #[tokio::test]
    async fn those_of_one_who_wait_come_in_order_and_the_rest_is_refused() {
        let rates = Rates::new(&[by_key(1, 3)], None, None).unwrap();
        let first = now(ask(&rates, "a"));
        let [mut second, mut third, fourth] = [(); 3].map(|()| later(ask(&rates, "a")));
        assert!(ask(&rates, "a").is_err());
        // Nobody else waits for them.
        now(ask(&rates, "b"));
        assert!(is_ready(&mut second).is_none() && is_ready(&mut third).is_none());
        assert_eq!(rates.waiting(), 3);
        drop(first);
        assert!(is_ready(&mut third).is_none());
        let second = is_ready(&mut second).unwrap().unwrap();
        // A client leaves, and gives its place back.
        drop(fourth);
        let mut fifth = later(ask(&rates, "a"));
        assert_eq!(rates.waiting(), 2);
        // One that leaves when its turn has come gives that back.
        drop(second);
        drop(third);
        let fifth = is_ready(&mut fifth).unwrap().unwrap();
        drop(fifth);
        nothing_is_kept(&rates);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_waited_for_too_long_is_refused_and_not_counted() {
        let limits = Limit {
            requests: 2.try_into().ok(),
            per: Duration::from_secs(86_400),
            ..by_key(1, 9)
        };
        let rates = Rates::new(&[limits], None, None).unwrap();
        let first = now(ask(&rates, "a"));
        assert_eq!(later(ask(&rates, "a")).await.unwrap_err(), NO_PLACE);
        assert_eq!(rates.waiting(), 0);
        drop(first);
        now(ask(&rates, "a"));
        assert!(ask(&rates, "a").is_err());
    }

    #[tokio::test]
    async fn who_waits_for_its_own_turn_takes_no_place_of_all() {
        let of_all = Limit {
            queue: 1,
            queue_wait: Duration::from_secs(3600),
            ..limit(0, 0, 2)
        };
        let rates = Rates::new(&[of_all, by_key(1, 5)], None, None).unwrap();
        let first = now(ask(&rates, "a"));
        let mut waits = later(ask(&rates, "a"));
        let other = now(ask(&rates, "b"));
        // It has its own place then, and waits for one of all.
        let mut third = later(ask(&rates, "c"));
        assert!(ask(&rates, "d").is_err());
        drop(first);
        assert!(is_ready(&mut waits).is_none() || rates.waiting() == 0);
        let third = is_ready(&mut third).unwrap().unwrap();
        drop(other);
        let waits = is_ready(&mut waits).unwrap().unwrap();
        drop((third, waits));
        nothing_is_kept(&rates);
    }

    #[test]
    fn who_says_nothing_any_more_is_forgotten() {
        let rate = Rate::new(limit(1000, 1, 0));
        let now = Instant::now();
        for key in 0..100_000 {
            rate.count(key, now + Duration::from_micros(key) * 100)
                .unwrap();
        }
        let known: usize = rate.parts.iter().map(|part| part.lock().known.len()).sum();
        assert!(known <= FIRST_SWEEP, "{known}");
    }

    #[test]
    fn a_client_of_ipv6_is_its_network() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2::9"));
        assert_ne!(of("2001:db8:1:3::1"), of("2001:db8:1:2::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
