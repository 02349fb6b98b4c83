//! Jobs that are begun: which one, when, and on which generation.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use handover_api::JobState;
use parking_lot::Mutex;

use super::{Attempt, Inner, Jobs, TRY_AGAIN, own_commit, put};
use crate::{
    artifact::Declared,
    clock::{millis, now_ms},
    state::{Check, Commit, StateError},
    wakers::{Parked, WakerCount, wake_all},
    work::{
        answer::{Answer, Refused},
        queue::Next,
        record::{JobId, JobRecord, Part},
    },
};

/// Jobs that are claimed by one commit, at most.
const CLAIM_AT_ONCE: usize = 64;
/// How often the time is looked at, whatever is due: clocks are set.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// The version that runs jobs: its handlers, and what it was given and has not taken.
pub(in crate::work) struct Listener {
    generation: u64,
    pub(super) handlers: Declared,
    pub(super) inbox: Mutex<Inbox>,
}

#[derive(Default)]
pub(super) struct Inbox {
    pub(super) given: VecDeque<(JobId, Answer)>,
    parked: Option<Parked>,
    is_closed: bool,
}

impl Listener {
    /// The next job that it was given; an error when it gets none any more.
    pub(in crate::work) fn poll_next(
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
    pub(in crate::work) fn forget(&self) {
        let parked = self.inbox.lock().parked.take();
        drop(parked);
    }
}

impl Jobs {
    /// `generation` is live from now on: whoever was before begins no more jobs.
    pub(in crate::work) fn set_live(&self, generation: u64) {
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
    pub(in crate::work) fn listen(&self, handlers: Declared, generation: u64) -> Arc<Listener> {
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
    pub(in crate::work) fn stop_listening(&self, generation: u64) {
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
    pub(super) fn pump(&self) {
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
                    let most = self.settings().max_running;
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
                    .next(now_ms(), &listener.handlers, self.settings().max_running)
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
