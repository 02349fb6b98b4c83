//! Schedules: when a handler is due, and the one job that is made at each of these times.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use handover_api::{AppName, ScheduleInfo};
use jiff::{Timestamp, tz::TimeZone};
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::Notify};

use super::{
    answer::Refused,
    jobs::{Jobs, NewJob},
};
use crate::{
    artifact::declared::{Declared, JobHandler, Missed},
    clock::now_ms,
    state::{Check, Commit, Mutation, Namespace, Place, StateError, Store},
};

/// How often the time is looked at, whatever is due: clocks are set.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Who has not looked for so long, in milliseconds, has missed what was due.
const MISSED_AFTER: u64 = 120_000;
/// How long is waited after a look that failed.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// Times that are looked at together.
const MOST_AT_ONCE: usize = 1000;

/// When something is due.
#[derive(Clone, Debug)]
enum Times {
    Cron(Box<Cron>, TimeZone),
    /// Each time that the milliseconds since 1970 are a multiple of this.
    Every(u64),
}

/// A schedule of a handler.
#[derive(Clone, Debug)]
struct Plan {
    times: Times,
    missed: Missed,
    /// As it was declared.
    text: String,
    tz: Option<String>,
}

impl Plan {
    /// What `handler` declares; none when that is no schedule.
    fn of(handler: &JobHandler) -> Result<Option<Self>, String> {
        let name = &handler.job;
        let (times, text) = match (&handler.schedule, handler.every_ms) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => {
                return Err(format!(
                    "the schedule `{name}` has a cron expression and an interval: leave one of them out"
                ));
            }
            (None, Some(every)) => {
                if every < 1000 {
                    return Err(format!(
                        "the schedule `{name}` is due more than once a second"
                    ));
                }
                let text = humantime::format_duration(Duration::from_millis(every));
                (Times::Every(every), format!("every {text}"))
            }
            (Some(cron), None) => {
                let parser = CronParser::builder()
                    .seconds(Seconds::Disallowed)
                    .year(Year::Disallowed)
                    .build();
                let parsed = parser.parse(cron).map_err(|error| {
                    format!(
                        "the schedule `{name}` has the cron expression `{cron}`, which is none ({error}): minute, hour, day, month, weekday"
                    )
                })?;
                let tz = match &handler.tz {
                    None => TimeZone::UTC,
                    Some(tz) => TimeZone::get(tz).map_err(|_| {
                        format!("the schedule `{name}` has the time zone `{tz}`, which nobody knows: use one such as Europe/Berlin")
                    })?,
                };
                (Times::Cron(Box::new(parsed), tz), cron.clone())
            }
        };
        Ok(Some(Self {
            times,
            missed: handler.missed,
            text,
            tz: handler.tz.clone(),
        }))
    }

    /// The first time after this one, in milliseconds since 1970.
    fn next_after(&self, after_ms: u64) -> Option<u64> {
        match &self.times {
            Times::Every(every) => after_ms
                .checked_div(*every)?
                .checked_add(1)?
                .checked_mul(*every),
            Times::Cron(cron, tz) => {
                let after = Timestamp::from_millisecond(i64::try_from(after_ms).ok()?).ok()?;
                let next = cron
                    .find_next_occurrence(&after.to_zoned(tz.clone()), false)
                    .ok()?;
                u64::try_from(next.timestamp().as_millisecond()).ok()
            }
        }
    }

    /// The times after the first and up to the second, the last so many of them where there are
    /// more.
    fn due_between(&self, after_ms: u64, until_ms: u64) -> Vec<u64> {
        let mut due = Vec::new();
        let mut at = after_ms;
        while let Some(next) = self.next_after(at)
            && next <= until_ms
            && next > at
        {
            due.push(next);
            at = next;
            if due.len() > 2 * MOST_AT_ONCE {
                due.drain(..MOST_AT_ONCE);
            }
        }
        let more = due.len().saturating_sub(MOST_AT_ONCE);
        due.drain(..more);
        due
    }
}

/// Whether all that `declared` schedules is understood.
///
/// # Errors
/// Which schedule is not, and why.
pub(crate) fn check(declared: &Declared) -> Result<(), String> {
    declared
        .values()
        .try_for_each(|handler| Plan::of(handler).map(drop))
}

/// The schedules of one app. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Schedules(Arc<Inner>);

struct Inner {
    app: AppName,
    store: Arc<Store>,
    jobs: Jobs,
    runtime: Handle,
    live: Mutex<Live>,
    changed: Notify,
}

#[derive(Default)]
struct Live {
    plans: BTreeMap<String, Plan>,
    has_keeper: bool,
    /// When it was looked at last, in milliseconds since 1970; none: not in the life of this host.
    looked_ms: Option<u64>,
    /// Those that are due from now on, whatever the disk says: they were not in the list before.
    fresh: BTreeMap<String, u64>,
    /// Those whose record is to be removed: they are not in the list any more.
    gone: Vec<String>,
}

/// What a look came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Looked {
    /// When it is to be looked again, in milliseconds since 1970.
    next_ms: Option<u64>,
    has_failed: bool,
}

impl Schedules {
    pub(super) fn new(app: AppName, store: Arc<Store>, jobs: Jobs, runtime: Handle) -> Self {
        Self(Arc::new(Inner {
            app,
            store,
            jobs,
            runtime,
            live: Mutex::default(),
            changed: Notify::new(),
        }))
    }

    /// What is live now declares this. What was due since the host ended counts as missed if
    /// `is_restart`; else a schedule that is new begins now.
    pub(super) fn replace(&self, declared: &Declared, is_restart: bool) {
        self.replace_at(declared, is_restart, now_ms());
        let mut live = self.0.live.lock();
        if !live.has_keeper && !live.plans.is_empty() {
            live.has_keeper = true;
            self.0.runtime.spawn(keep(Arc::downgrade(&self.0)));
        }
        drop(live);
        self.0.changed.notify_one();
    }

    fn replace_at(&self, declared: &Declared, is_restart: bool, now_ms: u64) {
        let mut plans = BTreeMap::new();
        for (name, handler) in declared {
            match Plan::of(handler) {
                Ok(Some(plan)) => {
                    plans.insert(name.clone(), plan);
                }
                Ok(None) => {}
                Err(error) => tracing::error!(app = %self.0.app, "{error}"),
            }
        }
        let mut live = self.0.live.lock();
        if !is_restart {
            for name in plans.keys() {
                if !live.plans.contains_key(name) {
                    live.fresh.insert(name.clone(), now_ms);
                }
            }
        }
        let gone: Vec<_> = live
            .plans
            .keys()
            .filter(|name| !plans.contains_key(*name))
            .cloned()
            .collect();
        for name in gone {
            live.fresh.remove(&name);
            live.gone.push(name);
        }
        live.plans = plans;
    }

    fn place(name: &str) -> Result<Place, StateError> {
        Ok(Namespace::own("schedule").place(name.as_bytes())?)
    }

    /// When it was due last, and the version of the record of it.
    fn last(&self, name: &str) -> Result<(Option<u64>, u64), StateError> {
        let (mut last, mut version) = (None, 0);
        self.0.store.get(false, &Self::place(name)?, |record| {
            let text = std::str::from_utf8(record.value).unwrap_or_default();
            (last, version) = (text.parse().ok(), record.version);
        })?;
        Ok((last, version))
    }

    /// Makes a job for each time that has come.
    async fn look(&self, now_ms: u64) -> Looked {
        let (plans, fresh, gone, was_away) = {
            let mut live = self.0.live.lock();
            let was_away = live
                .looked_ms
                .is_none_or(|looked| now_ms.abs_diff(looked) > MISSED_AFTER);
            live.looked_ms = Some(now_ms);
            (
                live.plans.clone(),
                std::mem::take(&mut live.fresh),
                std::mem::take(&mut live.gone),
                was_away,
            )
        };
        let mut looked = Looked {
            next_ms: None,
            has_failed: false,
        };
        for name in gone {
            if plans.contains_key(&name) {
                continue;
            }
            if let Err(error) = self.forget(&name).await {
                self.0.live.lock().gone.push(name);
                looked.has_failed = true;
                tracing::warn!(app = %self.0.app, "a schedule that is gone cannot be forgotten, which is tried again: {error}");
            }
        }
        for (name, plan) in &plans {
            let begins = fresh.get(name).copied();
            match self.look_at(name, plan, now_ms, begins, was_away).await {
                Ok(last) => {
                    let next = plan.next_after(last);
                    looked.next_ms = [looked.next_ms, next].into_iter().flatten().min();
                }
                Err(error) => {
                    if let Some(begins) = begins {
                        self.0.live.lock().fresh.insert(name.clone(), begins);
                    }
                    looked.has_failed = true;
                    tracing::warn!(
                        app = %self.0.app,
                        "what the schedule `{name}` is due for cannot be kept, which is tried again: {error}"
                    );
                }
            }
        }
        looked
    }

    async fn forget(&self, name: &str) -> Result<(), StateError> {
        let place = Self::place(name)?;
        self.0
            .store
            .commit(false, Commit::of(Mutation::Delete { place }))
            .await
            .map(drop)
    }

    /// Makes the jobs of one schedule; gives the time up to which it is served.
    async fn look_at(
        &self,
        name: &str,
        plan: &Plan,
        now_ms: u64,
        begins: Option<u64>,
        was_away: bool,
    ) -> Result<u64, Refused> {
        let (last, version) = self.last(name)?;
        let after = begins.or(last).unwrap_or(now_ms);
        let mut due = plan.due_between(after, now_ms);
        // What is left out is past, too.
        let served = due.last().copied().unwrap_or(after);
        if was_away && begins.is_none() {
            let made = match plan.missed {
                Missed::None => 0,
                Missed::One => 1,
                Missed::All => due.len(),
            };
            due.drain(..due.len().saturating_sub(made));
        }
        if last != Some(served) {
            self.make(name, version, served, &due).await?;
        }
        Ok(served)
    }

    /// Makes a job for each of `due`, and writes that it was served up to `served`, in one commit:
    /// whoever else does the same comes to nothing.
    async fn make(
        &self,
        name: &str,
        version: u64,
        served: u64,
        due: &[u64],
    ) -> Result<(), Refused> {
        let place = Self::place(name)?;
        let mut commit = Commit::of(Mutation::Put {
            place: place.clone(),
            value: served.to_string().into(),
            ttl_ms: None,
        });
        commit.checks.push(Check { place, version });
        let jobs = due.iter().map(|due_ms| NewJob {
            name: name.to_owned(),
            id: None,
            tenant: None,
            due_ms: Some(*due_ms),
            priority: None,
            key: None,
            options: Default::default(),
            length: 0,
            payload: bytes::Bytes::from_static(b"null"),
        });
        let made = self.0.jobs.enqueue_now(jobs.collect(), commit, true).await;
        made.map(drop)
    }

    /// The schedules of what is live. Blocks on the disk.
    pub(crate) fn list(&self) -> Vec<ScheduleInfo> {
        let plans = self.0.live.lock().plans.clone();
        let now = now_ms();
        let info = plans.into_iter().map(|(name, plan)| ScheduleInfo {
            app: self.0.app.clone(),
            last_ms: self.last(&name).ok().and_then(|(last, _)| last),
            next_ms: plan.next_after(now),
            missed: match plan.missed {
                Missed::None => "none",
                Missed::One => "one",
                Missed::All => "all",
            }
            .to_owned(),
            when: plan.text,
            tz: plan.tz,
            name,
        });
        info.collect()
    }
}

/// Looks at the time whenever something is due.
async fn keep(schedules: Weak<Inner>) {
    loop {
        let Some(inner) = schedules.upgrade() else {
            return;
        };
        let schedules_of = Schedules(inner);
        let Looked {
            next_ms,
            has_failed,
        } = schedules_of.look(now_ms()).await;
        let next = next_ms.map_or(LOOK_EVERY, |next| {
            Duration::from_millis(next.saturating_sub(now_ms()).max(1))
        });
        let pause = if has_failed {
            TRY_AGAIN
        } else {
            next.min(LOOK_EVERY)
        };
        tokio::select! {
            () = schedules_of.0.changed.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests;
