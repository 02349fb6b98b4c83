//! `jobs`, `schedules`, `leases`, `cancel`: work that outlives the code.

use std::io;

use handover_api::{JobDetails, JobInfo, JobState, query};
use serde::Serialize;

use super::{
    args::{Global, JobsArgs, JobsCommand, OfApp},
    exit::Failure,
    output::{self, Cell, Paint, Row},
};
use crate::human;

fn print<T: Serialize>(
    global: &Global,
    value: &T,
    text: impl FnOnce(bool, Option<usize>) -> String,
) {
    output::line(&if global.json {
        // Our own types of strings and numbers: this cannot fail.
        serde_json::to_string(value).unwrap_or_default()
    } else {
        text(output::colour(&io::stdout(), global), output::width())
    });
}

/// `handover jobs`
pub(super) async fn jobs(global: &Global, args: JobsArgs) -> Result<(), Failure> {
    let client = global.client();
    match args.command {
        None => {
            let state = args.state.map(|word| {
                let mut all = JobState::ALL.iter().copied();
                all.find(|state| state.as_str() == word).unwrap_or_default()
            });
            let query = query::Jobs {
                app: args.app,
                state,
                tenant: args.tenant,
                limit: args.limit,
            };
            let list = client.jobs(&query).await?;
            print(global, &list, |colour, width| {
                text(&list.jobs, colour, width)
            });
        }
        Some(JobsCommand::Show { id }) => {
            let details = client.job(&id).await?;
            print(global, &details, |_, _| shown(&details));
        }
        Some(JobsCommand::Cancel { id }) => {
            let done = client.cancel(&id).await?;
            print(global, &done, |colour, _| {
                output::done(&done.message, colour)
            });
        }
        Some(JobsCommand::Retry { id }) => {
            let done = client.retry(&id).await?;
            print(global, &done, |colour, _| {
                output::done(&done.message, colour)
            });
        }
    }
    Ok(())
}

/// `handover cancel`
pub(super) async fn cancel(global: &Global, id: &str) -> Result<(), Failure> {
    let done = global.client().cancel(id).await?;
    print(global, &done, |colour, _| {
        output::done(&done.message, colour)
    });
    Ok(())
}

/// `handover schedules`
pub(super) async fn schedules(global: &Global, args: OfApp) -> Result<(), Failure> {
    let list = global
        .client()
        .schedules(&query::OfApp { app: args.app })
        .await?;
    print(global, &list, |colour, width| {
        if list.schedules.is_empty() {
            return "No live version has a schedule.".to_owned();
        }
        let rows = list.schedules.iter().map(|schedule| {
            let time = |at: Option<u64>| at.map_or_else(|| "-".to_owned(), human::timestamp);
            Row::Cells(vec![
                schedule.app.as_str().into(),
                schedule.name.as_str().into(),
                schedule.when.as_str().into(),
                schedule.tz.as_deref().unwrap_or("UTC").into(),
                schedule.missed.as_str().into(),
                time(schedule.last_ms).into(),
                time(schedule.next_ms).into(),
            ])
        });
        let rows: Vec<_> = rows.collect();
        let head = ["APP", "SCHEDULE", "WHEN", "ZONE", "MISSED", "LAST", "NEXT"];
        output::table(&head, &rows, colour, width)
    });
    Ok(())
}

/// `handover leases`
pub(super) async fn leases(global: &Global, args: OfApp) -> Result<(), Failure> {
    let list = global
        .client()
        .leases(&query::OfApp { app: args.app })
        .await?;
    print(global, &list, |colour, width| {
        if list.leases.is_empty() {
            return "Nobody holds a lease.".to_owned();
        }
        let mut rows = Vec::new();
        for lease in &list.leases {
            let number = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
            let held = lease.held_ms.map_or_else(|| "-".to_owned(), age);
            let word = match (lease.generation, lease.asked_back) {
                (None, _) => Cell::painted("free", Paint::Dim),
                (Some(_), true) => Cell::painted("asked back", Paint::Yellow),
                (Some(_), false) => Cell::painted("held", Paint::Green),
            };
            rows.push(Row::Cells(vec![
                lease.id.as_str().into(),
                word,
                number(lease.generation).into(),
                number(lease.fence).into(),
                held.into(),
                lease.waiting.len().to_string().into(),
            ]));
            for waiter in &lease.waiting {
                let text = format!(
                    "generation {} waits for {}",
                    waiter.generation,
                    age(waiter.age_ms)
                );
                rows.push(Row::Note(Cell::painted(text, Paint::Dim)));
            }
        }
        let head = ["ID", "STATE", "GEN>", "FENCE>", "AGE>", "WAITING>"];
        output::table(&head, &rows, colour, width)
    });
    Ok(())
}

fn age(ms: u64) -> String {
    human::age(std::time::Duration::from_millis(ms))
}

fn word(state: JobState) -> Cell {
    let paint = match state {
        JobState::Done => Paint::Green,
        JobState::Dead => Paint::Red,
        JobState::Running => Paint::Bold,
        JobState::Waiting => Paint::Yellow,
        JobState::Cancelled | JobState::Unknown => Paint::Dim,
    };
    Cell::painted(state.as_str(), paint)
}

fn text(jobs: &[JobInfo], colour: bool, width: Option<usize>) -> String {
    if jobs.is_empty() {
        return "There is no such job.".to_owned();
    }
    let mut rows = Vec::new();
    for job in jobs {
        let or_dash = |text: &str| {
            if text.is_empty() {
                "-".to_owned()
            } else {
                text.to_owned()
            }
        };
        let generation = job.generation.map(|generation| generation.to_string());
        rows.push(Row::Cells(vec![
            job.id.as_str().into(),
            job.app.as_str().into(),
            job.name.as_str().into(),
            or_dash(&job.tenant).into(),
            word(job.state),
            format!("{}/{}", job.attempt, job.max_attempts).into(),
            or_dash(&generation.unwrap_or_default()).into(),
            human::timestamp(job.ended_ms.or(job.begun_ms).unwrap_or(job.due_ms)).into(),
        ]));
        if let Some(progress) = job.progress {
            let percent = (progress * 100.0).round();
            let text = format!("{percent} % {}", job.progress_text);
            rows.push(Row::Note(Cell::painted(text.trim_end(), Paint::Dim)));
        }
        for why in [&job.note, &job.error].into_iter().flatten() {
            rows.push(Row::Note(Cell::painted(why.as_str(), Paint::Dim)));
        }
    }
    let head = [
        "ID", "APP", "JOB", "TENANT", "STATE", "ATTEMPT>", "GEN>", "SINCE",
    ];
    output::table(&head, &rows, colour, width)
}

fn shown(
    JobDetails {
        job,
        payload,
        result,
    }: &JobDetails,
) -> String {
    let mut lines = vec![
        format!("job       {}", job.id),
        format!("handler   {} of {}", job.name, job.app),
        format!("state     {}", job.state),
        format!("attempts  {} of {}", job.attempt, job.max_attempts),
        format!("enqueued  {}", human::timestamp(job.enqueued_ms)),
        format!("due       {}", human::timestamp(job.due_ms)),
    ];
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            lines.push(format!("{name:<10}{}", crate::shown::harmless(&value)));
        }
    };
    add("tenant", Some(job.tenant.clone()));
    add("begun", job.begun_ms.map(human::timestamp));
    add("ended", job.ended_ms.map(human::timestamp));
    add(
        "on",
        job.generation.map(|number| format!("generation {number}")),
    );
    add(
        "progress",
        job.progress
            .map(|done| format!("{} % {}", (done * 100.0).round(), job.progress_text)),
    );
    add("note", job.note.clone());
    add("error", job.error.clone());
    add("payload", payload.as_ref().map(ToString::to_string));
    add("result", result.as_ref().map(ToString::to_string));
    lines.join("\n")
}
