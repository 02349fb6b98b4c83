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
        let record = |kind, message| {
            registry
                .events()
                .record(kind, Some(&app), Some(generation), message);
        };
        let (kind, what) = match changed {
            Changed::Exit => {
                let message = format!(
                    "generation {generation} {how} when it was told to end, as a handler for SIGTERM or Ctrl-C does that ends its program: the \
                     host goes on, that thread waits for ever, and its library stays mapped; have the handler return instead"
                );
                record(EventKind::Warning, message);
                continue;
            }
            Changed::WorkingDirectory => {
                let message = format!(
                    "generation {generation} {how}, which is refused (EPERM): the working directory is that of the host and of all apps; use whole paths"
                );
                record(EventKind::WorkingDirectory, message);
                continue;
            }
            Changed::RelativePath => {
                let message = format!(
                    "generation {generation} {how}: a relative path means the folder that the host was started in; use whole paths"
                );
                record(EventKind::WorkingDirectory, message);
                continue;
            }
            Changed::FileMask => (
                EventKind::FileMask,
                "the mask for the modes of new files (umask), which all apps share",
            ),
        };
        let message = format!("generation {generation} changed {what}: it {how}");
        record(kind, message);
    }
}
