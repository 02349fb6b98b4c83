//! What all states of a generation share, and the gate that requests come through.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    task::Context,
    time::{Duration, Instant},
};

use handover_plugin::abi::{
    import::{AppHandle, HostServices},
    lent::Lent,
};

use bytes::Bytes;
use handover_api::{GenerationState, LeaseInfo};

use super::{
    close_handle::CloseHandle,
    endings::Endings,
    holders::{Describe, HolderInfo, HolderKind, Holders, Registration},
    in_flight::{Gate, InFlight, Shards},
    lifecycle,
    role::{AnsweredBy, CurrentRole, Role},
    services::{GenerationServices, Working},
    spec::Spec,
    tenants::Tenants,
};
use crate::{
    ledger::{self, AccountId, Call},
    loader::Library,
};

/// How long what is streamed has to end after the drain deadline, before its connection is cut.
const GRACE: Duration = Duration::from_secs(1);

/// How long an app may take to hear that its work is cancelled.
const CANCEL_WITHIN: Duration = Duration::from_secs(1);

/// What is counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Requests, streams, upgraded connections and spawned work on it, jobs included.
    pub in_flight: u64,
    /// Jobs among them.
    pub jobs: u64,
    /// Requests it was given.
    pub requests: u64,
    /// Panics caught in it.
    pub panics: u64,
    /// Calls that held a worker for too long.
    pub stalls: u64,
    /// Answers with a status of 5xx.
    pub server_errors: u64,
}

/// The version and the number of a generation as text, made once: answers may carry them.
#[derive(Debug)]
pub struct Label {
    /// The version.
    pub version: Bytes,
    /// The number.
    pub number: Bytes,
}

/// What a request needs of its generation.
#[derive(Debug)]
pub struct Shared {
    spec: Spec,
    label: Arc<Label>,
    role: CurrentRole,
    account: AccountId,
    app: AppHandle<GenerationServices>,
    gate: Gate,
    expired: AtomicBool,
    aborted: AtomicU64,
    holders: Holders,
    endings: Endings,
    panics: AtomicU64,
    stalls: Arc<AtomicU64>,
    server_errors: AtomicU64,
}

impl Shared {
    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    pub(super) fn app(&self) -> &AppHandle<GenerationServices> {
        &self.app
    }

    /// Who it is.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Returns its version and number as text.
    pub fn label(&self) -> &Label {
        &self.label
    }

    /// Returns which generation an answer of it is from.
    pub(crate) fn answered_by(&self) -> AnsweredBy {
        AnsweredBy {
            label: Arc::clone(&self.label),
            role: self.role.get(),
        }
    }

    /// The account of its library.
    pub(super) fn account(&self) -> AccountId {
        self.account
    }

    /// Calls the app. The holder's `InFlight` keeps it there.
    pub fn call(
        &self,
        head: Lent<'_, handover_plugin::abi::head::RequestHead<'_>>,
        body: Option<handover_plugin::abi::body::BodyStream>,
        upgrade: bool,
        waker: &std::task::Waker,
        slot: &mut impl handover_plugin::abi::call::ReceiveResponse,
    ) -> (
        handover_plugin::abi::poll::PollState,
        Option<handover_plugin::abi::import::RunningCall>,
    ) {
        self.app.call(head, body, upgrade, waker, slot)
    }

    /// Stops the app. Nothing of it is counted from then on, whatever threads it left.
    pub(super) fn stop(&self, deadline: u64) {
        self.app.stop(deadline);
        self.app.services().end();
    }

    /// Whether what is still in flight has to end now.
    pub fn is_expired(&self) -> bool {
        self.expired.load(Ordering::SeqCst)
    }

    /// Writes down that something holds the generation, until what is returned is dropped.
    /// `connection` is the switch of the connection that it is streamed over.
    pub fn register(
        &self,
        kind: HolderKind,
        what: Arc<dyn Describe>,
        connection: Option<Arc<CloseHandle>>,
    ) -> Registration {
        self.holders.register(kind, what, connection)
    }

    /// Whether what `registration` stands for has to end now; if not, the task of `cx` is woken
    /// when it may have to.
    pub fn has_to_end(&self, registration: &Registration, cx: &Context<'_>) -> bool {
        // Registers first and looks then, so that an end between the two is not missed.
        registration.wakes(cx);
        self.is_expired() || registration.is_cancelled()
    }

    /// Something is open that can be ended without a loss, until
    /// [`closes_endable`](Self::closes_endable).
    pub fn opens_endable(&self) {
        self.endings.opened();
    }

    /// The end of one [`opens_endable`](Self::opens_endable).
    pub fn closes_endable(&self) {
        self.endings.closed();
    }

    /// How long after the drain deadline the one who asks ends its stream. Each asks once.
    pub fn end_after(&self) -> Duration {
        self.endings.next()
    }

    /// Runs `call`, which is one into its app, and is for `target` to the watchdog.
    #[inline]
    pub fn inside<R>(&self, target: &str, call: impl FnOnce() -> R) -> R {
        ledger::enter_call(&self.what(target, false), call)
    }

    /// Runs `call`, which drops something of its app that was for `target`.
    #[inline]
    pub fn dropping<R>(&self, target: &str, call: impl FnOnce() -> R) -> R {
        ledger::enter_call(&self.what(target, true), call)
    }

    #[inline]
    fn what<'a>(&'a self, target: &'a str, dropped: bool) -> Call<'a> {
        Call {
            app: &self.spec.app,
            generation: self.spec.id,
            account: self.account,
            target,
            dropped,
            stalls: &self.stalls,
        }
    }

    /// One request, stream or connection was ended at the deadline.
    pub fn count_aborted(&self) {
        self.aborted.fetch_add(1, Ordering::Relaxed);
    }

    /// An answer had a status of 5xx.
    #[cold]
    pub fn count_server_error(&self) {
        self.server_errors.fetch_add(1, Ordering::Relaxed);
    }

    /// A panic was caught.
    pub fn count_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }
}

/// A generation, as those who watch it see it.
#[derive(Debug)]
pub struct Generation {
    shared: Arc<Shared>,
    shards: Shards,
    state: AtomicU8,
    loaded_at: Instant,
    range: Range<usize>,
}

impl Generation {
    pub(super) fn new(spec: Spec, library: &Library, app: AppHandle<GenerationServices>) -> Self {
        let account = library.account();
        let label = Arc::new(Label {
            version: spec.version.to_string().into(),
            number: spec.id.to_string().into(),
        });
        let shared = Arc::new(Shared {
            spec,
            label,
            role: CurrentRole::default(),
            account: account.id(),
            app,
            gate: Gate::closed(),
            expired: AtomicBool::new(false),
            aborted: AtomicU64::new(0),
            holders: Holders::new(),
            endings: Endings::default(),
            panics: AtomicU64::new(0),
            stalls: account.stalls(),
            server_errors: AtomicU64::new(0),
        });
        Self {
            shards: Shards::new(&shared),
            shared,
            state: AtomicU8::new(GenerationState::Started as u8),
            loaded_at: Instant::now(),
            range: library.range().unwrap_or_default(),
        }
    }

    /// The name of its library in the tables of the ledger.
    pub fn account(&self) -> AccountId {
        self.shared.account
    }

    /// Where its library is mapped.
    pub fn range(&self) -> &Range<usize> {
        &self.range
    }

    /// Who it is.
    pub fn spec(&self) -> &Spec {
        &self.shared.spec
    }

    /// What is counted, now.
    pub fn counts(&self) -> Counts {
        // Requests before work: a request that ends in between has left its spawned work behind to
        // be seen.
        let in_flight = self.shards.in_flight();
        let services = self.shared.app.services();
        let (work, jobs) = services.work();
        Counts {
            in_flight: in_flight + work,
            jobs,
            requests: self.shards.requests(),
            // An app may replace the hook that tells of panics; those caught at the boundary are
            // counted here anyway.
            panics: self
                .shared
                .panics
                .load(Ordering::Relaxed)
                .max(services.panics()),
            stalls: self.shared.stalls.load(Ordering::Relaxed),
            server_errors: self.shared.server_errors.load(Ordering::Relaxed),
        }
    }

    /// Requests, streams and upgraded connections on it, without its work.
    pub fn requests_in_flight(&self) -> u64 {
        self.shards.in_flight()
    }

    /// The work that it has spawned and that has not ended.
    pub fn working(&self) -> Vec<Working> {
        self.shared.app.services().working()
    }

    /// The leases that it has.
    pub fn leases(&self) -> Vec<LeaseInfo> {
        self.shared.app.services().leases()
    }

    /// Lists the requests, streams and connections that hold it, the oldest first, `most` at the
    /// most.
    pub fn holders(&self, most: usize) -> Vec<HolderInfo> {
        self.shared.holders.list(most)
    }

    /// Returns the words for what holds it, spawned work and leases as well: one for each.
    pub fn holder_kinds(&self) -> Vec<&'static str> {
        let kinds = self.shared.holders.kinds().into_iter();
        let work = self.working().into_iter();
        kinds
            .map(HolderKind::as_str)
            .chain(work.map(|work| work.kind.as_str()))
            .chain(self.leases().iter().map(|_| "lease"))
            .collect()
    }

    /// Ends the request, stream or connection of that number, as its drain deadline would. Returns
    /// what it is; none when it has ended. To be called within the host's runtime.
    pub fn cancel(&self, number: u64) -> Option<HolderKind> {
        let (kind, connection) = self.shared.holders.cancel(number)?;
        if let Some(connection) = connection
            && kind == HolderKind::Stream
        {
            // A client that does not read does not see the end either.
            let shared = Arc::clone(&self.shared);
            tokio::spawn(async move {
                tokio::time::sleep(GRACE).await;
                if shared.holders.has(number) {
                    connection.close_now();
                }
            });
        }
        Some(kind)
    }

    /// Returns the tenants that have something in flight on it.
    pub fn tenants(&self) -> &Arc<Tenants> {
        self.shared.app.services().tenants()
    }

    /// Cancels the spawned work of that number: wherever it waits next, it is dropped. Returns
    /// whether it ran, and could be told; waits for that on a thread of its own, for a second at
    /// the most.
    pub async fn cancel_work(&self, number: u64) -> bool {
        let shared = Arc::clone(&self.shared);
        let Some(own) = shared.app.services().begin_cancel(number) else {
            return false;
        };
        let inside = Arc::clone(&shared);
        let thread = lifecycle::begin("cancel", move || {
            let _acting = ledger::act_for(inside.account());
            inside.app().cancel_work(number)
        });
        let told = tokio::spawn(async move {
            let ran = match thread {
                Ok(thread) => thread.within(Duration::MAX).await.unwrap_or(false),
                Err(_) => false,
            };
            // Nobody is inside any more.
            shared.app.services().work_ended(own);
            ran
        });
        let told = tokio::time::timeout(CANCEL_WITHIN, told).await;
        told.is_ok_and(|told| told.unwrap_or(false))
    }

    /// Where it panicked, and how often there.
    pub fn panic_places(&self) -> Vec<(String, u64)> {
        self.shared.app.services().panic_places()
    }

    /// Tasks that nobody counted, and that still ran when its app was stopped.
    pub fn tasks_left(&self) -> u64 {
        self.shared.app.services().tasks_left()
    }

    /// Has it be `role` to the requests that come from now on.
    pub(crate) fn set_role(&self, role: Role) {
        self.shared.role.set(role);
    }

    /// When it was loaded.
    pub fn loaded_at(&self) -> Instant {
        self.loaded_at
    }

    /// Its state, now.
    pub fn state(&self) -> GenerationState {
        GenerationState::ALL[usize::from(self.state.load(Ordering::Acquire))]
    }

    /// Counts a request in. None once it is no longer active: then ask the routes again, which name
    /// its successor.
    pub fn enter(&self) -> Option<InFlight> {
        self.shards.enter()
    }

    pub(super) fn set_state(&self, state: GenerationState) {
        self.state.store(state as u8, Ordering::Release);
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn open_gate(&self) {
        self.shared.gate.open();
    }

    pub(super) fn close_gate(&self) {
        self.shared.gate.close();
    }

    /// Returns how many requests and streams are in flight that cannot be ended without a loss.
    pub(crate) fn unanswered(&self) -> u64 {
        let in_flight = self.shards.in_flight();
        in_flight.saturating_sub(self.shared.endings.open())
    }

    /// Ends what is in flight but spawned work, which only the app can; gives how much that was,
    /// without the streams that can be ended without a loss, and how many those were.
    pub(super) fn expire(&self) -> (u64, u64) {
        let before = self.shards.in_flight();
        let (ended, span) = self.shared.endings.begin();
        self.shared.expired.store(true, Ordering::SeqCst);
        self.shared.holders.wake();
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            tokio::time::sleep(span + GRACE).await;
            let left = shared.holders.close_connections();
            if left > 0 {
                tracing::warn!(
                    app = %shared.spec.app,
                    generation = %shared.spec.id,
                    "{left} streams whose clients did not read were cut with their connections"
                );
            }
        });
        (before.saturating_sub(ended), ended.min(before))
    }
}
