//! The host's half of the tables: what it offers as a safe trait, and a started app as a value.

use std::{sync::Arc, task::Waker};

use abi_stable::{
    prefix_type::{PrefixRef, WithMetadata},
    std_types::{ROption, RStr},
};

#[cfg(feature = "testing")]
use super::export::HostHandle;
use super::{
    assets::{self, ASSETS, AssetsService, ServesAssets},
    body::BodyStream,
    call::{ReceiveResponse, UPGRADE, lend_responder},
    head::RequestHead,
    host::{Event, Host, HostRef, Work},
    lent::Lent,
    panics::catch_panic,
    poll::PollState,
    root::{JOBS, RootRef, Settings, TextSink},
    state::{STATE, Serves, Service, StateService},
    waker::WakerRef,
    work::{self, ServesWork, WORK, WorkService},
};

/// What a host offers to one generation. Its functions are called on any thread of the plugin, also
/// while such a thread ends, and also after the app was stopped. They must not block. A panic in
/// them ends at the boundary.
pub trait HostServices: Send + Sync + 'static {
    /// Whether anybody wants events of this level.
    fn log_enabled(&self, level: u8) -> bool;
    /// Takes a log event.
    fn log(&self, event: Lent<'_, Event<'_>>);
    /// Takes a panic's message.
    fn panicked(&self, message: &str);
    /// Work begins; gives its number, or 0 when it is not counted.
    fn work_began(&self, work: Lent<'_, Work<'_>>) -> u64;
    /// Work ended.
    fn work_ended(&self, number: u64);
    /// The state that it keeps for the app; none when it keeps none.
    fn state(&self) -> Option<&dyn StateService> {
        None
    }
    /// The work that it keeps for the app; none when it keeps none.
    fn durable_work(&self) -> Option<&dyn WorkService> {
        None
    }
    /// The assets that it serves for the app; none when it serves none.
    fn assets(&self) -> Option<&dyn AssetsService> {
        None
    }
    /// Takes a figure, by its number.
    fn figure(&self, number: u32, value: u64);
}

struct Table<O>(O);

impl<O: HostServices> Table<O> {
    const HOST: &'static WithMetadata<Host> = &WithMetadata::new(Host {
        log_enabled: Self::log_enabled,
        log: Self::log,
        panicked: Self::panicked,
        work_began: Self::work_began,
        work_ended: Self::work_ended,
        service: Self::service,
        figure: Self::figure,
    });

    /// Runs `f` on the offer. None when it panicked: what the offer runs is the host's, and a
    /// thread that ends may have lost the thread-locals that it needs.
    ///
    /// # Safety
    /// `data` is that of `AppHandle::start`, whose caller keeps the offer as long as code of the
    /// plugin may run.
    unsafe fn with<R>(data: *const (), f: impl FnOnce(&O) -> R) -> Option<R> {
        // SAFETY: by the contract of this function.
        let services = unsafe { &*data.cast::<O>() };
        catch_panic(|| f(services))
    }

    unsafe extern "C" fn log_enabled(data: *const (), level: u8) -> bool {
        // SAFETY: the plugin gives back the data that it was given.
        unsafe { Self::with(data, |services| services.log_enabled(level)) }.unwrap_or(false)
    }

    unsafe extern "C" fn log(data: *const (), event: Lent<'_, Event<'_>>) {
        // SAFETY: as above.
        unsafe { Self::with(data, |services| services.log(event)) };
    }

    unsafe extern "C" fn panicked(data: *const (), message: RStr<'_>) {
        // SAFETY: as above.
        unsafe { Self::with(data, |services| services.panicked(message.as_str())) };
    }

    unsafe extern "C" fn work_began(data: *const (), work: Lent<'_, Work<'_>>) -> u64 {
        // SAFETY: as above.
        unsafe { Self::with(data, |services| services.work_began(work)) }.unwrap_or(0)
    }

    unsafe extern "C" fn work_ended(data: *const (), number: u64) {
        // SAFETY: as above.
        unsafe { Self::with(data, |services| services.work_ended(number)) };
    }

    unsafe extern "C" fn figure(data: *const (), number: u32, value: u64) {
        // SAFETY: as above.
        unsafe { Self::with(data, |services| services.figure(number, value)) };
    }

    unsafe extern "C" fn service(data: *const (), number: u32) -> *const () {
        // SAFETY: as above.
        let (has_state, has_work, has_assets) = unsafe {
            Self::with(data, |services| {
                (
                    services.state().is_some(),
                    services.durable_work().is_some(),
                    services.assets().is_some(),
                )
            })
        }
        .unwrap_or_default();
        match number {
            STATE if has_state => std::ptr::from_ref(Service::<Self>::TABLE).cast(),
            WORK if has_work => std::ptr::from_ref(work::Service::<Self>::TABLE).cast(),
            ASSETS if has_assets => std::ptr::from_ref(assets::Service::<Self>::TABLE).cast(),
            _ => std::ptr::null(),
        }
    }
}

impl<O: HostServices> Serves for Table<O> {
    unsafe fn state<'a>(data: *const ()) -> Option<&'a dyn StateService> {
        // SAFETY: `data` is that of `AppHandle::start`, whose caller keeps the offer as long as
        // code of the plugin may run.
        let services = unsafe { &*data.cast::<O>() };
        catch_panic(|| services.state()).flatten()
    }
}

impl<O: HostServices> ServesWork for Table<O> {
    unsafe fn work<'a>(data: *const ()) -> Option<&'a dyn WorkService> {
        // SAFETY: as for the state.
        let services = unsafe { &*data.cast::<O>() };
        catch_panic(|| services.durable_work()).flatten()
    }
}

impl<O: HostServices> ServesAssets for Table<O> {
    unsafe fn assets<'a>(data: *const ()) -> Option<&'a dyn AssetsService> {
        // SAFETY: as for the state.
        let services = unsafe { &*data.cast::<O>() };
        catch_panic(|| services.assets()).flatten()
    }
}

/// What `services` offers to code in this very program: for tests of a plugin, without a boundary.
#[cfg(feature = "testing")]
pub fn offer<O: HostServices>(services: &'static O) -> HostHandle {
    let table = HostRef(PrefixRef::from_ref(Table::<O>::HOST));
    // SAFETY: the table is that of `O`, whose services live for ever.
    unsafe { HostHandle::new(table, std::ptr::from_ref(services).cast()) }
}

/// A started app.
#[derive(Debug)]
pub struct AppHandle<O> {
    root: RootRef,
    app: *mut (),
    services: Arc<O>,
}

// SAFETY: an app is a `Box<dyn Plugin>`, which is Send and Sync.
unsafe impl<O: HostServices> Send for AppHandle<O> {}
// SAFETY: as above.
unsafe impl<O: HostServices> Sync for AppHandle<O> {}

impl<O: HostServices> AppHandle<O> {
    /// Runs the constructor of the plugin behind `root`, on this thread.
    ///
    /// # Errors
    /// The plugin's own reason.
    ///
    /// # Safety
    /// `root` is of the layout that this crate was compiled with. Its library stays mapped until
    /// everything that came out of this handle (calls, bodies, streams, bytes) is dropped, and from
    /// then on nothing but its drop is done with the handle. Nothing is called during or after
    /// [`stop`](Self::stop), and everything that came out of the handle is dropped before. Somebody
    /// keeps `offer` as long as code of the library may run, also when this fails: until it is
    /// unmapped.
    pub unsafe fn start(
        root: RootRef,
        services: Arc<O>,
        settings: Lent<'_, Settings<'_>>,
    ) -> Result<Self, String> {
        let table = HostRef(PrefixRef::from_ref(Table::<O>::HOST));
        let mut reason = String::new();
        let app = TextSink::lend(&mut reason, |failed| {
            // SAFETY: the caller vouches for `root`, and keeps the offer.
            unsafe { root.start()(table, Arc::as_ptr(&services).cast(), settings, failed) }
        });
        if app.is_null() {
            Err(reason)
        } else {
            Ok(Self {
                root,
                app,
                services,
            })
        }
    }

    /// What the app was offered.
    pub fn services(&self) -> &Arc<O> {
        &self.services
    }

    /// Begins a request, and polls it for the first time. The answer goes into `slot`, where the
    /// state is `Ready`.
    pub fn call(
        &self,
        head: Lent<'_, RequestHead<'_>>,
        body: Option<BodyStream>,
        upgrade: bool,
        waker: &Waker,
        slot: &mut impl ReceiveResponse,
    ) -> (PollState, Option<RunningCall>) {
        let called = lend_responder(slot, |responder| {
            let body = body.map_or(ROption::RNone, ROption::RSome);
            // SAFETY: the app was started and not stopped, by the contract of `start`.
            unsafe {
                self.root.call()(
                    self.app,
                    head,
                    body,
                    if upgrade { UPGRADE } else { 0 },
                    &WakerRef::of(waker),
                    responder,
                )
            }
        });
        let running = (!called.future.is_null()).then(|| RunningCall {
            root: self.root,
            future: called.future,
        });
        (called.state.state(), running)
    }

    /// Tells the app that new requests come from now on. One that was built before 1.2 does not
    /// want to know.
    pub fn activate(&self) {
        if let Some(activate) = self.root.activate() {
            // SAFETY: the app was started and not stopped.
            unsafe { activate(self.app) }
        }
    }

    /// Has the app do what it has to do before its first request; blocks as long as that takes.
    /// Returns whether there was anything to do; one that was built before 1.4 has nothing.
    ///
    /// # Errors
    /// Why it cannot become live: a sentence for the operator.
    pub fn on_live(&self) -> Result<bool, String> {
        let Some(on_live) = self.root.on_live() else {
            return Ok(false);
        };
        let mut reason = String::new();
        // SAFETY: the app was started and not stopped.
        let done = TextSink::lend(&mut reason, |sink| unsafe { on_live(self.app, sink) });
        match done {
            1 => Ok(true),
            2 => Ok(false),
            _ => Err(reason),
        }
    }

    /// Asks which revision the database of the app is at; blocks as long as that takes. None when
    /// it says nothing of it, as one that was built before 1.4 does.
    ///
    /// # Errors
    /// Why that is not known: a sentence for the operator.
    pub fn db_revision(&self) -> Result<Option<u64>, String> {
        let Some(db_revision) = self.root.db_revision() else {
            return Ok(None);
        };
        let mut text = String::new();
        // SAFETY: the app was started and not stopped.
        let done = TextSink::lend(&mut text, |sink| unsafe { db_revision(self.app, sink) });
        match done {
            1 => match text.parse() {
                Ok(revision) => Ok(Some(revision)),
                Err(_) => Err(format!("{text:?} is no number")),
            },
            2 => Ok(None),
            _ => Err(text),
        }
    }

    /// Asks for what the next version begins with, as JSON; blocks as long as that takes. None when
    /// there is nothing, as in an app that was built before 1.4.
    ///
    /// # Errors
    /// Why it cannot be had: a sentence for the operator.
    pub fn hand_over(&self) -> Result<Option<String>, String> {
        let Some(hand_over) = self.root.hand_over() else {
            return Ok(None);
        };
        let mut text = String::new();
        // SAFETY: the app was started and not stopped.
        let done = TextSink::lend(&mut text, |sink| unsafe { hand_over(self.app, sink) });
        match done {
            1 => Ok(Some(text)),
            2 => Ok(None),
            _ => Err(text),
        }
    }

    /// Cancels the spawned work of this number. Returns whether it ran; an app that was built
    /// before 1.4 cancels none.
    pub fn cancel_work(&self, number: u64) -> bool {
        let Some(cancel_work) = self.root.cancel_work() else {
            return false;
        };
        // SAFETY: the app was started and not stopped.
        let ran = unsafe { cancel_work(self.app, number) };
        ran == 1
    }

    /// Tells the app that no new requests come.
    pub fn drain(&self) {
        // SAFETY: the app was started and not stopped.
        unsafe { self.root.drain()(self.app) }
    }

    /// Tells the app that the drain deadline passed; gives how much spawned work it cancelled.
    pub fn expire(&self, jobs: bool) -> u64 {
        // SAFETY: the app was started and not stopped.
        unsafe { self.root.expire()(self.app, if jobs { JOBS } else { 0 }) }
    }

    /// Drops the app and its runtime; blocks until its threads ended, at most `deadline_ms`.
    /// Nothing may be in flight.
    pub fn stop(&self, deadline_ms: u64) {
        // SAFETY: the app was started, and by the contract of `start` this is the last call.
        unsafe { self.root.stop()(self.app, deadline_ms) }
    }
}

/// A request that is under way.
#[derive(Debug)]
pub struct RunningCall {
    root: RootRef,
    future: *mut (),
}

// SAFETY: the future behind it is Send (see `export::Answering`).
unsafe impl Send for RunningCall {}
// SAFETY: all use needs `&mut`.
unsafe impl Sync for RunningCall {}

impl RunningCall {
    /// Polls it. The answer goes into `slot`, where the state is `Ready`.
    pub fn poll(&mut self, waker: &Waker, slot: &mut impl ReceiveResponse) -> PollState {
        lend_responder(slot, |responder| {
            // SAFETY: the future is owned by this value, and its code is mapped by the contract of
            // `start`.
            unsafe { self.root.poll_call()(self.future, &WakerRef::of(waker), responder) }.state()
        })
    }
}

impl Drop for RunningCall {
    fn drop(&mut self) {
        // SAFETY: as in `poll`; this is the last use.
        unsafe { self.root.drop_call()(self.future) }
    }
}
