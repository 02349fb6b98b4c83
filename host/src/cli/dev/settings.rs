//! The configuration of the host that `dev` runs: that of a server where it is about the app, and
//! its own where it is about the machine.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use handover_api::AppName;

use super::{
    DRAIN, OLD_GENERATIONS, SHUTDOWN,
    cargo::Crate,
    certificate,
    variables::{self, Variable},
};
use crate::{
    config::{
        self, App, Config, Hooks, Listen, Moves, NamedAddress, RoutePrefix, TrustedProxies, Watch,
        WhenFull,
    },
    preview::Preview,
};

/// The file that is read where it lies beside the crate.
const BESIDE: &str = "handover.toml";

/// Where the settings of an app come from.
#[derive(Debug)]
pub(super) struct Settings {
    app: AppName,
    /// Of the crate.
    folder: PathBuf,
    /// The file of `--config`.
    named: Option<PathBuf>,
    env: Vec<Variable>,
}

impl Settings {
    /// Those of `app`, of which `krate` is the crate.
    pub(super) fn new(
        app: &AppName,
        krate: &Crate,
        named: Option<&Path>,
        env: Vec<Variable>,
    ) -> Self {
        Self {
            app: app.clone(),
            folder: krate.folder.clone(),
            named: named.map(config::absolute),
            env,
        }
    }

    /// The files that they are read from, be they there or not.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        vec![self.file(), variables::file_in(&self.folder)]
    }

    fn file(&self) -> PathBuf {
        self.named
            .clone()
            .unwrap_or_else(|| self.folder.join(BESIDE))
    }

    /// Reads the files. Of apps there is this one only.
    ///
    /// # Errors
    /// The sentence for a person, with file and line.
    pub(super) fn read(&self) -> Result<Config, String> {
        let file = self.file();
        let read = if self.named.is_some() || file.exists() {
            Config::read(&file).map_err(|error| error.to_string())?
        } else {
            Config::without_file()
        };
        let mut app = read.app(&self.app);
        app.given_env = variables::given(&self.folder, &read.dev.env, &self.env)?;
        for_dev(&mut app);
        let mut config = Config::without_file();
        config.dev = read.dev;
        config.apps = BTreeMap::from([(self.app.clone(), app)]);
        // How long clients are waited for is seen by the app.
        let limits = read.server;
        config.server.workers = limits.workers;
        config.server.stall_after = limits.stall_after;
        config.server.first_byte_timeout = limits.first_byte_timeout;
        config.server.head_timeout = limits.head_timeout;
        config.server.body_timeout = limits.body_timeout;
        config.server.idle_timeout = limits.idle_timeout;
        config.server.write_timeout = limits.write_timeout;
        config.server.version_header = true;
        config.server.max_crashes = NonZeroUsize::MAX;
        // Whoever can write here can write what is built.
        config.trust.insecure_paths = true;
        config.server.shutdown_deadline = SHUTDOWN;
        // What the plugin logs is the author's; of the host, what is wrong. `dev` itself says the
        // rest.
        config.log.level = "info,handover=warn,handover::records::events=off".to_owned();
        Ok(config)
    }
}

/// What is otherwise where its author watches: old code goes soon, and none is refused.
fn for_dev(app: &mut App) {
    app.watch = Watch::Off;
    app.min_version = None;
    // Who crashes is to be mended, and not to be taken back.
    app.bake = None;
    app.drain_deadline = Some(DRAIN);
    app.job_deadline = Some(DRAIN);
    app.keep_warm = None;
    // The programs of its operator, and what is moved with care where there are users.
    app.hooks = Hooks::default();
    app.tenant.moves = Moves::AtOnce;
    app.max_old_generations = OLD_GENERATIONS;
    app.when_full = WhenFull::EndOldest;
    // Files that are locked for programs beside it on the server.
    app.leases.clear();
    // The names of the server are not those of this machine.
    let mut routes: Vec<RoutePrefix> = Vec::new();
    for mut route in app.routes.drain(..) {
        route.host = None;
        if !routes.contains(&route) {
            routes.push(route);
        }
    }
    app.routes = routes;
}

/// Has `config` serve at `address`, by https with a certificate that is kept in `folder` if `tls`,
/// and show `preview`.
///
/// # Errors
/// The sentence for a person.
pub(super) fn listen(
    config: &mut Config,
    address: &NamedAddress,
    tls: bool,
    folder: &Path,
    preview: &Preview,
) -> Result<(), String> {
    let address = address.resolve().map_err(|error| {
        format!("{address} cannot be served at: {error}; write e.g. 127.0.0.1:8080")
    })?;
    let plain = Listen {
        preview: Some(preview.clone()),
        ..Listen::plain(address)
    };
    config.server.listen = None;
    config.listen = vec![if tls {
        Listen {
            place: "--tls".to_owned(),
            trusted_proxies: Some(TrustedProxies::default()),
            tls: Some(certificate::in_folder(folder, address.ip())?),
            ..plain
        }
    } else {
        plain
    }];
    Ok(())
}
