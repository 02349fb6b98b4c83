//! What the benches share: servers to compare, a load generator, counters, and how it is written
//! down.
//!
//! - [`builds`]: the host, the hello fixture and its twin, always as release builds
//! - [`server`]: contenders as processes, and the processor time and memory that they take
//! - [`contender`]: who they are and how each is configured, started and reloaded
//! - [`reloader`]: servers that reload, each in its own way
//! - [`generate`]: connections that ask as fast as they are answered, or at a pace, and miss
//!   nothing
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

/// Whether `cargo bench` runs this program. `cargo test --all-targets` runs it too, and wants no
/// figures.
///
/// `flags` are those that it knows; one that wants a value has a word for it behind it, as in
/// `--case NAME`. Any other ends the process: a bench takes minutes, and may write down what it has
/// measured.
pub fn asked_for(flags: &[&str]) -> bool {
    let mut given = std::env::args().skip(1).collect::<Vec<_>>();
    let bench = given.iter().any(|argument| argument == "--bench");
    given.retain(|argument| argument != "--bench");
    if !bench {
        return false;
    }
    let mut given = given.into_iter();
    while let Some(argument) = given.next() {
        let is_it = |flag: &&&str| flag.split(' ').next() == Some(argument.as_str());
        match flags.iter().find(is_it) {
            Some(flag) => {
                let wants_value = flag.contains(' ');
                if wants_value && given.next().is_none() {
                    eprintln!("{argument} wants a value: {flag}");
                    std::process::exit(2);
                }
            }
            None if argument == "--help" => {
                println!("Flags: {}", flags.join(", "));
                std::process::exit(0);
            }
            None => {
                eprintln!("There is no flag {argument} here, but {}", flags.join(", "));
                std::process::exit(2);
            }
        }
    }
    true
}

/// Whether a flag was given behind `--`.
pub fn flag(name: &str) -> bool {
    std::env::args().any(|argument| argument == name)
}

/// The value behind a flag, which is one of `names`. Any other ends the process.
pub fn one_of(flag: &str, names: &[&str]) -> Option<String> {
    let wanted = option(flag);
    if let Some(wanted) = wanted.as_deref()
        && !names.contains(&wanted)
    {
        eprintln!("{flag} {wanted} is none: there are {}", names.join(", "));
        std::process::exit(2);
    }
    wanted
}

/// The value behind a flag.
pub fn option(name: &str) -> Option<String> {
    std::env::args()
        .skip_while(|argument| argument != name)
        .nth(1)
}
