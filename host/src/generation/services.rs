//! What the host offers to the plugin of a generation: its log, its panic counter, its count of
//! spawned work.

use std::{
    collections::HashMap,
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use handover_api::{AppName, GenerationId, LeaseInfo};
use handover_plugin::abi::{
    assets::AssetsService,
    host::{Event, Span, TASK, TASKS_LEFT, WORKER, Work},
    import::HostServices,
    lent::Lent,
    state::StateService,
    work::WorkService,
};
use parking_lot::Mutex;
use tracing::Level;

use super::tenants::{TenantPlace, Tenants};
use crate::{assets, shown, state::Session, work::WorkSession};

/// The longest place of a panic that is kept whole, in bytes.
const PLACE: usize = 200;

/// How many places of panics are told apart.
const PANIC_PLACES: usize = 64;

/// What the host offers to one generation.
#[derive(Debug)]
pub(crate) struct GenerationServices {
    app: AppName,
    generation: GenerationId,
    panics: AtomicU64,
    /// Where they were, and how often there.
    panic_places: Mutex<HashMap<String, u64>>,
    next: AtomicU64,
    tasks_left: AtomicU64,
    /// None once its app was stopped, or never came to be: nothing is in flight there any more,
    /// whatever threads it left.
    work: Mutex<Option<HashMap<u64, Working>>>,
    state: Option<Session>,
    durable: Option<WorkSession>,
    assets: Option<assets::Session>,
    tenants: Arc<Tenants>,
}

/// Work that outlives its request.
#[derive(Clone, Debug)]
pub struct Working {
    /// What it is.
    pub name: String,
    /// Whose it is; may be empty.
    pub tenant: String,
    /// What a deploy does with it.
    pub kind: WorkKind,
    /// When it began.
    pub since: Instant,
    /// Its number in its generation.
    pub number: u64,
    /// That its tenant has it, where tenants move each by itself.
    #[expect(dead_code, reason = "held for its drop")]
    place: Option<Arc<TenantPlace>>,
}

/// What a deploy does with work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkKind {
    /// Waits for it until the drain deadline.
    Task,
    /// Waits for it.
    Job,
    /// Tells it to stop, and waits for it until the drain deadline.
    Worker,
}

impl WorkKind {
    fn of(number: u32) -> Self {
        match number {
            TASK => Self::Task,
            WORKER => Self::Worker,
            // What a later minor has is a job to us, which nobody interrupts.
            _ => Self::Job,
        }
    }

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::Job => "job",
            Self::Worker => "worker",
        }
    }
}

impl GenerationServices {
    /// An offer to this generation, whose app has its state in `state` and its work in `durable`,
    /// and hands over its assets to `assets`.
    pub(crate) fn new(
        app: AppName,
        generation: GenerationId,
        state: Option<Session>,
        durable: Option<WorkSession>,
        assets: Option<assets::Session>,
    ) -> Self {
        Self {
            app,
            generation,
            panics: AtomicU64::new(0),
            panic_places: Mutex::default(),
            next: AtomicU64::new(1),
            tasks_left: AtomicU64::new(0),
            work: Mutex::new(Some(HashMap::new())),
            state,
            durable,
            assets,
            tenants: Arc::default(),
        }
    }

    /// Returns the tenants that have something in flight.
    pub(crate) fn tenants(&self) -> &Arc<Tenants> {
        &self.tenants
    }

    /// No new requests come: nothing new of the app's work is begun there either.
    pub(crate) fn drain(&self) {
        if let Some(durable) = &self.durable {
            durable.drain();
        }
    }

    /// How much spawned work there is, and how many jobs are among it.
    pub(crate) fn work(&self) -> (u64, u64) {
        let work = self.work.lock();
        let Some(work) = &*work else { return (0, 0) };
        (
            work.len() as u64,
            work.values()
                .filter(|work| work.kind == WorkKind::Job)
                .count() as u64,
        )
    }

    /// The spawned work there is, the oldest first.
    pub(crate) fn working(&self) -> Vec<Working> {
        let mut working: Vec<_> = self
            .work
            .lock()
            .iter()
            .flat_map(HashMap::values)
            .cloned()
            .collect();
        working.sort_by_key(|work| work.since);
        working
    }

    /// The leases that it has.
    pub(crate) fn leases(&self) -> Vec<LeaseInfo> {
        self.durable
            .as_ref()
            .map_or_else(Vec::new, WorkSession::leases)
    }

    /// Counts something as in flight as long as the work of that number is cancelled, if it is
    /// there: its end alone would let the generation go while somebody is inside. Returns the
    /// number for [`HostServices::work_ended`].
    pub(crate) fn begin_cancel(&self, number: u64) -> Option<u64> {
        let mut work = self.work.lock();
        let work = work.as_mut().filter(|work| work.contains_key(&number))?;
        let own = self.next.fetch_add(1, Ordering::Relaxed);
        work.insert(
            own,
            Working {
                name: "cancel".to_owned(),
                tenant: String::new(),
                kind: WorkKind::Task,
                since: Instant::now(),
                number: own,
                place: None,
            },
        );
        Some(own)
    }

    /// The end of its app: no work is counted from now on, and nothing of the state is read or
    /// written for it. What its threads log is still told.
    pub(crate) fn end(&self) {
        *self.work.lock() = None;
        if let Some(state) = &self.state {
            state.end();
        }
        if let Some(durable) = &self.durable {
            durable.end();
        }
    }

    /// Waits until the state has no waker of the plugin any more, for `deadline` at the longest;
    /// gives how many are left.
    pub(crate) async fn release_wakers(&self, deadline: Duration) -> u64 {
        let by = Instant::now() + deadline;
        let left = match &self.state {
            Some(state) => state.release_wakers(deadline).await,
            None => 0,
        };
        let left_for = by.saturating_duration_since(Instant::now());
        match &self.durable {
            Some(durable) => left + durable.release_wakers(left_for).await,
            None => left,
        }
    }

    /// Tasks that nobody counted, and that still ran when its app was stopped.
    pub(crate) fn tasks_left(&self) -> u64 {
        self.tasks_left.load(Ordering::Relaxed)
    }

    /// Where it panicked, and how often there, as far as the plugin's hook told of it.
    pub(crate) fn panic_places(&self) -> Vec<(String, u64)> {
        let places = self.panic_places.lock();
        let places = places.iter();
        places
            .map(|(place, count)| (place.clone(), *count))
            .collect()
    }

    /// Panics that the plugin's hook told of.
    pub(crate) fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }
}

/// One log event of a plugin, at a level that is only known now: the level of a tracing event is
/// fixed where it stands.
macro_rules! log_at {
    ($level:expr, $($rest:tt)*) => {
        match $level {
            1 => tracing::error!(target: "plugin", $($rest)*),
            2 => tracing::warn!(target: "plugin", $($rest)*),
            3 => tracing::info!(target: "plugin", $($rest)*),
            4 => tracing::debug!(target: "plugin", $($rest)*),
            _ => tracing::trace!(target: "plugin", $($rest)*),
        }
    };
}

/// The spans that an event is in, as text before it: `request{method=GET uri=/}: `.
fn around(spans: &[Span<'_>]) -> String {
    let mut text = String::new();
    for span in spans {
        text.push_str(span.name.as_str());
        for (at, field) in span.fields.iter().enumerate() {
            // Writing to a String does not fail.
            let _ = write!(
                text,
                "{}{}={}",
                if at == 0 { '{' } else { ' ' },
                field.name,
                field.value
            );
        }
        text.push_str(if span.fields.is_empty() { ": " } else { "}: " });
    }
    text
}

/// Where a panic was, of what a plugin's hook says of it: `MESSAGE (PLACE, thread NAME)`.
fn place_of(message: &str) -> &str {
    let place = message
        .rsplit_once(", thread ")
        .and_then(|(before, _)| Some(before.rsplit_once(" (")?.1));
    place.unwrap_or(message)
}

impl HostServices for GenerationServices {
    fn log_enabled(&self, level: u8) -> bool {
        match level {
            1 => tracing::enabled!(target: "plugin", Level::ERROR),
            2 => tracing::enabled!(target: "plugin", Level::WARN),
            3 => tracing::enabled!(target: "plugin", Level::INFO),
            4 => tracing::enabled!(target: "plugin", Level::DEBUG),
            _ => tracing::enabled!(target: "plugin", Level::TRACE),
        }
    }

    fn log(&self, event: Lent<'_, Event<'_>>) {
        let mut message = around(event.spans());
        let before = message.len();
        message.push_str(event.message.as_str());
        for field in event.fields.iter() {
            // Writing to a String does not fail.
            let _ = write!(
                message,
                "{}{}={}",
                if message.len() == before { "" } else { " " },
                field.name,
                field.value
            );
        }
        let (app, generation, module) = (&self.app, self.generation, event.target.as_str());
        let (file, line) = (event.file.as_str(), event.line);
        if file.is_empty() {
            log_at!(event.level, %app, %generation, module, "{message}");
        } else {
            log_at!(event.level, %app, %generation, module, file, line, "{message}");
        }
    }

    fn panicked(&self, message: &str) {
        self.panics.fetch_add(1, Ordering::Relaxed);
        let mut places = self.panic_places.lock();
        let place = shown::truncate(place_of(message).to_owned(), PLACE);
        if let Some(count) = places.get_mut(&place) {
            *count += 1;
        } else if places.len() < PANIC_PLACES {
            places.insert(place, 1);
        }
        drop(places);
        tracing::error!(target: "plugin", app = %self.app, generation = %self.generation, "panicked: {message}");
    }

    fn work_began(&self, work: Lent<'_, Work<'_>>) -> u64 {
        let mut counted = self.work.lock();
        let Some(counted) = &mut *counted else {
            return 0;
        };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (name, tenant) = (work.name.to_string(), work.tenant.to_string());
        let place = match tenant.as_str() {
            "" => None,
            // On the generation that it runs on, also where its tenant has moved on.
            tenant => self.tenants.enter(tenant).map(Arc::new),
        };
        counted.insert(
            number,
            Working {
                name,
                tenant,
                kind: WorkKind::of(work.kind),
                since: Instant::now(),
                number,
                place,
            },
        );
        number
    }

    fn work_ended(&self, number: u64) {
        if let Some(work) = &mut *self.work.lock() {
            work.remove(&number);
        }
    }

    fn state(&self) -> Option<&dyn StateService> {
        self.state.as_ref().map(|state| state as _)
    }

    fn durable_work(&self) -> Option<&dyn WorkService> {
        self.durable.as_ref().map(|durable| durable as _)
    }

    fn assets(&self) -> Option<&dyn AssetsService> {
        self.assets.as_ref().map(|assets| assets as _)
    }

    fn figure(&self, number: u32, value: u64) {
        if number == TASKS_LEFT {
            self.tasks_left.store(value, Ordering::Relaxed);
        }
    }
}
