//! The work of an app as one generation sees it, over the ABI.

use std::{
    sync::Arc,
    task::{Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use handover_api::LeaseInfo;
use handover_plugin::abi::{
    lent::Lent,
    poll::PollState,
    work::{
        ATTEMPT, CANCEL, ENQUEUE, FIND, FINISH, INBOX, LEASE, LISTEN, NEW_ID, PROGRESS, REPLY,
        SETTINGS, WorkFuture, WorkRequest, WorkService, WorkSink,
    },
};
use parking_lot::{RwLock, RwLockReadGuard};
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    answer::{Answer, Outcome, Refused},
    inbox::Inbox,
    jobs::{Finish, Jobs, Listener, NewJob},
    lease::{Claim, Leases},
    record::JobId,
    registry::AppWork,
};
use crate::{
    artifact::declared::{Declared, JobHandler},
    state::{Commit, StateError, owned_commit},
    wakers::{Promise, WakerCount},
};

/// The work of an app as one generation sees it.
#[derive(Debug)]
pub(crate) struct WorkSession {
    work: Arc<AppWork>,
    generation: u64,
    phase: RwLock<Phase>,
    wakers: WakerCount,
    inbox: Arc<Inbox>,
}

/// What a generation may still ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Live,
    /// It begins nothing new.
    Draining,
    /// Nothing is done for it.
    Ended,
}

#[derive(Deserialize)]
struct Enqueue {
    jobs: Vec<NewJob>,
}

#[derive(Deserialize)]
struct Listen {
    jobs: Vec<JobHandler>,
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
struct Named {
    name: String,
    #[serde(default)]
    key: Option<String>,
}

#[derive(Deserialize)]
struct Replied {
    id: u64,
    #[serde(default)]
    answer: serde_json::Value,
    #[serde(default)]
    error: Option<String>,
}

/// The longest text of a progress, in bytes.
const LONGEST_TEXT: usize = 1024;

fn read<T: DeserializeOwned>(request: &WorkRequest<'_>) -> Result<T, Refused> {
    serde_json::from_str(request.text.as_str())
        .map_err(|error| Refused::invalid(format!("the host does not understand this: {error}")))
}

fn id(text: &str) -> Result<JobId, Refused> {
    text.parse()
        .map_err(|error: super::record::InvalidJobId| Refused::invalid(error.to_string()))
}

/// The commit that comes with an operation.
fn commit(request: &WorkRequest<'_>) -> Result<Commit, Refused> {
    let Some(commit) = request.commit.as_ref().into_option() else {
        return Ok(Commit::default());
    };
    let (memory, commit) = owned_commit(commit)?;
    if memory && !(commit.mutations.is_empty() && commit.checks.is_empty()) {
        return Err(StateError::MixedCommit.into());
    }
    Ok(commit)
}

/// Gives each of `jobs` its part of `payloads`, which lie one behind the other.
fn share(jobs: &mut [NewJob], payloads: &[u8]) -> Result<(), Refused> {
    let mut rest = payloads;
    for job in jobs {
        let (payload, after) = rest
            .split_at_checked(job.length)
            .ok_or_else(|| Refused::invalid("the payloads of the jobs are cut off"))?;
        job.payload = Bytes::copy_from_slice(payload);
        rest = after;
    }
    Ok(())
}

impl WorkSession {
    /// A session of `generation`.
    pub(crate) fn new(work: Arc<AppWork>, generation: u64) -> Self {
        let inbox = work.settings.inbox_of(generation);
        Self {
            work,
            generation,
            phase: RwLock::new(Phase::Live),
            wakers: WakerCount::default(),
            inbox,
        }
    }

    /// The generation begins to drain: it is given no more jobs, and is asked for its leases.
    pub(crate) fn drain(&self) {
        {
            let mut phase = self.phase.write();
            *phase = (*phase).max(Phase::Draining);
        }
        self.work.jobs.stop_listening(self.generation);
        self.work.leases.ask_back(self.generation);
    }

    /// The generation ends: what it has not finished is free for others.
    pub(crate) fn end(&self) {
        *self.phase.write() = Phase::Ended;
        self.inbox.close();
        self.work.jobs.abandon_all(self.generation);
        self.work.leases.ask_back(self.generation);
        self.work.leases.end(self.generation);
    }

    /// Returns the leases that the generation has.
    pub(crate) fn leases(&self) -> Vec<LeaseInfo> {
        let mut leases = self.work.leases.list();
        leases.retain(|lease| lease.generation == Some(self.generation));
        leases
    }

    /// Waits until the host has no waker of the generation any more, for `deadline` at the longest;
    /// gives how many are left.
    pub(crate) async fn release_wakers(&self, deadline: Duration) -> u64 {
        self.wakers.none_left(deadline).await
    }

    /// Keeps the generation live as long as what this gives is held, if it is.
    ///
    /// # Errors
    /// When it begins nothing new any more.
    fn live(&self) -> Result<RwLockReadGuard<'_, Phase>, Refused> {
        let phase = self.phase.read();
        match *phase {
            Phase::Live => Ok(phase),
            Phase::Draining | Phase::Ended => Err(StateError::Ended.into()),
        }
    }

    fn started(&self, request: &WorkRequest<'_>) -> Result<Box<dyn WorkFuture>, Refused> {
        let Self { work, wakers, .. } = self;
        if *self.phase.read() == Phase::Ended {
            return Err(StateError::Ended.into());
        }
        let wakers = wakers.clone();
        Ok(match request.operation {
            ENQUEUE => {
                let Enqueue { mut jobs } = read(request)?;
                share(&mut jobs, &request.bytes)?;
                let in_transaction = request.commit.is_some();
                let outcome = work.jobs.enqueue(jobs, commit(request)?, in_transaction);
                Box::new(Answered { outcome, wakers })
            }
            LISTEN => {
                let _live = self.live()?;
                let Listen { jobs } = read(request)?;
                let handlers: Declared =
                    jobs.into_iter().map(|one| (one.job.clone(), one)).collect();
                Box::new(Listening {
                    listener: work.jobs.listen(handlers, self.generation),
                    jobs: work.jobs.clone(),
                    generation: self.generation,
                    wakers,
                })
            }
            ATTEMPT => {
                let attempt: OfAttempt = read(request)?;
                let id = id(&attempt.id)?;
                Box::new(Attempting {
                    id,
                    fence: attempt.fence,
                    stop: work.jobs.stop_of(id, attempt.fence),
                    jobs: work.jobs.clone(),
                    wakers,
                })
            }
            FINISH => {
                let mut finish: Finish = read(request)?;
                let (result, payloads) = request
                    .bytes
                    .as_slice()
                    .split_at_checked(finish.result_length)
                    .ok_or_else(|| Refused::invalid("the result of the job is cut off"))?;
                share(&mut finish.jobs, payloads)?;
                let result = Bytes::copy_from_slice(result);
                let outcome = work.jobs.finish(finish, result, commit(request)?);
                Box::new(Answered { outcome, wakers })
            }
            PROGRESS => {
                let mut progress: Progress = read(request)?;
                let end = progress.text.floor_char_boundary(LONGEST_TEXT);
                progress.text.truncate(end);
                let id = id(&progress.id)?;
                work.jobs
                    .progress(id, progress.fence, progress.fraction, progress.text);
                Box::new(Known(Ok(Answer::default())))
            }
            FIND => {
                let OfAttempt { id: text, .. } = read(request)?;
                let id = id(&text)?;
                Box::new(Known(match work.jobs.find(id)? {
                    Some((info, bytes)) => Ok(Answer {
                        text: serde_json::to_string(&info).unwrap_or_default(),
                        bytes,
                    }),
                    None => Err(Refused::unknown(id)),
                }))
            }
            CANCEL => {
                let OfAttempt { id: text, .. } = read(request)?;
                let id = id(&text)?;
                let outcome = work.jobs.cancel_for_app(id);
                Box::new(Answered { outcome, wakers })
            }
            LEASE => {
                let _live = self.live()?;
                let Named { name, .. } = read(request)?;
                Box::new(Leasing {
                    claim: work.leases.wait(&name, self.generation)?,
                    is_granted: false,
                    leases: work.leases.clone(),
                    wakers,
                })
            }
            NEW_ID => {
                let Named { name, key } = read(request)?;
                let id = work.jobs.id_for(&name, key.as_deref())?;
                Box::new(Known(Ok(Answer::ids(&[id]))))
            }
            SETTINGS => {
                let settings = work.settings.values();
                Box::new(Known(Ok(Answer {
                    text: serde_json::json!({ "settings": settings }).to_string(),
                    bytes: Bytes::new(),
                })))
            }
            INBOX => {
                self.inbox.open();
                Box::new(Asking {
                    inbox: Arc::clone(&self.inbox),
                    wakers,
                })
            }
            REPLY => {
                let Replied { id, answer, error } = read(request)?;
                let reply = error.map_or_else(|| Ok(answer), Err);
                self.inbox.reply(id, reply);
                Box::new(Known(Ok(Answer::default())))
            }
            operation => {
                return Err(Refused::invalid(format!(
                    "this host knows no operation {operation} for work: upgrade the host"
                )));
            }
        })
    }
}

impl WorkService for WorkSession {
    fn begin(&self, request: Lent<'_, WorkRequest<'_>>) -> Box<dyn WorkFuture> {
        self.started(&request)
            .unwrap_or_else(|refused| Box::new(Known(Err(refused))))
    }
}

/// Tells what something ended with.
fn tell(outcome: Result<Answer, Refused>, sink: &WorkSink<'_>) -> PollState {
    match outcome {
        Ok(answer) => {
            sink.answer(&answer.text, &answer.bytes);
            PollState::Ready
        }
        Err(refused) => {
            sink.failed(refused.code, &refused.why);
            PollState::Failed
        }
    }
}

/// What was known at once.
struct Known(Result<Answer, Refused>);

impl WorkFuture for Known {
    fn poll(&mut self, _waker: &Waker, sink: &WorkSink<'_>) -> PollState {
        tell(self.0.clone(), sink)
    }
}

/// What is under way.
struct Answered {
    outcome: Arc<Outcome>,
    wakers: WakerCount,
}

impl WorkFuture for Answered {
    fn poll(&mut self, waker: &Waker, sink: &WorkSink<'_>) -> PollState {
        match self.outcome.poll(waker, &self.wakers) {
            Poll::Pending => PollState::Pending,
            Poll::Ready(outcome) => tell(outcome, sink),
        }
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        self.outcome.forget();
    }
}

/// A version that runs jobs.
struct Listening {
    listener: Arc<Listener>,
    jobs: Jobs,
    generation: u64,
    wakers: WakerCount,
}

impl WorkFuture for Listening {
    fn poll(&mut self, waker: &Waker, sink: &WorkSink<'_>) -> PollState {
        match self.listener.poll_next(waker, &self.wakers) {
            Poll::Pending => PollState::Pending,
            Poll::Ready(next) => tell(next, sink),
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.jobs.stop_listening(self.generation);
        self.listener.forget();
    }
}

/// A version that takes questions.
struct Asking {
    inbox: Arc<Inbox>,
    wakers: WakerCount,
}

impl WorkFuture for Asking {
    fn poll(&mut self, waker: &Waker, sink: &WorkSink<'_>) -> PollState {
        match self.inbox.poll_next(waker, &self.wakers) {
            Poll::Pending => PollState::Pending,
            Poll::Ready(question) => {
                sink.answer(&question, &[]);
                PollState::Ready
            }
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.inbox.close();
    }
}

/// An attempt that is under way.
struct Attempting {
    jobs: Jobs,
    id: JobId,
    fence: u64,
    /// None where it is not that of the job any more.
    stop: Option<Arc<Promise<&'static str>>>,
    wakers: WakerCount,
}

impl WorkFuture for Attempting {
    fn poll(&mut self, waker: &Waker, sink: &WorkSink<'_>) -> PollState {
        let why = match &self.stop {
            Some(stop) => match stop.poll(waker, &self.wakers) {
                Poll::Pending => return PollState::Pending,
                Poll::Ready(why) => why,
            },
            None => "superseded",
        };
        sink.answer(&format!("{{\"stop\":\"{why}\"}}"), &[]);
        PollState::Ready
    }
}

impl Drop for Attempting {
    fn drop(&mut self) {
        if let Some(stop) = &self.stop {
            stop.forget();
        }
        self.jobs.abandon(self.id, self.fence);
    }
}

/// Somebody who has a lease, or waits for it.
struct Leasing {
    claim: Claim,
    is_granted: bool,
    leases: Leases,
    wakers: WakerCount,
}

impl WorkFuture for Leasing {
    fn poll(&mut self, waker: &Waker, sink: &WorkSink<'_>) -> PollState {
        if !self.is_granted {
            return match self.claim.granted.poll(waker, &self.wakers) {
                Poll::Pending => PollState::Pending,
                Poll::Ready(Ok(fence)) => {
                    self.is_granted = true;
                    sink.answer(&format!("{{\"fence\":{fence}}}"), &[]);
                    PollState::Ready
                }
                Poll::Ready(Err(refused)) => tell(Err(refused), sink),
            };
        }
        match self.claim.asked_back.poll(waker, &self.wakers) {
            Poll::Pending => PollState::Pending,
            Poll::Ready(()) => {
                sink.answer("{\"asked_back\":true}", &[]);
                PollState::Ready
            }
        }
    }
}

impl Drop for Leasing {
    fn drop(&mut self) {
        self.claim.granted.forget();
        self.claim.asked_back.forget();
        self.leases.give_back(&self.claim);
    }
}
