//! What the host asks a generation, and what that answers: whether a setting is a good one, that it
//! has changed, messages of the operator.

use std::{
    collections::{BTreeMap, VecDeque},
    task::{Poll, Waker},
};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::{runtime::Handle, sync::oneshot};

use crate::wakers::{Parked, WakerCount, wake_all};

/// How many questions wait for a generation that does not look.
const WAITING: usize = 1000;

/// What a generation answered: JSON, or why not.
pub(crate) type Reply = Result<Value, String>;

/// The questions to one generation, which opens this when it takes any.
#[derive(Debug)]
pub(crate) struct Inbox {
    runtime: Handle,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    is_open: bool,
    has_ended: bool,
    last: u64,
    questions: VecDeque<String>,
    /// Who waits for which answer.
    asked: BTreeMap<u64, oneshot::Sender<Reply>>,
    parked: Option<Parked>,
}

impl Inbox {
    /// One that is closed. To be called within the host's runtime.
    pub(crate) fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            state: Mutex::default(),
        }
    }

    /// Its generation takes questions from now on.
    pub(super) fn open(&self) {
        self.state.lock().is_open = true;
    }

    /// It takes none any more: those that are open get no answer.
    pub(super) fn close(&self) {
        let ended = State {
            has_ended: true,
            ..State::default()
        };
        let closed = std::mem::replace(&mut *self.state.lock(), ended);
        // Wakers and those who wait are dropped without the lock.
        drop(closed);
    }

    /// Returns whether its generation takes no questions any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.state.lock().has_ended
    }

    /// Asks `question`, a JSON object. None where its generation takes no questions.
    pub(crate) fn ask(&self, mut question: Value) -> Option<oneshot::Receiver<Reply>> {
        let (gives, answer) = oneshot::channel();
        let parked = {
            let mut state = self.state.lock();
            if !state.is_open || state.questions.len() >= WAITING {
                return None;
            }
            state.last += 1;
            let id = state.last;
            question["id"] = id.into();
            state.questions.push_back(question.to_string());
            state.asked.insert(id, gives);
            state.parked.take()
        };
        wake_all(parked.into_iter().collect(), &self.runtime);
        Some(answer)
    }

    /// Takes the answer to a question.
    pub(super) fn reply(&self, id: u64, reply: Reply) {
        let asked = self.state.lock().asked.remove(&id);
        if let Some(asked) = asked {
            // Nobody waits any more, if it fails.
            let _ = asked.send(reply);
        }
    }

    /// The next question. Else `waker` is woken when there is one, and is counted by `count`.
    pub(super) fn poll_next(&self, waker: &Waker, count: &WakerCount) -> Poll<String> {
        // What was there before is dropped without the lock.
        let _before = {
            let mut state = self.state.lock();
            if let Some(question) = state.questions.pop_front() {
                return Poll::Ready(question);
            }
            match &state.parked {
                Some(parked) if parked.will_wake(waker) => None,
                _ => state.parked.replace(count.park(waker.clone())),
            }
        };
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn questions_come_in_order_and_each_has_its_answer() {
        let inbox = Inbox::new(Handle::current());
        let wakers = WakerCount::default();
        let next = || inbox.poll_next(Waker::noop(), &wakers);
        assert!(inbox.ask(json!({})).is_none());
        inbox.open();
        assert!(next().is_pending());
        assert_eq!(wakers.get(), 1);
        let first = inbox.ask(json!({"kind": "a"})).unwrap();
        let second = inbox.ask(json!({"kind": "b"})).unwrap();
        assert_eq!(wakers.get(), 0);
        let Poll::Ready(question) = next() else {
            panic!("there are two")
        };
        assert_eq!(question, r#"{"id":1,"kind":"a"}"#);
        inbox.reply(2, Err("no".to_owned()));
        inbox.reply(1, Ok(json!(7)));
        inbox.reply(9, Ok(json!(7)));
        assert_eq!(first.await.unwrap(), Ok(json!(7)));
        assert_eq!(second.await.unwrap(), Err("no".to_owned()));
        let third = inbox.ask(json!({})).unwrap();
        assert!(!inbox.has_ended());
        inbox.close();
        assert!(inbox.has_ended());
        third.await.unwrap_err();
        assert!(inbox.ask(json!({})).is_none());
    }
}
