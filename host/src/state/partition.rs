//! One engine with its writer thread: group commit, snapshots for readers, expiry.

use std::{
    collections::VecDeque,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use parking_lot::{Condvar, Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::{
    changes::{Change, Changes},
    clock::now_ms,
    commit::{Applied, Commit, Committed, Rules, StateError, apply, sweep, weight},
    engine::{Engine, EngineError, Record, Totals, Verdict, View},
    place::{Bounds, Namespace, Place, split},
    ticket::{Outcome, Pending, Ticket},
};
use crate::{
    values,
    wakers::{Parked, wake_all},
};

/// How long the writer waits for as many commits as were made together the last time.
const GATHER: Duration = Duration::from_millis(2);
/// How many commits are made together at most.
const MOST_TOGETHER: usize = 1024;
/// How much may wait to be written.
const MOST_WAITING: usize = 256 << 20;
/// How often what has expired is removed, at most.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How much of it at a time.
const SWEEP_AT_ONCE: usize = 1000;
/// How long a store that failed is left alone.
const OPEN_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Entries of a page of a scan.
const MOST_ENTRIES: usize = 1000;
/// Bytes of a page, with at least one entry.
const MOST_PAGE_BYTES: usize = 4 << 20;

/// `[app.NAME.state]`
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Bytes of keys and values on the disk, and as many again in memory. Default 1 GiB.
    #[serde(with = "values::size")]
    pub max_size: u64,
    /// Whether the head of an answer waits until the writes of its request are on the disk. Default
    /// true.
    pub answers_wait: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_size: 1 << 30,
            answers_wait: true,
        }
    }
}

/// Opens the engine, the first time and again after it failed.
pub(super) type Open = dyn Fn() -> Result<Box<dyn Engine>, EngineError> + Send;

/// What readers read.
#[derive(Clone)]
enum Readable {
    Snapshot(Arc<dyn View>),
    /// Why there is nothing to read.
    Broken(Arc<str>),
}

/// What the writer is asked for.
enum Order {
    Commit(Commit, Arc<Ticket>),
    /// Everything is replaced by this.
    Replace(Box<Entries>, Arc<Ticket>),
    /// Something is done with what is kept to be returned to.
    Mark(Marking, Arc<Ticket>),
}

/// What is done with what a migration may return to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marking {
    /// What is committed now is kept.
    Keep,
    /// What was kept is what is committed.
    Return,
    /// What was kept is forgotten.
    Forget,
}

/// Places, values and when they expire; an error ends it, and nothing is changed.
pub(super) type Entries = dyn Iterator<Item = Result<(Place, Vec<u8>, u64), StateError>> + Send;

#[derive(Default)]
struct Queue {
    orders: VecDeque<Order>,
    bytes: usize,
    closed: bool,
}

struct Shared {
    readable: ArcSwap<Readable>,
    changes: Changes,
    queue: Mutex<Queue>,
    ordered: Condvar,
    settings: Arc<RwLock<Settings>>,
    runtime: Handle,
}

/// One engine with its writer thread, which ends when this is dropped.
pub(super) struct Partition {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

/// What a reader asks for: the entries of a range, a page at a time.
#[derive(Clone, Debug)]
pub struct Query {
    /// The places.
    pub bounds: Bounds,
    /// From the end to the begin.
    pub reverse: bool,
    /// How many entries at most; fewer than that may be given.
    pub limit: usize,
}

/// What a page was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Whether there is more behind it.
    pub more: bool,
}

/// What was committed at one time.
#[derive(Clone)]
pub struct Snapshot(Arc<dyn View>);

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Snapshot").field(&self.totals()).finish()
    }
}

fn unavailable(cause: &EngineError) -> StateError {
    StateError::Unavailable(cause.to_string())
}

impl Snapshot {
    /// What was known at that time.
    pub fn totals(&self) -> Totals {
        self.0.totals()
    }

    /// Gives what is at `place` to `take`, if anything is. Blocks on the disk where the place is
    /// not in memory.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn get(&self, place: &Place, mut take: impl FnMut(Record<'_>)) -> Result<(), StateError> {
        let now = now_ms();
        self.0
            .get(place.as_bytes(), &mut |record| {
                if record.is_alive(now) {
                    take(record);
                }
            })
            .map_err(|cause| unavailable(&cause))
    }

    /// Gives a page of `query` to `take`. Blocks on the disk as [`get`](Self::get) does.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn scan(
        &self,
        query: &Query,
        mut take: impl FnMut(&[u8], Record<'_>),
    ) -> Result<Page, StateError> {
        let now = now_ms();
        let limit = query.limit.clamp(1, MOST_ENTRIES);
        let (mut entries, mut bytes, mut more) = (0, 0, false);
        self.0
            .scan(&query.bounds, query.reverse, &mut |place, record| {
                if !record.is_alive(now) {
                    return ControlFlow::Continue(());
                }
                bytes += place.len() + record.value.len();
                if entries == limit || (entries > 0 && bytes > MOST_PAGE_BYTES) {
                    more = true;
                    return ControlFlow::Break(());
                }
                entries += 1;
                take(place, record);
                ControlFlow::Continue(())
            })
            .map_err(|cause| unavailable(&cause))?;
        Ok(Page { more })
    }
}

impl Snapshot {
    /// The names of the namespaces that have anything, those of the host's own included, one look
    /// for each.
    pub(super) fn namespaces(&self, memory: bool) -> Result<Vec<String>, StateError> {
        let mut names = Vec::new();
        let mut bounds = Bounds::all();
        loop {
            let mut first = None;
            self.0
                .scan(&bounds, false, &mut |place, _| {
                    first = Some(split(place).0.to_owned());
                    ControlFlow::Break(())
                })
                .map_err(|cause| unavailable(&cause))?;
            let Some(name) = first else {
                return Ok(names);
            };
            let named = if memory {
                format!("memory:{name}")
            } else {
                name
            };
            let Ok(namespace) = Namespace::of_backup(&named) else {
                return Err(unavailable(&EngineError::Corrupted(format!(
                    "it has a namespace `{named}`"
                ))));
            };
            names.push(named);
            match namespace.prefix(&[]).to {
                Some(next) => bounds.from = next,
                None => return Ok(names),
            }
        }
    }
}

impl Partition {
    /// Opens it by `open`, and starts its writer, a thread named `name`. Blocks on the disk.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn start(
        name: &str,
        open: Box<Open>,
        settings: Arc<RwLock<Settings>>,
        runtime: Handle,
    ) -> Result<Self, StateError> {
        let engine = open().map_err(|cause| unavailable(&cause))?;
        engine.prepare().map_err(|cause| unavailable(&cause))?;
        let is_undone = engine
            .return_to_mark()
            .map_err(|cause| unavailable(&cause))?;
        if is_undone {
            tracing::warn!(
                store = name,
                "a migration had not ended when the host did: the state is what it was before it"
            );
        }
        let view = engine.view().map_err(|cause| unavailable(&cause))?;
        let shared = Arc::new(Shared {
            changes: Changes::since(view.totals().version),
            readable: ArcSwap::from_pointee(Readable::Snapshot(view)),
            queue: Mutex::default(),
            ordered: Condvar::new(),
            settings,
            runtime,
        });
        let mut writer = Writer {
            shared: Arc::clone(&shared),
            engine: Some(engine),
            open,
            broken: None,
            together: 1,
            sweep_at: Some(Instant::now()),
            name: name.to_owned(),
        };
        let writer = thread::Builder::new()
            .name(format!("state-{name}"))
            .spawn(move || writer.run())
            .map_err(|cause| StateError::Unavailable(format!("no thread for it: {cause}")))?;
        Ok(Self {
            shared,
            writer: Some(writer),
        })
    }

    /// What was committed last.
    ///
    /// # Errors
    /// When the store failed and is not open again yet.
    pub(super) fn snapshot(&self) -> Result<Snapshot, StateError> {
        match &**self.shared.readable.load() {
            Readable::Snapshot(view) => Ok(Snapshot(Arc::clone(view))),
            Readable::Broken(reason) => Err(StateError::Unavailable(reason.to_string())),
        }
    }

    /// Runs `read` on what was committed last, without counting a reference to it.
    pub(super) fn read<R>(
        &self,
        read: impl FnOnce(&dyn View) -> Result<R, EngineError>,
    ) -> Result<R, StateError> {
        match &**self.shared.readable.load() {
            Readable::Snapshot(view) => read(&**view).map_err(|cause| unavailable(&cause)),
            Readable::Broken(reason) => Err(StateError::Unavailable(reason.to_string())),
        }
    }

    /// What was committed last, for watchers.
    pub(super) fn changes(&self) -> &Changes {
        &self.shared.changes
    }

    /// Hands `commit` to the writer. It is made, or not, whatever becomes of the ticket.
    pub(super) fn commit(&self, commit: Commit) -> Pending {
        if let Err(error) = commit.check_limits() {
            return Pending::new(Ticket::ended(Err(error)));
        }
        let bytes = commit.bytes();
        self.order(bytes, |ticket| Order::Commit(commit, ticket))
    }

    /// Replaces everything by `entries`, in one commit.
    pub(super) fn replace(&self, entries: Box<Entries>) -> Pending {
        self.order(0, |ticket| Order::Replace(entries, ticket))
    }

    /// Keeps what is committed now, returns to it, or forgets it.
    pub(super) fn mark(&self, marking: Marking) -> Pending {
        self.order(0, |ticket| Order::Mark(marking, ticket))
    }

    fn order(&self, bytes: usize, order: impl FnOnce(Arc<Ticket>) -> Order) -> Pending {
        let ticket = Arc::new(Ticket::default());
        let mut queue = self.shared.queue.lock();
        if queue.closed {
            let reason = "the host ends".to_owned();
            return Pending::new(Ticket::ended(Err(StateError::Unavailable(reason))));
        }
        if queue.bytes + bytes > MOST_WAITING {
            return Pending::new(Ticket::ended(Err(StateError::Busy)));
        }
        queue.bytes += bytes;
        queue.orders.push_back(order(Arc::clone(&ticket)));
        drop(queue);
        self.shared.ordered.notify_one();
        Pending::new(ticket)
    }
}

impl Drop for Partition {
    /// Waits until what was handed to the writer is on the disk, and the file is closed.
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.ordered.notify_one();
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has told of it.
            let _ = writer.join();
        }
    }
}

struct Writer {
    shared: Arc<Shared>,
    /// None where it cannot be opened.
    engine: Option<Box<dyn Engine>>,
    open: Box<Open>,
    /// Why nothing can be written, and since when; it may be read all the same.
    broken: Option<(StateError, Instant)>,
    /// How many commits were made together the last time.
    together: usize,
    /// When to look for what has expired; none while nothing does.
    sweep_at: Option<Instant>,
    name: String,
}

/// What the writer takes at a time.
enum Work {
    Commits(Vec<(Commit, Arc<Ticket>)>),
    Replace(Box<Entries>, Arc<Ticket>),
    Mark(Marking, Arc<Ticket>),
    Sweep,
    Reopen,
    End,
}

impl Writer {
    fn run(&mut self) {
        loop {
            match self.next() {
                Work::Commits(commits) => self.commit(commits),
                Work::Replace(entries, ticket) => self.replace(entries, &ticket),
                Work::Mark(marking, ticket) => self.mark(marking, &ticket),
                Work::Sweep => self.sweep(),
                Work::Reopen => self.reopen(),
                Work::End => return,
            }
        }
    }

    /// Waits for something to do.
    fn next(&mut self) -> Work {
        let shared = Arc::clone(&self.shared);
        let mut queue = shared.queue.lock();
        while queue.orders.is_empty() {
            if queue.closed {
                return Work::End;
            }
            let again_at = self
                .broken
                .as_ref()
                .map(|(_, since)| *since + OPEN_AGAIN_AFTER);
            match again_at.or(self.sweep_at) {
                Some(at) if at <= Instant::now() => {
                    return match again_at {
                        Some(_) => Work::Reopen,
                        None => Work::Sweep,
                    };
                }
                Some(at) => {
                    shared.ordered.wait_until(&mut queue, at);
                }
                None => shared.ordered.wait(&mut queue),
            }
        }
        if self.broken.is_none() && self.sweep_at.is_some_and(|at| at <= Instant::now()) {
            // Also while there is always something to write.
            return Work::Sweep;
        }
        // Those who were answered together come back together: they are waited for, for a moment.
        if self.together > 1 && !queue.closed {
            let by = Instant::now() + GATHER;
            while queue.orders.len() < self.together {
                if shared.ordered.wait_until(&mut queue, by).timed_out() {
                    break;
                }
            }
        }
        let mut commits = Vec::new();
        while let Some(order) = queue.orders.pop_front() {
            match order {
                Order::Commit(commit, ticket) => commits.push((commit, ticket)),
                Order::Replace(entries, ticket) if commits.is_empty() => {
                    return Work::Replace(entries, ticket);
                }
                Order::Mark(marking, ticket) if commits.is_empty() => {
                    return Work::Mark(marking, ticket);
                }
                alone @ (Order::Replace(..) | Order::Mark(..)) => {
                    queue.orders.push_front(alone);
                    break;
                }
            }
            if commits.len() == MOST_TOGETHER {
                break;
            }
        }
        self.together = commits.len();
        queue.bytes -= commits
            .iter()
            .map(|(commit, _)| commit.bytes())
            .sum::<usize>();
        Work::Commits(commits)
    }

    /// Whether anything can be written. An engine that failed is opened again when it has been left
    /// alone for a while.
    fn check_writable(&mut self) -> Result<(), StateError> {
        if let Some((error, since)) = &self.broken {
            if since.elapsed() < OPEN_AGAIN_AFTER {
                return Err(error.clone());
            }
            self.reopen();
        }
        match &self.broken {
            Some((error, _)) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Opens the engine again. Where nothing can be written, as the disk is full, it is opened once
    /// more to be read.
    fn reopen(&mut self) {
        self.close();
        let open = &self.open;
        let opened = guarded(|| {
            let engine = open()?;
            engine.prepare()?;
            let view = engine.view()?;
            Ok((engine, view))
        });
        match opened {
            Ok((engine, view)) => {
                tracing::warn!(store = self.name, "the state can be written again");
                self.broken = None;
                self.sweep_at = Some(Instant::now());
                self.publish_anew(engine, view);
            }
            Err(cause) => {
                self.broken = Some((unavailable(&cause), Instant::now()));
                self.open_to_read(&cause);
            }
        }
    }

    /// The engine failed: nothing more is written to it.
    fn fail(&mut self, cause: &EngineError) {
        tracing::error!(
            store = self.name,
            "the state cannot be written: {cause}; its file is opened again"
        );
        self.broken = Some((unavailable(cause), Instant::now()));
        self.sweep_at = None;
        self.close();
        self.open_to_read(cause);
    }

    /// On a disk that is full everything can be read.
    fn open_to_read(&mut self, cause: &EngineError) {
        self.close();
        let reason: Arc<str> = cause.to_string().into();
        let mut readable = Readable::Broken(Arc::clone(&reason));
        if matches!(cause, EngineError::Full(_)) {
            let open = &self.open;
            let opened = guarded(|| {
                let engine = open()?;
                let view = engine.view()?;
                Ok((engine, view))
            });
            if let Ok((engine, view)) = opened {
                self.engine = Some(engine);
                readable = Readable::Snapshot(view);
            }
        }
        self.shared.readable.store(Arc::new(readable));
    }

    /// Closes the engine. What it does then may fail as well, and even panic.
    fn close(&mut self) {
        if self.engine.is_some() {
            let reason = "its file is being opened".into();
            self.shared
                .readable
                .store(Arc::new(Readable::Broken(reason)));
        }
        let engine = self.engine.take();
        let _ = guarded(|| {
            drop(engine);
            Ok(())
        });
    }

    fn publish_anew(&mut self, engine: Box<dyn Engine>, view: Arc<dyn View>) {
        let woken = self.shared.changes.reset(view.totals().version);
        self.engine = Some(engine);
        self.shared
            .readable
            .store(Arc::new(Readable::Snapshot(view)));
        wake_all(woken, &self.shared.runtime);
    }

    fn commit(&mut self, commits: Vec<(Commit, Arc<Ticket>)>) {
        let outcomes = match self.check_writable() {
            Ok(()) => self.write(commits.iter().map(|(commit, _)| commit)),
            Err(error) => commits.iter().map(|_| Err(error.clone())).collect(),
        };
        let parked = commits
            .iter()
            .zip(outcomes)
            .filter_map(|((_, ticket), outcome)| ticket.end(outcome))
            .collect();
        wake_all(parked, &self.shared.runtime);
    }

    /// Applies `commits` in one transaction of the engine, and publishes what came of it.
    fn write<'a>(&mut self, commits: impl Iterator<Item = &'a Commit> + Clone) -> Vec<Outcome> {
        let Some(engine) = &self.engine else {
            return Vec::new();
        };
        let shared = &self.shared;
        let mut outcomes = Vec::new();
        let mut together: Vec<Applied> = Vec::new();
        let mut next_expiry = None;
        let written = guarded(|| {
            engine.write(&mut |transaction| {
                outcomes.clear();
                together.clear();
                for commit in commits.clone() {
                    let has_changed = |bounds: &Bounds, version: u64| {
                        let concerned = |(place, _): &(Vec<u8>, bool)| bounds.contains(place);
                        shared.changes.has_changed(bounds, version)
                            || together
                                .iter()
                                .any(|applied| applied.changed.iter().any(concerned))
                    };
                    let rules = Rules {
                        now_ms: now_ms(),
                        quota: shared.settings.read().max_size,
                        has_changed: &has_changed,
                    };
                    let applied = apply(commit, transaction, &rules)?;
                    outcomes.push(applied.map(|applied| {
                        let committed = applied.committed.clone();
                        if !applied.changed.is_empty() {
                            together.push(applied);
                        }
                        committed
                    }));
                }
                next_expiry = transaction.next_expiry()?;
                Ok(if together.is_empty() {
                    Verdict::Abort
                } else {
                    Verdict::Commit
                })
            })?;
            engine.view()
        });
        match written {
            Ok(view) => {
                self.publish(view, together, next_expiry);
                outcomes
            }
            Err(cause) => {
                let error = unavailable(&cause);
                self.fail(&cause);
                commits.map(|_| Err(error.clone())).collect()
            }
        }
    }

    fn publish(&mut self, view: Arc<dyn View>, together: Vec<Applied>, next_expiry: Option<u64>) {
        let now = now_ms();
        self.sweep_at = next_expiry.map(|at| {
            let left = Duration::from_millis(at.saturating_sub(now));
            Instant::now() + left.clamp(SWEEP_EVERY, Duration::from_secs(3600))
        });
        self.shared
            .readable
            .store(Arc::new(Readable::Snapshot(view)));
        let mut woken: Vec<Parked> = Vec::new();
        for applied in together {
            let version = applied.committed.version;
            let changes = applied.changed.into_iter().map(|(place, is_there)| Change {
                version,
                place: place.into(),
                is_there,
            });
            woken.extend(self.shared.changes.add(version, changes.collect()));
        }
        wake_all(woken, &self.shared.runtime);
    }

    /// Removes what has expired, a part of it at a time.
    fn sweep(&mut self) {
        let Some(engine) = &self.engine else {
            self.sweep_at = None;
            return;
        };
        let mut swept = Applied::default();
        let mut next_expiry = None;
        let done = guarded(|| {
            engine.write(&mut |transaction| {
                swept = sweep(transaction, now_ms(), SWEEP_AT_ONCE)?;
                next_expiry = transaction.next_expiry()?;
                Ok(if swept.changed.is_empty() {
                    Verdict::Abort
                } else {
                    Verdict::Commit
                })
            })?;
            engine.view()
        });
        match done {
            Ok(view) => {
                let full = swept.changed.len() == SWEEP_AT_ONCE;
                let swept = if swept.changed.is_empty() {
                    Vec::new()
                } else {
                    vec![swept]
                };
                self.publish(view, swept, next_expiry);
                if full {
                    self.sweep_at = Some(Instant::now());
                }
            }
            Err(cause) => self.fail(&cause),
        }
    }

    fn replace(&mut self, entries: Box<Entries>, ticket: &Ticket) {
        let outcome = self
            .check_writable()
            .and_then(|()| self.replace_by(entries));
        let parked = ticket.end(outcome).into_iter().collect();
        wake_all(parked, &self.shared.runtime);
    }

    fn mark(&mut self, marking: Marking, ticket: &Ticket) {
        let outcome = self.check_writable().and_then(|()| self.marked(marking));
        let parked = ticket.end(outcome).into_iter().collect();
        wake_all(parked, &self.shared.runtime);
    }

    fn marked(&mut self, marking: Marking) -> Outcome {
        let Some(engine) = &self.engine else {
            return Err(StateError::Busy);
        };
        let done = guarded(|| {
            match marking {
                Marking::Keep => engine.mark()?,
                Marking::Return => {
                    engine.return_to_mark()?;
                }
                Marking::Forget => engine.forget_mark()?,
            }
            engine.view()
        });
        match done {
            Ok(view) => {
                let version = view.totals().version;
                if marking == Marking::Return {
                    let woken = self.shared.changes.reset(version);
                    self.publish(view, Vec::new(), None);
                    self.sweep_at = Some(Instant::now());
                    wake_all(woken, &self.shared.runtime);
                }
                Ok(Committed {
                    version,
                    sums: Vec::new(),
                })
            }
            Err(cause) => {
                let error = unavailable(&cause);
                self.fail(&cause);
                Err(error)
            }
        }
    }

    fn replace_by(&mut self, mut entries: Box<Entries>) -> Outcome {
        let Some(engine) = &self.engine else {
            return Err(StateError::Busy);
        };
        let quota = self.shared.settings.read().max_size;
        let mut refused = None;
        let mut committed = Committed::default();
        let mut next_expiry = None;
        let replaced = guarded(|| {
            engine.write(&mut |transaction| {
                transaction.clear()?;
                let mut totals = Totals {
                    version: transaction.totals().version + 1,
                    keys: 0,
                    bytes: 0,
                };
                for entry in &mut entries {
                    let (place, value, expires_ms) = match entry {
                        Ok(entry) => entry,
                        Err(error) => {
                            refused = Some(error);
                            return Ok(Verdict::Abort);
                        }
                    };
                    let record = Record {
                        version: totals.version,
                        expires_ms,
                        value: &value,
                    };
                    if let Some(twice) = transaction.put(place.as_bytes(), record)? {
                        totals.keys -= 1;
                        totals.bytes -= weight(place.as_bytes(), twice.value_length);
                    }
                    totals.keys += 1;
                    totals.bytes += weight(place.as_bytes(), value.len());
                    if totals.bytes > quota {
                        refused = Some(StateError::Quota {
                            wanted: totals.bytes,
                            quota,
                        });
                        return Ok(Verdict::Abort);
                    }
                }
                transaction.set_totals(totals);
                committed.version = totals.version;
                next_expiry = transaction.next_expiry()?;
                Ok(Verdict::Commit)
            })?;
            engine.view()
        });
        match replaced {
            Ok(view) => {
                if let Some(refused) = refused {
                    return Err(refused);
                }
                let woken = self.shared.changes.reset(committed.version);
                self.publish(view, Vec::new(), next_expiry);
                wake_all(woken, &self.shared.runtime);
                Ok(committed)
            }
            Err(cause) => {
                let error = unavailable(&cause);
                self.fail(&cause);
                Err(error)
            }
        }
    }
}

/// Runs `work` on the engine. One that panics has failed.
fn guarded<R>(work: impl FnOnce() -> Result<R, EngineError>) -> Result<R, EngineError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(EngineError::Other(
            "the engine panicked: this is a fault of it or of handover".to_owned(),
        ))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use bytes::Bytes;

    use super::{
        super::{
            commit::{Check, Mutation, RangeCheck},
            engine::Transaction,
            place::Namespace,
            redb::Redb,
        },
        *,
    };

    fn default() -> Namespace {
        "default".parse().unwrap()
    }

    fn put(key: &str, value: &str) -> Mutation {
        Mutation::Put {
            place: default().place(key.as_bytes()).unwrap(),
            value: Bytes::copy_from_slice(value.as_bytes()),
            ttl_ms: None,
        }
    }

    fn add(key: &str, delta: i64) -> Mutation {
        Mutation::Add {
            place: default().place(key.as_bytes()).unwrap(),
            delta,
            ttl_ms: None,
        }
    }

    fn start(settings: Settings) -> Partition {
        let open = || Ok(Box::new(Redb::in_memory()?) as Box<dyn Engine>);
        Partition::start(
            "test",
            Box::new(open),
            Arc::new(RwLock::new(settings)),
            Handle::current(),
        )
        .unwrap()
    }

    fn get(partition: &Partition, key: &str) -> Option<(u64, String)> {
        let mut found = None;
        let place = default().place(key.as_bytes()).unwrap();
        let snapshot = partition.snapshot().unwrap();
        snapshot
            .get(&place, |record| {
                let value = String::from_utf8(record.value.to_vec()).unwrap();
                found = Some((record.version, value));
            })
            .unwrap();
        found
    }

    #[tokio::test]
    async fn a_commit_happens_whole_or_not_at_all() {
        let partition = start(Settings::default());
        let first = partition.commit(Commit {
            mutations: vec![put("a", "1"), put("b", "1")],
            ..Commit::default()
        });
        let version = first.await.unwrap().version;
        assert_eq!(get(&partition, "a"), Some((version, "1".to_owned())));
        let place = |key: &str| default().place(key.as_bytes()).unwrap();
        let check = |key, version| Check {
            place: place(key),
            version,
        };
        let refused = partition.commit(Commit {
            checks: vec![check("a", version), check("b", version + 1)],
            mutations: vec![put("a", "2")],
            ..Commit::default()
        });
        assert_eq!(refused.await, Err(StateError::Conflict));
        let absent = partition.commit(Commit {
            checks: vec![check("a", version), check("c", 0)],
            mutations: vec![put("c", "3"), add("n", 40), add("n", 2)],
            ..Commit::default()
        });
        let committed = absent.await.unwrap();
        assert_eq!(committed.sums, [40, 42]);
        assert!(committed.version > version);
        assert_eq!(get(&partition, "n").unwrap().1, "42");
        let no_counter = partition.commit(Commit {
            mutations: vec![put("d", "4"), put("e", "text"), add("e", 1)],
            ..Commit::default()
        });
        assert_eq!(no_counter.await, Err(StateError::NoCounter));
        assert_eq!(get(&partition, "d"), None);
        let too_much = partition.commit(Commit {
            mutations: vec![add("m", i64::MAX), add("m", 1)],
            ..Commit::default()
        });
        assert_eq!(too_much.await, Err(StateError::NoCounter));
    }

    #[tokio::test]
    async fn a_range_that_changed_is_a_conflict_also_within_one_group() {
        let partition = start(Settings::default());
        let version = partition
            .commit(Commit::of(put("a1", "")))
            .await
            .unwrap()
            .version;
        let based = |key: &str| Commit {
            ranges: vec![RangeCheck {
                bounds: default().prefix(b"a"),
                version,
            }],
            mutations: vec![put(key, "")],
            ..Commit::default()
        };
        // Handed over at once, so that one transaction of the engine has both.
        let (one, two) = (partition.commit(based("a2")), partition.commit(based("a3")));
        assert!(one.await.is_ok());
        assert_eq!(two.await, Err(StateError::Conflict));
        let other = partition.commit(Commit {
            ranges: vec![RangeCheck {
                bounds: default().prefix(b"b"),
                version,
            }],
            mutations: vec![put("b1", "")],
            ..Commit::default()
        });
        assert!(other.await.is_ok());
    }

    #[tokio::test]
    async fn a_quota_refuses_what_grows_and_takes_what_shrinks() {
        let partition = start(Settings {
            max_size: 200,
            ..Settings::default()
        });
        partition
            .commit(Commit::of(put("a", &"x".repeat(100))))
            .await
            .unwrap();
        let error = partition
            .commit(Commit::of(put("b", &"x".repeat(100))))
            .await
            .unwrap_err();
        assert!(matches!(error, StateError::Quota { quota: 200, .. }));
        assert!(error.to_string().contains("raise max_size"), "{error}");
        partition.commit(Commit::of(put("a", "x"))).await.unwrap();
        partition
            .commit(Commit::of(put("b", &"x".repeat(50))))
            .await
            .unwrap();
        let totals = partition.snapshot().unwrap().totals();
        // Each with its place (`default` and its length, and the key) and 32 more.
        assert_eq!((totals.keys, totals.bytes), (2, 2 * (9 + 32) + 51));
    }

    #[tokio::test]
    async fn what_has_expired_is_gone_at_once_and_swept_later() {
        let partition = start(Settings::default());
        let place = default().place(b"a").unwrap();
        let brief = Mutation::Put {
            place: place.clone(),
            value: Bytes::from_static(b"1"),
            ttl_ms: Some(1),
        };
        let watcher = partition.changes().watch(default().prefix(b""), None);
        let version = partition.commit(Commit::of(brief)).await.unwrap().version;
        while get(&partition, "a").is_some() {
            tokio::task::yield_now().await;
        }
        let check = |version| Commit {
            checks: vec![Check {
                place: place.clone(),
                version,
            }],
            ..Commit::default()
        };
        assert_eq!(
            partition.commit(check(version)).await,
            Err(StateError::Conflict)
        );
        partition.commit(check(0)).await.unwrap();
        while partition.snapshot().unwrap().totals().keys > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let count = crate::wakers::WakerCount::default();
        let changes = std::future::poll_fn(|cx| {
            match partition.changes().poll(&watcher, 10, cx.waker(), &count) {
                Some(seen) if seen.changes.iter().any(|change| !change.is_there) => {
                    std::task::Poll::Ready(seen)
                }
                Some(_) => {
                    cx.waker().wake_by_ref();
                    std::task::Poll::Pending
                }
                None => std::task::Poll::Pending,
            }
        });
        assert!(!changes.await.missed);
    }

    /// An engine whose commits fail while this is true.
    struct Failing(Redb, Arc<AtomicBool>);

    impl Engine for Failing {
        fn prepare(&self) -> Result<(), EngineError> {
            self.0.prepare()
        }

        fn view(&self) -> Result<Arc<dyn View>, EngineError> {
            self.0.view()
        }

        fn write(
            &self,
            work: &mut dyn FnMut(&mut dyn Transaction) -> Result<Verdict, EngineError>,
        ) -> Result<(), EngineError> {
            self.0.write(&mut |transaction| {
                let verdict = work(transaction)?;
                if self.1.load(Ordering::SeqCst) {
                    return Err(EngineError::Io(std::io::Error::from_raw_os_error(5)));
                }
                Ok(verdict)
            })
        }

        fn mark(&self) -> Result<(), EngineError> {
            self.0.mark()
        }

        fn return_to_mark(&self) -> Result<bool, EngineError> {
            self.0.return_to_mark()
        }

        fn forget_mark(&self) -> Result<(), EngineError> {
            self.0.forget_mark()
        }
    }

    #[tokio::test]
    async fn a_failed_sync_ends_all_writing_until_the_store_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.redb");
        let fails = Arc::new(AtomicBool::new(false));
        let opened = Arc::new(AtomicUsize::new(0));
        let open = {
            let (fails, opened) = (Arc::clone(&fails), Arc::clone(&opened));
            move || {
                opened.fetch_add(1, Ordering::SeqCst);
                let redb = Redb::open(&file)?;
                Ok(Box::new(Failing(redb, Arc::clone(&fails))) as Box<dyn Engine>)
            }
        };
        let partition = Partition::start(
            "test",
            Box::new(open),
            Arc::new(RwLock::new(Settings::default())),
            Handle::current(),
        )
        .unwrap();
        partition.commit(Commit::of(put("a", "1"))).await.unwrap();
        fails.store(true, Ordering::SeqCst);
        let error = partition
            .commit(Commit::of(put("a", "2")))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("the disk fails"), "{error}");
        assert!(partition.snapshot().is_err());
        // It is left alone for a while, and not tried as if nothing had been.
        assert!(partition.commit(Commit::of(put("a", "3"))).await.is_err());
        assert_eq!(opened.load(Ordering::SeqCst), 1);
        fails.store(false, Ordering::SeqCst);
        while partition.commit(Commit::of(put("b", "4"))).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(opened.load(Ordering::SeqCst), 2);
        assert_eq!(get(&partition, "a").unwrap().1, "1");
        assert_eq!(get(&partition, "b").unwrap().1, "4");
    }

    #[tokio::test]
    async fn what_was_handed_over_is_written_before_the_store_closes() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.redb");
        let open = {
            let file = file.clone();
            move || Ok(Box::new(Redb::open(&file)?) as Box<dyn Engine>)
        };
        let partition = Partition::start(
            "test",
            Box::new(open),
            Arc::new(RwLock::new(Settings::default())),
            Handle::current(),
        )
        .unwrap();
        let pending: Vec<_> = (0..100)
            .map(|_| partition.commit(Commit::of(add("n", 1))))
            .collect();
        drop(partition);
        for pending in pending {
            pending.await.unwrap();
        }
        let view = Redb::open(&file).unwrap().view().unwrap();
        let mut found = Vec::new();
        let place = default().place(b"n").unwrap();
        view.get(place.as_bytes(), &mut |record| {
            found = record.value.to_vec()
        })
        .unwrap();
        assert_eq!(found, b"100");
    }
}
