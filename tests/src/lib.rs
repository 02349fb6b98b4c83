//! The harness of the end-to-end tests: the built `handover`, real plugins, real sockets.
//!
//! - [`browser`]: a page in Chromium, where the machine has it
//! - [`plugins`]: builds the fixture plugins and keeps them for all test binaries of a run
//! - [`elf`]: makes other plugins of a built one by rewriting bytes of its file
//! - [`history`]: whether transactions can have happened one after the other
//! - [`host`]: runs a host as a process, asks it, waits on what it reports
//! - [`mod@bench`]: what the benches share
//! - [`acme`]: an authority that issues certificates, and what goes wrong with one
//! - [`client`]: HTTP clients that see cut connections and short answers for what they are
//! - [`metrics`]: reads what Prometheus scrapes, strictly
//! - [`load`]: keeps connections busy and counts every answer
//! - [`sources`]: the sources of the project, for tests that read them
//!
//! Everything panics with a sentence when the world is not as a test needs it: a test has nobody to
//! return an error to.
#![forbid(unsafe_code)]

pub mod acme;
pub mod bench;
pub mod browser;
pub mod client;
pub mod elf;
pub mod history;
pub mod host;
pub mod load;
pub mod metrics;
pub mod plugins;
pub mod sources;
