//! `Started → Active → Draining → Unloaded | Retained`: each state is a type, and each transition takes the old one by value.

use std::{sync::Arc, time::Duration};

use handover_plugin::abi::{
    host::Pair,
    import::AppHandle,
    root::{RootRef, Settings},
};

use super::{
    core::{Generation, State},
    lifecycle::{self, Late, Unfinished},
    offer::PluginOffer,
    spec::{Spec, StartError},
};
use crate::{
    ledger::{self, AccountId, Held, Holder, Left},
    loader::{self, Library},
};

/// How long the threads of a plugin's runtime may take to end. What blocks longer shows as a thread that retains the library.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// How long the workers of the host may take to run what a plugin registered on them.
const SETTLE_DEADLINE: Duration = Duration::from_secs(1);

/// Started: its app is built, nobody asks it yet.
#[derive(Debug)]
pub struct Started(Loaded);
/// Active: new requests go to it.
#[derive(Debug)]
pub struct Active(Loaded);
/// Draining: it finishes what it has.
#[derive(Debug)]
pub struct Draining(Loaded);

/// A generation and its library.
#[derive(Debug)]
struct Loaded {
    generation: Arc<Generation>,
    library: Library,
}

/// How a generation ended.
#[derive(Debug)]
pub enum Ended {
    /// Its library is unmapped, which was verified; what it left behind.
    Unloaded(Left),
    /// Its library could not be proven quiet and stays mapped.
    Retained(Retained),
}

/// A retired generation whose library stays mapped.
#[derive(Debug)]
pub struct Retained {
    /// None when it was never started to the end.
    generation: Option<Arc<Generation>>,
    library: Library,
    held: Held,
    inside: Option<Inside>,
}

/// A thread of the host that did not come back from the plugin in time. The ledger does not see it, so nothing is unmapped before it has.
#[derive(Debug)]
enum Inside {
    /// It runs the constructor.
    Constructor(Late<Result<AppHandle<PluginOffer>, String>>),
    /// It runs the destructors.
    Destructors(Late<()>),
    /// Where it is nobody knows.
    Unknown,
}

/// Runs the constructor of the app in `library`, on a thread of its own. When it fails, the library is unmapped again, or kept where that
/// would be unsafe.
///
/// # Errors
/// The reason, as the operator should read it.
pub async fn start(library: Library, spec: Spec) -> Result<Started, StartError> {
    ledger::known_as(library.account().id(), &spec.app, spec.id);
    let root = library.root::<RootRef>().map_err(|error| StartError {
        reason: error.to_string(),
        retained: None,
    })?;
    let deadline = spec.start_deadline;
    let constructing = spec.clone();
    let offer = Arc::new(PluginOffer::new(spec.app.clone(), spec.id));
    let account = library.account().id();
    let started = lifecycle::run("start", deadline, move || {
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
            app: spec.app.as_str().into(),
            version: version.as_str().into(),
            generation: spec.id.0,
            config: config.as_str().into(),
            env: env[..].into(),
            runtime_threads: u32::try_from(spec.runtime_threads).unwrap_or(u32::MAX),
            preflight: spec.preflight,
        };
        loader::start(root, offer, &settings)
    })
    .await;
    let reason = match started {
        Ok(Ok(app)) => {
            let generation = Arc::new(Generation::new(spec, account, app));
            return Ok(Started(Loaded {
                generation,
                library,
            }));
        }
        Ok(Err(reason)) => reason,
        Err(Unfinished::Late(late)) => {
            let deadline = humantime::format_duration(deadline);
            let sentence = format!("its constructor did not end within {deadline}, and goes on");
            return Err(StartError {
                reason: format!(
                    "the constructor did not end within {deadline}, and is left running: its library stays mapped"
                ),
                retained: Some(Box::new(Retained {
                    generation: None,
                    library,
                    held: Held::by(Holder::Constructor, sentence),
                    inside: Some(Inside::Constructor(late)),
                })),
            });
        }
        Err(Unfinished::NoThread(error)) => {
            format!("no thread could be started for the constructor: {error}")
        }
        Err(Unfinished::Panicked) => {
            "the host panicked while it started the app: this is a fault of handover".to_owned()
        }
    };
    let retained = match unload(None, library).await {
        Ended::Retained(retained) => Some(Box::new(retained)),
        Ended::Unloaded(_) => None,
    };
    Err(StartError { reason, retained })
}

/// Drops the app value of a generation, on a thread of its own. What is left inside of it when that failed.
async fn stop(
    account: AccountId,
    stop: impl FnOnce(u64) + Send + 'static,
) -> Result<(), (Held, Inside)> {
    let deadline = u64::try_from(STOP_DEADLINE.as_millis()).unwrap_or(u64::MAX);
    let stopped = lifecycle::run("stop", STOP_DEADLINE * 2, move || {
        let _acting = ledger::act_for(account);
        stop(deadline);
    })
    .await;
    stopped.map_err(|unfinished| match unfinished {
        Unfinished::Late(late) => (
            Held::by(
                Holder::Destructors,
                "its destructors did not end: a thread is still inside it",
            ),
            Inside::Destructors(late),
        ),
        Unfinished::NoThread(error) => (
            Held::by(
                Holder::Host,
                format!("no thread could be started to drop it: {error}"),
            ),
            Inside::Unknown,
        ),
        Unfinished::Panicked => (
            Held::by(
                Holder::Host,
                "the host panicked while it dropped the app: this is a fault of handover",
            ),
            Inside::Unknown,
        ),
    })
}

/// Unmaps a library whose app is dropped, if it is proven quiet.
async fn unload(generation: Option<Arc<Generation>>, library: Library) -> Ended {
    let end = |state| {
        if let Some(generation) = &generation {
            generation.set_state(state);
        }
    };
    if let Err(unsettled) = library.settle(SETTLE_DEADLINE).await {
        end(State::Retained);
        return Ended::Retained(Retained {
            generation,
            library,
            held: unsettled.held,
            inside: None,
        });
    }
    match tokio::task::spawn_blocking(move || library.close()).await {
        Ok(Ok(left)) => {
            end(State::Unloaded);
            Ended::Unloaded(left)
        }
        Ok(Err((library, held))) => {
            end(State::Retained);
            Ended::Retained(Retained {
                generation,
                library,
                held,
                inside: None,
            })
        }
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

impl Started {
    /// The shared part.
    pub fn generation(&self) -> &Arc<Generation> {
        &self.0.generation
    }

    /// Lets requests in. The caller publishes it in the routes right after.
    pub fn activate(self) -> Active {
        self.0.generation.set_state(State::Active);
        self.0.generation.open_gate();
        Active(self.0)
    }

    /// Ends it before it served anybody.
    pub async fn discard(self) -> Ended {
        self.activate().drain().retire().await
    }
}

impl Active {
    /// The shared part.
    pub fn generation(&self) -> &Arc<Generation> {
        &self.0.generation
    }

    /// Closes it for new requests and tells the app. The caller has published its replacement before.
    pub fn drain(self) -> Draining {
        let generation = &self.0.generation;
        generation.set_state(State::Draining);
        generation.close_gate();
        generation.core().app().drain();
        Draining(self.0)
    }
}

impl Draining {
    /// The shared part.
    pub fn generation(&self) -> &Arc<Generation> {
        &self.0.generation
    }

    /// Ends when nothing is in flight any more.
    pub async fn quiet(&self) {
        let mut pause = Duration::from_millis(1);
        while self.0.generation.counts().in_flight > 0 {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// The drain deadline passed: requests, streams and connections end now, and spawned tasks as well; jobs only if `jobs`.
    /// Gives how many there were.
    pub fn expire(&self, jobs: bool) -> u64 {
        self.0.generation.expire(jobs)
    }

    /// Waits until nothing is in flight, drops the app, and unmaps the library if it is proven quiet.
    pub async fn retire(self) -> Ended {
        self.quiet().await;
        let Loaded {
            generation,
            library,
        } = self.0;
        generation.set_state(State::Retired);
        let core = Arc::clone(generation.core());
        if let Err((held, inside)) =
            stop(core.account(), move |deadline| core.app().stop(deadline)).await
        {
            generation.set_state(State::Retained);
            return Ended::Retained(Retained {
                generation: Some(generation),
                library,
                held,
                inside: Some(inside),
            });
        }
        unload(Some(generation), library).await
    }
}

impl Retained {
    /// What held it.
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// Bytes of its heap, none when it was built without one of its own, and how many descriptors it has open.
    pub fn holds(&self) -> (Option<u64>, usize) {
        (
            self.library.heap_bytes(),
            self.library.account().descriptors(),
        )
    }

    /// Tries again. An app whose constructor came back too late is stopped: nobody waits for it any more.
    pub async fn retry(mut self) -> Ended {
        let left = match self.inside.take() {
            None => Ok(()),
            Some(Inside::Constructor(late)) => match late.ended() {
                Err(late) => Err((self.held.clone(), Inside::Constructor(late))),
                Ok(Ok(Ok(app))) => {
                    stop(self.library.account().id(), move |deadline| {
                        app.stop(deadline);
                    })
                    .await
                }
                Ok(Ok(Err(_))) => Ok(()),
                Ok(Err(_)) => Err((self.held.clone(), Inside::Unknown)),
            },
            Some(Inside::Destructors(late)) => match late.ended() {
                Err(late) => Err((self.held.clone(), Inside::Destructors(late))),
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) => Err((self.held.clone(), Inside::Unknown)),
            },
            Some(Inside::Unknown) => Err((self.held.clone(), Inside::Unknown)),
        };
        match left {
            Ok(()) => unload(self.generation, self.library).await,
            Err((held, inside)) => Ended::Retained(Self {
                held,
                inside: Some(inside),
                ..self
            }),
        }
    }
}
