//! The registry of open connections: how many there are, were and may be, which one goes when
//! another needs its place, why the host ended or refused some, and that all finish at the end.
//!
//! Descriptors are given out lowest first, so the number of a new connection says how many are in
//! use, whoever has them. The last ones are not for clients: the control socket, deploys and a
//! restart live on them.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::RawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use handover_api::ConnectionsStatus;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::{
    activity::{Activity, Doing},
    ended::{Ended, Refused},
    patience::LEAVE_WITHIN,
};
use crate::{
    config,
    generation::CloseHandle,
    open_files,
    telemetry::exposition::{Exposition, Kind},
};

/// How many idle ones go at a time, at most, and which part of them.
const AT_ONCE: usize = 32;
const PART: usize = 8;

/// The connections of the host. Clones are of the same.
#[derive(Clone, Debug)]
pub struct Connections(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    most: Most,
    state: Mutex<State>,
    /// One has ended.
    ended: Notify,
}

/// How many there may be.
#[derive(Clone, Copy, Debug)]
struct Most {
    in_all: usize,
    per_address: Option<usize>,
    /// The first descriptor that is not for clients.
    descriptor: Option<RawFd>,
}

#[derive(Debug, Default)]
struct State {
    /// Those that have not ended, by the address of their switch. Upgraded ones have.
    connections: HashMap<usize, Entry>,
    /// How many there ever were.
    accepted: u64,
    /// How many the host ended and refused, by reason.
    ended: [u64; Ended::ALL.len()],
    refused: [u64; Refused::ALL.len()],
    /// Places that are taken.
    taken: usize,
    /// Those of each client, where that is limited.
    by_client: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
struct Entry {
    close_handle: Arc<CloseHandle>,
    activity: Arc<Activity>,
    claim: Arc<Claim>,
}

/// What a connection counts as, until it ends or is asked to leave.
#[derive(Debug)]
struct Claim {
    /// None over a unix socket, where all are one.
    client: Option<IpAddr>,
    holds: AtomicBool,
}

/// A place among the connections, which goes with the socket: an upgraded one has it still.
#[derive(Debug)]
pub(super) struct Place {
    claim: Arc<Claim>,
    among: Arc<Shared>,
}

/// A connection, as long as it speaks HTTP.
#[derive(Debug)]
pub(super) struct OpenConnection {
    close_handle: Arc<CloseHandle>,
    activity: Arc<Activity>,
    among: Arc<Shared>,
}

impl Connections {
    /// None yet, and as many as `settings` and the system let there be.
    pub fn new(settings: &config::Clients) -> Self {
        let descriptor = open_files::first_reserved();
        let in_all = settings
            .max_connections
            .map_or_else(open_files::most_connections, Into::into);
        tracing::debug!(most = in_all, "connections that clients may have at a time");
        Self(Arc::new(Shared {
            most: Most {
                in_all,
                per_address: settings.max_connections_per_address.map(Into::into),
                descriptor,
            },
            state: Mutex::default(),
            ended: Notify::new(),
        }))
    }

    /// What `handover status` shows of them.
    pub(crate) fn status(&self) -> ConnectionsStatus {
        let state = self.0.state.lock();
        let named = |(why, number): (&str, u64)| (why.to_owned(), number);
        ConnectionsStatus {
            open: state.connections.len() as u64,
            most: self.0.most.in_all as u64,
            accepted: state.accepted,
            ended: state.all_ended().map(named).collect(),
            refused: state.all_refused().map(named).collect(),
        }
    }

    /// Returns how many have a request under way, or the beginning of one.
    pub(crate) fn busy(&self) -> u64 {
        let state = self.0.state.lock();
        let busy = |entry: &&Entry| {
            let activity = &entry.activity;
            activity.is_busy() || matches!(activity.doing(), Doing::NewHead | Doing::Head)
        };
        state.connections.values().filter(busy).count() as u64
    }

    /// Writes the metrics.
    pub(crate) fn write_metrics(&self, to: &mut Exposition) {
        let state = self.0.state.lock();
        to.one(
            "handover_connections_total",
            Kind::Counter,
            "Connections that were accepted.",
            state.accepted,
        );
        to.one(
            "handover_connections_open",
            Kind::Gauge,
            "Connections that are open, upgraded ones not included.",
            state.connections.len(),
        );
        let mut ended = to.family(
            "handover_connections_ended_total",
            Kind::Counter,
            "Connections that the host ended because their clients did nothing, or not what they had to.",
        );
        for (why, number) in state.all_ended() {
            ended.sample(&[("reason", &why)], number);
        }
        let mut refused = to.family(
            "handover_connections_refused_total",
            Kind::Counter,
            "Connections that the host closed as soon as they came.",
        );
        for (why, number) in state.all_refused() {
            refused.sample(&[("reason", &why)], number);
        }
    }

    /// Counts one that the host ended.
    pub(super) fn ended(&self, why: Ended) {
        self.0.state.lock().ended[why as usize] += 1;
    }

    /// Counts one that the host refused.
    pub(super) fn refused(&self, why: Refused) {
        self.0.state.lock().refused[why as usize] += 1;
    }

    /// Takes in a new connection from `client` (none: over a unix socket), whose socket has this
    /// number. Idle ones go for it where there is no place; those that hold a descriptor that is
    /// needed are waited for, though not long.
    ///
    /// # Errors
    /// Why there is no place for it.
    pub(super) async fn admit(
        &self,
        client: Option<SocketAddr>,
        socket: RawFd,
    ) -> Result<(OpenConnection, Place), Refused> {
        let most = &self.0.most;
        if let Some(first_reserved) = most.descriptor
            && socket >= first_reserved
            && !self.make_room().await
        {
            self.refused(Refused::Descriptors);
            return Err(Refused::Descriptors);
        }
        let client = client.map(|address| network(address.ip()));
        let mut state = self.0.state.lock();
        if let (Some(most), Some(address)) = (most.per_address, client) {
            let of_client = |entry: &Entry| entry.claim.client == client;
            let number = state.by_client.get(&address).copied().unwrap_or_default();
            if number >= most && state.oldest_go(1, of_client) == 0 {
                state.refused[Refused::PerAddress as usize] += 1;
                return Err(Refused::PerAddress);
            }
        }
        if state.taken >= most.in_all && state.some_go() == 0 {
            state.refused[Refused::Connections as usize] += 1;
            return Err(Refused::Connections);
        }
        Ok(self.add(&mut state, client))
    }

    fn add(&self, state: &mut State, client: Option<IpAddr>) -> (OpenConnection, Place) {
        let close_handle = Arc::new(CloseHandle::default());
        let activity = Activity::new();
        let claim = Arc::new(Claim {
            client,
            holds: AtomicBool::new(true),
        });
        state.taken += 1;
        if self.0.most.per_address.is_some()
            && let Some(client) = client
        {
            *state.by_client.entry(client).or_default() += 1;
        }
        let entry = Entry {
            close_handle: Arc::clone(&close_handle),
            activity: Arc::clone(&activity),
            claim: Arc::clone(&claim),
        };
        state
            .connections
            .insert(Arc::as_ptr(&close_handle).addr(), entry);
        state.accepted += 1;
        let place = Place {
            claim,
            among: Arc::clone(&self.0),
        };
        let among = Arc::clone(&self.0);
        let connection = OpenConnection {
            close_handle,
            activity,
            among,
        };
        (connection, place)
    }

    /// Lets the oldest idle ones go, and waits until one has. Whether there was any.
    pub(super) async fn make_room(&self) -> bool {
        let ended = self.0.ended.notified();
        if self.0.state.lock().some_go() == 0 {
            return false;
        }
        // One that cannot even do that is held up by the host, not by its client.
        tokio::time::timeout(2 * LEAVE_WITHIN, ended).await.is_ok()
    }

    /// Asks all of them to finish, and waits until they have.
    pub(super) async fn finish(self) {
        for entry in self.0.state.lock().connections.values() {
            entry.close_handle.close_gracefully();
        }
        loop {
            // Asks to be told first and looks then, so that none that ends in between is missed.
            let ended = self.0.ended.notified();
            if self.0.state.lock().connections.is_empty() {
                return;
            }
            ended.await;
        }
    }
}

/// The client, as far as it is told apart from others: by its address, with IPv6 by the network
/// that is given to one customer.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
    }
}

impl State {
    /// How many the host ended, by reason.
    fn all_ended(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Ended::ALL.map(Ended::as_str).into_iter().zip(self.ended)
    }

    /// How many the host refused, by reason.
    fn all_refused(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Refused::ALL
            .map(Refused::as_str)
            .into_iter()
            .zip(self.refused)
    }

    /// Asks some to leave, those first that have been idle for the longest time. How many.
    fn some_go(&mut self) -> usize {
        let part = self.connections.len() / PART;
        self.oldest_go(part.clamp(1, AT_ONCE), |_| true)
    }

    /// Asks up to `number` of those to leave. A head that does not become whole goes only where
    /// nothing is idle.
    fn oldest_go(&mut self, number: usize, among: impl Fn(&Entry) -> bool) -> usize {
        let idle = |entry: &Entry| matches!(entry.activity.doing(), Doing::Idle | Doing::Opening);
        let waited_for = |entry: &Entry| entry.activity.doing() != Doing::Request;
        let mut chosen = self.oldest(number, |entry| among(entry) && idle(entry));
        if chosen.is_empty() {
            chosen = self.oldest(number, |entry| among(entry) && waited_for(entry));
        }
        for key in &chosen {
            let Some(entry) = self.connections.get(key) else {
                continue;
            };
            let claim = Arc::clone(&entry.claim);
            if idle(entry) {
                entry.close_handle.close_gracefully();
            } else {
                entry.close_handle.close_now();
            }
            self.give_up(&claim);
            self.ended[Ended::ForAnother as usize] += 1;
        }
        chosen.len()
    }

    fn oldest(&self, number: usize, eligible: impl Fn(&Entry) -> bool) -> Vec<usize> {
        let mut found: Vec<(Instant, usize)> = self
            .connections
            .iter()
            .filter(|(_, entry)| {
                entry.claim.holds.load(Ordering::Relaxed)
                    && !entry.activity.is_busy()
                    && entry.activity.blocked_since().is_none()
                    && eligible(entry)
            })
            .map(|(key, entry)| (entry.activity.since(), *key))
            .collect();
        if found.len() > number {
            found.select_nth_unstable(number);
            found.truncate(number);
        }
        found.into_iter().map(|(_, key)| key).collect()
    }

    /// The claim counts no longer.
    fn give_up(&mut self, claim: &Claim) {
        if !claim.holds.swap(false, Ordering::Relaxed) {
            return;
        }
        self.taken -= 1;
        if let Some(client) = claim.client
            && let Some(number) = self.by_client.get_mut(&client)
        {
            *number -= 1;
            if *number == 0 {
                self.by_client.remove(&client);
            }
        }
    }
}

impl OpenConnection {
    /// Its switch.
    pub(super) fn close_handle(&self) -> &Arc<CloseHandle> {
        &self.close_handle
    }

    /// What it does.
    pub(super) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let mut state = self.among.state.lock();
        state
            .connections
            .remove(&Arc::as_ptr(&self.close_handle).addr());
        drop(state);
        self.among.ended.notify_waiters();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.among.state.lock().give_up(&self.claim);
    }
}
