//! `up`: what one means by starting an app. The host is started when none runs, the app is deployed
//! as always when one does, and where that is not possible it is stopped first, if that was asked
//! for.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    os::unix::{
        fs::{DirBuilderExt, OpenOptionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use handover_api::{AppName, Client, ClientError, GenerationState, query, socket};

use super::{
    args::{Global, Up},
    build,
    deploy::{self, WRITTEN_WITHIN},
    exit::Failure,
    operation::{How, show},
    output,
};
use crate::{
    artifact,
    config::{ConfigOrigin, Overrides},
    shown,
};

/// How long a host may take to answer after it was started.
const STARTED_WITHIN: Duration = Duration::from_secs(60);

/// How often it is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How much of the log is shown of a host that did not start, in bytes.
const LAST_WORDS: u64 = 4096;

/// How an operation of one app is shown.
const ONE: How = How {
    detach: false,
    several: false,
    strict_drain: false,
};

/// `handover up`
pub(super) async fn up(global: &Global, args: Up) -> Result<(), Failure> {
    let file = build::artifact(global, &args.what).await?;
    let mut global = global.clone();
    if global.host.is_none() {
        let config = args.config.clone().or_else(|| {
            let usual = PathBuf::from("handover.toml");
            usual.is_file().then_some(usual)
        });
        if global.control.is_none() {
            global.control = control(config.as_deref())?;
        }
        start_unless_it_runs(&global, &args, config.as_deref()).await?;
    }
    let global = &global;
    let client = global.client();
    let deployed = deploy_to(global, &client, &args, &file).await;
    match deployed {
        // Denied, interrupted, or nobody there: to stop the app would help nothing.
        Err(failure) if args.or_force && matches!(failure.code(), 1 | 4 | 5) => {
            let code = failure.code();
            failure.tell(global);
            by_force(global, &client, &args, &file, code).await
        }
        deployed => deployed,
    }
}

/// Returns where the host of this configuration is called.
fn control(config: Option<&Path>) -> Result<Option<PathBuf>, Failure> {
    let Some(file) = config else { return Ok(None) };
    let origin = ConfigOrigin {
        file: Some(file.to_owned()),
        insecure_paths: true, // nothing of it is run: the host looks for itself
        overrides: Overrides::default(),
    };
    let config = origin
        .read()
        .map_err(|error| Failure::new(error.to_string()))?;
    Ok(Some(config.server.control))
}

async fn deploy_to(
    global: &Global,
    client: &Client,
    args: &Up,
    file: &Path,
) -> Result<(), Failure> {
    let signature = deploy::signature(file, None)?;
    let whole = deploy::whole(file, WRITTEN_WITHIN).await?;
    let asked = query::Deploy {
        app: args.app.clone(),
        by: args.why.by.clone(),
        message: args.why.message.clone(),
        idempotency_key: args.idempotency_key.clone(),
        queue: true,
        ..query::Deploy::default()
    };
    let call = async {
        let signature = signature.as_ref().map(artifact::Signature::to_header);
        let lines = client.deploy(file, asked, signature).await;
        drop(whole);
        lines
    };
    show(global, ONE, call).await
}

/// Stops the app, waits until nothing of it is left, deploys, and starts it: the new version, or
/// where that is impossible the old one. `code` is how the deploy beside the old one has ended.
async fn by_force(
    global: &Global,
    client: &Client,
    args: &Up,
    file: &Path,
    code: u8,
) -> Result<(), Failure> {
    let app = match &args.app {
        Some(app) => app.clone(),
        None => {
            let artifact = artifact::inspect(file)
                .map_err(|error| Failure::with_code(code, error.to_string()))?;
            artifact.manifest.app
        }
    };
    let served = client
        .status()
        .await?
        .apps
        .iter()
        .any(|known| known.name == app && known.active.is_some());
    if !served {
        return Err(Failure::silent(code));
    }
    output::line(&format!(
        "--or-force: {app} is stopped, and answers nothing meanwhile"
    ));
    let stop = query::Stop {
        app: Some(app.clone()),
        queue: true,
        ..query::Stop::default()
    };
    show(global, ONE, client.operate(query::STOP, &stop)).await?;
    left(client, &app).await?;
    let start = query::Operation {
        app: Some(app.clone()),
        queue: true,
        ..query::Operation::default()
    };
    let start = || client.operate(query::START, &start);
    // It is checked, and waits for the start.
    if let Err(failure) = deploy_to(global, client, args, file).await {
        let code = failure.code();
        failure.tell(global);
        show(global, ONE, start()).await?;
        return Err(Failure::silent(code));
    }
    if let Err(failure) = show(global, ONE, start()).await {
        failure.tell(global);
        let back = query::Rollback {
            app: Some(app),
            to: None,
            restore_snapshot: false,
            by: args.why.by.clone(),
            message: Some("the new version did not start (up --or-force)".to_owned()),
            queue: true,
            detach: false,
        };
        show(global, ONE, client.operate(query::ROLLBACK, &back)).await?;
        return Err(Failure::silent(6));
    }
    Ok(())
}

/// Waits until no generation of `app` runs.
async fn left(client: &Client, app: &AppName) -> Result<(), Failure> {
    loop {
        let status = client.status().await?;
        let apps = status.apps.iter().filter(|known| known.name == *app);
        let is_there = apps
            .flat_map(|known| &known.generations)
            .any(|one| one.state != GenerationState::Retained);
        if !is_there {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Starts a host, where none answers.
async fn start_unless_it_runs(
    global: &Global,
    args: &Up,
    config: Option<&Path>,
) -> Result<(), Failure> {
    let client = global.client();
    match client.status().await {
        Ok(_) => return Ok(()),
        Err(ClientError::Unreachable { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let control = global.control();
    let folder = socket::folder(&control);
    let log = folder.join("host.log");
    let cannot = |error: &dyn std::fmt::Display| {
        Failure::new(format!(
            "no host could be started: {}: {error}",
            shown::path(&log)
        ))
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| cannot(&error))?;
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .mode(0o600)
        .open(&log)
        .map_err(|error| cannot(&error))?;
    let before = file
        .seek(SeekFrom::End(0))
        .map_err(|error| cannot(&error))?;
    let mut child = spawn(global, args, config, &file).map_err(|error| cannot(&error))?;
    let by = Instant::now() + STARTED_WITHIN;
    loop {
        match client.status().await {
            Ok(_) => break,
            Err(ClientError::Unreachable { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(Failure::new(format!(
                "the host ended at its start ({status}); {} says:\n{}",
                shown::path(&log),
                last_words(&mut file, before)
            )));
        }
        if Instant::now() > by {
            return Err(Failure::new(format!(
                "the host was started as process {} and does not answer at {} yet: {} says more",
                child.id(),
                shown::path(&control),
                shown::path(&log)
            )));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    if !global.json {
        output::line(&format!(
            "a host was started as process {}: its log is {}, `handover shutdown` ends it",
            child.id(),
            shown::path(&log)
        ));
    }
    Ok(())
}

fn spawn(global: &Global, args: &Up, config: Option<&Path>, log: &File) -> std::io::Result<Child> {
    let program = fs::read_link("/proc/self/exe").or_else(|_| std::env::current_exe())?;
    let mut command = Command::new(program);
    command.arg("run").arg("--control").arg(global.control());
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    if let Some(listen) = args.listen {
        command.arg("--listen").arg(listen.to_string());
    }
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        // Ctrl-C of this terminal is not for it.
        .process_group(0)
        .spawn()
}

/// What the host has written since `before`, of very much the end.
fn last_words(log: &mut File, before: u64) -> String {
    let mut text = Vec::new();
    let end = log.seek(SeekFrom::End(0)).unwrap_or(before);
    let from = before.max(end.saturating_sub(LAST_WORDS));
    let read = log
        .seek(SeekFrom::Start(from))
        .and_then(|_| log.read_to_end(&mut text));
    match read {
        Ok(_) => {
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<_> = text.lines().map(shown::harmless).collect();
            lines.join("\n")
        }
        Err(error) => error.to_string(),
    }
}
