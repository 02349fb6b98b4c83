//! Limits of requests by whose they are: how many in a time (the generic cell rate algorithm, as
//! ITU-T I.371 has it), and how many at once.
//!
//! What is kept of a client is one instant, for as long as it says anything; so what a flood of
//! clients costs is what those of the last `per` cost.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, Uri};
use parking_lot::Mutex;

use super::key::key_of;
use crate::config::{Limit, LimitedBy, RequestKey};

/// Parts of the table, so that clients seldom wait for each other.
const PARTS: usize = 16;

/// How many entries a part has before those that say nothing any more are looked for.
const FIRST_SWEEP: usize = 1024;

/// The limits of one app, over all its generations.
#[derive(Debug)]
pub(super) struct Rates {
    limits: Vec<Rate>,
    /// What tells a tenant.
    tenant: Option<RequestKey>,
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
}

impl Default for Part {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            sweep_at: FIRST_SWEEP,
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
        for (limit, key) in &self.of {
            self.rates.limits[*limit].ended(*key);
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
        Some(Arc::new(Self {
            limits: settings.iter().cloned().map(Rate::new).collect(),
            tenant: tenant.cloned(),
        }))
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
    ) -> Result<Admitted, TooMany> {
        let now = Instant::now();
        let mut admitted = Admitted {
            rates: Arc::clone(self),
            of: Vec::new(),
        };
        let mut counted: Vec<(&Rate, u64)> = Vec::with_capacity(self.limits.len());
        for (number, limit) in self.limits.iter().enumerate() {
            let key = limit.key(self.tenant.as_ref(), uri, headers, client);
            if let Err(too_many) = limit.count(key, now) {
                for (limit, key) in counted {
                    limit.forgive(key);
                }
                return Err(too_many);
            }
            counted.push((limit, key));
            if limit.settings.concurrent.is_some() {
                admitted.of.push((number, key));
            }
        }
        Ok(admitted)
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

    fn count(&self, key: u64, now: Instant) -> Result<(), TooMany> {
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
        let is_full = |most: u32| known.running >= most;
        if self
            .settings
            .concurrent
            .is_some_and(|most| is_full(most.get()))
        {
            return Err(TooMany(Duration::from_secs(1)));
        }
        if let Some(interval) = self.interval() {
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
        }
        if self.settings.concurrent.is_some() {
            known.running += 1;
        }
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

    fn ended(&self, key: u64) {
        let mut part = self.part(key).lock();
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

    #[test]
    fn so_many_at_a_time_and_an_end_makes_room() {
        let rate = Rate::new(limit(0, 0, 2));
        let now = Instant::now();
        rate.count(7, now).unwrap();
        rate.count(7, now).unwrap();
        rate.count(7, now).unwrap_err();
        rate.ended(7);
        rate.count(7, now).unwrap();
        rate.ended(7);
        rate.ended(7);
        assert!(rate.part(7).lock().known.is_empty());
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
