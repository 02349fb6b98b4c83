//! The plugin's half of the tables: safe traits that the SDK implements, and the entry points over
//! them.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    ptr,
    task::{Context, Waker},
    time::Duration,
};

use abi_stable::{
    library::{CheckTypeLayout, LibHeader, RootModuleResult},
    prefix_type::{PrefixRef, WithMetadata},
    std_types::{ROption, RStr},
};

use super::{
    assets::{ASSETS, AssetsHandle},
    body::BodyStream,
    call::{Called, Responder, UPGRADE},
    head::RequestHead,
    host::{Event, HostRef, Work},
    lent::Lent,
    panics::{catch_panic, drop_payload},
    poll::{PollCode, PollState},
    pool,
    root::{JOBS, Root, RootRef, Settings, TextSink},
    state::{STATE, StateHandle},
    waker::{WakerCache, WakerRef},
    work::{WORK, WorkHandle},
};

/// What the host offers, as a value that a plugin may keep for ever.
#[derive(Clone, Copy)]
pub struct HostHandle {
    table: HostRef,
    data: *const (),
}

// SAFETY: the functions of the table may be called on any thread (see `Host`).
unsafe impl Send for HostHandle {}
// SAFETY: as above.
unsafe impl Sync for HostHandle {}

impl std::fmt::Debug for HostHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("HostHandle").field(&self.data).finish()
    }
}

impl HostHandle {
    /// # Safety
    /// `data` is what the functions of `table` take, as long as this code is mapped.
    #[cfg(feature = "testing")]
    pub(super) unsafe fn new(table: HostRef, data: *const ()) -> Self {
        Self { table, data }
    }

    /// Whether anybody wants events of this level (see [`Event::level`]).
    pub fn log_enabled(&self, level: u8) -> bool {
        // SAFETY: table and data came together, and live as long as this code is mapped.
        unsafe { self.table.log_enabled()(self.data, level) }
    }

    /// Logs `event`.
    pub fn log(&self, event: Lent<'_, Event<'_>>) {
        // SAFETY: as in `log_enabled`.
        unsafe { self.table.log()(self.data, event) }
    }

    /// Tells of a panic.
    pub fn panicked(&self, message: &str) {
        // SAFETY: as in `log_enabled`.
        unsafe { self.table.panicked()(self.data, RStr::from_str(message)) }
    }

    /// Tells of work that begins.
    pub fn work_began(&self, work: &Work<'_>) -> u64 {
        // SAFETY: as in `log_enabled`.
        unsafe { self.table.work_began()(self.data, Lent::of(work)) }
    }

    /// Tells of work that ended.
    pub fn work_ended(&self, number: u64) {
        // SAFETY: as in `log_enabled`.
        unsafe { self.table.work_ended()(self.data, number) }
    }

    /// Tells a figure of this generation, by its number (see
    /// [`Host::figure`](super::host::Host::figure)).
    pub fn figure(&self, number: u32, value: u64) {
        if let Some(figure) = self.table.figure() {
            // SAFETY: as in `log_enabled`.
            unsafe { figure(self.data, number, value) }
        }
    }

    /// The table of a service of the host (see [`Host::service`](super::host::Host::service)); none
    /// when it has no such service.
    pub fn service(&self, number: u32) -> Option<ptr::NonNull<()>> {
        // SAFETY: as in `log_enabled`.
        ptr::NonNull::new(unsafe { self.table.service()(self.data, number) }.cast_mut())
    }

    /// The state of the app; none when the host keeps none.
    pub fn state(&self) -> Option<StateHandle> {
        let table = self.service(STATE)?;
        // SAFETY: it is the table of that service, for this data.
        Some(unsafe { StateHandle::new(table, self.data) })
    }

    /// The work that the host keeps for the app; none when it keeps none, as one before 1.3.
    pub fn durable_work(&self) -> Option<WorkHandle> {
        let table = self.service(WORK)?;
        // SAFETY: it is the table of that service, for this data.
        Some(unsafe { WorkHandle::new(table, self.data) })
    }

    /// The assets that the host serves for the app; none when it serves none, as one before 1.4.
    pub fn assets(&self) -> Option<AssetsHandle> {
        let table = self.service(ASSETS)?;
        // SAFETY: it is the table of that service, for this data.
        Some(unsafe { AssetsHandle::new(table, self.data) })
    }
}

/// A request that an app works on.
pub trait Answering: Send {
    /// Polls it. `Ready` when the answer was given to `responder`, `Failed` when there is none,
    /// which was logged.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>, responder: &Responder<'_>) -> PollState;
}

/// The first poll of a request.
#[derive(Debug)]
pub struct FirstPoll<'a> {
    waker: &'a Waker,
    responder: &'a Responder<'a>,
}

/// What came of the first poll. The answering itself is there as long as it is pending.
pub struct Polled(PollState, Option<Pin<Box<dyn Answering>>>);

impl FirstPoll<'_> {
    /// Polls what `begin` gives, where it lies from now on. What ends at once, as most does, costs
    /// no allocation: it lies in memory that the one before it has left.
    #[inline]
    pub fn poll<A: Answering + 'static>(self, begin: impl FnOnce() -> A) -> Polled {
        // Made here, so that it moves once.
        let answering = begin();
        let room = pool::spare_slot::<A>();
        // SAFETY: the room is uninitialized, of this type, and ours.
        unsafe { room.write(answering) };
        let mut polled = None;
        catch_panic(|| {
            // SAFETY: it does not move from here until it is dropped: either below, or by the box
            // that takes its very memory over.
            let pinned = unsafe { Pin::new_unchecked(&mut *room.as_ptr()) };
            let mut cx = Context::from_waker(self.waker);
            let state = pinned.poll(&mut cx, self.responder);
            polled = Some(state);
            if state != PollState::Pending {
                // SAFETY: the value is dropped once, as `polled` says.
                unsafe { room.drop_in_place() };
            }
        });
        let state = polled.unwrap_or(PollState::Panicked);
        if polled.is_none() {
            // SAFETY: its poll panicked, so it was not dropped.
            catch_panic(|| unsafe { room.drop_in_place() });
        }
        if state == PollState::Pending {
            // SAFETY: the room was allocated as a box does it, holds a value, and is ours alone.
            let boxed = unsafe { Box::from_raw(room.as_ptr()) };
            return Polled(state, Some(Box::into_pin(boxed)));
        }
        // SAFETY: it came from `room`, and nothing is in it any more. What destructors panic with
        // was told by the panic hook.
        unsafe { pool::return_slot(room) };
        Polled(state, None)
    }
}

/// A running app.
pub trait Plugin: Send + Sync + 'static {
    /// Makes the calling thread one of the app's: its runtime's context is entered. Called before
    /// every poll, so it must be cheap, and it must not panic.
    fn enter(&self);
    /// Begins to answer a request, and polls it once, by `first`. None when the head is none that
    /// HTTP allows.
    fn call(
        &self,
        head: Lent<'_, RequestHead<'_>>,
        body: Option<BodyStream>,
        upgrade: bool,
        first: FirstPoll<'_>,
    ) -> Option<Polled>;
    /// All checks have passed, and the first request comes next. Returns whether there was anything
    /// to do. The error is a sentence for the operator.
    ///
    /// # Errors
    /// When the app cannot become live.
    fn on_live(&self) -> Result<bool, String> {
        Ok(false)
    }
    /// Which revision the database is at; none when nothing is said of that. The error is a
    /// sentence for the operator.
    ///
    /// # Errors
    /// When it is not known.
    fn db_revision(&self) -> Result<Option<u64>, String> {
        Ok(None)
    }
    /// What the next version begins with, as JSON; none when there is nothing. The error is a
    /// sentence for the operator.
    ///
    /// # Errors
    /// When it cannot be had.
    fn hand_over(&self) -> Result<Option<String>, String> {
        Ok(None)
    }
    /// New requests come from now on.
    fn activate(&self) {}
    /// No new requests come.
    fn drain(&self);
    /// The drain deadline passed; gives how much spawned work was cancelled.
    fn expire(&self, jobs: bool) -> u64;
    /// Cancels the spawned work of this number. Returns whether it ran.
    fn cancel_work(&self, _number: u64) -> bool {
        false
    }
    /// The end: everything is dropped, all threads are joined, at most within `deadline`.
    fn stop(self: Box<Self>, deadline: Duration);
}

/// How an app comes to be.
pub trait Entry: 'static {
    /// Runs the constructor, on a thread of its own. The error is a sentence for the operator.
    ///
    /// # Errors
    /// When the app cannot start.
    fn start(host: HostHandle, settings: Lent<'_, Settings<'_>>)
    -> Result<Box<dyn Plugin>, String>;
}

/// The header that a plugin exports under abi_stable's symbol.
pub const fn header<E: Entry>() -> LibHeader {
    extern "C" fn construct<E: Entry>() -> RootModuleResult {
        abi_stable::library::__call_root_module_loader(|| {
            RootRef(PrefixRef::from_ref(Table::<E>::ROOT))
        })
    }
    // SAFETY: `construct` gives a `RootRef`.
    unsafe { LibHeader::from_constructor::<RootRef>(construct::<E>, CheckTypeLayout::Yes) }
}

struct Table<E>(E);

impl<E: Entry> Table<E> {
    const ROOT: &'static WithMetadata<Root> = &WithMetadata::new(Root {
        start: start::<E>,
        call,
        poll_call,
        drop_call,
        drain,
        stop,
        expire,
        entry,
        activate,
        on_live,
        db_revision,
        cancel_work,
        hand_over,
    });
}

/// What the host's `*mut ()` of an app points to.
type App = Box<dyn Plugin>;

struct Call {
    /// None once it has ended.
    future: Option<Pin<Box<dyn Answering>>>,
    waker: WakerCache,
    /// The app, which outlives its calls: the host stops it with nothing in flight.
    app: *const App,
}

/// # Safety
/// `app` is what `start` gave, and `stop` has not been called.
unsafe fn app_of<'a>(app: *mut ()) -> &'a App {
    // SAFETY: by the contract of this function.
    unsafe { &*app.cast::<App>() }
}

unsafe extern "C" fn start<E: Entry>(
    table: HostRef,
    data: *const (),
    settings: Lent<'_, Settings<'_>>,
    failed: &TextSink<'_>,
) -> *mut () {
    match catch_unwind(AssertUnwindSafe(|| {
        E::start(HostHandle { table, data }, settings)
    })) {
        Ok(Ok(app)) => Box::into_raw(Box::new(app)).cast(),
        Ok(Err(reason)) => {
            failed.put(&reason);
            ptr::null_mut()
        }
        Err(payload) => {
            failed.put("the constructor panicked: ");
            failed.put(panic_message(&*payload));
            drop_payload(payload);
            ptr::null_mut()
        }
    }
}

/// The text of a caught panic.
pub fn panic_message(payload: &(dyn std::any::Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

/// Polls once, and drops the future within a net of its own when it ended: a destructor may panic
/// as well.
fn poll_once(
    future: &mut Option<Pin<Box<dyn Answering>>>,
    waker: &Waker,
    responder: &Responder<'_>,
) -> PollState {
    let polled = catch_panic(|| match future {
        Some(future) => future
            .as_mut()
            .poll(&mut Context::from_waker(waker), responder),
        None => PollState::Ended,
    });
    let state = polled.unwrap_or(PollState::Panicked);
    if state != PollState::Pending {
        let ended = future.take();
        // What its destructors panic with was told by the panic hook; the answer stands.
        catch_panic(|| drop(ended));
    }
    state
}

unsafe extern "C" fn call(
    app: *mut (),
    head: Lent<'_, RequestHead<'_>>,
    body: ROption<BodyStream>,
    flags: u32,
    waker: &WakerRef<'_>,
    responder: &Responder<'_>,
) -> Called {
    // SAFETY: the host calls between `start` and `stop`.
    let plugin = unsafe { app_of(app) };
    let polled = catch_panic(|| {
        plugin.enter();
        waker.with(|waker| {
            plugin.call(
                head,
                body.into_option(),
                flags & UPGRADE != 0,
                FirstPoll { waker, responder },
            )
        })
    });
    let (state, future) = match polled {
        Some(Some(Polled(state, future))) => (state, future),
        Some(None) => (PollState::Failed, None),
        None => (PollState::Panicked, None),
    };
    let future = match future {
        Some(_) => Box::into_raw(Box::new(Call {
            future,
            waker: WakerCache::default(),
            app: app.cast(),
        }))
        .cast(),
        None => ptr::null_mut(),
    };
    Called {
        state: state.into(),
        reserved: [0; 7],
        future,
    }
}

unsafe extern "C" fn poll_call(
    call: *mut (),
    waker: &WakerRef<'_>,
    responder: &Responder<'_>,
) -> PollCode {
    // SAFETY: `call` is the box that `call` made, polled by its only owner.
    let call = unsafe { &mut *call.cast::<Call>() };
    // SAFETY: an app outlives its calls.
    let app = unsafe { &*call.app };
    let Call {
        future,
        waker: cache,
        ..
    } = call;
    app.enter();
    poll_once(future, cache.get(waker), responder).into()
}

unsafe extern "C" fn drop_call(call: *mut ()) {
    // SAFETY: `call` is the box that `call` made, given up by its only owner.
    let call = unsafe { Box::from_raw(call.cast::<Call>()) };
    // SAFETY: an app outlives its calls.
    let app = unsafe { &*call.app };
    // A destructor that panics ends here; the panic hook told it.
    catch_panic(|| {
        app.enter();
        drop(call);
    });
}

unsafe extern "C" fn activate(app: *mut ()) {
    // SAFETY: the host calls between `start` and `stop`.
    let plugin = unsafe { app_of(app) };
    catch_panic(|| plugin.activate());
}

unsafe extern "C" fn on_live(app: *mut (), sink: &TextSink<'_>) -> u32 {
    // SAFETY: the host calls between `start` and `stop`.
    let plugin = unsafe { app_of(app) };
    match catch_panic(|| plugin.on_live()) {
        Some(Ok(true)) => return 1,
        Some(Ok(false)) => return 2,
        Some(Err(reason)) => sink.put(&reason),
        None => sink.put("it panicked"),
    }
    0
}

unsafe extern "C" fn db_revision(app: *mut (), sink: &TextSink<'_>) -> u32 {
    // SAFETY: the host calls between `start` and `stop`.
    let plugin = unsafe { app_of(app) };
    match catch_panic(|| plugin.db_revision()) {
        Some(Ok(Some(revision))) => {
            sink.put(&revision.to_string());
            return 1;
        }
        Some(Ok(None)) => return 2,
        Some(Err(reason)) => sink.put(&reason),
        None => sink.put("it panicked"),
    }
    0
}

unsafe extern "C" fn hand_over(app: *mut (), sink: &TextSink<'_>) -> u32 {
    // SAFETY: the host calls between `start` and `stop`.
    let plugin = unsafe { app_of(app) };
    match catch_panic(|| plugin.hand_over()) {
        Some(Ok(Some(text))) => {
            sink.put(&text);
            return 1;
        }
        Some(Ok(None)) => return 2,
        Some(Err(reason)) => sink.put(&reason),
        None => sink.put("it panicked"),
    }
    0
}

unsafe extern "C" fn cancel_work(app: *mut (), number: u64) -> u32 {
    // SAFETY: the host calls between `start` and `stop`.
    let plugin = unsafe { app_of(app) };
    catch_panic(|| plugin.cancel_work(number)).map_or(0, u32::from)
}

unsafe extern "C" fn drain(app: *mut ()) {
    // SAFETY: the host calls between `start` and `stop`.
    let plugin = unsafe { app_of(app) };
    catch_panic(|| plugin.drain());
}

unsafe extern "C" fn stop(app: *mut (), deadline_ms: u64) {
    // SAFETY: `app` is the box that `start` made, given up by the host, with nothing in flight.
    let plugin = *unsafe { Box::from_raw(app.cast::<App>()) };
    catch_panic(|| plugin.stop(Duration::from_millis(deadline_ms)));
}

unsafe extern "C" fn expire(app: *mut (), flags: u32) -> u64 {
    // SAFETY: the host calls between `start` and `stop`.
    let plugin = unsafe { app_of(app) };
    catch_panic(|| plugin.expire(flags & JOBS != 0)).unwrap_or(0)
}

unsafe extern "C" fn entry(_number: u32) -> *const () {
    ptr::null()
}
