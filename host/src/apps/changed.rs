//! What generations changed for the whole process, told as events.

use super::{Apps, events::Kind};
use crate::ledger::{self, Changed, Note};

/// Tells what was changed since the last look.
pub(super) fn tell_changed(apps: &Apps) {
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
                    .tell(Kind::Warning, Some(&app), Some(generation), message);
                continue;
            }
            Changed::Environment => (
                Kind::Environment,
                "the environment of the process, which all apps share",
            ),
            Changed::WorkingDirectory => (
                Kind::WorkingDirectory,
                "the working directory of the process, which all apps share",
            ),
            Changed::FileMask => (
                Kind::FileMask,
                "the mask for the modes of new files (umask), which all apps share",
            ),
        };
        let message = format!("generation {generation} changed {what}: it {how}");
        apps.0
            .events
            .tell(kind, Some(&app), Some(generation), message);
    }
}
