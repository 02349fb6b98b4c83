//! What the functions of an artifact declare, read from its own ELF section without loading it: the
//! handlers of jobs, when those of schedules are due, and the database revisions it runs with.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
};

use handover_plugin::abi::declared::SECTION;
use serde::{Deserialize, Serialize};

/// Handlers of an artifact, at most.
const MOST_HANDLERS: usize = 1000;

/// A handler of jobs, as its attribute declares it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobHandler {
    /// The name of its jobs.
    pub job: String,
    /// How many of them run at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
    /// How many of them run at a time for one tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_concurrency: Option<usize>,
    /// After how many attempts a job is a dead letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// How long an attempt may take, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// The pause after the first attempt that failed, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff_ms: Option<u64>,
    /// The longest pause, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest_backoff_ms: Option<u64>,
    /// A cron expression of five fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Where the clock of the cron expression hangs; none is UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tz: Option<String>,
    /// An interval in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_ms: Option<u64>,
    /// What is done of the times that were missed.
    #[serde(default)]
    pub missed: Missed,
}

/// What is done of the times of a schedule that went by while the host was down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Missed {
    /// Nothing.
    None,
    /// One job, for the last of them.
    #[default]
    One,
    /// A job for each.
    All,
}

/// The revisions of a database that a version runs with, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DbRevisions {
    /// The lowest.
    pub min: u64,
    /// The highest.
    pub max: u64,
}

impl DbRevisions {
    /// Whether it runs with `revision`.
    pub(crate) fn contains(self, revision: u64) -> bool {
        (self.min..=self.max).contains(&revision)
    }

    /// Whether there is a revision that both run with.
    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.min <= other.max && other.min <= self.max
    }
}

impl fmt::Display for DbRevisions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self { min, max } if min == max => write!(f, "revision {min}"),
            Self { min, max: u64::MAX } => write!(f, "revisions from {min} on"),
            Self { min, max } => write!(f, "revisions {min} to {max}"),
        }
    }
}

/// A line about the database.
#[derive(Debug, Deserialize)]
struct DbLine {
    db: DbRevisions,
}

/// A migration of the state: the schema that it begins with, and the one that it ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationPath {
    /// The first.
    pub from: u32,
    /// The last.
    pub to: u32,
}

/// What a version says of the schema of its state beyond its number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Migrations {
    /// The migrations that it has.
    pub paths: Vec<MigrationPath>,
    /// The lowest schema whose versions run with its state as well.
    pub compatible_with: Option<u32>,
}

impl Migrations {
    /// Returns the shortest way from one schema to another, each step a migration.
    pub(crate) fn way(&self, from: u32, to: u32) -> Option<Vec<MigrationPath>> {
        let mut ways = VecDeque::from([(from, Vec::new())]);
        let mut seen = BTreeSet::from([from]);
        while let Some((at, way)) = ways.pop_front() {
            if at == to {
                return Some(way);
            }
            for path in self.paths.iter().filter(|path| path.from == at) {
                if seen.insert(path.to) {
                    ways.push_back((path.to, [&way[..], &[*path]].concat()));
                }
            }
        }
        None
    }
}

/// A line about a migration.
#[derive(Debug, Deserialize)]
struct MigrationLine {
    migration: MigrationPath,
}

/// A line about the schema.
#[derive(Debug, Deserialize)]
struct SchemaLine {
    schema: Compatible,
}

#[derive(Debug, Deserialize)]
struct Compatible {
    compatible_with: u32,
}

/// All that the functions of an artifact declare.
#[derive(Clone, Debug, Default)]
pub(crate) struct Declarations {
    /// The handlers of jobs.
    pub(crate) handlers: Declared,
    /// The database revisions that it runs with, where it says so.
    pub(crate) db: Option<DbRevisions>,
    /// The migrations of its state.
    pub(crate) migrations: Migrations,
}

/// Why a section is none of declarations.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeclaredError {
    /// A line is no declaration.
    #[error(
        "its section `{SECTION}` has a line that declares nothing that this host understands ({0}): build it again with handover-plugin"
    )]
    Line(String),
    /// The same name is there twice.
    #[error("it declares the job `{0}` twice: give one of them another name")]
    Twice(String),
    /// There are two functions for the revision of the database.
    #[error("it has two functions with `#[db_revision]`: leave one")]
    TwoDbRevisions,
    /// There are two migrations between the same schemas.
    #[error("it has two migrations from schema {from} to {to}: leave one", from = .0.from, to = .0.to)]
    TwoMigrations(MigrationPath),
    /// There are too many.
    #[error("it declares more than {MOST_HANDLERS} jobs")]
    Many,
}

/// The handlers that an artifact declares, by the names of their jobs.
pub type Declared = BTreeMap<String, JobHandler>;

impl JobHandler {
    /// Whether it has times at which it is due.
    pub(crate) fn is_scheduled(&self) -> bool {
        self.schedule.is_some() || self.every_ms.is_some()
    }

    /// How many run at a time: what runs by schedule does not overlap by default.
    pub(crate) fn concurrency(&self) -> usize {
        let default = if self.is_scheduled() { 1 } else { usize::MAX };
        self.concurrency.unwrap_or(default).max(1)
    }
}

/// Reads the bytes of the section. Never panics, whatever they are.
///
/// # Errors
/// What is wrong with the section and what to do.
pub(crate) fn from_section(section: &[u8]) -> Result<Declarations, DeclaredError> {
    let mut declared = Declared::new();
    let mut db = None;
    let mut migrations = Migrations::default();
    let lines = section.split(|byte| matches!(byte, b'\n' | b'\0'));
    for line in lines.filter(|line| !line.is_empty()) {
        if let Ok(DbLine { db: revisions }) = serde_json::from_slice(line) {
            if db.replace(revisions).is_some() {
                return Err(DeclaredError::TwoDbRevisions);
            }
            continue;
        }
        if let Ok(MigrationLine { migration }) = serde_json::from_slice(line) {
            if migrations.paths.contains(&migration) {
                return Err(DeclaredError::TwoMigrations(migration));
            }
            migrations.paths.push(migration);
            continue;
        }
        if let Ok(SchemaLine { schema }) = serde_json::from_slice(line) {
            migrations.compatible_with = Some(schema.compatible_with);
            continue;
        }
        let handler: JobHandler =
            serde_json::from_slice(line).map_err(|error| DeclaredError::Line(error.to_string()))?;
        let name = handler.job.clone();
        if declared.insert(name.clone(), handler).is_some() {
            return Err(DeclaredError::Twice(name));
        }
        if declared.len() > MOST_HANDLERS {
            return Err(DeclaredError::Many);
        }
    }
    Ok(Declarations {
        handlers: declared,
        db,
        migrations,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn lines_are_handlers_and_anything_else_is_an_error() {
        let declared = from_section(
            b"{\"job\":\"a\",\"new\":1}\n\0\0{\"job\":\"b\",\"schedule\":\"0 3 * * *\",\"missed\":\"all\"}\n",
        )
        .unwrap()
        .handlers;
        assert_eq!(declared.len(), 2);
        assert_eq!(declared["a"].concurrency(), usize::MAX);
        assert_eq!(declared["b"].concurrency(), 1);
        assert_eq!(declared["b"].missed, Missed::All);
        assert!(from_section(b"").unwrap().handlers.is_empty());
        assert!(
            from_section(b"{}")
                .unwrap_err()
                .to_string()
                .contains("build it again")
        );
        let twice = from_section(b"{\"job\":\"a\"}\n{\"job\":\"a\"}\n").unwrap_err();
        assert!(twice.to_string().contains("`a` twice"));
        let line = br#"{"db":{"min":3,"max":5}}"#;
        let db = from_section(line).unwrap().db.unwrap();
        assert_eq!(db, DbRevisions { min: 3, max: 5 });
        assert!(db.contains(3) && db.contains(5) && !db.contains(6));
        assert_eq!(db.to_string(), "revisions 3 to 5");
        let twice = [&line[..], b"\n", line].concat();
        assert!(from_section(&twice).is_err());
        for byte in 0..=u8::MAX {
            let _ = from_section(&[b'{', byte, b'\n']);
        }
    }

    #[test]
    fn the_way_between_two_schemas_is_the_shortest() {
        let lines = [
            r#"{"migration":{"from":1,"to":2}}"#,
            r#"{"migration":{"from":2,"to":3}}"#,
            r#"{"migration":{"from":1,"to":3}}"#,
            r#"{"migration":{"from":3,"to":2}}"#,
            r#"{"schema":{"compatible_with":2}}"#,
        ];
        let migrations = from_section(lines.join("\n").as_bytes())
            .unwrap()
            .migrations;
        let steps = |from, to| migrations.way(from, to).map(|way| way.len());
        assert_eq!(steps(1, 3), Some(1));
        assert_eq!(steps(1, 2), Some(1));
        assert_eq!(steps(3, 2), Some(1));
        assert_eq!(steps(3, 1), None);
        assert_eq!(steps(2, 2), Some(0));
        assert_eq!(migrations.compatible_with, Some(2));
        let twice = [lines[0], lines[0]].join("\n");
        assert!(from_section(twice.as_bytes()).is_err());
    }
}
