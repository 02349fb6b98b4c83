//! The state directory and the drop folder: whether they can be written, by whom, and on what they
//! lie.

use std::{
    fs, io,
    path::Path,
    time::{Duration, SystemTime},
};

use rustix::fs::{Access, StatVfsMountFlags, access, statfs, statvfs};

use super::Finding;
use crate::{config::Config, human, ownership, watch};

/// Nothing can be stored with less: an artifact of a release build has some megabytes.
const TOO_LITTLE: u64 = 32 << 20;

/// Some versions of some apps, and their state.
const LITTLE: u64 = 512 << 20;

/// How far ahead of the clock a file may be that another machine has written.
const AHEAD: Duration = Duration::from_secs(60);

/// File systems on which something is other than a host expects, by the number that `statfs` tells.
const KINDS: &[(i64, &str, Kind)] = &[
    (0x6969, "nfs", Kind::Network),
    (0x517b, "smb", Kind::Network),
    (0xff53_4d42, "cifs", Kind::Network),
    (0xfe53_4d42, "smb2", Kind::Network),
    (0x0102_1997, "9p", Kind::Network),
    (0x00c3_6400, "ceph", Kind::Network),
    (0x6573_5546, "fuse", Kind::Network),
    (0x794c_7630, "overlay", Kind::Container),
    (0x0102_1994, "tmpfs", Kind::Memory),
    (0x8584_58f6, "ramfs", Kind::Memory),
];

/// What a file system keeps its files on.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Another machine, or a program.
    Network,
    /// The layer of a container.
    Container,
    /// Nothing that lasts.
    Memory,
}

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let (state, plugins) = (&config.server.state, &config.server.plugins);
    let mut findings = vec![writable("state", state)];
    let is_trusted = |check, path: &Path| {
        let secure = config.trust.insecure_paths || !path.exists();
        let error = (!secure).then(|| ownership::check(path).err()).flatten()?;
        Some(Finding::error(check, error))
    };
    findings.extend(is_trusted("state-owner", state));
    findings.extend(space(state));
    findings.extend(state_kind(state));
    findings.extend(written_ahead(state));
    findings.push(writable("drop-folder", plugins));
    findings.extend(is_trusted("drop-owner", plugins));
    findings.push(events(plugins));
    findings
}

/// The folder at `path`, or the nearest one above it that is there, in which it would be made.
fn existing(path: &Path) -> &Path {
    let found = path.ancestors().find(|folder| folder.exists());
    found.unwrap_or(Path::new("/"))
}

fn writable(check: &'static str, path: &Path) -> Finding {
    let folder = existing(path);
    let cannot = |error: &io::Error| {
        Finding::problem(
            check,
            format!("{} cannot be written: {error}", path.display()),
            "let the user of the host write there, or choose another folder in [server]",
        )
    };
    if !folder.is_dir() {
        return cannot(&io::ErrorKind::NotADirectory.into());
    }
    if let Ok(facts) = statvfs(folder)
        && facts.f_flag.contains(StatVfsMountFlags::RDONLY)
    {
        return cannot(&io::ErrorKind::ReadOnlyFilesystem.into());
    }
    if folder != path {
        return match access(folder, Access::WRITE_OK | Access::EXEC_OK) {
            Ok(()) => Finding::ok(
                check,
                format!("{} is made at the first start", path.display()),
            ),
            Err(error) => cannot(&error.into()),
        };
    }
    // What the permissions say is not all of it: a policy or a quota may say no.
    match tempfile::tempfile_in(folder) {
        Ok(_) => Finding::ok(check, format!("{} can be written", path.display())),
        Err(error) => cannot(&error),
    }
}

fn space(state: &Path) -> Option<Finding> {
    const CHECK: &str = "state-space";
    let facts = statvfs(existing(state)).ok()?;
    let free = facts.f_bavail.saturating_mul(facts.f_frsize);
    let message = format!("{} are free at {}", human::memory(free), state.display());
    let advice = "make room, or put the state on another disk: a deploy fails that finds none";
    Some(if facts.f_files > 0 && facts.f_favail == 0 {
        Finding::problem(
            CHECK,
            format!("the file system of {} has no inode left", state.display()),
            "delete files there: every artifact is one",
        )
    } else if free < TOO_LITTLE {
        Finding::problem(CHECK, message, advice)
    } else if free < LITTLE {
        Finding::warning(CHECK, message, advice)
    } else {
        Finding::ok(CHECK, message)
    })
}

fn kind(path: &Path) -> Option<(&'static str, Kind)> {
    let facts = statfs(existing(path)).ok()?;
    // The numbers have 32 bits, in a type that differs between machines.
    let number = facts.f_type as i64 & 0xffff_ffff;
    let found = KINDS.iter().find(|(magic, ..)| *magic == number);
    found.map(|(_, name, kind)| (*name, *kind))
}

fn state_kind(state: &Path) -> Option<Finding> {
    const CHECK: &str = "state-disk";
    let (name, kind) = kind(state)?;
    let message = format!("{} is on {name}", state.display());
    Some(match kind {
        Kind::Network => Finding::warning(
            CHECK,
            message,
            "put it on a local disk: what apps keep is as safe as what the network acknowledges, and each write waits for it",
        ),
        Kind::Container => Finding::warning(
            CHECK,
            message,
            "mount a volume there: what is live and what apps keep goes with the container",
        ),
        Kind::Memory => Finding::warning(
            CHECK,
            message,
            "put it on a disk: after a restart of the machine nothing is live, and what apps keep is gone",
        ),
    })
}

/// Whether something there is of a later time than now.
fn written_ahead(state: &Path) -> Option<Finding> {
    let newest = fs::read_dir(state)
        .ok()?
        .filter_map(|entry| entry.ok()?.metadata().ok()?.modified().ok())
        .max()?;
    let ahead = newest.duration_since(SystemTime::now()).ok()?;
    (ahead > AHEAD).then(|| {
        Finding::warning(
            "clock-before",
            format!(
                "the state was written {} ahead of the clock",
                human::duration(ahead)
            ),
            "set the clock: schedules and times of expiry wait until it has come there",
        )
    })
}

/// Whether the kernel tells what happens in the drop folder.
fn events(plugins: &Path) -> Finding {
    const CHECK: &str = "file-events";
    if let Some((name, Kind::Network)) = kind(plugins) {
        return Finding::warning(
            CHECK,
            format!(
                "{} is on {name}, where what others write is no event",
                plugins.display()
            ),
            "expect two seconds more for each drop, or use `handover deploy`",
        );
    }
    match watch::try_to_watch(existing(plugins)) {
        Ok(()) => Finding::ok(CHECK, "the kernel tells what is put into the drop folder"),
        Err(error) => Finding::warning(
            CHECK,
            format!("the drop folder cannot be watched ({error})"),
            "raise fs.inotify.max_user_instances and fs.inotify.max_user_watches; until then it is only looked at every two seconds",
        ),
    }
}
