//! Events, log records and panics on their way to the host's log.
//!
//! Every plugin has its own copy of `tracing`, `log` and std, so each copy is given a forwarder.
//! What of it is static leaves nothing behind when the library is unloaded.
//!
//! An app may have a subscriber or a logger of its own, which it sets in its constructor as a
//! program does in `main`. So the forwarder is set for good only after that, where the app has left
//! none. While the constructor runs, it is there on its thread.

use std::{
    fmt::{self, Write},
    future::{Future, poll_fn},
    panic::PanicHookInfo,
    pin::pin,
    sync::OnceLock,
};

use abi_stable::std_types::RStr;
use tracing::{
    Dispatch, Event, Level, Metadata, Subscriber,
    dispatcher::{self, DefaultGuard},
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
    subscriber::{Interest, NoSubscriber},
};
use tracing_subscriber::{
    Layer, Registry,
    layer::{Context, Filter, SubscriberExt},
    registry::LookupSpan,
};

use crate::abi::{
    export::HostHandle,
    host::{self, Pair, Span},
    lent::Size,
};

static HOST: OnceLock<HostHandle> = OnceLock::new();

/// Sends panics to `host` from now on, and events and log records of those who come by the
/// functions below.
pub(super) fn forward_to(host: HostHandle) {
    if HOST.set(host).is_ok() {
        std::panic::set_hook(Box::new(tell_panic));
    }
}

/// Runs the constructor, whose events on this thread go to the host for as long as it has set no
/// subscriber of its own.
pub(super) async fn constructing<F: Future>(constructor: F) -> F::Output {
    let dispatch = Dispatch::new(forwarder());
    let mut constructor = pin!(constructor);
    poll_fn(|cx| {
        let _forwarding = forwarding(&dispatch);
        constructor.as_mut().poll(cx)
    })
    .await
}

fn forwarding(dispatch: &Dispatch) -> Option<DefaultGuard> {
    let is_unset = dispatcher::get_default(Dispatch::is::<NoSubscriber>);
    is_unset.then(|| dispatcher::set_default(dispatch))
}

/// Has the host get all events and log records, unless the constructor has set somebody else to get
/// them.
pub(super) fn settle() {
    // Each fails where the app's own choice stands.
    let _ = dispatcher::set_global_default(Dispatch::new(forwarder()));
    if log::set_logger(&LOGGER).is_ok() {
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

/// Whether this code is part of a plugin that was started.
pub(super) fn is_hosted() -> bool {
    HOST.get().is_some()
}

/// Tells the host's log of what the author may want to know.
pub(super) fn warning(message: &str) {
    send(2, module_path!(), message, &[], &[], None);
}

/// Tells the host's log of an error of the SDK itself.
pub(super) fn error(message: &str) {
    send(1, module_path!(), message, &[], &[], None);
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
fn send(
    level: u8,
    target: &str,
    message: &str,
    fields: &[Pair<'_>],
    spans: &[Span<'_>],
    place: Option<(&str, u32)>,
) {
    if let Some(host) = HOST.get() {
        let (file, line) = place.unwrap_or_default();
        let event = host::Event {
            size: Size::of::<host::Event<'_>>(),
            level,
            line,
            target: target.into(),
            message: message.into(),
            fields: fields.into(),
            file: file.into(),
        };
        event.lend(spans, |event| host.log(event));
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

/// The subscriber of an app that has none.
fn forwarder() -> impl Subscriber + Send + Sync {
    Registry::default().with(layer())
}

/// Forwards events to the host's log, with the names and fields of the spans that they are in: for
/// an app with a subscriber of its own, as one layer of it. What the operator's filter does not
/// want costs nothing. Without a host, as in a program, it forwards nothing.
///
/// ```ignore
/// tracing_subscriber::registry()
///     .with(tracing_subscriber::fmt::layer())
///     .with(handover_plugin::layer())
///     .init();
/// ```
pub fn layer<S>() -> impl Layer<S> + Send + Sync
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    Forwarder.with_filter(Wanted)
}

/// What the operator wants to hear.
struct Wanted;

impl<S> Filter<S> for Wanted {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        enabled(number(*metadata.level()))
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if enabled(number(*metadata.level())) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(max_level())
    }
}

struct Forwarder;

impl<S> Layer<S> for Forwarder
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, cx: Context<'_, S>) {
        if let Some(span) = cx.span(id) {
            let mut text = Text::default();
            attributes.record(&mut text);
            span.extensions_mut().insert(text);
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, cx: Context<'_, S>) {
        if let Some(span) = cx.span(id)
            && let Some(text) = span.extensions_mut().get_mut::<Text>()
        {
            values.record(text);
        }
    }

    fn on_event(&self, event: &Event<'_>, cx: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        // The outermost first.
        let around: Vec<_> = cx
            .event_scope(event)
            .into_iter()
            .flat_map(|scope| scope.from_root())
            .map(|span| {
                let fields = span
                    .extensions()
                    .get::<Text>()
                    .map(|text| text.fields.clone());
                (span.metadata().name(), fields.unwrap_or_default())
            })
            .collect();
        let lists: Vec<_> = around.iter().map(|(_, fields)| pairs(fields)).collect();
        let spans: Vec<_> = around
            .iter()
            .zip(&lists)
            .map(|((name, _), fields)| Span {
                name: RStr::from_str(name),
                fields: fields.as_slice().into(),
            })
            .collect();
        let metadata = event.metadata();
        send(
            number(*metadata.level()),
            metadata.target(),
            &text.message,
            &pairs(&text.fields),
            &spans,
            metadata.file().zip(metadata.line()),
        );
    }
}

/// The message and the fields of an event or a span.
#[derive(Default)]
struct Text {
    message: String,
    fields: Fields,
}

type Fields = Vec<(&'static str, String)>;

fn pairs(fields: &Fields) -> Vec<Pair<'_>> {
    fields
        .iter()
        .map(|(name, value)| Pair {
            name: RStr::from_str(name),
            value: value.as_str().into(),
        })
        .collect()
}

impl Text {
    fn put(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        if field.name() == "message" {
            // Writing to a String does not fail.
            let _ = self.message.write_fmt(value);
        } else {
            let value = value.to_string();
            match self
                .fields
                .iter_mut()
                .find(|(name, _)| *name == field.name())
            {
                // A span's field that is recorded later, or anew.
                Some((_, recorded)) => *recorded = value,
                None => self.fields.push((field.name(), value)),
            }
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

static LOGGER: Logger = Logger;

struct Logger;

impl log::Log for Logger {
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
                &[],
                record.file().zip(record.line()),
            );
        }
    }

    fn flush(&self) {}
}
