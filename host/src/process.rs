//! What the kernel says of this process. Zero where it says nothing.

use std::{fs, io, process::Command, time::Duration};

use nix::time::{ClockId, clock_gettime};

/// Starts this very program again, whatever lies at its path by now.
///
/// # Errors
/// The sentence for a person when there is no `/proc`, without which there is no host either: it
/// maps plugins by way of it.
pub(crate) fn own_program() -> io::Result<Command> {
    const PATH: &str = "/proc/self/exe";
    match fs::read_link(PATH) {
        Ok(_) => Ok(Command::new(PATH)),
        Err(error) => Err(io::Error::other(format!(
            "{PATH} cannot be read ({error}): mount /proc here (`mount -t proc proc /proc`), the host finds its own program and the \
             plugins that it has in memory there"
        ))),
    }
}

/// The resident memory.
pub(crate) fn resident_bytes() -> u64 {
    // `status` gives kilobytes; `statm` would give pages of a size one has to ask for.
    field("VmRSS:") * 1024
}

/// The memory that is nobody else's and of no file, be it resident or swapped out: what was
/// allocated and written to.
pub(crate) fn private_bytes() -> u64 {
    (field("RssAnon:") + field("VmSwap:")) * 1024
}

/// The memory that this process may have at most, in bytes: that of the machine, or of its control
/// group. None where the kernel does not say.
pub(crate) fn memory_limit() -> Option<u64> {
    memory_limit_of("self")
}

/// The same of the process that `/proc` has under this name.
pub(crate) fn memory_limit_of(process: &str) -> Option<u64> {
    let group = files_of(process, "memory.max", "memory.limit_in_bytes")
        .filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
    of_machine("MemTotal:").into_iter().chain(group).min()
}

/// A line of what the kernel says of the memory of the machine, in bytes.
pub(crate) fn of_machine(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    parse_field(&text, name).map(|kibibytes| kibibytes * 1024)
}

/// Where the files of the control group of this process are that limits memory: `unified` in
/// version 2 of the groups, `legacy` in version 1.
pub(crate) fn files_of_group(unified: &str, legacy: &str) -> impl Iterator<Item = String> {
    files_of("self", unified, legacy)
}

fn files_of(process: &str, unified: &str, legacy: &str) -> impl Iterator<Item = String> {
    let groups = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
    let files = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        match controllers {
            "" => Some(format!("/sys/fs/cgroup{path}/{unified}")),
            "memory" => Some(format!("/sys/fs/cgroup/memory{path}/{legacy}")),
            _ => None,
        }
    });
    files.collect::<Vec<_>>().into_iter()
}

/// The number of threads.
pub(crate) fn threads() -> u64 {
    field("Threads:")
}

/// The number of open descriptors.
pub(crate) fn descriptors() -> u64 {
    let folder = "/proc/self/fd";
    // Since Linux 6.2 that is the size of the folder; before, it is zero and they are counted.
    match fs::metadata(folder).map_or(0, |facts| facts.len()) {
        0 => fs::read_dir(folder).map_or(0, |list| list.count() as u64),
        number => number,
    }
}

/// The time of processors that was used, by the process and the kernel for it.
pub(crate) fn cpu() -> Duration {
    let used = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID);
    used.map(Duration::from).unwrap_or_default()
}

fn field(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    parse_field(&text, name).unwrap_or(0)
}

fn parse_field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_threads_descriptors_and_time() {
        assert!(resident_bytes() > 100_000);
        assert!((100_000..=resident_bytes()).contains(&private_bytes()));
        assert!(threads() >= 1);
        assert!((3..100_000).contains(&descriptors()));
        assert!(cpu() > Duration::ZERO);
        assert!(memory_limit() > Some(resident_bytes()));
    }
}
