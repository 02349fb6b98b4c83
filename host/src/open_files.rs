//! How many files and connections this process may have open: as many as the system grants it.
//!
//! The soft limit is 1,024 nearly everywhere, for the sake of programs that use `select`; a
//! connection takes one, and a generation four. A process may raise it to the hard limit by itself,
//! and whoever means to limit it sets that one.

use std::os::fd::RawFd;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// Below this an operator should know: a host with some apps and a thousand clients is beyond it.
const FEW: u64 = 4096;

/// How many descriptors are kept back at least and at most. A deploy takes about 15 at a time.
const RESERVE: (u64, u64) = (24, 1024);

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
            "few files and connections can be open at a time: raise the hard limit (ulimit -Hn, LimitNOFILE= in a systemd unit)"
        ),
        limit => tracing::debug!(limit, "files and connections that can be open at a time"),
    }
}

/// How many can be open at a time; none = any number, or the system does not say.
pub(crate) fn limit() -> Option<u64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    (soft != RLIM_INFINITY).then_some(soft)
}

/// The first descriptor that is not for clients: the last ones, a quarter but not too many, are
/// kept for the control socket, deploys, and what plugins open. None where there is no limit.
pub(crate) fn first_reserved() -> Option<RawFd> {
    let limit = limit()?;
    let reserve = (limit / 4).clamp(RESERVE.0, RESERVE.1);
    RawFd::try_from(limit.saturating_sub(reserve)).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn the_limit_is_raised_to_what_the_system_grants() {
        raise();
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(limit(), (hard != RLIM_INFINITY).then_some(hard));
    }
}
