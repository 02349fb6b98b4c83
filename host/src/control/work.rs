//! The calls for work that outlives code: jobs, schedules, leases, and what is cancelled.

use std::sync::Arc;

use handover_api::{AppName, Done, JobDetails, JobList, JobState, LeaseList, ScheduleList, query};
use http::StatusCode;

use super::calls::{ControlResponse, Refusal, json};
use crate::{
    state::StateError,
    work::{AppWork, JobFilter, JobId, Refused},
};

/// Jobs that are shown, where nobody said how many.
const JOBS: usize = 100;

/// The work of the apps that the host knows.
pub(super) type Apps = Vec<(AppName, Arc<AppWork>)>;

fn failed(error: &StateError) -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, 1, error)
}

fn refused(error: &Refused) -> Refusal {
    Refusal::new(StatusCode::CONFLICT, 1, error)
}

fn broken(error: &tokio::task::JoinError) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, 1, error)
}

/// Only `app` of `apps`; all of them without one.
fn only(mut apps: Apps, app: Option<&AppName>) -> Result<Apps, Refusal> {
    let Some(app) = app else { return Ok(apps) };
    let names: Vec<_> = apps.iter().map(|(name, _)| name.to_string()).collect();
    apps.retain(|(name, _)| name == app);
    if apps.is_empty() {
        let there_is = match names.as_slice() {
            [] => "and no other either".to_owned(),
            names => format!("there is {}", names.join(", ")),
        };
        let why = format!("there is no app {app}: {there_is}");
        return Err(Refusal::new(StatusCode::NOT_FOUND, 1, why));
    }
    Ok(apps)
}

/// Answers `GET /v1/jobs`.
pub(super) async fn jobs(apps: Apps, query: query::Jobs) -> Result<ControlResponse, Refusal> {
    let apps = only(apps, query.app.as_ref())?;
    if query.state == Some(JobState::Unknown) {
        let words: Vec<_> = JobState::ALL.iter().map(|state| state.as_str()).collect();
        let why = format!("no job is in that state: there is {}", words.join(", "));
        return Err(Refusal::new(StatusCode::BAD_REQUEST, 2, why));
    }
    let filter = JobFilter {
        state: query.state,
        tenant: query.tenant,
        limit: query.limit.unwrap_or(JOBS),
    };
    let listed = tokio::task::spawn_blocking(move || {
        let mut jobs = Vec::new();
        for (_, work) in apps {
            let filter = JobFilter {
                limit: filter.limit.saturating_sub(jobs.len()),
                ..filter.clone()
            };
            if filter.limit > 0 {
                jobs.extend(work.jobs.list(&filter)?);
            }
        }
        Ok(jobs)
    });
    let jobs = listed.await.map_err(|error| broken(&error))?;
    let jobs = jobs.map_err(|error: StateError| failed(&error))?;
    Ok(json(&JobList { jobs }))
}

/// The job of this identity, whosever it is.
async fn found(apps: Apps, text: &str) -> Result<(Arc<AppWork>, JobId, JobDetails), Refusal> {
    let id: JobId = text
        .parse()
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, 1, error))?;
    let looked = tokio::task::spawn_blocking(move || {
        for (_, work) in apps {
            if let Some(details) = work.jobs.details(id)? {
                return Ok(Some((work, details)));
            }
        }
        Ok(None)
    });
    let found = looked.await.map_err(|error| broken(&error))?;
    match found.map_err(|error: StateError| failed(&error))? {
        Some((work, details)) => Ok((work, id, details)),
        None => {
            let why = format!(
                "there is no job {id}: it ended longer ago than the host remembers, or was never there; `handover jobs` shows them"
            );
            Err(Refusal::new(StatusCode::NOT_FOUND, 1, why))
        }
    }
}

/// Answers `GET /v1/jobs/ID`.
pub(super) async fn job(apps: Apps, id: &str) -> Result<ControlResponse, Refusal> {
    let (.., details) = found(apps, id).await?;
    Ok(json(&details))
}

/// Answers `POST /v1/cancel`.
pub(super) async fn cancel(apps: Apps, id: &str) -> Result<ControlResponse, Refusal> {
    if let Some(lease) = id.strip_prefix("lease:") {
        let (app, name) = lease.split_once(':').unwrap_or(("", lease));
        let has_it = apps
            .iter()
            .any(|(of, work)| of.as_str() == app && work.leases.take_away(name));
        if !has_it {
            let why = format!("nobody has `{id}`: `handover leases` shows them");
            return Err(Refusal::new(StatusCode::NOT_FOUND, 1, why));
        }
        let message = format!("the lease {name} of {app} was taken away from its holder");
        return Ok(json(&Done { message }));
    }
    let (work, id, JobDetails { job, .. }) = found(apps, id).await?;
    work.jobs
        .cancel(id)
        .await
        .map_err(|error| refused(&error))?;
    let message = match job.state {
        JobState::Running => format!(
            "the job {id} ({}) is told to end, and is cut in 10 s",
            job.name
        ),
        _ => format!("the job {id} ({}) is cancelled", job.name),
    };
    Ok(json(&Done { message }))
}

/// Answers `POST /v1/retry`.
pub(super) async fn retry(apps: Apps, id: &str) -> Result<ControlResponse, Refusal> {
    let (work, id, JobDetails { job, .. }) = found(apps, id).await?;
    work.jobs.retry(id).await.map_err(|error| refused(&error))?;
    let message = format!("the job {id} ({}) is tried again", job.name);
    Ok(json(&Done { message }))
}

/// Answers `GET /v1/schedules`.
pub(super) async fn schedules(apps: Apps, query: query::OfApp) -> Result<ControlResponse, Refusal> {
    let apps = only(apps, query.app.as_ref())?;
    let listed = tokio::task::spawn_blocking(move || {
        let all = apps.into_iter();
        all.flat_map(|(_, work)| work.schedules.list()).collect()
    });
    let schedules = listed.await.map_err(|error| broken(&error))?;
    Ok(json(&ScheduleList { schedules }))
}

/// Answers `GET /v1/leases`.
pub(super) fn leases(apps: Apps, query: &query::OfApp) -> Result<ControlResponse, Refusal> {
    let apps = only(apps, query.app.as_ref())?;
    let all = apps.into_iter();
    let leases = all.flat_map(|(_, work)| work.leases.list()).collect();
    Ok(json(&LeaseList { leases }))
}
