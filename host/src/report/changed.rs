//! What generations changed for the whole process, told as events.

use handover_api::EventKind;

use crate::{
    apps::registry::Registry,
    ledger::{self, Changed, Note},
};

/// Tells what was changed since the last look.
pub(crate) fn record_changes(registry: &Registry) {
    for Note {
        app,
        generation,
        changed,
        how,
    } in ledger::take_notes()
    {
        let (kind, what) = match changed {
            Changed::Environment => (
                EventKind::Environment,
                "the environment of the process, which all apps share",
            ),
            Changed::WorkingDirectory => (
                EventKind::WorkingDirectory,
                "the working directory of the process, which all apps share",
            ),
            Changed::FileMask => (
                EventKind::FileMask,
                "the mask for the modes of new files (umask), which all apps share",
            ),
        };
        let message = format!("generation {generation} changed {what}: it {how}");
        registry
            .events()
            .record(kind, Some(&app), Some(generation), message);
    }
}
