//! One load of one artifact: its states, its counters, its end. No HTTP, no files.

use std::{sync::Arc, time::{Duration, Instant}};

use semver::Version;

use crate::{artifact::Sha256, loader::Library, names::{AppName, GenerationId}};

/// Who a generation is and what it is started with.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The app.
    pub app: AppName,
    /// The number.
    pub id: GenerationId,
    /// The version of its manifest.
    pub version: Version,
    /// The identity of its artifact.
    pub artifact: Sha256,
    /// What the plugin reads with `Context::config`.
    pub config: serde_json::Value,
    /// The environment variables that it may read.
    pub env: Vec<(String, String)>,
    /// Threads of its runtime.
    pub runtime_threads: usize,
    /// How long its constructor may take.
    pub start_deadline: Duration,
    /// Whether this is a preflight child, where it will never serve a user.
    pub preflight: bool,
}

/// Why a generation did not start.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(pub String);

/// The state of a generation, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State { /// Its app is built, nobody asks it.
    Started, /// New requests go to it.
    Active, /// It finishes what it has.
    Draining, /// Its app value is dropped.
    Retired, /// Its library is unmapped.
    Unloaded, /// Its library could not be proven quiet.
    Retained }

/// What is counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Requests, streams, upgraded connections and spawned work on it, jobs included.
    pub in_flight: u64,
    /// Jobs among them.
    pub jobs: u64,
    /// Requests it was given.
    pub requests: u64,
    /// Panics caught in it.
    pub panics: u64,
}

/// What all states share.
#[derive(Debug)]
pub struct Generation;

impl Generation {
    /// Who it is.
    pub fn spec(&self) -> &Spec { todo!() }
    /// What is counted, now.
    pub fn counts(&self) -> Counts { todo!() }
    /// When it was loaded.
    pub fn loaded_at(&self) -> Instant { todo!() }
    /// Its state, now.
    pub fn state(&self) -> State { todo!() }
}

/// Started: its app is built, nobody asks it yet.
#[derive(Debug)]
pub struct Started;
/// Active: new requests go to it.
#[derive(Debug)]
pub struct Active;
/// Draining: it finishes what it has.
#[derive(Debug)]
pub struct Draining;

/// How a generation ended.
#[derive(Debug)]
pub enum Ended {
    /// Its library is unmapped, which was verified.
    Unloaded,
    /// Its library could not be proven quiet and stays mapped.
    Retained(Retained),
}

/// A retired generation whose library stays mapped.
#[derive(Debug)]
pub struct Retained;

impl Retained {
    /// What held it.
    pub fn reason(&self) -> String { todo!() }
    /// Tries again.
    pub async fn retry(self) -> Ended { todo!() }
}

/// Runs the constructor of the app in `library`. Awaits; the constructor runs on a thread of its own.
pub async fn start(_library: Library, _spec: Spec) -> Result<Started, StartError> { todo!() }

impl Started {
    /// The shared part.
    pub fn generation(&self) -> &Arc<Generation> { todo!() }
    /// Lets requests in. The caller publishes it in the routes right after.
    pub fn activate(self) -> Active { todo!() }
    /// Ends it before it served anybody.
    pub async fn discard(self) -> Ended { todo!() }
}

impl Active {
    /// The shared part.
    pub fn generation(&self) -> &Arc<Generation> { todo!() }
    /// Closes it for new requests and tells the app. The caller has published its replacement before.
    pub fn drain(self) -> Draining { todo!() }
}

impl Draining {
    /// The shared part.
    pub fn generation(&self) -> &Arc<Generation> { todo!() }
    /// Ends when nothing is in flight any more.
    pub async fn quiet(&self) { todo!() }
    /// The drain deadline of requests passed: what still runs is cancelled. Jobs are spared unless `jobs`.
    /// Gives how many requests, streams and jobs were cancelled.
    pub fn expire(&self, _jobs: bool) -> u64 { todo!() }
    /// Drops the app, and unloads the library if it is proven quiet.
    pub async fn retire(self) -> Ended { todo!() }
}
