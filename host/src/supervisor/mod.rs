//! The parent of the host: it holds the listening sockets, and starts the host again when it
//! crashes.
//!
//! A plugin that segfaults, aborts or overflows its stack takes its process down. This parent runs
//! no code of a plugin, so it stays; and because the sockets are its own, a client that connects
//! while there is no host waits in the queue of the socket instead of being refused.
//!
//! - [`host`]: one host process: its start, its end, and what that end means
//! - [`backoff`]: how long the next start waits
//! - [`orphans`]: what is left of other processes where this one is the first of a container
//!
//! To its child it is what systemd would be: it passes sockets by the protocol of `LISTEN_FDS`,
//! hears `READY=1` and `STOPPING=1`, and passes those on to the `NOTIFY_SOCKET` it was started with
//! itself. So the host does not care who started it, and a later upgrade of the host's binary needs
//! nothing new here: start a second child with the same sockets, wait for its `READY=1`, end the
//! first.
//!
//! It has one thread beside the one that writes its log. That is not only cheap: the host asks the
//! kernel to be killed when the *thread* that started it ends.

mod backoff;
mod host;
mod orphans;

use std::{
    fs, io,
    path::Path,
    process,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tokio::{
    signal::unix::{Signal as Stream, SignalKind, signal},
    time::MissedTickBehavior,
};

pub(crate) use self::host::attach;
use self::{
    backoff::Backoff,
    host::{Crash, End, Host},
    orphans::Orphans,
};
use crate::{
    config::Config,
    net::{self, Listeners, SocketError},
    notify::Notifier,
    reconfigure,
    shortage::{Kills, OUT_OF_MEMORY},
    signals,
    spill::SpillFile,
    telemetry,
};

/// How long an address may still be in use: a host that was killed is gone, but the kernel may not
/// have closed its sockets yet.
const STILL_IN_USE: Duration = Duration::from_millis(500);

/// The exit code of a host that crashed while it was ending (`EX_SOFTWARE`).
const CRASHED: u8 = 70;

/// The file in the state directory that tells the next start of it.
const CRASH_IN_THE_END: &str = "crash-in-the-end.json";

/// How often it is looked whether the kernel has killed a process for want of memory.
const LOOKED_AT_KILLS: Duration = Duration::from_secs(1);

/// Why there is no supervisor.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SupervisorError {
    /// No socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Something else.
    #[error("the host cannot be supervised: {0}; `--no-supervisor` runs it without a parent")]
    Io(#[from] io::Error),
}

/// Runs the host as a child until it ends as it was meant to, and gives its exit code.
///
/// # Errors
/// When the first child cannot be started. Whatever happens later is told, and tried again.
pub(crate) fn run(config: &Config) -> Result<u8, SupervisorError> {
    let listeners = bind(config)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(supervise(listeners, &config.server.state))
}

fn bind(config: &Config) -> Result<Listeners, SocketError> {
    let patience = Instant::now() + STILL_IN_USE;
    let mut listeners = Listeners::default();
    for (key, options) in net::listeners::wanted(config) {
        loop {
            match listeners.bind(&key, &options) {
                Err(error) if error.is_in_use() && Instant::now() < patience => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                bound => break bound?,
            }
        }
    }
    Ok(listeners)
}

async fn supervise(mut listeners: Listeners, state: &Path) -> Result<u8, SupervisorError> {
    let left = &state.join(CRASH_IN_THE_END);
    let kept_config = state.join(reconfigure::KEPT);
    let mut signals = Signals::new()?;
    let mut orphans = Orphans::new()?;
    let manager = Notifier::from_env();
    let mut backoff = Backoff::default();
    let spill = SpillFile::create()
        .inspect_err(
            |error| tracing::warn!(%error, "what a full disk has no room for ends with the host"),
        )
        .ok();
    let mut crashed = crash_before(left);
    let mut once_ready = false;
    let mut kills = Kills::new();
    let mut tick = tokio::time::interval(LOOKED_AT_KILLS);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let began = Instant::now();
        // The child inherits them. This process runs nothing else.
        let started = listeners.hand_on().and_then(|sockets| {
            Host::start(&sockets, spill.as_ref(), crashed.as_ref(), &kept_config)
        });
        let mut host = match started {
            Ok(host) => host,
            Err(error) if !once_ready => return Err(error.into()),
            Err(error) => {
                tracing::error!("the host cannot be started: {error}");
                if signals.pause(backoff.next()).await.is_some() {
                    return Ok(0);
                }
                continue;
            }
        };
        let end = loop {
            tokio::select! {
                signal = signals.next() => host.signal(signal),
                () = orphans.come() => orphans::reap(host.pid()),
                end = host.ended(&manager, &mut listeners) => break end?,
                // So that the end of a preflight child is not taken for that of the host later on.
                _ = tick.tick() => {
                    kills.look();
                }
            }
        };
        once_ready |= host.was_ready();
        if host.was_ready() {
            // It has heard of the crash before it. One that did not come up may not have.
            crashed = None;
        }
        match end {
            End::Meant(code) => return Ok(code),
            // It has said why.
            End::NotStarted(code) if !once_ready => return Ok(code),
            End::NotStarted(_) => {
                tracing::error!("the host did not come up again, and is tried anew");
            }
            End::CrashedLate(how) => {
                tracing::error!(
                    pid = host.pid(),
                    "the host crashed while it was ending: {how}"
                );
                leave(left, &host.crash(how));
                return Ok(CRASHED);
            }
            End::Crashed(how) => {
                let how = match how.as_str() {
                    "SIGKILL" if kills.any_lately() => OUT_OF_MEMORY.to_owned(),
                    _ => how,
                };
                tracing::error!(
                    pid = host.pid(),
                    "the host crashed: {how}; it is started again, and connections wait meanwhile"
                );
                crashed = Some(host.crash(how));
            }
        }
        let pause = backoff.after(began.elapsed());
        if !pause.is_zero() {
            tracing::warn!(
                "the next start waits {}, because the last ones did not live long",
                humantime::format_duration(pause)
            );
        }
        if let Some(signal) = signals.pause(pause).await {
            tracing::info!(?signal, "no host runs, so there is nothing left to end");
            return Ok(0);
        }
    }
}

/// The crash at the end of the host before, which nobody has heard of yet. It is told once.
fn crash_before(left: &Path) -> Option<Crash> {
    let text = fs::read(left).ok()?;
    // What cannot be read says nothing.
    let crash = serde_json::from_slice(&text).ok();
    if let Err(error) = fs::remove_file(left) {
        tracing::warn!(file = %left.display(), %error, "an old crash is told again at the next start");
    }
    crash
}

/// Leaves `crash` to the next start: nothing is started again now.
fn leave(left: &Path, crash: &Crash) {
    let written = serde_json::to_vec(crash)
        .map_err(io::Error::other)
        .and_then(|text| fs::write(left, text));
    if let Err(error) = written {
        tracing::warn!(file = %left.display(), %error, "the next start blames nobody for it");
    }
}

/// The signals that are meant for the host.
struct Signals {
    hangup: Stream,
    interrupt: Stream,
    terminate: Stream,
    renamed: Stream,
}

impl Signals {
    fn new() -> io::Result<Self> {
        signals::outlive()?;
        Ok(Self {
            renamed: signal(SignalKind::user_defined1())?,
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.hangup.recv() => Signal::HUP,
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.renamed.recv() => {
                telemetry::reopen();
                Signal::USR1
            }
        }
    }

    /// Waits for `pause`. Gives the signal that asks for the end meanwhile.
    async fn pause(&mut self, pause: Duration) -> Option<Signal> {
        let by = tokio::time::Instant::now() + pause;
        loop {
            match tokio::time::timeout_at(by, self.next()).await {
                // The next host reads everything anew anyway.
                Ok(Signal::HUP | Signal::USR1) => {}
                Ok(signal) => return Some(signal),
                Err(_) => return None,
            }
        }
    }
}

/// The process id of the supervisor, for its child.
fn own_pid() -> String {
    process::id().to_string()
}
