//! What was deployed to an app, and which of it a rollback goes back to.

use handover_api::{AppName, Cause, GenerationId, HistoryEntry, Outcome, Served, StepTook};
use semver::Version;
use serde::{Deserialize, Serialize};

use crate::{
    artifact::{Artifact, Sha256},
    human,
    records::{app_record::Head, order::Order},
};

/// The shortest beginning of a SHA-256 that names an artifact.
const SHORTEST: usize = 6;

/// Who asked for a deploy, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attribution {
    /// Who: what the caller says, else the user of its process. None of what nobody asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) by: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    /// What the caller calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
}

/// One deploy that was tried, as it is saved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Milliseconds since 1970, for people: clocks can be set back.
    pub(crate) at_ms: u64,
    /// Its place among the entries of all apps.
    #[serde(default)]
    pub(crate) order: Order,
    /// The generation, if it came to be loaded.
    pub(crate) generation: Option<GenerationId>,
    /// The version its manifest names, if it could be read.
    pub(crate) version: Option<Version>,
    /// Its artifact.
    pub(crate) artifact: Sha256,
    /// What asked for it.
    pub(crate) cause: Cause,
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// Why, when it did not become active.
    pub(crate) reason: Option<String>,
    /// The file of the drop folder that it came from.
    #[serde(default)]
    pub(crate) source: Option<String>,
    /// What preflight warned of, though it was taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) warnings: Vec<String>,
    /// Who asked for it, and why.
    #[serde(flatten)]
    pub(crate) attribution: Attribution,
    /// The commit that it was built from, with `-dirty` where files differed from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) commit: Option<String>,
    /// Its steps, and how long each took.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) steps: Vec<StepTook>,
    /// The generation that it replaced, and what that had done by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replaced: Option<(GenerationId, Served)>,
}

impl Entry {
    /// One that ends now.
    pub(crate) fn new(artifact: Sha256, cause: Cause, outcome: Outcome) -> Self {
        Self {
            at_ms: crate::clock::now_ms(),
            order: Order::next(),
            generation: None,
            version: None,
            artifact,
            cause,
            outcome,
            reason: None,
            source: None,
            warnings: Vec::new(),
            attribution: Attribution::default(),
            commit: None,
            steps: Vec::new(),
            replaced: None,
        }
    }

    /// The same of an artifact whose manifest is known.
    pub(crate) fn of(artifact: &Artifact, cause: Cause, outcome: Outcome) -> Self {
        let build = &artifact.manifest.build;
        let commit = build.commit.as_ref().map(|commit| {
            let says_so = !build.dirty || commit.ends_with("-dirty");
            format!("{commit}{}", if says_so { "" } else { "-dirty" })
        });
        Self {
            version: Some(artifact.manifest.version.clone()),
            commit,
            ..Self::new(artifact.sha256, cause, outcome)
        }
    }

    /// Whether it ever answered requests.
    pub(crate) fn was_active(&self) -> bool {
        match self.outcome {
            Outcome::Done | Outcome::DeadlinePassed | Outcome::RolledBack => true,
            Outcome::Unchanged
            | Outcome::Staged
            | Outcome::Failed
            | Outcome::Rejected
            | Outcome::Unhealthy
            | Outcome::Conflict
            | Outcome::Denied => false,
        }
    }

    /// What the history is sorted by. The time decides among those of an older host only.
    pub(crate) fn place(&self) -> (Order, u64) {
        (self.order, self.at_ms)
    }

    /// The artifact, to be made live again; none where nothing of it could be read, which was never
    /// live.
    pub(crate) fn head(&self) -> Option<Head> {
        Some(Head {
            artifact: self.artifact,
            version: self.version.clone()?,
            source: self.source.clone(),
        })
    }

    /// Returns how it ended, as a sentence.
    pub(crate) fn told(&self) -> String {
        let version = self.version.as_ref().map(|version| format!("{version} "));
        let what = format!("{}({})", version.unwrap_or_default(), self.artifact.short());
        let generation = self.generation.map(|id| format!(" as generation {id}"));
        let reason = self.reason.as_ref().map(|reason| format!(": {reason}"));
        format!(
            "{what} is {}{}{}, {}",
            self.outcome.as_str(),
            generation.unwrap_or_default(),
            reason.unwrap_or_default(),
            human::timestamp(self.at_ms)
        )
    }

    /// As the control socket shows it; `served` is what its generation has done.
    pub(crate) fn shown(&self, app: &AppName, served: Option<Served>) -> HistoryEntry {
        HistoryEntry {
            at_ms: self.at_ms,
            app: app.clone(),
            generation: self.generation,
            version: self.version.clone(),
            artifact: self.artifact.to_string(),
            cause: self.cause,
            outcome: self.outcome,
            reason: self.reason.clone(),
            warnings: self.warnings.clone(),
            by: self.attribution.by.clone(),
            message: self.attribution.message.clone(),
            commit: self.commit.clone(),
            steps: self.steps.clone(),
            served,
        }
    }
}

/// The artifacts that were active, newest first, each once, under the newest generation that it
/// was.
pub(crate) fn once_active(history: &[Entry]) -> Vec<&Entry> {
    let mut found: Vec<&Entry> = Vec::new();
    for entry in history.iter().rev().filter(|e| e.was_active()) {
        if !found.iter().any(|known| known.artifact == entry.artifact) {
            found.push(entry);
        }
    }
    found
}

/// The artifacts that were chosen one after the other, oldest first, as far as nobody has turned
/// away from them: what a rollback or a crash took back is not among them, until it is deployed
/// again. The last one is what was chosen now.
fn lineage(history: &[Entry]) -> Vec<&Entry> {
    let mut chosen: Vec<&Entry> = Vec::new();
    for entry in history.iter().filter(|entry| entry.was_active()) {
        let known = chosen
            .iter()
            .position(|known| known.artifact == entry.artifact);
        let goes_back = matches!(entry.cause, Cause::Rollback | Cause::Crash);
        match known {
            // It takes its own artifact back.
            _ if entry.outcome == Outcome::RolledBack => {
                chosen.retain(|known| known.artifact != entry.artifact);
                continue;
            }
            // A restart chooses nothing.
            _ if entry.cause == Cause::Start => continue,
            Some(at) if goes_back => chosen.truncate(at),
            Some(at) => drop(chosen.remove(at)),
            None => {}
        }
        chosen.push(entry);
    }
    chosen
}

/// What may serve in place of `artifact`, the best first: what was chosen before it, newest first,
/// and all that was if it was not chosen.
pub(crate) fn before(history: &[Entry], artifact: Sha256) -> Vec<&Entry> {
    let mut chosen = lineage(history);
    let at = chosen.iter().position(|entry| entry.artifact == artifact);
    chosen.truncate(at.unwrap_or(chosen.len()));
    chosen.reverse();
    chosen
}

/// What a rollback goes back to: without `to` the artifact that was chosen before the live one,
/// else the newest of that version, or the artifact of that generation.
///
/// # Errors
/// The sentence for a person, naming what there is to choose from.
pub(crate) fn rollback_target<'h>(
    app: &AppName,
    history: &'h [Entry],
    live: Option<Sha256>,
    to: Option<&str>,
) -> Result<&'h Entry, String> {
    let known = once_active(history);
    let Some(to) = to else {
        let target = match live {
            Some(live) => before(history, live).first().copied(),
            None => lineage(history).pop(),
        };
        return target.ok_or_else(|| {
            let nothing = format!("{app} has nothing to go back to");
            if known.iter().any(|entry| Some(entry.artifact) != live) {
                format!(
                    "{nothing}: what else was active was taken back since, and comes again with `--to` only: {}",
                    choices(&known)
                )
            } else {
                format!("{nothing}: no other artifact was ever active")
            }
        });
    };
    let found = if let Ok(number) = to.parse::<u64>() {
        let id = Some(GenerationId(number));
        history
            .iter()
            .rev()
            .find(|e| e.was_active() && e.generation == id)
    } else {
        let text = to.strip_prefix('v').unwrap_or(to);
        let version = text.parse::<Version>().map_err(|_| {
            format!(
                "`{to}` is neither a version nor the number of a generation; {}",
                choices(&known)
            )
        })?;
        known
            .iter()
            .copied()
            .find(|entry| entry.version.as_ref() == Some(&version))
    };
    found.ok_or_else(|| format!("{app} was never live as {to}; {}", choices(&known)))
}

/// Returns the entry of the deploy that its caller calls `key`, unless it changed nothing for a
/// reason that may be gone.
pub(crate) fn of_key<'h>(history: &'h [Entry], key: &str) -> Option<&'h Entry> {
    let counts = |entry: &&Entry| {
        entry.attribution.key.as_deref() == Some(key)
            && !matches!(
                entry.outcome,
                Outcome::Failed | Outcome::Conflict | Outcome::Denied
            )
    };
    history.iter().rev().find(counts)
}

/// Returns the newest entry that `which` names: the number of its generation, its version, or what
/// its SHA-256 begins with.
pub(crate) fn find<'h>(history: &'h [Entry], which: &str) -> Option<&'h Entry> {
    let version = which.strip_prefix('v').unwrap_or(which).parse::<Version>();
    let number = which.parse().ok().map(GenerationId);
    let is_it = |entry: &&Entry| match (number, &version) {
        (Some(number), _) if entry.generation == Some(number) => true,
        (_, Ok(version)) => entry.version.as_ref() == Some(version),
        _ => which.len() >= SHORTEST && entry.artifact.to_string().starts_with(which),
    };
    history.iter().rev().find(is_it)
}

fn choices(known: &[&Entry]) -> String {
    if known.is_empty() {
        return "nothing was ever active, so there is nothing to choose from".to_owned();
    }
    let names: Vec<String> = known
        .iter()
        .filter_map(|entry| {
            let version = entry.version.as_ref()?;
            Some(match entry.generation {
                Some(id) => format!("{version} (generation {id})"),
                None => version.to_string(),
            })
        })
        .collect();
    format!("choose one of {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    fn entry(generation: u64, version: &str, byte: u8, outcome: Outcome) -> Entry {
        Entry {
            at_ms: generation,
            order: Order::default(),
            generation: Some(GenerationId(generation)),
            version: Some(version.parse().unwrap()),
            ..Entry::new(Sha256([byte; 32]), Cause::Deploy, outcome)
        }
    }

    fn app() -> AppName {
        "shop".parse().unwrap()
    }

    fn target(history: &[Entry], live: u8, to: Option<&str>) -> Result<u64, String> {
        rollback_target(&app(), history, Some(Sha256([live; 32])), to)
            .map(|entry| entry.generation.unwrap().0)
    }

    fn caused(cause: Cause, entry: Entry) -> Entry {
        Entry { cause, ..entry }
    }

    #[test]
    fn rollback_goes_to_the_previous_different_artifact_that_was_active() {
        let history = [
            entry(1, "1.0.0", 1, Outcome::Done),
            entry(2, "2.0.0", 2, Outcome::DeadlinePassed),
            entry(3, "3.0.0", 3, Outcome::Rejected),
            entry(4, "4.0.0", 4, Outcome::Done),
            entry(5, "4.0.0", 4, Outcome::Done),
        ];
        assert_eq!(target(&history, 4, None), Ok(2));
    }

    #[test]
    fn what_a_rollback_has_left_comes_back_by_a_deploy_or_by_its_name_only() {
        let mut history = vec![
            entry(1, "1.0.0", 1, Outcome::Done),
            entry(2, "2.0.0", 2, Outcome::Done),
            entry(3, "3.0.0", 3, Outcome::Done),
            caused(Cause::Rollback, entry(4, "2.0.0", 2, Outcome::Done)),
        ];
        assert_eq!(target(&history, 2, None), Ok(1));
        history.push(caused(Cause::Start, entry(5, "2.0.0", 2, Outcome::Done)));
        assert_eq!(target(&history, 2, None), Ok(1), "a restart chose nothing");
        history.push(caused(Cause::Rollback, entry(6, "1.0.0", 1, Outcome::Done)));
        let refused = target(&history, 1, None).unwrap_err();
        assert!(
            refused.contains("nothing to go back to") && refused.contains("3.0.0 (generation 3)"),
            "{refused}"
        );
        assert_eq!(target(&history, 1, Some("3.0.0")), Ok(3));
        history.push(entry(7, "3.0.0", 3, Outcome::Done));
        assert_eq!(target(&history, 3, None), Ok(6));
    }

    #[test]
    fn what_serves_in_place_of_what_was_chosen_goes_back_from_where_it_stands() {
        let history = [
            entry(1, "1.0.0", 1, Outcome::Done),
            entry(2, "2.0.0", 2, Outcome::Done),
            entry(3, "3.0.0", 3, Outcome::Done),
            caused(Cause::Start, entry(4, "2.0.0", 2, Outcome::Done)),
        ];
        assert_eq!(target(&history, 2, None), Ok(1));
    }

    #[test]
    fn rollback_does_not_go_back_to_what_was_rolled_back_unless_told() {
        let history = [
            entry(1, "1.0.0", 1, Outcome::Done),
            entry(2, "2.0.0", 2, Outcome::Done),
            entry(3, "3.0.0", 3, Outcome::Done),
            caused(Cause::Crash, entry(3, "3.0.0", 3, Outcome::RolledBack)),
            caused(Cause::Crash, entry(4, "2.0.0", 2, Outcome::Done)),
        ];
        assert_eq!(target(&history, 2, None), Ok(1));
        assert_eq!(target(&history, 2, Some("3.0.0")), Ok(3));
    }

    #[test]
    fn rollback_finds_versions_and_generations() {
        let history = [
            entry(1, "1.0.0", 1, Outcome::Done),
            entry(2, "1.0.0", 2, Outcome::Done),
            entry(3, "2.0.0", 3, Outcome::Done),
        ];
        assert_eq!(target(&history, 3, Some("1.0.0")), Ok(2));
        assert_eq!(target(&history, 3, Some("v1.0.0")), Ok(2));
        assert_eq!(target(&history, 3, Some("1")), Ok(1));
    }

    #[test]
    fn an_entry_is_found_by_generation_version_or_hash() {
        let history = [
            entry(1, "1.0.0", 0x12, Outcome::Done),
            entry(2, "1.0.0", 0x34, Outcome::Rejected),
            entry(3, "2.0.0", 0x56, Outcome::Done),
        ];
        let number = |which| find(&history, which).map(|entry| entry.generation.unwrap().0);
        assert_eq!(number("1"), Some(1));
        assert_eq!(number("1.0.0"), Some(2));
        assert_eq!(number("v2.0.0"), Some(3));
        assert_eq!(number("121212"), Some(1), "no generation has this number");
        assert_eq!(number("5656565656"), Some(3));
        for none in ["4", "3.0.0", "3434", "zz"] {
            assert_eq!(number(none), None, "{none}");
        }
    }

    #[test]
    fn an_unknown_target_names_the_candidates() {
        let history = [
            entry(1, "1.0.0", 1, Outcome::Done),
            entry(2, "2.0.0", 2, Outcome::Done),
            entry(3, "3.0.0", 3, Outcome::Unhealthy),
        ];
        for to in ["9.9.9", "77", "latest", "3.0.0", "3"] {
            let message = target(&history, 2, Some(to)).unwrap_err();
            assert!(
                message.contains("2.0.0 (generation 2), 1.0.0 (generation 1)"),
                "{message}"
            );
            assert!(!message.contains("(generation 3)"), "{message}");
        }
    }

    #[test]
    fn nothing_to_go_back_to_is_said() {
        let history = [entry(1, "1.0.0", 1, Outcome::Done)];
        assert!(
            target(&history, 1, None)
                .unwrap_err()
                .contains("nothing to go back to")
        );
        assert!(
            target(&[], 1, Some("1.0.0"))
                .unwrap_err()
                .contains("nothing was ever active")
        );
    }
}
