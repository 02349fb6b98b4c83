//! From an event of `tracing` to a line.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tracing::{
    Event, Metadata, Subscriber,
    level_filters::LevelFilter,
    span::{Attributes, Id, Record},
    subscriber::Interest,
};
use tracing_subscriber::filter::Targets;

use super::{
    line::{self, Style},
    recent::Recent,
    writer::Writer,
};

/// Every span has this name: nothing is kept of them.
const SPAN: u64 = 1;

/// Gives each event that passes the filter to the writer, as a line, and to those that are kept. It
/// keeps no spans: the host's
/// lines carry all they say.
#[derive(Debug)]
pub(super) struct LogSubscriber {
    filter: Arc<ArcSwap<Targets>>,
    style: Style,
    writer: Writer,
    recent: Option<Recent>,
}

impl LogSubscriber {
    pub(super) fn new(
        filter: Arc<ArcSwap<Targets>>,
        style: Style,
        writer: Writer,
        recent: Option<Recent>,
    ) -> Self {
        Self {
            filter,
            style,
            writer,
            recent,
        }
    }
}

impl Subscriber for LogSubscriber {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // Records of the `log` crate share one call site, which says nothing of theirs.
        if metadata.target() == "log" {
            return Interest::sometimes();
        }
        if self.enabled(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // What `tracing::enabled!` asks with is neither a span nor an event.
        !metadata.is_span()
            && self
                .filter
                .load()
                .would_enable(metadata.target(), metadata.level())
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let filter = self.filter.load();
        filter
            .iter()
            .map(|(_, level)| level)
            .chain(filter.default_level())
            .max()
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(SPAN)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let line = line::of(event);
        self.writer.write(line.write(self.style));
        if let Some(recent) = &self.recent {
            recent.keep(line);
        }
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}
