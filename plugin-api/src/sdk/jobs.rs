//! Durable jobs: work that is on the disk before anybody begins it, and is begun again until it is
//! done.

use std::{
    any::Any,
    fmt,
    future::{Future, IntoFuture, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{self, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use super::{
    context::Context,
    error::Error,
    log,
    state::{State, StateError, Transaction, With},
    work::{Kind, Works},
    worker::Stop,
};
use crate::abi::{
    declared::declared,
    export::panic_message,
    poll::PollState,
    work::{
        ATTEMPT, CANCEL, FIND, FINISH, LISTEN, NEW_ID, PROGRESS, SUPERSEDED, TakeWork, UNKNOWN_JOB,
        WorkCall, WorkHandle,
    },
};

/// How long a handler may go on after its job was cancelled, before its future is dropped.
const GRACE: Duration = Duration::from_secs(10);
/// How long the end of an attempt that cannot be written is kept back before it is tried again.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// The identity of a durable job: 13 letters and digits, which sort in the order of enqueuing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(String);

impl JobId {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for JobId {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why an attempt of a job failed.
///
/// By `?` every error becomes one, as for [`Error`]; the job is tried again then.
pub struct JobError {
    text: String,
    next: Next,
}

/// What becomes of a job whose attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// It is tried again, after the pause that its options say.
    Retry,
    /// It is tried again, after this pause.
    After(Duration),
    /// It is given up.
    Never,
}

impl JobError {
    /// The job is tried again later.
    pub fn msg(message: impl fmt::Display) -> Self {
        Self {
            text: message.to_string(),
            next: Next::Retry,
        }
    }

    /// To try again would be of no use: the job is a dead letter from now on.
    pub fn fatal(message: impl fmt::Display) -> Self {
        Self {
            next: Next::Never,
            ..Self::msg(message)
        }
    }

    /// The job is tried again after `pause`, whatever its options say.
    #[must_use]
    pub fn retry_after(self, pause: Duration) -> Self {
        Self {
            next: Next::After(pause),
            ..self
        }
    }
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for JobError {
    fn from(error: E) -> Self {
        Self::msg(Error::from(error))
    }
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What a plugin keeps of an answer of the host.
#[derive(Default)]
struct Answer {
    text: String,
    bytes: Vec<u8>,
    error: Option<WorkError>,
}

/// Why the host refused.
pub(super) enum WorkError {
    /// Somebody else has the job by now.
    Superseded,
    /// There is no such job.
    Unknown,
    /// Anything else.
    State(StateError),
}

impl From<WorkError> for StateError {
    fn from(error: WorkError) -> Self {
        match error {
            WorkError::Superseded => Self::Conflict,
            WorkError::Unknown => Self::Invalid("there is no such job".to_owned()),
            WorkError::State(error) => error,
        }
    }
}

impl TakeWork for Answer {
    fn answer(&mut self, text: &str, bytes: &[u8]) {
        (self.text, self.bytes) = (text.to_owned(), bytes.to_vec());
    }

    fn failed(&mut self, code: u32, why: &str) {
        self.error = Some(match code {
            SUPERSEDED => WorkError::Superseded,
            UNKNOWN_JOB => WorkError::Unknown,
            code => WorkError::State(StateError::of(code, why)),
        });
    }
}

/// Polls `call`: the JSON of its answer, and the bytes beside it.
pub(super) fn poll_work(
    call: &mut WorkCall,
    cx: &task::Context<'_>,
) -> Poll<Result<(String, Vec<u8>), WorkError>> {
    let mut answer = Answer::default();
    match call.poll(cx.waker(), &mut answer) {
        PollState::Pending => Poll::Pending,
        PollState::Ready => Poll::Ready(Ok((answer.text, answer.bytes))),
        _ => Poll::Ready(Err(answer.error.unwrap_or_else(|| {
            WorkError::State(StateError::Unavailable(
                "the host did not say what became of it".to_owned(),
            ))
        }))),
    }
}

async fn ended(mut call: WorkCall) -> Result<(String, Vec<u8>), WorkError> {
    poll_fn(|cx| poll_work(&mut call, cx)).await
}

/// There is no host, or one that is too old.
pub(super) fn no_host() -> StateError {
    StateError::Unavailable(
        "this host keeps no jobs: they need a host of ABI 1.3 or later".to_owned(),
    )
}

/// A job that is to be enqueued, as the host reads it.
#[derive(Debug, Default, Serialize)]
pub(super) struct NewJob {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<JobId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    due_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backoff_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    longest_backoff_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    /// Bytes of its payload among those of all.
    length: usize,
    #[serde(skip)]
    payload: Vec<u8>,
}

/// The JSON of `jobs` and their payloads, one behind the other.
pub(super) fn encode_jobs(jobs: &[NewJob]) -> (serde_json::Value, Vec<u8>) {
    let payloads = jobs.iter().flat_map(|job| &job.payload).copied().collect();
    (serde_json::json!(jobs), payloads)
}

/// Where a job is enqueued.
enum Target {
    /// At once, in a commit of its own.
    Host(Option<WorkHandle>),
    /// With a transaction.
    Transaction(Transaction, Option<WorkHandle>),
    /// Nowhere: this is a preflight check.
    Nowhere,
}

/// A job that is to be enqueued: with options, then awaited.
#[must_use = "nothing is enqueued before this is awaited"]
pub struct Enqueue {
    target: Target,
    job: Result<NewJob, StateError>,
}

impl fmt::Debug for Enqueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Enqueue").field(&self.job).finish()
    }
}

impl Enqueue {
    fn new<T: Serialize + ?Sized>(target: Target, name: &str, payload: &T) -> Self {
        let job = serde_json::to_vec(payload)
            .map(|payload| NewJob {
                name: name.to_owned(),
                length: payload.len(),
                payload,
                ..NewJob::default()
            })
            .map_err(|error| StateError::Encode(error.to_string()));
        Self { target, job }
    }

    pub(super) fn with<T: Serialize + ?Sized>(
        transaction: Transaction,
        work: Option<WorkHandle>,
        name: &str,
        payload: &T,
    ) -> Self {
        Self::new(Target::Transaction(transaction, work), name, payload)
    }

    fn set(mut self, set: impl FnOnce(&mut NewJob)) -> Self {
        if let Ok(job) = &mut self.job {
            set(job);
        }
        self
    }

    /// Whose it is: shown, and counted for `tenant_concurrency`.
    pub fn tenant(self, tenant: impl Into<String>) -> Self {
        self.set(|job| job.tenant = Some(tenant.into()))
    }

    /// Not before `delay` has passed.
    pub fn delay(self, delay: Duration) -> Self {
        self.at(SystemTime::now() + delay)
    }

    /// Not before `time`.
    pub fn at(self, time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.set(|job| job.due_ms = Some(milliseconds(since)))
    }

    /// Those with a higher number go first. Default 0.
    pub fn priority(self, priority: i32) -> Self {
        self.set(|job| job.priority = Some(priority))
    }

    /// What makes it the same job: as long as the host remembers a job of this name with this key,
    /// a second one is not enqueued, and the identity of the first is given.
    pub fn key(self, key: impl Into<String>) -> Self {
        self.set(|job| job.key = Some(key.into()))
    }

    /// How often it is tried before it is a dead letter. Default: that of its handler, or 20.
    pub fn max_attempts(self, attempts: u32) -> Self {
        self.set(|job| job.max_attempts = Some(attempts))
    }

    /// The pause after the first attempt that failed, which doubles with each up to `longest`; a
    /// random part of it, at least a half, is waited. Default 1 s and 1 h.
    pub fn backoff(self, first: Duration, longest: Duration) -> Self {
        self.set(|job| {
            job.backoff_ms = Some(milliseconds(first));
            job.longest_backoff_ms = Some(milliseconds(longest));
        })
    }

    /// How long an attempt may take, after which it counts as one that failed. Default: that of its
    /// handler, or for ever.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.set(|job| job.timeout_ms = Some(milliseconds(timeout)))
    }

    async fn enqueue(self) -> Result<JobId, StateError> {
        let mut job = self.job?;
        match self.target {
            Target::Nowhere => Ok(JobId("preflight".to_owned())),
            Target::Host(work) => {
                let (jobs, payloads) = encode_jobs(&[job]);
                let text = serde_json::json!({ "jobs": jobs }).to_string();
                let call = work.ok_or_else(no_host)?.begin(
                    crate::abi::work::ENQUEUE,
                    &text,
                    &payloads,
                    None,
                );
                let (text, _) = ended(call).await?;
                first_id(&text)
            }
            Target::Transaction(transaction, work) => {
                let work = work.ok_or_else(no_host)?;
                let asked = serde_json::json!({ "name": job.name, "key": job.key }).to_string();
                let (text, _) = ended(work.begin(NEW_ID, &asked, &[], None)).await?;
                let id = first_id(&text)?;
                job.id = Some(id.clone());
                transaction.add_job(job);
                Ok(id)
            }
        }
    }
}

/// What an [`Enqueue`] is when it is awaited.
pub type Enqueuing = Pin<Box<dyn Future<Output = Result<JobId, StateError>> + Send>>;

impl IntoFuture for Enqueue {
    type Output = Result<JobId, StateError>;
    type IntoFuture = Enqueuing;

    fn into_future(self) -> Enqueuing {
        Box::pin(self.enqueue())
    }
}

fn first_id(text: &str) -> Result<JobId, StateError> {
    #[derive(Deserialize)]
    struct Ids {
        ids: Vec<JobId>,
    }
    let unclear = || StateError::Unavailable("the host gave no identity".to_owned());
    let Ids { ids } = serde_json::from_str(text).map_err(|_| unclear())?;
    ids.into_iter().next().ok_or_else(unclear)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What is known of a durable job.
#[derive(Clone, Debug, Deserialize)]
#[non_exhaustive]
pub struct JobInfo {
    /// Its identity.
    pub id: JobId,
    /// The name of its handler.
    pub name: String,
    /// Whose it is; may be empty.
    #[serde(default)]
    pub tenant: String,
    /// `waiting`, `running`, `done`, `dead` or `cancelled`.
    pub state: String,
    /// Attempts that were begun.
    pub attempt: u32,
    /// What the last attempt failed with.
    #[serde(default)]
    pub error: Option<String>,
    /// How far it is, from 0 to 1, where it said so.
    #[serde(default)]
    pub progress: Option<f64>,
    /// What it said with that.
    #[serde(default)]
    pub progress_text: String,
    #[serde(skip)]
    result: Vec<u8>,
}

impl JobInfo {
    /// What the host says of a job, and its result.
    pub(super) fn read(text: &str, result: Vec<u8>) -> Result<Self, StateError> {
        let info: Self =
            serde_json::from_str(text).map_err(|error| StateError::Decode(error.to_string()))?;
        Ok(Self { result, ..info })
    }

    /// What the handler gave, once the job is done.
    ///
    /// # Errors
    /// When that is of another type.
    pub fn result<T: DeserializeOwned>(&self) -> Result<Option<T>, StateError> {
        if self.state != "done" {
            return Ok(None);
        }
        serde_json::from_slice(&self.result)
            .map(Some)
            .map_err(|error| StateError::Decode(error.to_string()))
    }
}

/// Jobs: work that no deploy interrupts.
///
/// [`spawn`](Self::spawn) runs a future that dies with the host; [`enqueue`](Self::enqueue) keeps
/// work that outlives it.
#[derive(Clone, Copy, Debug)]
pub struct Jobs<'a>(pub(super) &'a Context);

impl Jobs<'_> {
    /// Runs `future` as a job called `name` for `tenant` (which may be empty), in memory: it shows
    /// in `handover status`, is not interrupted unless the operator set `job_deadline`, and ends
    /// with the host.
    pub fn spawn<F>(
        &self,
        name: &str,
        tenant: &str,
        future: F,
    ) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.0.spawn_work(name, tenant, Kind::Job, future)
    }

    /// Enqueues a job for the handler called `name` (see [`macro@crate::job`]). Once what this
    /// gives was awaited, the job is on the disk, and runs at least once, on the version that is
    /// live then. Within a transaction of the state: [`Transaction::enqueue`].
    pub fn enqueue<T: Serialize + ?Sized>(&self, name: &str, payload: &T) -> Enqueue {
        let target = if self.0.is_preflight() {
            Target::Nowhere
        } else {
            Target::Host(self.0.durable_work())
        };
        Enqueue::new(target, name, payload)
    }

    /// What is known of a job; none when there is none of this identity, or it ended longer ago
    /// than the host remembers.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn find(&self, id: &JobId) -> Result<Option<JobInfo>, StateError> {
        let text = serde_json::json!({ "id": id }).to_string();
        let work = self.0.durable_work().ok_or_else(no_host)?;
        match ended(work.begin(FIND, &text, &[], None)).await {
            Ok((text, result)) => JobInfo::read(&text, result).map(Some),
            Err(WorkError::Unknown) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Cancels a job: one that waits never runs, and one that runs is told by
    /// [`JobContext::cancelled`], and ends 10 s later at the latest. Whether there was one to
    /// cancel.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn cancel(&self, id: &JobId) -> Result<bool, StateError> {
        let text = serde_json::json!({ "id": id }).to_string();
        let work = self.0.durable_work().ok_or_else(no_host)?;
        match ended(work.begin(CANCEL, &text, &[], None)).await {
            Ok(_) => Ok(true),
            Err(WorkError::Unknown) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// What a handler knows of the job that it runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct JobContext(Arc<Attempt>);

#[derive(Debug)]
struct Attempt {
    context: Context,
    work: WorkHandle,
    job: Claimed,
    stopped: watch::Sender<bool>,
    /// Its end is written already.
    is_complete: AtomicBool,
}

/// A job that the host gives to run.
#[derive(Debug, Deserialize)]
struct Claimed {
    id: JobId,
    name: String,
    #[serde(default)]
    tenant: String,
    attempt: u32,
    fence: u64,
    #[serde(default)]
    due_ms: u64,
}

impl JobContext {
    /// The context of the app.
    pub fn context(&self) -> &Context {
        &self.0.context
    }

    /// The state of the app.
    pub fn state(&self) -> State {
        self.0.context.state()
    }

    /// The identity of the job.
    pub fn id(&self) -> &JobId {
        &self.0.job.id
    }

    /// Whose it is; may be empty.
    pub fn tenant(&self) -> &str {
        &self.0.job.tenant
    }

    /// Which attempt this is: 1 is the first.
    pub fn attempt(&self) -> u32 {
        self.0.job.attempt
    }

    /// A number that only grows from one attempt of the app's jobs to the next: who gets the work
    /// of an attempt may refuse it from one with a lower number.
    pub fn fence(&self) -> u64 {
        self.0.job.fence
    }

    /// When it was due.
    pub fn due(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0.job.due_ms)
    }

    /// Tells how far it is, from 0 to 1, and with what: shown by `handover jobs`.
    pub fn progress(&self, fraction: f64, text: &str) {
        let Attempt { work, job, .. } = &*self.0;
        let text = serde_json::json!({
            "id": job.id, "fence": job.fence, "fraction": fraction.clamp(0.0, 1.0), "text": text,
        });
        drop(work.begin(PROGRESS, &text.to_string(), &[], None));
    }

    /// Whether the job was cancelled.
    pub fn is_cancelled(&self) -> bool {
        *self.0.stopped.borrow()
    }

    /// Ends when the job was cancelled. The handler has 10 s from then on.
    pub async fn cancelled(&self) {
        let mut stopped = self.0.stopped.subscribe();
        // Its sender is in `self`.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }

    /// Runs `work` as a transaction of the state (see [`State::transaction`]), and ends the job in
    /// the same commit: what it writes happens exactly once, whatever becomes of the host between
    /// attempts. What it gives is the result of the job, and the handler should return it.
    ///
    /// # Errors
    /// Those of `work`, after which nothing is written; and when the job has been given to somebody
    /// else, or was ended, so that this attempt counts for nothing.
    pub async fn complete_with<R, F>(&self, work: impl Fn(Transaction) -> F) -> Result<R, JobError>
    where
        R: Serialize,
        F: Future<Output = Result<R, JobError>>,
    {
        let attempt = &*self.0;
        let finish = |result: &R| {
            let result = serde_json::to_vec(result)
                .map_err(|error| JobError::from(StateError::Encode(error.to_string())))?;
            let text = attempt.finish_text("done", None, result.len());
            Ok((text, result))
        };
        let result = self
            .state()
            .transaction_with(work, |result| {
                finish(result).map(|(text, result)| With::Finish(attempt.work, text, result))
            })
            .await?;
        attempt.is_complete.store(true, Ordering::Release);
        Ok(result)
    }
}

impl Attempt {
    fn finish_text(
        &self,
        outcome: &str,
        error: Option<&JobError>,
        result_length: usize,
    ) -> serde_json::Value {
        let mut text = serde_json::json!({
            "id": self.job.id, "fence": self.job.fence, "outcome": outcome,
            "result_length": result_length,
        });
        if let Some(error) = error {
            text["error"] = error.text.clone().into();
            if let Next::After(pause) = error.next {
                text["retry_ms"] = milliseconds(pause).into();
            }
        }
        text
    }

    /// Writes how it ended, as often as it takes.
    async fn finish(&self, ended_with: Result<Vec<u8>, JobError>) {
        if self.is_complete.load(Ordering::Acquire) {
            return;
        }
        let (outcome, error, result) = match &ended_with {
            Ok(result) => ("done", None, &result[..]),
            Err(error) if error.next == Next::Never => ("dead", Some(error), &[][..]),
            Err(error) => ("failed", Some(error), &[][..]),
        };
        let text = self.finish_text(outcome, error, result.len()).to_string();
        loop {
            match ended(self.work.begin(FINISH, &text, result, None)).await {
                Err(WorkError::State(StateError::Unavailable(why))) => log::error(&format!(
                    "the end of the job {} cannot be written, which is tried again: {why}",
                    self.job.id
                )),
                Err(WorkError::State(StateError::Busy)) => {}
                Err(WorkError::Superseded) => {
                    log::error(&format!(
                        "attempt {} of the job {} came to nothing: it was ended, or given to another",
                        self.job.attempt, self.job.id
                    ));
                    return;
                }
                Err(WorkError::State(error)) => {
                    log::error(&format!(
                        "the end of the job {} was refused: {error}",
                        self.job.id
                    ));
                    return;
                }
                Ok(_) | Err(WorkError::Unknown) => return,
            }
            tokio::time::sleep(WRITE_AGAIN).await;
        }
    }
}

/// What a handler is when it runs.
pub(crate) type JobFuture = Pin<Box<dyn Future<Output = Result<Vec<u8>, JobError>> + Send>>;

/// A handler, as [`macro@crate::job`] declares it.
#[derive(Debug)]
pub struct JobHandler {
    /// Its name.
    pub name: &'static str,
    /// The line that the host reads as well.
    pub line: &'static str,
    /// Runs it.
    pub run: fn(JobContext, Vec<u8>) -> JobFuture,
}

/// Runs a handler: its payload is read, and its result is written.
pub fn run_job<T, R, F>(
    cx: JobContext,
    payload: &[u8],
    handler: impl FnOnce(JobContext, T) -> F,
) -> JobFuture
where
    T: DeserializeOwned,
    R: Serialize,
    F: Future<Output = Result<R, JobError>> + Send + 'static,
{
    let payload = match serde_json::from_slice(payload) {
        Ok(payload) => payload,
        Err(error) => {
            let error = format!("its payload is not what this version's handler takes: {error}");
            return Box::pin(std::future::ready(Err(JobError::msg(error))));
        }
    };
    let handled = handler(cx, payload);
    Box::pin(async move {
        let result = handled.await?;
        serde_json::to_vec(&result)
            .map_err(|error| JobError::fatal(format_args!("its result cannot be JSON: {error}")))
    })
}

/// Runs a handler without a payload, as that of a schedule.
pub fn run_scheduled<R, F>(cx: JobContext, handler: impl FnOnce(JobContext) -> F) -> JobFuture
where
    R: Serialize,
    F: Future<Output = Result<R, JobError>> + Send + 'static,
{
    run_job::<serde::de::IgnoredAny, R, F>(cx, b"null", |cx, _| handler(cx))
}

/// The handlers of this library.
fn handlers() -> impl Iterator<Item = &'static JobHandler> {
    declared()
        .iter()
        .filter_map(|entry| (entry.0 as &dyn Any).downcast_ref())
}

/// Runs the jobs that the host gives, from now on until `stop`.
pub(super) fn listen(context: &Context, works: &Arc<Works>, stop: Stop) {
    let Some(work) = context.durable_work() else {
        return;
    };
    let lines: Vec<_> = handlers().map(|handler| handler.line).collect();
    if lines.is_empty() {
        return;
    }
    let text = format!("{{\"jobs\":[{}]}}", lines.join(","));
    let mut listening = work.begin(LISTEN, &text, &[], None);
    let (context, works) = (context.clone(), Arc::clone(works));
    let runtime = context.runtime().clone();
    runtime.clone().spawn(async move {
        loop {
            let next = stop.or(poll_fn(|cx| poll_work(&mut listening, cx))).await;
            let (text, payload) = match next {
                None => return,
                Some(Ok(given)) => given,
                Some(Err(error)) => {
                    let error = StateError::from(error);
                    if error != StateError::Ended {
                        log::error(&format!("no more jobs are run by this version: {error}"));
                    }
                    return;
                }
            };
            let Ok(job) = serde_json::from_str::<Claimed>(&text) else {
                log::error("the host gave a job that is not understood");
                continue;
            };
            let Some(handler) = handlers().find(|handler| handler.name == job.name) else {
                continue;
            };
            let (name, tenant) = (job.name.clone(), job.tenant.clone());
            // From here on: when it is dropped before it is finished, the host knows.
            let text = serde_json::json!({ "id": job.id, "fence": job.fence }).to_string();
            let watching = work.begin(ATTEMPT, &text, &[], None);
            let attempt = Arc::new(Attempt {
                context: context.clone(),
                work,
                job,
                stopped: watch::Sender::new(false),
                is_complete: AtomicBool::new(false),
            });
            let run = run(attempt, watching, handler, payload);
            works.spawn(&runtime, &name, &tenant, Kind::Job, run);
        }
    });
}

/// Runs an attempt to its end, and writes that.
async fn run(
    attempt: Arc<Attempt>,
    mut watching: WorkCall,
    handler: &'static JobHandler,
    payload: Vec<u8>,
) {
    let cx = JobContext(Arc::clone(&attempt));
    // What it does before it first waits may panic as well.
    let ended_with = match panic_as_error(|| (handler.run)(cx, payload)) {
        Ok(handled) => until_stopped(&attempt, &mut watching, handled).await,
        Err(panicked) => Err(panicked),
    };
    attempt.finish(ended_with).await;
    drop(watching);
}

/// Runs a handler until it has ended, or the host has it stopped and it did not end by then.
async fn until_stopped(
    attempt: &Attempt,
    watching: &mut WorkCall,
    handled: JobFuture,
) -> Result<Vec<u8>, JobError> {
    #[derive(Deserialize)]
    struct Stopped {
        stop: String,
    }
    let mut handled = pin!(WithoutPanics(Some(handled)));
    let mut stopping = None;
    poll_fn(|cx| {
        if let Poll::Ready(ended) = handled.as_mut().poll(cx) {
            return Poll::Ready(ended);
        }
        if stopping.is_none()
            && let Poll::Ready(told) = poll_work(watching, cx)
        {
            let told = told
                .ok()
                .and_then(|(text, _)| serde_json::from_str(&text).ok());
            let (grace, why) = match told {
                Some(Stopped { stop }) if stop == "timeout" => {
                    (Duration::ZERO, "it did not end within its timeout")
                }
                _ => (GRACE, "it was cancelled"),
            };
            attempt.stopped.send_replace(true);
            stopping = Some((Box::pin(tokio::time::sleep(grace)), why));
        }
        match &mut stopping {
            Some((grace, why)) => grace.as_mut().poll(cx).map(|()| Err(JobError::msg(why))),
            None => Poll::Pending,
        }
    })
    .await
}

/// A handler whose panics are errors.
struct WithoutPanics(Option<JobFuture>);

impl Future for WithoutPanics {
    type Output = Result<Vec<u8>, JobError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        let Some(future) = &mut self.0 else {
            return Poll::Pending;
        };
        match panic_as_error(|| future.as_mut().poll(cx)) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(ended)) => {
                self.0 = None;
                Poll::Ready(ended)
            }
            Err(panicked) => {
                let future = self.0.take();
                // Its destructors may panic as well; the panic hook told it.
                let _ = panic_as_error(|| drop(future));
                Poll::Ready(Err(panicked))
            }
        }
    }
}

fn panic_as_error<T>(run: impl FnOnce() -> T) -> Result<T, JobError> {
    catch_unwind(AssertUnwindSafe(run))
        .map_err(|payload| JobError::msg(format_args!("it panicked: {}", panic_message(&*payload))))
}
