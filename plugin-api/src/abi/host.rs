//! The table of what the host offers to a plugin.

use abi_stable::{
    StableAbi,
    std_types::{RSlice, RStr},
};

use super::lent::{Grows, Lent, Size};

/// What the host offers. Every function takes the pointer that came with the table, which lives as
/// long as the library is mapped, and may be called on any thread, before, during and after the
/// life of the app. None of them panics.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = HostRef)))]
#[sabi(missing_field(panic))]
pub struct Host {
    /// Whether anybody wants events of this level (see [`Event::level`]).
    pub log_enabled: unsafe extern "C" fn(*const (), u8) -> bool,
    /// Takes a log event.
    pub log: unsafe extern "C" fn(*const (), Lent<'_, Event<'_>>),
    /// Something panicked: the message with its place, for the log and the generation's counter.
    pub panicked: unsafe extern "C" fn(*const (), RStr<'_>),
    /// Work begins that outlives its request. It counts as in flight until `work_ended` is called
    /// with the number that this gives. The number is 0 when nothing is counted any more, because
    /// the app was stopped.
    pub work_began: unsafe extern "C" fn(*const (), Lent<'_, Work<'_>>) -> u64,
    /// The work of this number ended.
    pub work_ended: unsafe extern "C" fn(*const (), u64),
    /// The table of the service of this number, which lives as long as this one; null when this
    /// host has no such service. The numbers are in docs/abi.md.
    #[sabi(last_prefix_field)]
    pub service: unsafe extern "C" fn(*const (), u32) -> *const (),
    /// Since 1.2. Takes a figure of the generation, by its number ([`TASKS_LEFT`]); a number that
    /// is not known is ignored.
    #[sabi(missing_field(option))]
    pub figure: unsafe extern "C" fn(*const (), u32, u64),
}

/// The figure: tasks that nobody counts, and that still ran when the app was stopped.
pub const TASKS_LEFT: u32 = 1;

/// A log event.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct Event<'a> {
    /// The bytes of it that are filled in.
    pub size: Size,
    /// 1 is error, 2 warning, 3 information, 4 debug, 5 and any other trace.
    pub level: u8,
    /// The line in `file`; 0 is unknown.
    pub line: u32,
    /// What logs: the module, if nothing else was said.
    pub target: RStr<'a>,
    /// The sentence.
    pub message: RStr<'a>,
    /// The fields, with values as text.
    pub fields: RSlice<'a, Pair<'a>>,
    /// The source file; empty is unknown.
    pub file: RStr<'a>,
}

// SAFETY: `repr(C)`, and the size is first.
unsafe impl Grows for Event<'_> {}

/// The same since 1.2.
#[repr(C)]
#[derive(Debug)]
pub struct Event1<'a> {
    pub(super) event: Event<'a>,
    /// The spans that it is in, the outermost first.
    pub(super) spans: RSlice<'a, Span<'a>>,
}

/// A span that an event is in. It lies in lists, and so does not grow.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct Span<'a> {
    /// Its name.
    pub name: RStr<'a>,
    /// Its fields, with values as text.
    pub fields: RSlice<'a, Pair<'a>>,
}

impl Event<'_> {
    /// Lends this event to `f`, in these spans, in the shape that crosses.
    pub fn lend<R>(&self, spans: &[Span<'_>], f: impl FnOnce(Lent<'_, Event<'_>>) -> R) -> R {
        let longer = Event1 {
            event: Event {
                size: Size::of::<Event1<'_>>(),
                ..*self
            },
            spans: spans.into(),
        };
        // SAFETY: it begins with an `Event`, and the size is its own.
        f(unsafe { Lent::longer(&longer) })
    }
}

impl<'a> Lent<'a, Event<'a>> {
    /// The spans that it is in, the outermost first; none from a plugin that does not tell them.
    pub fn spans(self) -> &'a [Span<'a>] {
        // SAFETY: since 1.2 there is a list at this offset.
        let spans: Option<RSlice<'a, Span<'a>>> =
            unsafe { self.later(std::mem::offset_of!(Event1<'_>, spans)) };
        spans.map_or(&[], |spans| spans.as_slice())
    }
}

/// A name and its value. It lies in lists, and so does not grow.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct Pair<'a> {
    /// The name.
    pub name: RStr<'a>,
    /// The value.
    pub value: RStr<'a>,
}

/// Work that outlives its request.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct Work<'a> {
    /// The bytes of it that are filled in.
    pub size: Size,
    /// [`TASK`], or [`JOB`]; any other counts as a job, which is the one that nobody interrupts.
    pub kind: u32,
    /// What it is, for people.
    pub name: RStr<'a>,
    /// Whose it is; may be empty.
    pub tenant: RStr<'a>,
}

/// The kind of work that a drain deadline ends.
pub const TASK: u32 = 0;
/// The kind of work that no deploy interrupts.
pub const JOB: u32 = 1;
/// The kind of work that goes on as long as the generation is live, and is told to stop when it
/// drains. Since 1.2: an older host takes it for a job.
pub const WORKER: u32 = 2;

// SAFETY: `repr(C)`, and the size is first.
unsafe impl Grows for Work<'_> {}
