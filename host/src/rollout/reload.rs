//! `handover reload` and SIGHUP: the drop folders are scanned again, with what failed before, and
//! what is staged goes live.
//!
//! A reload is the sum of the operations it causes: it passes their lines on and ends when they
//! have ended.

use std::sync::Arc;

use handover_api::{AppName, Cause, OperationResult, OperationStatus, Outcome, Progress, Wait};
use parking_lot::Mutex;
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    apps::app::App,
    operations::{
        operation::{self, Operation, ProgressSender, Wanted, no_app},
        queue::{OperationLock, Place},
    },
    rollout::{
        Rollout,
        deploy::{self, Asked, Entrance},
    },
    watch::WatcherHandle,
};

/// The reloads under way: whoever answers an offer that a reload asked for tells them.
#[derive(Debug, Default)]
pub(crate) struct Reloads {
    listeners: Mutex<Vec<Listener>>,
    /// Held while a reload of all apps enters their queues.
    queueing: Mutex<()>,
}

/// Why a reload that waited does not wait any more.
const LEFT: &str = "whoever asked for it left while it waited for its turn";

#[derive(Debug)]
struct Listener {
    /// One app, or all.
    app: Option<AppName>,
    tell: mpsc::UnboundedSender<Caused>,
}

/// What a reload caused.
#[derive(Clone, Debug)]
pub(crate) enum Caused {
    /// An operation, by its id.
    Operation(String),
    /// An answer without one.
    Said(OperationResult),
}

impl Reloads {
    /// Tells the reloads of `app` what they caused.
    pub(crate) fn notify(&self, app: &AppName, caused: &Caused) {
        self.listeners.lock().retain(|listener| {
            // Those of other apps stay; those that have ended go.
            listener.app.as_ref().is_some_and(|only| only != app)
                || listener.tell.send(caused.clone()).is_ok()
        });
    }

    fn listen(&self, app: Option<AppName>) -> mpsc::UnboundedReceiver<Caused> {
        let (tell, caused) = mpsc::unbounded_channel();
        let mut listeners = self.listeners.lock();
        // Those that nothing was told since they ended.
        listeners.retain(|listener| !listener.tell.is_closed());
        listeners.push(Listener { app, tell });
        caused
    }
}

/// Begins a reload. One of a single app has its turn like a deploy, and lends it to the operations
/// that it causes; one of all apps waits for the turns of all of them where it is to wait, and has
/// none otherwise: where something is under way, its operations conflict.
pub(crate) fn begin_reload(
    rollout: &Rollout,
    app: Option<AppName>,
    wait: Wait,
    watcher: &WatcherHandle,
) -> Operation {
    let progress = rollout.operations.begin_operation();
    let mut operation = progress.listen();
    let chosen = match &app {
        None => Ok(rollout.registry.all()),
        Some(name) => rollout.registry.known_or_fail(name).map(|app| vec![app]),
    };
    let own = || OperationStatus {
        id: progress.id().to_owned(),
        what: "reload".to_owned(),
    };
    let entered = chosen.and_then(|chosen| {
        let locks = match (wait, chosen.as_slice()) {
            (Wait::No, [only]) if app.is_some() => {
                let lock = only.queue.take(own(), false);
                let lock = lock.map_err(|other| Box::new(deploy::conflict(only, &other)))?;
                Entered::Now(vec![lock])
            }
            (Wait::No, _) => Entered::Now(Vec::new()),
            (Wait::WhileWanted | Wait::Detached, all) => {
                // All at once, so that no two reloads wait for each other.
                let _in_turn = rollout.reloads.queueing.lock();
                Entered::Waits(all.iter().map(|app| app.queue.enqueue(own())).collect())
            }
        };
        Ok((chosen, locks))
    });
    match entered {
        Err(result) => progress.finish(*result),
        Ok((chosen, entered)) => {
            let mut wanted = Wanted::ALWAYS;
            if wait == Wait::WhileWanted {
                let (interest, while_wanted) = operation::interest();
                operation.interest = Some(interest);
                wanted = while_wanted;
            }
            let (rollout, watcher) = (rollout.clone(), watcher.clone());
            tokio::spawn(async move {
                let locks = match entered {
                    Entered::Now(locks) => Ok(locks),
                    Entered::Waits(places) => {
                        let mut locks = Vec::new();
                        let all = async {
                            for (app, place) in chosen.iter().zip(places) {
                                let always = Wanted::ALWAYS;
                                locks.push(
                                    deploy::queued(app, place, None, always, &progress).await?,
                                );
                            }
                            Ok(())
                        };
                        let waited = tokio::select! {
                            waited = all => waited,
                            () = wanted.no_more() => Err(LEFT.to_owned()),
                        };
                        waited.map(|()| locks)
                    }
                };
                match locks {
                    Ok(locks) => run(&rollout, &watcher, app, chosen, locks, progress).await,
                    Err(reason) => {
                        let message = format!("nothing was reloaded: {reason}");
                        progress.finish(no_app(Outcome::Failed, message));
                    }
                }
            });
        }
    }
    operation
}

/// How a reload came to its turns.
enum Entered {
    Now(Vec<OperationLock>),
    Waits(Vec<Place>),
}

async fn run(
    rollout: &Rollout,
    watcher: &WatcherHandle,
    app: Option<AppName>,
    chosen: Vec<Arc<App>>,
    locks: Vec<OperationLock>,
    progress: ProgressSender,
) {
    locks.iter().for_each(OperationLock::admit_caused);
    let progress = Arc::new(progress);
    let mut caused = rollout.reloads.listen(app.clone());
    let mut following = JoinSet::new();
    let mut results = Vec::new();

    // The drop folder first: what it stages is what this reload activates.
    {
        let mut scan = std::pin::pin!(watcher.rescan(app, true));
        loop {
            tokio::select! {
                Some(caused) = caused.recv() => match caused {
                    Caused::Operation(id) => {
                        if let Some(operation) = rollout.operations.listen(&id) {
                            following.spawn(follow(operation, Arc::clone(&progress)));
                        }
                    }
                    Caused::Said(result) => results.push(result),
                },
                _ = &mut scan => break,
            }
        }
    }
    // Not heard again; what it still holds was said before the scan ended.
    caused.close();
    while let Some(caused) = caused.recv().await {
        match caused {
            Caused::Operation(id) => {
                if let Some(operation) = rollout.operations.listen(&id) {
                    following.spawn(follow(operation, Arc::clone(&progress)));
                }
            }
            Caused::Said(result) => results.push(result),
        }
    }
    let mut cutovers = Vec::new();
    for app in chosen {
        let Some(staged) = app.saved.read(|record| record.staged.clone()) else {
            continue;
        };
        let (stored, of) = (rollout.clone(), Arc::clone(&app));
        let asked = Asked {
            what: format!("activation of {}", staged.version),
            deadline: None,
            plan: async move { stored.plan_stored(&of, staged, Cause::Reload).await },
        };
        let begun = deploy::begin_deploy_with(rollout, app, asked, Entrance::OfReload);
        cutovers.push(begun.at_cutover);
        following.spawn(follow(begun.operation, Arc::clone(&progress)));
    }
    for cutover in cutovers {
        // An error means that it broke off, which its listeners hear.
        let _ = cutover.await;
    }
    // What drains now is in nobody's way.
    drop(locks);
    while let Some(ended) = following.join_next().await {
        results.extend(ended.ok().flatten());
    }
    progress.finish(sum(results));
}

/// Passes the lines of an operation on, and gives its result.
async fn follow(
    mut operation: Operation,
    progress: Arc<ProgressSender>,
) -> Option<OperationResult> {
    while let Some(line) = operation.lines.recv().await {
        match line {
            Progress::Accepted { .. } => {}
            Progress::Result(result) => return Some(result),
            line
            @ (Progress::Queued { .. } | Progress::Step { .. } | Progress::Draining { .. }) => {
                progress.send(line)
            }
        }
    }
    None
}

/// One result of many: the worst outcome, every sentence that matters.
fn sum(mut results: Vec<OperationResult>) -> OperationResult {
    // What was staged and then went live was not left staged.
    let went_on: Vec<_> = results
        .iter()
        .filter(|result| result.outcome != Outcome::Staged)
        .map(|result| result.app.clone())
        .collect();
    results.retain(|result| result.outcome != Outcome::Staged || !went_on.contains(&result.app));
    if results
        .iter()
        .any(|result| result.outcome != Outcome::Unchanged)
    {
        results.retain(|result| result.outcome != Outcome::Unchanged);
    }
    results.sort_by_key(|result| gravity(result.outcome));
    let Some(mut worst) = results.pop() else {
        return no_app(
            Outcome::Unchanged,
            "nothing to do: nothing is staged, and the drop folder holds nothing new",
        );
    };
    for result in results.into_iter().rev() {
        worst.message = format!("{}; {}", worst.message, result.message);
    }
    worst
}

fn gravity(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Unchanged => 0,
        Outcome::Staged => 1,
        Outcome::Done => 2,
        Outcome::RolledBack => 3,
        Outcome::DeadlinePassed => 4,
        Outcome::Conflict => 5,
        Outcome::Denied => 6,
        Outcome::Unhealthy => 7,
        Outcome::Rejected => 8,
        Outcome::Failed => 9,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    fn of(app: &str, outcome: Outcome) -> OperationResult {
        OperationResult {
            app: Some(app.parse().unwrap()),
            ..no_app(outcome, format!("{app} {outcome:?}"))
        }
    }

    #[test]
    fn the_worst_outcome_is_the_outcome_and_everything_is_said() {
        let sum = sum(vec![
            of("a", Outcome::Done),
            of("b", Outcome::Rejected),
            of("c", Outcome::Unchanged),
        ]);
        assert_eq!(sum.outcome, Outcome::Rejected);
        assert_eq!(sum.message, "b Rejected; a Done");
    }

    #[test]
    fn what_was_staged_and_went_live_counts_as_live() {
        let sum = sum(vec![of("a", Outcome::Staged), of("a", Outcome::Done)]);
        assert_eq!(
            (sum.outcome, sum.message.as_str()),
            (Outcome::Done, "a Done")
        );
    }

    #[test]
    fn nothing_to_do_is_said() {
        assert_eq!(sum(Vec::new()).outcome, Outcome::Unchanged);
        let sum = sum(vec![of("a", Outcome::Unchanged)]);
        assert_eq!(
            (sum.outcome, sum.message.as_str()),
            (Outcome::Unchanged, "a Unchanged")
        );
    }

    #[test]
    fn a_reload_hears_of_its_own_app_only() {
        let reloads = Reloads::default();
        let name = |text: &str| text.parse::<AppName>().unwrap();
        let (mut one, mut all) = (reloads.listen(Some(name("a"))), reloads.listen(None));
        for app in ["b", "a"] {
            reloads.notify(&name(app), &Caused::Operation(app.to_owned()));
        }
        let heard = |ear: &mut mpsc::UnboundedReceiver<Caused>| {
            std::iter::from_fn(|| ear.try_recv().ok()).count()
        };
        assert_eq!((heard(&mut one), heard(&mut all)), (1, 2));
        drop((one, all));
        reloads.notify(&name("a"), &Caused::Operation("late".into()));
        assert!(reloads.listeners.lock().is_empty());
    }
}
