//! The registry of listening sockets: each has a key, by which one process finds what another one
//! hands to it.
//!
//! The supervisor binds all of them and hands them to each host that it starts, so that clients
//! wait in the queues of the sockets while there is no host. The bytes of a key are read by the
//! next version of this program: what is added to it comes at the end.

use std::{
    fmt, io,
    os::fd::{AsFd, OwnedFd, RawFd},
    str::FromStr,
};

use listenfd::ListenFd;
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

use super::bind::{Bound, SocketError, bind};
use crate::config::{Config, Listen, ListenAddress, ListenSocket, SocketOptions};

/// What a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ListenerKind {
    /// Requests for apps.
    Http,
    /// `GET /metrics`.
    Metrics,
    /// The control socket. Its file belongs to the state directory, so the host that has locked
    /// that binds it; nobody hands it on yet.
    Control,
    /// The page for browsers.
    Dashboard,
}

/// What tells one listener from another, in this process and the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListenerKey {
    /// What it is for.
    pub kind: ListenerKind,
    /// A name, where the configuration gives one. Without a comma.
    pub name: String,
    /// The address as it is configured, which may leave the port to the system.
    pub address: ListenAddress,
}

/// The text of a key is none.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no key of a listener: --socket is for the host's own use")]
pub(crate) struct InvalidKey(String);

/// A socket that a listener has: its key, where it has one, what is configured of it, and itself.
pub(crate) type Claimed = (Option<ListenerKey>, Listen, Bound);

/// Listening sockets by key.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    keyed: Vec<(ListenerKey, Bound)>,
    /// Those of a service manager, which knows no keys, each with the name that it has there.
    unkeyed: Vec<(String, Bound)>,
}

/// Sockets that a child inherits: one behind the other, as the protocol of `LISTEN_FDS` wants it.
#[derive(Debug, Default)]
pub(crate) struct HandedOn {
    sockets: Vec<OwnedFd>,
    keys: Vec<ListenerKey>,
}

/// The sockets that `config` wants, but for the control socket, and those that only a service
/// manager has.
pub(crate) fn wanted(config: &Config) -> Vec<(ListenerKey, SocketOptions)> {
    let http = keyed(config).into_iter();
    let http = http.filter_map(|(key, listen)| Some((key?, listen.options)));
    let metrics = metrics(config).map(|key| (key, SocketOptions::default()));
    let dashboard = dashboard(config).map(|key| (key, SocketOptions::default()));
    http.chain(metrics).chain(dashboard).collect()
}

/// Binds the socket of `key` and gives it up again, to find out whether that can be done.
///
/// # Errors
/// What is in the way, and what to do.
pub(crate) fn try_to_bind(key: &ListenerKey, options: &SocketOptions) -> Result<(), SocketError> {
    bind(key, options).map(drop)
}

/// The listeners that serve apps, each with its key, if it has an address.
pub(super) fn keyed(config: &Config) -> Vec<(Option<ListenerKey>, Listen)> {
    let mut keyed: Vec<(Option<ListenerKey>, Listen)> = Vec::new();
    for listen in config.listeners() {
        let key = match &listen.socket {
            ListenSocket::Named(_) => None,
            ListenSocket::Address(address) => {
                // Several may leave their ports to the system.
                let same = |(key, _): &&(Option<ListenerKey>, Listen)| {
                    key.as_ref().is_some_and(|key| key.address == *address)
                };
                let name = match keyed.iter().filter(same).count() {
                    0 => String::new(),
                    before => format!("{}", before + 1),
                };
                Some(ListenerKey {
                    kind: ListenerKind::Http,
                    name,
                    address: address.clone(),
                })
            }
        };
        keyed.push((key, listen));
    }
    keyed
}

/// The key of the listener of the metrics, if there is to be one.
pub(crate) fn metrics(config: &Config) -> Option<ListenerKey> {
    let address = config.metrics.listen?;
    Some(ListenerKey {
        kind: ListenerKind::Metrics,
        name: String::new(),
        address: address.into(),
    })
}

/// The key of the listener of the dashboard, if there is to be one from the beginning.
pub(crate) fn dashboard(config: &Config) -> Option<ListenerKey> {
    let address = config.dashboard.listen?;
    Some(ListenerKey {
        kind: ListenerKind::Dashboard,
        name: String::new(),
        address: address.get().into(),
    })
}

impl ListenerKind {
    const ALL: [Self; 4] = [Self::Http, Self::Metrics, Self::Control, Self::Dashboard];

    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Metrics => "metrics",
            Self::Control => "control",
            Self::Dashboard => "dashboard",
        }
    }
}

impl fmt::Display for ListenerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            name,
            address,
        } = self;
        write!(f, "{},{name},{address}", kind.as_str())
    }
}

impl FromStr for ListenerKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let invalid = || InvalidKey(text.to_owned());
        let mut parts = text.splitn(3, ',');
        let mut next = || parts.next().ok_or_else(invalid);
        let (kind, name, address) = (next()?, next()?, next()?);
        Ok(Self {
            kind: *ListenerKind::ALL
                .iter()
                .find(|known| known.as_str() == kind)
                .ok_or_else(invalid)?,
            name: name.to_owned(),
            address: address.parse().map_err(|_| invalid())?,
        })
    }
}

impl Listeners {
    /// Takes the sockets that this process was started with, by the protocol of `LISTEN_FDS`:
    /// `keys` are those of our own supervisor, in the order of the descriptors; without any they
    /// are a service manager's.
    ///
    /// Takes the variables out of the environment, so it is called before there is a second thread,
    /// and once.
    ///
    /// # Errors
    /// When one of them is no listening stream socket.
    pub(crate) fn inherited(keys: Vec<ListenerKey>) -> Result<Self, SocketError> {
        // It stays in the environment: only `LISTEN_FDS` says that it means anything.
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut keys = keys.into_iter();
        let mut given = ListenFd::from_env();
        let mut listeners = Self::default();
        for number in 0..given.len() {
            let bound = Bound::inherited(&mut given, number)?;
            let name = names.next().unwrap_or_default();
            match keys.next() {
                Some(key) => listeners.keyed.push((key, bound)),
                None => listeners.unkeyed.push((name.to_owned(), bound)),
            }
        }
        Ok(listeners)
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.keyed.is_empty() && self.unkeyed.is_empty()
    }

    /// Binds the socket of `key`, unless it is here already.
    ///
    /// # Errors
    /// What is in the way, and what to do.
    pub(crate) fn bind(
        &mut self,
        key: &ListenerKey,
        options: &SocketOptions,
    ) -> Result<(), SocketError> {
        if self.keyed.iter().all(|(known, _)| known != key) {
            let bound = bind(key, options)?;
            self.keyed.push((key.clone(), bound));
        }
        Ok(())
    }

    /// Puts `socket` here as that of `key`.
    ///
    /// # Errors
    /// When it is no listening stream socket.
    pub(crate) fn put(&mut self, key: ListenerKey, socket: OwnedFd) -> io::Result<()> {
        let bound = Bound::of(socket)?;
        self.remove(&key);
        self.keyed.push((key, bound));
        Ok(())
    }

    /// Closes the socket of `key` in this process.
    pub(crate) fn remove(&mut self, key: &ListenerKey) {
        self.keyed.retain(|(known, _)| known != key);
    }

    /// Takes the socket of `key` out, and binds it where nobody handed it over.
    ///
    /// # Errors
    /// What is in the way, and what to do.
    pub(crate) fn take(
        &mut self,
        key: &ListenerKey,
        options: &SocketOptions,
    ) -> Result<Bound, SocketError> {
        match self.keyed.iter().position(|(known, _)| known == key) {
            Some(at) => Ok(self.keyed.swap_remove(at).1),
            None => bind(key, options),
        }
    }

    /// Takes the sockets of all listeners that serve apps out, and binds those that nobody handed
    /// over. What a service manager has handed over beside those that a `[[listen]]` names stands
    /// for the one line `server.listen`.
    ///
    /// # Errors
    /// What is in the way, and what to do.
    pub(crate) fn claim(&mut self, config: &Config) -> Result<Vec<Claimed>, SocketError> {
        let mut claimed = Vec::new();
        let mut one_line = None;
        for (key, listen) in keyed(config) {
            let found = self.unkeyed_of(&listen.socket);
            match key {
                // The one line: it is looked at when all others have theirs.
                Some(key) if listen.is_one_line() => one_line = Some((key, listen)),
                _ if !found.is_empty() => {
                    claimed.extend(found.into_iter().map(|bound| (None, listen.clone(), bound)));
                }
                Some(key) => {
                    let bound = self.take(&key, &listen.options)?;
                    claimed.push((Some(key), listen, bound));
                }
                None => {
                    return Err(SocketError::NotHandedOver {
                        place: listen.place.clone(),
                        socket: listen.socket,
                    });
                }
            }
        }
        let left = std::mem::take(&mut self.unkeyed);
        match one_line {
            None if left.is_empty() => {}
            None => {
                let names: Vec<_> = left.iter().map(|(name, _)| format!("`{name}`")).collect();
                return Err(SocketError::NotListened(names.join(", ")));
            }
            Some((key, listen)) if left.is_empty() => {
                let bound = self.take(&key, &listen.options)?;
                claimed.insert(0, (Some(key), listen, bound));
            }
            Some((_, listen)) => {
                for (at, (_, bound)) in left.into_iter().enumerate() {
                    claimed.insert(at, (None, listen.clone(), bound));
                }
            }
        }
        Ok(claimed)
    }

    /// Takes those of a service manager out that have this name, or this address.
    fn unkeyed_of(&mut self, wanted: &ListenSocket) -> Vec<Bound> {
        let is_wanted = |name: &str, bound: &Bound| match wanted {
            ListenSocket::Named(wanted) => name == wanted,
            ListenSocket::Address(wanted) => bound
                .local_address()
                .is_ok_and(|address| address == *wanted),
        };
        let all = std::mem::take(&mut self.unkeyed);
        let (found, others) = all
            .into_iter()
            .partition(|(name, bound)| is_wanted(name, bound));
        self.unkeyed = others;
        let found: Vec<(String, Bound)> = found;
        found.into_iter().map(|(_, bound)| bound).collect()
    }

    /// Makes copies that a child inherits. They stay open as long as the value lives.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub(crate) fn hand_on(&self) -> io::Result<HandedOn> {
        let mut handed = HandedOn::default();
        // Numbers that are in the way stay taken until the end, so that each attempt begins beyond
        // them.
        let mut in_the_way = Vec::new();
        while handed.sockets.len() < self.keyed.len() {
            let (key, bound) = &self.keyed[handed.sockets.len()];
            let wanted = handed.sockets.last().map(|last| number(last) + 1);
            let copy = fcntl_dupfd_cloexec(bound.as_fd(), wanted.unwrap_or(3))?;
            if wanted.is_some_and(|wanted| number(&copy) != wanted) {
                in_the_way.append(&mut handed.sockets);
                in_the_way.push(copy);
                handed.keys.clear();
                continue;
            }
            handed.sockets.push(copy);
            handed.keys.push(key.clone());
        }
        for socket in &handed.sockets {
            fcntl_setfd(socket, FdFlags::empty())?;
        }
        Ok(handed)
    }
}

fn number(socket: &OwnedFd) -> RawFd {
    std::os::fd::AsRawFd::as_raw_fd(socket)
}

impl HandedOn {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.sockets.len()
    }

    /// The number of the first one; the others follow it.
    pub(crate) fn first(&self) -> RawFd {
        self.sockets.first().map_or(3, number)
    }

    /// The arguments that tell the child which is which.
    pub(crate) fn arguments(&self) -> impl Iterator<Item = String> {
        self.keys
            .iter()
            .flat_map(|key| ["--socket".to_owned(), key.to_string()])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    fn key(name: &str) -> ListenerKey {
        ListenerKey {
            kind: ListenerKind::Http,
            name: name.to_owned(),
            address: "127.0.0.1:0".parse().unwrap(),
        }
    }

    #[test]
    fn a_key_is_read_as_it_was_written() {
        for text in [
            "http,,127.0.0.1:8080",
            "http,web,[::]:443",
            "metrics,,127.0.0.1:0",
            "dashboard,,[::1]:9000",
            "control,a b,unix:/run/a,b/c.sock",
        ] {
            let key: ListenerKey = text.parse().unwrap();
            assert_eq!(key.to_string(), text);
        }
        for wrong in ["", "http", "http,,", "ftp,,127.0.0.1:1", "http,127.0.0.1:1"] {
            wrong.parse::<ListenerKey>().unwrap_err();
        }
    }

    #[test]
    fn what_is_handed_on_lies_one_behind_the_other_whatever_is_open_in_between() {
        let mut listeners = Listeners::default();
        let mut others = Vec::new();
        for name in ["a", "b", "c", "d"] {
            listeners
                .bind(&key(name), &SocketOptions::default())
                .unwrap();
            others.push(std::fs::File::open("/dev/null").unwrap());
        }
        // Leaves gaps.
        others.remove(1);
        others.remove(2);
        let handed = listeners.hand_on().unwrap();
        assert_eq!(handed.count(), 4);
        let numbers: Vec<_> = handed.sockets.iter().map(number).collect();
        let first = handed.first();
        assert!(numbers.iter().copied().eq(first..first + 4), "{numbers:?}");
        let arguments: Vec<_> = handed.arguments().collect();
        assert_eq!(arguments[2..4], ["--socket", "http,b,127.0.0.1:0"]);
    }

    fn config(toml: &str) -> Config {
        Config::parse(toml).unwrap()
    }

    #[test]
    fn sockets_of_a_service_manager_go_to_whoever_names_them() {
        let handed = |names: &[&str]| {
            let mut listeners = Listeners::default();
            for name in names {
                let bound = bind(&key(name), &SocketOptions::default()).unwrap();
                listeners.unkeyed.push(((*name).to_owned(), bound));
            }
            listeners
        };
        let place = |claimed: &[Claimed]| -> Vec<String> {
            claimed
                .iter()
                .map(|(_, listen, _)| listen.place.clone())
                .collect()
        };
        let any = "[server]\nlisten = \"127.0.0.1:0\"\n";
        let web = "[[listen]]\nsocket = \"web\"\n";
        // Without names all of them are the one line's.
        let claimed = handed(&["", "x"]).claim(&config(any)).unwrap();
        assert_eq!(place(&claimed), ["server.listen", "server.listen"]);
        // Two of one name.
        let claimed = handed(&["web", "web"]).claim(&config(web)).unwrap();
        assert_eq!(place(&claimed).len(), 2);
        let both = config(&format!("{any}{web}"));
        let claimed = handed(&["web"]).claim(&both).unwrap();
        assert_eq!(
            place(&claimed),
            ["server.listen", "/handover.toml:3: listen"]
        );
        let error = handed(&["web", "ftp"]).claim(&config(web)).unwrap_err();
        assert!(error.to_string().contains("`ftp`"), "{error}");
        let error = handed(&[]).claim(&config(web)).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("/handover.toml:1: listen.socket"),
            "{error}"
        );
        // By its address.
        let mut listeners = handed(&["", ""]);
        let at = listeners.unkeyed[1].1.local_address().unwrap();
        let named = config(&format!("{any}[[listen]]\naddress = \"{at}\"\n"));
        let claimed = listeners.claim(&named).unwrap();
        assert_eq!(claimed[1].2.local_address().unwrap(), at);
        assert_eq!(claimed.len(), 2);
    }

    #[test]
    fn those_that_leave_their_ports_to_the_system_are_told_apart() {
        let any = "[[listen]]\naddress = \"127.0.0.1:0\"\n";
        let wanted = wanted(&config(&format!(
            "{any}{any}[metrics]\nlisten = \"127.0.0.1:0\"\n"
        )));
        let keys: Vec<_> = wanted.iter().map(|(key, _)| key.to_string()).collect();
        assert_eq!(
            keys,
            [
                "http,,127.0.0.1:0",
                "http,2,127.0.0.1:0",
                "metrics,,127.0.0.1:0"
            ]
        );
    }

    #[test]
    fn a_socket_is_found_by_its_key() {
        let mut listeners = Listeners::default();
        for name in ["a", "b"] {
            listeners
                .bind(&key(name), &SocketOptions::default())
                .unwrap();
        }
        let at = |bound: &Bound| bound.local_address().unwrap();
        let b = at(&listeners.keyed[1].1);
        listeners
            .bind(&key("b"), &SocketOptions::default())
            .unwrap();
        let taken = listeners
            .take(&key("b"), &SocketOptions::default())
            .unwrap();
        assert_eq!(at(&taken), b);
        // It is gone, so it is bound anew.
        let again = listeners
            .take(&key("b"), &SocketOptions::default())
            .unwrap();
        assert_ne!(at(&again), b);
    }
}
