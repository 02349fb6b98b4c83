//! What the machine is short of: the errors that say so, and the processes that the kernel killed
//! for want of memory.
//!
//! An error of this kind is no fault of whoever ran into it, and gone a moment later. It often
//! comes as text only: from the dynamic linker, or from a plugin.

use std::{
    fs,
    time::{Duration, Instant},
};

use crate::process;

/// How a process ended that the kernel killed for want of memory, in place of `SIGKILL`.
pub(crate) const OUT_OF_MEMORY: &str = "SIGKILL by the kernel, which was out of memory";

/// EAGAIN, ENOMEM, ENFILE and EMFILE, as Rust shows the errors of the system, and in its debug
/// format.
const CODES: [&str; 8] = [
    "(os error 11)",
    "(os error 12)",
    "(os error 23)",
    "(os error 24)",
    "code: 11,",
    "code: 12,",
    "code: 23,",
    "code: 24,",
];

/// The same in the words of the C library.
const WORDS: [&str; 4] = [
    "Resource temporarily unavailable",
    "Cannot allocate memory",
    "Too many open files",
    "cannot allocate memory",
];

/// Whether `reason` says that the machine was short of processes, threads, memory or descriptors.
pub(crate) fn is_named(reason: &str) -> bool {
    CODES.iter().chain(&WORDS).any(|sign| reason.contains(sign))
}

/// Counts the processes that the kernel killed for want of memory, as far as this one can see them.
#[derive(Debug)]
pub(crate) struct Kills {
    /// The file that counts them, and how many it has.
    seen: Option<(String, u64)>,
    /// When it was last seen to have more.
    rose: Option<Instant>,
}

/// How long a process that the kernel kills may take to end: its memory is taken apart first.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

impl Kills {
    /// Counts from now on.
    pub(crate) fn new() -> Self {
        Self {
            seen: killed(),
            rose: None,
        }
    }

    /// Whether there were any that may have ended just now.
    pub(crate) fn any_lately(&mut self) -> bool {
        self.look();
        self.rose.is_some_and(|rose| rose.elapsed() < ENDS_WITHIN)
    }

    /// Looks whether there are more. To be called now and then, so that an old one is not taken for
    /// one of now.
    pub(crate) fn look(&mut self) {
        let before = std::mem::replace(&mut self.seen, killed());
        let is_more = match (before, &self.seen) {
            (Some((before_in, before)), Some((now_in, now))) if before_in == *now_in => {
                *now > before
            }
            // This process was moved to another control group, which had none of its own before.
            (_, Some((_, now))) => *now > 0,
            _ => false,
        };
        if is_more {
            self.rose = Some(Instant::now());
        }
    }
}

/// How many were killed in the control group of this process, or in the whole system where that
/// counts none; and the file that says so.
fn killed() -> Option<(String, u64)> {
    let files = process::files_of_group("memory.events", "memory.oom_control");
    let files = files.chain(["/proc/vmstat".to_owned()]);
    let mut counted = files.filter_map(|file| {
        let text = fs::read_to_string(&file).ok()?;
        Some((file, counter(&text)?))
    });
    counted.next()
}

fn counter(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_known_in_the_words_of_whoever_ran_into_it() {
        for error in [11, 12, 23, 24] {
            let error = std::io::Error::from_raw_os_error(error);
            assert!(is_named(&format!("it did not start: {error}")), "{error}");
            assert!(is_named(&format!("a panic: {error:?}")), "{error:?}");
        }
        assert!(is_named(
            "x.so: failed to map segment from shared object: Cannot allocate memory"
        ));
        let missing = std::io::Error::from_raw_os_error(2);
        assert!(!is_named(&format!("{missing} {missing:?}")));
        assert!(!is_named("exit code: 1"));
    }

    #[test]
    fn the_kernel_counts_its_kills_in_all_its_files() {
        assert_eq!(
            counter("low 0\noom 3\noom_kill 2\noom_group_kill 0\n"),
            Some(2)
        );
        assert_eq!(
            counter("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
            Some(1)
        );
        assert_eq!(counter("low 0\n"), None);
    }
}
