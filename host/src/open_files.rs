//! How many files and connections this process may have open: as many as the system grants it.
//!
//! The soft limit is 1,024 nearly everywhere, for the sake of programs that use `select`; a
//! connection takes one, and a generation four. A process may raise it to the hard limit by itself,
//! and whoever means to limit it sets that one.

use std::os::fd::RawFd;

use crate::process;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// Below this an operator should know: a host with some apps and a thousand clients is beyond it.
pub(crate) const FEW: u64 = 4096;

/// What to do about it.
pub(crate) const RAISE_IT: &str =
    "raise the hard limit (ulimit -Hn, LimitNOFILE= in a systemd unit)";

/// How many descriptors are kept back at least and at most. A deploy takes about 20 at a time, and
/// the control socket keeps some of them for itself.
const RESERVE: (u64, u64) = (32, 1024);

/// How many of them the control socket keeps open for itself, at most: enough for some calls and a
/// deploy.
const CONTROL: usize = 24;

/// What a connection of a client takes in bytes when it is busy, with its buffers and those of the
/// kernel, and without what its app makes of it.
const OF_A_CONNECTION: u64 = 64 << 10;

/// The most connections without a word of the configuration. Beyond it one who knows the machine
/// sets `max_connections`.
const MOST: usize = 1 << 20;

/// Raises the limit as far as it goes, and tells what it is. A system that denies it is told of,
/// and lived with.
pub(crate) fn raise() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft == hard {
            return Ok(());
        }
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    });
    if let Err(error) = raised {
        tracing::warn!("the limit of open files stays what it is: {error}");
    }
    match limit() {
        Some(limit) if limit < FEW => tracing::warn!(
            limit,
            "few files and connections can be open at a time: {RAISE_IT}"
        ),
        limit => tracing::debug!(limit, "files and connections that can be open at a time"),
    }
}

/// How many can be open at a time; none = any number, or the system does not say.
pub(crate) fn limit() -> Option<u64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    (soft != RLIM_INFINITY).then_some(soft)
}

/// How many could be open when [`raise`] has been called; none = any number, or the system does not
/// say.
pub(crate) fn grantable() -> Option<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    (hard != RLIM_INFINITY).then_some(hard)
}

/// The first descriptor that is not for clients: the last ones, a quarter but not too many, are
/// kept for the control socket, deploys, and what plugins open. None where there is no limit.
pub(crate) fn first_reserved() -> Option<RawFd> {
    let limit = limit()?;
    RawFd::try_from(limit.saturating_sub(reserve(limit))).ok()
}

fn reserve(limit: u64) -> u64 {
    (limit / 4).clamp(RESERVE.0, RESERVE.1)
}

/// How many of those the control socket keeps open for itself.
pub(crate) fn kept_for_control() -> usize {
    let reserve = limit().map_or(RESERVE.1, reserve);
    usize::try_from(reserve / 4).map_or(CONTROL, |part| part.min(CONTROL))
}

/// How many connections clients may have at a time, as far as descriptors and memory go.
pub(crate) fn most_connections() -> usize {
    most(
        first_reserved().and_then(|number| usize::try_from(number).ok()),
        process::memory_limit(),
    )
}

fn most(descriptors: Option<usize>, memory: Option<u64>) -> usize {
    let by_memory = memory.map(|bytes| bytes / 2 / OF_A_CONNECTION);
    let by_memory = by_memory.and_then(|number| usize::try_from(number).ok());
    let least = descriptors
        .unwrap_or(usize::MAX)
        .min(by_memory.unwrap_or(usize::MAX));
    least.clamp(1, MOST)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn connections_are_bounded_by_what_is_scarcest() {
        assert_eq!(most(Some(768), Some(64 << 30)), 768);
        assert_eq!(most(Some(1 << 19), Some(512 << 20)), 4096);
        assert_eq!(most(None, None), MOST);
        assert_eq!(most(Some(0), Some(0)), 1);
    }

    #[test]
    fn the_limit_is_raised_to_what_the_system_grants() {
        raise();
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(limit(), (hard != RLIM_INFINITY).then_some(hard));
    }
}
