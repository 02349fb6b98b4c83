//! The host's side of the control socket: one HTTP call for each command, long operations as lines
//! that stream.
//!
//! A client is only an ear. One that is killed never stops what it asked for; only an upload that
//! it had not finished is dropped.

use std::{
    convert::Infallible, fs::File, io, net::SocketAddr, os::fd::OwnedFd, sync::Arc, time::Duration,
};

use arc_swap::ArcSwap;
use handover_api::{
    AppName, ArtifactReport, AuditSource, Cause, ConfigPlan, Event, HistoryEntry, HolderStatus,
    MessageAnswers, NodeDrain, OperationResult, SettingsList, ShadowStatus, Status, TenantStatus,
    Wait, query,
};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::io::fcntl_dupfd_cloexec;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::broadcast,
    task::JoinSet,
    time::{Interval, MissedTickBehavior},
};

use super::{
    calls::{self, Asked, Refusal},
    dashboard_door::DashboardDoor,
    node,
    shutdown::{Shutdown, ShutdownHandle},
    socket::ControlSocket,
};
use crate::{
    access::{Access, Peer, Role},
    acme::OrderedCertificates,
    artifact::{Artifact, Signature, Store, StoreError, store::Writer},
    config::Config,
    health::Health,
    net::{
        ClientListeners, Connections,
        accept::{Accept, Serve, accept},
    },
    open_files,
    operations::operation::{Keyed, Operation},
    orchestrator::Orchestrator,
    ownership,
    reconfigure::{ReconfigureError, Reconfigurer},
    records::audit::Audit,
    report::figures::Figures,
    report::holders::HolderId,
    report::status::Surface,
    rollout::settings::SettingsError,
    telemetry::{self, Gather, Recent},
    watch::WatcherHandle,
    work::AppWork,
};

/// How often the file of the socket is looked for: whoever cleans up folders may delete it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the calls are answered from. The host is one; tests put another in its place.
pub(crate) trait Backend: Clone + Send + Sync + 'static {
    /// Bytes on their way in.
    type Upload: Upload<Artifact = Self::Artifact>;
    /// What they become.
    type Artifact: Send + 'static;

    /// For `GET /v1/status`.
    fn status(&self) -> Status;
    /// For the charts of the dashboard: what each app has counted.
    fn figures(&self) -> Vec<(AppName, Figures)>;
    /// For `GET /v1/history`.
    fn history(&self, app: Option<&AppName>) -> Vec<HistoryEntry>;
    /// For `GET /v1/audit`, and where calls that change something are taken down.
    fn audit(&self) -> Audit;
    /// For `GET /v1/events`: those so far, and those to come.
    fn events(&self) -> (Vec<Event>, broadcast::Receiver<Event>);
    /// For `GET /v1/logs`; none where the log is somebody else's.
    fn logs(&self) -> Option<Recent>;
    /// Begins an upload. Blocks on the file system.
    fn upload(&self) -> Result<Self::Upload, StoreError>;
    /// For `POST /v1/deploy`, with the whole upload, the signature that came with it, and how long
    /// it took to be stored.
    fn deploy(
        &self,
        artifact: Self::Artifact,
        signature: Option<Signature>,
        stored_in: Duration,
        asked: query::Deploy,
    ) -> Operation;
    /// For `POST /v1/deploy`, with an upload that the store did not take.
    fn not_taken(
        &self,
        file: &str,
        app: Option<AppName>,
        error: &StoreError,
    ) -> impl Future<Output = OperationResult> + Send;
    /// For `POST /v1/reload`.
    fn reload(&self, app: Option<AppName>, wait: Wait) -> Operation;
    /// For `POST /v1/rollback`.
    fn rollback(&self, asked: query::Rollback) -> Operation;
    /// For `POST /v1/promote`.
    fn promote(&self, asked: query::Labelled) -> Operation;
    /// For `POST /v1/abort`.
    fn abort(&self, asked: query::Labelled) -> Operation;
    /// For `POST /v1/canary/pause` and `/v1/canary/resume`.
    fn pause_canary(&self, asked: query::Operation, paused: bool) -> Operation;
    /// For `POST /v1/stop`.
    fn stop(&self, asked: query::Stop) -> Operation;
    /// For `POST /v1/start`.
    fn start(&self, asked: query::Operation) -> Operation;
    /// For `POST /v1/restart`.
    fn restart(&self, asked: query::Operation) -> Operation;
    /// For `POST /v1/pause`.
    fn pause(&self, asked: query::Pause) -> Operation;
    /// For `POST /v1/resume`.
    fn resume(&self, asked: query::Operation) -> Operation;
    /// For `GET /v1/tenants`.
    fn tenants(&self, app: Option<&AppName>) -> Vec<TenantStatus>;
    /// For `POST /v1/move`.
    fn move_tenant(&self, asked: &query::Move) -> Result<String, String>;
    /// For `GET /v1/settings`.
    fn settings(&self, asked: query::OfApp) -> Result<SettingsList, SettingsError>;
    /// For `POST /v1/set`, with the value; none: it is taken away. May wait for the app.
    fn set(
        &self,
        asked: query::Set,
        value: Option<serde_json::Value>,
    ) -> impl Future<Output = Result<String, SettingsError>> + Send;
    /// For `POST /v1/send`. May wait for the app.
    fn send(
        &self,
        asked: query::Send,
        text: String,
    ) -> impl Future<Output = Result<MessageAnswers, SettingsError>> + Send;
    /// For `GET /v1/holders`.
    fn holders(&self, asked: &query::Holders) -> Vec<HolderStatus>;
    /// For `GET /v1/shadow`.
    fn shadows(&self, app: Option<&AppName>) -> Vec<ShadowStatus>;
    /// For `POST /v1/verify`.
    fn verify(&self, app: Option<AppName>) -> Operation;
    /// For `POST /v1/deploy` with a key: what is known of it.
    fn keyed(&self, key: &str) -> Keyed;
    /// For `GET /v1/artifact`; an error says what there is instead. Blocks.
    fn artifact(&self, asked: &query::Artifact) -> Result<ArtifactReport, String>;
    /// For `POST /v1/dashboard`: a link for a browser of `peer`; an error says why there is none.
    fn dashboard(&self, peer: Peer) -> impl Future<Output = Result<String, String>> + Send;
    /// For `POST /v1/cancel`: what was done; none when there is no such holder.
    fn cancel_holder(&self, id: &HolderId) -> impl Future<Output = Option<String>> + Send;
    /// For `GET /v1/operations/ID`.
    fn operation(&self, id: &str) -> Option<Operation>;
    /// For `GET /v1/config`.
    fn config(&self) -> Arc<Config>;
    /// For `GET /v1/config/plan`. Blocks.
    fn config_plan(&self) -> Result<ConfigPlan, ReconfigureError>;
    /// For `POST /v1/config/reload`. Blocks.
    fn reload_config(&self) -> Result<ConfigPlan, ReconfigureError>;
    /// For `POST /v1/drain-node`. May wait.
    fn drain_node(&self, asked: query::DrainNode) -> impl Future<Output = NodeDrain> + Send;
    /// For `GET /metrics`.
    fn metrics(&self) -> Gather;
    /// For `/v1/state/APP/…`: the store of an app that this host knows.
    fn state(&self, app: &AppName) -> Option<Arc<crate::state::Store>>;
    /// For jobs, schedules and leases: the work of the apps that this host knows.
    fn work(&self) -> Vec<(AppName, Arc<AppWork>)>;
    /// Why what is live of `app` cannot run with a state of this schema, if it cannot.
    fn state_suits(&self, app: &AppName, schema: crate::state::Schema) -> Result<(), String>;
    /// The state of `app` was replaced. Blocks on the disk.
    fn state_replaced(&self, app: &AppName) -> Result<(), crate::state::StateError>;
    /// A store that is forgotten, to try a backup of `app`. Blocks on the file system.
    fn scratch(&self, app: &AppName) -> io::Result<crate::state::Store>;
}

/// Bytes on their way in. Dropping it forgets them. Every method blocks on the file system.
pub(crate) trait Upload: Send + 'static {
    /// What they become.
    type Artifact;
    /// Takes the next bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError>;
    /// All bytes are in.
    fn finish(self) -> Result<Self::Artifact, StoreError>;
}

impl Upload for Writer {
    type Artifact = Artifact;

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        Self::write(self, bytes)
    }

    fn finish(self) -> Result<Artifact, StoreError> {
        Self::finish(self)
    }
}

/// What the calls of a host work on.
#[derive(Clone, Debug)]
pub struct Host {
    /// The apps.
    pub orchestrator: Orchestrator,
    /// Where uploads go.
    pub store: Store,
    /// What the metrics are gathered from.
    pub metrics: Gather,
    /// Who scans the drop folders.
    pub watcher: WatcherHandle,
    /// The connections of clients.
    pub connections: Connections,
    /// What reads the configuration again.
    pub reconfigurer: Reconfigurer,
    /// Where it serves.
    pub listeners: ClientListeners,
    /// The certificates that are ordered.
    pub certificates: OrderedCertificates,
    /// Whether it is to be given traffic.
    pub health: Health,
    /// Where it tells its metrics over TCP.
    pub metrics_at: Option<SocketAddr>,
    /// What makes links to the dashboard.
    pub dashboard: DashboardDoor,
}

impl Backend for Host {
    type Upload = Writer;
    type Artifact = Artifact;

    fn status(&self) -> Status {
        self.orchestrator.status(Surface {
            listen: self.listeners.addresses(),
            metrics: self.metrics_at,
            connections: self.connections.status(),
            certificates: self.certificates.status(),
            drained: self.health.is_drained(),
            not_ready: self.health.not_ready(),
        })
    }

    fn figures(&self) -> Vec<(AppName, Figures)> {
        self.orchestrator.figures()
    }

    fn history(&self, app: Option<&AppName>) -> Vec<HistoryEntry> {
        self.orchestrator.history(app)
    }

    fn audit(&self) -> Audit {
        self.orchestrator.audit()
    }

    fn events(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        self.orchestrator.events()
    }

    fn logs(&self) -> Option<Recent> {
        telemetry::recent()
    }

    fn upload(&self) -> Result<Writer, StoreError> {
        self.store.writer()
    }

    fn deploy(
        &self,
        mut artifact: Artifact,
        signature: Option<Signature>,
        stored_in: Duration,
        asked: query::Deploy,
    ) -> Operation {
        artifact.signature = signature;
        self.orchestrator
            .deploy(artifact, stored_in, Cause::Deploy, asked)
    }

    async fn not_taken(
        &self,
        file: &str,
        app: Option<AppName>,
        error: &StoreError,
    ) -> OperationResult {
        self.orchestrator.not_taken(file, app, error).await
    }

    fn reload(&self, app: Option<AppName>, wait: Wait) -> Operation {
        self.orchestrator.reload(app, wait, &self.watcher)
    }

    fn rollback(&self, asked: query::Rollback) -> Operation {
        self.orchestrator.rollback(asked)
    }

    fn promote(&self, asked: query::Labelled) -> Operation {
        self.orchestrator.promote(asked)
    }

    fn abort(&self, asked: query::Labelled) -> Operation {
        self.orchestrator.abort(asked)
    }

    fn pause_canary(&self, asked: query::Operation, paused: bool) -> Operation {
        self.orchestrator.pause_canary(asked.app, paused)
    }

    fn stop(&self, asked: query::Stop) -> Operation {
        self.orchestrator.stop(asked)
    }

    fn start(&self, asked: query::Operation) -> Operation {
        self.orchestrator.start(asked)
    }

    fn restart(&self, asked: query::Operation) -> Operation {
        self.orchestrator.restart(asked)
    }

    fn pause(&self, asked: query::Pause) -> Operation {
        self.orchestrator.pause(asked)
    }

    fn resume(&self, asked: query::Operation) -> Operation {
        self.orchestrator.resume(asked.app)
    }

    fn tenants(&self, app: Option<&AppName>) -> Vec<TenantStatus> {
        self.orchestrator.tenants(app)
    }

    fn move_tenant(&self, asked: &query::Move) -> Result<String, String> {
        self.orchestrator.move_tenant(asked)
    }

    fn settings(&self, asked: query::OfApp) -> Result<SettingsList, SettingsError> {
        self.orchestrator.settings(asked)
    }

    async fn set(
        &self,
        asked: query::Set,
        value: Option<serde_json::Value>,
    ) -> Result<String, SettingsError> {
        self.orchestrator.set(asked, value).await
    }

    async fn send(
        &self,
        asked: query::Send,
        text: String,
    ) -> Result<MessageAnswers, SettingsError> {
        self.orchestrator.send(asked, text).await
    }

    fn holders(&self, asked: &query::Holders) -> Vec<HolderStatus> {
        self.orchestrator.holders(asked)
    }

    fn shadows(&self, app: Option<&AppName>) -> Vec<ShadowStatus> {
        self.orchestrator.shadows(app)
    }

    fn verify(&self, app: Option<AppName>) -> Operation {
        self.orchestrator.verify(app)
    }

    fn keyed(&self, key: &str) -> Keyed {
        self.orchestrator.keyed(key)
    }

    fn artifact(&self, asked: &query::Artifact) -> Result<ArtifactReport, String> {
        self.orchestrator.artifact(asked)
    }

    async fn dashboard(&self, peer: Peer) -> Result<String, String> {
        self.dashboard.link(peer).await
    }

    async fn cancel_holder(&self, id: &HolderId) -> Option<String> {
        self.orchestrator.cancel_holder(id).await
    }

    fn operation(&self, id: &str) -> Option<Operation> {
        self.orchestrator.operation(id)
    }

    fn config(&self) -> Arc<Config> {
        self.reconfigurer.current()
    }

    fn config_plan(&self) -> Result<ConfigPlan, ReconfigureError> {
        self.reconfigurer.plan()
    }

    fn reload_config(&self) -> Result<ConfigPlan, ReconfigureError> {
        self.reconfigurer.reload()
    }

    async fn drain_node(&self, asked: query::DrainNode) -> NodeDrain {
        node::drain(self, asked).await
    }

    fn metrics(&self) -> Gather {
        self.metrics.clone()
    }

    fn state(&self, app: &AppName) -> Option<Arc<crate::state::Store>> {
        self.orchestrator.state(app)
    }

    fn work(&self) -> Vec<(AppName, Arc<AppWork>)> {
        self.orchestrator.work()
    }

    fn state_suits(&self, app: &AppName, schema: crate::state::Schema) -> Result<(), String> {
        self.orchestrator.state_suits(app, schema)
    }

    fn state_replaced(&self, app: &AppName) -> Result<(), crate::state::StateError> {
        self.orchestrator.work_of(app).jobs.reload()
    }

    fn scratch(&self, app: &AppName) -> io::Result<crate::state::Store> {
        self.orchestrator.stores().scratch(app)
    }
}

/// Serves the control socket until [`Shutdown::Ended`], and then until every answer is out.
/// Dropping the future cuts the connections and no operation.
///
/// `shutdown` is asked for only when the caller's answer is out, so that even `handover shutdown
/// --now` gets one.
pub async fn serve(
    listener: (UnixListener, ControlSocket),
    access: Arc<ArcSwap<Access>>,
    host: Host,
    shutdown: ShutdownHandle,
) {
    serve_backend(listener, access, host, shutdown).await;
}

/// [`serve`] for any backend.
pub(crate) async fn serve_backend<B: Backend>(
    (listener, socket): (UnixListener, ControlSocket),
    access: Arc<ArcSwap<Access>>,
    backend: B,
    shutdown: ShutdownHandle,
) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reserve = Reserve::new();
    reserve.fill();
    let listener = ControlListener {
        listener,
        socket,
        look,
        cannot_be_made: false,
        reserve,
    };
    let calls = Calls {
        access,
        backend,
        shutdown: shutdown.clone(),
        connections: JoinSet::new(),
    };
    let ended = async move {
        shutdown.requested(Shutdown::Ended).await;
    };
    // Nobody new finds it afterwards.
    let mut calls = accept(listener, calls, ended).await;
    while calls.connections.join_next().await.is_some() {}
}

/// The control socket, which is made again when its file is gone.
struct ControlListener {
    listener: UnixListener,
    socket: ControlSocket,
    look: Interval,
    cannot_be_made: bool,
    reserve: Reserve,
}

impl Accept for ControlListener {
    type Connection = UnixStream;

    async fn accept(&mut self) -> io::Result<UnixStream> {
        loop {
            tokio::select! {
                _ = self.look.tick() => {
                    self.reserve.fill();
                    self.look_for_file();
                }
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => return Ok(stream),
                    // Out of descriptors: one is kept for each who calls.
                    Err(_) if self.reserve.give_up() => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

/// Descriptors that are kept open, to be given up when there are no others: whoever takes all of
/// them does not lock the operator out.
#[derive(Debug)]
struct Reserve {
    kept: Vec<OwnedFd>,
    size: usize,
}

impl Reserve {
    /// As many as the limit of open files allows for. Takes none yet.
    fn new() -> Self {
        Self {
            kept: Vec::new(),
            size: open_files::kept_for_control(),
        }
    }

    /// Takes as many as there are again, up to all of them, above those of clients.
    fn fill(&mut self) {
        if self.kept.len() >= self.size {
            return;
        }
        let Ok(null) = File::open("/dev/null") else {
            return;
        };
        let first = open_files::first_reserved().unwrap_or_default();
        while self.kept.len() < self.size
            && let Ok(one) = fcntl_dupfd_cloexec(&null, first)
        {
            self.kept.push(one);
        }
    }

    /// Gives a third of them up: one for the call, the others for what it asks for. Whether there
    /// were any.
    fn give_up(&mut self) -> bool {
        let left = self.kept.len().saturating_sub(self.size.div_ceil(3));
        self.kept.drain(left..).next().is_some()
    }
}

impl ControlListener {
    fn look_for_file(&mut self) {
        if !self.socket.is_gone() {
            return;
        }
        match self.socket.bind_again() {
            Ok(again) => {
                tracing::warn!(path = %self.socket.path().display(), "the control socket was deleted, and is made again");
                self.listener = again;
                self.cannot_be_made = false;
            }
            Err(error) if !self.cannot_be_made => {
                tracing::error!("the control socket was deleted: {error}; it is tried again");
                self.cannot_be_made = true;
            }
            Err(_) => {}
        }
    }
}

/// Serves the calls of each connection. Dropping it cuts them.
struct Calls<B> {
    access: Arc<ArcSwap<Access>>,
    backend: B,
    shutdown: ShutdownHandle,
    connections: JoinSet<()>,
}

impl<B: Backend> Serve<UnixStream> for Calls<B> {
    async fn serve(&mut self, stream: UnixStream) -> Result<(), String> {
        // What has ended is forgotten.
        while self.connections.try_join_next().is_some() {}
        self.connections.spawn(connection(
            stream,
            self.access.load_full(),
            self.backend.clone(),
            self.shutdown.clone(),
        ));
        Ok(())
    }

    fn not_accepted(&self, error: &io::Error) -> String {
        format!("the control socket cannot accept a connection: {error}")
    }
}

/// Who is calling: its role, and the sentence about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    peer: Peer,
    /// What it may do.
    pub(crate) role: Role,
}

impl Caller {
    /// That of a connection whose other end the kernel knows.
    async fn of(stream: &UnixStream, access: Arc<Access>) -> Result<Self, String> {
        let peer = stream.peer_cred().map_err(|error| {
            format!("the host cannot see who is calling ({error}), so it takes no command")
        })?;
        let peer = Peer {
            uid: peer.uid(),
            gid: peer.gid(),
        };
        Ok(Self::admitted(peer, access).await)
    }

    /// `peer`, with the role that it has now.
    pub(crate) async fn admitted(peer: Peer, access: Arc<Access>) -> Self {
        // The system's list of users may be a server far away.
        let role = tokio::task::spawn_blocking(move || access.role(peer))
            .await
            .unwrap_or(Role::None);
        Self { peer, role }
    }

    /// Whether the caller may see what the host does.
    pub(crate) fn observes(self) -> bool {
        self.role != Role::None
    }

    /// Returns the names of the caller and of the host's user, for who is denied something; none
    /// for who is not.
    pub(crate) async fn names(self) -> [String; 2] {
        if self.role == Role::Operate {
            return Default::default();
        }
        let uids = [self.peer.uid, rustix::process::geteuid().as_raw()];
        let named = tokio::task::spawn_blocking(move || uids.map(ownership::user_name)).await;
        named.unwrap_or_else(|_| uids.map(|uid| format!("user {uid}")))
    }

    /// Whether the caller may make a call that needs the role `needed`.
    pub(crate) fn may(self, needed: Role, [caller, own]: &[String; 2]) -> Result<(), Refusal> {
        match (self.role, needed) {
            (Role::Operate, _) | (Role::Observe, Role::Observe) => Ok(()),
            (Role::Observe, _) => Err(Refusal::denied(format!(
                "{caller} may observe this host (status, history, events, metrics) and not operate it: run as {own} or root, or have \
                 control.operate name you"
            ))),
            (Role::None, _) => Err(Refusal::denied(format!(
                "{caller} may not command a host of {own}: run as that user or as root, or have control.operate or \
                 control.observe name you"
            ))),
        }
    }
}

async fn connection<B: Backend>(
    stream: UnixStream,
    access: Arc<Access>,
    backend: B,
    shutdown: ShutdownHandle,
) {
    let caller = Caller::of(&stream, access).await;
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let nobody = Peer {
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let peer = caller.as_ref().map_or(nobody, |caller| caller.peer);
    let asked = Arc::new(Asked::by(peer, pid, AuditSource::Control, shutdown.clone()));
    let names = match &caller {
        Ok(caller) => caller.names().await,
        Err(_) => Default::default(),
    };
    let names = &names;
    let service = service_fn(|request| {
        let (backend, caller, asked) = (backend.clone(), caller.clone(), Arc::clone(&asked));
        async move {
            let may = |needed| caller.map_err(Refusal::denied)?.may(needed, names);
            let answer = calls::answer(request, backend, may, &asked).await;
            Ok::<_, Infallible>(answer.unwrap_or_else(Refusal::into_response))
        }
    });
    let serving =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    // A client that leaves is its own affair: the error has nobody to interest.
    tokio::select! {
        biased;
        _ = &mut serving => {}
        _ = shutdown.requested(Shutdown::Ended) => {
            serving.as_mut().graceful_shutdown();
            let _ = serving.await;
        }
    }
    if let Some(request) = asked.shutdown.get() {
        shutdown.request(*request);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::path::PathBuf;

    use handover_api::{Client, EventKind, GenerationId, Lines, Outcome, Progress};
    use http::{Method, StatusCode};
    use parking_lot::Mutex;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::mpsc,
    };

    use super::*;
    use crate::control::calls::Call;

    /// A host that remembers what it was told.
    #[derive(Clone)]
    struct Fake(Arc<Inner>);

    struct Inner {
        calls: Mutex<Vec<String>>,
        /// Every change of `calls`.
        called: tokio::sync::Notify,
        /// Where a deploy that is under way takes its lines from.
        lines: Mutex<Option<mpsc::UnboundedReceiver<Progress>>>,
        events: broadcast::Sender<Event>,
        past: Mutex<Vec<Event>>,
    }

    impl Fake {
        fn call(&self, text: String) {
            self.0.calls.lock().push(text);
            self.0.called.notify_one();
        }

        async fn wait_for(&self, text: &str) {
            loop {
                if self.0.calls.lock().iter().any(|call| call == text) {
                    return;
                }
                self.0.called.notified().await;
            }
        }

        fn operation(&self) -> Operation {
            let lines = self.0.lines.lock().take().unwrap_or_else(|| {
                let (tx, rx) = mpsc::unbounded_channel();
                tx.send(Progress::Accepted {
                    operation: "op-1".into(),
                })
                .unwrap();
                tx.send(done("it is live")).unwrap();
                rx
            });
            Operation {
                id: "op-1".into(),
                lines,
                interest: None,
            }
        }
    }

    struct FakeUpload(Vec<u8>, Fake);

    impl Drop for FakeUpload {
        fn drop(&mut self) {
            self.1.call(format!("upload of {} closed", self.0.len()));
        }
    }

    impl Upload for FakeUpload {
        type Artifact = Vec<u8>;

        fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
            if bytes.starts_with(b"full") {
                return Err(StoreError::Io {
                    path: "store".into(),
                    source: io::ErrorKind::StorageFull.into(),
                });
            }
            self.0.extend_from_slice(bytes);
            self.1.call(format!("has {}", self.0.len()));
            Ok(())
        }

        fn finish(self) -> Result<Vec<u8>, StoreError> {
            if self.0.starts_with(b"\x7fELF") {
                Ok(self.0.clone())
            } else {
                Err(StoreError::Refused {
                    reason: "it is not an ELF file".into(),
                    sha256: None,
                    manifest: None,
                })
            }
        }
    }

    impl Backend for Fake {
        type Upload = FakeUpload;
        type Artifact = Vec<u8>;

        fn status(&self) -> Status {
            Status {
                apps: Vec::new(),
                host: handover_api::HostStatus {
                    version: "0".into(),
                    pid: 7,
                    uptime_ms: 0,
                    rss_bytes: 0,
                    max_open_files: None,
                    listen: Vec::new(),
                    connections: Default::default(),
                    certificates: Vec::new(),
                    drained: false,
                    not_ready: None,
                    metrics: None,
                    abi: "1.1".into(),
                    leaks: Default::default(),
                    leak_budget: Default::default(),
                },
            }
        }

        fn figures(&self) -> Vec<(AppName, Figures)> {
            Vec::new()
        }

        fn history(&self, app: Option<&AppName>) -> Vec<HistoryEntry> {
            self.call(format!("history {app:?}"));
            Vec::new()
        }

        fn audit(&self) -> Audit {
            Audit::default()
        }

        fn events(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
            (self.0.past.lock().clone(), self.0.events.subscribe())
        }

        fn logs(&self) -> Option<Recent> {
            None
        }

        fn upload(&self) -> Result<FakeUpload, StoreError> {
            Ok(FakeUpload(Vec::new(), self.clone()))
        }

        fn deploy(
            &self,
            artifact: Vec<u8>,
            signature: Option<Signature>,
            _stored_in: Duration,
            asked: query::Deploy,
        ) -> Operation {
            let timeout = asked.timeout_ms.map(Duration::from_millis);
            let wait = Wait::from_query(asked.queue, asked.detach);
            let app = asked.app.map(String::from).unwrap_or_default();
            if let Some(signature) = signature {
                self.call(format!("signed {}", signature.as_str()));
            }
            let length = artifact.len();
            self.call(format!("deploy {length} {app} {timeout:?} {wait:?}"));
            self.operation()
        }

        async fn not_taken(
            &self,
            file: &str,
            app: Option<AppName>,
            error: &StoreError,
        ) -> OperationResult {
            OperationResult {
                outcome: match error {
                    StoreError::Refused { .. } => Outcome::Rejected,
                    StoreError::Io { .. } => Outcome::Failed,
                },
                message: format!("{file} was not taken: {error}"),
                app,
                generation: None,
                version: None,
                artifact: None,
                notes: Vec::new(),
                ended_streams: 0,
            }
        }

        fn reload(&self, _app: Option<AppName>, _wait: Wait) -> Operation {
            self.operation()
        }

        fn rollback(&self, asked: query::Rollback) -> Operation {
            let wait = Wait::from_query(asked.queue, asked.detach);
            self.call(format!(
                "rollback {} {wait:?}",
                asked.to.unwrap_or_default()
            ));
            self.operation()
        }

        fn promote(&self, asked: query::Labelled) -> Operation {
            self.call(format!("promote {asked:?}"));
            self.operation()
        }

        fn abort(&self, asked: query::Labelled) -> Operation {
            self.call(format!("abort {asked:?}"));
            self.operation()
        }

        fn stop(&self, asked: query::Stop) -> Operation {
            self.call(format!("stop {asked:?}"));
            self.operation()
        }

        fn start(&self, asked: query::Operation) -> Operation {
            self.call(format!("start {asked:?}"));
            self.operation()
        }

        fn restart(&self, asked: query::Operation) -> Operation {
            self.call(format!("restart {asked:?}"));
            self.operation()
        }

        fn pause(&self, asked: query::Pause) -> Operation {
            self.call(format!("pause {asked:?}"));
            self.operation()
        }

        fn resume(&self, asked: query::Operation) -> Operation {
            self.call(format!("resume {asked:?}"));
            self.operation()
        }

        fn pause_canary(&self, asked: query::Operation, paused: bool) -> Operation {
            self.call(format!("canary {asked:?} {paused}"));
            self.operation()
        }

        fn tenants(&self, app: Option<&AppName>) -> Vec<TenantStatus> {
            self.call(format!("tenants {app:?}"));
            Vec::new()
        }

        fn move_tenant(&self, asked: &query::Move) -> Result<String, String> {
            self.call(format!("move {asked:?}"));
            Ok("moved".to_owned())
        }

        fn shadows(&self, app: Option<&AppName>) -> Vec<ShadowStatus> {
            self.call(format!("shadows {app:?}"));
            Vec::new()
        }

        fn verify(&self, app: Option<AppName>) -> Operation {
            self.call(format!("verify {app:?}"));
            self.operation()
        }

        fn keyed(&self, key: &str) -> Keyed {
            self.call(format!("keyed {key}"));
            Keyed::UnderWay
        }

        fn artifact(&self, asked: &query::Artifact) -> Result<ArtifactReport, String> {
            self.call(format!("artifact {asked:?}"));
            Err("there is none".to_owned())
        }

        fn settings(&self, _asked: query::OfApp) -> Result<SettingsList, SettingsError> {
            Err(SettingsError::NoApp("there is no app".to_owned()))
        }

        async fn set(
            &self,
            asked: query::Set,
            value: Option<serde_json::Value>,
        ) -> Result<String, SettingsError> {
            self.call(format!("set {} {value:?}", asked.key));
            Ok("it is set".to_owned())
        }

        async fn send(
            &self,
            _asked: query::Send,
            text: String,
        ) -> Result<MessageAnswers, SettingsError> {
            self.call(format!("send {text}"));
            Err(SettingsError::Refused("nothing runs".to_owned()))
        }

        fn holders(&self, asked: &query::Holders) -> Vec<HolderStatus> {
            self.call(format!("holders {asked:?}"));
            Vec::new()
        }

        async fn dashboard(&self, peer: Peer) -> Result<String, String> {
            self.call(format!("dashboard of {}", peer.uid));
            Ok("http://127.0.0.1:9/?token=x".to_owned())
        }

        async fn cancel_holder(&self, id: &HolderId) -> Option<String> {
            self.call(format!("cancel {id:?}"));
            None
        }

        fn operation(&self, id: &str) -> Option<Operation> {
            (id == "op-1").then(|| self.operation())
        }

        async fn drain_node(&self, asked: query::DrainNode) -> NodeDrain {
            self.call(format!("drain_node {asked:?}"));
            NodeDrain {
                drained: !asked.undo,
                in_flight: 0,
                busy_connections: 0,
                is_quiet: None,
                message: String::new(),
            }
        }

        fn config(&self) -> Arc<Config> {
            Arc::default()
        }

        fn config_plan(&self) -> Result<ConfigPlan, ReconfigureError> {
            Err(ReconfigureError::NoFile)
        }

        fn reload_config(&self) -> Result<ConfigPlan, ReconfigureError> {
            Err(ReconfigureError::NoFile)
        }

        fn metrics(&self) -> Gather {
            Gather::new(|to| to.one("up", telemetry::exposition::Kind::Gauge, "It is.", 1))
        }

        fn state(&self, _app: &AppName) -> Option<Arc<crate::state::Store>> {
            None
        }

        fn work(&self) -> Vec<(AppName, Arc<AppWork>)> {
            Vec::new()
        }

        fn state_suits(&self, _: &AppName, _: crate::state::Schema) -> Result<(), String> {
            Ok(())
        }

        fn state_replaced(&self, _: &AppName) -> Result<(), crate::state::StateError> {
            Ok(())
        }

        fn scratch(&self, app: &AppName) -> io::Result<crate::state::Store> {
            Err(io::Error::other(app.to_string()))
        }
    }

    fn done(message: &str) -> Progress {
        Progress::Result(OperationResult {
            outcome: Outcome::Done,
            message: message.into(),
            app: None,
            generation: None,
            version: None,
            artifact: None,
            notes: Vec::new(),
            ended_streams: 0,
        })
    }

    fn event(seq: u64) -> Event {
        Event {
            seq,
            at_ms: 0,
            kind: EventKind::Active,
            app: None,
            generation: Some(GenerationId(1)),
            message: String::new(),
            leaked_bytes: None,
            leaked_descriptors: None,
        }
    }

    struct Running {
        fake: Fake,
        path: PathBuf,
        shutdown: ShutdownHandle,
        _folder: tempfile::TempDir,
    }

    impl Running {
        fn start() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("control.sock");
            let socket = ControlSocket::bind(&path, None).unwrap();
            let fake = Fake(Arc::new(Inner {
                calls: Mutex::default(),
                called: tokio::sync::Notify::new(),
                lines: Mutex::default(),
                events: broadcast::channel(4).0,
                past: Mutex::default(),
            }));
            let shutdown = ShutdownHandle::new();
            tokio::spawn(serve_backend(
                socket,
                Arc::default(),
                fake.clone(),
                shutdown.clone(),
            ));
            Self {
                fake,
                path,
                shutdown,
                _folder: folder,
            }
        }

        fn client(&self) -> Client {
            Client::new(&self.path)
        }

        /// Sends `request` as it is and gives the whole answer.
        async fn raw(&self, request: &str) -> String {
            let mut stream = UnixStream::connect(&self.path).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        }
    }

    async fn outcome(mut lines: Lines<Progress>) -> OperationResult {
        while let Some(line) = lines.next().await.unwrap() {
            if let Progress::Result(result) = line.value {
                return result;
            }
        }
        panic!("the operation had no result");
    }

    #[tokio::test]
    async fn bad_calls_are_told_what_to_do() {
        let host = Running::start();
        for (request, status, text) in [
            ("GET /v2/status", "404", "this host knows GET /v1/status"),
            (
                "GET /v1/operations/",
                "404",
                "there is no call /v1/operations/",
            ),
            (
                "GET /v1/operations/op-9",
                "404",
                "there is no operation `op-9`",
            ),
            (
                "GET /v1/deploy",
                "405",
                "/v1/deploy takes POST, and this was GET",
            ),
            ("POST /v1/status", "405", "/v1/status takes GET"),
            (
                "GET /v1/history?app=No%20Name",
                "400",
                "`No Name` is not an app name",
            ),
            (
                "GET /v1/history?ap=a",
                "400",
                "unknown field `ap`, expected `app`",
            ),
            (
                "GET /v1/events?follow=perhaps",
                "400",
                "the query of /v1/events is not understood",
            ),
            (
                "POST /v1/deploy?timeout_ms=soon",
                "400",
                "the query of /v1/deploy is not understood",
            ),
        ] {
            let answer = host
                .raw(&format!(
                    "{request} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"
                ))
                .await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")),
                "{request}: {answer}"
            );
            assert!(answer.contains(text), "{request}: {answer}");
            assert!(answer.contains("\"exit_code\":"), "{request}: {answer}");
        }
    }

    #[tokio::test]
    async fn an_upload_is_deployed_with_what_the_query_says() {
        let host = Running::start();
        let file = host.path.with_file_name("it works & more.so");
        std::fs::write(&file, [b"\x7fELF".as_slice(), &[7; 300_000]].concat()).unwrap();
        let app = "shop".parse().unwrap();
        let pair = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
        let text = minisign::sign(None, &pair.sk, [7_u8].as_slice(), None, None)
            .unwrap()
            .into_string();
        let signature: Signature = text.parse().unwrap();
        let lines = host
            .client()
            .deploy(
                &file,
                query::Deploy {
                    app: Some(app),
                    timeout_ms: Some(60_000),
                    queue: true,
                    detach: true,
                    ..query::Deploy::default()
                },
                Some(signature.to_header()),
            )
            .await
            .unwrap();
        assert_eq!(outcome(lines).await.message, "it is live");
        host.fake.wait_for(&format!("signed {text}")).await;
        host.fake
            .wait_for("deploy 300004 shop Some(60s) Detached")
            .await;
    }

    #[tokio::test]
    async fn bytes_that_are_no_artifact_are_rejected() {
        let host = Running::start();
        let file = host.path.with_file_name("notes.txt");
        std::fs::write(&file, "hello").unwrap();
        let result = outcome(
            host.client()
                .deploy(&file, query::Deploy::default(), None)
                .await
                .unwrap(),
        )
        .await;
        assert_eq!(result.outcome, Outcome::Rejected);
        assert_eq!(
            result.message,
            "notes.txt was not taken: it is not an ELF file"
        );
    }

    #[tokio::test]
    async fn a_full_disk_fails_the_deploy_and_the_client_learns_why() {
        let host = Running::start();
        let file = host.path.with_file_name("big.so");
        std::fs::write(&file, b"full".repeat(1 << 18)).unwrap();
        let result = outcome(
            host.client()
                .deploy(&file, query::Deploy::default(), None)
                .await
                .unwrap(),
        )
        .await;
        assert_eq!(result.outcome, Outcome::Failed);
    }

    #[tokio::test]
    async fn a_half_uploaded_artifact_is_dropped() {
        let host = Running::start();
        for head in [
            "content-length: 100\r\n\r\n\x7fELFhalf",
            "transfer-encoding: chunked\r\n\r\n8\r\n\x7fELFhalf\r\n",
        ] {
            host.fake.0.calls.lock().clear();
            let mut stream = UnixStream::connect(&host.path).await.unwrap();
            stream
                .write_all(
                    format!("POST /v1/deploy?name=x.so HTTP/1.1\r\nhost: h\r\n{head}").as_bytes(),
                )
                .await
                .unwrap();
            host.fake.wait_for("has 8").await;
            drop(stream);
            host.fake.wait_for("upload of 8 closed").await;
            assert!(
                !host
                    .fake
                    .0
                    .calls
                    .lock()
                    .iter()
                    .any(|call| call.starts_with("deploy"))
            );
        }
    }

    #[tokio::test]
    async fn lines_come_at_once_and_a_client_that_leaves_stops_nothing() {
        let host = Running::start();
        let (tx, rx) = mpsc::unbounded_channel();
        *host.fake.0.lines.lock() = Some(rx);
        tx.send(Progress::Accepted {
            operation: "op-1".into(),
        })
        .unwrap();
        let mut lines = host
            .client()
            .rollback(None, Some("1.0.0"), Wait::WhileWanted)
            .await
            .unwrap();
        let first = lines.next().await.unwrap().unwrap();
        assert_eq!(first.text, r#"{"type":"accepted","operation":"op-1"}"#);
        host.fake.wait_for("rollback 1.0.0 WhileWanted").await;
        drop(lines);
        tx.closed().await;
        // The host lives on, and the operation can be heard again from its beginning.
        let result = outcome(host.client().operation("op-1").await.unwrap()).await;
        assert_eq!(result.outcome, Outcome::Done);
    }

    #[tokio::test]
    async fn events_are_told_once_and_a_slow_reader_learns_how_many_it_missed() {
        let host = Running::start();
        *host.fake.0.past.lock() = vec![event(1), event(2)];
        let mut past = host.client().events(false).await.unwrap();
        assert_eq!(past.next().await.unwrap().unwrap().value.seq, 1);
        assert_eq!(past.next().await.unwrap().unwrap().value.seq, 2);
        assert!(past.next().await.unwrap().is_none());

        let mut following = host.client().events(true).await.unwrap();
        following.next().await.unwrap().unwrap();
        following.next().await.unwrap().unwrap();
        // This test and the server share one thread: it hears of these together, when four of the
        // six are left.
        for seq in 2..=7 {
            host.fake.0.events.send(event(seq)).unwrap();
        }
        let missed = following.next().await.unwrap().unwrap().value;
        assert_eq!((missed.kind, missed.seq), (EventKind::Missed, 4));
        assert_eq!(following.next().await.unwrap().unwrap().value.seq, 5);
    }

    #[tokio::test]
    async fn shutdown_is_answered_before_it_happens() {
        let host = Running::start();
        assert_eq!(
            host.client().shutdown(true).await.unwrap().pid,
            std::process::id()
        );
        assert_eq!(
            host.shutdown.requested(Shutdown::Drain).await,
            Shutdown::Now
        );
    }

    #[test]
    fn observers_see_and_change_nothing() {
        let caller = |role| Caller {
            peer: Peer { uid: 7, gid: 7 },
            role,
        };
        let names = ["ann".to_owned(), "bob".to_owned()];
        for call in Call::<Fake>::ALL {
            let observes = caller(Role::Observe).may(call.role, &names);
            assert_eq!(
                observes.is_ok(),
                // One job has its payload, and the configuration what apps read: both are the
                // apps'. A link to the dashboard leads to what the same observer sees there.
                call.path == query::DASHBOARD
                    || call.method == Method::GET
                        && ![
                            query::JOB,
                            query::AUDIT,
                            query::SETTINGS,
                            query::CONFIG,
                            query::CONFIG_PLAN
                        ]
                        .contains(&call.path),
                "{}",
                call.path
            );
            assert!(caller(Role::Operate).may(call.role, &names).is_ok());
            let refusal = caller(Role::None).may(call.role, &names).unwrap_err();
            assert_eq!(
                (refusal.status, refusal.problem.exit_code),
                (StatusCode::FORBIDDEN, 9)
            );
        }
        let refusal = caller(Role::Observe)
            .may(Role::Operate, &names)
            .unwrap_err();
        assert!(refusal.problem.error.contains("ann may observe"));
    }

    #[tokio::test]
    async fn a_link_to_the_dashboard_is_made_for_who_calls() {
        let host = Running::start();
        let link = host.client().dashboard().await.unwrap();
        assert_eq!(link.url, "http://127.0.0.1:9/?token=x");
        let own = format!("dashboard of {}", nix::unistd::Uid::effective());
        host.fake.wait_for(&own).await;
    }

    #[tokio::test]
    async fn metrics_are_the_text_of_prometheus() {
        let host = Running::start();
        let answer = host
            .raw("GET /metrics HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
            .await;
        assert!(answer.contains("text/plain; version=0.0.4"), "{answer}");
        assert!(
            answer.ends_with("# HELP up It is.\n# TYPE up gauge\nup 1\n"),
            "{answer}"
        );
    }

    #[tokio::test]
    async fn a_signature_that_is_none_is_refused_before_the_upload() {
        let host = Running::start();
        let answer = host
            .raw("POST /v1/deploy HTTP/1.1\r\nhost: h\r\nconnection: close\r\nhandover-signature: aGVsbG8=\r\n\r\n")
            .await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        assert!(
            answer.contains("the signature is not understood"),
            "{answer}"
        );
    }
}
