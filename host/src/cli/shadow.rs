//! `shadow`: how the answers to copies of requests compare with those that clients were given.

use std::{fmt::Write, io};

use handover_api::ShadowStatus;

use super::{
    args::{Global, OfApp},
    exit::Failure,
    output::{self, Paint},
};
use crate::{human, shown};

/// `handover shadow`
pub(super) async fn shadow(global: &Global, args: OfApp) -> Result<(), Failure> {
    let list = global.client().shadow(args.app.as_ref()).await?;
    output::line(&if global.json {
        // Our own types of strings and numbers: this cannot fail.
        serde_json::to_string(&list).unwrap_or_default()
    } else {
        let colour = output::colour(&io::stdout(), global);
        match list.shadows.as_slice() {
            [] => "No version gets copies of requests: `handover deploy FILE.so --shadow 10%` begins it."
                .to_owned(),
            shadows => {
                let texts: Vec<_> = shadows.iter().map(|shadow| text(shadow, colour)).collect();
                texts.join("\n")
            }
        }
    });
    Ok(())
}

fn text(shadow: &ShadowStatus, colour: bool) -> String {
    let mut text = format!(
        "{} {} (generation {}) gets copies of {}% of the reading requests\n  same: {}, different: {}, of which {} without an answer; not copied, as many were under way: {}",
        shadow.app,
        shadow.version,
        shadow.generation,
        shadow.percent,
        shadow.same,
        shadow.differ,
        shadow.failed,
        shadow.skipped,
    );
    for found in &shadow.differences {
        let at = output::paint(colour, Paint::Dim, &human::timestamp(found.at_ms));
        // Writing to a string cannot fail.
        let _ = write!(text, "\n{at} {}", shown::harmless(&found.request));
        for difference in &found.differences {
            let _ = write!(text, "\n    {}", shown::harmless(difference));
        }
    }
    text
}
