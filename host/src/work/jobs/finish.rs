//! Attempts that end, and jobs that end with them or are tried again.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use bytes::Bytes;
use handover_api::JobState;
use serde::Deserialize;

use super::{Jobs, Settings, enqueue::NewJob, own_commit, put};
use crate::{
    artifact::JobHandler,
    clock::{millis, now_ms},
    state::{Check, Commit, Mutation, StateError},
    wakers::{Promise, wake_all},
    work::{
        answer::{Answer, Outcome, Refused},
        record::{JobId, JobRecord, Part, key_place},
    },
};

/// The longest sentence of an error, and the longest result that is written whatever the app holds,
/// in bytes.
pub(super) const SMALL: usize = 1024;

/// How an attempt ended.
#[derive(Clone, Debug, Deserialize)]
pub(in crate::work) struct Finish {
    /// The job.
    pub(in crate::work) id: String,
    /// The fence of the attempt.
    pub(in crate::work) fence: u64,
    /// `done`, `failed` or `dead`.
    pub(in crate::work) outcome: String,
    /// What it failed with.
    #[serde(default)]
    pub(in crate::work) error: Option<String>,
    /// After which pause it is tried again.
    #[serde(default)]
    pub(in crate::work) retry_ms: Option<u64>,
    /// Bytes of its result, before the payloads of jobs.
    #[serde(default)]
    pub(in crate::work) result_length: usize,
    /// Jobs that are enqueued with it.
    #[serde(default)]
    pub(in crate::work) jobs: Vec<NewJob>,
}

impl Jobs {
    /// Ends a job for good, from a record of this version.
    pub(super) async fn bury(
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
        } = self.settings();
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
    pub(in crate::work) fn finish(
        &self,
        finish: Finish,
        result: Bytes,
        commit: Commit,
    ) -> Arc<Outcome> {
        let jobs = self.clone();
        self.under_way(async move {
            jobs.finish_now(finish, result, commit).await?;
            Ok(Answer::default())
        })
    }

    /// Cancels a job in the name of its app.
    pub(in crate::work) fn cancel_for_app(&self, id: JobId) -> Arc<Outcome> {
        let jobs = self.clone();
        self.under_way(async move {
            jobs.cancel(id).await?;
            Ok(Answer::default())
        })
    }

    pub(super) async fn finish_now(
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
    pub(in crate::work) fn abandon(&self, id: JobId, fence: u64) {
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
    pub(in crate::work) fn abandon_all(&self, generation: u64) {
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
    pub(in crate::work) fn stop_of(
        &self,
        id: JobId,
        fence: u64,
    ) -> Option<Arc<Promise<&'static str>>> {
        let state = self.0.state.lock();
        let attempt = state.queue.get(id)?.attempt.as_ref()?;
        (attempt.fence == fence).then(|| Arc::clone(&attempt.stop))
    }

    /// How far an attempt is.
    pub(in crate::work) fn progress(&self, id: JobId, fence: u64, fraction: f64, text: String) {
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
}
