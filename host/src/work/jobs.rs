//! The durable jobs of one app: enqueued, claimed, finished.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use handover_api::{AppName, JobDetails, JobInfo, JobState};
use handover_plugin::abi::{
    state::codes,
    work::{SUPERSEDED, UNKNOWN_JOB},
};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::{runtime::Handle, sync::Notify};

use super::{
    queue::{Next, Queue},
    record::{JobId, JobRecord, Options, Part, key_place},
};
use crate::{
    artifact::declared::{Declared, JobHandler},
    clock::{millis, now_ms},
    state::{Check, Commit, Mutation, Place, Query, StateError, Store},
    wakers::{Parked, Promise, WakerCount, wake_all},
};

/// Jobs that are claimed by one commit, at most.
const CLAIM_AT_ONCE: usize = 64;
/// How long a job waits whose record could not be read or written.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// How often the time is looked at, whatever is due: clocks are set.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How often the key of a job is looked at while others enqueue the same.
const TRIES: usize = 16;
/// The longest sentence of an error, and the longest result that is written whatever the app holds,
/// in bytes.
const SMALL: usize = 1024;
/// The longest name of a job, of a tenant and of a key, in bytes.
const LONGEST: (usize, usize, usize) = (64, 256, 512);

/// `[app.NAME.jobs]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Jobs of the app that run at a time. Default 32.
    pub max_running: usize,
    /// How long a job that is done, or was cancelled, is remembered. Default 7 days.
    pub keep_done: Duration,
    /// How long a dead letter is kept. Default 30 days.
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

/// What is answered over the ABI: JSON, and bytes beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) bytes: Bytes,
}

impl Answer {
    /// Identities of jobs.
    pub(super) fn ids(ids: &[JobId]) -> Self {
        let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
        Self {
            text: serde_json::json!({ "ids": ids }).to_string(),
            bytes: Bytes::new(),
        }
    }
}

/// Why something is not done, with the code that crosses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub(crate) struct Refused {
    pub(super) code: u32,
    pub(super) why: String,
}

impl Refused {
    pub(super) fn invalid(why: impl Into<String>) -> Self {
        Self {
            code: codes::INVALID,
            why: why.into(),
        }
    }

    fn superseded() -> Self {
        Self {
            code: SUPERSEDED,
            why: "the job was ended, or given to another attempt".to_owned(),
        }
    }

    pub(super) fn unknown(id: JobId) -> Self {
        Self {
            code: UNKNOWN_JOB,
            why: format!("there is no job {id} that could be ended: `handover jobs` shows them"),
        }
    }
}

impl From<StateError> for Refused {
    fn from(error: StateError) -> Self {
        Self {
            code: error.code(),
            why: error.to_string(),
        }
    }
}

/// What somebody waits for.
pub(super) type Outcome = Promise<Result<Answer, Refused>>;

/// A job that is to be enqueued.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct NewJob {
    pub(super) name: String,
    /// The identity that was given for it before.
    #[serde(default)]
    pub(super) id: Option<String>,
    #[serde(default)]
    pub(super) tenant: Option<String>,
    #[serde(default)]
    pub(super) due_ms: Option<u64>,
    #[serde(default)]
    pub(super) priority: Option<i32>,
    #[serde(default)]
    pub(super) key: Option<String>,
    #[serde(flatten)]
    pub(super) options: Options,
    /// Bytes of its payload among those of all.
    #[serde(default)]
    pub(super) length: usize,
    #[serde(skip)]
    pub(super) payload: Bytes,
}

impl NewJob {
    fn check(&self) -> Result<(), Refused> {
        let is_name = matches!(self.name.len(), 1..)
            && self.name.len() <= LONGEST.0
            && self
                .name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if !is_name {
            let name: String = self.name.chars().take(80).collect();
            return Err(Refused::invalid(format!(
                "`{name}` is no name of a job: use 1 to {} letters, digits, - and _",
                LONGEST.0
            )));
        }
        if self
            .tenant
            .as_ref()
            .is_some_and(|tenant| tenant.len() > LONGEST.1)
        {
            return Err(Refused::invalid(format!(
                "the tenant of a job has at most {} bytes",
                LONGEST.1
            )));
        }
        let is_key = |key: &String| matches!(key.len(), 1..) && key.len() <= LONGEST.2;
        if self.key.as_ref().is_some_and(|key| !is_key(key)) {
            return Err(Refused::invalid(format!(
                "the key of a job has 1 to {} bytes",
                LONGEST.2
            )));
        }
        Ok(())
    }
}

/// A job that a commit adds.
type Added = (JobId, JobRecord);

/// How an attempt ended.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Finish {
    /// The job.
    pub(super) id: String,
    /// The fence of the attempt.
    pub(super) fence: u64,
    /// `done`, `failed` or `dead`.
    pub(super) outcome: String,
    /// What it failed with.
    #[serde(default)]
    pub(super) error: Option<String>,
    /// After which pause it is tried again.
    #[serde(default)]
    pub(super) retry_ms: Option<u64>,
    /// Bytes of its result, before the payloads of jobs.
    #[serde(default)]
    pub(super) result_length: usize,
    /// Jobs that are enqueued with it.
    #[serde(default)]
    pub(super) jobs: Vec<NewJob>,
}

/// Which jobs are to be shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct JobFilter {
    /// Those in this state only.
    pub(crate) state: Option<JobState>,
    /// Those of this tenant only.
    pub(crate) tenant: Option<String>,
    /// At most so many.
    pub(crate) limit: usize,
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

/// The version that runs jobs: its handlers, and what it was given and has not taken.
pub(super) struct Listener {
    generation: u64,
    handlers: Declared,
    inbox: Mutex<Inbox>,
}

#[derive(Default)]
struct Inbox {
    given: VecDeque<(JobId, Answer)>,
    parked: Option<Parked>,
    is_closed: bool,
}

impl Listener {
    /// The next job that it was given; an error when it gets none any more.
    pub(super) fn poll_next(
        &self,
        waker: &Waker,
        count: &WakerCount,
    ) -> Poll<Result<Answer, Refused>> {
        // What was there before is dropped without the lock.
        let _before = {
            let mut inbox = self.inbox.lock();
            if let Some((_, answer)) = inbox.given.pop_front() {
                return Poll::Ready(Ok(answer));
            }
            if inbox.is_closed {
                return Poll::Ready(Err(StateError::Ended.into()));
            }
            match &inbox.parked {
                Some(parked) if parked.will_wake(waker) => None,
                _ => inbox.parked.replace(count.park(waker.clone())),
            }
        };
        Poll::Pending
    }

    /// Nobody waits any more.
    pub(super) fn forget(&self) {
        let parked = self.inbox.lock().parked.take();
        drop(parked);
    }
}

/// The jobs of one app. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Jobs(Arc<Inner>);

struct Inner {
    app: AppName,
    store: Arc<Store>,
    settings: Settings,
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

/// How many there are now, and what was counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct JobCounts {
    /// Jobs that wait.
    pub(crate) waiting: usize,
    /// Jobs that run.
    pub(crate) running: usize,
    /// What was counted.
    pub(crate) totals: Totals,
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
            settings,
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

    /// Enqueues `jobs`, with `commit`.
    pub(super) fn enqueue(
        &self,
        jobs: Vec<NewJob>,
        commit: Commit,
        in_transaction: bool,
    ) -> Arc<Outcome> {
        let queue = self.clone();
        self.under_way(async move {
            let ids = queue.enqueue_now(jobs, commit, in_transaction).await?;
            Ok(Answer::ids(&ids))
        })
    }

    /// Enqueues `jobs`, with `commit`; gives their identities.
    pub(super) async fn enqueue_now(
        &self,
        jobs: Vec<NewJob>,
        commit: Commit,
        in_transaction: bool,
    ) -> Result<Vec<JobId>, Refused> {
        for job in &jobs {
            job.check()?;
        }
        for _ in 0..TRIES {
            let mut commit = commit.clone();
            let (ids, added) = self.add_to(&mut commit, &jobs, in_transaction)?;
            if added.is_empty() && commit.mutations.is_empty() {
                return Ok(ids);
            }
            match self.0.store.commit(false, commit).await {
                Ok(_) => {
                    self.added(added);
                    return Ok(ids);
                }
                // Somebody else may have been faster with the same key.
                Err(StateError::Conflict) if !in_transaction => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StateError::Conflict.into())
    }

    /// Adds to `commit` what enqueues `jobs`: their identities, and those of them that are new.
    fn add_to(
        &self,
        commit: &mut Commit,
        jobs: &[NewJob],
        in_transaction: bool,
    ) -> Result<(Vec<JobId>, Vec<Added>), Refused> {
        let (mut ids, mut added) = (Vec::new(), Vec::new());
        let now = now_ms();
        for job in jobs {
            let given = job.id.as_deref().map(str::parse::<JobId>).transpose();
            let given = given.map_err(|error| Refused::invalid(error.to_string()))?;
            let mut key = None;
            if let Some(text) = &job.key {
                let place = key_place(&job.name, text)?;
                let (first, version) = self.first_of(&place)?;
                let check = Check {
                    place: place.clone(),
                    version,
                };
                if let Some(first) = first {
                    if in_transaction {
                        if given.is_some_and(|given| given != first) {
                            return Err(StateError::Conflict.into());
                        }
                        commit.checks.push(check);
                    }
                    ids.push(first);
                    continue;
                }
                commit.checks.push(check);
                key = Some(place);
            }
            let id = given.unwrap_or_else(|| self.new_id());
            if let Some(place) = key {
                commit.mutations.push(put(place, id.to_string(), None));
            }
            added.push((id, self.add_one(commit, job, id, now)?));
            ids.push(id);
        }
        Ok((ids, added))
    }

    fn add_one(
        &self,
        commit: &mut Commit,
        job: &NewJob,
        id: JobId,
        now: u64,
    ) -> Result<JobRecord, Refused> {
        let record = JobRecord {
            name: job.name.clone(),
            tenant: job.tenant.clone().unwrap_or_default(),
            state: JobState::Waiting,
            attempt: 0,
            priority: job.priority.unwrap_or(0),
            due_ms: job.due_ms.unwrap_or(now),
            enqueued_ms: now,
            begun_ms: None,
            ended_ms: None,
            generation: None,
            error: None,
            key: job.key.clone(),
            options: job.options,
        };
        commit
            .mutations
            .push(put(Part::Open.of(id)?, record.encode(), None));
        commit
            .mutations
            .push(put(Part::Input.of(id)?, job.payload.clone(), None));
        Ok(record)
    }

    /// These are on the disk.
    fn added(&self, added: Vec<Added>) {
        if added.is_empty() {
            return;
        }
        {
            let mut state = self.0.state.lock();
            for (id, job) in added {
                if state.queue.get(id).is_none() {
                    state
                        .queue
                        .add(id, &job.name, &job.tenant, job.priority, job.due_ms);
                }
            }
        }
        self.pump();
    }

    /// The first job of a key, which lies at `place`, and the version of that.
    fn first_of(&self, place: &Place) -> Result<(Option<JobId>, u64), StateError> {
        let known = self.read(place)?;
        Ok(known.map_or((None, 0), |(id, version)| (JobId::of_text(&id), version)))
    }

    /// The identity that a job with this key has, or a new one.
    pub(super) fn id_for(&self, name: &str, key: Option<&str>) -> Result<JobId, Refused> {
        let first = match key {
            Some(key) => self.first_of(&key_place(name, key)?)?.0,
            None => None,
        };
        Ok(first.unwrap_or_else(|| self.new_id()))
    }

    /// `generation` is live from now on: whoever was before begins no more jobs.
    pub(super) fn set_live(&self, generation: u64) {
        let before = {
            let mut state = self.0.state.lock();
            let before = std::mem::replace(&mut state.live, generation);
            if before == generation {
                return;
            }
            state.listeners.get(&before).cloned()
        };
        if let Some(before) = before {
            self.take_back(&before);
        }
        self.pump();
    }

    /// `generation` runs jobs with these handlers, while it is live.
    pub(super) fn listen(&self, handlers: Declared, generation: u64) -> Arc<Listener> {
        let listener = Arc::new(Listener {
            generation,
            handlers,
            inbox: Mutex::default(),
        });
        let before = {
            let mut state = self.0.state.lock();
            state.listeners.insert(generation, Arc::clone(&listener))
        };
        if let Some(before) = before {
            self.close(&before);
        }
        let jobs = self.clone();
        self.0.runtime.spawn(async move {
            let mut is_told = false;
            while let Err(error) = jobs.loaded().await {
                if !std::mem::replace(&mut is_told, true) {
                    tracing::error!(app = %jobs.0.app, "its jobs cannot be read, which is tried again: {error}");
                }
                tokio::time::sleep(TRY_AGAIN).await;
            }
            jobs.pump();
            if !std::mem::replace(&mut jobs.0.state.lock().has_keeper, true) {
                jobs.0.runtime.spawn(keep(Arc::downgrade(&jobs.0)));
            }
        });
        listener
    }

    /// A generation is given no more jobs. What it was given and has not taken waits again.
    pub(super) fn stop_listening(&self, generation: u64) {
        let listener = self.0.state.lock().listeners.remove(&generation);
        if let Some(listener) = listener {
            self.close(&listener);
        }
    }

    fn close(&self, listener: &Listener) {
        let parked = {
            let mut inbox = listener.inbox.lock();
            inbox.is_closed = true;
            inbox.parked.take()
        };
        wake_all(parked.into_iter().collect(), &self.0.runtime);
        self.take_back(listener);
        self.pump();
    }

    /// What `listener` was given and has not taken waits again.
    fn take_back(&self, listener: &Listener) {
        let given = std::mem::take(&mut listener.inbox.lock().given);
        if given.is_empty() {
            return;
        }
        let mut state = self.0.state.lock();
        for (id, _) in given {
            if let Some(entry) = state.queue.get_mut(id) {
                entry.is_unstarted = true;
                let due_ms = entry.due_ms;
                state.queue.wait_again(id, due_ms);
            }
        }
    }

    /// Begins what may be begun, and has the time looked at anew.
    fn pump(&self) {
        self.begin_due();
        self.0.changed.notify_one();
    }

    /// Begins what may be begun.
    fn begin_due(&self) {
        loop {
            let (batch, listener) = {
                let mut state = self.0.state.lock();
                if !state.is_loaded {
                    return;
                }
                let Some(listener) = state.listener().cloned() else {
                    return;
                };
                let mut batch = Vec::new();
                while batch.len() < CLAIM_AT_ONCE {
                    let most = self.0.settings.max_running;
                    let Next::Job(id) = state.queue.next(now_ms(), &listener.handlers, most) else {
                        break;
                    };
                    state.queue.begin(
                        id,
                        Attempt {
                            generation: listener.generation,
                            fence: 0,
                            since: Instant::now(),
                            deadline: None,
                            progress: None,
                            stop: Arc::default(),
                            is_finishing: false,
                        },
                    );
                    batch.push(id);
                }
                (batch, listener)
            };
            if batch.is_empty() {
                return;
            }
            let jobs = self.clone();
            self.0
                .runtime
                .spawn(async move { jobs.claim(batch, listener).await });
        }
    }

    /// Claims `batch` for `listener`: by one commit, whose version is the fence of each.
    async fn claim(&self, batch: Vec<JobId>, listener: Arc<Listener>) {
        let mut commit = own_commit();
        let mut claimed = Vec::new();
        let now = now_ms();
        for id in batch {
            match self.claim_one(&mut commit, id, &listener, now) {
                Ok(Some(one)) => claimed.push(one),
                // It has ended meanwhile, or is buried by a commit of its own.
                Ok(None) => {}
                Err(error) => self.failed_to_claim(&[id], &error),
            }
        }
        if claimed.is_empty() {
            return;
        }
        let ids: Vec<_> = claimed.iter().map(|(id, ..)| *id).collect();
        let version = match self.0.store.commit(false, commit).await {
            Ok(committed) => committed.version,
            Err(error) => return self.failed_to_claim(&ids, &error),
        };
        let mut given = Vec::new();
        {
            let mut state = self.0.state.lock();
            for (id, record, payload) in claimed {
                let Some(entry) = state.queue.get_mut(id) else {
                    continue;
                };
                entry.is_unstarted = false;
                let is_cancelled = entry.is_cancelled;
                let Some(attempt) = &mut entry.attempt else {
                    continue;
                };
                attempt.fence = version;
                let options = record.options.over(listener.handlers.get(&record.name));
                let timeout = options.timeout_ms.map(Duration::from_millis);
                attempt.deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
                if is_cancelled {
                    let _nobody_waits_yet = attempt.stop.end("cancelled");
                }
                let text = serde_json::json!({
                    "id": id.to_string(), "name": record.name, "tenant": record.tenant,
                    "attempt": record.attempt, "fence": version, "due_ms": record.due_ms,
                });
                let answer = Answer {
                    text: text.to_string(),
                    bytes: payload,
                };
                given.push((id, answer));
            }
        }
        let (parked, is_closed) = {
            let mut inbox = listener.inbox.lock();
            inbox.given.extend(given);
            (inbox.parked.take(), inbox.is_closed)
        };
        // It may have been replaced while this was written.
        if is_closed || self.0.state.lock().live != listener.generation {
            self.take_back(&listener);
            self.pump();
        }
        wake_all(parked.into_iter().collect(), &self.0.runtime);
        self.0.changed.notify_one();
    }

    /// Adds to `commit` what claims a job: its record then, and its payload. None when it is not to
    /// be begun.
    fn claim_one(
        &self,
        commit: &mut Commit,
        id: JobId,
        listener: &Listener,
        now: u64,
    ) -> Result<Option<(JobId, JobRecord, Bytes)>, StateError> {
        let Some((mut record, version)) = self.read_record(Part::Open, id)? else {
            self.0.state.lock().queue.remove(id);
            return Ok(None);
        };
        let (is_unstarted, is_cancelled) = {
            let state = self.0.state.lock();
            let entry = state.queue.get(id);
            entry.map_or((false, false), |entry| {
                (entry.is_unstarted, entry.is_cancelled)
            })
        };
        let options = record.options.over(listener.handlers.get(&record.name));
        if is_cancelled || (!is_unstarted && record.attempt >= options.max_attempts()) {
            // It was cancelled as it ran, or its last attempt ended with the host.
            let (end, error) = if is_cancelled {
                (JobState::Cancelled, "it was cancelled".to_owned())
            } else {
                let error = record.error.clone().unwrap_or_else(|| {
                    "its last attempt was cut: the host ended, or its deadline passed".to_owned()
                });
                (JobState::Dead, error)
            };
            record.error = Some(error);
            let jobs = self.clone();
            self.0.runtime.spawn(async move {
                if let Err(error) = jobs.bury(id, record, version, end).await {
                    jobs.failed_to_claim(&[id], &error);
                }
            });
            return Ok(None);
        }
        if !is_unstarted {
            record.attempt += 1;
        }
        record.state = JobState::Running;
        record.begun_ms = Some(now);
        record.generation = Some(listener.generation);
        let payload = self.read(&Part::Input.of(id)?)?;
        let place = Part::Open.of(id)?;
        commit.checks.push(Check {
            place: place.clone(),
            version,
        });
        commit.mutations.push(put(place, record.encode(), None));
        let payload = payload.map_or_else(Bytes::new, |(payload, _)| payload);
        Ok(Some((id, record, payload)))
    }

    /// They could not be claimed: they wait again.
    fn failed_to_claim(&self, ids: &[JobId], error: &StateError) {
        if *error == StateError::Ended {
            return;
        }
        tracing::warn!(
            app = %self.0.app,
            "{} jobs cannot be begun, which is tried again: {error}",
            ids.len()
        );
        let due_ms = now_ms() + millis(TRY_AGAIN);
        {
            let mut state = self.0.state.lock();
            for id in ids {
                state.queue.wait_again(*id, due_ms);
            }
        }
        self.0.changed.notify_one();
    }

    /// Ends a job for good, from a record of this version.
    async fn bury(
        &self,
        id: JobId,
        record: JobRecord,
        version: u64,
        end: JobState,
    ) -> Result<(), StateError> {
        let mut commit = own_commit();
        commit.checks.push(Check {
            place: Part::Open.of(id)?,
            version,
        });
        self.end_in(&mut commit, id, record, end, None)?;
        self.0.store.commit(false, commit).await?;
        self.has_ended(id, end);
        Ok(())
    }

    /// Adds to `commit` what ends a job for good.
    fn end_in(
        &self,
        commit: &mut Commit,
        id: JobId,
        mut record: JobRecord,
        end: JobState,
        result: Option<Bytes>,
    ) -> Result<(), StateError> {
        let Settings {
            keep_done,
            keep_dead,
            ..
        } = self.0.settings;
        let ttl = Some(if end == JobState::Dead {
            keep_dead
        } else {
            keep_done
        });
        record.state = end;
        record.ended_ms = Some(now_ms());
        let payload = Part::Input.of(id)?;
        let mutations = &mut commit.mutations;
        mutations.push(Mutation::Delete {
            place: Part::Open.of(id)?,
        });
        mutations.push(Mutation::Delete {
            place: Part::Cancel.of(id)?,
        });
        if end == JobState::Done {
            mutations.push(Mutation::Delete { place: payload });
        } else if let Some((bytes, _)) = self.read(&payload)? {
            // For whoever tries it again.
            mutations.push(put(payload, bytes, ttl));
        }
        if let Some(result) = result {
            mutations.push(put(Part::Result.of(id)?, result, ttl));
        }
        if let Some(key) = &record.key {
            let place = key_place(&record.name, key)?;
            mutations.push(put(place, id.to_string(), ttl));
        }
        mutations.push(put(Part::Ended.of(id)?, record.encode(), ttl));
        Ok(())
    }

    /// The end of a job is on the disk.
    fn has_ended(&self, id: JobId, end: JobState) {
        {
            let mut state = self.0.state.lock();
            state.queue.remove(id);
            match end {
                JobState::Done => state.totals.done += 1,
                JobState::Dead => state.totals.dead += 1,
                _ => {}
            }
        }
        self.pump();
    }

    /// Ends the attempt that `finish` names, with `commit`.
    pub(super) fn finish(&self, finish: Finish, result: Bytes, commit: Commit) -> Arc<Outcome> {
        let jobs = self.clone();
        self.under_way(async move {
            jobs.finish_now(finish, result, commit).await?;
            Ok(Answer::default())
        })
    }

    /// Cancels a job in the name of its app.
    pub(super) fn cancel_for_app(&self, id: JobId) -> Arc<Outcome> {
        let jobs = self.clone();
        self.under_way(async move {
            jobs.cancel(id).await?;
            Ok(Answer::default())
        })
    }

    async fn finish_now(
        &self,
        finish: Finish,
        result: Bytes,
        commit: Commit,
    ) -> Result<(), Refused> {
        let id: JobId = finish.id.parse().map_err(|_| Refused::superseded())?;
        let (is_cancelled, handler) = {
            let mut state = self.0.state.lock();
            let listener = state.listener().cloned();
            let entry = state.queue.get_mut(id).ok_or_else(Refused::superseded)?;
            let (name, is_cancelled) = (Arc::clone(&entry.name), entry.is_cancelled);
            let attempt = entry.attempt.as_mut().ok_or_else(Refused::superseded)?;
            if attempt.fence != finish.fence || finish.fence == 0 || attempt.is_finishing {
                return Err(Refused::superseded());
            }
            attempt.is_finishing = true;
            let handler = listener.and_then(|listener| listener.handlers.get(&*name).cloned());
            (is_cancelled, handler)
        };
        let written = self
            .write_end(id, &finish, result, commit, is_cancelled, handler.as_ref())
            .await;
        if written.is_err()
            && let Some(entry) = self.0.state.lock().queue.get_mut(id)
            && let Some(attempt) = &mut entry.attempt
        {
            attempt.is_finishing = false;
        }
        written
    }

    async fn write_end(
        &self,
        id: JobId,
        finish: &Finish,
        result: Bytes,
        mut commit: Commit,
        is_cancelled: bool,
        handler: Option<&JobHandler>,
    ) -> Result<(), Refused> {
        let place = Part::Open.of(id)?;
        let found = self.read_record(Part::Open, id)?;
        let Some((mut record, version)) = found else {
            self.0.state.lock().queue.remove(id);
            return Err(Refused::superseded());
        };
        if version != finish.fence {
            return Err(Refused::superseded());
        }
        for job in &finish.jobs {
            job.check()?;
        }
        // What it only says of itself is written whatever the app holds.
        commit.is_own =
            commit.mutations.is_empty() && finish.jobs.is_empty() && result.len() <= SMALL;
        let (_, added) = self.add_to(&mut commit, &finish.jobs, true)?;
        commit.checks.push(Check {
            place: place.clone(),
            version,
        });
        let options = record.options.over(handler);
        record.error = finish.error.as_ref().map(|error| {
            let end = error.floor_char_boundary(SMALL);
            error[..end].to_owned()
        });
        let end = match finish.outcome.as_str() {
            "done" => Some(JobState::Done),
            _ if is_cancelled => Some(JobState::Cancelled),
            "dead" => Some(JobState::Dead),
            _ if record.attempt >= options.max_attempts() => Some(JobState::Dead),
            _ => None,
        };
        let due_ms = match end {
            Some(end) => {
                let result = (end == JobState::Done).then_some(result);
                self.end_in(&mut commit, id, record, end, result)?;
                0
            }
            None => {
                let random = RandomState::new().hash_one(id.0) as f64 / u64::MAX as f64;
                let pause = finish
                    .retry_ms
                    .unwrap_or_else(|| millis(options.pause(record.attempt, random)));
                record.state = JobState::Waiting;
                record.due_ms = now_ms().saturating_add(pause);
                let due_ms = record.due_ms;
                commit.mutations.push(put(place, record.encode(), None));
                due_ms
            }
        };
        match self.0.store.commit(false, commit).await {
            Ok(_) => {}
            Err(StateError::Conflict) => {
                // Of what it was based on, or of the job itself?
                let now = self.read_record(Part::Open, id)?;
                return Err(match now {
                    Some((_, version)) if version == finish.fence => StateError::Conflict.into(),
                    _ => Refused::superseded(),
                });
            }
            Err(error) => return Err(error.into()),
        }
        self.added(added);
        if finish.outcome != "done" {
            self.0.state.lock().totals.failed += 1;
        }
        match end {
            Some(end) => {
                self.has_ended(id, end);
                if end == JobState::Dead {
                    let why = finish.error.as_deref().unwrap_or("it was given up");
                    tracing::error!(app = %self.0.app, job = %id, "the job is a dead letter: {why}");
                }
            }
            None => {
                self.0.state.lock().queue.wait_again(id, due_ms);
                self.pump();
            }
        }
        Ok(())
    }

    /// Whoever had this attempt has dropped it: the job runs again.
    pub(super) fn abandon(&self, id: JobId, fence: u64) {
        {
            let mut state = self.0.state.lock();
            let Some(entry) = state.queue.get_mut(id) else {
                return;
            };
            match &entry.attempt {
                Some(attempt) if attempt.fence == fence && !attempt.is_finishing => {}
                _ => return,
            }
            state.queue.wait_again(id, now_ms());
        }
        self.pump();
    }

    /// A generation has ended: what it had runs again elsewhere.
    pub(super) fn abandon_all(&self, generation: u64) {
        self.stop_listening(generation);
        let of_it: Vec<_> = {
            let state = self.0.state.lock();
            let attempts = state.queue.attempts();
            let of_it = attempts.filter_map(|(id, entry)| {
                let attempt = entry.attempt.as_ref()?;
                (attempt.generation == generation && attempt.fence > 0)
                    .then_some((id, attempt.fence))
            });
            of_it.collect()
        };
        for (id, fence) in of_it {
            self.abandon(id, fence);
        }
    }

    /// What ends when the attempt is to end.
    pub(super) fn stop_of(&self, id: JobId, fence: u64) -> Option<Arc<Promise<&'static str>>> {
        let state = self.0.state.lock();
        let attempt = state.queue.get(id)?.attempt.as_ref()?;
        (attempt.fence == fence).then(|| Arc::clone(&attempt.stop))
    }

    /// How far an attempt is.
    pub(super) fn progress(&self, id: JobId, fence: u64, fraction: f64, text: String) {
        let mut state = self.0.state.lock();
        if let Some(entry) = state.queue.get_mut(id)
            && let Some(attempt) = &mut entry.attempt
            && attempt.fence == fence
        {
            attempt.progress = Some((fraction, text));
        }
    }

    /// Cancels a job: one that waits has ended when this returns, one that runs is told.
    ///
    /// # Errors
    /// When there is none that has not ended, or it cannot be written.
    pub(crate) async fn cancel(&self, id: JobId) -> Result<(), Refused> {
        self.loaded().await?;
        let stop = {
            let mut state = self.0.state.lock();
            let entry = state
                .queue
                .get_mut(id)
                .ok_or_else(|| Refused::unknown(id))?;
            entry.is_cancelled = true;
            entry
                .attempt
                .as_ref()
                .map(|attempt| Arc::clone(&attempt.stop))
        };
        match stop {
            Some(stop) => {
                let mut commit = own_commit();
                commit
                    .mutations
                    .push(put(Part::Cancel.of(id)?, &b"1"[..], None));
                self.0.store.commit(false, commit).await?;
                let parked = stop.end("cancelled");
                wake_all(parked.into_iter().collect(), &self.0.runtime);
                Ok(())
            }
            None => {
                let Some((mut record, version)) = self.read_record(Part::Open, id)? else {
                    return Err(Refused::unknown(id));
                };
                record.error = Some("it was cancelled".to_owned());
                match self.bury(id, record, version, JobState::Cancelled).await {
                    // It was begun in between, and is told then.
                    Ok(()) | Err(StateError::Conflict) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    /// Lets a job wait again that is a dead letter, was cancelled or waits for its next attempt: it
    /// is due at once, and its attempts count from the beginning.
    ///
    /// # Errors
    /// When there is no such job, or it cannot be written.
    pub(crate) async fn retry(&self, id: JobId) -> Result<(), Refused> {
        self.loaded().await?;
        let (part, found) = match self.read_record(Part::Open, id)? {
            Some(found) => (Part::Open, Some(found)),
            None => (Part::Ended, self.read_record(Part::Ended, id)?),
        };
        let Some((mut record, version)) = found else {
            return Err(Refused::unknown(id));
        };
        if matches!(record.state, JobState::Done | JobState::Running) {
            return Err(Refused::invalid(format!(
                "the job {id} is {}: only what failed, waits or was cancelled is tried again",
                record.state.as_str()
            )));
        }
        let now = now_ms();
        record.state = JobState::Waiting;
        record.attempt = 0;
        record.due_ms = now;
        record.ended_ms = None;
        let mut commit = own_commit();
        let place = part.of(id)?;
        commit.checks.push(Check {
            place: place.clone(),
            version,
        });
        if part == Part::Ended {
            commit.mutations.push(Mutation::Delete { place });
            if let Some((payload, _)) = self.read(&Part::Input.of(id)?)? {
                commit
                    .mutations
                    .push(put(Part::Input.of(id)?, payload, None));
            }
            if let Some(key) = &record.key {
                let place = key_place(&record.name, key)?;
                commit.mutations.push(put(place, id.to_string(), None));
            }
        }
        commit
            .mutations
            .push(put(Part::Open.of(id)?, record.encode(), None));
        self.0.store.commit(false, commit).await?;
        let mut state = self.0.state.lock();
        if state.queue.get(id).is_some() {
            state.queue.wait_again(id, now);
        } else {
            state
                .queue
                .add(id, &record.name, &record.tenant, record.priority, now);
        }
        drop(state);
        self.pump();
        Ok(())
    }

    async fn loaded(&self) -> Result<(), StateError> {
        let jobs = self.clone();
        let loaded = tokio::task::spawn_blocking(move || jobs.load()).await;
        loaded.unwrap_or_else(|error| Err(StateError::Unavailable(error.to_string())))
    }

    /// What is known of a job, and its result. Blocks on the disk.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn find(&self, id: JobId) -> Result<Option<(JobInfo, Bytes)>, StateError> {
        if let Some((record, _)) = self.read_record(Part::Open, id)? {
            return Ok(Some((self.info(id, record), Bytes::new())));
        }
        let Some((record, _)) = self.read_record(Part::Ended, id)? else {
            return Ok(None);
        };
        let result = self.read(&Part::Result.of(id)?)?;
        let result = result.map_or_else(Bytes::new, |(result, _)| result);
        Ok(Some((self.info(id, record), result)))
    }

    /// All that is known of a job. Blocks on the disk.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn details(&self, id: JobId) -> Result<Option<JobDetails>, StateError> {
        self.load()?;
        let Some((job, result)) = self.find(id)? else {
            return Ok(None);
        };
        let payload = self.read(&Part::Input.of(id)?)?;
        Ok(Some(JobDetails {
            job,
            payload: payload.and_then(|(payload, _)| serde_json::from_slice(&payload).ok()),
            result: serde_json::from_slice(&result).ok(),
        }))
    }

    /// Jobs by their identities, those that have not ended first. Blocks on the disk.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(crate) fn list(&self, filter: &JobFilter) -> Result<Vec<JobInfo>, StateError> {
        self.load()?;
        let mut found = Vec::new();
        for (part, reverse) in [(Part::Open, false), (Part::Ended, true)] {
            self.scan(part, reverse, |id, record| {
                let of_tenant =
                    |job: &JobRecord| filter.tenant.as_ref().is_none_or(|it| *it == job.tenant);
                if let Some(job) = JobRecord::decode(record).filter(of_tenant) {
                    let info = self.info(id, job);
                    if filter.state.is_none_or(|state| state == info.state) {
                        found.push(info);
                    }
                }
                found.len() < filter.limit
            })?;
        }
        Ok(found)
    }

    fn info(&self, id: JobId, record: JobRecord) -> JobInfo {
        let mut info = JobInfo {
            id: id.to_string(),
            app: self.0.app.clone(),
            name: record.name,
            tenant: record.tenant,
            state: record.state,
            attempt: record.attempt,
            max_attempts: record.options.max_attempts(),
            priority: record.priority,
            due_ms: record.due_ms,
            enqueued_ms: record.enqueued_ms,
            begun_ms: record.begun_ms,
            ended_ms: record.ended_ms,
            generation: record.generation,
            error: record.error,
            progress: None,
            progress_text: String::new(),
            age_ms: None,
            note: None,
        };
        let state = self.0.state.lock();
        let handler = state
            .listener()
            .map(|listener| listener.handlers.get(&info.name));
        if let Some(Some(handler)) = handler {
            info.max_attempts = record.options.over(Some(handler)).max_attempts();
        }
        if info.ended_ms.is_some() {
            return info;
        }
        match state.queue.get(id).and_then(|entry| entry.attempt.as_ref()) {
            Some(attempt) => {
                info.state = JobState::Running;
                info.age_ms = Some(millis(attempt.since.elapsed()));
                if let Some((fraction, text)) = &attempt.progress {
                    info.progress = Some(*fraction);
                    info.progress_text.clone_from(text);
                }
            }
            None => {
                info.state = JobState::Waiting;
                info.note = match handler {
                    None => Some("no version of the app is live that runs jobs".to_owned()),
                    Some(None) => Some(format!(
                        "the live version has no handler for `{}`",
                        info.name
                    )),
                    Some(Some(_)) => None,
                };
            }
        }
        info
    }

    /// The names of jobs that have not ended, that the live version has a handler for, and one that
    /// declares this has none; each with how many there are. Blocks on the disk.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(crate) fn orphans(
        &self,
        declared: &Declared,
    ) -> Result<BTreeMap<String, usize>, StateError> {
        self.load()?;
        let state = self.0.state.lock();
        let Some(listener) = state.listener() else {
            return Ok(BTreeMap::new());
        };
        let names = state.queue.names().into_iter().filter(|(name, _)| {
            listener.handlers.contains_key(&**name) && !declared.contains_key(&**name)
        });
        Ok(names
            .map(|(name, count)| (name.to_string(), count))
            .collect())
    }

    /// How many there are, as far as they were read.
    pub(crate) fn counts(&self) -> JobCounts {
        let state = self.0.state.lock();
        let (waiting, running) = state.queue.counts();
        JobCounts {
            waiting,
            running,
            totals: state.totals,
        }
    }

    /// Ends attempts that have run for too long; gives when the next one is to be looked at.
    fn expire(&self) -> Option<Duration> {
        let mut parked = Vec::new();
        let next = {
            let state = self.0.state.lock();
            let now = Instant::now();
            let mut next: Option<Duration> = None;
            for (_, entry) in state.queue.attempts() {
                let Some(attempt) = &entry.attempt else {
                    continue;
                };
                let Some(deadline) = attempt.deadline else {
                    continue;
                };
                if deadline <= now {
                    parked.extend(attempt.stop.end("timeout"));
                } else {
                    let left = deadline - now;
                    next = Some(next.map_or(left, |next| next.min(left)));
                }
            }
            let due = state.listener().and_then(|listener| {
                match state
                    .queue
                    .next(now_ms(), &listener.handlers, self.0.settings.max_running)
                {
                    Next::At(due_ms) => due_ms,
                    Next::Job(_) => Some(0),
                }
            });
            if let Some(due_ms) = due {
                let left = Duration::from_millis(due_ms.saturating_sub(now_ms()).max(1));
                next = Some(next.map_or(left, |next| next.min(left)));
            }
            next
        };
        wake_all(parked, &self.0.runtime);
        next
    }
}

/// Begins what is due and ends what takes too long, as long as there is somebody who has the jobs.
async fn keep(jobs: Weak<Inner>) {
    loop {
        let Some(inner) = jobs.upgrade() else { return };
        let jobs_of = Jobs(inner);
        jobs_of.begin_due();
        let next = jobs_of.expire().unwrap_or(LOOK_EVERY).min(LOOK_EVERY);
        let changed = jobs_of.0.changed.notified();
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(next) => {}
        }
    }
}

#[cfg(test)]
mod tests;
