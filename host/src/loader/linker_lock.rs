//! Turns with the dynamic linker.
//!
//! One library is mapped or unmapped at a time, so that what the dynamic linker says before and
//! after is about that one. It has a lock of its own besides, and holds it while initialisers of
//! libraries that a plugin brings along run. Whoever waits for either waits with a deadline, and is
//! told who has it.

use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

/// How long a turn is waited for. Mapping a library takes milliseconds.
pub(crate) const LONGEST: Duration = Duration::from_secs(5);

static TURN: Mutex<()> = Mutex::new(());

/// Who has the turn, and since when.
static HOLDER: Mutex<Option<(String, Instant)>> = Mutex::new(None);

/// A turn with the dynamic linker. It ends when it is dropped.
#[derive(Debug)]
pub(super) struct LinkerLock {
    _lock: MutexGuard<'static, ()>,
}

/// The dynamic linker is busy.
#[derive(Debug, thiserror::Error)]
#[error(
    "the dynamic linker has been {what} for {} s: an initialiser of a library that it brings along, or something that the plugin itself loads, \
     does not come back, and nothing can be loaded or unloaded before it does",
    .since.elapsed().as_secs()
)]
pub(super) struct Busy {
    /// With what, e.g. `loading shop 1.2.0 (0123456789ab)`.
    what: String,
    since: Instant,
}

impl LinkerLock {
    /// Waits for a turn to do `what` in. Blocks, at most for [`LONGEST`].
    ///
    /// # Errors
    /// Says who has it when it did not come.
    pub(super) fn take(what: String) -> Result<Self, Busy> {
        let began = Instant::now();
        match TURN.try_lock_for(LONGEST) {
            Some(lock) => {
                *HOLDER.lock() = Some((what, Instant::now()));
                Ok(Self { _lock: lock })
            }
            None => {
                let holder = HOLDER.lock().clone();
                let (what, since) = holder.unwrap_or_else(|| ("busy".to_owned(), began));
                Err(Busy { what, since })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn who_waits_too_long_is_told_who_has_it() {
        let lock = LinkerLock::take("loading shop 1.0.0 (0123)".to_owned()).unwrap();
        let waits =
            std::thread::spawn(|| LinkerLock::take("loading till 1.0.0 (4567)".to_owned()).err());
        let busy = waits.join().unwrap().unwrap().to_string();
        assert!(busy.contains("loading shop 1.0.0 (0123) for 5 s"), "{busy}");
        drop(lock);
        LinkerLock::take("loading till 1.0.0 (4567)".to_owned()).unwrap();
    }
}
