//! `run`: this process becomes the host, or the parent that supervises it.

use std::io;

use super::{
    args::{Child, Global, Run},
    exit::Failure,
    output,
};
use crate::{
    config::{Config, ConfigOrigin, Overrides},
    daemon::{self, Daemon, LAST_MOMENT, StartupHandoff},
    ledger::{self, LastWords},
    loader,
    net::Listeners,
    notify::Notifier,
    origin, process,
    records::journal::Crashed,
    signals,
    spill::Spill,
    supervisor, telemetry,
};

/// `handover run`
pub(super) fn run(global: &Global, args: Run) -> Result<(), Failure> {
    let origin = ConfigOrigin {
        file: args.config.clone(),
        insecure_paths: args.insecure_paths,
        overrides: overrides(global, &args),
    };
    // After a crash: what was in effect is in effect again, whatever lies in the file now.
    let kept = args.child.kept_config.as_ref();
    let (config, kept) = match kept.and_then(|kept| origin.read_kept(kept).ok()) {
        Some(config) => (config, true),
        None => match origin.read() {
            Ok(config) => (config, false),
            Err(error) => return Err(Failure::new(error.to_string())),
        },
    };
    let child = args.child;
    let listeners = prepare(&child)?;
    let supervises = child.supervised.is_none() && !args.no_supervisor && listeners.is_empty();
    begin_log(global, &config, supervises)?;
    if kept && !origin.is_as_kept(&config) {
        tracing::warn!(
            "the configuration is that which was in effect before the crash: the file differs, `handover plan` says in what, and `handover reload-config` puts it into effect"
        );
    }
    let ended = if supervises {
        supervise(&config)
    } else {
        serve(config, origin, listeners, child)
    };
    telemetry::flush(LAST_MOMENT);
    ended
}

/// Makes this process ready to be a host or a supervisor, and takes the sockets that it was started
/// with. To be called before any thread is started.
///
/// # Errors
/// When the program is gone, or the sockets cannot be used.
pub(super) fn prepare(child: &Child) -> Result<Listeners, Failure> {
    process::own_program().map_err(|error| Failure::new(error.to_string()))?;
    origin::narrow();
    // Before any other thread is started, which all inherit it: a terminal that stops the output of
    // background processes would stop this one at its first line.
    signals::let_background_write();
    Listeners::inherited(child.sockets.clone()).map_err(|error| Failure::new(error.to_string()))
}

/// Begins to log, as a supervisor or as the host itself.
pub(super) fn begin_log(global: &Global, config: &Config, supervises: bool) -> Result<(), Failure> {
    let role = if supervises {
        telemetry::Role::Supervisor
    } else {
        telemetry::Role::Host
    };
    telemetry::init(&config.log, output::colour(&io::stderr(), global), role)
        .map_err(|error| Failure::new(error.to_string()))
}

/// Starts the host of `config` as a child, again after each crash, until it ends as it was meant
/// to.
pub(super) fn supervise(config: &Config) -> Result<(), Failure> {
    match supervisor::run(config) {
        Ok(0) => Ok(()),
        Ok(code) => Err(Failure::silent(code)),
        Err(error) => Err(Failure::new(error.to_string())),
    }
}

/// Makes this process the host, and returns what it is started with.
///
/// # Errors
/// When its supervisor has gone.
pub(super) fn handoff(
    child: Child,
    listeners: Listeners,
    origin: ConfigOrigin,
) -> Result<StartupHandoff, Failure> {
    let notifier = match child.supervised {
        Some(supervisor) => supervisor::attach(supervisor),
        // Whoever passes sockets holds them while there is no host, and starts it again.
        None => Ok(Notifier::from_env()),
    }
    .map_err(|error| Failure::new(format!("nobody can be told how the host is: {error}")))?;
    let spill = child.supervised.and_then(|supervisor| {
        let opened = Spill::of(supervisor, child.spill?);
        opened
            .inspect_err(|error| tracing::warn!(%error, "what a full disk has no room for ends with this process"))
            .ok()
    });
    // The supervisor starts this file by a name of the kernel's, and people look for the one that
    // they know.
    if let Err(error) = rustix::thread::set_name(c"handover") {
        tracing::debug!(%error, "the process keeps the name that it has");
    }
    ledger::tell_exits(child.supervised.is_none());
    Ok(StartupHandoff {
        listeners,
        notifier,
        is_supervised: child.supervised.is_some(),
        spill,
        crashed: child.crashed.map(|how| Crashed {
            how,
            pid: child.crashed_pid,
            last_words: child.last_words.as_deref().and_then(LastWords::parse),
        }),
        origin,
    })
}

/// Becomes the host until its end.
fn serve(
    config: Config,
    origin: ConfigOrigin,
    listeners: Listeners,
    child: Child,
) -> Result<(), Failure> {
    let handoff = handoff(child, listeners, origin)?;
    let is_supervised = handoff.is_supervised;
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
        if is_supervised {
            notifier.ended();
        }
        loader::end_process()
    })
}

/// Flags overrule the file.
fn overrides(global: &Global, args: &Run) -> Overrides {
    Overrides {
        listen: args.listen,
        plugins: args.plugins.clone(),
        state: args.state.clone(),
        control: global.control.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Server;

    fn server(overrides: Overrides) -> Server {
        let mut server = Server {
            plugins: "file/plugins".into(),
            state: "file/state".into(),
            control: "file/control.sock".into(),
            ..Config::without_file().server
        };
        server.overrule(overrides);
        server
    }

    #[test]
    fn flags_overrule_the_file() {
        let untouched = server(Overrides::default());
        assert_eq!(untouched.control, Path::new("file/control.sock"));

        let moved = server(Overrides {
            state: Some("s".into()),
            plugins: Some("p".into()),
            ..Overrides::default()
        });
        let here = std::env::current_dir().unwrap_or_default();
        assert_eq!(moved.control, here.join("s/control.sock"));
        assert_eq!(
            (moved.state, moved.plugins),
            (here.join("s"), here.join("p"))
        );

        let named = server(Overrides {
            state: Some("s".into()),
            control: Some("c".into()),
            ..Overrides::default()
        });
        assert_eq!(named.control, here.join("c"));
    }
}
