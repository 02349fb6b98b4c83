//! A host within a program of one's own: [`Host::builder`].

use std::{
    env,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    config::{ConfigOrigin, Overrides},
    control::{Shutdown, ShutdownHandle},
    daemon::{self, Daemon, HostRuntime, StartupHandoff},
    ledger,
    origin::origin,
    preflight,
};

/// Whether this program does what a host needs of its `main`.
static PREPARED: AtomicBool = AtomicBool::new(false);

/// Prepares this program to be a host: the first line of its `main`.
///
/// A host starts its own program again to try each artifact in a process of its own. That one
/// returns an exit code here, with which `main` is to end at once.
///
/// # Examples
/// ```no_run
/// use std::process::ExitCode;
///
/// fn main() -> ExitCode {
///     if let Some(code) = handover::prepare() {
///         return code;
///     }
///     let host = match handover::Host::builder().plugins("plugins").start() {
///         Ok(host) => host,
///         Err(error) => {
///             eprintln!("{error}");
///             return ExitCode::FAILURE;
///         }
///     };
///     println!("serving at {}", host.addresses().join(", "));
///     host.wait();
///     ExitCode::SUCCESS
/// }
/// ```
#[must_use = "a process that gets an exit code here must end with it"]
pub fn prepare() -> Option<ExitCode> {
    // Before plugins change what the process began with.
    origin();
    if env::args_os()
        .nth(1)
        .is_some_and(|first| first == preflight::CHILD)
    {
        return Some(preflight::child::main());
    }
    PREPARED.store(true, Ordering::Relaxed);
    None
}

/// A running host in this process: its sockets, its apps and its drop folder.
///
/// It is operated as any other is, over its [control socket](Self::control): by the command
/// `handover`, and by the client of the crate `handover-api`. Nobody starts it again when a plugin
/// crashes the process, which is what the supervisor of `handover run` does.
///
/// A process has one at a time. It handles SIGTERM, SIGINT and SIGHUP as long as it runs. What it
/// logs goes to the subscriber of `tracing` that the program has set.
#[derive(Debug)]
pub struct Host {
    runtime: HostRuntime,
    daemon: Daemon,
    addresses: Vec<String>,
    control: PathBuf,
    shutdown: ShutdownHandle,
}

/// What a host is to be, before it is one. Made by [`Host::builder`].
#[derive(Clone, Debug, Default)]
#[must_use = "a host runs when it is started"]
pub struct Builder {
    file: Option<PathBuf>,
    overrides: Overrides,
}

/// Why a host did not start: a sentence for people, with what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(String);

impl Host {
    /// Returns a host that is not started yet, as `handover run` starts it without arguments:
    /// at 127.0.0.1:8080, with its drop folder in `plugins` and its records in `.handover`.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Where it serves: `ADDRESS:PORT`, `https://ADDRESS:PORT` or `unix:PATH`.
    #[must_use]
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// The file of its control socket.
    #[must_use]
    pub fn control(&self) -> &Path {
        &self.control
    }

    /// Asks it to end as `handover shutdown` does, and returns at once: what is in flight goes on
    /// until `server.shutdown_deadline`. [`Self::wait`] returns when it has ended.
    pub fn shutdown(&self) {
        self.shutdown.request(Shutdown::Drain);
    }

    /// Blocks until it was asked to end, by anybody, and has ended. Its plugins are unloaded then,
    /// but for those whose threads would not end.
    ///
    /// # Panics
    /// Within a runtime of tokio: blocking there would hold up its other tasks.
    pub fn wait(self) {
        let over = self.runtime.block_on(self.daemon.wait());
        self.runtime.end();
        over.done();
    }
}

impl Builder {
    /// Reads this file of configuration. What the other methods say goes before it.
    pub fn config(mut self, file: impl Into<PathBuf>) -> Self {
        self.file = Some(file.into());
        self
    }

    /// Serves at this address, as `server.listen` has it. Port 0 takes a free one.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.overrides.listen = Some(address);
        self
    }

    /// Takes artifacts from this drop folder, as `server.plugins` has it.
    pub fn plugins(mut self, folder: impl Into<PathBuf>) -> Self {
        self.overrides.plugins = Some(folder.into());
        self
    }

    /// Keeps artifacts, records and the control socket in this folder, as `server.state` has it.
    pub fn state(mut self, folder: impl Into<PathBuf>) -> Self {
        self.overrides.state = Some(folder.into());
        self
    }

    /// Starts it, on threads of its own. What was live when it ended before is live again when this
    /// returns.
    ///
    /// # Errors
    /// When [`prepare`] was not called, the executable does not export what plugins are bound to
    /// (its `build.rs` has to say `cargo::rustc-link-arg-bins=-rdynamic`), others may write the
    /// file of configuration, it makes no sense, or something could not be had, such as the
    /// address. Nothing is left running then.
    ///
    /// # Panics
    /// Within a runtime of tokio: blocking there would hold up its other tasks.
    pub fn start(self) -> Result<Host, StartError> {
        if !PREPARED.load(Ordering::Relaxed) {
            return Err(StartError(
                "this program cannot try an artifact in a process of its own: call `handover::prepare` first in its `main`".into(),
            ));
        }
        if !ledger::armed() {
            return Err(StartError(
                "this executable does not export the functions that plugins are to find before libc's: \
                 let its build.rs print `cargo::rustc-link-arg-bins=-rdynamic`"
                    .into(),
            ));
        }
        let origin = ConfigOrigin {
            file: self.file,
            overrides: self.overrides,
            insecure_paths: false,
        };
        let config = origin
            .read()
            .map_err(|error| StartError(error.to_string()))?;
        let handoff = StartupHandoff {
            origin,
            ..StartupHandoff::default()
        };
        let control = config.server.control.clone();
        let runtime = daemon::runtime(&config)
            .map_err(|error| StartError(format!("the host has no runtime: {error}")))?;
        let daemon = runtime
            .block_on(Daemon::start(config, handoff))
            .map_err(|error| StartError(error.to_string()))?;
        Ok(Host {
            addresses: daemon.listen(),
            shutdown: daemon.shutdown_handle(),
            runtime,
            daemon,
            control,
        })
    }
}
