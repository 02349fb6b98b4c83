//! `[server]`: what is one for the whole host.

use std::{
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::absolute;
use crate::{
    origin::origin,
    values::{self, MANY, THREADS},
};

const MAX_CRASHES: NonZeroUsize = NonZeroUsize::new(3).unwrap();

/// `[server]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Where to serve. Default `127.0.0.1:8080`, and nowhere where there is a `[[listen]]`.
    pub listen: Option<SocketAddr>,
    /// Worker threads. Default: one for each core.
    #[serde(deserialize_with = "values::count::<1, THREADS, _, _>")]
    pub workers: Option<NonZeroUsize>,
    /// Workers that sleep until a request holds one of the others for longer than
    /// [`Server::stall_after`]. Default 2.
    #[serde(deserialize_with = "values::count::<0, THREADS, _, _>")]
    pub spare_workers: usize,
    /// How long a plugin may hold a worker in one go before people are told. None = never looked
    /// at. Default 1 s.
    #[serde(with = "values::limit")]
    pub stall_after: Option<Duration>,
    /// The drop folder. Default `./plugins`, under systemd that in `StateDirectory=`.
    pub plugins: PathBuf,
    /// The state directory. Default `./.handover`, under systemd `StateDirectory=`.
    pub state: PathBuf,
    /// The control socket. Default `<state>/control.sock`, under systemd that in
    /// `RuntimeDirectory=`; [`Server::resolve`] fills it in.
    pub control: PathBuf,
    /// Whether answers carry `handover-version` and `handover-generation`. Default: without a
    /// configuration file only.
    pub version_header: bool,
    /// Whether the host answers `/livez` and `/readyz` at every listener before any app is asked.
    /// Default no.
    pub health_routes: bool,
    /// Whether requests get an id, and a context of a trace that is none is replaced. Default no.
    pub request_id: bool,
    /// How long `shutdown` waits for what is in flight. Default 30 s.
    #[serde(with = "values::span")]
    pub shutdown_deadline: Duration,
    /// After how many crashes within [`Server::crash_window`] the app that was changed last is
    /// rolled back. Default 3.
    #[serde(deserialize_with = "values::count::<1, MANY, _, _>")]
    pub max_crashes: NonZeroUsize,
    /// Default 60 s.
    #[serde(with = "values::span")]
    pub crash_window: Duration,
    /// How much replaced generations may leave behind before the operator is told.
    pub leak_budget: LeakBudget,
    /// [`Timeouts::first_byte`]
    #[serde(with = "values::patience")]
    pub first_byte_timeout: Option<Duration>,
    /// [`Timeouts::head`]
    #[serde(with = "values::patience")]
    pub head_timeout: Option<Duration>,
    /// [`Timeouts::body`]
    #[serde(with = "values::patience")]
    pub body_timeout: Option<Duration>,
    /// [`Timeouts::idle`]
    #[serde(with = "values::patience")]
    pub idle_timeout: Option<Duration>,
    /// [`Timeouts::write`]
    #[serde(with = "values::patience")]
    pub write_timeout: Option<Duration>,
    /// [`Timeouts::http2_ping`]
    #[serde(with = "values::patience")]
    pub http2_ping: Option<Duration>,
    /// [`Timeouts::http2_pong`]
    #[serde(with = "values::span")]
    pub http2_ping_timeout: Duration,
    /// [`Clients::max_connections`]
    #[serde(deserialize_with = "values::count::<1, MANY, _, _>")]
    pub max_connections: Option<NonZeroUsize>,
    /// [`Clients::max_connections_per_address`]
    #[serde(deserialize_with = "values::count::<1, MANY, _, _>")]
    pub max_connections_per_address: Option<NonZeroUsize>,
}

/// How long the client of a connection is waited for; none = for ever. An answer that is under way
/// knows no other limit than [`Timeouts::write`], and neither does what was upgraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// `first_byte_timeout`: until its first byte. Default 30 s.
    pub first_byte: Option<Duration>,
    /// `head_timeout`: from the first byte of a request until its head is whole, or HTTP/2 has
    /// begun. Default 30 s.
    pub head: Option<Duration>,
    /// `body_timeout`: until more comes of the body of a request that its app waits for and has not
    /// begun to answer. Default 60 s.
    pub body: Option<Duration>,
    /// `idle_timeout`: until its next request. Default 65 s, a little more than what proxies in
    /// front of it wait.
    pub idle: Option<Duration>,
    /// `write_timeout`: until it takes more of what is there for it. Default for ever.
    pub write: Option<Duration>,
    /// `http2_ping`: how long HTTP/2 may be silent before it is asked whether the client is still
    /// there. Default never: one that is idle is asked to leave, and one whose machine is gone is
    /// found by the keep-alive of TCP.
    pub http2_ping: Option<Duration>,
    /// `http2_ping_timeout`: how long the answer to that may take. Default 20 s.
    pub http2_pong: Duration,
}

/// How many connections clients may have. When one more comes, the one that has been idle for the
/// longest time goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clients {
    /// In all. Default: what the limit of open files leaves, less those that the host keeps for
    /// itself.
    pub max_connections: Option<NonZeroUsize>,
    /// From one IPv4 address, or one /64 of IPv6. Default: any number, since a proxy is one
    /// address.
    pub max_connections_per_address: Option<NonZeroUsize>,
}

/// `leak_budget` of `[server]`: how much all replaced generations together may hold. More is told
/// as an event, once each time it is crossed, and changes nothing else.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LeakBudget {
    /// Bytes of heap, of plugins with a heap of their own. Default 64 MiB.
    #[serde(with = "values::size")]
    pub bytes: u64,
    /// Descriptors that could not be closed for them. Default 64.
    #[serde(deserialize_with = "values::count::<0, MANY, _, _>")]
    pub descriptors: u64,
    /// Libraries that stay mapped. Default 8.
    #[serde(deserialize_with = "values::count::<0, MANY, _, _>")]
    pub retained: u64,
}

/// What a command line, or a program around the host, says of the server in place of the file.
/// Paths are relative to the working directory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    /// `server.listen`
    pub(crate) listen: Option<SocketAddr>,
    /// `server.plugins`
    pub(crate) plugins: Option<PathBuf>,
    /// `server.state`
    pub(crate) state: Option<PathBuf>,
    /// `server.control`
    pub(crate) control: Option<PathBuf>,
}

/// The names of the folders and the socket where nothing else is said.
const PLUGINS: &str = "plugins";
const STATE: &str = ".handover";
const CONTROL: &str = "control.sock";

/// The folders that a service manager has made for the host: `StateDirectory=` and
/// `RuntimeDirectory=` of a unit.
struct ServiceFolders {
    state: Option<PathBuf>,
    runtime: Option<PathBuf>,
}

impl ServiceFolders {
    fn given() -> Self {
        let folder = |name: &str| {
            let list = origin().text(name)?;
            let first = PathBuf::from(list.split(':').next()?);
            first.is_absolute().then_some(first)
        };
        Self {
            state: folder("STATE_DIRECTORY"),
            runtime: folder("RUNTIME_DIRECTORY"),
        }
    }
}

impl Default for Server {
    fn default() -> Self {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        Self {
            listen: None,
            workers: None,
            spare_workers: 2,
            stall_after: seconds(1),
            plugins: PLUGINS.into(),
            state: STATE.into(),
            control: PathBuf::new(),
            version_header: false,
            health_routes: false,
            request_id: false,
            shutdown_deadline: Duration::from_secs(30),
            max_crashes: MAX_CRASHES,
            crash_window: Duration::from_secs(60),
            leak_budget: LeakBudget::default(),
            first_byte_timeout: seconds(30),
            head_timeout: seconds(30),
            body_timeout: seconds(60),
            idle_timeout: seconds(65),
            write_timeout: None,
            http2_ping: None,
            http2_ping_timeout: Duration::from_secs(20),
            max_connections: None,
            max_connections_per_address: None,
        }
    }
}

impl Default for LeakBudget {
    fn default() -> Self {
        Self {
            bytes: 64 << 20,
            descriptors: 64,
            retained: 8,
        }
    }
}

impl Server {
    /// Returns how long clients are waited for.
    pub fn timeouts(&self) -> Timeouts {
        Timeouts {
            first_byte: self.first_byte_timeout,
            head: self.head_timeout,
            body: self.body_timeout,
            idle: self.idle_timeout,
            write: self.write_timeout,
            http2_ping: self.http2_ping,
            http2_pong: self.http2_ping_timeout,
        }
    }

    /// Returns how many connections there may be.
    pub fn clients(&self) -> Clients {
        Clients {
            max_connections: self.max_connections,
            max_connections_per_address: self.max_connections_per_address,
        }
    }

    /// Makes the paths those of `folder`, and fills in what follows from other keys: where to
    /// serve, unless there are `other_listeners`, and the control socket.
    pub(super) fn resolve(&mut self, folder: &Path, other_listeners: bool) {
        if self.listen.is_none() && !other_listeners {
            self.listen = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)));
        }
        let service = ServiceFolders::given();
        let is_default = self.state == Path::new(STATE);
        self.plugins = match &service.state {
            Some(state) if self.plugins == Path::new(PLUGINS) => state.join(PLUGINS),
            _ => folder.join(&self.plugins),
        };
        self.state = match &service.state {
            Some(state) if is_default => state.clone(),
            _ => folder.join(&self.state),
        };
        self.control = match &service.runtime {
            _ if self.control != Path::new("") => folder.join(&self.control),
            Some(runtime) if is_default => runtime.join(CONTROL),
            _ => self.state.join(CONTROL),
        };
    }

    /// Puts what was said elsewhere in the place of what the file says. A state directory without a
    /// control socket brings its own.
    pub(crate) fn overrule(&mut self, overrides: Overrides) {
        let Overrides {
            listen,
            plugins,
            state,
            control,
        } = overrides;
        if listen.is_some() {
            self.listen = listen;
        }
        if let Some(plugins) = plugins {
            self.plugins = absolute(&plugins);
        }
        if let Some(state) = state {
            self.state = absolute(&state);
            self.control = self.state.join(CONTROL);
        }
        if let Some(control) = control {
            self.control = absolute(&control);
        }
    }
}
