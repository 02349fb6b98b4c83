//! Crashes: what was live when the host died, who is to blame for it, and what has served long
//! enough to be trusted.
//!
//! Who crashed the process is not known, only who was in it. So blame goes by what is new:
//! - an artifact that has not yet served for the app's `bake` without a break is on probation, and
//!   one crash is enough
//! - after `max_crashes` within `crash_window` the app that was changed last goes back, whatever it
//!   has proven
//!
//! The last words of the host, where there are some, say more ([`culprit`](super::culprit)): of
//! several on probation only the one whose code ran is taken back, and what a replaced generation
//! had left behind is no fault of its successor: its artifact is never unmapped again.
//!
//! But where an artifact was being loaded or constructed at that moment, that one is to blame and
//! nobody else: the journal names it before any of its code runs. What was being deployed has
//! failed. What was being started again is left out of the next start, which serves what was good
//! before it, and is tried again after a pause that grows. Where several were in it, the next start
//! begins them one after the other, so that a second crash names one.
//!
//! A process that was killed from outside (SIGKILL, a power cut) is nobody's fault.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use handover_api::{AppName, Cause, EventKind, GenerationId};

use crate::{
    apps::app::App,
    clock::{millis, since_boot_ms},
    generation::Spec,
    human,
    records::journal::{Crash, Crashed, LeftOut, Lived, Step, Tried, Written},
    report::growth,
    rollout::{
        Rollout,
        culprit::{self, Culprit},
    },
    shortage,
};

/// What the end of the host before means for this start.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Apps that go back to what they were before.
    pub(crate) blamed: BTreeMap<AppName, Blame>,
    /// Artifacts that are left out.
    pub(crate) left_out: BTreeMap<AppName, LeftOut>,
    /// Apps one of which crashed the host when it was started again: begun one after the other.
    pub(crate) suspects: Vec<AppName>,
    /// What was being deployed, and why that has failed.
    pub(crate) failed: Vec<(AppName, Tried, String)>,
    /// What was under way when the host ended for another reason, and that reason.
    pub(crate) interrupted: Vec<(AppName, Tried, String)>,
    /// Whether the host crashed, and nobody ended it.
    pub(crate) is_crash: bool,
    /// Artifacts that are never unmapped again, and why.
    pub(crate) staying: Vec<(AppName, Lived, String)>,
}

/// An app that goes back to what it was before.
#[derive(Clone, Debug)]
pub(crate) struct Blame {
    /// The generation that crashed, or was there.
    pub(crate) generation: GenerationId,
    /// Why, for people.
    pub(crate) reason: String,
}

/// Begins the journal, tells how the host before ended, and finds what follows from it. `crashed`
/// is what the supervisor saw.
pub(crate) fn take_findings(rollout: &Rollout, crashed: Option<Crashed>) -> Findings {
    let said_by_systemd = rollout.journal.said_by_systemd();
    let crashed = match (crashed, said_by_systemd) {
        (Some(crashed), Some(how)) if crashed.pid.is_none() => Some(Crashed { how, ..crashed }),
        (None, Some(how)) => Some(Crashed {
            how,
            ..Crashed::default()
        }),
        (crashed, _) => crashed,
    };
    let Some(before) = rollout.journal.open() else {
        return Findings::default();
    };
    // A host that has begun and did not come up has seen to the one before it, and the supervisor
    // tells of that one again.
    let crashed = crashed.filter(|crashed| crashed.pid.is_none() || crashed.pid != before.answered);
    let pid = before.pid;
    let since = match before.age_ms(before.since_ms) {
        Some(age) => format!(
            "started {} ago",
            human::duration(Duration::from_millis(age))
        ),
        None => "before the machine was booted".to_owned(),
    };
    let how = crashed
        .as_ref()
        .map_or("without notice", |crashed| crashed.how.as_str());
    let words = crashed
        .as_ref()
        .and_then(|crashed| crashed.last_words.as_ref());
    let eater = growth::eater(&before).filter(|_| how == shortage::OUT_OF_MEMORY);
    let (culprit, place) = match words {
        _ if how == shortage::OUT_OF_MEMORY => match eater {
            Some((app, place)) => (Culprit::Live(app), place),
            None => (Culprit::Unknown, String::new()),
        },
        Some(words) => culprit::find(&before, words, before.age_ms(0).unwrap_or(u64::MAX)),
        None => (Culprit::Unknown, String::new()),
    };
    let during: Vec<_> = before
        .trying
        .iter()
        .filter(|(_, tried)| tried.step == Step::Loaded)
        .map(|(app, tried)| format!("{app} {} ({})", tried.version, tried.artifact.short()))
        .collect();
    let while_it_started = if during.is_empty() {
        String::new()
    } else {
        format!(" while it started {}", during.join(", "))
    };
    let message = format!(
        "the host before this one (process {pid}, {since}) ended: {how}{while_it_started}{place}"
    );
    rollout
        .registry
        .events()
        .record(EventKind::Crash, None, None, message);
    let is_own_fault = crashed
        .as_ref()
        .is_some_and(|crashed| match crashed.how.as_str() {
            // Somebody else may have eaten it.
            shortage::OUT_OF_MEMORY => matches!(culprit, Culprit::Live(_)),
            how => is_own_fault(how),
        });
    let mut findings = match &culprit {
        _ if !is_own_fault => Findings::default(),
        Culprit::Left(left) => Findings {
            staying: staying(left, how),
            ..Findings::default()
        },
        Culprit::Unknown if !during.is_empty() => tried(rollout, &before, how),
        _ => Findings {
            blamed: blame(rollout, &before, &format!("{how}{place}"), &culprit),
            ..Findings::default()
        },
    };
    findings.is_crash = is_own_fault;
    if matches!(culprit, Culprit::Left(_)) || !is_own_fault {
        // It says nothing of what is live.
        rollout
            .journal
            .change(|written| written.crashes.clone_from(&before.crashes));
    }
    for (app, tried) in &before.trying {
        let is_failed = findings.failed.iter().any(|(failed, ..)| failed == app);
        if !is_failed && !tried.is_start() {
            let during = match tried.step {
                Step::Checked => "was checked",
                Step::Loaded => "was loaded or constructed",
                Step::Live => "took its first requests, before that was written down",
            };
            let reason = format!("the host ended ({how}{place}) while it {during}");
            findings
                .interrupted
                .push((app.clone(), tried.clone(), reason));
        }
    }
    // What was left out of the start before has not come up since.
    for (app, known) in before.left_out {
        findings.left_out.entry(app).or_insert(known);
    }
    let left_out = findings.left_out.clone();
    let answered = crashed.and_then(|crashed| crashed.pid);
    rollout.journal.change(|written| {
        written.left_out = left_out;
        written.answered = answered;
    });
    findings
}

/// What was left behind of generations that had ended, with the reason why they stay mapped from
/// now on.
fn staying(left: &[(AppName, Lived, String)], how: &str) -> Vec<(AppName, Lived, String)> {
    let reason = |lived: &Lived, sentence: &str| {
        format!(
            "the host crashed ({how}) after {} ({}) was unloaded, and {sentence}; it is never unmapped again",
            lived.version,
            lived.artifact.short()
        )
    };
    left.iter()
        .map(|(app, lived, sentence)| (app.clone(), lived.clone(), reason(lived, sentence)))
        .collect()
}

impl Tried {
    /// Whether it was live before, and is started again.
    fn is_start(&self) -> bool {
        matches!(self.cause, Cause::Start | Cause::Crash)
    }
}

/// What follows from a crash while artifacts were being started.
fn tried(rollout: &Rollout, before: &Written, how: &str) -> Findings {
    let mut findings = Findings::default();
    let loaded = || {
        before
            .trying
            .iter()
            .filter(|(_, tried)| tried.step == Step::Loaded)
    };
    let started = loaded().filter(|(_, tried)| tried.is_start()).count();
    for (app, tried) in loaded() {
        let (app, tried) = (app.clone(), tried.clone());
        let reason = format!("the host crashed ({how}) while it was loaded or constructed");
        if !tried.is_start() {
            findings.failed.push((app, tried, reason));
        } else if started > 1 {
            findings.suspects.push(app);
        } else {
            let known = before.left_out.get(&app);
            let crashes = known
                .filter(|known| known.artifact == tried.artifact)
                .map_or(0, |known| known.crashes);
            let left_out = LeftOut {
                artifact: tried.artifact,
                crashes: crashes + 1,
                reason,
            };
            findings.left_out.insert(app, left_out);
        }
    }
    // They say nothing of what is live.
    rollout
        .journal
        .change(|written| written.crashes.clone_from(&before.crashes));
    findings
}

/// Whether a crash like this comes from inside. What the kernel or somebody else kills is not to
/// blame.
fn is_own_fault(how: &str) -> bool {
    !matches!(how, "SIGKILL" | "SIGTERM" | "SIGINT" | "SIGHUP")
}

fn blame(
    rollout: &Rollout,
    before: &Written,
    how: &str,
    culprit: &Culprit,
) -> BTreeMap<AppName, Blame> {
    let settings = &rollout.registry.config().server;
    let (now, window) = (since_boot_ms(), settings.crash_window);
    let mut crashes = before.crashes.clone();
    crashes.retain(|crash| now.saturating_sub(crash.at_ms) < millis(window));
    crashes.push(Crash {
        at_ms: now,
        how: how.to_owned(),
    });

    // What was live is HEAD, unless the host died in the instant between.
    let was_live = |app: &Arc<App>| {
        let head = app.saved.read(|record| record.head.clone())?;
        let lived = before.live.get(&app.name)?;
        (lived.artifact == head.artifact).then(|| lived.clone())
    };
    let suspects: Vec<_> = rollout
        .registry
        .all()
        .into_iter()
        .filter_map(|app| was_live(&app).map(|lived| (app, lived)))
        .collect();

    let mut blamed: BTreeMap<AppName, Blame> = suspects
        .iter()
        .filter(|(app, _)| match culprit {
            Culprit::Unknown => true,
            Culprit::Live(name) => app.name == *name,
            Culprit::Draining | Culprit::Left(_) => false,
        })
        .filter_map(|(app, lived)| {
            let bake = app.settings().bake?;
            let proven = app.saved.read(|record| record.is_proven(lived.artifact));
            let reason = format!(
                "the host crashed ({how}) while {} was on probation{} of {}",
                lived.version,
                match before.age_ms(lived.since_ms) {
                    Some(age) =>
                        format!(": live for {}", human::duration(Duration::from_millis(age))),
                    None => String::new(),
                },
                humantime::format_duration(bake),
            );
            (!proven).then(|| {
                (
                    app.name.clone(),
                    Blame {
                        generation: lived.generation,
                        reason,
                    },
                )
            })
        })
        .collect();
    if blamed.is_empty() && crashes.len() >= settings.max_crashes.get() {
        let newest = suspects
            .iter()
            .filter(|(app, _)| match culprit {
                Culprit::Live(name) => app.name == *name,
                _ => true,
            })
            .max_by_key(|(app, _)| app.saved.read(|record| record.changed_at()));
        if let Some((app, lived)) = newest {
            let count = human::pluralize(crashes.len() as u64, "time");
            let reason = format!(
                "the host crashed {count} within {} (last: {how}), and {} is what was changed last",
                humantime::format_duration(window),
                lived.version,
            );
            let generation = lived.generation;
            blamed.insert(app.name.clone(), Blame { generation, reason });
        }
    }
    if !blamed.is_empty() {
        // Something is done about them.
        crashes.clear();
    }
    rollout.journal.change(|written| written.crashes = crashes);
    blamed
}

/// Ends the probation of `spec` when it has served for the app's `bake` without a break.
pub(crate) fn prove_later(rollout: &Rollout, app: &Arc<App>, spec: &Spec) {
    let Some(bake) = app.settings().bake else {
        return;
    };
    let (id, artifact, version) = (spec.id, spec.artifact, spec.version.clone());
    if app.saved.read(|record| record.is_proven(artifact)) {
        return;
    }
    let (rollout, app) = (rollout.clone(), Arc::clone(app));
    tokio::spawn(async move {
        tokio::time::sleep(bake).await;
        if app.live().is_none_or(|live| live.id != id) {
            return;
        }
        let (_, saved) = app.saved.change(|record| record.proves(artifact)).await;
        let message = match saved {
            Ok(()) => format!(
                "{} {version} has served for {}: a crash no longer takes it back at once",
                app.name,
                humantime::format_duration(bake)
            ),
            Err(cause) => format!("the end of the probation could not be saved: {cause}"),
        };
        rollout
            .registry
            .record_event(EventKind::Proven, &app, Some(id), message);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_kills_from_outside_blames_nobody() {
        assert!(is_own_fault("SIGSEGV"));
        assert!(is_own_fault("exit with code 0"));
        assert!(!is_own_fault("SIGKILL"));
    }
}
