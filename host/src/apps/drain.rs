//! A replaced generation finishing what it has: its deadlines, its end, and the retry of libraries
//! that stay mapped.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use handover_api::{AppName, EventKind, GenerationId, OperationResult, Outcome, Progress};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::MissedTickBehavior,
};

use super::{
    Apps, Inner,
    app::{App, Replaced},
    changed, crash, leaks,
    operation::ProgressSender,
    restore,
    status::millis,
};
use crate::{
    generation::{Draining, Ended, Retained},
    human,
};

/// How often a listener hears what is still in flight.
const TOLD_EVERY: Duration = Duration::from_millis(250);
/// How long cancelled work has to notice before the operation ends without waiting for it.
const CANCELLED_WITHIN: Duration = Duration::from_secs(5);
/// How often panics are looked for, what was changed for all, and whether a library that stays
/// mapped may be unloaded by now.
const LOOKED_AT_EVERY: Duration = Duration::from_secs(1);

/// When a generation's end began so long before its unload, the journal has the wrong time for it.
const LONG_AGO: Duration = Duration::from_secs(1);

/// A generation on its way out, counted for the shutdown until it is put away.
#[derive(Debug)]
pub(super) struct Leaving {
    draining: Draining,
    end: Arc<Notify>,
    _counted: Counted,
}

#[derive(Debug)]
struct Counted(watch::Sender<usize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|leaving| *leaving -= 1);
    }
}

impl Leaving {
    /// Begins the drain.
    pub(super) fn new(apps: &Apps, replaced: Replaced) -> Self {
        apps.0.leaving.send_modify(|leaving| *leaving += 1);
        Self {
            draining: replaced.active.drain(),
            end: replaced.end,
            _counted: Counted(apps.0.leaving.clone()),
        }
    }
}

/// How a drain went.
#[derive(Debug, Default)]
struct Drain {
    /// How many requests, streams and jobs were cancelled.
    cancelled: u64,
    /// Whether work was left that did not notice being cancelled.
    stuck: u64,
}

/// Watches a replaced generation until it is quiet, ends it at its deadlines, and puts it away.
/// `telling` is the operation that waits for it, with the result to end with when all goes well.
pub(super) async fn drain_and_retire(
    apps: &Apps,
    app: &Arc<App>,
    leaving: Leaving,
    telling: Option<(ProgressSender, OperationResult)>,
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
        apps.record_event(
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
        let mut requests_by = app.settings.drain_deadline.map(|deadline| began + deadline);
        let mut jobs_by = app.settings.job_deadline.map(|deadline| began + deadline);
        let mut noticed_by = None;
        loop {
            tokio::select! {
                biased;
                () = &mut quiet => break,
                () = at(requests_by) => {
                    requests_by = None;
                    drain.cancelled += cancel(apps, app, &draining, false, "drain deadline").await;
                    noticed_by = Some(Instant::now() + CANCELLED_WITHIN);
                }
                () = at(jobs_by) => {
                    (requests_by, jobs_by) = (None, None);
                    drain.cancelled += cancel(apps, app, &draining, true, "job deadline").await;
                    noticed_by = Some(Instant::now() + CANCELLED_WITHIN);
                }
                () = end.notified() => {
                    (requests_by, jobs_by) = (None, None);
                    drain.cancelled += cancel(apps, app, &draining, true, "end").await;
                    noticed_by = Some(Instant::now() + CANCELLED_WITHIN);
                }
                () = at(noticed_by) => {
                    noticed_by = None;
                    let counts = generation.counts();
                    drain.stuck = counts.in_flight - counts.jobs.min(counts.in_flight);
                    if drain.stuck > 0 {
                        apps.record_event(EventKind::DeadlinePassed, app, Some(id), stuck(id, drain.stuck));
                        finish(app, id, &mut telling, &drain, began.elapsed()).await;
                    }
                }
                _ = told.tick() => {
                    let counts = generation.counts();
                    if let Some((progress, _)) = &telling && counts.in_flight > 0 {
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
    apps.record_event(
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
    crash::leaves(apps, &app.name, id).await;
    let began = Instant::now();
    let ended = draining.retire().await;
    if began.elapsed() > LONG_AGO {
        crash::leaves(apps, &app.name, id).await;
    }
    retain(apps, app, id, ended);
}

/// Cancels what still runs on a generation, and tells how many that were.
async fn cancel(apps: &Apps, app: &App, draining: &Draining, jobs: bool, why: &str) -> u64 {
    let cancelled = draining.expire(jobs).await;
    if cancelled > 0 {
        let id = draining.generation().spec().id;
        let left = match draining.generation().counts().jobs {
            1.. if !jobs => "; its jobs go on",
            _ => "",
        };
        apps.record_event(
            EventKind::DeadlinePassed,
            app,
            Some(id),
            format!("generation {id} reached its {why}: {cancelled} in flight cancelled{left}"),
        );
    }
    cancelled
}

/// Ends the operation that waited for the drain, if it still does, and records a deadline that
/// passed.
async fn finish(
    app: &App,
    id: GenerationId,
    telling: &mut Option<(ProgressSender, OperationResult)>,
    drain: &Drain,
    took: Duration,
) {
    let Some((progress, mut result)) = telling.take() else {
        return;
    };
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

/// A generation whose library stays mapped.
type Kept = (Arc<App>, GenerationId, Box<Retained>);

/// The libraries that stay mapped.
#[derive(Debug, Default)]
pub(super) struct RetainedLibraries {
    retained: Mutex<Vec<Kept>>,
    /// Something changed that may have freed one.
    changed: Notify,
}

impl RetainedLibraries {
    /// Something changed that may have freed a library.
    pub(super) fn stir(&self) {
        self.changed.notify_one();
    }
}

/// Records how a generation ended.
pub(super) fn retain(apps: &Apps, app: &Arc<App>, id: GenerationId, ended: Ended) {
    match ended {
        Ended::Unloaded(left) => {
            app.unloaded(id);
            let lost = apps.0.leaks.unloaded(&app.name, id, &left);
            apps.0.events.record_unloaded(
                &app.name,
                id,
                &left,
                format!(
                    "generation {id} is unloaded{}",
                    leaks::sentence(&left, lost)
                ),
            );
            apps.0.retained_libraries.stir();
        }
        Ended::Retained(retained) => {
            let held = retained.held().clone();
            apps.0.leaks.retained(&app.name, id, retained.resources());
            if app.retained(id, &held) {
                apps.record_event(
                    EventKind::Retained,
                    app,
                    Some(id),
                    format!("generation {id} stays mapped: {held}"),
                );
            }
            apps.0
                .retained_libraries
                .retained
                .lock()
                .push((Arc::clone(app), id, retained));
        }
    }
    leaks::record_overdrawn(apps);
}

/// Retries libraries that stay mapped, looks for panics and for what was changed for all, for as
/// long as the apps live.
pub(super) fn sweep_retained(apps: &Apps) {
    let inner = Arc::downgrade(&apps.0);
    tokio::spawn(async move {
        let mut panics = HashMap::new();
        while let Some(apps) = upgrade(&inner) {
            record_panics(&apps, &mut panics);
            changed::record_changes(&apps);
            drop(apps);
            tokio::time::sleep(LOOKED_AT_EVERY).await;
        }
    });
    let inner = Arc::downgrade(&apps.0);
    tokio::spawn(async move {
        while let Some(apps) = upgrade(&inner) {
            restore::catch_up(&apps).await;
            drop(apps);
            tokio::time::sleep(LOOKED_AT_EVERY).await;
        }
    });
    let inner = Arc::downgrade(&apps.0);
    tokio::spawn(async move {
        while let Some(apps) = upgrade(&inner) {
            // Bounded, so that the task ends with the apps. What cannot have changed is only looked
            // at.
            let changed = tokio::time::timeout(
                LOOKED_AT_EVERY,
                apps.0.retained_libraries.changed.notified(),
            );
            let changed = changed.await.is_ok();
            retry(&apps, changed).await;
        }
    });
}

fn upgrade(inner: &Weak<Inner>) -> Option<Apps> {
    inner.upgrade().map(Apps)
}

/// Tries once to unload each library that stays mapped and may be quiet by now.
async fn retry(apps: &Apps, eager: bool) {
    let retained = std::mem::take(&mut *apps.0.retained_libraries.retained.lock());
    for (app, id, retained) in retained {
        let ended = retained.retry(eager).await;
        if matches!(ended, Ended::Unloaded(_)) {
            crash::leaves(apps, &app.name, id).await;
        }
        retain(apps, &app, id, ended);
    }
}

/// Tells of panics that were caught since the last look.
fn record_panics(apps: &Apps, known: &mut HashMap<(AppName, GenerationId), u64>) {
    let mut seen = HashMap::new();
    for app in apps.all() {
        for (generation, _) in app.running(|running| running.generations()) {
            let (id, panics) = (generation.spec().id, generation.counts().panics);
            let key = (app.name.clone(), id);
            let more = panics.saturating_sub(known.get(&key).copied().unwrap_or(0));
            if more > 0 {
                let message = format!(
                    "{} in generation {id} ({}), {panics} so far",
                    human::pluralize(more, "more panic"),
                    generation.spec().version
                );
                apps.record_event(EventKind::Panic, &app, Some(id), message);
            }
            seen.insert(key, panics);
        }
    }
    *known = seen;
}
