//! `check`: the verdict of preflight, without a host.

use std::io;

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
    control::api::Outcome,
    names::AppName,
    preflight::{self, Verdict},
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
        },
        Checked::Artifact(artifact, app, verdict) => {
            let (outcome, checks, reason) = match verdict {
                Verdict::Passed(checks) => (Outcome::Done, checks, None),
                Verdict::Rejected(reason) => (Outcome::Rejected, Vec::new(), Some(reason)),
                Verdict::Unhealthy(reason) => (Outcome::Unhealthy, Vec::new(), Some(reason)),
            };
            Report {
                outcome,
                app: Some(app),
                version: Some(artifact.manifest.version.clone()),
                artifact: Some(artifact.sha256.to_string()),
                checks,
                reason,
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
    {
        let verdict = Verdict::Rejected(reason);
        return Ok(Checked::Artifact(Box::new(artifact), app, verdict));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(&error))?;
    let mut verdict = runtime
        .block_on(preflight::check(&artifact, &app, &config.app(&app)))
        .map_err(|error| failed(&error))?;
    if let (Verdict::Passed(checks), Ok(Some(key))) = (&mut verdict, trusted) {
        checks.insert(0, format!("signed by key {key}"));
    }
    Ok(Checked::Artifact(Box::new(artifact), app, verdict))
}
