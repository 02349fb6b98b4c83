//! Whether the state of an app fits what is to go live, and the migrations that bring it there.
//!
//! A state is migrated while nothing of the app is live: what replaces it has its requests held.
//! What it was is kept until the new version is live, over the end of the host as well, so either
//! all of the migrations have happened, or none.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use handover_api::{EventKind, GenerationId, Outcome};
use jiff::Timestamp;
use tempfile::NamedTempFile;

use super::{
    Destination, Ended,
    failure::Failure,
    steps::{Checked, Deploy, Machine},
};
use crate::{
    apps::app::App,
    artifact::{Artifact, MigrationPath},
    generation::{self, Spec, StartError},
    human,
    records::{
        app_record::Record,
        journal::{Step, Tried},
    },
    rollout::{
        Rollout,
        copy::{self, Copy},
    },
    state::{Marking, Schema, Snapshot, StateError, Store},
};

/// How many of the versions that were live before are looked at for a way back.
const LOOKED_AT: usize = 8;

/// How the state gets from its schema to that of the version.
#[derive(Clone, Debug)]
pub(super) struct Way {
    by: By,
    from: u32,
    to: u32,
}

/// What brings the state there.
#[derive(Clone, Debug)]
enum By {
    /// These migrations of a version, in their order.
    Migrations(Vec<MigrationPath>, Box<Artifact>),
    /// The backup of before it was migrated.
    Backup(PathBuf),
}

impl Way {
    /// Says what has become of the state.
    fn taken(&self) -> String {
        let Self { by, from, to } = self;
        let schemas = format!("its state has schema {to} now, and had {from}");
        match by {
            By::Migrations(..) => schemas,
            By::Backup(file) => {
                let written = file.metadata().and_then(|found| found.modified());
                let written = written.ok().and_then(|at| Timestamp::try_from(at).ok());
                let at = written.map_or_else(String::new, |at| format!(", at {at:.0}"));
                format!(
                    "{schemas}: it is what it was before it was migrated{at}, and what was written since then is lost"
                )
            }
        }
    }
}

/// What is wrong with the state.
fn unavailable(error: &StateError) -> Failure {
    Failure::host(format!("the schema of its state is not known: {error}"))
}

impl<M: Machine + Clone> Deploy<'_, M> {
    fn state(&self) -> Arc<Store> {
        self.rollout.registry.stores().of(&self.app.name)
    }

    async fn schema_of_state(&self) -> Result<Option<Schema>, StateError> {
        let store = self.state();
        let read = tokio::task::spawn_blocking(move || store.schema()).await;
        read.unwrap_or_else(|broken| Err(StateError::Unavailable(broken.to_string())))
    }

    /// Finds out how the state gets to the schema of this version; none where it fits.
    ///
    /// # Errors
    /// Why this version cannot be up.
    pub(super) async fn way_of_state(&self) -> Result<Option<Way>, Failure> {
        let wanted = self.plan.artifact.manifest.schema;
        if self.plan.destination == Destination::Staged {
            return Ok(None);
        }
        let found = match self.schema_of_state().await {
            Ok(found) => found,
            // A version that says nothing of a schema may not even have a state.
            Err(_) if wanted == 0 => None,
            Err(error) => return Err(unavailable(&error)),
        };
        let Some(found) = found.filter(|found| !found.suits(wanted)) else {
            return Ok(None);
        };
        let (from, to) = (found.schema, wanted);
        let version = &self.plan.artifact.manifest.version;
        let refused = |reason: String| {
            Err(Failure {
                own_fault: false, // with another state the same bytes are fine
                ..Failure::own(Outcome::Rejected, reason, None)
            })
        };
        if self.plan.destination != Destination::Live || self.plan.up.is_some() {
            return refused(format!(
                "its state has schema {from}, and {version} has schema {to}: both cannot be up at the same time, so deploy it without a label, a canary or a shadow"
            ));
        }
        let mut by = None;
        if from < to {
            by = Some(self.plan.artifact.clone());
        } else if let Some(live) = self.app.running(|running| {
            let live = running.serving.primary()?;
            Some(live.artifact.clone())
        }) {
            by = Some(live);
        }
        let way = |by: Artifact| Some((by.migrations.way(from, to)?, by));
        let known = by.and_then(way);
        let known = match known {
            None if from > to => self.way_of_former(from, to).await,
            known => known,
        };
        if let Some((paths, by)) = known {
            return Ok(Some(Way {
                by: By::Migrations(paths, Box::new(by)),
                from,
                to,
            }));
        }
        let backup = self
            .rollout
            .registry
            .stores()
            .backup_file(&self.app.name, to);
        if from > to && self.plan.restore_state && backup.exists() {
            return Ok(Some(Way {
                by: By::Backup(backup),
                from,
                to,
            }));
        }
        refused(match from < to {
            true => format!(
                "its state has schema {from}, and {version} has no way from there to its schema {to}: declare `#[migration(from = {from}, to = {to})]`"
            ),
            false => format!(
                "its state has schema {from}, {version} has schema {to}, and there is no way back: deploy a version of schema {from}, one that declares `#[migration(from = {from}, to = {to})]` and go back from that, or restore the state of before its migration, which loses what was written since (`handover rollback --restore-snapshot`, where the host has kept it)"
            ),
        })
    }

    /// The way back that a version has which was live before.
    async fn way_of_former(&self, from: u32, to: u32) -> Option<(Vec<MigrationPath>, Artifact)> {
        let mut former: Vec<_> = self.app.saved.read(|record| {
            let history = record.history.iter().rev();
            history.map(|entry| entry.artifact).collect()
        });
        let mut seen = BTreeSet::new();
        former.retain(|artifact| seen.insert(*artifact));
        former.truncate(LOOKED_AT);
        let store = self.rollout.store.clone();
        let found = tokio::task::spawn_blocking(move || {
            former.into_iter().find_map(|artifact| {
                let artifact = store.get(artifact).ok()?;
                let is_there = artifact.manifest.schema == from;
                let way = is_there.then(|| artifact.migrations.way(from, to))??;
                Some((way, artifact))
            })
        });
        found.await.ok().flatten()
    }

    /// Copies the state for a rehearsal of its migrations; none where there is nothing to rehearse.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub(super) async fn state_to_rehearse(&self) -> Result<Option<NamedTempFile>, Failure> {
        let Some(way) = &self.migration else {
            return Ok(None);
        };
        // A way back was rehearsed when the version that has it was deployed.
        match &way.by {
            By::Migrations(_, by) if by.sha256 == self.plan.artifact.sha256 => {}
            By::Migrations(..) | By::Backup(_) => return Ok(None),
        }
        let began = Instant::now();
        let (store, name) = (self.state(), self.app.name.clone());
        let copied = tokio::task::spawn_blocking(move || copy::of(&store, &name)).await;
        let copied = copied
            .map_err(std::io::Error::other)
            .and_then(|copied| copied)
            .map_err(|error| Failure::host(format!("its state cannot be copied: {error}")))?;
        let told = |message: String| {
            self.progress
                .step("snapshot", self.app, began.elapsed(), message);
        };
        Ok(match copied {
            Copy::Whole(file, size) => {
                told(format!(
                    "{} of state copied, for a rehearsal of its migrations",
                    human::file_size(size)
                ));
                Some(file)
            }
            Copy::Empty => None,
            Copy::TooLarge(size) => {
                told(format!(
                    "its state has {}, which is more than is copied: its migrations are not rehearsed",
                    human::file_size(size)
                ));
                None
            }
        })
    }

    /// Migrates the state where it does not fit, then starts the new version and has it take
    /// requests. When any of that fails the state is what it was.
    pub(super) async fn migrate_and_go_live(
        self,
        checked: Checked,
        id: GenerationId,
    ) -> Result<Ended, Failure> {
        let (store, app, rollout) = (self.state(), self.app, self.rollout);
        let own = Schema {
            schema: self.plan.artifact.manifest.schema,
            runs_with: self
                .plan
                .artifact
                .migrations
                .compatible_with
                .unwrap_or(self.plan.artifact.manifest.schema),
        };
        let Some(way) = self.migration.clone() else {
            let ended = self.start_and_go_live(checked, id).await;
            if let Ok(Ended::Live(..)) = &ended {
                note_schema(&store, own).await;
            }
            return ended;
        };
        let not_kept = |error: StateError| {
            Failure::host(format!(
                "its state could not be kept as it is, so it is not migrated: {error}"
            ))
            .of(id)
        };
        let before = self.snapshot(&store).await.map_err(not_kept)?;
        store.mark(Marking::Keep).await.map_err(not_kept)?;
        let began = Instant::now();
        let migrated = match self.migrate(&store, &way).await {
            Ok(()) => store
                .set_schema(own)
                .await
                .map_err(|error| Failure::host(format!("its schema was not noted: {error}"))),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = migrated {
            return Err(return_to_mark(rollout, app, &store, failure.of(id)).await);
        }
        self.progress
            .step("migrate", app, began.elapsed(), way.taken());
        let ended = Box::pin(self.start_and_go_live(checked, id)).await;
        match ended {
            // Requests are held yet, so nothing that was answered can be taken back by what a
            // crash would do before this is on the disk.
            Ok(ended) => {
                if let Err(error) = store.mark(Marking::Forget).await {
                    rollout.registry.record_event(
                        EventKind::State,
                        app,
                        Some(id),
                        format!(
                            "what the state of {} was before its migration is not forgotten yet: {error}; a restart of the host would go back to it",
                            app.name
                        ),
                    );
                }
                keep_backup(rollout, app, before, &way);
                Ok(ended)
            }
            Err(failure) => Err(return_to_mark(rollout, app, &store, failure).await),
        }
    }

    /// Runs the migrations, each in a load of its own.
    async fn migrate(&self, store: &Arc<Store>, way: &Way) -> Result<(), Failure> {
        // Of what is kept in memory nobody says how it would be migrated.
        store.forget_memory().await.map_err(|error| {
            Failure::host(format!(
                "what the app keeps in memory could not be emptied for its migration: {error}"
            ))
        })?;
        let (paths, by) = match &way.by {
            By::Migrations(paths, by) => (paths, by),
            By::Backup(file) => {
                let failed = |reason: String| {
                    Failure::host(format!(
                        "the state of before its migration could not be restored: {reason}"
                    ))
                };
                let file = File::open(file).map_err(|error| failed(error.to_string()))?;
                let restored = store.replace_by(file).await;
                restored.map_err(|error| failed(error.to_string()))?;
                reload_jobs(self.rollout, self.app).await;
                return Ok(());
            }
        };
        let within = self.plan.within(self.app.settings().hooks.deadline);
        let until = Instant::now() + within;
        for path in paths {
            let left = until.saturating_duration_since(Instant::now());
            self.run_migration(by, *path, left).await?;
        }
        Ok(())
    }

    async fn snapshot(&self, store: &Arc<Store>) -> Result<Snapshot, StateError> {
        let store = Arc::clone(store);
        let taken = tokio::task::spawn_blocking(move || store.snapshot(false)).await;
        taken.unwrap_or_else(|broken| Err(StateError::Unavailable(broken.to_string())))
    }

    async fn run_migration(
        &self,
        by: &Artifact,
        path: MigrationPath,
        within: Duration,
    ) -> Result<(), Failure> {
        let (rollout, app) = (self.rollout, self.app);
        let (id, saved) = app.saved.change(Record::next_generation).await;
        let failed = |reason: String| {
            let reason = format!(
                "the migration of its state from schema {} to {} failed: {reason}",
                path.from, path.to
            );
            // The same bytes would fail with the same state, but the state may be another one.
            Failure {
                own_fault: false,
                ..Failure::own(Outcome::Failed, reason, None)
            }
        };
        if let Err(cause) = saved {
            return Err(failed(format!(
                "the host cannot write its records: {cause}"
            )));
        }
        let trying = Tried {
            step: Step::Loaded,
            artifact: by.sha256,
            version: by.manifest.version.clone(),
            generation: Some(id),
            cause: self.plan.cause,
            source: self.plan.source.clone(),
        };
        rollout.journal.trying(&app.name, trying).await;
        let spec = Spec {
            migration: Some((path.from, path.to)),
            ..self.spec_of(by, id, within)
        };
        let loaded_at = Instant::now();
        // Not given up when the host ends: what it writes after that would not be taken back.
        let started = match generation::load(by.clone(), within).await {
            Ok(library) => generation::start(library, spec.clone()).await,
            Err(error) => Err(error),
        };
        match started {
            Ok(started) => {
                let ended = started.discard().await;
                rollout.retire(app, id, ended);
                Ok(())
            }
            Err(StartError {
                reason, retained, ..
            }) => {
                self.keep_retained(&spec, loaded_at, retained);
                Err(failed(reason))
            }
        }
    }
}

/// Reads anew which jobs there are: the state may have others by now.
async fn reload_jobs(rollout: &Rollout, app: &App) {
    let work = rollout.registry.work().of(&app.name);
    let reloaded = tokio::task::spawn_blocking(move || work.jobs.reload()).await;
    if let Ok(Err(error)) = reloaded {
        tracing::warn!(app = %app.name, "its jobs could not be read again: {error}");
    }
}

/// Keeps what the state was before it was migrated, in the place of what was kept before.
fn keep_backup(rollout: &Rollout, app: &Arc<App>, before: Snapshot, way: &Way) {
    let stores = rollout.registry.stores().clone();
    let (rollout, app, schema) = (rollout.clone(), Arc::clone(app), way.from);
    tokio::task::spawn_blocking(move || {
        let file = stores.backup_file(&app.name, schema);
        match copy::keep(&before, &app.name, &file) {
            Ok(()) => {
                for old in stores.backup_files(&app.name) {
                    if old != file {
                        let _ = fs::remove_file(old); // a later one tries it again
                    }
                }
            }
            Err(error) => rollout.registry.record_event(
                EventKind::Warning,
                &app,
                None,
                format!(
                    "the state of {} of before its migration is not kept: {error}",
                    app.name
                ),
            ),
        }
    });
}

/// Makes the state what it was, for `failure`.
async fn return_to_mark(rollout: &Rollout, app: &App, store: &Store, failure: Failure) -> Failure {
    let returned = store.mark(Marking::Return).await;
    reload_jobs(rollout, app).await;
    match returned {
        Ok(_) => failure,
        Err(error) => Failure {
            reason: format!(
                "{}; and the state is not what it was before, which a restart of the host brings back: {error}",
                failure.reason
            ),
            ..failure
        },
    }
}

/// Notes the schema of a state that fits, where it is not noted yet.
async fn note_schema(store: &Arc<Store>, own: Schema) {
    let looked = Arc::clone(store);
    let found = tokio::task::spawn_blocking(move || looked.schema()).await;
    let is_noted = match found {
        Ok(Ok(Some(found))) => found.schema > own.schema || found == own,
        Ok(Ok(None)) => own.schema == 0,
        _ => true, // what cannot be read is not written either
    };
    if !is_noted && let Err(error) = store.set_schema(own).await {
        tracing::warn!("the schema of its state could not be noted: {error}");
    }
}
