//! When the next attempt is made.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

use super::{now, stored::Stored};
use crate::replace::replace;

/// The first pause after a failure. Each one doubles it.
const FIRST_PAUSE: i64 = 60;

/// The longest pause, unless the authority asks for a longer one.
const LONGEST_PAUSE: i64 = 6 * 3600;

/// The longest pause that an authority can ask for.
const LONGEST_ASKED: i64 = 7 * 86_400;

/// So many failures are forgiven at a start: who corrects a fault and starts the host does not
/// wait, and a host that is started over and over does not ask without end.
const FORGIVEN: u32 = 3;

/// How soon, how late and how often, when nothing is said, an authority is asked what it suggests.
const SUGGESTION_SOONEST: i64 = 60;
const SUGGESTION_LATEST: i64 = 86_400;
const SUGGESTION_EVERY: i64 = 6 * 3600;

/// A certificate is not renewed sooner after the last one: one that is valid for long, and one of
/// seconds.
const SOONEST_OF_LONG: i64 = 6 * 3600;
const SOONEST: i64 = 5;

/// The attempts since the last one that succeeded.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Attempts {
    pub(super) failures: u32,
    next: i64,
    pub(super) last_error: Option<String>,
}

/// What the authority suggests for the renewal (ARI, RFC 9773).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Suggested {
    /// When it is asked again, in seconds since 1970.
    pub(super) look_at: i64,
    window: Option<(i64, i64)>,
}

/// What an authority answered: the window, and after how many seconds it is asked again.
pub(super) type Suggestion = ((i64, i64), i64);

impl Attempts {
    fn path(file: &Path) -> PathBuf {
        file.with_extension("attempts.json")
    }

    /// Reads what an earlier run kept beside the certificate at `file`.
    pub(super) fn read(file: &Path) -> Self {
        let kept = fs::read(Self::path(file)).ok();
        kept.and_then(|kept| serde_json::from_slice(&kept).ok())
            .unwrap_or_default()
    }

    /// Keeps it for later runs, beside the certificate at `file`. Blocks on the disk.
    pub(super) fn keep(&self, file: &Path) -> io::Result<()> {
        let path = Self::path(file);
        if *self == Self::default() {
            return match fs::remove_file(path) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
                _ => Ok(()),
            };
        }
        let kept = serde_json::to_vec(self)?;
        replace(&path, &kept, Permissions::from_mode(0o600))
    }

    /// Counts one that failed.
    pub(super) fn failed(&mut self, cause: String, retry_after: Option<i64>) {
        let doubled = FIRST_PAUSE << self.failures.min(16);
        let pause = doubled.min(LONGEST_PAUSE);
        let asked = retry_after.unwrap_or(0).min(LONGEST_ASKED);
        self.failures += 1;
        // Hosts that failed at the same time do not come back at the same time.
        self.next = now() + pause.max(asked) + random(pause / 5);
        self.last_error = Some(cause);
    }

    /// When the next one is made.
    pub(super) fn next(&self) -> i64 {
        self.next
    }

    /// Before this none is made, whatever is due.
    pub(super) fn not_before(&self) -> i64 {
        if self.failures < FORGIVEN {
            0
        } else {
            self.next
        }
    }
}

impl Suggested {
    /// Takes what the authority answered, if it did, and returns when the certificate is renewed,
    /// if that is another time than before.
    pub(super) fn take(&mut self, answer: Option<Suggestion>, stored: &Stored) -> Option<i64> {
        let Some((window, pause)) = answer else {
            self.look_at = now() + SUGGESTION_EVERY;
            return None;
        };
        self.look_at = now() + pause.clamp(SUGGESTION_SOONEST, SUGGESTION_LATEST);
        if self.window.replace(window) == Some(window) {
            return None;
        }
        let (start, end) = window;
        let chosen = start + random(end - start);
        // A suggestion is none to let it end.
        Some(chosen.min(stored.not_after - lifetime(stored) / 10))
    }

    /// Whether the authority makes suggestions.
    pub(super) fn is_known(&self) -> bool {
        self.window.is_some()
    }
}

fn lifetime(stored: &Stored) -> i64 {
    (stored.not_after - stored.not_before).max(0)
}

/// When `stored` is renewed, unless the authority suggests another time.
pub(super) fn renewal(stored: &Stored, before: Option<Duration>) -> i64 {
    let lifetime = lifetime(stored);
    let before = before.map_or(lifetime / 3, |before| {
        i64::try_from(before.as_secs()).unwrap_or(i64::MAX)
    });
    let latest = stored.not_after - before.min(lifetime);
    // What was issued at the same time is not renewed at the same time.
    latest - random(lifetime / 50)
}

/// When the one after `stored`, which was just issued, is ordered at the soonest: an authority that
/// issues only what is near its end, or suggests to renew whatever it issues, is not asked without
/// end.
pub(super) fn soonest(stored: &Stored) -> i64 {
    let left = (stored.not_after - now()).max(0);
    now() + (left / 2).clamp(SOONEST, SOONEST_OF_LONG)
}

/// A random number up to `most`.
fn random(most: i64) -> i64 {
    let mut bytes = [0; 8];
    if most <= 0 || getrandom(&mut bytes, GetRandomFlags::empty()) != Ok(bytes.len()) {
        return 0;
    }
    (i64::from_le_bytes(bytes) & i64::MAX) % (most.saturating_add(1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    const DAY: i64 = 86_400;

    fn stored(age: i64, left: i64) -> Stored {
        Stored::between(now() - age, now() + left)
    }

    #[test]
    fn a_certificate_is_renewed_in_the_last_third_of_its_life_or_where_it_is_said() {
        let stored = stored(0, 90 * DAY);
        let third = renewal(&stored, None) - stored.not_before;
        assert!((58 * DAY..=60 * DAY).contains(&third), "{third}");
        let said = renewal(&stored, Some(Duration::from_secs(10 * 86_400))) - stored.not_before;
        assert!((78 * DAY..=80 * DAY).contains(&said), "{said}");
    }

    #[test]
    fn an_authority_that_issues_what_is_near_its_end_is_not_asked_without_end() {
        let stored = stored(80 * DAY, 10 * DAY);
        assert!(renewal(&stored, None) < now());
        assert!(soonest(&stored) >= now() + SOONEST_OF_LONG - 1);
        let ended = Stored::between(now() - DAY, now() - 1);
        assert!(soonest(&ended) > now());
    }

    #[test]
    fn pauses_grow_from_a_minute_to_hours_and_never_fall_below_what_is_asked() {
        let mut attempts = Attempts::default();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            attempts.failed("no".to_owned(), None);
            pauses.push(attempts.next() - now());
        }
        assert!((59..=73).contains(&pauses[0]), "{pauses:?}");
        assert!(
            pauses.windows(2).all(|two| two[1] * 2 > two[0]),
            "{pauses:?}"
        );
        let most = LONGEST_PAUSE + LONGEST_PAUSE / 5;
        assert!(pauses.iter().all(|pause| *pause <= most), "{pauses:?}");
        assert!(pauses[11] >= LONGEST_PAUSE - 1, "{pauses:?}");
        attempts.failed("no".to_owned(), Some(DAY));
        assert!(attempts.next() - now() >= DAY - 1);
        attempts.failed("no".to_owned(), Some(i64::MAX));
        assert!(attempts.next() - now() <= LONGEST_ASKED + most);
    }

    #[test]
    fn a_restart_forgives_few_failures_and_remembers_many() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("example.org.pem");
        let mut attempts = Attempts::default();
        attempts.failed("no".to_owned(), None);
        attempts.keep(&file).unwrap();
        assert_eq!(Attempts::read(&file).not_before(), 0);
        attempts.failed("no".to_owned(), None);
        attempts.failed("no".to_owned(), None);
        attempts.keep(&file).unwrap();
        assert_eq!(Attempts::read(&file), attempts);
        assert!(Attempts::read(&file).not_before() > now());
        Attempts::default().keep(&file).unwrap();
        assert_eq!(Attempts::read(&file), Attempts::default());
    }

    #[test]
    fn a_suggestion_counts_once_and_never_lets_a_certificate_end() {
        let stored = stored(0, 90 * DAY);
        let mut suggested = Suggested::default();
        assert_eq!(suggested.take(None, &stored), None);
        assert!(!suggested.is_known() && suggested.look_at > now());
        let window = (now() - 2 * DAY, now() - DAY);
        let next = suggested.take(Some((window, 1)), &stored).unwrap();
        assert!((window.0..=window.1).contains(&next));
        assert!(suggested.is_known() && suggested.look_at >= now() + SUGGESTION_SOONEST - 1);
        assert_eq!(suggested.take(Some((window, 1)), &stored), None);
        let late = (now() + 200 * DAY, now() + 201 * DAY);
        let next = suggested.take(Some((late, DAY)), &stored).unwrap();
        assert!(next <= stored.not_after - 9 * DAY);
    }
}
