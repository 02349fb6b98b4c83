//! `Started → Active → Draining → Unloaded | Retained`: each state is a type, and each transition
//! takes the old one by value.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use handover_plugin::abi::{
    host::Pair,
    import::AppHandle,
    lent::Size,
    root::{MoreSettings, RootRef, Settings},
    version::ABI,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use handover_api::GenerationState;

use super::{
    lifecycle::{self, Late, Unfinished},
    services::GenerationServices,
    shared::{Generation, Shared},
    spec::{Spec, StartError},
};
use crate::{
    artifact::Artifact,
    assets,
    clock::millis,
    human,
    ledger::{self, AccountId, Leftovers, Look, RetainReason, RetainReasons},
    loader::{self, Layouts, Library, LoadError, Running},
    state::Session,
    work::WorkSession,
};

/// How long the threads of a plugin's runtime may take to end. What blocks longer shows as a thread
/// that retains the library.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// How long the workers of the host may take to run what a plugin registered on them.
const SETTLE_DEADLINE: Duration = Duration::from_secs(1);
/// The same when it is tried again: what was in the way is known to be gone, or it is tried again
/// later.
const SETTLE_AGAIN_DEADLINE: Duration = Duration::from_millis(100);
/// How long the finalisers of a library may take, with its turn with the dynamic linker, and that
/// to let it go.
const UNLOAD_DEADLINE: Duration = loader::LONGEST_LINKER_WAIT.saturating_mul(2);
/// How long an app may take to hear that it is to drain, or that its deadline passed.
const HOOK_DEADLINE: Duration = Duration::from_secs(1);
/// How often what is retained is tried again at first, and at last.
const AGAIN: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(60));

/// Started: its app is built, nobody asks it yet.
#[derive(Debug)]
pub(crate) struct Started(Loaded, Mutex<Hooks>);
/// Active: new requests go to it.
#[derive(Debug)]
pub(crate) struct Active(Loaded, Mutex<Hooks>);
/// Draining: it finishes what it has.
#[derive(Debug)]
pub(crate) struct Draining {
    loaded: Loaded,
    hooks: Mutex<Hooks>,
}

/// The calls that tell an app of its end, each on a thread of its own, as code of the plugin may
/// run in them. They give how much work they cancelled.
#[derive(Debug, Default)]
struct Hooks(Vec<Late<u64>>);

/// A generation and its library.
#[derive(Debug)]
struct Loaded {
    generation: Arc<Generation>,
    library: Library,
}

/// How a generation ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Its library is unmapped, which was verified; what it left behind.
    Unloaded(Leftovers),
    /// Its library could not be proven quiet and stays mapped.
    Retained(Box<Retained>),
}

/// A retired generation whose library stays mapped.
#[derive(Debug)]
pub(crate) struct Retained {
    /// None when it was never started to the end.
    generation: Option<Arc<Generation>>,
    place: Place,
    known: Known,
}

/// What is known of a library that stays mapped.
#[derive(Debug)]
struct Known {
    held: RetainReasons,
    /// Bytes of its heap, and descriptors, when that was looked at last.
    resources: (Option<u64>, usize),
    /// What there was when it was tried last.
    seen: Option<Look>,
    /// When it is tried again, even if nothing that can be seen has changed, and how long that is
    /// after the last time.
    again: (Instant, Duration),
}

/// Where a library is that stays mapped, and who is inside of it. The ledger does not see threads
/// of the host, so nothing is unmapped before they have come back.
#[derive(Debug)]
enum Place {
    /// Nobody is inside.
    Here(Library),
    /// It stays for the life of the process. Nobody is inside that is known of.
    ForGood(Library),
    /// A thread maps it.
    Mapping(Late<Result<Library, LoadError>>),
    /// A thread runs its initialisers, or the constructor of its app.
    Constructor(Library, Late<Result<AppHandle<GenerationServices>, String>>),
    /// Threads tell its app of the end.
    Hooks(Library, Hooks),
    /// A thread runs the destructors of its app.
    Destructors(Library, Late<()>),
    /// A thread runs its finalisers, or unmaps it.
    Unmapping(Late<Option<Result<Leftovers, (Library, RetainReasons)>>>),
    /// Where a thread is that was inside of it nobody knows.
    Unknown,
}

impl Retained {
    fn new(generation: Option<Arc<Generation>>, place: Place, held: RetainReasons) -> Self {
        let (resources, seen) = match &place {
            Place::Here(library) | Place::ForGood(library) | Place::Hooks(library, _) => {
                (resources_of(library), Some(library.account().look()))
            }
            Place::Constructor(library, _) | Place::Destructors(library, _) => {
                (resources_of(library), None)
            }
            Place::Mapping(_) | Place::Unmapping(_) | Place::Unknown => ((None, 0), None),
        };
        let again = (Instant::now() + AGAIN.0, AGAIN.0);
        let known = Known {
            held,
            resources,
            seen,
            again,
        };
        Self {
            generation,
            place,
            known,
        }
    }
}

/// Bytes of the heap of a library, none when it was built without one of its own, and how many
/// descriptors it has open.
fn resources_of(library: &Library) -> (Option<u64>, usize) {
    (library.heap_bytes(), library.account().descriptors())
}

/// Maps the library of `artifact`, which takes at most `deadline` and a turn with the dynamic
/// linker.
///
/// # Errors
/// The reason, as the operator should read it.
pub(crate) async fn load(artifact: Artifact, deadline: Duration) -> Result<Library, StartError> {
    let deadline = deadline.saturating_add(loader::LONGEST_LINKER_WAIT);
    let what = format!("{} {}", artifact.manifest.app, artifact.manifest.version);
    let mapped = lifecycle::run("map", deadline, move || {
        Library::map(&artifact, Layouts::Trust)
    });
    let reason = match mapped.await {
        Ok(Ok(library)) => return Ok(library),
        Ok(Err(error)) => error.to_string(),
        Err(Unfinished::Late(late)) => {
            let sentence = format!(
                "the dynamic linker has not come back within {} from mapping {what}: an initialiser of a library that it brings along, or a \
                 resolver of an ifunc, blocks",
                humantime::format_duration(deadline)
            );
            return Err(StartError {
                reason: format!(
                    "{sentence}; nothing else can be loaded or unloaded before it does"
                ),
                refused: Vec::new(),
                retained: Some(Box::new(Retained::new(
                    None,
                    Place::Mapping(late),
                    RetainReasons::by(RetainReason::Linker, sentence),
                ))),
            });
        }
        Err(Unfinished::NoThread(error)) => format!("no thread could be started: {error}"),
        Err(Unfinished::Panicked) => {
            "the host panicked while it mapped the library: this is a fault of handover".to_owned()
        }
    };
    Err(StartError {
        reason,
        refused: Vec::new(),
        retained: None,
    })
}

/// Runs the initialisers of `library` and the constructor of the app in it, on a thread of its own.
/// When it fails, the library is unmapped again, or kept where that would be unsafe.
///
/// # Errors
/// The reason, as the operator should read it.
pub(crate) async fn start(mut library: Library, spec: Spec) -> Result<Started, StartError> {
    let deadline = spec.start_deadline;
    let late_one = match spec.migration {
        Some(_) => "its migration did not end within",
        None => "its constructor did not end within",
    };
    let constructing = spec.clone();
    let state = spec.state.clone().map(Session::new);
    let work = spec.work.clone();
    let durable = work.map(|work| WorkSession::new(work, spec.id.0));
    let assets = spec.assets.clone();
    let assets = assets
        .map(|assets| assets::Session::new(assets, spec.id, spec.artifact, spec.version.clone()));
    let services = GenerationServices::new(spec.app.clone(), spec.id, state, durable, assets);
    let services = Arc::new(services);
    library.keep(services.clone());
    let given = Arc::clone(&services);
    let account = library.account().id();
    library.account().name(&spec.app, spec.id, &spec.version);
    library.stay(spec.stays.clone());
    library.surround(spec.arguments.clone(), spec.environment.clone());
    let (code, stage) = (library.code(), library.stage());
    let started = lifecycle::run("start", deadline, move || {
        let code = code;
        let root = code.root::<RootRef>().map_err(|error| error.to_string())?;
        let _acting = ledger::act_for(account);
        let spec = constructing;
        let (version, config) = (spec.version.to_string(), spec.config.to_string());
        let env: Vec<Pair<'_>> = spec
            .env
            .iter()
            .map(|(name, value)| Pair {
                name: name.as_str().into(),
                value: value.as_str().into(),
            })
            .collect();
        let settings = Settings {
            size: Size::of::<Settings<'_>>(),
            host: ABI,
            app: spec.app.as_str().into(),
            version: version.as_str().into(),
            generation: spec.id.0,
            config: config.as_str().into(),
            env: env[..].into(),
            runtime_threads: u32::try_from(spec.runtime_threads).unwrap_or(u32::MAX),
            preflight: spec.preflight,
        };
        let data_dir = spec.data_dir.as_deref().and_then(Path::to_str);
        let more = MoreSettings {
            base_path: &spec.base_path,
            data_dir: data_dir.unwrap_or_default(),
            migration: spec.migration,
            handed_over: spec.handed_over.as_deref(),
        };
        settings.lend(&more, |settings| loader::start(root, given, settings))
    })
    .await;
    if !matches!(started, Ok(Ok(_))) {
        services.end();
    }
    let reason = match started {
        Ok(Ok(app)) => {
            let generation = Arc::new(Generation::new(spec, &library, app));
            return Ok(Started(
                Loaded {
                    generation,
                    library,
                },
                Mutex::default(),
            ));
        }
        Ok(Err(reason)) => reason,
        Err(Unfinished::Late(late)) => {
            let deadline = humantime::format_duration(deadline);
            let (sentence, reason) = match stage.running() {
                Running::Mapped | Running::Initialisers => {
                    let named = library.what();
                    (
                        format!(
                            "the static constructors (ELF initialisers) of {named} did not end within {deadline}, and go on"
                        ),
                        format!(
                            "its static constructors (ELF initialisers) did not end within {deadline}, and are left running: its library stays mapped"
                        ),
                    )
                }
                _ => (
                    format!("{late_one} {deadline}, and goes on"),
                    format!("{late_one} {deadline}, and is left running: its library stays mapped"),
                ),
            };
            return Err(StartError {
                reason,
                refused: library.account().refused_locks(),
                retained: Some(Box::new(Retained::new(
                    None,
                    Place::Constructor(library, late),
                    RetainReasons::by(RetainReason::Constructor, sentence),
                ))),
            });
        }
        Err(Unfinished::NoThread(error)) => {
            format!("no thread could be started for it: {error}")
        }
        Err(Unfinished::Panicked) => {
            "the host panicked while it started the app: this is a fault of handover".to_owned()
        }
    };
    let refused = library.account().refused_locks();
    let retained = match unload(None, library, SETTLE_DEADLINE).await {
        Ended::Retained(retained) => Some(retained),
        Ended::Unloaded(_) => None,
    };
    Err(StartError {
        reason,
        refused,
        retained,
    })
}

/// Why an app could not be dropped.
enum NotStopped {
    /// A thread is inside.
    Late(Late<()>),
    /// What happened is not known.
    Unknown(RetainReasons),
}

/// Drops the app value of a generation, on a thread of its own.
async fn stop(
    account: AccountId,
    stop: impl FnOnce(u64) + Send + 'static,
) -> Result<(), NotStopped> {
    let deadline = millis(STOP_DEADLINE);
    let stopped = lifecycle::run("stop", STOP_DEADLINE * 2, move || {
        let _acting = ledger::act_for(account);
        stop(deadline);
    })
    .await;
    stopped.map_err(|unfinished| match unfinished {
        Unfinished::Late(late) => NotStopped::Late(late),
        Unfinished::NoThread(error) => NotStopped::Unknown(RetainReasons::by(
            RetainReason::Host,
            format!("no thread could be started to drop it: {error}"),
        )),
        Unfinished::Panicked => NotStopped::Unknown(RetainReasons::by(
            RetainReason::Host,
            "the host panicked while it dropped the app: this is a fault of handover",
        )),
    })
}

/// Drops the app value of a generation whose hooks have returned, and unmaps its library if it is
/// proven quiet.
async fn stop_and_unload(
    generation: Option<Arc<Generation>>,
    library: Library,
    settle: Duration,
    drop_app: impl FnOnce(u64) + Send + 'static,
) -> Ended {
    let (place, held) = match stop(library.account().id(), drop_app).await {
        Ok(()) => return unload(generation, library, settle).await,
        Err(NotStopped::Late(late)) => (
            Place::Destructors(library, late),
            RetainReasons::by(
                RetainReason::Destructors,
                "its destructors did not end: a thread is still inside it",
            ),
        ),
        // The library is given up: it stays mapped for ever.
        Err(NotStopped::Unknown(held)) => (Place::Unknown, held),
    };
    retained(generation, place, held)
}

fn retained(generation: Option<Arc<Generation>>, place: Place, held: RetainReasons) -> Ended {
    if let Some(generation) = &generation {
        generation.set_state(GenerationState::Retained);
    }
    Ended::Retained(Box::new(Retained::new(generation, place, held)))
}

/// Unmaps a library whose app is dropped, if it is proven quiet within `settle`.
async fn unload(generation: Option<Arc<Generation>>, library: Library, settle: Duration) -> Ended {
    if let Some(services) = library.kept::<GenerationServices>() {
        // A waker is a pointer to the library that the state may follow.
        let left = services.release_wakers(settle).await;
        if left > 0 {
            let held = RetainReasons::by(
                RetainReason::Host,
                format!("{left} of its tasks that never ended wait for the state of the app"),
            );
            return retained(generation, Place::Here(library), held);
        }
    }
    if let Err(unsettled) = library.settle(settle).await {
        return retained(generation, Place::Here(library), unsettled.held);
    }
    if let Some(reason) = library.stays() {
        // Its finalisers do not run either: what it left may still need its statics.
        let held = RetainReasons::by(RetainReason::Crash, reason);
        return retained(generation, Place::ForGood(library), held);
    }
    let (what, stage) = (library.what().to_owned(), library.stage());
    // The thread may fail to start; the library comes back then, so it is handed over through this.
    let slot = Arc::new(Mutex::new(Some(library)));
    let handed = Arc::clone(&slot);
    let closing = lifecycle::run("close", UNLOAD_DEADLINE, move || {
        let library = handed.lock().take();
        library.map(Library::close)
    });
    let (place, held) = match closing.await {
        Ok(Some(Ok(left))) => {
            if let Some(generation) = &generation {
                generation.set_state(GenerationState::Unloaded);
            }
            return Ended::Unloaded(left);
        }
        Ok(Some(Err((library, held)))) => (Place::Here(library), held),
        Err(Unfinished::Late(late)) => {
            let deadline = humantime::format_duration(UNLOAD_DEADLINE);
            let held = match stage.running() {
                Running::Finalisers => RetainReasons::by(
                    RetainReason::Destructors,
                    format!(
                        "the static destructors (ELF finalisers) of {what} did not end within {deadline}, and go on"
                    ),
                ),
                _ => RetainReasons::by(
                    RetainReason::Linker,
                    format!("the dynamic linker has not let {what} go within {deadline}"),
                ),
            };
            (Place::Unmapping(late), held)
        }
        Err(Unfinished::NoThread(error)) => (
            slot.lock().take().map_or(Place::Unknown, Place::Here),
            RetainReasons::by(
                RetainReason::Host,
                format!("no thread could be started to unmap it: {error}"),
            ),
        ),
        Ok(None) | Err(Unfinished::Panicked) => (
            Place::Unknown,
            RetainReasons::by(
                RetainReason::Host,
                "the host panicked while it unmapped it: this is a fault of handover",
            ),
        ),
    };
    retained(generation, place, held)
}

impl Hooks {
    /// Begins `hook`, a call into the app of `core`. One that cannot be begun is left out: the app
    /// is not told then.
    fn begin(
        shared: &Arc<Shared>,
        name: &str,
        hook: impl FnOnce(&Shared) -> u64 + Send + 'static,
    ) -> Option<Late<u64>> {
        let of = Arc::clone(shared);
        let begun = lifecycle::begin(name, move || {
            let _acting = ledger::act_for(of.account());
            hook(&of)
        });
        let spec = shared.spec();
        begun
            .inspect_err(|error| {
                tracing::error!(
                    app = %spec.app,
                    generation = %spec.id,
                    "no thread can be started to {name} the app, which is not told of it: {error}"
                );
            })
            .ok()
    }

    /// Begins to ask the app which revision its database is at.
    fn ask_db_revision(&mut self, shared: &Arc<Shared>) -> DbRevisionAnswer {
        let (answer, answered) = oneshot::channel();
        self.0
            .extend(Self::begin(shared, "db_revision", move |shared| {
                // Nobody may wait any more.
                let _ = answer.send(shared.app().db_revision());
                0
            }));
        answered
    }

    /// Begins to ask the app for what the next version begins with.
    fn ask_hand_over(&mut self, shared: &Arc<Shared>) -> HandOverAnswer {
        let (answer, answered) = oneshot::channel();
        self.0
            .extend(Self::begin(shared, "hand_over", move |shared| {
                // Nobody may wait any more.
                let _ = answer.send(shared.app().hand_over());
                0
            }));
        answered
    }

    /// Those that have not returned by `by`.
    async fn left(self, by: Instant) -> Self {
        let mut left = Vec::new();
        for hook in self.0 {
            let within = by.saturating_duration_since(Instant::now());
            if let Err(Unfinished::Late(late)) = hook.within(within).await {
                left.push(late);
            }
        }
        Self(left)
    }
}

/// What an app says of its database; closed when no thread could ask it.
pub(crate) type DbRevisionAnswer = oneshot::Receiver<Result<Option<u64>, String>>;

/// What an app gives to the next version, as JSON; closed when no thread could ask it.
pub(crate) type HandOverAnswer = oneshot::Receiver<Result<Option<String>, String>>;

/// Waits for `answer`.
///
/// # Errors
/// Why there is none.
pub(crate) async fn answered<T>(
    answer: oneshot::Receiver<Result<T, String>>,
    deadline: Duration,
) -> Result<T, String> {
    match tokio::time::timeout(deadline, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err("no thread can be started to ask it".to_owned()),
        Err(_) => Err(format!(
            "it did not answer within {}",
            human::duration(deadline)
        )),
    }
}

impl Started {
    /// The shared part.
    pub(crate) fn generation(&self) -> &Arc<Generation> {
        &self.0.generation
    }

    /// The bytes of its heap; none when it was built without one of its own.
    pub(crate) fn heap_bytes(&self) -> Option<u64> {
        self.0.library.heap_bytes()
    }

    /// Lets requests in. The caller publishes it in the routes right after.
    pub(crate) fn activate(self) -> Active {
        self.0.generation.set_state(GenerationState::Active);
        self.0.generation.open_gate();
        Active(self.0, self.1)
    }

    /// Has the app do what it has to do before its first request, within `deadline`. Returns
    /// whether there was anything to do.
    ///
    /// # Errors
    /// Why it cannot become live. It is there still: the caller discards it, or lets it serve.
    pub(crate) async fn on_live(&self, deadline: Duration) -> Result<bool, String> {
        let reason = Arc::new(Mutex::new(String::new()));
        let told = Arc::clone(&reason);
        let hook = Hooks::begin(
            self.0.generation.shared(),
            "on_live",
            move |shared| match shared.app().on_live() {
                Ok(anything) => 1 + u64::from(anything),
                Err(why) => {
                    *told.lock() = why;
                    0
                }
            },
        );
        let Some(hook) = hook else {
            return Err("no thread can be started for it".to_owned());
        };
        match hook.within(deadline).await {
            Ok(done @ 1..) => Ok(done > 1),
            Ok(_) => Err(std::mem::take(&mut *reason.lock())),
            Err(Unfinished::Late(late)) => {
                self.1.lock().0.push(late);
                Err(format!(
                    "it did not end within {}",
                    human::duration(deadline)
                ))
            }
            Err(_) => Err("the host failed in it: its log says more".to_owned()),
        }
    }

    /// Asks the app which revision its database is at.
    ///
    /// # Errors
    /// Why that is not known.
    pub(crate) async fn db_revision(&self, deadline: Duration) -> Result<Option<u64>, String> {
        let asked = self.1.lock().ask_db_revision(self.0.generation.shared());
        answered(asked, deadline).await
    }

    /// Ends it before it served anybody.
    pub(crate) async fn discard(self) -> Ended {
        self.activate().drain().retire().await
    }
}

impl Active {
    /// The shared part.
    pub(crate) fn generation(&self) -> &Arc<Generation> {
        &self.0.generation
    }

    /// The bytes of its heap; none when it was built without one of its own.
    pub(crate) fn heap_bytes(&self) -> Option<u64> {
        self.0.library.heap_bytes()
    }

    /// Tells the app that it is live, on a thread of its own: its workers begin. The caller has
    /// published it before. Not for a preflight child, nor for what is discarded.
    pub(crate) fn announce(&self) {
        let told = Hooks::begin(self.0.generation.shared(), "activate", |shared| {
            shared.app().activate();
            0
        });
        self.1.lock().0.extend(told);
    }

    /// Begins to ask the app which revision its database is at.
    pub(crate) fn ask_db_revision(&self) -> DbRevisionAnswer {
        self.1.lock().ask_db_revision(self.0.generation.shared())
    }

    /// Begins to ask the app for what the next version begins with.
    pub(crate) fn ask_hand_over(&self) -> HandOverAnswer {
        self.1.lock().ask_hand_over(self.0.generation.shared())
    }

    /// Closes it for new requests and tells the app, on a thread of its own: that no more come, and
    /// by the signals that it may wait for, that it is to end. The caller has published its
    /// replacement before.
    pub(crate) fn drain(self) -> Draining {
        let generation = &self.0.generation;
        generation.set_state(GenerationState::Draining);
        generation.close_gate();
        generation.shared().app().services().drain();
        let told = Hooks::begin(generation.shared(), "drain", |shared| {
            ledger::begin_end(shared.account());
            shared.app().drain();
            ledger::ask_to_end(shared.account());
            0
        });
        let hooks = self.1;
        hooks.lock().0.extend(told);
        Draining {
            loaded: self.0,
            hooks,
        }
    }
}

impl Draining {
    /// The shared part.
    pub(crate) fn generation(&self) -> &Arc<Generation> {
        &self.loaded.generation
    }

    /// Ends when nothing is in flight any more.
    pub(crate) async fn quiet(&self) {
        let mut pause = Duration::from_millis(1);
        while self.generation().counts().in_flight > 0 {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// The drain deadline passed: requests, streams and connections end now, and spawned tasks as
    /// well; jobs only if `jobs`. Gives how many there were, and besides those how many streams
    /// were ended without a loss. Waits for the app to hear of it, on a thread of its own, for a
    /// second at most.
    pub(crate) async fn expire(&self, jobs: bool) -> (u64, u64) {
        let (before, ended) = self.generation().expire();
        let told = Hooks::begin(self.generation().shared(), "expire", move |shared| {
            shared.app().expire(jobs)
        });
        let Some(told) = told else {
            return (before, ended);
        };
        let cancelled = match told.within(HOOK_DEADLINE).await {
            Ok(cancelled) => cancelled,
            Err(Unfinished::Late(late)) => {
                self.hooks.lock().0.push(late);
                0
            }
            Err(_) => 0,
        };
        (before + cancelled, ended)
    }

    /// Waits until nothing is in flight, drops the app, and unmaps the library if it is proven
    /// quiet.
    pub(crate) async fn retire(self) -> Ended {
        self.quiet().await;
        let Loaded {
            generation,
            library,
        } = self.loaded;
        let hooks = self.hooks.into_inner();
        generation.set_state(GenerationState::Retired);
        retire(generation, library, hooks, STOP_DEADLINE, SETTLE_DEADLINE).await
    }
}

/// Drops the app once `hooks` have returned, within `patience`, and unmaps the library if it is
/// proven quiet within `settle`.
async fn retire(
    generation: Arc<Generation>,
    library: Library,
    hooks: Hooks,
    patience: Duration,
    settle: Duration,
) -> Ended {
    let hooks = hooks.left(Instant::now() + patience).await;
    if !hooks.0.is_empty() {
        let held = RetainReasons::by(
            RetainReason::Destructors,
            "what its app does when it is told to drain, or that its deadline passed, did not end: a thread is still inside it",
        );
        return retained(Some(generation), Place::Hooks(library, hooks), held);
    }
    let shared = Arc::clone(generation.shared());
    let drop_app = move |deadline| shared.stop(deadline);
    stop_and_unload(Some(generation), library, settle, drop_app).await
}

/// What was retained, as it was.
fn stays(generation: Option<Arc<Generation>>, place: Place, known: Known) -> Ended {
    Ended::Retained(Box::new(Retained {
        generation,
        place,
        known,
    }))
}

impl Retained {
    /// What held it.
    pub(crate) fn held(&self) -> &RetainReasons {
        &self.known.held
    }

    /// Bytes of its heap, none when it was built without one of its own, and how many descriptors
    /// it has open.
    pub(crate) fn resources(&self) -> (Option<u64>, usize) {
        self.known.resources
    }

    /// Tries again, if that can come to anything: the first look costs nothing that others would
    /// notice. An app whose constructor came back too late is stopped: nobody waits for it any
    /// more. `eager` is for one who knows that something has changed.
    pub(crate) async fn retry(self, eager: bool) -> Ended {
        let Self {
            generation,
            place,
            known,
        } = self;
        let settle = SETTLE_AGAIN_DEADLINE;
        match place {
            Place::Here(library) => {
                let look = library.account().look();
                let (at, pause) = known.again;
                let changed = known.seen.as_ref() != Some(&look);
                let can_end = look.is_quiet() || look.can_be_visited();
                if !changed && (!can_end || (Instant::now() < at && !eager)) {
                    return stays(generation, Place::Here(library), known);
                }
                let mut ended = unload(generation, library, settle).await;
                if let Ended::Retained(again) = &mut ended
                    && !changed
                {
                    let pause = (pause * 2).min(AGAIN.1);
                    again.known.again = (Instant::now() + pause, pause);
                }
                ended
            }
            Place::Mapping(late) => match late.ended() {
                Err(late) => stays(generation, Place::Mapping(late), known),
                Ok(Ok(Ok(library))) => unload(generation, library, settle).await,
                Ok(Ok(Err(_))) => Ended::Unloaded(Leftovers::default()),
                Ok(Err(_)) => stays(generation, Place::Unknown, known),
            },
            Place::Constructor(library, late) => match late.ended() {
                Err(late) => stays(generation, Place::Constructor(library, late), known),
                Ok(Ok(Ok(app))) => {
                    stop_and_unload(generation, library, settle, move |deadline| {
                        app.stop(deadline);
                    })
                    .await
                }
                Ok(Ok(Err(_))) => unload(generation, library, settle).await,
                Ok(Err(_)) => stays(generation, Place::Unknown, known),
            },
            Place::Hooks(library, hooks) => match generation {
                Some(generation) => {
                    retire(generation, library, hooks, Duration::ZERO, settle).await
                }
                None => stays(generation, Place::Unknown, known),
            },
            Place::Destructors(library, late) => match late.ended() {
                Err(late) => stays(generation, Place::Destructors(library, late), known),
                Ok(Ok(())) => unload(generation, library, settle).await,
                Ok(Err(_)) => stays(generation, Place::Unknown, known),
            },
            Place::Unmapping(late) => match late.ended() {
                Err(late) => stays(generation, Place::Unmapping(late), known),
                Ok(Ok(Some(Ok(left)))) => {
                    if let Some(generation) = &generation {
                        generation.set_state(GenerationState::Unloaded);
                    }
                    Ended::Unloaded(left)
                }
                Ok(Ok(Some(Err((library, held))))) => {
                    retained(generation, Place::Here(library), held)
                }
                Ok(Ok(None) | Err(_)) => stays(generation, Place::Unknown, known),
            },
            place @ (Place::ForGood(_) | Place::Unknown) => stays(generation, place, known),
        }
    }
}
