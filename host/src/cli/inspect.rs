//! `inspect`: what a plugin file says of itself.

use std::io;

use handover_api::{AppName, Note, Outcome};
use serde::Serialize;

use super::{
    args::{self, Global},
    exit::Failure,
    output::{self, Cell, Paint, Row},
};
use crate::{
    artifact::{self, Artifact, BuildFacts, Bundled, DbRevisions, StoreError, manifest::HOST_ABI},
    human,
};

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
    /// Whether this host may run it, as far as its bytes say.
    accepted: bool,
    /// Why it may not.
    reason: Option<String>,
    /// The version of its state schema.
    schema: u32,
    /// The revisions of its database that it runs with.
    #[serde(skip_serializing_if = "Option::is_none")]
    db: Option<DbRevisions>,
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
    /// The libraries that it needs, by name.
    needed: &'a [String],
    /// What people should know of it, though it is taken.
    notes: Vec<Note>,
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
    let mut report = report(&artifact);
    let Bundled { refusal, remarks } = artifact::bundled(&args.file)
        .map_err(|error| Failure::new(format!("{}: {error}", args.file.display())))?;
    report.notes.extend(remarks.iter().map(Note::from));
    if let (None, Some(reason)) = (&report.reason, refusal) {
        report.accepted = false;
        report.reason = Some(reason);
    }
    output::line(&if global.json {
        // Our own type of strings and numbers: this cannot fail.
        serde_json::to_string(&report).unwrap_or_default()
    } else {
        text(&report, output::colour(&io::stdout(), global))
    });
    Ok(())
}

fn report(artifact: &Artifact) -> Report<'_> {
    let manifest = &artifact.manifest;
    let reason = artifact.acceptable().err();
    Report {
        app: &manifest.app,
        version: &manifest.version,
        abi: manifest.abi_named(),
        host_abi: HOST_ABI.to_string(),
        accepted: reason.is_none(),
        reason,
        schema: manifest.schema,
        db: artifact.db,
        build: &manifest.build,
        build_id: artifact
            .elf
            .build_id
            .as_ref()
            .map(|id| id.iter().map(|byte| format!("{byte:02x}")).collect()),
        machine: &artifact.elf.machine,
        sha256: artifact.sha256.to_string(),
        size: artifact.size,
        needed: &artifact.elf.linkage.needed,
        notes: artifact
            .elf
            .linkage
            .remarks()
            .iter()
            .map(Note::from)
            .collect(),
    }
}

fn text(report: &Report<'_>, colour: bool) -> String {
    let verdict = match &report.reason {
        None => Cell::painted("this host may run it", Paint::Green),
        Some(reason) => Cell::painted(reason, Paint::Red),
    };
    let build = report.build;
    let unknown = || "unknown".to_owned();
    let mut facts: Vec<(&str, Cell)> = vec![
        ("app", Cell::painted(report.app.as_str(), Paint::Bold)),
        (
            "version",
            Cell::painted(report.version.to_string(), Paint::Bold),
        ),
        (
            "abi",
            format!("{} (this host: {})", report.abi, report.host_abi).into(),
        ),
        ("state schema", report.schema.to_string().into()),
        ("sha256", report.sha256.as_str().into()),
        ("size", human::file_size(report.size).into()),
        (
            "build id",
            report.build_id.clone().unwrap_or_else(unknown).into(),
        ),
        ("commit", commit(build).into()),
        (
            "Cargo.lock",
            build.lockfile.clone().unwrap_or_else(unknown).into(),
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
        ("needs", needed(report.needed).into()),
        ("verdict", verdict),
    ];
    if let Some(db) = report.db {
        let after_schema = 4;
        facts.insert(after_schema, ("database", db.to_string().into()));
    }
    let rows: Vec<_> = facts
        .into_iter()
        .map(|(name, value)| Row::Cells(vec![Cell::painted(name, Paint::Dim), value]))
        .collect();
    // A list of facts has no headings.
    let mut text = output::table(&["", ""], &rows, colour, None)
        .trim_start_matches('\n')
        .to_owned();
    for note in &report.notes {
        text.push('\n');
        text.push_str(&output::noted(note, colour));
    }
    text
}

fn commit(build: &BuildFacts) -> String {
    match &build.commit {
        None => "unknown".to_owned(),
        Some(commit) if build.dirty => format!("{commit}, and files differed from it"),
        Some(commit) => commit.clone(),
    }
}

fn needed(names: &[String]) -> String {
    match names {
        [] => "no other library".to_owned(),
        names => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn people_see_whether_the_host_may_run_it_and_why_not() {
        let (app, version, build) = (
            "shop".parse().unwrap(),
            "1.2.3".parse().unwrap(),
            BuildFacts::default(),
        );
        let report = |reason: Option<&str>| Report {
            app: &app,
            version: &version,
            abi: "2.0".to_owned(),
            host_abi: "1.1".to_owned(),
            accepted: reason.is_none(),
            reason: reason.map(str::to_owned),
            schema: 3,
            db: None,
            build: &build,
            build_id: None,
            machine: "x86_64",
            sha256: "a1b2".to_owned(),
            size: 1_449_000,
            needed: &[],
            notes: Vec::new(),
        };
        let refused = text(&report(Some("built for ABI 2.0")), false);
        assert!(
            refused.starts_with(
                "app           shop\nversion       1.2.3\nabi           2.0 (this host: 1.1)\n"
            ),
            "{refused}"
        );
        assert!(
            refused.ends_with("verdict       built for ABI 2.0"),
            "{refused}"
        );
        assert!(text(&report(None), false).ends_with("verdict       this host may run it"));
    }
}
