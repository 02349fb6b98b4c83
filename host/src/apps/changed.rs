//! What generations changed for the whole process, told as events.

use super::{Apps, events::Kind};
use crate::ledger::{self, Changed, Note};

/// Tells what was changed since the last look.
pub(super) fn record_changes(apps: &Apps) {
    for Note {
        app,
        generation,
        changed,
        how,
    } in ledger::take_notes()
    {
        let (kind, what) = match changed {
            Changed::Exit => {
                let message = format!(
                    "generation {generation} {how} when it was told to end, as a handler for SIGTERM or Ctrl-C does that ends its program: the \
                     host goes on, that thread waits for ever, and its library stays mapped; have the handler return instead"
                );
                apps.0
                    .events
                    .record(Kind::Warning, Some(&app), Some(generation), message);
                continue;
            }
            Changed::WorkingDirectory => {
                let message = format!(
                    "generation {generation} {how}, which is refused (EPERM): the working directory is that of the host and of all apps; use whole paths"
                );
                apps.0.events.record(
                    Kind::WorkingDirectory,
                    Some(&app),
                    Some(generation),
                    message,
                );
                continue;
            }
            Changed::RelativePath => {
                let message = format!(
                    "generation {generation} {how}: a relative path means the folder that the host was started in; use whole paths"
                );
                apps.0.events.record(
                    Kind::WorkingDirectory,
                    Some(&app),
                    Some(generation),
                    message,
                );
                continue;
            }
            Changed::FileMask => (
                Kind::FileMask,
                "the mask for the modes of new files (umask), which all apps share",
            ),
        };
        let message = format!("generation {generation} changed {what}: it {how}");
        apps.0
            .events
            .record(kind, Some(&app), Some(generation), message);
    }
}
