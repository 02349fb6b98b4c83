//! What the host holds of one app while it runs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use handover_api::{AppName, GenerationId, GenerationState, Label, OperationResult, Outcome};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    apps::{
        counters::Counters,
        serving::{Labelled, Serving},
    },
    artifact::{Artifact, Sha256},
    assets::AppAssets,
    config,
    dispatch::{Durations, Limits, Pause},
    generation::{Active, Counts, Generation, Spec},
    ledger::RetainReasons,
    operations::queue::OperationQueue,
    records::app_record::Saved,
};

/// One app.
#[derive(Debug)]
pub(crate) struct App {
    /// Its name.
    pub(crate) name: AppName,
    /// Its section of the configuration, and what it may take by that, if that is limited.
    tuning: Mutex<(Arc<config::App>, Option<Arc<Limits>>)>,
    /// What is remembered of it over restarts.
    pub(crate) saved: Arc<Saved>,
    /// The files that the host serves for it.
    pub(crate) assets: Arc<AppAssets>,
    /// What is counted of it for the metrics.
    pub(crate) counters: Counters,
    /// How long its requests took, where that is counted.
    pub(crate) durations: Arc<Durations>,
    /// Which operation may change what is live.
    pub(crate) queue: Arc<OperationQueue>,
    running: Mutex<Running>,
    /// What holds its requests back, while it is paused.
    pause: Mutex<Option<Arc<Pause>>>,
    /// What holds its requests back during a handoff.
    hold: Mutex<Option<Arc<Pause>>>,
    /// The dropped artifact that waits because too many generations drain, so that it is said once.
    waiting: Mutex<Option<Sha256>>,
    /// The dropped artifact that the machine was too short for, until when it waits for that, and
    /// for how long.
    short: Mutex<Option<(Sha256, Instant, Duration)>>,
}

/// How long a dropped artifact waits that the machine was too short for: twice as long each time,
/// up to the longest.
const SHORT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Its generations.
#[derive(Debug, Default)]
pub(crate) struct Running {
    /// What answers new requests.
    pub(crate) serving: Serving,
    /// What was replaced and is not unloaded, oldest first.
    pub(crate) old: Vec<Old>,
    /// What did not start and could not be unmapped, oldest first.
    pub(crate) failed_starts: Vec<FailedStart>,
    /// What was counted on those that are unloaded.
    pub(crate) retired: RetiredTotals,
}

/// What was counted on generations that are unloaded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RetiredTotals {
    /// Requests they were given.
    pub(crate) requests: u64,
    /// Panics caught in them.
    pub(crate) panics: u64,
    /// Calls that held a worker for too long.
    pub(crate) stalls: u64,
    /// Their answers with a status of 5xx.
    pub(crate) server_errors: u64,
}

/// A generation that did not start, and whose library stays mapped.
#[derive(Clone, Debug)]
pub(crate) struct FailedStart {
    /// Who it would have been.
    pub(crate) spec: Spec,
    /// When it was loaded.
    pub(crate) loaded_at: Instant,
    /// What keeps its library mapped.
    pub(crate) held: RetainReasons,
}

/// A generation that answers new requests.
#[derive(Debug)]
pub(crate) struct Live {
    /// The generation.
    pub(crate) active: Active,
    /// Its artifact, held so that its file stays in the store.
    pub(crate) artifact: Artifact,
    /// The file of the drop folder that it came from.
    pub(crate) source: Option<String>,
    /// Whether its app was told that it is live, at which its workers begin.
    pub(crate) announced: bool,
}

/// A replaced generation.
#[derive(Clone, Debug)]
pub(crate) struct Old {
    /// The generation.
    pub(crate) generation: Arc<Generation>,
    /// Its artifact, held so that its file stays in the store while it is mapped.
    #[expect(
        dead_code,
        reason = "held for its lease: rollback finds it in the store"
    )]
    pub(crate) artifact: Artifact,
    /// Asks the task that watches its drain to end it now, jobs included.
    pub(crate) end: Arc<Notify>,
    /// What keeps its library mapped.
    pub(crate) held: Option<RetainReasons>,
}

/// What was just replaced, or is to leave without a successor.
#[derive(Debug)]
pub(crate) struct Replaced {
    /// The generation.
    pub(crate) active: Active,
    /// [`Old::end`]
    pub(crate) end: Arc<Notify>,
}

impl Running {
    /// Puts `next` in the place of what is live, which is listed among the old ones from this
    /// moment on: nobody who looks misses it.
    pub(crate) fn replace(&mut self, next: Option<Live>) -> Option<Replaced> {
        let live = self.serving.replace(next)?;
        Some(self.leave(live))
    }

    /// Takes what has `label` out of what answers, or only if it `is_it`. It is listed among the
    /// old ones from this moment on. The caller publishes the routes and has it drained.
    pub(crate) fn unlabel(
        &mut self,
        label: &Label,
        is_it: impl Fn(&Labelled) -> bool,
    ) -> Option<Replaced> {
        let taken = self
            .serving
            .take(|labelled| labelled.label == *label && is_it(labelled))?;
        Some(self.leave(taken.live))
    }

    /// Takes the generation `id`, which stayed for its tenants, out of what answers: see
    /// [`Running::unlabel`].
    pub(crate) fn end_stay(&mut self, id: GenerationId) -> Option<Replaced> {
        let live = self.serving.take_staying(Some(id))?;
        Some(self.leave(live))
    }

    /// Takes all that answers out of what does: see [`Running::unlabel`].
    pub(crate) fn end_all(&mut self) -> Vec<Replaced> {
        let mut all: Vec<_> = self.replace(None).into_iter().collect();
        while let Some(taken) = self.serving.take(|_| true) {
            all.push(self.leave(taken.live));
        }
        while let Some(live) = self.serving.take_staying(None) {
            all.push(self.leave(live));
        }
        all
    }

    fn leave(&mut self, live: Live) -> Replaced {
        let end = Arc::new(Notify::new());
        self.old.push(Old {
            generation: Arc::clone(live.active.generation()),
            artifact: live.artifact,
            end: Arc::clone(&end),
            held: None,
        });
        Replaced {
            active: live.active,
            end,
        }
    }

    /// The generations, oldest first, each with what keeps its library mapped.
    pub(crate) fn generations(&self) -> Vec<(Arc<Generation>, Option<RetainReasons>)> {
        let old = self
            .old
            .iter()
            .map(|old| (Arc::clone(&old.generation), old.held.clone()));
        let live = self
            .serving
            .members()
            .map(|live| (Arc::clone(live.active.generation()), None));
        old.chain(live).collect()
    }
}

impl RetiredTotals {
    /// Adds what was counted on a generation.
    pub(crate) fn add(&mut self, counts: &Counts) {
        self.requests += counts.requests;
        self.panics += counts.panics;
        self.stalls += counts.stalls;
        self.server_errors += counts.server_errors;
    }
}

impl App {
    /// An app that serves nothing yet.
    pub(crate) fn new(
        name: AppName,
        settings: config::App,
        saved: Arc<Saved>,
        assets: Arc<AppAssets>,
    ) -> Self {
        let limits = Limits::new(&name, &settings);
        Self {
            durations: Arc::new(Durations::new(Some(name.clone()))),
            name,
            tuning: Mutex::new((Arc::new(settings), limits)),
            saved,
            assets,
            counters: Counters::default(),
            queue: OperationQueue::new(),
            running: Mutex::default(),
            pause: Mutex::default(),
            hold: Mutex::default(),
            waiting: Mutex::default(),
            short: Mutex::default(),
        }
    }

    /// Its section of the configuration, as it is now.
    pub(crate) fn settings(&self) -> Arc<config::App> {
        Arc::clone(&self.tuning.lock().0)
    }

    /// What it may take, if that is limited, or if its requests wait because it is paused.
    pub(crate) fn limits(&self) -> Option<Arc<Limits>> {
        let limits = self.tuning.lock().1.clone();
        match self.paused().or_else(|| self.held()) {
            None => limits,
            Some(pause) => Some(Limits::paused(limits.as_ref(), &self.name, pause)),
        }
    }

    /// Returns what holds its requests back.
    pub(crate) fn paused(&self) -> Option<Arc<Pause>> {
        self.pause.lock().clone()
    }

    /// Returns what holds its requests back during a handoff.
    pub(crate) fn held(&self) -> Option<Arc<Pause>> {
        self.hold.lock().clone()
    }

    /// Has its requests held back during a handoff, or not any more. The caller publishes the
    /// routes, and releases what held them before.
    pub(crate) fn hold(&self, hold: Option<Arc<Pause>>) {
        *self.hold.lock() = hold;
    }

    /// Has its requests held back, or not any more. The caller publishes the routes, and releases
    /// what is returned: what held them before.
    pub(crate) fn pause(&self, pause: Option<Arc<Pause>>) -> Option<Arc<Pause>> {
        std::mem::replace(&mut *self.pause.lock(), pause)
    }

    /// Goes by `settings` from now on. The caller publishes the routes. To be called within the
    /// host's runtime.
    pub(crate) fn retune(&self, settings: config::App) {
        let mut tuning = self.tuning.lock();
        let (old, before) = &*tuning;
        let limits = Limits::retuned(before.as_ref(), &self.name, old, &settings);
        self.assets.retune(settings.assets());
        *tuning = (Arc::new(settings), limits);
    }

    /// Looks at the generations, or changes them. Not for calls into them.
    pub(crate) fn running<R>(&self, look: impl FnOnce(&mut Running) -> R) -> R {
        look(&mut self.running.lock())
    }

    /// Whether there is more of it than the memory of deploys that failed.
    pub(crate) fn has_anything(&self) -> bool {
        let runs = self.running(|running| {
            !running.serving.is_empty()
                || !running.old.is_empty()
                || !running.failed_starts.is_empty()
        });
        runs || self.queue.under_way(false).is_some()
            || self
                .saved
                .read(|record| record.head.is_some() || record.staged.is_some())
    }

    /// Who is live.
    pub(crate) fn live(&self) -> Option<Spec> {
        self.running(|running| {
            let generation = running.serving.generation();
            generation.map(|generation| generation.spec().clone())
        })
    }

    /// The replaced generations that still have work, oldest first.
    pub(crate) fn draining(&self) -> Vec<Old> {
        let old = self.running(|running| running.old.clone());
        old.into_iter()
            .filter(|old| {
                old.generation.state() == GenerationState::Draining
                    && old.generation.counts().in_flight > 0
            })
            .collect()
    }

    /// Whether a deploy would leave more replaced generations draining than the app allows.
    pub(crate) fn is_full(&self) -> bool {
        let staying = self.running(|running| running.serving.staying().len());
        self.draining().len() + staying >= self.settings().max_old_generations.max(1)
    }

    /// Sets what keeps the library of a generation mapped that is not live. Whether that is news.
    pub(crate) fn retained(&self, id: GenerationId, held: &RetainReasons) -> bool {
        self.running(|running| {
            if let Some(failed_starts) = running
                .failed_starts
                .iter_mut()
                .find(|one| one.spec.id == id)
            {
                return std::mem::replace(&mut failed_starts.held, held.clone()) != *held;
            }
            let old = running.old.iter_mut();
            let mut old = old.filter(|old| old.generation.spec().id == id);
            old.next()
                .is_some_and(|old| old.held.replace(held.clone()).as_ref() != Some(held))
        })
    }

    /// Forgets a generation that is not live: its library is unmapped.
    pub(crate) fn unloaded(&self, id: GenerationId) {
        self.running(|running| {
            running.failed_starts.retain(|one| one.spec.id != id);
            let Running { old, retired, .. } = running;
            old.retain(|old| {
                let stays = old.generation.spec().id != id;
                if !stays {
                    retired.add(&old.generation.counts());
                }
                stays
            });
        });
    }

    /// The machine was too short of something to deploy `artifact` from the drop folder.
    pub(crate) fn is_short_for(&self, artifact: Sha256) {
        let mut short = self.short.lock();
        let pause = match *short {
            Some((known, _, pause)) if known == artifact => (pause * 2).min(SHORT.1),
            _ => SHORT.0,
        };
        *short = Some((artifact, Instant::now() + pause, pause));
    }

    /// Whether `artifact` still waits for a machine that was too short for it.
    pub(crate) fn waits_for_machine(&self, artifact: Sha256) -> bool {
        let short = *self.short.lock();
        short.is_some_and(|(known, until, _)| known == artifact && Instant::now() < until)
    }

    /// Whether it is news that `artifact` has to wait.
    pub(crate) fn waits(&self, artifact: Option<Sha256>) -> bool {
        let mut waiting = self.waiting.lock();
        let news = *waiting != artifact;
        *waiting = artifact;
        news
    }
}

/// A result about `app` as it is now.
pub(crate) fn result(outcome: Outcome, app: &App, message: impl Into<String>) -> OperationResult {
    let live = app.live();
    OperationResult {
        outcome,
        message: message.into(),
        app: Some(app.name.clone()),
        generation: live.as_ref().map(|spec| spec.id),
        version: live.as_ref().map(|spec| spec.version.clone()),
        artifact: live.map(|spec| spec.artifact.to_string()),
        notes: Vec::new(),
        ended_streams: 0,
    }
}
