//! `inspect`: what a plugin file says of itself.

use std::io;

use serde::Serialize;

use super::{
    args::{self, Global},
    exit::Failure,
    output::{self, Cell, Paint, Row},
};
use crate::{
    artifact::{self, AbiVersion, Artifact, BuildFacts, StoreError},
    control::api::Outcome,
    names::AppName,
};

/// The ABI that this host offers.
const HOST: AbiVersion = AbiVersion(1, 1);

/// What `handover inspect --json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// The app that it wants to be.
    app: &'a AppName,
    /// Its version.
    version: &'a semver::Version,
    /// The ABI that it was built against, as `major.minor`.
    abi: String,
    /// The ABI that this host offers.
    host_abi: String,
    /// Whether this host runs plugins of that ABI.
    accepted: bool,
    /// The version of its state schema.
    schema: u32,
    /// How it was built.
    build: &'a BuildFacts,
    /// The GNU build id, in hexadecimal.
    build_id: Option<String>,
    /// The machine that it was built for.
    machine: &'a str,
    /// Its identity, in hexadecimal.
    sha256: String,
    /// Its size in bytes.
    size: u64,
}

/// `handover inspect`
pub(super) fn inspect(global: &Global, args: &args::Inspect) -> Result<(), Failure> {
    let artifact = artifact::inspect(&args.file).map_err(|error| match error {
        StoreError::Refused { reason, .. } => Failure::with_code(
            Outcome::Rejected.exit_code(),
            format!("{}: {reason}", args.file.display()),
        ),
        StoreError::Io { .. } => Failure::new(error.to_string()),
    })?;
    let report = report(&artifact);
    output::line(&if global.json {
        // Our own type of strings and numbers: this cannot fail.
        serde_json::to_string(&report).unwrap_or_default()
    } else {
        text(&report, output::colour(&io::stdout(), global))
    });
    Ok(())
}

/// The promise of the ABI: the same major, and an equal or lower minor.
fn runs(host: AbiVersion, plugin: AbiVersion) -> bool {
    host.0 == plugin.0 && host.1 >= plugin.1
}

fn abi(version: AbiVersion) -> String {
    format!("{}.{}", version.0, version.1)
}

fn report(artifact: &Artifact) -> Report<'_> {
    let manifest = &artifact.manifest;
    Report {
        app: &manifest.app,
        version: &manifest.version,
        abi: abi(manifest.abi),
        host_abi: abi(HOST),
        accepted: runs(HOST, manifest.abi),
        schema: manifest.schema,
        build: &manifest.build,
        build_id: artifact
            .elf
            .build_id
            .as_ref()
            .map(|id| id.iter().map(|byte| format!("{byte:02x}")).collect()),
        machine: &artifact.elf.machine,
        sha256: artifact.sha256.to_string(),
        size: artifact.size,
    }
}

fn text(report: &Report<'_>, colour: bool) -> String {
    let verdict = if report.accepted {
        Cell::painted(
            format!("{}, which this host ({}) runs", report.abi, report.host_abi),
            Paint::Green,
        )
    } else {
        Cell::painted(
            format!(
                "{}, which this host ({}) does not run",
                report.abi, report.host_abi
            ),
            Paint::Red,
        )
    };
    let build = report.build;
    let unknown = || "unknown".to_owned();
    let facts: [(&str, Cell); 12] = [
        ("app", Cell::painted(report.app.as_str(), Paint::Bold)),
        (
            "version",
            Cell::painted(report.version.to_string(), Paint::Bold),
        ),
        ("abi", verdict),
        ("state schema", report.schema.to_string().into()),
        ("sha256", report.sha256.as_str().into()),
        ("size", output::size(report.size).into()),
        (
            "build id",
            report.build_id.clone().unwrap_or_else(unknown).into(),
        ),
        (
            "commit",
            build.commit.clone().unwrap_or_else(unknown).into(),
        ),
        (
            "profile",
            format!("{}, panic = {}", build.profile, build.panic).into(),
        ),
        (
            "target",
            format!("{} ({})", build.target, report.machine).into(),
        ),
        ("rustc", build.rustc.as_str().into()),
        ("sdk", format!("handover-plugin {}", build.sdk).into()),
    ];
    let rows: Vec<_> = facts
        .into_iter()
        .map(|(name, value)| Row::Cells(vec![Cell::painted(name, Paint::Dim), value]))
        .collect();
    // A list of facts has no headings.
    output::table(&["", ""], &rows, colour)
        .trim_start_matches('\n')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_runs_its_own_major_and_no_higher_minor() {
        let host = AbiVersion(1, 1);
        assert!(runs(host, AbiVersion(1, 0)));
        assert!(runs(host, AbiVersion(1, 1)));
        assert!(!runs(host, AbiVersion(1, 2)));
        assert!(!runs(host, AbiVersion(2, 0)));
        assert!(!runs(host, AbiVersion(0, 1)));
    }
}
