//! The host process put together: runtime, sockets, apps, drop folders, control socket, signals.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    num::NonZeroUsize,
    ops::Deref,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::{
    net::UnixListener,
    runtime::{Handle, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    task::{JoinHandle, JoinSet},
};

use arc_swap::ArcSwap;
use handover_api::{AuditSource, Wait};

use crate::{
    access::{self, Access},
    acme::OrderedCertificates,
    artifact::Store,
    config::{self, Config, ConfigOrigin, ListenAddress, Server, SocketOptions},
    control::{self, ControlSocket, DashboardDoor, Shutdown, ShutdownHandle, metrics_endpoint},
    dashboard::{self, Page},
    dispatch::Routes,
    health::Health,
    memory,
    net::{
        self, ClientListeners, Connections, Facilities, Listeners, ReadyListeners, SocketError,
        bind::Bound, listeners, tls,
    },
    notify::Notifier,
    open_files,
    orchestrator::Orchestrator,
    ownership,
    reconfigure::Reconfigurer,
    records::{audit, journal::Crashed},
    signals,
    spill::Spill,
    telemetry::{
        self, AccessLog, Gather,
        exposition::{Exposition, Kind},
    },
    watch::WatcherHandle,
    watchdog::stall,
    workers,
};

/// How long requests that were on their way when the host stopped listening have to be read.
const ON_THEIR_WAY: Duration = Duration::from_millis(250);

/// How long the last answers on the control socket may take to be read, when everything else has
/// ended.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

/// How long apps that have come up again wait for those that have not.
const SIDE_BY_SIDE: Duration = Duration::from_secs(2);

/// How long tasks have to notice that the host has ended.
pub(crate) const LAST_MOMENT: Duration = Duration::from_secs(1);

/// How often the log tells how many requests the access log has no line of.
const TELL_UNWRITTEN_EVERY: Duration = Duration::from_secs(1);

/// How often a control socket that cannot be made is tried again.
const BIND_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// How long a host that was killed may still hold the state directory: the kernel ends it after
/// those who waited for it hear of it.
const STILL_ENDING: Duration = Duration::from_secs(1);

/// What a host is given by whoever starts it.
#[derive(Debug, Default)]
pub(crate) struct StartupHandoff {
    /// Listening sockets. What is configured and not among them, the host binds.
    pub listeners: Listeners,
    /// Who is told how it is.
    pub notifier: Notifier,
    /// Whether a supervisor of our own started it, which passes signals on.
    pub is_supervised: bool,
    /// How the host before it crashed.
    pub crashed: Option<Crashed>,
    /// What the host before it could not write.
    pub spill: Option<Spill>,
    /// Where its configuration is read again.
    pub origin: ConfigOrigin,
}

/// A running host.
#[derive(Debug)]
pub(crate) struct Daemon {
    settings: Server,
    orchestrator: Orchestrator,
    store: Store,
    listeners: ClientListeners,
    health: Health,
    access_log: Option<AccessLog>,
    shutdown: ShutdownHandle,
    /// Its socket's file goes with it.
    control: JoinHandle<()>,
    dashboard: JoinHandle<()>,
    /// What ends when it is dropped: the metrics over TCP, and what tells of the access log.
    tasks: JoinSet<()>,
    signals: JoinHandle<()>,
    notifier: Notifier,
    alive: JoinHandle<()>,
    memory: JoinHandle<()>,
    /// Reads certificates again when their files change.
    certificates: JoinHandle<()>,
    /// Held for the life of the host, so that no second one works on the same state.
    lock: File,
}

/// A host that has ended, but for its process.
#[derive(Debug)]
#[must_use = "its end is written down last"]
pub(crate) struct Over {
    orchestrator: Orchestrator,
    /// Nobody else has the state directory before that.
    _lock: File,
}

/// Why the host did not start, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct DaemonError(pub String);

/// The runtime of a host process.
#[derive(Debug)]
pub(crate) struct HostRuntime {
    // Dropped first: a runtime ends when its workers do, and spare ones sleep.
    wake: WakeSpares,
    runtime: Runtime,
}

#[derive(Debug)]
struct WakeSpares;

impl Drop for WakeSpares {
    fn drop(&mut self) {
        stall::wake_spares();
    }
}

impl HostRuntime {
    /// Ends it. Threads that have not ended within [`LAST_MOMENT`] are left behind: a worker that
    /// is stuck in a plugin's code would keep the process for ever.
    pub(crate) fn end(self) {
        drop(self.wake);
        self.runtime.shutdown_timeout(LAST_MOMENT);
    }
}

impl Deref for HostRuntime {
    type Target = Runtime;

    fn deref(&self) -> &Runtime {
        &self.runtime
    }
}

/// The runtime of a host process: its workers are known to the ledger, so everything that calls
/// plugins runs on it.
///
/// # Errors
/// When the threads cannot be started.
pub(crate) fn runtime(config: &Config) -> io::Result<HostRuntime> {
    let server = &config.server;
    let number = server
        .workers
        .or_else(|| thread::available_parallelism().ok());
    let number = number.map_or(1, NonZeroUsize::get);
    // Who is not looked for is not replaced.
    let spare = server.stall_after.map_or(0, |_| server.spare_workers);
    let runtime = workers::runtime(NonZeroUsize::new(number + spare))?;
    stall::park_spares(&runtime, spare);
    Ok(HostRuntime {
        wake: WakeSpares,
        runtime,
    })
}

impl Daemon {
    /// Starts everything: state directory (locked against a second host), listener, the artifacts
    /// that were live before, control socket, the drop folders.
    ///
    /// # Errors
    /// What could not be had and what to do. Nothing is left running then.
    pub(crate) async fn start(
        config: Config,
        handoff: StartupHandoff,
    ) -> Result<Self, DaemonError> {
        let StartupHandoff {
            listeners: mut given_listeners,
            notifier,
            is_supervised,
            crashed,
            spill,
            origin,
        } = handoff;
        open_files::raise();
        let settings = config.server.clone();
        let no_socket = |cause: SocketError| DaemonError(cause.to_string());
        let metrics_key = listeners::metrics(&config);
        let measures = config.metrics.request_durations;
        let (access, group) = admit(&config.control, &settings)?;
        let access = Arc::new(ArcSwap::from_pointee(access));
        let lock = take_state(&settings.state, STILL_ENDING)?;
        let insecure_paths = config.trust.insecure_paths;
        if !insecure_paths {
            ownership::check(&settings.state).map_err(|cause| {
                DaemonError(format!("the state directory is not to be trusted: {cause}"))
            })?;
        }
        let fail =
            |what: &str, cause: &dyn std::fmt::Display| DaemonError(format!("{what}: {cause}"));

        let store = Store::open(&settings.state.join("artifacts"))
            .map_err(|cause| fail("the artifact store cannot be opened", &cause))?;
        let routes = Arc::new(Routes::default());
        let listening = config.clone();
        let (kept_in, served_by) = (store.clone(), Arc::clone(&routes));
        let orchestrator = Orchestrator::open(config, &settings.state, kept_in, served_by, spill)
            .map_err(|cause| {
            fail(
                &format!("{} cannot be read", settings.state.display()),
                &cause,
            )
        })?;

        // Bound before anything is loaded, so that a taken port is found out at once; accepting
        // comes last.
        let claimed = given_listeners.claim(&listening).map_err(no_socket)?;
        let unusable = |cause: io::Error| fail("the listening socket cannot be used", &cause);
        let metrics = metrics_key
            .map(|key| given_listeners.take(&key, &SocketOptions::default()))
            .transpose()
            .map_err(no_socket)?;
        let dashboard = listeners::dashboard(&listening)
            .map(|key| given_listeners.take(&key, &SocketOptions::default()))
            .transpose()
            .map_err(no_socket)?;
        let metrics_at = metrics
            .as_ref()
            .and_then(|bound| match bound.local_address() {
                Ok(ListenAddress::Tcp(address)) => Some(address),
                _ => None,
            });
        let metrics = metrics
            .map(Bound::into_listener)
            .transpose()
            .map_err(unusable)?;
        let claimed =
            ReadyListeners::claimed(claimed).map_err(|cause| DaemonError(cause.to_string()))?;
        let control = match ControlSocket::bind(&settings.control, group) {
            // What was live is served without it, and it is made when that is possible.
            Err(cause) if cause.is_for_want_of_room() => {
                tracing::error!("{cause}; the host serves without it and tries again");
                None
            }
            bound => Some(bound.map_err(|cause| DaemonError(cause.to_string()))?),
        };
        // Who could put another socket there would be told what operators tell the host.
        if !insecure_paths {
            ownership::check(handover_api::socket::folder(&settings.control)).map_err(|cause| {
                DaemonError(format!(
                    "the folder of the control socket is not to be trusted: {cause}"
                ))
            })?;
        }
        let shutdown = ShutdownHandle::new();
        let signals = Signals::new(is_supervised)
            .map_err(|cause| fail("signals cannot be handled", &cause))?;
        let spare = settings.stall_after.map_or(0, |_| settings.spare_workers);
        let workers = Handle::current().metrics().num_workers();
        if let Some(stall_after) = settings.stall_after {
            orchestrator.look_for_stalls(workers.saturating_sub(spare).max(1), stall_after);
        }
        let connections = Connections::new(&settings.clients());
        let access_log = AccessLog::open(&listening.access_log)
            .map_err(|cause| fail("the access log cannot be opened (access_log.file)", &cause))?;
        let health = {
            let apps = orchestrator.clone();
            Health::new(move || apps.not_up())
        };
        let ordered = OrderedCertificates::default();
        let gather = {
            let (apps, connections) = (orchestrator.clone(), connections.clone());
            let (health, access_log) = (health.clone(), access_log.clone());
            let ordered = ordered.clone();
            Gather::new(move |to| {
                apps.write_metrics(to);
                ordered.write_metrics(to);
                connections.write_metrics(to);
                if let Some(log) = &access_log {
                    log.write_metrics(to);
                }
                write_workers(to, workers);
                to.one(
                    "handover_ready",
                    Kind::Gauge,
                    "1 while /readyz says that traffic may come, else 0.",
                    u8::from(health.not_ready().is_none()),
                );
            })
        };
        // Before anything is up, so that whoever asks is told so. It ends with what fails here.
        let mut tasks = JoinSet::new();
        if let Some(listener) = metrics {
            let (gather, health) = (gather.clone(), health.clone());
            tasks.spawn(metrics_endpoint::serve(listener, gather, health));
        }
        // The words of the host before it are read by now.
        let said_before = orchestrator.hear_last_words(if is_supervised {
            notifier.listener().ok().flatten()
        } else {
            None
        });
        restore(&orchestrator, crashed.or(said_before)).await;

        let keeper = is_supervised.then(|| notifier.clone());
        let facilities = Facilities {
            health: health.clone(),
            access_log: access_log.clone(),
            measures,
        };
        let listeners = ClientListeners::kept_by(keeper, routes, connections.clone(), facilities);
        listeners
            .open(claimed, net::Settings::of(&settings))
            .map_err(unusable)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&settings.plugins)
            .map_err(|cause| {
                fail(
                    &format!(
                        "the drop folder {} cannot be made",
                        settings.plugins.display()
                    ),
                    &cause,
                )
            })?;
        orchestrator.make_drop_folders();
        if !insecure_paths && let Err(cause) = ownership::check(&settings.plugins) {
            tracing::warn!(
                "nothing is taken from the drop folder, since others could put it there: {cause}"
            );
        }
        let watcher = orchestrator.watch_drop_folders(settings.plugins.clone());
        let reconfigurer = Reconfigurer::new(
            origin,
            orchestrator.clone(),
            listeners.clone(),
            Arc::clone(&access),
        );
        reconfigurer.keep();
        let (door, links) = DashboardDoor::new();
        let host = control::Host {
            orchestrator: orchestrator.clone(),
            store: store.clone(),
            metrics: gather.clone(),
            watcher: watcher.clone(),
            connections,
            reconfigurer: reconfigurer.clone(),
            listeners: listeners.clone(),
            certificates: ordered.clone(),
            health: health.clone(),
            metrics_at,
            dashboard: door,
        };
        let page = Page::new(
            host.clone(),
            Arc::clone(&access),
            shutdown.clone(),
            measures,
        );
        let dashboard = tokio::spawn(dashboard::serve(dashboard, links, page));
        let control = {
            let (path, shutdown) = (settings.control.clone(), shutdown.clone());
            tokio::spawn(async move {
                let bound = match control {
                    Some(bound) => bound,
                    None => bind_later(&path, group).await,
                };
                control::serve(bound, access, host, shutdown).await;
            })
        };
        let signals = tokio::spawn(signals.handle(
            orchestrator.clone(),
            reconfigurer,
            watcher,
            shutdown.clone(),
            access_log.clone(),
        ));
        if let Some(log) = access_log.clone() {
            tasks.spawn(log.tell_unwritten(TELL_UNWRITTEN_EVERY));
        }
        let alive = tokio::spawn(notifier.clone().keep_alive());
        let memory = tokio::spawn(memory::give_back_what_is_free());
        tasks.spawn({
            let (listeners, told) = (listeners.clone(), orchestrator.clone());
            let config = {
                let orchestrator = orchestrator.clone();
                move || orchestrator.config()
            };
            let challenges = listeners.challenges();
            ordered.keep(config, challenges, move |became| told.record_order(became))
        });
        let certificates = {
            let orchestrator = orchestrator.clone();
            let record = move |reloaded| orchestrator.record_certificates(reloaded);
            let listeners = listeners.clone();
            tokio::spawn(tls::watch(move || listeners.tls(), record))
        };
        notifier.ready();
        Ok(Self {
            settings,
            orchestrator,
            store,
            listeners,
            health,
            access_log,
            shutdown,
            control,
            dashboard,
            tasks,
            signals,
            notifier,
            alive,
            memory,
            certificates,
            lock,
        })
    }

    /// The apps.
    pub(crate) fn orchestrator(&self) -> &Orchestrator {
        &self.orchestrator
    }

    /// The artifact store.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Where it serves: `ADDRESS:PORT`, `https://ADDRESS:PORT`, or `unix:PATH`.
    pub(crate) fn listen(&self) -> Vec<String> {
        self.listeners.addresses()
    }

    /// How the host is asked to end.
    pub(crate) fn shutdown_handle(&self) -> ShutdownHandle {
        self.shutdown.clone()
    }

    /// Waits until SIGTERM, SIGINT or `handover shutdown`, then drains and ends. A second request
    /// ends it at once.
    pub(crate) async fn wait(self) -> Over {
        let Self {
            settings,
            orchestrator,
            shutdown,
            listeners,
            health,
            access_log,
            mut control,
            dashboard,
            tasks,
            signals,
            notifier,
            alive,
            memory,
            certificates,
            lock,
            ..
        } = self;
        shutdown.requested(Shutdown::Drain).await;
        notifier.stopping();
        health.end();
        tracing::info!(
            deadline = %humantime::format_duration(settings.shutdown_deadline),
            "the host ends when what is in flight has ended"
        );
        // Connections are told to end when they are idle.
        let mut serving = tokio::spawn(async move { listeners.finish().await });
        let drain = async {
            let by = tokio::time::Instant::now() + settings.shutdown_deadline;
            // Connections that are idle end at once. What was on its way is read before the apps
            // close their doors.
            if tokio::time::timeout(ON_THEIR_WAY, &mut serving)
                .await
                .is_err()
            {
                let left = settings.shutdown_deadline.saturating_sub(ON_THEIR_WAY);
                orchestrator.shutdown(left).await;
                // The apps have ended: what is left is answers on their way out.
                let _ = tokio::time::timeout_at(by, &mut serving).await;
            } else {
                orchestrator.shutdown(settings.shutdown_deadline).await;
            }
        };
        tokio::select! {
            () = drain => {}
            _ = shutdown.requested(Shutdown::Now) => {
                tracing::warn!("the host ends now, whatever is in flight");
                orchestrator.shutdown(Duration::ZERO).await;
            }
        }
        // Whoever waits for an operation that was cut reads how it ended.
        shutdown.request(Shutdown::Ended);
        let _ = tokio::time::timeout(ANSWERED_WITHIN, &mut control).await;
        serving.abort();
        control.abort();
        dashboard.abort();
        drop(tasks);
        signals.abort();
        alive.abort();
        memory.abort();
        certificates.abort();
        // Its file goes with it. An error is what it was cancelled for.
        if !control.is_finished() {
            let _ = control.await;
        }
        // What was handed over is on the disk, and every file closed, before another host may open
        // them.
        let (stores, audit) = (orchestrator.stores().clone(), orchestrator.audit());
        let close = move || {
            stores.close();
            audit.close();
            if let Some(log) = access_log {
                log.flush(LAST_MOMENT);
            }
        };
        let _ = tokio::task::spawn_blocking(close).await;
        tracing::info!("the host has ended");
        Over {
            orchestrator,
            _lock: lock,
        }
    }
}

impl Over {
    /// Writes down that nothing crashed, when nothing can any more, and lets go of the state
    /// directory. Blocks.
    pub(crate) fn done(self) {
        self.orchestrator.ended();
    }
}

/// Makes the control socket as soon as there is room for it.
async fn bind_later(path: &Path, group: Option<u32>) -> (UnixListener, ControlSocket) {
    loop {
        tokio::time::sleep(BIND_AGAIN_AFTER).await;
        if let Ok(bound) = ControlSocket::bind(path, group) {
            tracing::info!(path = %path.display(), "the control socket is made");
            return bound;
        }
    }
}

/// Makes live again what was live before. Apps that have not come up after a while hold up no other
/// that has; as long as nothing serves, connections wait.
async fn restore(orchestrator: &Orchestrator, crashed: Option<Crashed>) {
    let restored = orchestrator.clone();
    let mut restoring = tokio::spawn(async move { restored.restore(crashed).await });
    loop {
        match tokio::time::timeout(SIDE_BY_SIDE, &mut restoring).await {
            Ok(Ok(())) => return,
            Ok(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
            Err(_) if orchestrator.any_serves() => {
                tracing::warn!("some apps have not come up yet; the others serve meanwhile");
                return;
            }
            Err(_) => {}
        }
    }
}

/// Workers of the host that take part, and spare ones that sleep.
fn write_workers(to: &mut Exposition, all: usize) {
    let asleep = stall::sleeping_spares();
    let mut family = to.family(
        "handover_workers",
        Kind::Gauge,
        "Threads that all apps share: those that serve, and spare ones that sleep until others are held.",
    );
    family.sample(&[("state", &"serving")], all.saturating_sub(asleep));
    family.sample(&[("state", &"asleep")], asleep);
}

/// Who may call, and the group that may open the control socket. Blocks.
///
/// # Errors
/// The first of them that this machine does not know, or whom the socket cannot be given to.
pub(crate) fn admit(
    control: &config::Control,
    settings: &Server,
) -> Result<(Access, Option<u32>), DaemonError> {
    let access = Access::resolve(control).map_err(DaemonError)?;
    let Some(name) = &control.group else {
        return Ok((access, None));
    };
    let group = access::group(name)
        .ok_or_else(|| DaemonError(format!("control.group: {}", access::no_group(name))))?;
    if settings.control.starts_with(&settings.state) {
        return Err(DaemonError(format!(
            "the group `{name}` (control.group) could not reach the control socket in the state directory, which is the host's alone: \
             put the socket elsewhere, e.g. server.control = \"/run/handover/control.sock\""
        )));
    }
    Ok((access, Some(group)))
}

/// Makes the state directory private and takes its lock, which may take until `patience` has
/// passed. One that is there is good for that even where nothing can be written.
fn take_state(state: &Path, patience: Duration) -> Result<File, DaemonError> {
    let trouble = |what: &str, cause: io::Error| {
        DaemonError(format!(
            "the state directory {} cannot be {what}: {cause}; choose another with --state",
            state.display()
        ))
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state)
        .map_err(|cause| trouble("made", cause))?;
    let is_private =
        fs::metadata(state).is_ok_and(|facts| facts.permissions().mode() & 0o777 == 0o700);
    if !is_private {
        fs::set_permissions(state, fs::Permissions::from_mode(0o700))
            .map_err(|cause| trouble("made private", cause))?;
    }
    // Held by a descriptor that only reads, so that the file system may become read-only
    // under it.
    let path = state.join("lock");
    let mut writing = OpenOptions::new();
    writing.write(true).create(true).truncate(false).mode(0o600);
    let mut lock = match File::open(&path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            writing.open(&path).and_then(|_| File::open(&path))
        }
        opened => opened,
    }
    .map_err(|cause| trouble("locked", cause))?;
    let by = Instant::now() + patience;
    let taken = loop {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < by => {
                thread::sleep(Duration::from_millis(10));
            }
            taken => break taken,
        }
    };
    match taken {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // Only for the sentence.
            let _ = lock.read_to_string(&mut pid);
            return Err(DaemonError(format!(
                "another host (process {}) works on {}: end it with `handover shutdown`, or choose another state directory with \
                 --state",
                pid.trim(),
                state.display()
            )));
        }
        Err(TryLockError::Error(cause)) => return Err(trouble("locked", cause)),
    }
    // Only for the sentence above. Written over what is there, which takes no room.
    let pid = format!("{}\n", std::process::id());
    let named = writing.open(&path).and_then(|mut file| {
        file.write_all(pid.as_bytes())?;
        file.set_len(pid.len() as u64)
    });
    if let Err(cause) = named {
        tracing::warn!(state = %state.display(), "the state directory cannot be written: {cause}");
    }
    Ok(lock)
}

/// The signals of a daemon.
struct Signals {
    /// The file of the log was renamed.
    renamed: Signal,
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
    /// From the supervisor, which counts how often it was asked.
    at_once: Option<Signal>,
}

impl Signals {
    fn new(is_supervised: bool) -> io::Result<Self> {
        signals::outlive()?;
        Ok(Self {
            renamed: signal(SignalKind::user_defined1())?,
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            at_once: is_supervised
                .then(|| signal(SignalKind::quit()))
                .transpose()?,
        })
    }

    /// SIGHUP reads the configuration again and reloads, SIGUSR1 opens the log's file again, SIGINT
    /// and SIGTERM end the host, a second one at once.
    ///
    /// Under a supervisor that one counts: who sends a signal to all processes of a group (systemd,
    /// `docker stop` with an init) asks once, though it comes here twice.
    async fn handle(
        mut self,
        orchestrator: Orchestrator,
        reconfigurer: Reconfigurer,
        watcher: WatcherHandle,
        shutdown: ShutdownHandle,
        access_log: Option<AccessLog>,
    ) {
        loop {
            let signal = tokio::select! {
                Some(()) = self.hangup.recv() => {
                    tracing::info!("SIGHUP: the configuration is read again, and all apps reload");
                    let audit = orchestrator.audit();
                    audit.record(audit::asked(AuditSource::Signal, "SIGHUP"));
                    if reconfigurer.has_file() {
                        let reconfigurer = reconfigurer.clone();
                        // What became of it is an event.
                        let _ = tokio::task::spawn_blocking(move || reconfigurer.reload()).await;
                    }
                    // It goes on without a listener, and its steps are events.
                    drop(orchestrator.reload(None, Wait::No, &watcher));
                    continue;
                }
                Some(()) = self.renamed.recv() => {
                    telemetry::reopen();
                    if let Some(log) = &access_log {
                        log.reopen();
                    }
                    continue;
                }
                Some(()) = self.interrupt.recv() => "SIGINT",
                Some(()) = self.terminate.recv() => "SIGTERM",
                Some(()) = next(&mut self.at_once) => {
                    shutdown.request(Shutdown::Now);
                    continue;
                }
                else => return,
            };
            let audit = orchestrator.audit();
            audit.record(audit::asked(AuditSource::Signal, signal));
            shutdown.request(match shutdown.current() {
                Shutdown::Drain if self.at_once.is_some() => Shutdown::Drain,
                Shutdown::Running => Shutdown::Drain,
                Shutdown::Drain | Shutdown::Now | Shutdown::Ended => Shutdown::Now,
            });
        }
    }
}

/// The next signal of a stream that may not be there.
async fn next(stream: &mut Option<Signal>) -> Option<()> {
    match stream {
        Some(stream) => stream.recv().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn a_second_host_on_the_same_state_is_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let lock = take_state(&state, Duration::ZERO).unwrap();
        let error = take_state(&state, Duration::ZERO).unwrap_err().to_string();
        assert!(
            error.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        drop(lock);
        take_state(&state, Duration::ZERO).unwrap();
        let mode = fs::metadata(&state).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
