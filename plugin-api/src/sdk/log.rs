//! Events, log records and panics on their way to the host's log.
//!
//! Every plugin has its own copy of `tracing`, `log` and std, so each copy is given a forwarder.
//! All of it is static: it must not leave anything behind when the library is unloaded.

use std::{
    fmt::{self, Write},
    panic::PanicHookInfo,
    sync::OnceLock,
};

use abi_stable::std_types::RStr;
use tracing::{
    Dispatch, Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
    subscriber::Interest,
};

use crate::abi::{
    export::HostHandle,
    host::{self, Pair},
    lent::Size,
};

static HOST: OnceLock<HostHandle> = OnceLock::new();
static FORWARDER: Forwarder = Forwarder;

/// Sends everything that this copy of the libraries logs to `host` from now on.
pub(super) fn forward_to(host: HostHandle) {
    if HOST.set(host).is_err() {
        return;
    }
    std::panic::set_hook(Box::new(tell_panic));
    // Both fail only when the plugin's own constructor code came first, whose choice stands.
    let _ = tracing::dispatcher::set_global_default(Dispatch::new(Forwarder));
    if log::set_logger(&FORWARDER).is_ok() {
        log::set_max_level(match max_level() {
            LevelFilter::TRACE => log::LevelFilter::Trace,
            LevelFilter::DEBUG => log::LevelFilter::Debug,
            LevelFilter::INFO => log::LevelFilter::Info,
            LevelFilter::WARN => log::LevelFilter::Warn,
            LevelFilter::ERROR => log::LevelFilter::Error,
            _ => log::LevelFilter::Off,
        });
    }
}

/// Tells the host's log of an error of the SDK itself.
pub(super) fn error(message: &str) {
    send(1, module_path!(), message, &[], None);
}

fn tell_panic(info: &PanicHookInfo<'_>) {
    let Some(host) = HOST.get() else { return };
    let message = crate::abi::export::panic_message(info.payload());
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let text = match info.location() {
        Some(place) => format!("{message} ({place}, thread {thread})"),
        None => format!("{message} (thread {thread})"),
    };
    host.panicked(&text);
}

/// Sends one event; `place` is its file and line.
fn send(level: u8, target: &str, message: &str, fields: &[Pair<'_>], place: Option<(&str, u32)>) {
    if let Some(host) = HOST.get() {
        let (file, line) = place.unwrap_or_default();
        host.log(&host::Event {
            size: Size::of::<host::Event<'_>>(),
            level,
            line,
            target: target.into(),
            message: message.into(),
            fields: fields.into(),
            file: file.into(),
        });
    }
}

fn enabled(level: u8) -> bool {
    HOST.get().is_some_and(|host| host.log_enabled(level))
}

fn number(level: Level) -> u8 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

fn max_level() -> LevelFilter {
    [
        LevelFilter::TRACE,
        LevelFilter::DEBUG,
        LevelFilter::INFO,
        LevelFilter::WARN,
        LevelFilter::ERROR,
    ]
    .into_iter()
    .zip([5, 4, 3, 2, 1])
    .find(|(_, level)| enabled(*level))
    .map_or(LevelFilter::OFF, |(filter, _)| filter)
}

struct Forwarder;

impl Subscriber for Forwarder {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && enabled(number(*metadata.level()))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(max_level())
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        // Spans are not enabled, so none is made; the number only has to be one.
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let fields: Vec<Pair<'_>> = text
            .fields
            .iter()
            .map(|(name, value)| Pair {
                name: RStr::from_str(name),
                value: value.as_str().into(),
            })
            .collect();
        send(
            number(*event.metadata().level()),
            event.metadata().target(),
            &text.message,
            &fields,
            event.metadata().file().zip(event.metadata().line()),
        );
    }
}

#[derive(Default)]
struct Text {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Text {
    fn put(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        if field.name() == "message" {
            // Writing to a String does not fail.
            let _ = self.message.write_fmt(value);
        } else {
            self.fields.push((field.name(), value.to_string()));
        }
    }
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format_args!("{value:?}"));
    }
}

impl log::Log for Forwarder {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        enabled(metadata.level() as u8)
    }

    fn log(&self, record: &log::Record<'_>) {
        if enabled(record.level() as u8) {
            send(
                record.level() as u8,
                record.target(),
                &record.args().to_string(),
                &[],
                record.file().zip(record.line()),
            );
        }
    }

    fn flush(&self) {}
}
