//! `dev`: build a plugin crate, serve it, and swap it on every change of its source.
//!
//! - [`cargo`]: the crate, and its builds as a child process
//! - [`certificate`]: a certificate that signs itself
//! - [`sources`]: what is watched

mod advice;
mod cargo;
mod certificate;
mod sources;

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    time::{Duration, Instant},
};

use handover_api::{AppName, Cause, GenerationId, OperationResult, Outcome, Progress, query};
use tokio::task::JoinHandle;

use self::{
    cargo::{Build, Crate, Project},
    sources::Sources,
};
use super::{
    args::{self, Global},
    exit::Failure,
    output::{self, Paint, paint},
};
use crate::{
    artifact::{Artifact, Sha256, Store, StoreError},
    config::{self, Config, Listen, TrustedProxies, Watch, WhenFull},
    control::socket,
    daemon::{self, Daemon, LAST_MOMENT, StartupHandoff},
    human, loader,
    orchestrator::Orchestrator,
    report::status::Surface,
    telemetry,
};

/// How long what runs on the old code may go on. Short: the author waits for the new one.
const DRAIN: Duration = Duration::from_secs(5);
/// How long the end waits for what is in flight.
const SHUTDOWN: Duration = Duration::from_secs(1);
/// Old generations that may drain at once; beyond that the oldest is ended.
const OLD_GENERATIONS: usize = 16;

/// `handover dev`
pub(super) fn dev(global: &Global, args: args::Dev) -> Result<(), Failure> {
    let project = Project {
        folder: args.folder,
        release: args.release,
        features: args.features,
        package: args.package,
        colour: output::colour(&io::stderr(), global),
    };
    let krate = project.read().map_err(Failure::new)?;
    krate.check_is_plugin().map_err(Failure::new)?;
    let app: AppName = krate
        .name
        .parse()
        .map_err(|error: handover_api::InvalidAppName| {
            Failure::new(format!("the crate's name must name an app: {error}"))
        })?;
    let config = config(&krate, &app, global, args.listen, args.tls)?;
    telemetry::init(
        &config.log,
        output::colour(&io::stderr(), global),
        telemetry::Role::Host,
    )
    .map_err(|error| Failure::new(error.to_string()))?;
    let runtime = daemon::runtime(&config)
        .map_err(|error| Failure::new(format!("the host has no runtime: {error}")))?;
    let control = near(&config.server.control);
    let ended = runtime.block_on(async {
        let daemon = Daemon::start(config, StartupHandoff::default())
            .await
            .map_err(|error| Failure::new(error.to_string()))?;
        let serving: Vec<_> = daemon
            .listen()
            .iter()
            .map(|address| output::url(address))
            .collect();
        let session = Session {
            project,
            sources: Sources::new(&krate.target).map_err(Failure::new)?,
            krate,
            app,
            orchestrator: daemon.orchestrator().clone(),
            store: daemon.store().clone(),
            serving: serving.join(" "),
            control,
            colour: output::colour(&io::stdout(), global),
            live: None,
            last: None,
            operation: None,
        };
        let work = tokio::spawn(session.run());
        let stop = work.abort_handle();
        tokio::spawn(async move {
            // The host ends by itself; this ends the compiler at once.
            if tokio::signal::ctrl_c().await.is_ok() {
                stop.abort();
            }
        });
        daemon.wait().await.done();
        work.abort();
        let _ = work.await;
        if io::stdout().is_terminal() {
            // Over what cargo may have left of its progress.
            output::line("\r\x1b[Kended");
        }
        Ok(())
    });
    runtime.end();
    telemetry::flush(LAST_MOMENT);
    ended.map(|()| loader::end_process())
}

/// A host that forgets: its state lies in the target folder and is emptied at each start.
fn config(
    krate: &Crate,
    app: &AppName,
    global: &Global,
    listen: std::net::SocketAddr,
    tls: bool,
) -> Result<Config, Failure> {
    // Of its own for each app: the plugins of a workspace share a target folder.
    let state = krate.target.join("handover-dev").join(app.as_str());
    let control = global
        .control
        .clone()
        .unwrap_or_else(|| state.join("control.sock"));
    let failed = |error: io::Error| {
        Failure::new(format!(
            "the state folder {} cannot be emptied: {error}",
            state.display()
        ))
    };
    if let Some(pid) = socket::answering(&control).map_err(failed)? {
        return Err(Failure::new(format!(
            "another host (pid {pid}) is running on {}: stop it first, with Ctrl-C or `handover shutdown --control {0}`",
            control.display()
        )));
    }
    match std::fs::remove_dir_all(&state) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let plugins = state.join("plugins");
    std::fs::create_dir_all(&plugins).map_err(failed)?;
    let mut config = Config::without_file();
    if tls {
        let files = certificate::in_folder(&krate.target.join("handover-dev"), listen.ip())
            .map_err(Failure::new)?;
        config.server.listen = None;
        config.listen = vec![Listen {
            place: "--tls".to_owned(),
            trusted_proxies: Some(TrustedProxies::default()),
            tls: Some(files),
            ..Listen::plain(listen)
        }];
    } else {
        config.server.listen = Some(listen);
    }
    config.server.plugins = plugins;
    config.server.state = state;
    config.server.control = config::absolute(&control);
    config.server.version_header = true;
    // Whoever can write here can write what is built.
    config.trust.insecure_paths = true;
    config.server.shutdown_deadline = SHUTDOWN;
    // What the plugin logs is the author's; of the host, what is wrong. `dev` itself says the rest.
    config.log.level = "info,handover=warn".to_owned();
    let mut settings = config.app(app);
    settings.watch = Watch::Off;
    settings.drain_deadline = Some(DRAIN);
    settings.job_deadline = Some(DRAIN);
    settings.max_old_generations = OLD_GENERATIONS;
    settings.when_full = WhenFull::EndOldest;
    config.apps.insert(app.clone(), settings);
    Ok(config)
}

/// `path` as seen from here, which is shorter to copy.
fn near(path: &std::path::Path) -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).to_owned()
}

/// One `handover dev`: build, swap, wait for a change, again.
struct Session {
    project: Project,
    krate: Crate,
    sources: Sources,
    app: AppName,
    orchestrator: Orchestrator,
    store: Store,
    serving: String,
    control: PathBuf,
    colour: bool,
    /// The generation that answers.
    live: Option<GenerationId>,
    /// What was deployed last and went live.
    last: Option<Sha256>,
    /// The deploy before, while its old generation drains.
    operation: Option<JoinHandle<()>>,
}

/// How far a deploy came.
enum Deployed {
    Live,
    Ended(OperationResult),
}

impl Session {
    async fn run(mut self) {
        self.say(
            Paint::Dim,
            &format!(
                "building {} for {}
to look inside: handover --control {} status -w",
                self.krate.name,
                self.serving,
                self.control.display()
            ),
        );
        loop {
            // Watched before it is read: a change during the build is seen, and causes one more.
            self.sources.cover(&self.krate.folders);
            self.build_and_swap().await;
            let changed = self.sources.changed().await;
            self.say(Paint::Dim, &format!("{}: building", self.list(&changed)));
            if changed.iter().any(|path| path.ends_with("Cargo.toml")) {
                // A manifest that is broken for now is what the build tells of.
                if let Ok(krate) = self.project.read() {
                    self.krate = krate;
                }
            }
        }
    }

    async fn build_and_swap(&mut self) {
        let started = Instant::now();
        let file = match self.project.build(&self.krate, self.live.is_some()).await {
            Ok(Build::Artifact(file)) => file,
            Ok(Build::Failed) => {
                return self.say(Paint::Red, &format!("build failed; {}", self.goes_on()));
            }
            Ok(Build::NoPlugin) => {
                let advice = self
                    .krate
                    .check_is_plugin()
                    .err()
                    .unwrap_or_else(|| "cargo made no cdylib".to_owned());
                return self.say(Paint::Red, &format!("{advice}\n{}", self.goes_on()));
            }
            Err(error) => return self.say(Paint::Red, &format!("{error}; {}", self.goes_on())),
        };
        let built = started.elapsed();
        self.sources.cover_files(&cargo::sources_of(&file));
        let artifact = match self.add(file).await {
            Ok(artifact) => artifact,
            Err(reason) => return self.say(Paint::Red, &format!("{reason}\n{}", self.goes_on())),
        };
        if self.last == Some(artifact.sha256) {
            return self.say(
                Paint::Dim,
                &format!(
                    "built in {}: the plugin is the same",
                    human::duration(built)
                ),
            );
        }
        let stored_in = started.elapsed().saturating_sub(built);
        self.swap(artifact, built, stored_in).await;
    }

    async fn add(&self, file: PathBuf) -> Result<Artifact, String> {
        let store = self.store.clone();
        let added = tokio::task::spawn_blocking(move || store.add_file(&file)).await;
        match added {
            Ok(Ok(artifact)) => Ok(artifact),
            Ok(Err(StoreError::Refused { reason, .. })) => {
                Err(format!("the plugin is refused: {reason}"))
            }
            Ok(Err(error @ StoreError::Io { .. })) => {
                Err(format!("the plugin cannot be stored: {error}"))
            }
            Err(error) => Err(format!("the plugin cannot be stored: {error}")),
        }
    }

    async fn swap(&mut self, artifact: Artifact, built: Duration, stored_in: Duration) {
        let started = Instant::now();
        let (sha256, version) = (artifact.sha256, artifact.manifest.version.clone());
        let deployed = match self.deploy(artifact.clone(), stored_in).await {
            // The drain before holds the app; it ends soon, and then it is our turn.
            Deployed::Ended(OperationResult {
                outcome: Outcome::Conflict,
                ..
            }) if self.operation.is_some() => {
                if let Some(operation) = self.operation.take() {
                    let _ = operation.await;
                }
                self.deploy(artifact, stored_in).await
            }
            deployed => deployed,
        };
        let live = match deployed {
            Deployed::Live => true,
            Deployed::Ended(result) => match result.outcome {
                Outcome::Done | Outcome::Unchanged | Outcome::DeadlinePassed => true,
                _ => {
                    self.say(Paint::Red, &result.message);
                    false
                }
            },
        };
        if !live {
            return;
        }
        self.last = Some(sha256);
        let Some(generation) = self.active() else {
            return;
        };
        let times = format!(
            "built in {}, live {} later",
            human::duration(built),
            human::duration(started.elapsed())
        );
        let first = self.live.replace(generation).is_none();
        self.say(
            Paint::Green,
            &if first {
                format!(
                    "serving {} ({version}, generation {generation}): {times}",
                    self.serving
                )
            } else {
                format!("swapped to generation {generation}: {times}")
            },
        );
    }

    /// Deploys, and returns as soon as it is live: the drain of the old code goes on beside.
    async fn deploy(&mut self, artifact: Artifact, stored_in: Duration) -> Deployed {
        let mut operation = self.orchestrator.deploy(
            artifact,
            stored_in,
            Cause::Dev,
            query::Deploy {
                app: Some(self.app.clone()),
                ..query::Deploy::default()
            },
        );
        while let Some(line) = operation.lines.recv().await {
            match line {
                Progress::Step { step, .. } if step == "cutover" => break,
                Progress::Draining { .. } => break,
                Progress::Result(result) => return Deployed::Ended(result),
                Progress::Step { notes, .. } => {
                    for note in notes.iter().filter(|note| note.warning) {
                        self.say(Paint::Yellow, &note.to_string());
                    }
                }
                Progress::Accepted { .. } | Progress::Queued { .. } => {}
            }
        }
        self.operation = Some(tokio::spawn(async move {
            while operation.lines.recv().await.is_some() {}
        }));
        Deployed::Live
    }

    fn active(&self) -> Option<GenerationId> {
        let status = self.orchestrator.status(Surface::default());
        status
            .apps
            .into_iter()
            .find(|app| app.name == self.app)?
            .active
            .map(|active| active.generation)
    }

    fn goes_on(&self) -> String {
        match self.live {
            Some(generation) => format!("generation {generation} goes on serving"),
            None => "waiting for a change".to_owned(),
        }
    }

    /// `src/lib.rs changed`, `src/lib.rs and 3 others changed`
    fn list(&self, changed: &[PathBuf]) -> String {
        // Editors write beside the file and rename: the file itself is the one to name.
        let there = changed.iter().find(|path| path.exists());
        let Some(first) = there.or(changed.first()) else {
            return String::new();
        };
        let first = first
            .strip_prefix(&self.krate.folder)
            .unwrap_or(first)
            .display();
        match changed.len() {
            1 => format!("{first} changed"),
            2 => format!("{first} and another changed"),
            more => format!("{first} and {} others changed", more - 1),
        }
    }

    fn say(&self, how: Paint, text: &str) {
        output::line(&paint(self.colour, how, text));
    }
}
