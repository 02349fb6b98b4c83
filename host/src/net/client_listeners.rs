//! The listeners that clients connect to, as long as they are open: what is configured anew is
//! first made ready as a whole, then put into effect at once.
//!
//! A connection keeps what its listener was when it came. A listener that is taken out accepts no
//! more connections; those that are open end as they would have.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinHandle};

use super::{
    Connections, Policy,
    bind::{Bound, SocketError, bind},
    challenges::Challenges,
    connection::{ListenerSettings, Protocols, Settings},
    listeners::{Claimed, ListenerKey, keyed},
    middleware::Middleware,
    observe::Observer,
    serve::accept_clients,
    tls::TlsListener,
    transport::Listener,
};
use crate::{
    config::{Config, Listen, ListenAddress},
    dispatch::Routes,
    health::Health,
    notify::Notifier,
    telemetry::AccessLog,
};

/// The listeners of clients. Cheap to clone.
#[derive(Clone)]
pub struct ClientListeners(Arc<Inner>);

struct Inner {
    routes: Arc<Routes>,
    connections: Connections,
    facilities: Facilities,
    /// Who keeps the sockets for the next host.
    keeper: Option<Notifier>,
    challenges: Challenges,
    /// None once the host ends.
    open: Mutex<Option<Vec<Open>>>,
}

/// What of the host takes part in requests.
#[derive(Clone, Debug)]
pub(crate) struct Facilities {
    /// Whether the node is to be given traffic.
    pub(crate) health: Health,
    /// Where requests are logged, if they are.
    pub(crate) access_log: Option<AccessLog>,
    /// Whether it is counted how long they take.
    pub(crate) measures: bool,
}

/// One that accepts connections.
struct Open {
    /// None where a service manager handed it over.
    key: Option<ListenerKey>,
    listen: Listen,
    local: Option<ListenAddress>,
    tls: Option<Arc<TlsListener>>,
    /// What the next connection is served with.
    serving: Arc<ArcSwap<Protocols>>,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

/// Listeners that are ready, and not in effect yet.
#[derive(Debug)]
#[must_use = "listeners are in effect once they are opened"]
pub(crate) struct ReadyListeners(Vec<Ready>);

#[derive(Debug)]
struct Ready {
    key: Option<ListenerKey>,
    listen: Listen,
    tls: Option<Arc<TlsListener>>,
    socket: ReadySocket,
}

#[derive(Debug)]
enum ReadySocket {
    /// Of one that is open, by its place among them.
    Open(usize),
    /// Of one that is not.
    New(Bound),
}

/// Why listeners cannot be had, and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// Its socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Its certificates.
    #[error("{0}")]
    Tls(String),
}

impl fmt::Debug for ClientListeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClientListeners")
            .field(&self.addresses())
            .finish()
    }
}

impl ReadyListeners {
    /// Makes those ready whose sockets are `claimed`. Reads certificates.
    ///
    /// # Errors
    /// What is wrong with a certificate.
    pub(crate) fn claimed(claimed: Vec<Claimed>) -> Result<Self, ListenError> {
        let ready = claimed.into_iter().map(|(key, listen, bound)| {
            Ok(Ready {
                key,
                tls: open_tls(&listen, None)?,
                listen,
                socket: ReadySocket::New(bound),
            })
        });
        ready.collect::<Result<_, _>>().map(Self)
    }
}

fn open_tls(
    listen: &Listen,
    before: Option<&TlsListener>,
) -> Result<Option<Arc<TlsListener>>, ListenError> {
    let Some(files) = listen.tls.clone() else {
        return Ok(None);
    };
    TlsListener::open(&listen.place, files, listen.protocols, before)
        .map(|tls| Some(Arc::new(tls)))
        .map_err(ListenError::Tls)
}

impl ClientListeners {
    /// None yet.
    pub fn new(routes: Arc<Routes>, connections: Connections, health: Health) -> Self {
        let facilities = Facilities {
            health,
            access_log: None,
            measures: false,
        };
        Self::kept_by(None, routes, connections, facilities)
    }

    /// None yet. The sockets of those that are opened are handed to `keeper`, if there is one.
    pub(crate) fn kept_by(
        keeper: Option<Notifier>,
        routes: Arc<Routes>,
        connections: Connections,
        facilities: Facilities,
    ) -> Self {
        Self(Arc::new(Inner {
            routes,
            connections,
            facilities,
            keeper,
            challenges: Challenges::default(),
            open: Mutex::new(Some(Vec::new())),
        }))
    }

    /// Makes ready what `config` wants: takes the sockets of open listeners, binds others, and
    /// reads certificates. Nothing of it is in effect yet. Blocks.
    ///
    /// # Errors
    /// What cannot be had. Nothing is left of it then.
    pub(crate) fn prepare(&self, config: &Config) -> Result<ReadyListeners, ListenError> {
        let open = self.0.open.lock();
        let open = open.as_deref().unwrap_or_default();
        let mut taken = vec![false; open.len()];
        let mut ready = Vec::new();
        for (key, listen) in keyed(config) {
            // A service manager may have handed several over for one.
            let mut found = Vec::new();
            for (at, known) in open.iter().enumerate() {
                let is_enough = listen.is_at_any_port() && !found.is_empty();
                if !taken[at] && !is_enough && known.listen.socket == listen.socket {
                    taken[at] = true;
                    found.push(at);
                }
            }
            if found.is_empty() {
                let Some(key) = key else {
                    return Err(SocketError::NotHandedOver {
                        place: listen.place.clone(),
                        socket: listen.socket,
                    }
                    .into());
                };
                ready.push(Ready {
                    tls: open_tls(&listen, None)?,
                    socket: ReadySocket::New(bind(&key, &listen.options)?),
                    key: Some(key),
                    listen,
                });
                continue;
            }
            for at in found {
                let known = &open[at];
                let is_same =
                    known.listen.tls == listen.tls && known.listen.protocols == listen.protocols;
                ready.push(Ready {
                    key: known.key.clone(),
                    tls: if is_same {
                        known.tls.clone()
                    } else {
                        open_tls(&listen, known.tls.as_deref())?
                    },
                    listen: listen.clone(),
                    socket: ReadySocket::Open(at),
                });
            }
        }
        Ok(ReadyListeners(ready))
    }

    /// Puts what is `ready` into effect, in the place of what is open; nothing once the host ends.
    /// To be called within the host's runtime, and by one at a time.
    ///
    /// # Errors
    /// When a socket that was bound cannot be used. The others are in effect.
    pub(crate) fn open(&self, ready: ReadyListeners, settings: Settings) -> std::io::Result<()> {
        let mut open = self.0.open.lock();
        let Some(open) = &mut *open else {
            return Ok(());
        };
        let mut before: Vec<Option<Open>> = open.drain(..).map(Some).collect();
        let locals: Vec<Option<ListenAddress>> = ready
            .0
            .iter()
            .map(|one| match &one.socket {
                ReadySocket::Open(at) => before[*at].as_ref()?.local.clone(),
                ReadySocket::New(bound) => bound.local_address().ok(),
            })
            .collect();
        let with_tls = ready.0.iter().zip(&locals);
        // Where requests are sent that are to come by `https`.
        let https =
            with_tls
                .filter(|(one, _)| one.tls.is_some())
                .find_map(|(_, local)| match local {
                    Some(ListenAddress::Tcp(address)) => Some(address.port()),
                    _ => None,
                });
        // Any of them may be the one that an authority finds at the port where it looks.
        let orders = ready.0.iter().any(|one| {
            let tls = one.listen.tls.as_ref();
            tls.is_some_and(|tls| !tls.acme.is_empty())
        });
        let challenges = orders.then(|| self.0.challenges.clone());
        let mut failed = None;
        for (one, local) in ready.0.into_iter().zip(locals) {
            let facilities = &self.0.facilities;
            let observer = Observer {
                routes: Arc::clone(&self.0.routes),
                log: facilities.access_log.clone(),
                measures: facilities.measures,
            };
            let middleware = Middleware {
                policy: Policy::new(&one.listen, https),
                health: settings.health_routes.then(|| facilities.health.clone()),
                challenges: challenges.clone().filter(|_| one.tls.is_none()),
                identifies: settings.request_id,
                observer: observer.if_any(),
            };
            let of_listener = ListenerSettings {
                protocols: one.listen.protocols,
                proxies: one
                    .listen
                    .trusted_proxies
                    .clone()
                    .filter(|_| one.listen.proxy_protocol),
                tls: one.tls.clone(),
                challenges: challenges.clone(),
                middleware: middleware.if_any(),
            };
            let protocols = Protocols::new(
                Arc::clone(&self.0.routes),
                settings,
                Arc::new(of_listener),
                self.0.connections.clone(),
            );
            match one.socket {
                ReadySocket::Open(at) => {
                    let Some(known) = before[at].take() else {
                        continue;
                    };
                    known.serving.store(Arc::new(protocols));
                    open.push(Open {
                        listen: one.listen,
                        tls: one.tls,
                        ..known
                    });
                }
                ReadySocket::New(bound) => {
                    if let (Some(keeper), Some(key)) = (&self.0.keeper, &one.key) {
                        keeper.keep(&key.to_string(), &bound);
                    }
                    match bound.into_listener() {
                        Ok(listener) => {
                            let serving = Arc::new(ArcSwap::from_pointee(protocols));
                            let (stop, accepting) = self.accept(listener, Arc::clone(&serving));
                            open.push(Open {
                                key: one.key,
                                listen: one.listen,
                                local,
                                tls: one.tls,
                                serving,
                                stop,
                                accepting,
                            });
                        }
                        Err(error) => failed = Some(error),
                    }
                }
            }
        }
        for gone in before.into_iter().flatten() {
            gone.stop.send_replace(true);
            if let (Some(keeper), Some(key)) = (&self.0.keeper, &gone.key) {
                keeper.forget(&key.to_string());
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn accept(
        &self,
        listener: Listener,
        serving: Arc<ArcSwap<Protocols>>,
    ) -> (watch::Sender<bool>, JoinHandle<()>) {
        let (stop, mut stopped) = watch::channel(false);
        let connections = self.0.connections.clone();
        let accepting = tokio::spawn(accept_clients(listener, serving, connections, async move {
            // An error means that the listener is gone.
            let _ = stopped.wait_for(|stop| *stop).await;
        }));
        (stop, accepting)
    }

    /// Returns where they are reached: `ADDRESS:PORT`, `https://ADDRESS:PORT`, or `unix:PATH`.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let open = self.0.open.lock();
        open.iter()
            .flatten()
            .map(|one| match &one.local {
                Some(ListenAddress::Tcp(address)) if one.tls.is_some() => {
                    format!("https://{address}")
                }
                Some(address) => address.to_string(),
                None => "?".to_owned(),
            })
            .collect()
    }

    /// Returns what authorities are shown by them.
    pub(crate) fn challenges(&self) -> Challenges {
        self.0.challenges.clone()
    }

    /// Returns the TLS of those that have one.
    pub(crate) fn tls(&self) -> Vec<Arc<TlsListener>> {
        let open = self.0.open.lock();
        let open = open.iter().flatten();
        open.filter_map(|one| one.tls.clone()).collect()
    }

    /// Accepts no more connections, and waits until those that are open have ended what they have.
    pub(crate) async fn finish(&self) {
        let open = self.0.open.lock().take().unwrap_or_default();
        for one in &open {
            one.stop.send_replace(true);
        }
        for one in open {
            // An error means that it has ended.
            let _ = one.accepting.await;
        }
        self.0.connections.clone().finish().await;
    }
}
