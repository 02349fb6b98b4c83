//! What the host holds of one app while it runs.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::saved::Saved;
use crate::{
    artifact::{Artifact, Sha256},
    config,
    dispatch::Limits,
    generation::{Active, Generation, Spec, State},
    names::{AppName, GenerationId},
};

/// One app.
#[derive(Debug)]
pub(super) struct App {
    /// Its name.
    pub(super) name: AppName,
    /// Its section of the configuration.
    pub(super) settings: config::App,
    /// What it may take, if that is limited.
    pub(super) limits: Option<Arc<Limits>>,
    /// What is remembered of it over restarts.
    pub(super) saved: Arc<Saved>,
    /// The id of the operation that may change what is live.
    busy: Mutex<Option<String>>,
    running: Mutex<Running>,
    /// The dropped artifact that waits because too many generations drain, so that it is said once.
    waiting: Mutex<Option<Sha256>>,
}

/// Its generations.
#[derive(Debug, Default)]
pub(super) struct Running {
    /// What answers new requests.
    pub(super) live: Option<Live>,
    /// What was replaced and is not unloaded, oldest first.
    pub(super) old: Vec<Old>,
}

/// The generation that answers new requests.
#[derive(Debug)]
pub(super) struct Live {
    /// The generation.
    pub(super) active: Active,
    /// Its artifact, held so that its file stays in the store.
    pub(super) artifact: Artifact,
    /// The file of the drop folder that it came from.
    pub(super) source: Option<String>,
}

/// A replaced generation.
#[derive(Clone, Debug)]
pub(super) struct Old {
    /// The generation.
    pub(super) generation: Arc<Generation>,
    /// Its artifact, held so that its file stays in the store while it is mapped.
    #[expect(
        dead_code,
        reason = "held for its lease: rollback finds it in the store"
    )]
    pub(super) artifact: Artifact,
    /// Asks the task that watches its drain to end it now, jobs included.
    pub(super) end: Arc<Notify>,
    /// Why its library stays mapped.
    pub(super) retained_because: Option<String>,
}

/// The right to change what is live. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Busy(Arc<App>);

impl Drop for Busy {
    fn drop(&mut self) {
        *self.0.busy.lock() = None;
    }
}

impl App {
    /// An app that serves nothing yet.
    pub(super) fn new(name: AppName, settings: config::App, saved: Arc<Saved>) -> Self {
        Self {
            limits: Limits::new(&name, &settings),
            name,
            settings,
            saved,
            busy: Mutex::default(),
            running: Mutex::default(),
            waiting: Mutex::default(),
        }
    }

    /// Takes the right to change what is live for `operation`, or gives the id of the operation that has it.
    pub(super) fn claim(self: &Arc<Self>, operation: &str) -> Result<Busy, String> {
        let mut busy = self.busy.lock();
        match &*busy {
            Some(other) => Err(other.clone()),
            None => {
                *busy = Some(operation.to_owned());
                Ok(Busy(Arc::clone(self)))
            }
        }
    }

    /// The operation that is under way.
    pub(super) fn under_way(&self) -> Option<String> {
        self.busy.lock().clone()
    }

    /// Looks at the generations, or changes them. Not for calls into them.
    pub(super) fn running<R>(&self, look: impl FnOnce(&mut Running) -> R) -> R {
        look(&mut self.running.lock())
    }

    /// Who is live.
    pub(super) fn live(&self) -> Option<Spec> {
        self.running(|running| {
            running
                .live
                .as_ref()
                .map(|live| live.active.generation().spec().clone())
        })
    }

    /// The replaced generations that still have work, oldest first.
    pub(super) fn draining(&self) -> Vec<Old> {
        let old = self.running(|running| running.old.clone());
        old.into_iter()
            .filter(|old| {
                old.generation.state() == State::Draining && old.generation.counts().in_flight > 0
            })
            .collect()
    }

    /// Whether a deploy would leave more replaced generations draining than the app allows.
    pub(super) fn is_full(&self) -> bool {
        self.draining().len() >= self.settings.max_old_generations.max(1)
    }

    /// Sets why the library of a replaced generation stays mapped. Whether that is news.
    pub(super) fn retained(&self, id: GenerationId, because: &str) -> bool {
        self.running(|running| {
            let Some(old) = running
                .old
                .iter_mut()
                .find(|old| old.generation.spec().id == id)
            else {
                return false;
            };
            let news = old.retained_because.as_deref() != Some(because);
            old.retained_because = Some(because.to_owned());
            news
        })
    }

    /// Forgets a replaced generation: its library is unmapped.
    pub(super) fn unloaded(&self, id: GenerationId) {
        self.running(|running| running.old.retain(|old| old.generation.spec().id != id));
    }

    /// Whether it is news that `artifact` has to wait.
    pub(super) fn waits(&self, artifact: Option<Sha256>) -> bool {
        let mut waiting = self.waiting.lock();
        let news = *waiting != artifact;
        *waiting = artifact;
        news
    }
}
