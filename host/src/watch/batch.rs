//! What arrived together for one app, from bytes to answer.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use handover_api::query;
use tokio::{sync::Semaphore, task};

use super::{
    DropOutcome, DropTarget, DroppedArtifact,
    answer::{self, Verdict},
    scan::{Key, Stamp},
    sidecar,
};
use crate::{
    artifact::{Artifact, Sha256, Signature, Store, StoreError, inspect},
    background, shown,
    writers::{Writers, writers},
};

/// A file that is worth hashing.
pub(super) struct Candidate {
    pub(super) path: PathBuf,
    /// As it was when it was seen.
    pub(super) stamp: Stamp,
    /// It was changed so shortly before that a later change may leave the same stamp.
    pub(super) racy: bool,
    pub(super) modified: SystemTime,
    /// Whether its folder names the app, not its manifest.
    pub(super) by_folder: bool,
    pub(super) again: bool,
    /// It could not be tried before, which was said.
    pub(super) retried: bool,
    /// What the scanner remembers of this path.
    pub(super) known: Option<(Sha256, Verdict)>,
    /// The stamp has not changed since that was learnt.
    pub(super) touched_only: bool,
    /// The file was written or replaced since that was learnt, not only its attributes changed.
    pub(super) rewritten: bool,
    /// Nobody has touched it since the host was started.
    pub(super) lay_there: bool,
    /// When an event told of it, or a scan found it.
    pub(super) noticed: Instant,
}

/// What became of a candidate.
pub(super) struct Outcome {
    pub(super) path: PathBuf,
    /// The state of the file that this is about.
    pub(super) stamp: Stamp,
    pub(super) racy: bool,
    pub(super) end: End,
}

pub(super) enum End {
    /// Its bytes have an answer.
    Answered(Sha256, Verdict),
    /// It could not be tried: the next periodic scan does.
    Later,
    /// It changed under our hands: a scan decides anew.
    Changed,
}

/// How a batch ended.
pub(super) struct Report {
    pub(super) key: Key,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) dropped_count: usize,
}

/// A file with new bytes.
struct Fresh {
    candidate: Candidate,
    artifact: Artifact,
    stored: bool,
    /// What lies beside it.
    asked: query::Deploy,
    /// From the event to the begin of reading.
    noticed_in: Duration,
    /// How long reading and storing took.
    stored_in: Duration,
}

/// What is known after reading.
#[derive(Default)]
struct Intake {
    outcomes: Vec<Outcome>,
    refused: Vec<(PathBuf, String)>,
    best: Option<Fresh>,
    /// The same bytes under other names.
    twins: Vec<Candidate>,
}

/// Offers the best of `candidates` and answers all of them. `readers` bounds how many batches read
/// files at once.
pub(super) async fn run<T: DropTarget>(
    key: Key,
    candidates: Vec<Candidate>,
    fresh_state: bool,
    store: Store,
    target: Arc<T>,
    readers: Arc<Semaphore>,
) -> Report {
    let unread: Vec<_> = candidates
        .iter()
        .map(|candidate| outcome(candidate, End::Later))
        .collect();
    let permit = readers.acquire().await;
    let reading = {
        let (key, target) = (key.clone(), Arc::clone(&target));
        background::run("read", move || {
            let has = |sha256| key.as_ref().is_some_and(|app| target.has(app, sha256));
            let admits = |path: &Path| target.admits(path);
            take_in(&key, candidates, fresh_state, &store, has, admits)
        })
    };
    let Ok(intake) = reading.await else {
        // The runtime ends, or a bug: what is not answered is tried again.
        return Report {
            key,
            outcomes: unread,
            dropped_count: 0,
        };
    };
    drop(permit);

    let Intake {
        mut outcomes,
        refused,
        best,
        twins,
    } = intake;
    for (path, reason) in refused {
        target.refused(key.as_ref(), &path, &reason);
    }
    let (Some(best), Some(app)) = (best, key.clone()) else {
        return Report {
            key,
            outcomes,
            dropped_count: 0,
        };
    };
    let sha256 = best.artifact.sha256;
    let dropped = DroppedArtifact {
        app,
        path: best.candidate.path.clone(),
        asked: best.asked,
        artifact: best.artifact,
        again: best.candidate.again,
        lay_there: best.candidate.lay_there,
        noticed_in: best.noticed_in,
        stored_in: best.stored_in,
    };
    // On a task of its own, so that a panic is an answer and not the end of this app's queue.
    let answer = match task::spawn(async move { target.deploy_dropped(dropped).await }).await {
        Ok(answer) => answer,
        Err(error) if error.is_panic() => DropOutcome::Failed(
            "the deploy panicked, which is a bug in the host: see its log, then try `handover reload`"
                .to_owned(),
        ),
        Err(_) => DropOutcome::Later, // the runtime ends
    };
    let (verdict, message) = match answer {
        DropOutcome::Deployed(message) => (Some(Verdict::Deployed), message),
        DropOutcome::Failed(message) => (Some(Verdict::Failed), message),
        DropOutcome::Later => (None, String::new()),
    };
    let about: Vec<_> = std::iter::once(best.candidate).chain(twins).collect();
    outcomes.extend(about.iter().map(|candidate| {
        let end = match &verdict {
            Some(verdict) => End::Answered(sha256, verdict.clone()),
            None => End::Later,
        };
        outcome(candidate, end)
    }));
    if let Some(verdict) = verdict {
        let writing = task::spawn_blocking(move || {
            for candidate in about {
                answer::write(&candidate.path, &verdict, &message, sha256);
            }
        });
        let _ = writing.await; // the runtime ends
    }
    Report {
        key,
        outcomes,
        dropped_count: 1,
    }
}

fn outcome(candidate: &Candidate, end: End) -> Outcome {
    Outcome {
        path: candidate.path.clone(),
        stamp: candidate.stamp,
        racy: candidate.racy,
        end,
    }
}

/// Reads all candidates, answers what needs no offer, and stores the one to offer. Blocks.
fn take_in(
    key: &Key,
    candidates: Vec<Candidate>,
    fresh_state: bool,
    store: &Store,
    has: impl Fn(Sha256) -> bool,
    admits: impl Fn(&Path) -> Result<(), String>,
) -> Intake {
    let mut intake = Intake::default();
    let mut fresh = Vec::new();
    let alone = candidates.len() == 1;
    for candidate in candidates {
        let previous = candidate.known.clone().or_else(|| {
            // In an empty store a `.deployed` of an earlier life means nothing.
            answer::read(&candidate.path).filter(|(sha256, verdict)| {
                !(fresh_state && *verdict == Verdict::Deployed && !store.contains(*sha256))
            })
        });
        // One file with new bytes, the usual case, is read once. All others are hashed first and
        // stored only when chosen.
        let surely_new = previous.is_none() || candidate.known.is_some() && !candidate.touched_only;
        let stored = alone && surely_new;
        let (noticed_in, began) = (candidate.noticed.elapsed(), Instant::now());
        let read = undisturbed(&candidate.path, |path| {
            if let Err(reason) = admits(path) {
                refuse(path, reason)
            } else if stored {
                store.add_file(path)
            } else {
                inspect(path).and_then(|artifact| match artifact.acceptable() {
                    Ok(()) => Ok(artifact),
                    Err(reason) => Err(StoreError::Refused {
                        reason,
                        sha256: Some(artifact.sha256),
                        manifest: None,
                    }),
                })
            }
        });
        let Some(read) = read else {
            intake.outcomes.push(outcome(&candidate, End::Changed));
            continue;
        };
        let sha256 = match &read {
            Ok(artifact) => Some(artifact.sha256),
            Err(StoreError::Refused { sha256, .. }) => *sha256,
            Err(StoreError::Io { .. }) => None,
        };
        if let (Some(sha256), Some((before, verdict))) = (sha256, &previous)
            && sha256 == *before
            && !(candidate.again && *verdict != Verdict::Deployed)
            && !(candidate.rewritten && *verdict == Verdict::Deployed && !has(sha256))
        {
            let end = End::Answered(sha256, verdict.clone());
            intake.outcomes.push(outcome(&candidate, end));
            continue;
        }
        match read {
            Ok(artifact) => {
                if !candidate.by_folder && key.as_ref() != Some(&artifact.manifest.app) {
                    intake.outcomes.push(outcome(&candidate, End::Changed));
                    continue;
                }
                fresh.push(Fresh {
                    asked: query::Deploy::default(),
                    candidate,
                    artifact,
                    stored,
                    noticed_in,
                    stored_in: began.elapsed(),
                });
            }
            Err(StoreError::Refused {
                reason,
                sha256: Some(sha256),
                ..
            }) => {
                answer::write(&candidate.path, &Verdict::Failed, &reason, sha256);
                let end = End::Answered(sha256, Verdict::Failed);
                intake.outcomes.push(outcome(&candidate, end));
                intake.refused.push((candidate.path, reason));
            }
            Err(error) => {
                let end = unreadable(&candidate, &error);
                intake.outcomes.push(outcome(&candidate, end));
            }
        }
    }
    choose(fresh, store, &mut intake);
    intake
}

/// What `read` makes of the file at `path` while nobody can write it, as far as that can be had;
/// none when somebody writes it, or it is another file afterwards.
fn undisturbed<T>(path: &Path, read: impl FnOnce(&Path) -> T) -> Option<T> {
    match writers(path) {
        Ok(Writers::Somebody) => None,
        Ok(Writers::Nobody(hold)) => {
            let read = read(path);
            hold.is_of(path).then_some(read)
        }
        // What is wrong with it, `read` says.
        Ok(Writers::Unknown) | Err(_) => Some(read(path)),
    }
}

/// A refusal of the bytes that lie at `path` now.
fn refuse(path: &Path, reason: String) -> Result<Artifact, StoreError> {
    let read = File::open(path).and_then(Sha256::of_reader);
    let (sha256, _) = read.map_err(|source| StoreError::Io {
        path: path.to_owned(),
        source,
    })?;
    Err(StoreError::Refused {
        reason,
        sha256: Some(sha256),
        manifest: None,
    })
}

/// Finds the one to offer, and answers the others.
fn choose(mut fresh: Vec<Fresh>, store: &Store, intake: &mut Intake) {
    fresh.sort_by(|a, b| {
        let version = |f: &Fresh| f.artifact.manifest.version.clone();
        version(a)
            .cmp_precedence(&version(b))
            .then(a.candidate.modified.cmp(&b.candidate.modified))
            .then_with(|| a.candidate.path.cmp(&b.candidate.path))
    });
    let Some(mut best) = fresh.pop() else {
        return;
    };
    if !best.stored {
        let began = Instant::now();
        let added = undisturbed(&best.candidate.path, |path| store.add_file(path));
        best.stored_in += began.elapsed();
        match added {
            Some(Ok(artifact)) if artifact.sha256 == best.artifact.sha256 => {
                best.artifact = artifact;
            }
            // It is not what was compared with the others any more.
            None | Some(Ok(_) | Err(StoreError::Refused { .. })) => {
                for one in fresh.iter().chain([&best]) {
                    intake.outcomes.push(outcome(&one.candidate, End::Changed));
                }
                return;
            }
            Some(Err(error)) => {
                let end = unreadable(&best.candidate, &error);
                intake.outcomes.push(outcome(&best.candidate, end));
                for one in &fresh {
                    intake.outcomes.push(outcome(&one.candidate, End::Later));
                }
                return;
            }
        }
    }
    for one in fresh {
        if one.artifact.sha256 == best.artifact.sha256 {
            answer::clear(&one.candidate.path);
            intake.twins.push(one.candidate);
            continue;
        }
        let (verdict, text) = Verdict::superseded(
            &file_name(&best.candidate.path),
            &best.artifact.manifest.version,
        );
        answer::write(&one.candidate.path, &verdict, &text, one.artifact.sha256);
        let end = End::Answered(one.artifact.sha256, verdict);
        intake.outcomes.push(outcome(&one.candidate, end));
    }
    let path = &best.candidate.path;
    match sidecar::read(path) {
        Ok(asked) => best.asked = asked,
        Err(reason) => {
            let sha256 = best.artifact.sha256;
            answer::write(path, &Verdict::Failed, &reason, sha256);
            let end = End::Answered(sha256, Verdict::Failed);
            intake.outcomes.push(outcome(&best.candidate, end));
            intake.refused.push((best.candidate.path, reason));
            return;
        }
    }
    answer::clear(path);
    let signature = Signature::beside(&best.candidate.path);
    // One that is still being written is read again when it has changed.
    best.artifact.signature = Signature::read(&signature).unwrap_or_else(|error| {
        tracing::warn!(file = %signature.display(), %error, "cannot read a signature");
        None
    });
    intake.best = Some(best);
}

fn file_name(path: &Path) -> String {
    shown::path(Path::new(path.file_name().unwrap_or_default()))
}

/// Says once that a file cannot be taken now.
fn unreadable(candidate: &Candidate, error: &StoreError) -> End {
    if !candidate.path.exists() {
        return End::Changed;
    }
    if !candidate.retried {
        tracing::warn!(file = %candidate.path.display(), %error, "cannot take a file from the drop folder: it is tried again at each scan");
    }
    End::Later
}
