//! Panics that were caught in generations, told as events.

use std::collections::HashMap;

use handover_api::{AppName, EventKind, GenerationId};

use crate::{apps::registry::Registry, human};

/// Records panics that were caught since the last look.
pub(crate) fn record_panics(
    registry: &Registry,
    known: &mut HashMap<(AppName, GenerationId), u64>,
) {
    let mut seen = HashMap::new();
    for app in registry.all() {
        for (generation, _) in app.running(|running| running.generations()) {
            let (id, panics) = (generation.spec().id, generation.counts().panics);
            let key = (app.name.clone(), id);
            let more = panics.saturating_sub(known.get(&key).copied().unwrap_or(0));
            if more > 0 {
                let message = format!(
                    "{} in generation {id} ({}), {panics} so far",
                    human::pluralize(more, "more panic"),
                    generation.spec().version
                );
                registry.record_event(EventKind::Panic, &app, Some(id), message);
            }
            seen.insert(key, panics);
        }
    }
    *known = seen;
}
