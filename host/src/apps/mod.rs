//! The apps that the host knows, and what of them is live.
//!
//! - [`app`]: one app while the host runs
//! - [`serving`]: its generations that answer new requests
//! - [`registry`]: all of them, by name
//! - [`cutover`]: the instant new requests go to another generation, and where apps answer
//! - [`counters`]: what is counted of an app for the metrics
//!
//! No lock is held across an await, nor while code of a plugin may run.

pub(crate) mod app;
pub(crate) mod counters;
pub(crate) mod cutover;
pub(crate) mod registry;
pub(crate) mod serving;
