//! How generations end: unloaded, or retained and tried again until they can be unloaded.

use std::{sync::Arc, time::Duration};

use handover_api::{EventKind, GenerationId};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Rollout;
use crate::{
    apps::app::App,
    generation::{Ended, Retained},
    report::leaks,
};

/// How often a library that stays mapped is looked at when nothing is known to have changed.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// A generation whose library stays mapped.
type RetainedLibrary = (Arc<App>, GenerationId, Box<Retained>);

/// The libraries that stay mapped. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct RetainedLibraries(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    libraries: Mutex<Vec<RetainedLibrary>>,
    /// Something changed that may have freed one.
    changed: Notify,
}

impl RetainedLibraries {
    /// Has the libraries tried again soon, since something changed that may have freed one.
    pub(crate) fn stir(&self) {
        self.0.changed.notify_one();
    }
}

impl Rollout {
    /// Records how a generation of `app` ended, and keeps its library where that stays mapped.
    pub(crate) fn retire(&self, app: &Arc<App>, id: GenerationId, ended: Ended) {
        match ended {
            Ended::Unloaded(left) => {
                app.unloaded(id);
                let lost = self.leaks.unloaded(&app.name, id, &left);
                self.registry.events().record_unloaded(
                    &app.name,
                    id,
                    &left,
                    format!(
                        "generation {id} is unloaded{}",
                        leaks::sentence(&left, lost)
                    ),
                );
                self.retained.stir();
            }
            Ended::Retained(retained) => {
                let held = retained.held().clone();
                self.leaks.retained(&app.name, id, retained.resources());
                if app.retained(id, &held) {
                    self.registry.record_event(
                        EventKind::Retained,
                        app,
                        Some(id),
                        format!("generation {id} stays mapped: {held}"),
                    );
                }
                let mut libraries = self.retained.0.libraries.lock();
                libraries.push((Arc::clone(app), id, retained));
            }
        }
        let budget = &self.registry.config().server.leak_budget;
        self.leaks.record_overdrawn(budget, self.registry.events());
    }

    /// Tries to unload libraries that stay mapped, again and again.
    pub(crate) async fn retry_retained(self) {
        loop {
            // What cannot have changed is only looked at.
            let changed = tokio::time::timeout(RETRY_EVERY, self.retained.0.changed.notified());
            let changed = changed.await.is_ok();
            let libraries = std::mem::take(&mut *self.retained.0.libraries.lock());
            for (app, id, retained) in libraries {
                let ended = retained.retry(changed).await;
                if matches!(ended, Ended::Unloaded(_)) {
                    self.journal.leaves(&app.name, id).await;
                }
                self.retire(&app, id, ended);
            }
        }
    }
}
