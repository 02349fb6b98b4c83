//! The durable jobs of one app: what is held of them in memory, and how their records are read.
//!
//! - [`enqueue`], [`claim`], [`finish`]: the three commits of a job
//! - [`list`]: what is told of them

mod claim;
mod enqueue;
mod finish;
mod list;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use handover_api::{AppName, JobState};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, sync::Notify};

pub(crate) use self::list::JobFilter;
pub(super) use self::{claim::Listener, enqueue::NewJob, finish::Finish};
use super::{
    answer::{Answer, Outcome, Refused},
    queue::Queue,
    record::{JobId, JobRecord, Part},
};
use crate::{
    clock::{millis, now_ms},
    state::{Commit, Mutation, Place, Query, StateError, Store},
    values::{self, MANY},
    wakers::{Promise, wake_all},
};

/// How long a job waits whose record could not be read or written.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// `[app.NAME.jobs]`
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Jobs of the app that run at a time. Default 32.
    #[serde(deserialize_with = "values::count::<1, MANY, _, _>")]
    pub max_running: usize,
    /// How long a job that is done, or was cancelled, is remembered. Default 7 days.
    #[serde(with = "values::span")]
    pub keep_done: Duration,
    /// How long a dead letter is kept. Default 30 days.
    #[serde(with = "values::span")]
    pub keep_dead: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(86_400);
        Self {
            max_running: 32,
            keep_done: DAY.saturating_mul(7),
            keep_dead: DAY.saturating_mul(30),
        }
    }
}

/// An attempt that is under way.
#[derive(Debug)]
struct Attempt {
    generation: u64,
    /// The version of the commit that claimed it; 0 until that is made.
    fence: u64,
    since: Instant,
    deadline: Option<Instant>,
    progress: Option<(f64, String)>,
    /// Ends when the attempt is to end: why.
    stop: Arc<Promise<&'static str>>,
    is_finishing: bool,
}

/// The jobs of one app. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Jobs(Arc<Inner>);

struct Inner {
    app: AppName,
    store: Arc<Store>,
    settings: RwLock<Settings>,
    runtime: Handle,
    state: Mutex<State>,
    /// Held while the records are read.
    loading: Mutex<()>,
    /// The last identity that was given to a job of any app.
    last_id: Arc<AtomicU64>,
    /// Something may be due earlier than it was.
    changed: Notify,
}

#[derive(Default)]
struct State {
    queue: Queue<Attempt>,
    is_loaded: bool,
    has_keeper: bool,
    /// The generations that run jobs where they are live.
    listeners: BTreeMap<u64, Arc<Listener>>,
    /// The generation that is.
    live: u64,
    /// What was counted since the host began: done, failed attempts, dead.
    totals: Totals,
}

impl State {
    /// Who is given jobs.
    fn listener(&self) -> Option<&Arc<Listener>> {
        self.listeners.get(&self.live)
    }
}

/// What was counted since the host began.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    /// Jobs that were done.
    pub(crate) done: u64,
    /// Attempts that failed.
    pub(crate) failed: u64,
    /// Jobs that became dead letters.
    pub(crate) dead: u64,
}

fn put(place: Place, value: impl Into<Bytes>, ttl: Option<Duration>) -> Mutation {
    Mutation::Put {
        place,
        value: value.into(),
        ttl_ms: ttl.map(millis),
    }
}

/// A commit of the host's bookkeeping.
fn own_commit() -> Commit {
    Commit {
        is_own: true,
        ..Commit::default()
    }
}

impl Jobs {
    /// What its section of the configuration says.
    fn settings(&self) -> Settings {
        *self.0.settings.read()
    }

    /// Works by `settings` from now on.
    pub(super) fn retune(&self, settings: Settings) {
        *self.0.settings.write() = settings;
        self.0.changed.notify_one();
    }

    pub(super) fn new(
        app: AppName,
        store: Arc<Store>,
        settings: Settings,
        last_id: Arc<AtomicU64>,
        runtime: Handle,
    ) -> Self {
        Self(Arc::new(Inner {
            app,
            store,
            settings: RwLock::new(settings),
            runtime,
            state: Mutex::default(),
            loading: Mutex::default(),
            last_id,
            changed: Notify::new(),
        }))
    }

    /// An identity that no other job has.
    pub(super) fn new_id(&self) -> JobId {
        let now = JobId::at(now_ms()).0;
        let next = |last: u64| Some(now.max(last + 1));
        let last = self
            .0
            .last_id
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        JobId(now.max(last.unwrap_or(0) + 1))
    }

    /// Reads without making a file for an app that has none.
    fn read(&self, place: &Place) -> Result<Option<(Bytes, u64)>, StateError> {
        let mut found = None;
        if !self.0.store.exists() {
            return Ok(None);
        }
        self.0.store.get(false, place, |record| {
            found = Some((Bytes::copy_from_slice(record.value), record.version));
        })?;
        Ok(found)
    }

    fn read_record(&self, part: Part, id: JobId) -> Result<Option<(JobRecord, u64)>, StateError> {
        let read = self.read(&part.of(id)?)?;
        Ok(read.and_then(|(bytes, version)| Some((JobRecord::decode(&bytes)?, version))))
    }

    /// Gives what lies in `part` to `take`, by the identities of jobs, for as long as it says so.
    /// As [`read`](Self::read), it makes no file.
    fn scan(
        &self,
        part: Part,
        reverse: bool,
        mut take: impl FnMut(JobId, &[u8]) -> bool,
    ) -> Result<(), StateError> {
        if !self.0.store.exists() {
            return Ok(());
        }
        let snapshot = self.0.store.snapshot(false)?;
        let mut bounds = part.namespace().prefix(b"");
        loop {
            let query = Query {
                bounds: bounds.clone(),
                reverse,
                limit: usize::MAX,
            };
            let (mut last, mut goes_on) = (None, true);
            let page = snapshot.scan(&query, |place, record| {
                last = Some(place.to_vec());
                if let (Some(id), true) = (JobId::of_text(Place::key_of(place)), goes_on) {
                    goes_on = take(id, record.value);
                }
            })?;
            match last {
                Some(last) if page.more && goes_on => bounds.resume_behind(&last, reverse),
                _ => return Ok(()),
            }
        }
    }

    /// Reads what has not ended, if that was not done yet. Blocks on the disk.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub(crate) fn load(&self) -> Result<(), StateError> {
        let _loading = self.0.loading.lock();
        if self.0.state.lock().is_loaded {
            return Ok(());
        }
        let mut cancelled = BTreeSet::new();
        self.scan(Part::Cancel, false, |id, _| {
            cancelled.insert(id);
            true
        })?;
        let mut found = Vec::new();
        self.scan(Part::Open, false, |id, record| {
            found.extend(JobRecord::decode(record).map(|job| (id, job)));
            true
        })?;
        let mut state = self.0.state.lock();
        let now = now_ms();
        for (id, job) in found {
            self.0.last_id.fetch_max(id.0, Ordering::Relaxed);
            if state.queue.get(id).is_some() {
                continue;
            }
            // What ran when the host died runs again at once.
            let due_ms = if job.state == JobState::Running {
                now
            } else {
                job.due_ms
            };
            state
                .queue
                .add(id, &job.name, &job.tenant, job.priority, due_ms);
            if cancelled.contains(&id)
                && let Some(entry) = state.queue.get_mut(id)
            {
                entry.is_cancelled = true;
            }
        }
        state.is_loaded = true;
        drop(state);
        self.pump();
        Ok(())
    }

    /// The state was replaced by a backup: what is known of it is forgotten, and read again. Blocks
    /// on the disk.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub(crate) fn reload(&self) -> Result<(), StateError> {
        let stops: Vec<_> = {
            let mut state = self.0.state.lock();
            if !state.is_loaded {
                return Ok(());
            }
            state.is_loaded = false;
            let queue = std::mem::take(&mut state.queue);
            queue
                .attempts()
                .filter_map(|(_, entry)| Some(Arc::clone(&entry.attempt.as_ref()?.stop)))
                .collect()
        };
        let parked = stops
            .iter()
            .filter_map(|stop| stop.end("cancelled"))
            .collect();
        wake_all(parked, &self.0.runtime);
        self.load()
    }

    /// Begins `work` on the host's runtime: it goes on whoever waits for what this gives.
    fn under_way(
        &self,
        work: impl Future<Output = Result<Answer, Refused>> + Send + 'static,
    ) -> Arc<Outcome> {
        let outcome = Arc::new(Outcome::default());
        let (ends, runtime) = (Arc::clone(&outcome), self.0.runtime.clone());
        self.0.runtime.spawn(async move {
            let answer = work.await;
            wake_all(ends.end(answer).into_iter().collect(), &runtime);
        });
        outcome
    }

    async fn loaded(&self) -> Result<(), StateError> {
        let jobs = self.clone();
        let loaded = tokio::task::spawn_blocking(move || jobs.load()).await;
        loaded.unwrap_or_else(|error| Err(StateError::Unavailable(error.to_string())))
    }
}

#[cfg(test)]
mod tests;
