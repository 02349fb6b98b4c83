//! A store as one generation sees it, over the ABI.

use std::{
    sync::{Arc, OnceLock},
    task::{Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use handover_plugin::abi::{
    lent::Lent,
    poll::PollState,
    state::{
        self as abi, ADD, ANSWERS_WAIT, DELETE, HAS_AFTER, HAS_TO, IS_THERE, PREFIX, PUT, REVERSE,
        StateFuture, StateService, StateSink, codes,
    },
};
use parking_lot::RwLock;

use super::{
    changes::{Seen, Watcher},
    commit::{Check, Commit, Mutation, RangeCheck, StateError},
    partition::{Query, Settings, Snapshot},
    place::{Bounds, Namespace, Place, split},
    store::Store,
    ticket::{Pending, Ticket},
};
use crate::wakers::WakerCount;

/// Changes that a watcher is told at a time, about.
const CHANGES_AT_ONCE: usize = 1000;

/// A store as one generation sees it.
#[derive(Debug)]
pub(crate) struct Session {
    store: Arc<Store>,
    /// Whether the generation has ended: nothing is read or written from then on.
    ended: RwLock<bool>,
    wakers: WakerCount,
}

impl StateError {
    /// The code that crosses the boundary.
    pub(crate) fn code(&self) -> u32 {
        match self {
            Self::Conflict => codes::CONFLICT,
            Self::Place(_) | Self::MixedCommit => codes::INVALID,
            Self::LongValue(_) | Self::LargeCommit => codes::TOO_LARGE,
            Self::Quota { .. } => codes::QUOTA,
            Self::NoCounter => codes::NO_COUNTER,
            Self::Unavailable(_) => codes::UNAVAILABLE,
            Self::Busy => codes::BUSY,
            Self::Ended => codes::ENDED,
        }
    }
}

fn refuse(sink: &StateSink<'_>, error: &StateError) {
    sink.failed(error.code(), &error.to_string());
}

/// Snapshots of both kinds of namespaces, each taken when it is first read.
#[derive(Debug, Default)]
struct Snapshots {
    disk: OnceLock<Result<Snapshot, StateError>>,
    memory: OnceLock<Result<Snapshot, StateError>>,
}

impl Snapshots {
    fn of(&self, store: &Store, memory: bool) -> Result<&Snapshot, StateError> {
        let slot = if memory { &self.memory } else { &self.disk };
        slot.get_or_init(|| store.snapshot(memory))
            .as_ref()
            .map_err(Clone::clone)
    }
}

impl Session {
    /// A session on `store`.
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            ended: RwLock::new(false),
            wakers: WakerCount::default(),
        }
    }

    /// The generation ends: nothing that it asks for is done from now on. What it has handed over
    /// is.
    pub(crate) fn end(&self) {
        *self.ended.write() = true;
    }

    /// Waits until the host has no waker of the generation any more, for `deadline` at the longest;
    /// gives how many are left.
    pub(crate) async fn release_wakers(&self, deadline: Duration) -> u64 {
        self.wakers.none_left(deadline).await
    }

    fn check_live(&self) -> Result<(), StateError> {
        if *self.ended.read() {
            Err(StateError::Ended)
        } else {
            Ok(())
        }
    }

    fn read(
        &self,
        get: Lent<'_, abi::Get<'_>>,
        snapshot: Option<&abi::Snapshot>,
        sink: &StateSink<'_>,
    ) -> Result<(), StateError> {
        self.check_live()?;
        let namespace: Namespace = get.namespace.as_str().parse()?;
        let key = get.key.as_slice();
        let place = namespace.place(key)?;
        let memory = namespace.is_memory();
        let given = |record: super::engine::Record<'_>| {
            sink.entry(key, record.value, record.version);
        };
        match snapshot.and_then(|snapshot| snapshot.downcast_ref::<Snapshots>()) {
            Some(snapshots) => snapshots.of(&self.store, memory)?.get(&place, given),
            None => self.store.get(memory, &place, given),
        }
    }

    fn read_page(
        &self,
        scan: Lent<'_, abi::Scan<'_>>,
        snapshot: Option<&abi::Snapshot>,
        sink: &StateSink<'_>,
    ) -> Result<(), StateError> {
        self.check_live()?;
        let namespace: Namespace = scan.namespace.as_str().parse()?;
        let mut bounds = bounds(&namespace, scan.flags, &scan.from, &scan.to);
        let reverse = scan.flags & REVERSE != 0;
        if scan.flags & HAS_AFTER != 0 {
            let after = namespace.place(&scan.after)?;
            bounds.resume_behind(after.as_bytes(), reverse);
        }
        let query = Query {
            bounds,
            reverse,
            limit: usize::try_from(scan.limit).unwrap_or(usize::MAX),
        };
        let own;
        let memory = namespace.is_memory();
        let snapshot = match snapshot.and_then(|snapshot| snapshot.downcast_ref::<Snapshots>()) {
            Some(snapshots) => snapshots.of(&self.store, memory)?,
            None => {
                own = self.store.snapshot(memory)?;
                &own
            }
        };
        let page = snapshot.scan(&query, |place, record| {
            sink.entry(split(place).1, record.value, record.version);
        })?;
        sink.page(snapshot.totals().version, page.more);
        Ok(())
    }

    fn take(&self, commit: Lent<'_, abi::Commit<'_>>) -> Result<Pending, StateError> {
        let (memory, commit) = owned_commit(&commit)?;
        // RetainReasons until it is handed over: after `end` nothing is.
        let ended = self.ended.read();
        if *ended {
            return Err(StateError::Ended);
        }
        Ok(self.store.commit(memory, commit))
    }

    fn begin_watch(&self, watch: Lent<'_, abi::Watch<'_>>) -> Result<Watching, StateError> {
        self.check_live()?;
        let namespace: Namespace = watch.namespace.as_str().parse()?;
        let memory = namespace.is_memory();
        let bounds = namespace.prefix(&watch.prefix);
        let token = (watch.flags & HAS_TO != 0).then_some(watch.token);
        let watcher = self
            .store
            .with(memory, |partition| partition.changes().watch(bounds, token))?;
        Ok(Watching {
            watcher,
            memory,
            store: Arc::clone(&self.store),
            wakers: self.wakers.clone(),
        })
    }
}

fn bounds(namespace: &Namespace, flags: u32, from: &[u8], to: &[u8]) -> Bounds {
    if flags & PREFIX != 0 {
        namespace.prefix(from)
    } else {
        namespace.range(from, (flags & HAS_TO != 0).then_some(to))
    }
}

/// A commit of this side, and whether it is one of what is kept in memory.
pub(crate) fn owned_commit(commit: &abi::Commit<'_>) -> Result<(bool, Commit), StateError> {
    let mut kind = None;
    let mut namespace = |text: &str| -> Result<Namespace, StateError> {
        let namespace: Namespace = text.parse()?;
        match kind.replace(namespace.is_memory()) {
            Some(before) if before != namespace.is_memory() => Err(StateError::MixedCommit),
            _ => Ok(namespace),
        }
    };
    let mut owned = Commit::default();
    for check in commit.checks.iter() {
        let place = namespace(&check.namespace)?.place(&check.key)?;
        owned.checks.push(Check {
            place,
            version: check.version,
        });
    }
    for range in commit.ranges.iter() {
        let namespace = namespace(&range.namespace)?;
        owned.ranges.push(RangeCheck {
            bounds: bounds(&namespace, range.flags, &range.from, &range.to),
            version: range.version,
        });
    }
    for mutation in commit.mutations.iter() {
        let place = namespace(&mutation.namespace)?.place(&mutation.key)?;
        let ttl_ms = (mutation.ttl_ms > 0).then_some(mutation.ttl_ms);
        owned.mutations.push(match mutation.kind {
            PUT => put(place, &mutation.value, ttl_ms)?,
            DELETE => Mutation::Delete { place },
            ADD => Mutation::Add {
                place,
                delta: mutation.delta,
                ttl_ms,
            },
            kind => {
                return Err(StateError::Unavailable(format!(
                    "this host knows no mutation of kind {kind}: upgrade the host"
                )));
            }
        });
    }
    Ok((kind.unwrap_or(false), owned))
}

fn put(place: Place, value: &[u8], ttl_ms: Option<u64>) -> Result<Mutation, StateError> {
    if value.len() > super::commit::MAX_VALUE {
        // Before it is copied.
        return Err(StateError::LongValue(value.len()));
    }
    Ok(Mutation::Put {
        place,
        value: Bytes::copy_from_slice(value),
        ttl_ms,
    })
}

impl StateService for Session {
    fn settings(&self) -> u64 {
        let Settings { answers_wait, .. } = self.store.settings();
        if answers_wait { ANSWERS_WAIT } else { 0 }
    }

    fn get(
        &self,
        get: Lent<'_, abi::Get<'_>>,
        snapshot: Option<&abi::Snapshot>,
        sink: &StateSink<'_>,
    ) {
        if let Err(error) = self.read(get, snapshot, sink) {
            refuse(sink, &error);
        }
    }

    fn scan(
        &self,
        scan: Lent<'_, abi::Scan<'_>>,
        snapshot: Option<&abi::Snapshot>,
        sink: &StateSink<'_>,
    ) {
        if let Err(error) = self.read_page(scan, snapshot, sink) {
            refuse(sink, &error);
        }
    }

    fn snapshot(&self) -> abi::Snapshot {
        Box::new(Snapshots::default())
    }

    fn commit(&self, commit: Lent<'_, abi::Commit<'_>>) -> Box<dyn StateFuture> {
        let pending = self.take(commit);
        let ticket = match pending {
            Ok(pending) => pending.ticket,
            Err(error) => Ticket::ended(Err(error)),
        };
        Box::new(Committing {
            ticket,
            wakers: self.wakers.clone(),
        })
    }

    fn watch(&self, watch: Lent<'_, abi::Watch<'_>>) -> Box<dyn StateFuture> {
        match self.begin_watch(watch) {
            Ok(watching) => Box::new(watching),
            Err(error) => Box::new(Refused(error)),
        }
    }
}

/// A commit that a plugin waits for.
struct Committing {
    ticket: Arc<Ticket>,
    wakers: WakerCount,
}

impl StateFuture for Committing {
    fn poll(&mut self, waker: &Waker, sink: &StateSink<'_>) -> PollState {
        match self.ticket.poll(waker, &self.wakers) {
            Poll::Pending => PollState::Pending,
            Poll::Ready(Ok(committed)) => {
                sink.committed(committed.version, &committed.sums);
                PollState::Ready
            }
            Poll::Ready(Err(error)) => {
                refuse(sink, &error);
                PollState::Failed
            }
        }
    }
}

impl Drop for Committing {
    fn drop(&mut self) {
        self.ticket.forget();
    }
}

/// A plugin that watches.
struct Watching {
    watcher: Arc<Watcher>,
    memory: bool,
    store: Arc<Store>,
    wakers: WakerCount,
}

impl StateFuture for Watching {
    fn poll(&mut self, waker: &Waker, sink: &StateSink<'_>) -> PollState {
        let polled = self.store.with(self.memory, |partition| {
            let changes = partition.changes();
            changes.poll(&self.watcher, CHANGES_AT_ONCE, waker, &self.wakers)
        });
        match polled {
            Ok(None) => PollState::Pending,
            Ok(Some(Seen {
                changes,
                missed,
                token,
            })) => {
                let changes: Vec<_> = changes
                    .iter()
                    .map(|change| abi::Change {
                        key: split(&change.place).1.into(),
                        version: change.version,
                        flags: if change.is_there { IS_THERE } else { 0 },
                    })
                    .collect();
                sink.changed(&changes, token, missed);
                PollState::Ready
            }
            Err(error) => {
                refuse(sink, &error);
                PollState::Failed
            }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.watcher.forget();
    }
}

/// What could not even begin.
struct Refused(StateError);

impl StateFuture for Refused {
    fn poll(&mut self, _waker: &Waker, sink: &StateSink<'_>) -> PollState {
        refuse(sink, &self.0);
        PollState::Failed
    }
}
