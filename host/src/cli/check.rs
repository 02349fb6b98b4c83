//! `check`: the verdict of preflight, without a host.

use std::io;

use handover_api::{AppName, Note, Outcome};
use serde::Serialize;

use super::{
    args::{self, Global},
    deploy,
    exit::Failure,
    output::{self, Paint, paint},
};
use crate::{
    artifact::{Artifact, Store, StoreError},
    config::Config,
    preflight::{self, Passed, Scope, Verdict},
};

/// What `handover check --json` prints.
#[derive(Debug, Serialize)]
struct Report {
    /// `done`, `rejected` or `unhealthy`.
    outcome: Outcome,
    /// The app that it was checked for.
    app: Option<AppName>,
    /// The version that its manifest names.
    version: Option<semver::Version>,
    /// Its SHA-256, in hexadecimal.
    artifact: Option<String>,
    /// What was checked.
    checks: Vec<String>,
    /// Why it would be refused.
    reason: Option<String>,
    /// What people should know of it, though it is taken.
    notes: Vec<Note>,
}

/// `handover check`
pub(super) fn check(global: &Global, args: &args::Check) -> Result<(), Failure> {
    let config = match &args.config {
        Some(file) => Config::read(file).map_err(|error| Failure::new(error.to_string()))?,
        None => Config::without_file(),
    };
    let report = match verdict(args, &config)? {
        Checked::NoArtifact(reason) => Report {
            outcome: Outcome::Rejected,
            app: None,
            version: None,
            artifact: None,
            checks: Vec::new(),
            reason: Some(reason),
            notes: Vec::new(),
        },
        Checked::Artifact(artifact, app, verdict) => {
            let (outcome, passed, reason) = match verdict {
                Verdict::Passed(passed) => (Outcome::Done, passed, None),
                Verdict::Rejected(reason) => (Outcome::Rejected, Passed::default(), Some(reason)),
                Verdict::Unhealthy(reason) => (Outcome::Unhealthy, Passed::default(), Some(reason)),
            };
            Report {
                outcome,
                app: Some(app),
                version: Some(artifact.manifest.version.clone()),
                artifact: Some(artifact.sha256.to_string()),
                checks: passed.checks,
                reason,
                notes: passed.remarks.iter().map(Note::from).collect(),
            }
        }
    };
    if global.json {
        // Our own type of strings: this cannot fail.
        output::line(&serde_json::to_string(&report).unwrap_or_default());
        return match report.outcome.exit_code() {
            0 => Ok(()),
            code => Err(Failure::silent(code)),
        };
    }
    tell(&report, output::colour(&io::stdout(), global))
}

fn tell(report: &Report, colour: bool) -> Result<(), Failure> {
    for check in &report.checks {
        output::line(&output::done(check, colour));
    }
    for note in &report.notes {
        output::line(&output::noted(note, colour));
    }
    if let Some(reason) = &report.reason {
        return Err(Failure::with_code(
            report.outcome.exit_code(),
            format!("it would be refused: {reason}"),
        ));
    }
    if let (Some(app), Some(version), Some(artifact)) =
        (&report.app, &report.version, &report.artifact)
    {
        output::line(&paint(
            colour,
            Paint::Bold,
            &format!(
                "{app} {version} can be deployed ({})",
                output::short(artifact)
            ),
        ));
    }
    Ok(())
}

enum Checked {
    NoArtifact(String),
    Artifact(Box<Artifact>, AppName, Verdict),
}

/// The way of a deploy up to the verdict, in a store that vanishes.
fn verdict(args: &args::Check, config: &Config) -> Result<Checked, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(format!("the check could not be made: {error}"))
    };
    let folder = tempfile::Builder::new()
        .prefix("handover-check-")
        .tempdir()
        .map_err(|error| failed(&error))?;
    let store = Store::open(folder.path()).map_err(|error| failed(&error))?;
    let mut artifact = match store.add_file(&args.file) {
        Ok(artifact) => artifact,
        Err(StoreError::Refused { reason, .. }) => return Ok(Checked::NoArtifact(reason)),
        Err(error @ StoreError::Io { .. }) => return Err(Failure::new(error.to_string())),
    };
    let app = args
        .app
        .clone()
        .unwrap_or_else(|| artifact.manifest.app.clone());
    artifact.signature = deploy::signature(&args.file, args.signature.as_deref())?;
    let trusted = config.trust.keys.verify(&artifact);
    if let Some(reason) = trusted
        .as_ref()
        .err()
        .map(ToString::to_string)
        .or_else(|| config.app(&app).too_old(&artifact.manifest.version))
        .or_else(|| {
            let is_required = config.app(&app).require_clean;
            is_required.then(|| artifact.manifest.build.unclean())?
        })
    {
        let verdict = Verdict::Rejected(reason);
        return Ok(Checked::Artifact(Box::new(artifact), app, verdict));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(&error))?;
    let mut verdict = runtime
        .block_on(preflight::check(
            &artifact,
            &app,
            &config.app(&app),
            Scope::All,
            args.migrate.as_deref(),
        ))
        .map_err(|error| failed(&error))?;
    if let (Verdict::Passed(passed), Ok(Some(key))) = (&mut verdict, trusted) {
        passed.checks.insert(0, format!("signed by key {key}"));
    }
    Ok(Checked::Artifact(Box::new(artifact), app, verdict))
}
