//! The table of a plugin's entry points, found by its symbol.

use abi_stable::{
    StableAbi,
    library::RootModule,
    package_version_strings,
    sabi_types::VersionStrings,
    std_types::{ROption, RSlice, RStr},
};

use super::{
    body::BodyStream,
    call::{Called, Responder},
    head::RequestHead,
    host::{HostRef, Pair},
    lent::{Grows, Lent, Size},
    panics::with_slot,
    poll::PollCode,
    version::AbiVersion,
    waker::WakerRef,
};

/// The entry points. Functions are added at the end, each with a new minor of the ABI, and never
/// changed.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = RootRef)))]
#[sabi(missing_field(panic))]
pub struct Root {
    /// Makes the app. Blocks as long as its constructor runs, so it is called on a thread of its
    /// own, and at most once in a load. Gives null when there is none, and the reason to the sink.
    pub start:
        unsafe extern "C" fn(HostRef, *const (), Lent<'_, Settings<'_>>, &TextSink<'_>) -> *mut (),
    /// Begins a request and polls it for the first time. For the flags see
    /// [`UPGRADE`](super::call::UPGRADE).
    pub call: unsafe extern "C" fn(
        *mut (),
        Lent<'_, RequestHead<'_>>,
        ROption<BodyStream>,
        u32,
        &WakerRef<'_>,
        &Responder<'_>,
    ) -> Called,
    /// Polls a request again.
    pub poll_call: unsafe extern "C" fn(*mut (), &WakerRef<'_>, &Responder<'_>) -> PollCode,
    /// Frees a request, done or not.
    pub drop_call: unsafe extern "C" fn(*mut ()),
    /// Tells the app that no new requests come.
    pub drain: unsafe extern "C" fn(*mut ()),
    /// Drops the app and its runtime; blocks until its threads have ended, at most so many
    /// milliseconds. Called once, with nothing in flight, on a thread of its own.
    pub stop: unsafe extern "C" fn(*mut (), u64),
    /// The drain deadline passed: cancels spawned tasks, and jobs as well if the flag [`JOBS`] says
    /// so. Gives how many.
    pub expire: unsafe extern "C" fn(*mut (), u32) -> u64,
    /// The table of the entry of this number, which lives as long as the library is mapped; null
    /// when this plugin has no such entry. The numbers are in docs/abi.md. There is none yet. May
    /// be called before `start` and on any thread.
    #[sabi(last_prefix_field)]
    pub entry: unsafe extern "C" fn(u32) -> *const (),
    /// Since 1.2. Tells the app that new requests come from now on: its workers begin. Called once
    /// at the most, never in preflight.
    #[sabi(missing_field(option))]
    pub activate: unsafe extern "C" fn(*mut ()),
    /// Since 1.4. Does what the app has to do once, before its first request: its checks have
    /// passed. Blocks as long as that takes, so it is called on a thread of its own, once at the
    /// most, never in preflight. Gives 1 when it is done, 2 when there was nothing to do; else the
    /// reason to the sink.
    #[sabi(missing_field(option))]
    pub on_live: unsafe extern "C" fn(*mut (), &TextSink<'_>) -> u32,
    /// Since 1.4. Asks which revision the database of the app is at. Blocks as long as that takes,
    /// so it is called on a thread of its own, never in preflight. Gives 1 and puts the number to
    /// the sink, 2 when the app says nothing of it; else 0, and the reason goes to the sink.
    #[sabi(missing_field(option))]
    pub db_revision: unsafe extern "C" fn(*mut (), &TextSink<'_>) -> u32,
    /// Since 1.4. Cancels the spawned work of this number, which the host gave it; gives 1 where it
    /// ran.
    #[sabi(missing_field(option))]
    pub cancel_work: unsafe extern "C" fn(*mut (), u64) -> u32,
    /// Since 1.4. Asks for what the next version begins with. Blocks as long as that takes, so it
    /// is called on a thread of its own, never in preflight. Gives 1 and puts it to the sink as
    /// JSON, 2 when there is nothing; else 0, and the reason goes to the sink.
    #[sabi(missing_field(option))]
    pub hand_over: unsafe extern "C" fn(*mut (), &TextSink<'_>) -> u32,
}

impl std::fmt::Debug for RootRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RootRef")
    }
}

impl RootModule for RootRef {
    abi_stable::declare_root_module_statics! {RootRef}
    const BASE_NAME: &'static str = "handover_plugin";
    const NAME: &'static str = "handover_plugin";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}

/// Jobs end, too: a bit of the flags of [`Root::expire`]. Bits that are not known are ignored.
pub const JOBS: u32 = 1;

/// What a generation is started with.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct Settings<'a> {
    /// The bytes of it that are filled in.
    pub size: Size,
    /// The ABI of the host, whose minor may be higher than the plugin's.
    pub host: AbiVersion,
    /// The app's name.
    pub app: RStr<'a>,
    /// The version of its manifest.
    pub version: RStr<'a>,
    /// The generation's number.
    pub generation: u64,
    /// The app's configuration as JSON.
    pub config: RStr<'a>,
    /// The environment variables that it may read.
    pub env: RSlice<'a, Pair<'a>>,
    /// Threads of its runtime, at least 1.
    pub runtime_threads: u32,
    /// Whether this is a preflight child, which never serves a user.
    pub preflight: bool,
}

// SAFETY: `repr(C)`, and the size is first.
unsafe impl Grows for Settings<'_> {}

/// The same since 1.4.
#[repr(C)]
#[derive(Debug)]
pub struct Settings1<'a> {
    pub(super) settings: Settings<'a>,
    /// What is taken off the paths of its requests: `/blog`; empty where that is nothing.
    pub(super) base_path: RStr<'a>,
    /// The folder for its files, absolute; empty where there is none.
    pub(super) data_dir: RStr<'a>,
    /// Whether a migration is to be run in place of the constructor, from which schema of the state
    /// to which.
    pub(super) migration: [u32; 3],
    /// What the version before hands over, as JSON; empty where that is nothing.
    pub(super) handed_over: RStr<'a>,
}

/// What has been added to [`Settings`].
#[derive(Clone, Copy, Debug, Default)]
pub struct MoreSettings<'a> {
    /// What is taken off the paths of its requests: `/blog`; empty where that is nothing.
    pub base_path: &'a str,
    /// The folder for its files, absolute; empty where there is none.
    pub data_dir: &'a str,
    /// The migration that is to be run in place of the constructor: from which schema of the state
    /// to which.
    pub migration: Option<(u32, u32)>,
    /// What the version before hands over, as JSON.
    pub handed_over: Option<&'a str>,
}

impl Settings<'_> {
    /// Lends these settings and `more` to `f`, in the shape that crosses.
    pub fn lend<R>(
        &self,
        more: &MoreSettings<'_>,
        f: impl FnOnce(Lent<'_, Settings<'_>>) -> R,
    ) -> R {
        let longer = Settings1 {
            settings: Settings {
                size: Size::of::<Settings1<'_>>(),
                ..*self
            },
            base_path: more.base_path.into(),
            data_dir: more.data_dir.into(),
            migration: match more.migration {
                Some((from, to)) => [1, from, to],
                None => [0; 3],
            },
            handed_over: more.handed_over.unwrap_or_default().into(),
        };
        // SAFETY: it begins with `Settings`, and the size is its own.
        f(unsafe { Lent::longer(&longer) })
    }
}

impl<'a> Lent<'a, Settings<'a>> {
    /// What is taken off the paths of its requests; empty where that is nothing, or not known.
    pub fn base_path(self) -> &'a str {
        // SAFETY: since 1.4 there is a text at this offset.
        let path: Option<RStr<'a>> =
            unsafe { self.later(std::mem::offset_of!(Settings1<'_>, base_path)) };
        path.map_or("", |path| path.as_str())
    }

    /// The folder for the files of the app; none from a host that is older than 1.4.
    pub fn data_dir(self) -> Option<&'a str> {
        // SAFETY: since 1.4 there is a text at this offset.
        let path: Option<RStr<'a>> =
            unsafe { self.later(std::mem::offset_of!(Settings1<'_>, data_dir)) };
        path.map(|path| path.as_str())
            .filter(|path| !path.is_empty())
    }

    /// What the version before hands over, as JSON; none from a host that is older than 1.4.
    pub fn handed_over(self) -> Option<&'a str> {
        // SAFETY: since 1.4 there is a text at this offset.
        let text: Option<RStr<'a>> =
            unsafe { self.later(std::mem::offset_of!(Settings1<'_>, handed_over)) };
        text.map(|text| text.as_str())
            .filter(|text| !text.is_empty())
    }

    /// The migration that is to be run in place of the constructor: from which schema of the state
    /// to which. A host that is older than 1.4 asks for none.
    pub fn migration(self) -> Option<(u32, u32)> {
        // SAFETY: since 1.4 there are three numbers at this offset.
        let migration: Option<[u32; 3]> =
            unsafe { self.later(std::mem::offset_of!(Settings1<'_>, migration)) };
        migration
            .filter(|[is_wanted, ..]| *is_wanted == 1)
            .map(|[_, from, to]| (from, to))
    }
}

/// Where a text is put. It does not grow.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct TextSink<'a> {
    pub(super) slot: *mut (),
    pub(super) put: unsafe extern "C" fn(*mut (), RStr<'_>),
    pub(super) _lent: std::marker::PhantomData<&'a ()>,
}

impl TextSink<'_> {
    /// Puts `text`.
    pub fn put(&self, text: &str) {
        // SAFETY: the slot is live during the call that lent this sink.
        unsafe { (self.put)(self.slot, text.into()) }
    }

    /// Lends a sink that fills `text` during `f`.
    pub fn lend<R>(text: &mut String, f: impl FnOnce(&TextSink<'_>) -> R) -> R {
        unsafe extern "C" fn put(slot: *mut (), text: RStr<'_>) {
            // SAFETY: `slot` is the exclusive borrow of `lend`, which waits below us on the stack.
            unsafe { with_slot(slot, |into: &mut String| into.push_str(text.as_str())) }
        }
        f(&TextSink {
            slot: std::ptr::from_mut(text).cast(),
            put,
            _lent: std::marker::PhantomData,
        })
    }
}
