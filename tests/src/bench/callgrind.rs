//! Instructions and allocations, counted instead of timed: the same on a busy machine as on a quiet
//! one.
//!
//! A server runs twice under callgrind, for fewer and for more requests; what the second took more,
//! divided by how many more those were, is the cost of one. Starting and ending are the same in
//! both.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    generate::{Ask, Load},
    server::{Server, program},
};

/// What allocates, in the C library and in the heap of a plugin. Each is one allocation, a
/// `realloc` too.
const ALLOCATORS: [&str; 12] = [
    "malloc",
    "calloc",
    "realloc",
    "posix_memalign",
    "aligned_alloc",
    "memalign",
    "mi_heap_malloc",
    "mi_heap_zalloc",
    "mi_heap_realloc",
    "mi_heap_malloc_aligned",
    "mi_heap_zalloc_aligned",
    "mi_heap_realloc_aligned",
];

/// The cost of one request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// User instructions.
    pub instructions: f64,
    /// Calls of an allocator.
    pub allocations: f64,
}

/// How many requests the two runs have.
#[derive(Debug, Clone, Copy)]
pub struct Lengths(pub u64, pub u64);

/// Whether it can be counted on this machine.
pub fn is_there() -> bool {
    program("valgrind").is_some()
}

/// A command under callgrind, which writes to `out`. Give it the program and its arguments.
///
/// It knows nothing of the environment of whoever counts: the same program does the same, wherever
/// that is.
pub fn command(out: &Path) -> Command {
    const KEPT: [&str; 3] = ["PATH", "HOME", "VALGRIND_LIB"];
    let mut command = Command::new("valgrind");
    command.env_clear();
    command.envs(
        KEPT.iter()
            .filter_map(|name| Some((name, std::env::var_os(name)?))),
    );
    command
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", out.display()));
    command
}

/// Counts what a request costs when so many connections ask at once. `start` runs the server, under
/// [`command`] with the given file.
///
/// The more connections, the more answers a server gives before it asks the kernel again, unless
/// the generator was too late: with one connection it always asks, and the count is the same on a
/// busy machine.
///
/// # Panics
/// When a request is lost, or callgrind writes nothing.
pub fn count(
    ask: &Ask,
    h2: bool,
    connections: usize,
    lengths: Lengths,
    mut start: impl FnMut(PathBuf) -> Server,
) -> Cost {
    let mut run = |requests: u64| {
        let dir = Server::home();
        let out = dir.path().join("callgrind.out");
        let server = start(out.clone());
        let mut load = Load::kept(ask.clone(), connections);
        load.h2 = h2;
        load.requests = Some(requests);
        load.run(server.address).expect_all_answered();
        server.end();
        let text = fs::read_to_string(&out).expect("callgrind writes when its program ends");
        (total(&text), calls(&text, &ALLOCATORS))
    };
    let (fewer, more) = (run(lengths.0), run(lengths.1));
    let each =
        |fewer: u64, more: u64| more.saturating_sub(fewer) as f64 / (lengths.1 - lengths.0) as f64;
    Cost {
        instructions: each(fewer.0, more.0),
        allocations: each(fewer.1, more.1),
    }
}

/// All instructions.
fn total(text: &str) -> u64 {
    let line = text.lines().find_map(|line| {
        line.strip_prefix("totals:")
            .or_else(|| line.strip_prefix("summary:"))
    });
    line.and_then(|number| number.trim().parse().ok())
        .expect("callgrind says how much it was")
}

/// How often one of `functions` was called.
fn calls(text: &str, functions: &[&str]) -> u64 {
    // A name is written once as `(ID) NAME`, and then as `(ID)`, be it of a caller or of what is
    // called.
    let mut names = HashMap::new();
    let (mut called, mut sum) = (None, 0);
    for line in text.lines() {
        let spec = line
            .strip_prefix("fn=")
            .or_else(|| line.strip_prefix("cfn="));
        if let Some(spec) = spec {
            let (id, name) = spec.split_once(' ').unwrap_or((spec, ""));
            if !name.is_empty() {
                let name = name.split('\'').next().unwrap_or_default();
                names.insert(id, functions.contains(&name));
            }
            if line.starts_with('c') {
                called = names.get(id).copied();
            }
        } else if let Some(rest) = line.strip_prefix("calls=")
            && called == Some(true)
        {
            let number = rest
                .split(' ')
                .next()
                .and_then(|text| text.parse::<u64>().ok());
            sum += number.unwrap_or_default();
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_found_by_full_and_by_short_names() {
        let text = "fn=(1) main\n5 10\ncfn=(2) malloc\ncalls=3 0\n5 100\ncfn=(3) free\ncalls=9 0\n1 1\n\
                    fn=(2)\n1 2\ncfn=(4) malloc'2\ncalls=1 0\n2 2\nfn=(5) other\ncfn=(2)\ncalls=4 0\n1 1\ntotals: 114\n";
        assert_eq!(calls(text, &["malloc"]), 8);
        assert_eq!(total(text), 114);
    }
}
