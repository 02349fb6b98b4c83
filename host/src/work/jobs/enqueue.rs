//! Jobs that are enqueued: with other changes of the state, or by themselves.

use std::sync::Arc;

use bytes::Bytes;
use handover_api::JobState;
use serde::Deserialize;

use super::{Jobs, put};
use crate::{
    clock::now_ms,
    state::{Check, Commit, Place, StateError},
    work::{
        answer::{Answer, Outcome, Refused},
        record::{JobId, JobRecord, Options, Part, key_place},
    },
};

/// How often the key of a job is looked at while others enqueue the same.
const TRIES: usize = 16;
/// The longest name of a job, of a tenant and of a key, in bytes.
const LONGEST: (usize, usize, usize) = (64, 256, 512);

/// A job that is to be enqueued.
#[derive(Clone, Debug, Deserialize)]
pub(in crate::work) struct NewJob {
    pub(in crate::work) name: String,
    /// The identity that was given for it before.
    #[serde(default)]
    pub(in crate::work) id: Option<String>,
    #[serde(default)]
    pub(in crate::work) tenant: Option<String>,
    #[serde(default)]
    pub(in crate::work) due_ms: Option<u64>,
    #[serde(default)]
    pub(in crate::work) priority: Option<i32>,
    #[serde(default)]
    pub(in crate::work) key: Option<String>,
    #[serde(flatten)]
    pub(in crate::work) options: Options,
    /// Bytes of its payload among those of all.
    #[serde(default)]
    pub(in crate::work) length: usize,
    #[serde(skip)]
    pub(in crate::work) payload: Bytes,
}

impl NewJob {
    pub(super) fn check(&self) -> Result<(), Refused> {
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

impl Jobs {
    /// Enqueues `jobs`, with `commit`.
    pub(in crate::work) fn enqueue(
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
    pub(in crate::work) async fn enqueue_now(
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
    pub(super) fn add_to(
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
    pub(super) fn added(&self, added: Vec<Added>) {
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
    pub(in crate::work) fn id_for(&self, name: &str, key: Option<&str>) -> Result<JobId, Refused> {
        let first = match key {
            Some(key) => self.first_of(&key_place(name, key)?)?.0,
            None => None,
        };
        Ok(first.unwrap_or_else(|| self.new_id()))
    }
}
