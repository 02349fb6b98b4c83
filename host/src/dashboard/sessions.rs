//! Links that are good once, and the sessions that they become. They end with the host.

use std::{
    collections::HashMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::{Digest as _, Sha256};

use crate::access::Peer;

/// How long a link waits for its browser.
pub(super) const LINK: Duration = Duration::from_secs(5 * 60);

/// How long a session lasts after its last request.
const IDLE: Duration = Duration::from_secs(12 * 3600);

/// How many there may be of each; the oldest goes.
const MANY: usize = 64;

/// Bytes of a secret.
const SECRET: usize = 32;

/// All of them. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Sessions(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    links: HashMap<Hashed, Entry>,
    /// By their ids, which stand in paths.
    sessions: HashMap<String, Session>,
}

/// What is kept of a secret: so a comparison tells nothing of it by the time that it takes.
type Hashed = [u8; 32];

#[derive(Debug)]
struct Entry {
    peer: Peer,
    used: Instant,
}

#[derive(Debug)]
struct Session {
    secret: Hashed,
    entry: Entry,
}

/// A session that a browser has just begun.
#[derive(Debug)]
pub(super) struct NewSession {
    /// What its paths begin with.
    pub(super) id: String,
    /// What its cookie holds.
    pub(super) secret: String,
}

impl Sessions {
    /// Makes a token for a browser of `peer`.
    ///
    /// # Errors
    /// When the kernel has no random bytes.
    pub(super) fn link(&self, peer: Peer) -> io::Result<String> {
        let token = random()?;
        let mut inner = self.0.lock();
        inner.sweep();
        let used = Instant::now();
        inner.links.insert(hashed(&token), Entry { peer, used });
        trim(&mut inner.links, |entry| entry.used);
        Ok(token)
    }

    /// Uses a token up.
    ///
    /// # Errors
    /// When the kernel has no random bytes. None: the token is none, not any more, or too old.
    pub(super) fn begin(&self, token: &str) -> io::Result<Option<NewSession>> {
        let (id, secret) = (random()?, random()?);
        let mut inner = self.0.lock();
        inner.sweep();
        let Some(Entry { peer, .. }) = inner.links.remove(&hashed(token)) else {
            return Ok(None);
        };
        let used = Instant::now();
        let session = Session {
            secret: hashed(&secret),
            entry: Entry { peer, used },
        };
        inner.sessions.insert(id.clone(), session);
        trim(&mut inner.sessions, |session| session.entry.used);
        Ok(Some(NewSession { id, secret }))
    }

    /// Whose session this is, which goes on; none if the secret is not that of the session.
    pub(super) fn of(&self, id: &str, secret: &str) -> Option<Peer> {
        let mut inner = self.0.lock();
        inner.sweep();
        let session = inner.sessions.get_mut(id)?;
        if session.secret != hashed(secret) {
            return None;
        }
        session.entry.used = Instant::now();
        Some(session.entry.peer)
    }

    /// Whether a session that a stream is of has not ended. It goes on.
    pub(super) fn goes_on(&self, id: &str) -> bool {
        let mut inner = self.0.lock();
        let session = inner.sessions.get_mut(id);
        session.is_some_and(|session| {
            session.entry.used = Instant::now();
            true
        })
    }

    /// Ends a session.
    pub(super) fn end(&self, id: &str) {
        self.0.lock().sessions.remove(id);
    }

    /// Whether there is neither a session nor a link that may become one.
    pub(super) fn is_empty(&self) -> bool {
        let mut inner = self.0.lock();
        inner.sweep();
        inner.links.is_empty() && inner.sessions.is_empty()
    }
}

impl Inner {
    fn sweep(&mut self) {
        self.links.retain(|_, link| link.used.elapsed() < LINK);
        self.sessions
            .retain(|_, session| session.entry.used.elapsed() < IDLE);
    }
}

/// Forgets the oldest where there are too many.
fn trim<K: Clone + Eq + std::hash::Hash, V>(all: &mut HashMap<K, V>, used: impl Fn(&V) -> Instant) {
    while all.len() > MANY {
        let oldest = all.iter().min_by_key(|(_, one)| used(one));
        let Some(oldest) = oldest.map(|(key, _)| key.clone()) else {
            return;
        };
        all.remove(&oldest);
    }
}

fn hashed(secret: &str) -> Hashed {
    Sha256::digest(secret).into()
}

/// A secret as text that fits into a path and a cookie.
fn random() -> io::Result<String> {
    let mut bytes = [0; SECRET];
    let mut filled = 0;
    while filled < SECRET {
        filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty())?;
    }
    Ok(BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    const PEER: Peer = Peer { uid: 7, gid: 8 };

    #[test]
    fn a_link_becomes_one_session_and_no_second_one() {
        let sessions = Sessions::default();
        assert!(sessions.is_empty());
        let token = sessions.link(PEER).unwrap();
        assert!(!sessions.is_empty());
        assert!(sessions.begin("another").unwrap().is_none());
        let begun = sessions.begin(&token).unwrap().unwrap();
        assert!(sessions.begin(&token).unwrap().is_none());
        assert_eq!(sessions.of(&begun.id, &begun.secret).unwrap().uid, 7);
        assert!(sessions.of(&begun.id, "another").is_none());
        assert!(sessions.of("another", &begun.secret).is_none());
        assert!(sessions.goes_on(&begun.id));
        sessions.end(&begun.id);
        assert!(sessions.of(&begun.id, &begun.secret).is_none());
        assert!(!sessions.goes_on(&begun.id) && sessions.is_empty());
    }

    #[test]
    fn links_that_nobody_uses_make_room() {
        let sessions = Sessions::default();
        let first = sessions.link(PEER).unwrap();
        let tokens: Vec<_> = (0..MANY).map(|_| sessions.link(PEER).unwrap()).collect();
        assert!(sessions.begin(&first).unwrap().is_none());
        assert!(sessions.begin(&tokens[MANY - 1]).unwrap().is_some());
    }
}
