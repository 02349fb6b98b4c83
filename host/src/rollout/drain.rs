//! A replaced generation finishing what it has, and its deadlines.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use handover_api::{EventKind, GenerationId, Note, OperationResult, Outcome, Progress};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::MissedTickBehavior,
};

use crate::{
    apps::app::{App, Replaced},
    clock::millis,
    generation::{Draining, Generation},
    human,
    operations::operation::ProgressSender,
    rollout::Rollout,
};

/// How often a listener hears what is still in flight.
const TOLD_EVERY: Duration = Duration::from_millis(250);
/// How long cancelled work has to notice before the operation ends without waiting for it.
const CANCELLED_WITHIN: Duration = Duration::from_secs(5);

/// When a generation's end began so long before its unload, the journal has the wrong time for it.
const LONG_AGO: Duration = Duration::from_secs(1);

/// A generation on its way out, counted for the shutdown until it is put away.
#[derive(Debug)]
pub(crate) struct Leaving {
    draining: Draining,
    end: Arc<Notify>,
    _counted: Counted,
}

/// The generations on their way out, counted for the shutdown. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Departures(watch::Sender<usize>);

impl Departures {
    /// Returns how many there are.
    pub(crate) fn number(&self) -> usize {
        *self.0.borrow()
    }

    /// Waits until there is none.
    pub(crate) async fn all_gone(&self) {
        let mut number = self.0.subscribe();
        // The sender is `self`, so this cannot fail.
        let _ = number.wait_for(|number| *number == 0).await;
    }

    fn count(&self) -> Counted {
        self.0.send_modify(|number| *number += 1);
        Counted(self.0.clone())
    }
}

#[derive(Debug)]
struct Counted(watch::Sender<usize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|number| *number -= 1);
    }
}

impl Leaving {
    /// Begins the drain.
    pub(crate) fn new(departures: &Departures, replaced: Replaced) -> Self {
        Self {
            draining: replaced.active.drain(),
            end: replaced.end,
            _counted: departures.count(),
        }
    }
}

/// The operation that waits for a drain.
#[derive(Debug)]
pub(crate) struct Telling {
    pub(crate) progress: ProgressSender,
    /// What it ends with when all goes well.
    pub(crate) result: OperationResult,
    /// A program of the operator that runs meanwhile, with what is to be said of it.
    pub(crate) hook: Option<JoinHandle<Vec<Note>>>,
}

/// How a drain went.
#[derive(Debug, Default)]
struct Drain {
    /// How many requests, streams and jobs were cancelled.
    cancelled: u64,
    /// How many streams were ended without a loss.
    ended: u64,
    /// Whether work was left that did not notice being cancelled.
    stuck: u64,
}

impl Drain {
    fn add(&mut self, (cancelled, ended): (u64, u64)) {
        self.cancelled += cancelled;
        self.ended += ended;
    }
}

/// Has `replaced` drained and put away, for which nobody waits. To be called within the host's
/// runtime.
pub(crate) fn begin(rollout: &Rollout, app: &Arc<App>, replaced: Replaced) {
    let leaving = Leaving::new(&rollout.departures, replaced);
    let (rollout, app) = (rollout.clone(), Arc::clone(app));
    tokio::spawn(async move {
        drain_and_retire(&rollout, &app, leaving, None).await;
        rollout.collect().await;
    });
}

/// Watches a replaced generation until it is quiet, ends it at its deadlines, and puts it away.
/// `telling` is the operation that waits for it.
pub(crate) async fn drain_and_retire(
    rollout: &Rollout,
    app: &Arc<App>,
    leaving: Leaving,
    telling: Option<Telling>,
) {
    let Leaving {
        draining,
        end,
        _counted,
    } = leaving;
    let generation = Arc::clone(draining.generation());
    let id = generation.spec().id;
    let began = Instant::now();
    let counts = generation.counts();
    if counts.in_flight > 0 {
        rollout.registry.record_event(
            EventKind::Draining,
            app,
            Some(id),
            format!(
                "generation {id} ({}) drains: {} in flight, {} of them jobs",
                generation.spec().version,
                counts.in_flight,
                counts.jobs
            ),
        );
    }
    let mut telling = telling;
    let mut drain = Drain::default();
    {
        let mut quiet = pin!(draining.quiet());
        let mut told = tokio::time::interval(TOLD_EVERY);
        told.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Each passes once.
        let settings = app.settings();
        let mut requests_by = settings.drain_deadline.map(|deadline| began + deadline);
        let mut jobs_by = settings.job_deadline.map(|deadline| began + deadline);
        let mut noticed_by = None;
        loop {
            tokio::select! {
                biased;
                () = &mut quiet => break,
                () = at(requests_by) => {
                    requests_by = None;
                    drain.add(cancel(rollout, app, &draining, false, "drain deadline").await);
                    noticed_by = Some(Instant::now() + CANCELLED_WITHIN);
                }
                () = at(jobs_by) => {
                    (requests_by, jobs_by) = (None, None);
                    drain.add(cancel(rollout, app, &draining, true, "job deadline").await);
                    noticed_by = Some(Instant::now() + CANCELLED_WITHIN);
                }
                () = end.notified() => {
                    (requests_by, jobs_by) = (None, None);
                    drain.add(cancel(rollout, app, &draining, true, "end").await);
                    noticed_by = Some(Instant::now() + CANCELLED_WITHIN);
                }
                () = at(noticed_by) => {
                    noticed_by = None;
                    let counts = generation.counts();
                    drain.stuck = counts.in_flight - counts.jobs.min(counts.in_flight);
                    if drain.stuck > 0 {
                        rollout.registry.record_event(EventKind::DeadlinePassed, app, Some(id), stuck(id, drain.stuck));
                        finish(app, id, &mut telling, &drain, began.elapsed()).await;
                    }
                }
                _ = told.tick() => {
                    let counts = generation.counts();
                    if let Some(Telling { progress, .. }) = &telling && counts.in_flight > 0 {
                        let by = if counts.in_flight > counts.jobs { requests_by } else { jobs_by };
                        progress.send(Progress::Draining {
                            app: app.name.clone(),
                            generation: id,
                            in_flight: counts.in_flight,
                            jobs: counts.jobs,
                            deadline_ms: by.map(|by| millis(by.saturating_duration_since(Instant::now()))),
                        });
                    }
                }
            }
        }
    }
    drain.stuck = 0;
    let took = began.elapsed();
    app.counters.drained(took, drain.cancelled > 0);
    rollout.registry.record_event(
        EventKind::Drained,
        app,
        Some(id),
        format!(
            "generation {id} ({}) drained in {} after {}",
            generation.spec().version,
            human::duration(took),
            human::pluralize(generation.counts().requests, "request")
        ),
    );
    finish(app, id, &mut telling, &drain, took).await;
    rollout.journal.leaves(&app.name, id).await;
    let began = Instant::now();
    let ended = draining.retire().await;
    if began.elapsed() > LONG_AGO {
        rollout.journal.leaves(&app.name, id).await;
    }
    record_tasks_left(rollout, app, &generation);
    rollout.retire(app, id, ended);
}

/// Tells of tasks that nobody counted and that were cancelled where they were, when the app was
/// stopped.
fn record_tasks_left(rollout: &Rollout, app: &App, generation: &Generation) {
    let left = generation.tasks_left();
    if left == 0 {
        return;
    }
    let id = generation.spec().id;
    let message = format!(
        "generation {id} ({}) was stopped with {} running that nobody counts (`tokio::spawn`), cancelled wherever they were: begin with \
         `cx.worker(name, async |stop| …)` what goes on for as long as the app, which tells it to stop, and with `cx.spawn` or \
         `cx.jobs().spawn` what has an end",
        generation.spec().version,
        human::pluralize(left, "task")
    );
    rollout
        .registry
        .record_event(EventKind::Warning, app, Some(id), message);
}

/// Cancels what still runs on a generation, and tells how many that were, and how many streams were
/// ended without a loss.
async fn cancel(
    rollout: &Rollout,
    app: &App,
    draining: &Draining,
    jobs: bool,
    why: &str,
) -> (u64, u64) {
    let (cancelled, ended) = draining.expire(jobs).await;
    if ended > 0 {
        let id = draining.generation().spec().id;
        rollout.registry.record_event(
            EventKind::StreamsEnded,
            app,
            Some(id),
            format!(
                "generation {id} reached its {why}: {} ended, whose clients come back",
                human::pluralize(ended, "endless stream")
            ),
        );
    }
    if cancelled > 0 {
        let id = draining.generation().spec().id;
        let left = match draining.generation().counts().jobs {
            1.. if !jobs => "; its jobs go on",
            _ => "",
        };
        rollout.registry.record_event(
            EventKind::DeadlinePassed,
            app,
            Some(id),
            format!("generation {id} reached its {why}: {cancelled} in flight cancelled{left}"),
        );
    }
    (cancelled, ended)
}

/// Ends the operation that waited for the drain, if it still does, and records a deadline that
/// passed.
async fn finish(
    app: &App,
    id: GenerationId,
    telling: &mut Option<Telling>,
    drain: &Drain,
    took: Duration,
) {
    let Some(Telling {
        progress,
        mut result,
        hook,
    }) = telling.take()
    else {
        return;
    };
    if let Some(hook) = hook {
        result.notes.extend(hook.await.unwrap_or_default());
    }
    if drain.cancelled > 0 || drain.stuck > 0 {
        let mut reason = format!(
            "generation {id} had to be ended at its drain deadline with {} in flight",
            drain.cancelled.max(drain.stuck)
        );
        if drain.stuck > 0 {
            reason = format!("{reason}; {}", stuck(id, drain.stuck));
        }
        let successor = result.generation;
        // It is only a note in the history: a disk that fails here is told by the next deploy.
        let _ = app
            .saved
            .change(|record| {
                if let Some(entry) = record
                    .history
                    .iter_mut()
                    .rev()
                    .find(|entry| entry.generation == successor)
                {
                    entry.outcome = Outcome::DeadlinePassed;
                    entry.reason = Some(reason.clone());
                }
            })
            .await;
        result.outcome = Outcome::DeadlinePassed;
        result.message = format!("{}; {reason}", result.message);
    } else {
        result.message = format!(
            "{}; generation {id} drained in {}",
            result.message,
            human::duration(took)
        );
    }
    if drain.ended > 0 {
        result.ended_streams = drain.ended;
        result.message = format!(
            "{}; {} of it had to be ended, whose clients come back",
            result.message,
            human::pluralize(drain.ended, "endless stream")
        );
    }
    progress.finish(result);
}

fn stuck(id: GenerationId, number: u64) -> String {
    format!(
        "{} of generation {id} did not notice being cancelled (blocking code?), so it stays loaded until they return",
        human::pluralize(number, "request")
    )
}

/// Waits until an instant, for ever without one.
async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}
