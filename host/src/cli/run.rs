//! `run`: this process becomes the host, or the parent that supervises it.

use std::{io, os::fd::RawFd};

use super::{
    args::{Global, Run},
    exit::Failure,
    output,
};
use crate::{
    config::{Config, Overrides, Server},
    daemon::{self, Daemon, LAST_MOMENT, StartupHandoff},
    ledger::{self, LastWords},
    loader,
    net::Listeners,
    notify::Notifier,
    origin, ownership, process,
    records::journal::Crashed,
    shadow::Shadow,
    signals, supervisor, telemetry,
};

/// `handover run`
pub(super) fn run(global: &Global, args: Run) -> Result<(), Failure> {
    let mut config = match &args.config {
        Some(file) => {
            // Who may write it may say in it that this is fine, so only the command line can.
            if !args.insecure_paths {
                ownership::check(file).map_err(|error| {
                    Failure::new(format!("the configuration is not to be trusted: {error}"))
                })?;
            }
            Config::read(file).map_err(|error| Failure::new(error.to_string()))?
        }
        None => Config::without_file(),
    };
    let (alone, supervised, shadow) = (args.no_supervisor, args.supervised, args.shadow);
    let sockets = args.sockets.clone();
    let crashed = args.crashed.clone().map(|how| Crashed {
        how,
        pid: args.crashed_pid,
        last_words: args.last_words.as_deref().and_then(LastWords::parse),
    });
    config.trust.insecure_paths |= args.insecure_paths;
    overrule(&mut config.server, global, args);
    process::own_program().map_err(|error| Failure::new(error.to_string()))?;
    origin::narrow();
    // Before any other thread is started, which all inherit it: a terminal that stops the output of
    // background processes would stop this one at its first line.
    signals::let_background_write();
    let listeners =
        Listeners::inherited(sockets).map_err(|error| Failure::new(error.to_string()))?;
    let supervises = supervised.is_none() && !alone && listeners.is_empty();
    let role = if supervises {
        telemetry::Role::Supervisor
    } else {
        telemetry::Role::Host
    };
    telemetry::init(&config.log, output::colour(&io::stderr(), global), role)
        .map_err(|error| Failure::new(error.to_string()))?;
    let ended = serve(
        config,
        listeners,
        supervised.zip(Some(shadow)),
        supervises,
        crashed,
    );
    telemetry::flush(LAST_MOMENT);
    ended
}

/// Becomes the host, or the parent that supervises it, until the end.
fn serve(
    config: Config,
    listeners: Listeners,
    supervised: Option<(u32, Option<RawFd>)>,
    supervises: bool,
    crashed: Option<Crashed>,
) -> Result<(), Failure> {
    let notifier = match supervised {
        Some((supervisor, _)) => supervisor::attach(supervisor),
        // Whoever passes sockets holds them while there is no host, and starts it again.
        None if !supervises => Ok(Notifier::from_env()),
        None => {
            return match supervisor::run(&config) {
                Ok(0) => Ok(()),
                Ok(code) => Err(Failure::silent(code)),
                Err(error) => Err(Failure::new(error.to_string())),
            };
        }
    }
    .map_err(|error| Failure::new(format!("nobody can be told how the host is: {error}")))?;
    let shadow = supervised.and_then(|(supervisor, number)| {
        let opened = Shadow::of(supervisor, number?);
        opened
            .inspect_err(|error| tracing::warn!(%error, "what a full disk has no room for ends with this process"))
            .ok()
    });
    let handoff = StartupHandoff {
        listeners,
        notifier,
        is_supervised: supervised.is_some(),
        shadow,
        crashed,
    };
    // The supervisor starts this file by a name of the kernel's, and people look for the one that
    // they know.
    if let Err(error) = rustix::thread::set_name(c"handover") {
        tracing::debug!(%error, "the process keeps the name that it has");
    }
    ledger::tell_exits(supervised.is_none());
    let runtime = daemon::runtime(&config).map_err(|error| {
        handoff.notifier.failed();
        Failure::new(format!("the host has no runtime: {error}"))
    })?;
    let server = config.server.clone();
    let notifier = handoff.notifier.clone();
    let ended = runtime.block_on(async {
        let told = handoff.notifier.clone();
        let daemon = Daemon::start(config, handoff).await.map_err(|error| {
            told.failed();
            Failure::new(error.to_string())
        })?;
        for address in daemon.listen() {
            tracing::info!("serving at {}", output::url(&address));
        }
        tracing::info!(
            plugins = %server.plugins.display(),
            control = %server.control.display(),
            "put plugin files into the drop folder, or `handover deploy` them"
        );
        Ok(daemon.wait().await)
    });
    runtime.end();
    telemetry::flush(LAST_MOMENT);
    ended.map(|over| {
        over.done();
        if supervised.is_some() {
            notifier.ended();
        }
        loader::end_process()
    })
}

/// Flags overrule the file.
fn overrule(server: &mut Server, global: &Global, args: Run) {
    server.overrule(Overrides {
        listen: args.listen,
        plugins: args.plugins,
        state: args.state,
        control: global.control.clone(),
    });
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn server() -> Server {
        Server {
            plugins: "file/plugins".into(),
            state: "file/state".into(),
            control: "file/control.sock".into(),
            ..Config::without_file().server
        }
    }

    #[test]
    fn flags_overrule_the_file() {
        let none = || Run {
            config: None,
            listen: None,
            plugins: None,
            state: None,
            no_supervisor: false,
            supervised: None,
            shadow: None,
            crashed: None,
            crashed_pid: None,
            last_words: None,
            sockets: Vec::new(),
            insecure_paths: false,
        };
        let global = |control: Option<&str>| Global {
            control: control.map(Into::into),
            json: false,
            no_color: false,
        };

        let mut untouched = server();
        overrule(&mut untouched, &global(None), none());
        assert_eq!(untouched.control, Path::new("file/control.sock"));

        let mut moved = server();
        overrule(
            &mut moved,
            &global(None),
            Run {
                state: Some("s".into()),
                plugins: Some("p".into()),
                ..none()
            },
        );
        let here = std::env::current_dir().unwrap_or_default();
        assert_eq!(moved.control, here.join("s/control.sock"));
        assert_eq!(
            (moved.state, moved.plugins),
            (here.join("s"), here.join("p"))
        );

        let mut named = server();
        overrule(
            &mut named,
            &global(Some("c")),
            Run {
                state: Some("s".into()),
                ..none()
            },
        );
        assert_eq!(named.control, here.join("c"));
    }
}
