//! What the benches share: servers to compare, a load generator, counters, and how it is written down.
//!
//! - [`builds`]: the host, the hello fixture and its twin, always as release builds
//! - [`server`]: contenders as processes, and the processor time and memory that they take
//! - [`contender`]: who they are and how each is configured, started and reloaded
//! - [`reloader`]: servers that reload, each in its own way
//! - [`generate`]: connections that ask as fast as they are answered, or at a pace, and miss nothing
//! - [`crowd`]: many clients that mostly wait
//! - [`callgrind`]: instructions and allocations, counted instead of timed
//! - [`limits`]: what a request may cost, wherever it is counted
//! - [`operation`]: swaps as the host tells them
//! - [`figures`]: medians, percentiles and how they are printed
//! - [`report`]: `docs/benchmarks`, the JSON and the tables

pub mod builds;
pub mod callgrind;
pub mod contender;
pub mod crowd;
pub mod figures;
pub mod generate;
pub mod limits;
pub mod operation;
pub mod reloader;
pub mod report;
pub mod server;

/// Whether `cargo bench` runs this program. `cargo test --all-targets` runs it too, and wants no figures.
pub fn asked_for() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

/// Whether a flag was given behind `--`.
pub fn flag(name: &str) -> bool {
    std::env::args().any(|argument| argument == name)
}

/// The value behind a flag.
pub fn option(name: &str) -> Option<String> {
    std::env::args()
        .skip_while(|argument| argument != name)
        .nth(1)
}
