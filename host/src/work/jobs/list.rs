//! What is told of jobs.

use std::collections::BTreeMap;

use bytes::Bytes;
use handover_api::{JobDetails, JobInfo, JobState};

use super::{Jobs, Totals};
use crate::{
    artifact::Declared,
    clock::millis,
    state::StateError,
    work::record::{JobId, JobRecord, Part},
};

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

impl Jobs {
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
}
