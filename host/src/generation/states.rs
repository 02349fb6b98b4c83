//! `Started → Active → Draining → Unloaded | Retained`: each state is a type, and each transition takes the old one by value.

use std::{sync::Arc, time::Duration};

use handover_plugin::abi::{
    host::Pair,
    root::{RootRef, Settings},
};

use super::{
    core::{Generation, State},
    lifecycle::{self, Unfinished},
    offer::PluginOffer,
    spec::{Spec, StartError},
};
use crate::{
    ledger::Left,
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
    reason: String,
    /// A host thread is still inside the plugin, which the ledger cannot see: never unmapped.
    inside: bool,
}

/// Runs the constructor of the app in `library`, on a thread of its own. When it fails, the library is unmapped again, or kept where that
/// would be unsafe.
///
/// # Errors
/// The reason, as the operator should read it.
pub async fn start(library: Library, spec: Spec) -> Result<Started, StartError> {
    let root = library
        .root::<RootRef>()
        .map_err(|error| StartError(error.to_string()))?;
    let deadline = spec.start_deadline;
    let constructing = spec.clone();
    let offer = Arc::new(PluginOffer::new(spec.app.clone(), spec.id));
    let started = lifecycle::run("start", deadline, move || {
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
            let generation = Arc::new(Generation::new(spec, app));
            return Ok(Started(Loaded {
                generation,
                library,
            }));
        }
        Ok(Err(reason)) => reason,
        Err(Unfinished::Late) => {
            // Its thread is inside the plugin: the library stays mapped for ever.
            drop(library);
            return Err(StartError(format!(
                "the constructor did not end within {}, and is left running: its library stays mapped",
                humantime::format_duration(deadline)
            )));
        }
        Err(Unfinished::NoThread(error)) => {
            format!("no thread could be started for the constructor: {error}")
        }
        Err(Unfinished::Panicked) => {
            "the host panicked while it started the app: this is a fault of handover".to_owned()
        }
    };
    if let Ended::Retained(retained) = unload(None, library).await {
        tracing::warn!(app = %spec.app, generation = %spec.id, "an app that did not start stays mapped: {}", retained.reason);
    }
    Err(StartError(reason))
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
            reason: unsettled.to_string(),
            inside: false,
        });
    }
    match tokio::task::spawn_blocking(move || library.close()).await {
        Ok(Ok(left)) => {
            end(State::Unloaded);
            Ended::Unloaded(left)
        }
        Ok(Err((library, reason))) => {
            end(State::Retained);
            Ended::Retained(Retained {
                generation,
                library,
                reason,
                inside: false,
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
        let deadline = u64::try_from(STOP_DEADLINE.as_millis()).unwrap_or(u64::MAX);
        let stopped =
            lifecycle::run("stop", STOP_DEADLINE * 2, move || core.app().stop(deadline)).await;
        if let Err(unfinished) = stopped {
            generation.set_state(State::Retained);
            let reason = match unfinished {
                Unfinished::Late => {
                    "its destructors did not end: a thread is still inside it".to_owned()
                }
                Unfinished::NoThread(error) => {
                    format!("no thread could be started to drop it: {error}")
                }
                Unfinished::Panicked => {
                    "the host panicked while it dropped the app: this is a fault of handover"
                        .to_owned()
                }
            };
            return Ended::Retained(Retained {
                generation: Some(generation),
                library,
                reason,
                inside: true,
            });
        }
        unload(Some(generation), library).await
    }
}

impl Retained {
    /// What held it.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Bytes of its heap, none when it was built without one of its own, and how many descriptors it has open.
    pub fn holds(&self) -> (Option<u64>, usize) {
        (
            self.library.heap_bytes(),
            self.library.account().descriptors(),
        )
    }

    /// Tries again.
    pub async fn retry(self) -> Ended {
        if self.inside {
            Ended::Retained(self)
        } else {
            unload(self.generation, self.library).await
        }
    }
}
