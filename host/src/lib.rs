//! handover: a host process that owns the sockets and loads what answers from versioned plugins.
#![deny(unsafe_code)]

mod apps;
pub mod artifact;
mod background;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod dispatch;
pub mod generation;
mod human;
pub mod ledger;
pub mod loader;
mod memory;
mod net;
pub mod notify;
mod open_files;
mod operations;
pub mod orchestrator;
pub mod origin;
pub mod ownership;
pub mod preflight;
pub mod process;
mod records;
mod report;
mod rollout;
pub mod shadow;
mod shortage;
mod shown;
pub mod signals;
pub mod state;
pub mod supervisor;
pub mod telemetry;
pub mod watch;
mod watchdog;
pub(crate) mod workers;
mod writers;
