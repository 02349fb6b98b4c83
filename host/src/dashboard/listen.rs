//! Where the page is reached: where the configuration says, else at a free port of 127.0.0.1 for as
//! long as somebody has a session or a link.

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::{JoinHandle, JoinSet},
    time::MissedTickBehavior,
};

use super::{
    answer::answer,
    figures::{self, Samples},
    sessions::Sessions,
};
use crate::{
    access::Access,
    config::SocketOptions,
    control::{Backend, ShutdownHandle, dashboard_door::LinkRequest},
    net::{
        Listeners,
        accept::{Serve, accept},
        bind::Bound,
        listeners::{ListenerKey, ListenerKind},
        transport::{Accepted, Transport},
    },
};

/// How many connections there may be; who comes then waits to be accepted. A browser has one for
/// each page that is open, and a few for what it asks for.
const CONNECTIONS: usize = 64;

/// How long a connection may take to send a request's head, or lie idle before the next one.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked whether anybody still needs a port that was opened for who asked.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What requests are answered from. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Page<B> {
    pub(super) backend: B,
    pub(super) access: Arc<ArcSwap<Access>>,
    pub(super) shutdown: ShutdownHandle,
    pub(super) sessions: Sessions,
    pub(super) samples: Samples,
    /// Whether durations are counted.
    pub(super) measures: bool,
    /// Tells the events of this run of the host from those of another.
    pub(super) run: Arc<str>,
}

impl<B: Backend> Page<B> {
    /// That of a host.
    pub(crate) fn new(
        backend: B,
        access: Arc<ArcSwap<Access>>,
        shutdown: ShutdownHandle,
        measures: bool,
    ) -> Self {
        Self {
            backend,
            access,
            shutdown,
            sessions: Sessions::default(),
            samples: Samples::default(),
            measures,
            run: format!("{}.{}", std::process::id(), crate::clock::now_ms()).into(),
        }
    }
}

/// Serves the page at `bound`, and gives links to it. Where there is none, a listener is made for
/// whoever asks. Dropping the future ends all of it.
pub(crate) async fn serve<B: Backend>(
    bound: Option<Bound>,
    mut asked: mpsc::Receiver<LinkRequest>,
    page: Page<B>,
) {
    let is_configured = bound.is_some();
    let mut open = bound.and_then(|bound| {
        Open::new(bound, &page)
            .inspect_err(|error| tracing::error!("dashboard.listen cannot be used: {error}"))
            .ok()
    });
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut count = tokio::time::interval(figures::EVERY);
    count.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            next = asked.recv() => {
                let Some(LinkRequest { peer, reply }) = next else { return };
                let link = at(&mut open, &page).and_then(|address| {
                    let token = page.sessions.link(peer);
                    let token = token.map_err(|error| format!("no link can be made: {error}"))?;
                    Ok(format!("http://{address}/?token={token}"))
                });
                // Who has left does without.
                let _ = reply.send(link);
            }
            _ = count.tick() => {
                if is_configured || !page.sessions.is_empty() {
                    page.samples.take(page.backend.figures());
                } else {
                    page.samples.rest();
                }
            }
            _ = look.tick() => {
                if !is_configured && page.sessions.is_empty() && open.take().is_some() {
                    tracing::info!("the dashboard is closed: its last session has ended");
                }
            }
        }
    }
}

/// A listener that is served. Dropping it ends its connections.
struct Open {
    address: SocketAddr,
    serving: JoinHandle<()>,
}

impl Open {
    fn new<B: Backend>(bound: Bound, page: &Page<B>) -> io::Result<Self> {
        let crate::config::ListenAddress::Tcp(address) = bound.local_address()? else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let browsers = Browsers {
            page: page.clone(),
            places: Arc::new(Semaphore::new(CONNECTIONS)),
            place: None,
            connections: JoinSet::new(),
        };
        let listener = bound.into_listener()?;
        tracing::info!(%address, "the dashboard is open: `handover dashboard` prints a link to it");
        let serving = tokio::spawn(async move {
            accept(listener, browsers, std::future::pending()).await;
        });
        Ok(Self { address, serving })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Where the page is reached, which is opened if it is not.
fn at<B: Backend>(open: &mut Option<Open>, page: &Page<B>) -> Result<SocketAddr, String> {
    if let Some(open) = open {
        return Ok(open.address);
    }
    let key = ListenerKey {
        kind: ListenerKind::Dashboard,
        name: String::new(),
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into(),
    };
    let bound = Listeners::default().take(&key, &SocketOptions::default());
    let bound = bound.map_err(|error| error.to_string())?;
    let opened = Open::new(bound, page).map_err(|error| error.to_string())?;
    Ok(open.insert(opened).address)
}

/// Serves browsers. Dropping it cuts their connections.
struct Browsers<B> {
    page: Page<B>,
    places: Arc<Semaphore>,
    /// The place of the next connection.
    place: Option<OwnedSemaphorePermit>,
    connections: JoinSet<()>,
}

impl<B: Backend> Serve<Accepted> for Browsers<B> {
    async fn has_room(&mut self) {
        if self.place.is_none() {
            // An error would mean that the semaphore is closed, and nobody closes it.
            self.place = Arc::clone(&self.places).acquire_owned().await.ok();
        }
    }

    async fn serve(&mut self, accepted: Accepted) -> Result<(), String> {
        // What has ended is forgotten.
        while self.connections.try_join_next().is_some() {}
        let (page, place) = (self.page.clone(), self.place.take());
        self.connections.spawn(async move {
            connection(accepted.transport, page).await;
            drop(place);
        });
        Ok(())
    }

    fn not_accepted(&self, error: &io::Error) -> String {
        format!("the dashboard cannot accept a connection: {error}")
    }
}

async fn connection<B: Backend>(stream: Transport, page: Page<B>) {
    let service = service_fn(|request| {
        let page = page.clone();
        async move { Ok::<_, Infallible>(answer(request, page).await) }
    });
    // A browser that leaves is its own affair.
    let _: Result<(), hyper::Error> = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
