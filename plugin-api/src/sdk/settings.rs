//! Live settings, which an operator changes while the app runs, and messages to it.

use std::{
    collections::BTreeMap,
    future::{Future, pending, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{self, Poll, Waker},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{runtime::Handle, sync::watch};

use super::{
    error::Error,
    jobs::poll_work,
    log,
    work::{Kind, Works},
    worker::Stop,
};
use crate::abi::{
    export::panic_message,
    work::{INBOX, REPLY, SETTINGS, WorkCall, WorkHandle},
};

/// Why a message is not answered.
const NO_MESSAGES: &str = "this version takes no messages (on_message)";

type Values = BTreeMap<String, Value>;

/// What refuses a setting.
type Check = dyn Fn(&Setting<'_>) -> Result<(), Error> + Send + Sync;

/// What a message is answered with, as JSON.
type Answering = Pin<Box<dyn Future<Output = Result<Value, Error>> + Send>>;

/// What answers messages.
type OnMessage = dyn Fn(Message) -> Answering + Send + Sync;

/// The live settings of the app: see [`Context::settings`](crate::Context::settings). Cheap to
/// clone; every clone is the same.
#[derive(Clone)]
pub struct Settings(Arc<Inner>);

struct Inner {
    app: String,
    values: watch::Sender<Arc<Values>>,
    check: Mutex<Option<Arc<Check>>>,
    on_message: Mutex<Option<Arc<OnMessage>>>,
    closed: watch::Sender<bool>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Settings")
    }
}

/// A setting that is to be changed, or is there already: see [`Settings::validate`].
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    app: &'a str,
    key: &'a str,
    value: Option<&'a Value>,
}

/// Waits for changes of the settings: see [`Settings::subscribe`].
#[derive(Clone, Debug)]
pub struct SettingsChanges(watch::Receiver<Arc<Values>>);

/// What an operator sent by `handover send`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message(String);

impl Message {
    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The text, read as JSON.
    ///
    /// # Errors
    /// When it is none, or not of the shape of `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_str(&self.0)
            .map_err(|error| Error::msg(format_args!("the message does not fit: {error}")))
    }
}

impl Setting<'_> {
    /// The key.
    pub fn key(&self) -> &str {
        self.key
    }

    /// The value; none where the setting is to be taken away.
    ///
    /// # Errors
    /// When it is not of the shape of `T`: what was expected.
    pub fn value<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        fit(self.app, self.key, self.value)
    }
}

fn fit<T: DeserializeOwned>(
    app: &str,
    key: &str,
    value: Option<&Value>,
) -> Result<Option<T>, Error> {
    let read = value.map(T::deserialize).transpose();
    read.map_err(|error| {
        Error::msg(format_args!(
            "the setting `{key}` does not fit ({error}): `handover set {app} {key} VALUE` changes it"
        ))
    })
}

impl SettingsChanges {
    /// Waits until a setting is another one than when this was called last, or than when it was
    /// subscribed to. Never ends where nobody can change one.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            pending().await
        }
    }
}

impl Settings {
    /// Those of the app, as the host has them; without a host none. The host asks by way of a task
    /// on `runtime` until [`close`](Self::close).
    pub(super) fn open(
        app: &str,
        work: Option<WorkHandle>,
        works: &Arc<Works>,
        runtime: &Handle,
    ) -> Self {
        let inner = Arc::new(Inner {
            app: app.to_owned(),
            values: watch::Sender::new(Arc::default()),
            check: Mutex::default(),
            on_message: Mutex::default(),
            closed: watch::Sender::new(false),
        });
        if let Some(work) = work {
            // Before the values are read: no change between both is missed.
            let inbox = work.begin(INBOX, "{}", &[], None);
            let mut read = work.begin(SETTINGS, "{}", &[], None);
            let cx = task::Context::from_waker(Waker::noop());
            // A host in memory has none.
            if let Poll::Ready(Ok((text, _))) = poll_work(&mut read, &cx)
                && let Ok(Question { settings, .. }) = serde_json::from_str(&text)
            {
                inner.values.send_replace(Arc::new(settings));
            }
            let stop = Stop::new(inner.closed.subscribe());
            let (asked, works) = (Arc::clone(&inner), Arc::clone(works));
            runtime.spawn(asked.answer_all(inbox, work, works, runtime.clone(), stop));
        }
        Self(inner)
    }

    /// Nothing is asked any more.
    pub(super) fn close(&self) {
        self.0.closed.send_replace(true);
    }

    /// Drops what the app has declared: it may hold the context that holds this.
    pub(super) fn forget(&self) {
        *self.0.check.lock() = None;
        *self.0.on_message.lock() = None;
    }

    /// The value of a setting; none where nobody has set it.
    ///
    /// # Errors
    /// When it is not of the shape of `T`: what was expected.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        let values = Arc::clone(&self.0.values.borrow());
        fit(&self.0.app, key, values.get(key))
    }

    /// The keys of what is set.
    pub fn keys(&self) -> Vec<String> {
        self.0.values.borrow().keys().cloned().collect()
    }

    /// Begins to wait for changes.
    ///
    /// ```ignore
    /// let mut changes = cx.settings().subscribe();
    /// cx.worker("theme", async move |stop| {
    ///     while stop.or(changes.changed()).await.is_some() {
    ///         reload(settings.get("theme"));
    ///     }
    /// });
    /// ```
    pub fn subscribe(&self) -> SettingsChanges {
        SettingsChanges(self.0.values.subscribe())
    }

    /// Has `check` look at each setting before it is changed; to be called in the constructor. What
    /// it refuses is not changed, and its error is what the operator reads. It must not block.
    ///
    /// ```ignore
    /// cx.settings().validate(|setting| match setting.key() {
    ///     "rate" => setting.value::<u32>().map(drop),
    ///     key => Err(Error::msg(format_args!("there is no setting `{key}`"))),
    /// })?;
    /// ```
    ///
    /// # Errors
    /// When what is set already is refused, so a version that could not run with it can say so.
    pub fn validate<F, E>(&self, check: F) -> Result<(), Error>
    where
        F: Fn(&Setting<'_>) -> Result<(), E> + Send + Sync + 'static,
        E: Into<Error>,
    {
        let check: Arc<Check> = Arc::new(move |setting| check(setting).map_err(Into::into));
        *self.0.check.lock() = Some(Arc::clone(&check));
        let values = Arc::clone(&self.0.values.borrow());
        for (key, value) in &*values {
            check(&Setting {
                app: &self.0.app,
                key,
                value: Some(value),
            })?;
        }
        Ok(())
    }

    /// Changes a setting as the host does it.
    #[cfg(feature = "testing")]
    pub(super) fn set(&self, key: &str, value: Value) -> Result<(), Error> {
        self.0.check(key, Some(&value)).map_err(Error::msg)?;
        let mut values = Values::clone(&self.0.values.borrow());
        values.insert(key.to_owned(), value);
        self.0.values.send_replace(Arc::new(values));
        Ok(())
    }

    /// Answers a message as for the host.
    #[cfg(feature = "testing")]
    pub(super) async fn answer(&self, text: String) -> Result<Value, Error> {
        let handler = self.0.on_message.lock().clone();
        match handler {
            Some(handler) => handler(Message(text)).await,
            None => Err(Error::msg(NO_MESSAGES)),
        }
    }

    /// Has `handler` answer messages.
    pub(super) fn on_message<F, W, R, E>(&self, handler: F)
    where
        F: Fn(Message) -> W + Send + Sync + 'static,
        W: Future<Output = Result<R, E>> + Send + 'static,
        R: Serialize,
        E: Into<Error>,
    {
        let handler: Arc<OnMessage> = Arc::new(move |message| {
            let answer = handler(message);
            Box::pin(async move {
                let answer = answer.await.map_err(Into::into)?;
                Ok(serde_json::to_value(answer)?)
            })
        });
        *self.0.on_message.lock() = Some(handler);
    }
}

/// What the host asks.
#[derive(Deserialize)]
struct Question {
    #[serde(default)]
    id: u64,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    settings: Values,
    #[serde(default)]
    key: String,
    #[serde(default)]
    value: Option<Value>,
    #[serde(default)]
    text: String,
}

/// The answer to a question. Dropped without one, it says that there will be none.
struct Reply {
    work: WorkHandle,
    id: u64,
    is_given: bool,
}

impl Reply {
    fn give(mut self, answer: Result<Value, String>) {
        self.is_given = true;
        self.send(answer);
    }

    fn send(&self, answer: Result<Value, String>) {
        let text = match answer {
            Ok(answer) => serde_json::json!({ "id": self.id, "answer": answer }),
            Err(error) => serde_json::json!({ "id": self.id, "error": error }),
        };
        // It has happened when this returns.
        drop(self.work.begin(REPLY, &text.to_string(), &[], None));
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.is_given {
            self.send(Err(
                "it was not answered: its handler panicked or was cancelled".to_owned(),
            ));
        }
    }
}

impl Inner {
    async fn answer_all(
        self: Arc<Self>,
        mut inbox: WorkCall,
        work: WorkHandle,
        works: Arc<Works>,
        runtime: Handle,
        stop: Stop,
    ) {
        while let Some(Ok((text, _))) = stop.or(poll_fn(|cx| poll_work(&mut inbox, cx))).await {
            let Ok(question) = serde_json::from_str::<Question>(&text) else {
                log::error("the host asked something that is not understood");
                continue;
            };
            let reply = Reply {
                work,
                id: question.id,
                is_given: false,
            };
            match question.kind.as_str() {
                "check" => reply.give(self.check(&question.key, question.value.as_ref())),
                "settings" => {
                    self.values.send_replace(Arc::new(question.settings));
                    reply.give(Ok(Value::Null));
                }
                "message" => {
                    let handler = self.on_message.lock().clone();
                    let Some(handler) = handler else {
                        reply.give(Err(NO_MESSAGES.to_owned()));
                        continue;
                    };
                    let message = Message(question.text);
                    let answers = async move {
                        let answer = handler(message).await;
                        reply.give(answer.map_err(|error| error.to_string()));
                    };
                    works.spawn(&runtime, "message", "", Kind::Task, answers);
                }
                kind => reply.give(Err(format!("this version does not know what `{kind}` is"))),
            }
        }
    }

    fn check(&self, key: &str, value: Option<&Value>) -> Result<Value, String> {
        let Some(check) = self.check.lock().clone() else {
            return Ok(Value::Null);
        };
        let setting = Setting {
            app: &self.app,
            key,
            value,
        };
        match catch_unwind(AssertUnwindSafe(|| check(&setting))) {
            Ok(checked) => checked
                .map(|()| Value::Null)
                .map_err(|error| error.to_string()),
            Err(panic) => Err(format!("its check panicked: {}", panic_message(&*panic))),
        }
    }
}
