//! Operations: each has an id, keeps its lines, and lets any number of listeners hear all of them.

use std::{
    collections::VecDeque,
    convert::Infallible,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use handover_api::{OperationResult, Outcome, Progress, StepTook};

/// How many operations are kept, running ones not counted against it.
const KEPT: usize = 100;

/// The ear at a running operation: every line from its beginning, ending after `Progress::Result`.
///
/// Dropping it does not end the operation.
#[derive(Debug)]
pub struct Operation {
    /// The id of the operation, e.g. `op-17`.
    pub id: String,
    /// Its lines.
    pub lines: mpsc::UnboundedReceiver<Progress>,
    /// RetainReasons by whoever asked for it, while it may wait for its turn.
    pub interest: Option<Interest>,
}

/// That somebody wants an operation. One that waits for its turn is given up when this is dropped.
#[derive(Debug)]
pub struct Interest(#[expect(dead_code, reason = "held for its drop")] oneshot::Sender<Infallible>);

/// Tells when the interest in an operation is lost.
#[derive(Debug)]
pub(crate) struct Wanted(Option<oneshot::Receiver<Infallible>>);

/// An operation that is given up when the interest is lost.
pub(crate) fn interest() -> (Interest, Wanted) {
    let (interest, wanted) = oneshot::channel();
    (Interest(interest), Wanted(Some(wanted)))
}

impl Wanted {
    /// One that is wanted whoever leaves.
    pub(crate) const ALWAYS: Self = Self(None);

    /// Ends when the interest is lost.
    pub(crate) async fn no_more(self) {
        match self.0 {
            // Nothing is ever sent.
            Some(wanted) => drop(wanted.await),
            None => std::future::pending().await,
        }
    }
}

/// The operations of this run of the host.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    last: AtomicU64,
    /// How many have not ended.
    running: Arc<watch::Sender<usize>>,
    recent: Mutex<VecDeque<Arc<Record>>>,
    /// What callers call theirs, the newest last: the id, once it has one.
    keys: Mutex<VecDeque<(String, Option<String>)>>,
}

/// What is known of an operation by what its caller calls it.
#[derive(Debug)]
pub(crate) enum Keyed {
    /// Nothing yet: it is to be begun, and told by [`Reserved::is`].
    New(Reserved),
    /// Somebody is about to begin it.
    UnderWay,
    /// It was begun.
    Known(Operation),
}

/// The right to begin the operation of a key. Another one may, when this is dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    operations: Arc<Operations>,
    key: Option<String>,
}

impl Reserved {
    /// Says which operation it is.
    pub(crate) fn is(mut self, id: &str) {
        let Some(key) = self.key.take() else { return };
        let mut keys = self.operations.keys.lock();
        if let Some((_, known)) = keys.iter_mut().find(|(known, _)| *known == key) {
            *known = Some(id.to_owned());
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.operations
                .keys
                .lock()
                .retain(|(known, _)| *known != key);
        }
    }
}

/// The lines of one operation.
#[derive(Debug)]
pub(crate) struct Record {
    id: String,
    transcript: Mutex<Transcript>,
}

#[derive(Debug, Default)]
struct Transcript {
    lines: Vec<Progress>,
    listeners: Vec<mpsc::UnboundedSender<Progress>>,
    ended: bool,
}

/// The mouth of a running operation. There is one; dropping it without a result (its task panicked)
/// gives the listeners one, so that nobody waits for ever.
#[derive(Debug)]
pub(crate) struct ProgressSender(
    Voice,
    #[expect(dead_code, reason = "held for its drop")] Running,
);

/// Counts a running operation as long as it lives.
#[derive(Debug)]
struct Running(Arc<watch::Sender<usize>>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running -= 1);
    }
}

impl Operations {
    /// A new operation that has said `Accepted`.
    pub(crate) fn begin_operation(&self) -> ProgressSender {
        let id = format!("op-{}", self.last.fetch_add(1, Ordering::Relaxed) + 1);
        let record = Arc::new(Record {
            id: id.clone(),
            transcript: Mutex::default(),
        });
        record.send(Progress::Accepted { operation: id });
        let mut recent = self.recent.lock();
        while recent.len() >= KEPT {
            match recent.iter().position(|old| old.transcript.lock().ended) {
                Some(oldest) => recent.remove(oldest),
                None => break,
            };
        }
        recent.push_back(Arc::clone(&record));
        self.running.send_modify(|running| *running += 1);
        ProgressSender(Voice(record), Running(Arc::clone(&self.running)))
    }

    /// Looks up the operation of a key, or reserves the key. One that has changed nothing, for a
    /// reason that may be gone, does not count.
    pub(crate) fn keyed(self: &Arc<Self>, key: &str) -> Keyed {
        let mut keys = self.keys.lock();
        if let Some(at) = keys.iter().position(|(known, _)| known == key) {
            let Some(id) = &keys[at].1 else {
                return Keyed::UnderWay;
            };
            match self.listen(id) {
                Some(operation) if !self.may_be_asked_again(id) => return Keyed::Known(operation),
                _ => drop(keys.remove(at)),
            }
        }
        while keys.len() >= KEPT {
            keys.pop_front();
        }
        keys.push_back((key.to_owned(), None));
        Keyed::New(Reserved {
            operations: Arc::clone(self),
            key: Some(key.to_owned()),
        })
    }

    fn may_be_asked_again(&self, id: &str) -> bool {
        let recent = self.recent.lock();
        let record = recent.iter().find(|record| record.id == id);
        record.is_some_and(|record| match record.transcript.lock().lines.last() {
            Some(Progress::Result(result)) => matches!(
                result.outcome,
                Outcome::Failed | Outcome::Conflict | Outcome::Denied
            ),
            _ => false,
        })
    }

    /// How many have not ended.
    pub(crate) fn running(&self) -> usize {
        *self.running.borrow()
    }

    /// Waits until none runs.
    pub(crate) async fn all_ended(&self) {
        let mut running = self.running.subscribe();
        // The sender is in `self`.
        let _ = running.wait_for(|running| *running == 0).await;
    }

    /// The ear at an operation, from its beginning.
    pub(crate) fn listen(&self, id: &str) -> Option<Operation> {
        let recent = self.recent.lock();
        recent.iter().find(|o| o.id == id).map(|o| o.listen())
    }
}

impl Record {
    fn send(&self, line: Progress) {
        let mut transcript = self.transcript.lock();
        if transcript.ended {
            return;
        }
        transcript.ended = matches!(line, Progress::Result(_));
        transcript
            .listeners
            .retain(|listener| listener.send(line.clone()).is_ok());
        // A drain may take hours at four lines a second: of a row of them the last is kept.
        if matches!(line, Progress::Draining { .. })
            && matches!(transcript.lines.last(), Some(Progress::Draining { .. }))
        {
            transcript.lines.pop();
        }
        transcript.lines.push(line);
        if transcript.ended {
            transcript.listeners.clear();
        }
    }

    fn listen(&self) -> Operation {
        let (sender, lines) = mpsc::unbounded_channel();
        let mut transcript = self.transcript.lock();
        for line in &transcript.lines {
            // The receiver is in our hands.
            let _ = sender.send(line.clone());
        }
        if !transcript.ended {
            transcript.listeners.push(sender);
        }
        Operation {
            id: self.id.clone(),
            lines,
            interest: None,
        }
    }
}

/// A mouth of an operation, which cannot end it. What it says after the end is not heard.
#[derive(Debug)]
pub(crate) struct Voice(Arc<Record>);

impl Voice {
    /// The id of the operation.
    pub(crate) fn id(&self) -> &str {
        &self.0.id
    }

    /// Says a line.
    pub(crate) fn send(&self, line: Progress) {
        self.0.send(line);
    }
}

impl Deref for ProgressSender {
    type Target = Voice;

    fn deref(&self) -> &Voice {
        &self.0
    }
}

impl ProgressSender {
    /// A mouth for somebody else who has something to say of it.
    pub(crate) fn voice(&self) -> Voice {
        Voice(Arc::clone(&self.0.0))
    }

    /// An ear at it.
    pub(crate) fn listen(&self) -> Operation {
        self.0.0.listen()
    }

    /// Says the last line. What is said after it is not heard.
    pub(crate) fn finish(&self, result: OperationResult) {
        self.send(Progress::Result(result));
    }

    /// Returns the steps that were told, and how long each took.
    pub(crate) fn steps(&self) -> Vec<StepTook> {
        let transcript = self.0.0.transcript.lock();
        let steps = transcript.lines.iter().filter_map(|line| match line {
            Progress::Step { step, took_us, .. } => Some(StepTook {
                step: step.clone(),
                took_us: *took_us,
            }),
            _ => None,
        });
        steps.collect()
    }

    /// Whether the last line was said.
    pub(crate) fn finished(&self) -> bool {
        self.0.0.transcript.lock().ended
    }
}

impl Drop for ProgressSender {
    fn drop(&mut self) {
        if self.finished() {
            return;
        }
        self.finish(OperationResult {
            outcome: Outcome::Failed,
            message: format!(
                "{} broke off inside the host: this is a bug of handover, its log has the panic",
                self.id()
            ),
            app: None,
            generation: None,
            version: None,
            artifact: None,
            notes: Vec::new(),
            ended_streams: 0,
        });
    }
}

/// A result before any app was found.
pub(crate) fn no_app(outcome: Outcome, message: impl Into<String>) -> OperationResult {
    OperationResult {
        outcome,
        message: message.into(),
        app: None,
        generation: None,
        version: None,
        artifact: None,
        notes: Vec::new(),
        ended_streams: 0,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    fn result(outcome: Outcome) -> OperationResult {
        OperationResult {
            outcome,
            message: "done".into(),
            app: None,
            generation: None,
            version: None,
            artifact: None,
            notes: Vec::new(),
            ended_streams: 0,
        }
    }

    fn draining(in_flight: u64) -> Progress {
        Progress::Draining {
            app: "a".parse().unwrap(),
            generation: handover_api::GenerationId(1),
            in_flight,
            jobs: 0,
            deadline_ms: None,
        }
    }

    fn drain(mut operation: Operation) -> Vec<Progress> {
        std::iter::from_fn(|| operation.lines.try_recv().ok()).collect()
    }

    #[test]
    fn a_late_listener_hears_everything_from_the_beginning() {
        let operations = Operations::default();
        let progress = operations.begin_operation();
        let early = progress.listen();
        progress.send(draining(3));
        progress.finish(result(Outcome::Done));
        let late = operations.listen("op-1").unwrap();
        for ear in [early, late] {
            let lines = drain(ear);
            assert!(matches!(&lines[0], Progress::Accepted { operation } if operation == "op-1"));
            assert!(matches!(lines[1], Progress::Draining { .. }));
            assert!(matches!(lines[2], Progress::Result(_)));
            assert_eq!(lines.len(), 3);
        }
    }

    #[test]
    fn a_long_drain_does_not_grow_what_is_kept() {
        let operations = Operations::default();
        let progress = operations.begin_operation();
        for n in 0..1_000 {
            progress.send(draining(1_000 - n));
        }
        let lines = drain(progress.listen());
        assert_eq!(lines.len(), 2);
        assert!(matches!(lines[1], Progress::Draining { in_flight: 1, .. }));
    }

    #[test]
    fn an_operation_that_breaks_off_still_ends_for_its_listeners() {
        let operations = Operations::default();
        let ear = operations.begin_operation().listen();
        let lines = drain(ear);
        assert!(
            matches!(&lines[1], Progress::Result(r) if r.outcome == Outcome::Failed && r.message.contains("op-1"))
        );
    }

    #[test]
    fn running_operations_are_never_forgotten() {
        let operations = Operations::default();
        let running = operations.begin_operation();
        for _ in 0..3 * KEPT {
            operations.begin_operation().finish(result(Outcome::Done));
        }
        assert!(operations.listen(running.id()).is_some());
        assert!(operations.listen("op-2").is_none());
        assert!(operations.listen("op-301").is_some());
    }
}
