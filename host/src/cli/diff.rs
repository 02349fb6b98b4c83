//! `diff`: how two versions of an app differ, as far as their files say.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    path::Path,
};

use handover_api::{AppName, ArtifactReport, Client, Dependency, Outcome, query};
use serde::Serialize;

use super::{
    args::{Diff, Global},
    exit::Failure,
    output::{self, Cell, Paint, Row},
};
use crate::{
    artifact::{self, StoreError},
    human,
    shown::harmless,
};

/// What `handover diff --json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// The first.
    a: &'a ArtifactReport,
    /// The second.
    b: &'a ArtifactReport,
    /// What differs, by what it is.
    changes: Vec<Change>,
    /// The packages that differ; none where one of the two does not say what it was built from.
    dependencies: Option<Vec<Change>>,
}

/// One thing that differs.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Change {
    /// What it is.
    what: String,
    /// As it is in the first; none where it has none.
    a: Option<String>,
    /// The same of the second.
    b: Option<String>,
}

/// `handover diff`
pub(super) async fn diff(global: &Global, args: Diff) -> Result<(), Failure> {
    let client = global.client();
    let a = find(&client, args.app.as_ref(), &args.a).await?;
    let b = find(&client, args.app.as_ref(), &args.b).await?;
    let report = Report {
        changes: changes(&facts(&a), &facts(&b)),
        dependencies: a
            .dependencies
            .as_deref()
            .zip(b.dependencies.as_deref())
            .map(|(a, b)| changes(&packages(a), &packages(b))),
        a: &a,
        b: &b,
    };
    output::line(&if global.json {
        // Our own type of strings and numbers: this cannot fail.
        serde_json::to_string(&report).unwrap_or_default()
    } else {
        text(&report, output::colour(&io::stdout(), global))
    });
    Ok(())
}

/// Returns the report about a file, or about a version that the host knows.
async fn find(
    client: &Client,
    app: Option<&AppName>,
    which: &str,
) -> Result<ArtifactReport, Failure> {
    let path = Path::new(which);
    if !which.contains('/') && !which.ends_with(".so") {
        let query = query::Artifact {
            app: app.cloned(),
            which: Some(which.to_owned()),
        };
        return Ok(client.artifact(&query).await?);
    }
    let artifact = artifact::inspect(path).map_err(|error| match error {
        StoreError::Refused { reason, .. } => Failure::with_code(
            Outcome::Rejected.exit_code(),
            format!("{}: {reason}", path.display()),
        ),
        StoreError::Io { .. } => Failure::new(error.to_string()),
    })?;
    let report = File::open(path).and_then(|file| artifact.report(&file));
    report.map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

type Facts = BTreeMap<String, BTreeSet<String>>;

/// What can differ, in the words of `inspect`.
fn facts(report: &ArtifactReport) -> Facts {
    let commit = report.commit.as_ref().map(|commit| {
        let dirty = if report.dirty { " and changes" } else { "" };
        format!("{commit}{dirty}")
    });
    let one = |value: &str| BTreeSet::from([value.to_owned()]);
    let some = |value: &Option<String>| value.iter().cloned().collect::<BTreeSet<_>>();
    let many = |values: &[String]| values.iter().cloned().collect::<BTreeSet<_>>();
    let all = [
        ("app", one(report.app.as_str())),
        ("version", one(&report.version.to_string())),
        ("sha256", one(&report.sha256)),
        ("size", one(&human::file_size(report.size))),
        ("abi", one(&report.abi)),
        ("state schema", one(&report.schema.to_string())),
        ("database", some(&report.db)),
        ("commit", some(&commit)),
        ("Cargo.lock", some(&report.lockfile)),
        ("rustc", one(&report.rustc)),
        ("target", one(&report.target)),
        (
            "profile",
            one(&format!("{}, panic = {}", report.profile, report.panic)),
        ),
        ("sdk", one(&report.sdk)),
        ("needs", many(&report.needed)),
        ("job", many(&report.jobs)),
        ("schedule", many(&report.schedules)),
    ];
    all.map(|(name, values)| (name.to_owned(), values)).into()
}

fn packages(dependencies: &[Dependency]) -> Facts {
    let mut all = Facts::new();
    for Dependency { name, version } in dependencies {
        all.entry(name.clone()).or_default().insert(version.clone());
    }
    all
}

/// Returns what differs: one thing that is another one in place of it, several each by itself.
fn changes(a: &Facts, b: &Facts) -> Vec<Change> {
    let names: BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let none = BTreeSet::new();
    let mut found = Vec::new();
    for what in names {
        let (a, b) = (a.get(what).unwrap_or(&none), b.get(what).unwrap_or(&none));
        let (mut gone, mut new) = (a.difference(b), b.difference(a));
        let is_one = a.len() <= 1 && b.len() <= 1;
        loop {
            let (a, b) = match (gone.next(), is_one) {
                (Some(a), true) => (Some(a), new.next()),
                (Some(a), false) => (Some(a), None),
                (None, _) => (None, new.next()),
            };
            if a.is_none() && b.is_none() {
                break;
            }
            found.push(Change {
                what: what.clone(),
                a: a.cloned(),
                b: b.cloned(),
            });
        }
    }
    found
}

fn text(report: &Report<'_>, colour: bool) -> String {
    if report.a.sha256 == report.b.sha256 {
        return "They are the same bytes.".to_owned();
    }
    let mut rows = rows(&report.changes);
    match report.dependencies.as_deref() {
        Some([]) => {}
        Some(packages) => {
            rows.push(Row::Cells(vec!["".into()]));
            rows.extend(self::rows(packages));
        }
        None => rows.push(Row::Note(Cell::painted(
            "what they were built from is not in both of them: `cargo auditable build` writes it there",
            Paint::Dim,
        ))),
    }
    output::table(&["", "A", "B"], &rows, colour, output::width())
}

fn rows(changes: &[Change]) -> Vec<Row> {
    let value = |value: &Option<String>, paint: Paint| match value {
        Some(text) => Cell::painted(harmless(text), paint),
        None => "-".into(),
    };
    let rows = changes.iter().map(|change| {
        Row::Cells(vec![
            Cell::painted(harmless(&change.what), Paint::Dim),
            value(&change.a, Paint::Red),
            value(&change.b, Paint::Green),
        ])
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &[&str])]) -> Facts {
        let facts = pairs.iter().map(|(name, values)| {
            let values = values.iter().map(|value| (*value).to_owned());
            ((*name).to_owned(), values.collect())
        });
        facts.collect()
    }

    #[test]
    fn what_is_one_is_replaced_and_what_are_several_come_and_go() {
        let a = of(&[
            ("tokio", &["1.0.0"]),
            ("syn", &["1.0.0", "2.0.0"]),
            ("gone", &["3.0.0"]),
        ]);
        let b = of(&[
            ("tokio", &["1.1.0"]),
            ("syn", &["2.0.0", "3.0.0"]),
            ("new", &["4.0.0"]),
        ]);
        let found = changes(&a, &b);
        let told: Vec<_> = found
            .iter()
            .map(|one| (one.what.as_str(), one.a.as_deref(), one.b.as_deref()))
            .collect();
        assert_eq!(
            told,
            [
                ("gone", Some("3.0.0"), None),
                ("new", None, Some("4.0.0")),
                ("syn", Some("1.0.0"), None),
                ("syn", None, Some("3.0.0")),
                ("tokio", Some("1.0.0"), Some("1.1.0")),
            ]
        );
        assert_eq!(changes(&a, &a), []);
    }
}
