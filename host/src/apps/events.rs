//! What happened: the last events, a broadcast of those to come, and the log line of each.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::{
    control::api::Event,
    ledger::Leftovers,
    names::{AppName, GenerationId},
};

/// How many events are kept for those who ask later.
const KEPT: usize = 1_000;

/// How many events a slow follower may be behind before it loses some.
const BACKLOG: usize = 1_024;

/// The kinds of events: the short word programs see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A generation answers new requests.
    Active,
    /// A replaced generation finishes what it has.
    Draining,
    /// It has finished.
    Drained,
    /// It was ended at its drain deadline.
    DeadlinePassed,
    /// Its library is unmapped.
    Unloaded,
    /// Its library stays mapped.
    Retained,
    /// Replaced generations hold more than the leak budget.
    LeakBudget,
    /// An artifact was refused.
    Rejected,
    /// Its smoke requests failed.
    Unhealthy,
    /// A deploy failed for a reason of the host.
    Failed,
    /// Preflight warned of an artifact that was taken.
    Warning,
    /// An artifact waits for `handover reload`.
    Staged,
    /// An artifact of a drop folder waits until it may be tried.
    Waiting,
    /// The host before this one did not end cleanly.
    Crash,
    /// An artifact that was live was taken back.
    RolledBack,
    /// An artifact has served long enough to be trusted.
    Proven,
    /// A call into a generation holds its worker.
    Stalled,
    /// It came back.
    StallEnded,
    /// A generation panicked.
    Panic,
    /// A generation changed the environment of the process.
    Environment,
    /// A generation changed the working directory of the process.
    WorkingDirectory,
    /// A generation changed the mask for the modes of new files.
    FileMask,
    /// Something is wrong with the host's own records.
    State,
    /// The host began or ends.
    Host,
}

impl Kind {
    /// Every kind, in the order of their numbers.
    pub(super) const ALL: [Self; 24] = [
        Self::Active,
        Self::Draining,
        Self::Drained,
        Self::DeadlinePassed,
        Self::Unloaded,
        Self::Retained,
        Self::LeakBudget,
        Self::Rejected,
        Self::Unhealthy,
        Self::Failed,
        Self::Warning,
        Self::Staged,
        Self::Waiting,
        Self::Crash,
        Self::RolledBack,
        Self::Proven,
        Self::Stalled,
        Self::StallEnded,
        Self::Panic,
        Self::Environment,
        Self::WorkingDirectory,
        Self::FileMask,
        Self::State,
        Self::Host,
    ];

    /// The word.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::DeadlinePassed => "deadline_passed",
            Self::Unloaded => "unloaded",
            Self::Retained => "retained",
            Self::LeakBudget => "leak-budget",
            Self::Rejected => "rejected",
            Self::Unhealthy => "unhealthy",
            Self::Failed => "failed",
            Self::Warning => "warning",
            Self::Staged => "staged",
            Self::Waiting => "waiting",
            Self::Crash => "crash",
            Self::RolledBack => "rolled_back",
            Self::Proven => "proven",
            Self::Stalled => "stalled",
            Self::StallEnded => "stall_ended",
            Self::Panic => "panic",
            Self::Environment => "environment",
            Self::WorkingDirectory => "working_directory",
            Self::FileMask => "file_mask",
            Self::State => "state",
            Self::Host => "host",
        }
    }
}

/// The event log of one run of the host.
#[derive(Debug)]
pub(super) struct Events {
    ring: Mutex<Ring>,
    followers: broadcast::Sender<Event>,
}

#[derive(Debug, Default)]
struct Ring {
    seq: u64,
    counts: [u64; Kind::ALL.len()],
    events: VecDeque<Event>,
}

impl Events {
    /// An empty log.
    pub(super) fn new() -> Self {
        Self {
            ring: Mutex::default(),
            followers: broadcast::channel(BACKLOG).0,
        }
    }

    /// Records an event and writes its log line, the only one about it.
    pub(super) fn record(
        &self,
        kind: Kind,
        app: Option<&AppName>,
        generation: Option<GenerationId>,
        message: impl Into<String>,
    ) {
        self.append(kind, app, generation, None, message.into());
    }

    /// As [`tell`](Self::tell), that a generation is unloaded and what it left behind.
    pub(super) fn record_unloaded(
        &self,
        app: &AppName,
        generation: GenerationId,
        left: &Leftovers,
        message: String,
    ) {
        self.append(
            Kind::Unloaded,
            Some(app),
            Some(generation),
            Some(left),
            message,
        );
    }

    fn append(
        &self,
        kind: Kind,
        app: Option<&AppName>,
        generation: Option<GenerationId>,
        left: Option<&Leftovers>,
        message: String,
    ) {
        let (name, number) = (app.map(tracing::field::display), generation.map(|id| id.0));
        match kind {
            // The panic itself was logged with its message when it was caught.
            Kind::Panic => {}
            Kind::State | Kind::Crash | Kind::RolledBack => {
                tracing::error!(
                    app = name,
                    generation = number,
                    kind = kind.as_str(),
                    "{message}"
                );
            }
            Kind::DeadlinePassed
            | Kind::Retained
            | Kind::LeakBudget
            | Kind::Rejected
            | Kind::Unhealthy
            | Kind::Warning
            | Kind::Stalled
            | Kind::Environment
            | Kind::WorkingDirectory
            | Kind::FileMask
            | Kind::Failed => {
                tracing::warn!(
                    app = name,
                    generation = number,
                    kind = kind.as_str(),
                    "{message}"
                );
            }
            Kind::Active
            | Kind::Draining
            | Kind::Drained
            | Kind::Unloaded
            | Kind::Staged
            | Kind::Waiting
            | Kind::Proven
            | Kind::StallEnded
            | Kind::Host => {
                tracing::info!(
                    app = name,
                    generation = number,
                    kind = kind.as_str(),
                    "{message}"
                );
            }
        }
        // Sent under the lock, so that a follower who subscribes under it misses none and sees none
        // twice.
        let mut ring = self.ring.lock();
        ring.counts[kind as usize] += 1;
        ring.seq += 1;
        let event = Event {
            seq: ring.seq,
            at_ms: super::now_ms(),
            kind: kind.as_str().to_owned(),
            app: app.cloned(),
            generation,
            message,
            leaked_bytes: left.and_then(|left| left.heap_bytes),
            leaked_descriptors: left.map(|left| left.open.len() as u64),
        };
        if ring.events.len() == KEPT {
            ring.events.pop_front();
        }
        ring.events.push_back(event.clone());
        // An error means that nobody follows.
        let _ = self.followers.send(event);
    }

    /// How many there were of each of [`Kind::ALL`].
    pub(super) fn counts(&self) -> [u64; Kind::ALL.len()] {
        self.ring.lock().counts
    }

    /// The events so far, and those to come, without a gap between them.
    pub(super) fn follow(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let ring = self.ring.lock();
        (
            ring.events.iter().cloned().collect(),
            self.followers.subscribe(),
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn followers_see_every_event_once_and_in_order() {
        let events = Events::new();
        events.record(Kind::Host, None, None, "one");
        let (past, mut future) = events.follow();
        events.record(Kind::Host, None, None, "two");
        assert_eq!(past.iter().map(|e| e.seq).collect::<Vec<_>>(), [1]);
        assert_eq!(future.try_recv().unwrap().seq, 2);
        assert!(future.try_recv().is_err());
    }

    #[test]
    fn each_kind_is_counted_as_itself() {
        let events = Events::new();
        for (at, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at);
            (0..=at).for_each(|_| events.record(kind, None, None, "again"));
        }
        assert!(events.counts().into_iter().eq(1..=Kind::ALL.len() as u64));
    }

    #[test]
    fn the_oldest_events_make_room() {
        let events = Events::new();
        for _ in 0..KEPT + 5 {
            events.record(Kind::Host, None, None, "again");
        }
        let (past, _) = events.follow();
        assert_eq!(past.len(), KEPT);
        assert_eq!(past[0].seq, 6);
    }
}
