//! What happened: the last events, a broadcast of those to come, and the log line of each.

use std::collections::VecDeque;

use handover_api::{AppName, Event, EventKind, GenerationId};
use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::ledger::Leftovers;

/// How many events are kept for those who ask later.
const KEPT: usize = 1_000;

/// How many events a slow follower may be behind before it loses some.
const BACKLOG: usize = 1_024;

/// The event log of one run of the host.
#[derive(Debug)]
pub(crate) struct Events {
    ring: Mutex<Ring>,
    followers: broadcast::Sender<Event>,
}

#[derive(Debug)]
struct Ring {
    seq: u64,
    counts: [u64; EventKind::ALL.len()],
    events: VecDeque<Event>,
}

impl Default for Ring {
    fn default() -> Self {
        Self {
            seq: 0,
            counts: [0; EventKind::ALL.len()],
            events: VecDeque::new(),
        }
    }
}

impl Events {
    /// An empty log.
    pub(crate) fn new() -> Self {
        Self {
            ring: Mutex::default(),
            followers: broadcast::channel(BACKLOG).0,
        }
    }

    /// Records an event and writes its log line, the only one about it.
    pub(crate) fn record(
        &self,
        kind: EventKind,
        app: Option<&AppName>,
        generation: Option<GenerationId>,
        message: impl Into<String>,
    ) {
        self.append(kind, app, generation, None, message.into());
    }

    /// As [`tell`](Self::tell), that a generation is unloaded and what it left behind.
    pub(crate) fn record_unloaded(
        &self,
        app: &AppName,
        generation: GenerationId,
        left: &Leftovers,
        message: String,
    ) {
        self.append(
            EventKind::Unloaded,
            Some(app),
            Some(generation),
            Some(left),
            message,
        );
    }

    fn append(
        &self,
        kind: EventKind,
        app: Option<&AppName>,
        generation: Option<GenerationId>,
        left: Option<&Leftovers>,
        message: String,
    ) {
        let (name, number) = (app.map(tracing::field::display), generation.map(|id| id.0));
        match kind {
            // The panic itself was logged with its message when it was caught.
            EventKind::Panic => {}
            EventKind::State | EventKind::Crash | EventKind::RolledBack => {
                tracing::error!(
                    app = name,
                    generation = number,
                    kind = kind.as_str(),
                    "{message}"
                );
            }
            EventKind::DeadlinePassed
            | EventKind::Retained
            | EventKind::LeakBudget
            | EventKind::Rejected
            | EventKind::Unhealthy
            | EventKind::Warning
            | EventKind::Stalled
            | EventKind::WorkingDirectory
            | EventKind::FileMask
            | EventKind::CertificateFailed
            | EventKind::CertificateNotIssued
            | EventKind::ConfigFailed
            | EventKind::CanaryInconclusive
            | EventKind::CanaryAborted
            | EventKind::VerifyFailed
            | EventKind::Failed => {
                tracing::warn!(
                    app = name,
                    generation = number,
                    kind = kind.as_str(),
                    "{message}"
                );
            }
            EventKind::Active
            | EventKind::Draining
            | EventKind::Drained
            | EventKind::StreamsEnded
            | EventKind::Unloaded
            | EventKind::Staged
            | EventKind::Labelled
            | EventKind::LabelEnded
            | EventKind::Canary
            | EventKind::Verified
            | EventKind::Tenants
            | EventKind::Stopped
            | EventKind::Paused
            | EventKind::Resumed
            | EventKind::NodeDrained
            | EventKind::NodeResumed
            | EventKind::Waiting
            | EventKind::Missed
            | EventKind::Unknown
            | EventKind::Proven
            | EventKind::StallEnded
            | EventKind::CertificateLoaded
            | EventKind::CertificateIssued
            | EventKind::ConfigLoaded
            | EventKind::Host => {
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
            at_ms: crate::clock::now_ms(),
            kind,
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

    /// How many there were of each of [`EventKind::ALL`].
    pub(crate) fn counts(&self) -> [u64; EventKind::ALL.len()] {
        self.ring.lock().counts
    }

    /// The events so far, and those to come, without a gap between them.
    pub(crate) fn follow(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
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
        events.record(EventKind::Host, None, None, "one");
        let (past, mut future) = events.follow();
        events.record(EventKind::Host, None, None, "two");
        assert_eq!(past.iter().map(|e| e.seq).collect::<Vec<_>>(), [1]);
        assert_eq!(future.try_recv().unwrap().seq, 2);
        assert!(future.try_recv().is_err());
    }

    #[test]
    fn each_kind_is_counted_as_itself() {
        let events = Events::new();
        for (at, kind) in EventKind::ALL.iter().enumerate() {
            let kind = *kind;
            assert_eq!(kind as usize, at);
            (0..=at).for_each(|_| events.record(kind, None, None, "again"));
        }
        assert!(
            events
                .counts()
                .into_iter()
                .eq(1..=EventKind::ALL.len() as u64)
        );
    }

    #[test]
    fn the_oldest_events_make_room() {
        let events = Events::new();
        for _ in 0..KEPT + 5 {
            events.record(EventKind::Host, None, None, "again");
        }
        let (past, _) = events.follow();
        assert_eq!(past.len(), KEPT);
        assert_eq!(past[0].seq, 6);
    }
}
