//! Durable jobs and leases in memory.
//!
//! Jobs run by their due time and priority, are tried again, time out and are cancelled as a host
//! does it. What a host does beyond that (schedules, the limits of concurrency) is not here.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::{Instant, Sleep, sleep_until};

use super::state::{MemoryState, Refused};
use crate::abi::{
    lent::Lent,
    poll::PollState,
    state::codes,
    work::{
        ATTEMPT, CANCEL, ENQUEUE, FIND, FINISH, INBOX, LEASE, LISTEN, NEW_ID, PROGRESS, REPLY,
        SETTINGS, SUPERSEDED, UNKNOWN_JOB, WorkFuture, WorkRequest, WorkService, WorkSink,
    },
};

/// How often a job is tried, where neither it nor its handler says so.
const ATTEMPTS: u32 = 20;
/// The pause after the first attempt that failed, and the longest one.
const BACKOFF: (u64, u64) = (1000, 3_600_000);

/// Jobs and leases of one app. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct MemoryWork {
    state: MemoryState,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The number of the last job, attempt or holder.
    last: u64,
    jobs: BTreeMap<String, Job>,
    leases: BTreeMap<String, Lease>,
    /// The live settings.
    settings: BTreeMap<String, serde_json::Value>,
    /// Generations that begin nothing new.
    draining: BTreeSet<u64>,
    parked: Vec<Waker>,
}

#[derive(Debug)]
struct Job {
    new: NewJob,
    payload: Vec<u8>,
    due: Instant,
    state: &'static str,
    attempt: u32,
    fence: u64,
    error: Option<String>,
    progress: Option<f64>,
    progress_text: String,
    result: Vec<u8>,
    is_cancelled: bool,
}

#[derive(Debug, Default)]
struct Lease {
    holder: Option<u64>,
    waiting: VecDeque<u64>,
}

/// How a job is tried, of its own or by its handler.
#[derive(Clone, Debug, Default, Deserialize)]
struct Options {
    max_attempts: Option<u32>,
    backoff_ms: Option<u64>,
    longest_backoff_ms: Option<u64>,
    timeout_ms: Option<u64>,
}

#[derive(Clone, Debug, Deserialize)]
struct NewJob {
    name: String,
    id: Option<String>,
    #[serde(default)]
    tenant: Option<String>,
    due_ms: Option<u64>,
    #[serde(default)]
    priority: Option<i32>,
    key: Option<String>,
    #[serde(flatten)]
    options: Options,
    #[serde(default)]
    length: usize,
}

#[derive(Deserialize)]
struct Enqueue {
    jobs: Vec<NewJob>,
}

#[derive(Deserialize)]
struct Handler {
    job: String,
    #[serde(flatten)]
    options: Options,
}

#[derive(Deserialize)]
struct Listen {
    jobs: Vec<Handler>,
}

#[derive(Deserialize)]
struct OfAttempt {
    id: String,
    #[serde(default)]
    fence: u64,
}

#[derive(Deserialize)]
struct Progress {
    id: String,
    fence: u64,
    fraction: f64,
    #[serde(default)]
    text: String,
}

#[derive(Deserialize)]
struct Finish {
    id: String,
    fence: u64,
    outcome: String,
    error: Option<String>,
    retry_ms: Option<u64>,
    #[serde(default)]
    result_length: usize,
    #[serde(default)]
    jobs: Vec<NewJob>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    key: Option<String>,
}

/// An answer: its JSON, and the bytes beside it.
type Answer = Result<(serde_json::Value, Vec<u8>), Refused>;

fn read<T: DeserializeOwned>(request: &WorkRequest<'_>) -> Result<T, Refused> {
    serde_json::from_str(request.text.as_str())
        .map_err(|error| Refused::invalid(format!("this is not understood: {error}")))
}

fn unknown(id: &str) -> Refused {
    Refused(UNKNOWN_JOB, format!("there is no job {id}"))
}

fn done() -> Answer {
    Ok((serde_json::json!({}), Vec::new()))
}

fn ids(ids: &[String]) -> Answer {
    Ok((serde_json::json!({ "ids": ids }), Vec::new()))
}

impl Inner {
    fn park(&mut self, waker: &Waker) {
        if !self.parked.iter().any(|parked| parked.will_wake(waker)) {
            self.parked.push(waker.clone());
        }
    }

    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn new_id(&mut self) -> String {
        format!("{:013}", self.next())
    }

    /// The job of this name and key that is there already.
    fn of_key(&self, name: &str, key: Option<&str>) -> Option<String> {
        let key = key?;
        let same = |job: &Job| job.new.name == name && job.new.key.as_deref() == Some(key);
        let mut jobs = self.jobs.iter();
        jobs.find_map(|(id, job)| same(job).then(|| id.clone()))
    }

    /// Adds `jobs`, whose payloads lie one behind the other; gives their identities.
    fn add(&mut self, jobs: Vec<NewJob>, mut payloads: &[u8]) -> Vec<String> {
        let mut ids = Vec::new();
        for new in jobs {
            let (payload, rest) = payloads.split_at(new.length.min(payloads.len()));
            payloads = rest;
            if let Some(known) = self.of_key(&new.name, new.key.as_deref()) {
                ids.push(known);
                continue;
            }
            let id = new.id.clone().unwrap_or_else(|| self.new_id());
            ids.push(id.clone());
            let job = Job {
                payload: payload.to_vec(),
                due: due(new.due_ms),
                new,
                state: "waiting",
                attempt: 0,
                fence: 0,
                error: None,
                progress: None,
                progress_text: String::new(),
                result: Vec::new(),
                is_cancelled: false,
            };
            self.jobs.insert(id, job);
        }
        ids
    }

    /// The job of this attempt, while it runs.
    fn attempt(&mut self, id: &str, fence: u64) -> Result<&mut Job, Refused> {
        let job = self.jobs.get_mut(id).ok_or_else(|| unknown(id))?;
        if job.state != "running" || job.fence != fence {
            let why = format!("the job {id} was ended, or given to another");
            return Err(Refused(SUPERSEDED, why));
        }
        Ok(job)
    }
}

impl Job {
    fn info(&self, id: &str) -> serde_json::Value {
        serde_json::json!({
            "id": id, "name": self.new.name, "tenant": self.new.tenant.as_deref().unwrap_or(""),
            "state": self.state, "attempt": self.attempt, "error": self.error,
            "progress": self.progress, "progress_text": self.progress_text,
        })
    }

    fn due_ms(&self) -> u64 {
        self.new.due_ms.unwrap_or_default()
    }

    /// When it is tried again, or that it is not.
    fn fail(&mut self, finish: &Finish) {
        let options = &self.new.options;
        let attempts = options.max_attempts.unwrap_or(ATTEMPTS);
        if self.is_cancelled {
            self.state = "cancelled";
        } else if finish.outcome == "dead" || self.attempt >= attempts {
            self.state = "dead";
        } else {
            let first = options.backoff_ms.unwrap_or(BACKOFF.0);
            let longest = options.longest_backoff_ms.unwrap_or(BACKOFF.1);
            let doubled = first.saturating_mul(1 << (self.attempt - 1).min(32));
            let pause = finish.retry_ms.unwrap_or(doubled.min(longest));
            self.state = "waiting";
            self.due = Instant::now() + Duration::from_millis(pause);
        }
    }
}

/// The instant of a time in milliseconds since 1970; none is now.
fn due(due_ms: Option<u64>) -> Instant {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_ms = since.unwrap_or_default().as_millis();
    let ahead = u128::from(due_ms.unwrap_or_default()).saturating_sub(now_ms);
    Instant::now() + Duration::from_millis(u64::try_from(ahead).unwrap_or(u64::MAX))
}

impl MemoryWork {
    /// Has generations of now on begin with this setting.
    pub(super) fn set(&self, key: &str, value: serde_json::Value) {
        self.inner.lock().settings.insert(key.to_owned(), value);
    }

    pub(super) fn new(state: MemoryState) -> Self {
        Self {
            state,
            inner: Arc::default(),
        }
    }

    /// Changes something by `change`, and wakes all who wait.
    fn change<R>(&self, change: impl FnOnce(&mut Inner) -> R) -> R {
        let mut inner = self.inner.lock();
        let changed = change(&mut inner);
        let parked = std::mem::take(&mut inner.parked);
        drop(inner);
        parked.into_iter().for_each(Waker::wake);
        changed
    }

    /// The generation begins nothing new, and is asked for its leases.
    pub(super) fn drain(&self, generation: u64) {
        self.change(|inner| inner.draining.insert(generation));
    }

    /// Waits until a job is `done`, `dead` or `cancelled`; gives what is known of it, and its
    /// result. None when there is none of this identity.
    pub(super) fn poll_ended(&self, id: &str, cx: &Context<'_>) -> Poll<Option<(String, Vec<u8>)>> {
        let mut inner = self.inner.lock();
        let Some(job) = inner.jobs.get(id) else {
            return Poll::Ready(None);
        };
        if matches!(job.state, "waiting" | "running") {
            inner.park(cx.waker());
            return Poll::Pending;
        }
        Poll::Ready(Some((job.info(id).to_string(), job.result.clone())))
    }

    fn enqueue(&self, request: &WorkRequest<'_>) -> Answer {
        let Enqueue { jobs } = read(request)?;
        if let Some(bad) = jobs.iter().find(|job| !is_name(&job.name)) {
            return Err(Refused::invalid(format!(
                "`{}` is no name of a job: use letters, digits, - and _",
                bad.name
            )));
        }
        self.change(|inner| {
            self.commit(request)?;
            ids(&inner.add(jobs, &request.bytes))
        })
    }

    fn commit(&self, request: &WorkRequest<'_>) -> Result<(), Refused> {
        let commit = request.commit.as_ref().into_option();
        commit.map_or(Ok(()), |commit| self.state.apply(commit).map(drop))
    }

    fn finish(&self, request: &WorkRequest<'_>) -> Answer {
        let mut finish: Finish = read(request)?;
        self.change(|inner| {
            inner.attempt(&finish.id, finish.fence)?;
            self.commit(request)?;
            let bytes = request.bytes.as_slice();
            let (result, payloads) = bytes.split_at(finish.result_length.min(bytes.len()));
            inner.add(std::mem::take(&mut finish.jobs), payloads);
            let job = inner.attempt(&finish.id, finish.fence)?;
            job.error.clone_from(&finish.error);
            if finish.outcome == "done" {
                job.state = "done";
                job.result = result.to_vec();
            } else {
                job.fail(&finish);
            }
            done()
        })
    }

    fn progress(&self, request: &WorkRequest<'_>) -> Answer {
        let progress: Progress = read(request)?;
        let mut inner = self.inner.lock();
        if let Ok(job) = inner.attempt(&progress.id, progress.fence) {
            job.progress = Some(progress.fraction);
            job.progress_text = progress.text;
        }
        done()
    }

    fn find(&self, request: &WorkRequest<'_>) -> Answer {
        let OfAttempt { id, .. } = read(request)?;
        let inner = self.inner.lock();
        let job = inner.jobs.get(&id).ok_or_else(|| unknown(&id))?;
        Ok((job.info(&id), job.result.clone()))
    }

    fn cancel(&self, request: &WorkRequest<'_>) -> Answer {
        let OfAttempt { id, .. } = read(request)?;
        self.change(|inner| {
            let job = inner.jobs.get_mut(&id).ok_or_else(|| unknown(&id))?;
            match job.state {
                "waiting" => job.state = "cancelled",
                "running" => job.is_cancelled = true,
                _ => return Err(unknown(&id)),
            }
            done()
        })
    }

    fn new_id(&self, request: &WorkRequest<'_>) -> Answer {
        let Named { name, key } = read(request)?;
        let mut inner = self.inner.lock();
        let known = inner.of_key(&name, key.as_deref());
        ids(&[known.unwrap_or_else(|| inner.new_id())])
    }
}

fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    !name.is_empty() && name.len() <= 64 && name.bytes().all(fits)
}

/// The work as one generation sees it.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) work: MemoryWork,
    pub(super) generation: u64,
}

impl Session {
    fn started(&self, request: &WorkRequest<'_>) -> Result<Box<dyn WorkFuture>, Refused> {
        let work = &self.work;
        let known = match request.operation {
            ENQUEUE => work.enqueue(request),
            FINISH => work.finish(request),
            PROGRESS => work.progress(request),
            FIND => work.find(request),
            CANCEL => work.cancel(request),
            NEW_ID => work.new_id(request),
            SETTINGS => {
                let settings = &work.inner.lock().settings;
                Ok((serde_json::json!({ "settings": settings }), Vec::new()))
            }
            REPLY => Ok((serde_json::json!({}), Vec::new())),
            INBOX => return Ok(Box::new(Silent)),
            LISTEN => {
                let Listen { jobs } = read(request)?;
                return Ok(Box::new(Listening {
                    work: work.clone(),
                    generation: self.generation,
                    handlers: jobs.into_iter().map(|it| (it.job, it.options)).collect(),
                    next: None,
                }));
            }
            ATTEMPT => {
                let OfAttempt { id, fence } = read(request)?;
                let mut inner = work.inner.lock();
                let timeout = inner.attempt(&id, fence)?.new.options.timeout_ms;
                return Ok(Box::new(Attempting {
                    work: work.clone(),
                    id,
                    fence,
                    timeout: timeout.map(|timeout| {
                        Box::pin(sleep_until(Instant::now() + Duration::from_millis(timeout)))
                    }),
                }));
            }
            LEASE => {
                let Named { name, .. } = read(request)?;
                let number = work.change(|inner| {
                    let number = inner.next();
                    let lease = inner.leases.entry(name.clone()).or_default();
                    match lease.holder {
                        None => lease.holder = Some(number),
                        Some(_) => lease.waiting.push_back(number),
                    }
                    number
                });
                return Ok(Box::new(Leasing {
                    work: work.clone(),
                    generation: self.generation,
                    name,
                    number,
                    is_granted: false,
                }));
            }
            operation => Err(Refused::invalid(format!(
                "a host in memory knows no operation {operation}"
            ))),
        };
        Ok(Box::new(Known(known)))
    }
}

impl WorkService for Session {
    fn begin(&self, request: Lent<'_, WorkRequest<'_>>) -> Box<dyn WorkFuture> {
        self.started(&request)
            .unwrap_or_else(|refused| Box::new(Known(Err(refused))))
    }
}

/// What is known at once.
struct Known(Answer);

impl WorkFuture for Known {
    fn poll(&mut self, _waker: &Waker, sink: &WorkSink<'_>) -> PollState {
        match &self.0 {
            Ok((text, bytes)) => {
                sink.answer(&text.to_string(), bytes);
                PollState::Ready
            }
            Err(Refused(code, why)) => {
                sink.failed(*code, why);
                PollState::Failed
            }
        }
    }
}

/// Nobody asks anything.
struct Silent;

impl WorkFuture for Silent {
    fn poll(&mut self, _waker: &Waker, _sink: &WorkSink<'_>) -> PollState {
        PollState::Pending
    }
}

/// A generation that runs jobs.
struct Listening {
    work: MemoryWork,
    generation: u64,
    handlers: BTreeMap<String, Options>,
    /// Ends when the next job is due.
    next: Option<Pin<Box<Sleep>>>,
}

impl Listening {
    /// Takes the job that is next; else gives when one is due.
    fn take(&self, inner: &mut Inner) -> Result<(String, Vec<u8>), Option<Instant>> {
        let fence = inner.next();
        let waiting = inner
            .jobs
            .iter_mut()
            .filter(|(_, job)| job.state == "waiting" && self.handlers.contains_key(&job.new.name));
        let first = waiting.min_by_key(|(id, job)| {
            let later = (job.due > Instant::now()).then_some(job.due);
            let priority = std::cmp::Reverse(job.new.priority.unwrap_or_default());
            (later, priority, job.due, (*id).clone())
        });
        let Some((id, job)) = first else {
            return Err(None);
        };
        if job.due > Instant::now() {
            return Err(Some(job.due));
        }
        (job.state, job.fence) = ("running", fence);
        job.attempt += 1;
        if let Some(handler) = self.handlers.get(&job.new.name) {
            let Options {
                max_attempts,
                backoff_ms,
                longest_backoff_ms,
                timeout_ms,
            } = &mut job.new.options;
            *max_attempts = max_attempts.or(handler.max_attempts);
            *backoff_ms = backoff_ms.or(handler.backoff_ms);
            *longest_backoff_ms = longest_backoff_ms.or(handler.longest_backoff_ms);
            *timeout_ms = timeout_ms.or(handler.timeout_ms);
        }
        let text = serde_json::json!({
            "id": id, "name": job.new.name, "tenant": job.new.tenant.as_deref().unwrap_or(""),
            "attempt": job.attempt, "fence": fence, "due_ms": job.due_ms(),
        });
        Ok((text.to_string(), job.payload.clone()))
    }
}

impl WorkFuture for Listening {
    fn poll(&mut self, waker: &Waker, sink: &WorkSink<'_>) -> PollState {
        loop {
            let mut inner = self.work.inner.lock();
            if inner.draining.contains(&self.generation) {
                sink.failed(codes::ENDED, "");
                return PollState::Failed;
            }
            let due = match self.take(&mut inner) {
                Ok((text, payload)) => {
                    sink.answer(&text, &payload);
                    return PollState::Ready;
                }
                Err(due) => due,
            };
            inner.park(waker);
            drop(inner);
            let next = self.next.insert(Box::pin(match due {
                Some(due) => sleep_until(due),
                None => return PollState::Pending,
            }));
            let mut cx = Context::from_waker(waker);
            if next.as_mut().poll(&mut cx).is_pending() {
                return PollState::Pending;
            }
        }
    }
}

/// An attempt that is under way.
struct Attempting {
    work: MemoryWork,
    id: String,
    fence: u64,
    timeout: Option<Pin<Box<Sleep>>>,
}

impl WorkFuture for Attempting {
    fn poll(&mut self, waker: &Waker, sink: &WorkSink<'_>) -> PollState {
        let mut inner = self.work.inner.lock();
        let stop = match inner.attempt(&self.id, self.fence) {
            Err(_) => Some("superseded"),
            Ok(job) if job.is_cancelled => Some("cancelled"),
            Ok(_) => None,
        };
        inner.park(waker);
        drop(inner);
        let mut cx = Context::from_waker(waker);
        let timeout = self.timeout.as_mut();
        let is_over = timeout.is_some_and(|timeout| timeout.as_mut().poll(&mut cx).is_ready());
        let stop = stop.or(is_over.then_some("timeout"));
        let Some(stop) = stop else {
            return PollState::Pending;
        };
        sink.answer(&serde_json::json!({ "stop": stop }).to_string(), &[]);
        PollState::Ready
    }
}

impl Drop for Attempting {
    fn drop(&mut self) {
        // Without its end it runs again.
        self.work.change(|inner| {
            if let Ok(job) = inner.attempt(&self.id, self.fence) {
                (job.state, job.due) = ("waiting", Instant::now());
            }
        });
    }
}

/// Somebody who has a lease, or waits for it.
struct Leasing {
    work: MemoryWork,
    generation: u64,
    name: String,
    number: u64,
    is_granted: bool,
}

impl WorkFuture for Leasing {
    fn poll(&mut self, waker: &Waker, sink: &WorkSink<'_>) -> PollState {
        let mut inner = self.work.inner.lock();
        let holder = inner.leases.get(&self.name).and_then(|it| it.holder);
        let answer = if self.is_granted {
            let is_asked = inner.draining.contains(&self.generation);
            is_asked.then(|| serde_json::json!({ "asked_back": true }))
        } else {
            self.is_granted = holder == Some(self.number);
            self.is_granted
                .then(|| serde_json::json!({ "fence": self.number }))
        };
        match answer {
            Some(answer) => {
                sink.answer(&answer.to_string(), &[]);
                PollState::Ready
            }
            None => {
                inner.park(waker);
                PollState::Pending
            }
        }
    }
}

impl Drop for Leasing {
    fn drop(&mut self) {
        self.work.change(|inner| {
            let Some(lease) = inner.leases.get_mut(&self.name) else {
                return;
            };
            lease.waiting.retain(|number| *number != self.number);
            if lease.holder == Some(self.number) {
                lease.holder = lease.waiting.pop_front();
            }
        });
    }
}
