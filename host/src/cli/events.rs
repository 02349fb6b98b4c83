//! `events`: what happened, and with `-f` what happens.

use std::io;

use handover_api::{ClientError, Event, EventKind};

use super::{
    args::{self, Global},
    exit::Failure,
    output::{self, Paint, paint},
};
use crate::{human, shown::harmless};

/// `handover events`
pub(super) async fn events(global: &Global, args: args::Events) -> Result<(), Failure> {
    let colour = output::colour(&io::stdout(), global);
    let mut lines = global.client().events(args.follow).await?;
    let over = || Failure::new("the host ended");
    loop {
        match lines.next().await {
            Ok(Some(line)) => {
                let shown = if global.json {
                    line.text
                } else {
                    text(&line.value, colour)
                };
                if !output::is_read(&shown) {
                    return Ok(()); // the reader left, as `head` does
                }
            }
            Ok(None) if args.follow => return Err(over()),
            Ok(None) => return Ok(()),
            Err(ClientError::Broken(_)) => return Err(over()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn text(event: &Event, colour: bool) -> String {
    let kind = match event.kind {
        EventKind::Active => Paint::Green,
        EventKind::Rejected
        | EventKind::Failed
        | EventKind::Unhealthy
        | EventKind::Retained
        | EventKind::Panic
        | EventKind::Missed => Paint::Red,
        _ => Paint::Yellow,
    };
    format!(
        "{} {}{} {}",
        paint(colour, Paint::Dim, &human::timestamp(event.at_ms)),
        paint(colour, kind, event.kind.as_str()),
        " ".repeat(9_usize.saturating_sub(event.kind.as_str().len())),
        harmless(&event.message)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let event = Event {
            seq: 1,
            at_ms: 1_790_000_000_000,
            kind: EventKind::Active,
            app: None,
            generation: None,
            message: "shop 1.1.0 is live as generation 7\n2026 \x1b[31m".to_owned(),
            leaked_bytes: None,
            leaked_descriptors: None,
        };
        assert_eq!(
            text(&event, false),
            "2026-09-21T14:13:20Z active    shop 1.1.0 is live as generation 7\n    2026 \\u{1b}[31m"
        );
    }
}
