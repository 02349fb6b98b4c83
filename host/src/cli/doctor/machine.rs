//! What the kernel grants a process, and what libc there is.

use std::{fs, os::fd::AsFd, path::Path, time::SystemTime};

use nix::{
    sys::resource::{RLIM_INFINITY, Resource, getrlimit},
    unistd::Uid,
};

use super::Finding;
use crate::{artifact, config::Config, human, loader, open_files, ownership, process};

/// With fewer descriptors a host has none left for clients beside those that it keeps back.
const FEWEST_FILES: u64 = 128;

/// What Linux grants each process without a word of anybody: a generation takes ten, and two for
/// each thread.
const USUAL_MAPPINGS: u64 = 65_530;

/// A host with a few apps and its preflight child has less.
const FEW_THREADS: u64 = 256;

/// Below this a deploy, which has two versions and a child in memory, runs into the limit early.
const LITTLE_MEMORY: u64 = 256 << 20;

/// The beginning of 2026: no clock that is set shows less.
const BEFORE_ANY_HOST: u64 = 1_767_225_600;

/// Where programs find the journal of systemd.
const JOURNAL: &str = "/run/systemd/journal/socket";

/// What the host asks the kernel to queue for a listener.
const BACKLOG: u64 = 4096;

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let mut findings = vec![
        user(),
        system(),
        proc(),
        memory_files(),
        open_files(),
        mappings(),
        threads(),
        memory(),
    ];
    findings.extend(address_space());
    findings.extend(overcommit());
    findings.push(clock());
    findings.extend(backlog());
    findings.push(journal(config));
    findings
}

fn user() -> Finding {
    const CHECK: &str = "user";
    let uid = Uid::effective();
    let name = ownership::user_name(uid.as_raw());
    if uid.is_root() {
        return Finding::warning(
            CHECK,
            "this is root, as whom a plugin may do everything, and who is denied nothing of what follows",
            "run the host as a user of its own, and this as that one (`sudo -u handover handover doctor`)",
        );
    }
    Finding::ok(CHECK, format!("looked at as {name}"))
}

fn system() -> Finding {
    let libc = loader::libc_version();
    Finding::ok(
        "system",
        format!(
            "{} with glibc {libc}: plugins are built for that, with glibc {libc} or older",
            std::env::consts::ARCH
        ),
    )
}

fn proc() -> Finding {
    const CHECK: &str = "proc";
    if let Err(error) = process::own_program() {
        return Finding::error(CHECK, error);
    }
    for file in ["maps", "task", "fd", "status"] {
        if let Err(error) = fs::metadata(Path::new("/proc/self").join(file)) {
            return Finding::problem(
                CHECK,
                format!("/proc/self/{file} cannot be read ({error})"),
                "mount /proc whole: the host proves there that a library is unmapped",
            );
        }
    }
    Finding::ok(CHECK, "/proc is there")
}

/// Does what each load does: makes a file in memory, seals it, and maps it as code.
fn memory_files() -> Finding {
    const CHECK: &str = "memory-files";
    let file = match artifact::image::trial() {
        Ok(file) => file,
        Err(error) => return Finding::error(CHECK, error),
    };
    match loader::can_map_code(file.as_fd()) {
        Ok(()) => Finding::ok(
            CHECK,
            "files in memory can be made, sealed and mapped as code",
        ),
        Err(error) => Finding::problem(
            CHECK,
            format!("a file in memory cannot be mapped as code ({error})"),
            "allow it in the seccomp or SELinux policy of this service: every plugin is mapped so",
        ),
    }
}

fn open_files() -> Finding {
    const CHECK: &str = "open-files";
    match open_files::grantable() {
        Some(limit) if limit < FEWEST_FILES => Finding::problem(
            CHECK,
            format!("only {limit} files and connections can be open at a time"),
            open_files::RAISE_IT,
        ),
        Some(limit) if limit < open_files::FEW => Finding::warning(
            CHECK,
            format!("only {limit} files and connections can be open at a time"),
            open_files::RAISE_IT,
        ),
        Some(limit) => Finding::ok(
            CHECK,
            format!("{limit} files and connections can be open at a time"),
        ),
        None => Finding::ok(CHECK, "any number of files can be open"),
    }
}

fn mappings() -> Finding {
    const CHECK: &str = "mappings";
    match setting("vm/max_map_count") {
        Some(most) if most < USUAL_MAPPINGS => Finding::warning(
            CHECK,
            format!("a process may have only {most} mappings"),
            format!(
                "`sysctl vm.max_map_count={USUAL_MAPPINGS}`: threads and generations take some each, and a deploy fails for want of them"
            ),
        ),
        Some(most) => Finding::ok(CHECK, format!("{most} for a process")),
        None => Finding::ok(CHECK, "the kernel does not say how many there may be"),
    }
}

fn threads() -> Finding {
    const CHECK: &str = "threads";
    let of_user = getrlimit(Resource::RLIMIT_NPROC)
        .ok()
        .map(|(soft, _)| soft)
        .filter(|limit| *limit != RLIM_INFINITY);
    let of_group = process::files_of_group("pids.max", "pids.max")
        .filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
    let least = of_group
        .chain(of_user.filter(|_| !Uid::effective().is_root()))
        .min();
    match least {
        Some(most) if most < FEW_THREADS => Finding::warning(
            CHECK,
            format!("there may be only {most} threads and processes"),
            "raise it (--pids-limit of a container, TasksMax= of a unit, ulimit -u): each deploy starts a process and some threads",
        ),
        Some(most) => Finding::ok(CHECK, format!("there may be {most} threads and processes")),
        None => Finding::ok(CHECK, "there may be any number of threads and processes"),
    }
}

fn memory() -> Finding {
    const CHECK: &str = "memory";
    match process::memory_limit() {
        Some(most) if most < LITTLE_MEMORY => Finding::warning(
            CHECK,
            format!("{} may be used", human::memory(most)),
            "give it more: a deploy has two versions and a preflight child in memory at a time",
        ),
        Some(most) => Finding::ok(CHECK, format!("{} may be used", human::memory(most))),
        None => Finding::ok(CHECK, "the kernel does not say how much there may be"),
    }
}

/// Only where it is limited.
fn address_space() -> Option<Finding> {
    let (soft, _) = getrlimit(Resource::RLIMIT_AS).ok()?;
    (soft != RLIM_INFINITY).then(|| {
        Finding::warning(
            "address-space",
            format!("only {} of addresses may be reserved", human::memory(soft)),
            "lift the limit (ulimit -v, LimitAS= in a unit), and limit memory instead: heaps reserve more than they use",
        )
    })
}

/// Only where the kernel counts what is reserved, too.
fn overcommit() -> Option<Finding> {
    if setting("vm/overcommit_memory") != Some(2) {
        return None;
    }
    let (limit, used) = (
        process::of_machine("CommitLimit:")?,
        process::of_machine("Committed_AS:")?,
    );
    let left = human::memory(limit.saturating_sub(used));
    Some(Finding::warning(
        "overcommit",
        format!(
            "the kernel counts memory that is only reserved, of which {left} are left (vm.overcommit_memory=2)"
        ),
        "raise vm.overcommit_ratio, or set vm.overcommit_memory=0: a deploy fails when nothing is left, whatever is free",
    ))
}

fn clock() -> Finding {
    const CHECK: &str = "clock";
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let shown = human::timestamp(crate::clock::millis(now));
    if now.as_secs() < BEFORE_ANY_HOST {
        return Finding::warning(
            CHECK,
            format!("it shows {shown}"),
            "set it: certificates, schedules and the history go by it",
        );
    }
    Finding::ok(CHECK, format!("it shows {shown}"))
}

/// Only where connections find less room than the host asks for.
fn backlog() -> Option<Finding> {
    let most = setting("net/core/somaxconn").filter(|most| *most < BACKLOG)?;
    Some(Finding::warning(
        "backlog",
        format!("only {most} connections wait while a crashed host comes back"),
        format!("`sysctl net.core.somaxconn={BACKLOG}`"),
    ))
}

fn journal(config: &Config) -> Finding {
    const CHECK: &str = "log";
    if let Some(file) = &config.log.file {
        return Finding::ok(CHECK, format!("it goes to {}", file.display()));
    }
    if Path::new(JOURNAL).exists() {
        return Finding::ok(
            CHECK,
            "under systemd it goes to the journal, else to standard error",
        );
    }
    Finding::ok(
        CHECK,
        "it goes to standard error: there is no journal, and log.file names none",
    )
}

/// A number below `/proc/sys`.
fn setting(name: &str) -> Option<u64> {
    let text = fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
    text.trim().parse().ok()
}
