//! `dev`: build a plugin crate, serve it, and swap it on every change of its source.
//!
//! - [`beside`]: what lies beside the sources and is none
//! - [`cargo`]: the crate, and its builds as a child process
//! - [`certificate`]: a certificate that signs itself
//! - [`keys`]: what a person presses at the terminal
//! - [`settings`]: the configuration
//! - [`sources`]: what is watched
//! - [`variables`]: the environment that the app is given

mod advice;
mod beside;
pub(super) mod cargo;
mod certificate;
mod keys;
mod settings;
mod sources;
mod variables;

use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use handover_api::{
    ActiveStatus, AppName, Cause, Event, EventKind, GenerationId, OperationResult, Outcome,
    Progress, query,
};
use tokio::{
    sync::{
        Notify,
        broadcast::{self, error::RecvError},
    },
    task::JoinHandle,
};

pub(super) use self::variables::Variable;
use self::{
    cargo::{Build, Crate, Project},
    keys::{Key, Keys, Terminal},
    settings::Settings,
    sources::{Changed, Sources},
};
use super::{
    args::{self, Global},
    exit::Failure,
    output::{self, Paint, paint},
    run,
};
use crate::{
    artifact::{Artifact, Sha256, Store, StoreError},
    config::{self, ConfigOrigin, NamedAddress},
    control::{Shutdown, ShutdownHandle, socket},
    daemon::{self, Daemon, LAST_MOMENT},
    human, loader,
    orchestrator::Orchestrator,
    preview::Preview,
    report::status::Surface,
    shown::harmless,
    telemetry,
};

/// How long what runs on the old code may go on. Short: the author waits for the new one.
const DRAIN: Duration = Duration::from_secs(5);
/// How long the end waits for what is in flight.
const SHUTDOWN: Duration = Duration::from_secs(1);
/// Old generations that may drain at once; beyond that the oldest is ended.
const OLD_GENERATIONS: usize = 16;

/// How many of the files that changed are named.
const MOST_NAMES: usize = 3;

/// When it is said for the first time that a step of a deploy goes on; then after twice as long.
const SAID_AFTER: Duration = Duration::from_secs(2);

/// `handover dev`
pub(super) fn dev(global: &Global, args: args::Dev) -> Result<(), Failure> {
    let mut project = Project {
        folder: args.folder,
        release: args.release,
        features: args.features,
        package: args.package,
        colour: output::colour(&io::stderr(), global),
        width: io::stderr().is_terminal().then(output::width).flatten(),
    };
    let krate = project.read().map_err(Failure::new)?;
    krate.check_is_plugin().map_err(Failure::new)?;
    let app: AppName = krate
        .name
        .parse()
        .map_err(|error: handover_api::InvalidAppName| {
            Failure::new(format!("the crate's name must name an app: {error}"))
        })?;
    let settings = Settings::new(&app, &krate, args.config.as_deref(), args.env);
    let mut config = settings.read().map_err(Failure::new)?;
    project.release |= config.dev.release;
    project.features.extend(config.dev.features.clone());
    let listen = args.listen.or_else(|| config.dev.listen.clone());
    let listen = listen.unwrap_or_else(NamedAddress::usual);
    let kept = krate.target.join("handover-dev");
    let preview = Preview::new(config.dev.reload && !args.no_reload);
    settings::listen(&mut config, &listen, args.tls, &kept, &preview).map_err(Failure::new)?;
    let place = Place::new(&krate, &app, global);
    let listeners = run::prepare(&args.child)?;
    let supervises = args.child.supervised.is_none() && listeners.is_empty();
    if args.child.supervised.is_none() {
        place.empty()?;
    }
    config.server.plugins = place.plugins();
    config.server.state.clone_from(&place.state);
    config.server.control.clone_from(&place.control);
    run::begin_log(global, &config, supervises)?;
    if supervises {
        let terminal = Terminal::pass_on(&place.state)
            .inspect_err(|error| tracing::warn!(%error, "keys of the terminal are not read"));
        let ended = run::supervise(&config);
        drop(terminal);
        telemetry::flush(LAST_MOMENT);
        return ended;
    }
    let is_restart = args.child.crashed.is_some();
    let handoff = run::handoff(args.child, listeners, ConfigOrigin::default())?;
    let (notifier, is_supervised) = (handoff.notifier.clone(), handoff.is_supervised);
    let runtime = daemon::runtime(&config).map_err(|error| {
        notifier.failed();
        Failure::new(format!("the host has no runtime: {error}"))
    })?;
    let control = near(&place.control);
    let ended = runtime.block_on(async {
        let daemon = Daemon::start(config, handoff).await.map_err(|error| {
            notifier.failed();
            Failure::new(error.to_string())
        })?;
        let serving: Vec<_> = daemon
            .listen()
            .iter()
            .map(|address| output::url(address))
            .collect();
        let keys = Keys::of(&place.state);
        let rebuild = Arc::<Notify>::default();
        let mut session = Session {
            project,
            sources: Sources::new(&krate.target, settings.files()).map_err(Failure::new)?,
            settings,
            krate,
            app,
            orchestrator: daemon.orchestrator().clone(),
            store: daemon.store().clone(),
            serving: serving.join(" "),
            control,
            colour: output::colour(&io::stdout(), global),
            preview: preview.clone(),
            live: None,
            last: None,
            operation: None,
            rebuild: Arc::clone(&rebuild),
            has_keys: keys.are_read(),
        };
        tokio::spawn(tell_events(
            daemon.orchestrator().events().1,
            session.colour,
        ));
        session.begin(is_restart);
        tokio::spawn(
            Desk {
                url: session
                    .serving
                    .split(' ')
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
                colour: session.colour,
                preview: preview.clone(),
                shutdown: daemon.shutdown_handle(),
                rebuild,
            }
            .heed(keys),
        );
        let work = tokio::spawn(session.run());
        let stop = work.abort_handle();
        tokio::spawn(async move {
            // The host ends by itself; this ends the compiler at once.
            if tokio::signal::ctrl_c().await.is_ok() {
                stop.abort();
                // Pages that wait for news would be waited for.
                preview.end();
            }
        });
        let over = daemon.wait().await;
        work.abort();
        let _ = work.await;
        if io::stdout().is_terminal() {
            // Over what cargo may have left of its progress.
            output::line("\r\x1b[Kended");
        }
        Ok(over)
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

/// Where a host that forgets keeps its state: in the target folder, emptied at each start.
struct Place {
    state: PathBuf,
    control: PathBuf,
}

impl Place {
    fn new(krate: &Crate, app: &AppName, global: &Global) -> Self {
        // Of its own for each app: the plugins of a workspace share a target folder.
        let state = krate.target.join("handover-dev").join(app.as_str());
        let control = global
            .control
            .clone()
            .unwrap_or_else(|| state.join("control.sock"));
        Self {
            state,
            control: config::absolute(&control),
        }
    }

    fn plugins(&self) -> PathBuf {
        self.state.join("plugins")
    }

    fn empty(&self) -> Result<(), Failure> {
        let failed = |error: io::Error| {
            Failure::new(format!(
                "the state folder {} cannot be emptied: {error}",
                self.state.display()
            ))
        };
        if let Some(pid) = socket::answering(&self.control).map_err(failed)? {
            return Err(Failure::new(format!(
                "another host (pid {pid}) is running on {}: stop it first, with Ctrl-C or `handover shutdown --control {0}`",
                self.control.display()
            )));
        }
        match std::fs::remove_dir_all(&self.state) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        std::fs::create_dir_all(self.plugins()).map_err(failed)
    }
}

/// `path` as seen from here, which is shorter to copy.
fn near(path: &Path) -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).to_owned()
}

/// One `handover dev`: build, swap, wait for a change, again.
struct Session {
    project: Project,
    krate: Crate,
    settings: Settings,
    sources: Sources,
    app: AppName,
    orchestrator: Orchestrator,
    store: Store,
    serving: String,
    control: PathBuf,
    colour: bool,
    preview: Preview,
    /// The generation that answers.
    live: Option<GenerationId>,
    /// What was deployed last and went live.
    last: Option<Sha256>,
    /// The deploy before, while its old generation drains.
    operation: Option<JoinHandle<()>>,
    /// Somebody asks for a build.
    rebuild: Arc<Notify>,
    /// Whether keys are heeded.
    has_keys: bool,
}

/// What keys do.
struct Desk {
    /// Where the app answers.
    url: String,
    colour: bool,
    preview: Preview,
    shutdown: ShutdownHandle,
    rebuild: Arc<Notify>,
}

impl Desk {
    async fn heed(self, mut keys: Keys) {
        loop {
            match keys.next().await {
                // One that comes during a build is done after it.
                Key::Rebuild => self.rebuild.notify_one(),
                Key::Open => self.open(),
                // The screen, what scrolled off it, and back to its corner.
                Key::Clear => output::line("\x1b[2J\x1b[3J\x1b[H"),
                Key::Help => output::line(&paint(self.colour, Paint::Dim, keys::HELP)),
                Key::Quit => {
                    // Pages that wait for news would be waited for.
                    self.preview.end();
                    self.shutdown.request(Shutdown::Drain);
                }
            }
        }
    }

    /// Shows the app in a browser.
    fn open(&self) {
        let url = &self.url;
        let opened = std::process::Command::new("xdg-open")
            .arg(url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match opened {
            // It ends when the browser has heard of it.
            Ok(mut child) => drop(std::thread::spawn(move || child.wait())),
            Err(error) => output::line(&paint(
                self.colour,
                Paint::Yellow,
                &format!("no browser can be opened (xdg-open: {error}): go to {url}"),
            )),
        }
    }
}

/// Says what happens to the app and is not said as the end of a deploy.
async fn tell_events(mut events: broadcast::Receiver<Event>, colour: bool) {
    loop {
        let event = match events.recv().await {
            Ok(event) => event,
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        let how = match event.kind {
            EventKind::State | EventKind::RolledBack => Paint::Red,
            EventKind::DeadlinePassed
            | EventKind::Retained
            | EventKind::LeakBudget
            | EventKind::Stalled
            | EventKind::WorkingDirectory
            | EventKind::FileMask
            | EventKind::CertificateFailed
            | EventKind::CertificateNotIssued
            | EventKind::ConfigFailed => Paint::Yellow,
            _ => continue,
        };
        output::line(&paint(colour, how, &event.message));
    }
}

/// How far a deploy came.
enum Deployed {
    Live,
    Ended(OperationResult),
}

impl Session {
    /// Says where it serves; after a crash of the host before, what that was.
    fn begin(&mut self, is_restart: bool) {
        if !is_restart {
            return self.say(
                Paint::Dim,
                &format!(
                    "building {} for {}\nto look inside: handover --control {} status -w{}",
                    self.krate.name,
                    self.serving,
                    self.control.display(),
                    if self.has_keys {
                        format!("\n{}", keys::HELP)
                    } else {
                        String::new()
                    }
                ),
            );
        }
        let (events, _) = self.orchestrator.events();
        for event in events {
            if event.kind == EventKind::Crash {
                self.say(Paint::Red, &event.message);
            }
        }
        if let Some(active) = self.active() {
            self.live = Some(active.generation);
            self.preview.app();
            self.last = active.artifact.parse().ok();
            self.say(
                Paint::Green,
                &format!(
                    "serving {} again (generation {})",
                    self.serving, active.generation
                ),
            );
        }
    }

    async fn run(mut self) {
        // What a crash has interrupted is built again; of what serves there is nothing to say.
        let mut asked = self.live.is_none();
        let mut changed = Vec::new();
        loop {
            // Watched before it is read: a change during the build is seen, and causes one more.
            self.sources.cover(&self.krate.folders);
            self.build_and_swap(asked, &changed).await;
            (changed, asked) = self.next().await;
            if asked && !changed.is_empty() {
                self.say(Paint::Dim, &format!("{}: building", self.list(&changed)));
            }
            if self.sources.any_setting(&changed) {
                self.set();
            }
            if changed.iter().any(|path| path.ends_with("Cargo.toml")) {
                // A manifest that is broken for now is what the build tells of.
                if let Ok(krate) = self.project.read() {
                    self.krate = krate;
                }
            }
        }
    }

    /// Waits for the reason of the next build, and gives it as what changed, and whether that is
    /// sure to change something.
    async fn next(&mut self) -> (Vec<PathBuf>, bool) {
        tokio::select! {
            Changed { paths, is_source } = self.sources.changed() => (paths, is_source),
            () = self.rebuild.notified() => {
                self.say(Paint::Dim, "building, as asked");
                (Vec::new(), true)
            }
        }
    }

    /// Reads the settings again. They hold for the next generation.
    fn set(&mut self) {
        match self.settings.read() {
            Ok(read) => {
                let mut config = (*self.orchestrator.config()).clone();
                config.apps = read.apps;
                self.orchestrator.retune(config);
                // The same code is started anew with them.
                self.last = None;
            }
            Err(error) => self.say(
                Paint::Red,
                &format!("{error}; the settings stay as they were"),
            ),
        }
    }

    /// `asked`: whether it is sure that `changed` changes something, so that somebody waits for
    /// what becomes of it.
    async fn build_and_swap(&mut self, asked: bool, changed: &[PathBuf]) {
        let started = Instant::now();
        self.preview.building();
        let file = match self.project.build(&self.krate, self.live.is_some()).await {
            Ok(Build::Artifact(file)) => file,
            Ok(Build::Failed(errors)) => {
                self.sources.forget_built();
                self.preview.failed(&errors);
                return self.say(Paint::Red, &format!("build failed; {}", self.goes_on()));
            }
            Ok(Build::NoPlugin) => {
                let advice = self
                    .krate
                    .check_is_plugin()
                    .err()
                    .unwrap_or_else(|| "cargo made no cdylib".to_owned());
                return self.fail(&advice, "\n");
            }
            Err(error) => return self.fail(&error, "; "),
        };
        let built = started.elapsed();
        self.sources.built_from(cargo::sources_of(&file));
        let artifact = match self.add(file).await {
            Ok(artifact) => artifact,
            Err(reason) => return self.fail(&reason, "\n"),
        };
        if self.last == Some(artifact.sha256) {
            if !asked {
                // A build script may read it in the next build.
                if !self.krate.has_build_script {
                    self.sources.change_nothing(changed);
                }
                return;
            }
            return self.say(
                Paint::Dim,
                &format!(
                    "built in {}: the plugin is the same",
                    human::duration(built)
                ),
            );
        }
        if !asked && !changed.is_empty() {
            self.say(Paint::Dim, &format!("{}: built", self.list(changed)));
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
                    self.preview.failed(&result.message);
                    self.say(Paint::Red, &result.message);
                    false
                }
            },
        };
        if !live {
            return;
        }
        self.last = Some(sha256);
        let Some(generation) = self.active().map(|active| active.generation) else {
            return;
        };
        let times = format!(
            "built in {}, live {} later",
            human::duration(built),
            human::duration(started.elapsed())
        );
        let first = self.live.replace(generation).is_none();
        self.preview.app();
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
        let began = Instant::now();
        let mut said_after = SAID_AFTER;
        let mut step_now = "preflight";
        loop {
            let next = tokio::time::timeout_at((began + said_after).into(), operation.lines.recv());
            let line = match next.await {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(_) => {
                    self.say_waiting(step_now, began.elapsed());
                    said_after *= 2;
                    continue;
                }
            };
            match line {
                Progress::Step { step, .. } if step == "cutover" => break,
                Progress::Draining { .. } => break,
                Progress::Result(result) => return Deployed::Ended(result),
                Progress::Step { step, notes, .. } => {
                    step_now = match step.as_str() {
                        "preflight" => "load",
                        "load" => "start",
                        _ => step_now,
                    };
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

    /// Says what a deploy is at, which has gone on for so long.
    fn say_waiting(&self, step: &str, since: Duration) {
        let deadline = self.orchestrator.config().app(&self.app).check.deadline;
        let what = match step {
            "preflight" => "its constructor and its checks run in the preflight child",
            "start" => "its constructor runs in the host",
            _ => "it is loaded",
        };
        self.say(
            Paint::Dim,
            &format!(
                "{step}: {what}, {} so far (check.deadline: {})",
                human::duration(since),
                humantime::format_duration(deadline)
            ),
        );
    }

    fn active(&self) -> Option<ActiveStatus> {
        let status = self.orchestrator.status(Surface::default());
        status
            .apps
            .into_iter()
            .find(|app| app.name == self.app)?
            .active
    }

    fn goes_on(&self) -> String {
        match self.live {
            Some(generation) => format!("generation {generation} goes on serving"),
            None => "waiting for a change".to_owned(),
        }
    }

    fn list(&self, changed: &[PathBuf]) -> String {
        list(&self.krate.folder, changed)
    }

    /// Says why there is nothing new, and what goes on, behind `then`.
    fn fail(&self, why: &str, then: &str) {
        self.preview.failed(why);
        self.say(Paint::Red, &format!("{why}{then}{}", self.goes_on()));
    }

    fn say(&self, how: Paint, text: &str) {
        output::line(&paint(self.colour, how, text));
    }
}

/// `src/lib.rs changed`, `a.rs, b.rs, c.rs and 2 more changed`, relative to `folder`.
fn list(folder: &Path, changed: &[PathBuf]) -> String {
    // Editors write beside the file and rename: the file itself is the one to name. And a folder
    // that is new is named by what is in it.
    let is_named = |path: &&PathBuf| {
        path.exists()
            && !changed
                .iter()
                .any(|other| other != *path && other.starts_with(path))
    };
    let mut named: Vec<_> = changed.iter().filter(is_named).collect();
    if named.is_empty() {
        named = changed.iter().collect();
    }
    let shown = named.iter().take(MOST_NAMES).map(|path| {
        let path = path.strip_prefix(folder).unwrap_or(path);
        harmless(&path.display().to_string())
    });
    let shown: Vec<_> = shown.collect();
    match named.len() - shown.len() {
        0 => match shown.split_last() {
            Some((last, [])) => format!("{last} changed"),
            Some((last, others)) => format!("{} and {last} changed", others.join(", ")),
            None => String::new(),
        },
        more => format!("{} and {more} more changed", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use std::fs;

    use super::*;

    #[test]
    fn what_changed_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir(root.join("src")).unwrap();
        let paths = ["src", "src/a.rs", "src/b.rs", "c.rs", "d.rs", "e.rs"].map(|name| {
            let path = root.join(name);
            if name != "src" {
                fs::write(&path, "").unwrap();
            }
            path
        });
        let gone = root.join("gone.rs");
        let of = |paths: &[PathBuf]| list(root, paths);
        assert_eq!(of(&paths[1..2]), "src/a.rs changed");
        assert_eq!(of(&paths[..2]), "src/a.rs changed");
        assert_eq!(of(&paths[1..3]), "src/a.rs and src/b.rs changed");
        assert_eq!(of(&[gone.clone(), paths[3].clone()]), "c.rs changed");
        assert_eq!(of(&[gone]), "gone.rs changed");
        assert_eq!(of(&paths), "src/a.rs, src/b.rs, c.rs and 2 more changed");
    }
}
