//! Whether what is to go live runs with the revision that its database is at.

use std::{fmt, time::Duration};

use handover_api::{Cause, EventKind, GenerationId, Label};

use super::{Plan, steps::Deploy};
use crate::{
    artifact::DbRevisions,
    generation::{Started, answered},
};

/// How long an app may take to say it.
const WITHIN: Duration = Duration::from_secs(10);

/// What is known of the database of a version that says which revisions it runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing is, or nothing is declared.
    Nothing,
    /// It is at a revision that the version runs with.
    Fits,
    /// It is behind: migrations may bring it on.
    Behind(u64),
}

/// Why a version cannot go live.
#[derive(Debug, PartialEq, Eq)]
enum Unfit {
    /// The database is further than the version knows.
    Ahead(u64),
    /// It is behind, and nothing brings it on.
    Behind(u64),
    /// It does not say.
    Unknown(String),
}

impl Unfit {
    fn sentence(&self, what: &dyn fmt::Display, runs_with: DbRevisions) -> String {
        match self {
            Self::Ahead(revision) => format!(
                "its database is at revision {revision}, and {what} runs with {runs_with}: deploy a version that knows {revision}"
            ),
            Self::Behind(revision) => format!(
                "its database is at revision {revision}, and {what} runs with {runs_with}: migrate in `#[on_live]` or the hook `migrate`"
            ),
            Self::Unknown(reason) => {
                format!("the revision of its database is not known: {reason}")
            }
        }
    }
}

/// Judges what an app said before anything was done.
fn judge(runs_with: DbRevisions, said: Result<Option<u64>, String>) -> Result<Found, Unfit> {
    match said {
        Ok(None) => Ok(Found::Nothing),
        Ok(Some(revision)) if runs_with.contains(revision) => Ok(Found::Fits),
        Ok(Some(revision)) if revision < runs_with.min => Ok(Found::Behind(revision)),
        Ok(Some(revision)) => Err(Unfit::Ahead(revision)),
        Err(reason) => Err(Unfit::Unknown(reason)),
    }
}

/// Judges what it said when all migrations were done.
fn judge_again(runs_with: DbRevisions, said: Result<Option<u64>, String>) -> Result<(), Unfit> {
    match judge(runs_with, said)? {
        Found::Behind(revision) => Err(Unfit::Behind(revision)),
        Found::Fits | Found::Nothing => Ok(()),
    }
}

impl Plan {
    /// Whether what is wrong with the database is told, and keeps nobody from going live: what was
    /// live is served. A rollback is not kept by a database that does not answer.
    fn bears(&self, unfit: &Unfit) -> bool {
        match self.cause {
            Cause::Start | Cause::Crash => true,
            Cause::Rollback => matches!(unfit, Unfit::Unknown(_)),
            _ => false,
        }
    }
}

impl<M> Deploy<'_, M> {
    /// Asks what was started before its migrations.
    ///
    /// # Errors
    /// Why it cannot become live.
    pub(super) async fn db_before(&self, started: &Started) -> Result<Found, String> {
        let Some(runs_with) = self.plan.artifact.db else {
            return Ok(Found::Nothing);
        };
        let id = started.generation().spec().id;
        self.compare_with_live(runs_with, id);
        let said = started.db_revision(self.plan.within(WITHIN)).await;
        judge(runs_with, said)
            .or_else(|unfit| self.unfit(&unfit, runs_with, id).map(|()| Found::Nothing))
    }

    /// Asks it again after them.
    ///
    /// # Errors
    /// Why it cannot become live.
    pub(super) async fn db_after(&self, started: &Started, found: Found) -> Result<(), String> {
        let Some(runs_with) = self.plan.artifact.db else {
            return Ok(());
        };
        let judged = match found {
            // The migrations of something new may have gone further than it says itself.
            _ if self.plan.brings_new() => judge_again(
                runs_with,
                started.db_revision(self.plan.within(WITHIN)).await,
            ),
            Found::Behind(revision) => Err(Unfit::Behind(revision)),
            Found::Fits | Found::Nothing => Ok(()),
        };
        let id = started.generation().spec().id;
        judged.or_else(|unfit| self.unfit(&unfit, runs_with, id))
    }

    /// Asks what is up under `label` before it becomes live.
    ///
    /// # Errors
    /// Why it cannot.
    pub(super) async fn db_of_labelled(
        &self,
        label: &Label,
        id: GenerationId,
    ) -> Result<(), String> {
        let Some(runs_with) = self.plan.artifact.db else {
            return Ok(());
        };
        let asked = self.app.running(|running| {
            let mut labelled = running.serving.labelled().iter();
            let one = labelled.find(|one| one.label == *label && one.id() == id)?;
            Some(one.live.active.ask_db_revision())
        });
        let Some(asked) = asked else {
            return Ok(()); // that it is gone is told by who takes it
        };
        let said = answered(asked, self.plan.within(WITHIN)).await;
        judge_again(runs_with, said).or_else(|unfit| self.unfit(&unfit, runs_with, id))
    }

    /// Tells what is wrong where that is borne.
    ///
    /// # Errors
    /// The sentence, where it is not.
    fn unfit(&self, unfit: &Unfit, runs_with: DbRevisions, id: GenerationId) -> Result<(), String> {
        let sentence = unfit.sentence(&self.plan.artifact.manifest.version, runs_with);
        if !self.plan.bears(unfit) {
            return Err(sentence);
        }
        let message = format!(
            "{} {} serves all the same: {sentence}",
            self.app.name, self.plan.artifact.manifest.version
        );
        self.warn(id, message);
        Ok(())
    }

    /// Tells when there is no revision that the version and the live one both run with: while both
    /// answer one of them meets what it does not know.
    fn compare_with_live(&self, runs_with: DbRevisions, id: GenerationId) {
        let live = self.app.running(|running| {
            let live = &running.serving.primary()?.artifact;
            Some((live.manifest.version.clone(), live.db?))
        });
        if let Some((version, live)) = live
            && self.plan.brings_new()
            && !live.overlaps(runs_with)
        {
            let message = format!(
                "{} {} runs with {runs_with} of its database, and {version}, which is live, with {live}: while both answer one of them meets a revision that it does not know, and there is no way back",
                self.app.name, self.plan.artifact.manifest.version
            );
            self.warn(id, message);
        }
    }

    fn warn(&self, id: GenerationId, message: String) {
        self.rollout
            .registry
            .record_event(EventKind::Warning, self.app, Some(id), message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE_TO_FIVE: DbRevisions = DbRevisions { min: 3, max: 5 };

    #[test]
    fn a_database_that_is_behind_may_be_migrated_and_one_that_is_ahead_may_not() {
        let judge = |revision| judge(THREE_TO_FIVE, Ok(Some(revision)));
        assert_eq!(judge(2), Ok(Found::Behind(2)));
        assert_eq!(judge(3), Ok(Found::Fits));
        assert_eq!(judge(6), Err(Unfit::Ahead(6)));
    }

    #[test]
    fn after_the_migrations_it_is_within_the_range() {
        let judge = |revision| judge_again(THREE_TO_FIVE, Ok(Some(revision)));
        assert_eq!(judge(2), Err(Unfit::Behind(2)));
        assert_eq!(judge(5), Ok(()));
        assert_eq!(judge(6), Err(Unfit::Ahead(6)));
    }

    #[test]
    fn what_is_wrong_is_said_with_both_figures() {
        let sentence = Unfit::Ahead(7).sentence(&"1.2.0", THREE_TO_FIVE);
        assert!(
            sentence.contains("revision 7")
                && sentence.contains("1.2.0 runs with revisions 3 to 5")
        );
    }
}
