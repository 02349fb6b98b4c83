//! What an author of a plugin touches, and what runs inside a plugin.
//!
//! - [`context`]: what an app knows of itself and of the host
//! - [`connection`]: what an app may know of the connection of a request
//! - [`app`]: how a service becomes an app
//! - [`body`]: the body of a request
//! - [`runtime`]: the one tokio runtime of a generation
//! - [`jobs`], [`lease`]: jobs that outlive the host, and what one generation does at a time
//! - [`work`]: tasks and jobs that outlive their request
//! - [`worker`]: work that goes on for as long as a generation is live
//! - [`settings`]: what an operator changes while the app runs, and messages to it
//! - [`on_live`]: what a version does once before its first request
//! - [`db_revision`]: which revision the database of the app is at
//! - [`migration`]: from one version of the schema of the state to another
//! - [`log`]: events, log records and panics on their way to the host
//! - [`trace`]: a span for a request
//! - [`upgrade`]: WebSockets and other upgraded connections
//! - [`cache`], [`rate_limit`], `sessions`: what is kept in it as a rule
//! - [`state`]: what the app keeps in the host
//! - [`writes`]: answers that wait for their writes
//! - `testing`: a host for the tests of a plugin, in memory or real
//! - [`serve`], [`program`]: a crate that is a program as well, whose `main` is the constructor
//! - [`error`]: why an app does not start

pub(crate) mod app;
pub(crate) mod body;
pub(crate) mod cache;
pub(crate) mod connection;
pub(crate) mod context;
pub(crate) mod db_revision;
pub(crate) mod error;
pub(crate) mod jobs;
pub(crate) mod lease;
pub(crate) mod log;
pub(crate) mod migration;
pub(crate) mod on_live;
pub(crate) mod program;
pub(crate) mod rate_limit;
pub(crate) mod runtime;
pub(crate) mod serve;
#[cfg(feature = "sessions")]
pub(crate) mod sessions;
pub(crate) mod settings;
pub(crate) mod state;
#[cfg(feature = "testing")]
pub mod testing;
pub(crate) mod trace;
pub(crate) mod upgrade;
pub(crate) mod work;
pub(crate) mod worker;
mod writes;
