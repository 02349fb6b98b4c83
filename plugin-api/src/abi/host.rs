//! The table of what the host offers to a plugin.

use abi_stable::{
    StableAbi,
    std_types::{RSlice, RStr},
};

/// What the host offers. Every function takes the pointer that came with the table, which lives until `stop` has returned, and may be
/// called on any thread.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = HostRef)))]
#[sabi(missing_field(panic))]
pub struct Host {
    /// Whether anybody wants events of this level (see [`Event::level`]).
    pub log_enabled: unsafe extern "C" fn(*const (), u8) -> bool,
    /// Takes a log event.
    pub log: unsafe extern "C" fn(*const (), &Event<'_>),
    /// Something panicked: the message with its place, for the log and the generation's counter.
    pub panicked: unsafe extern "C" fn(*const (), RStr<'_>),
    /// Work begins that outlives its request. It counts as in flight until `work_ended` is called with the number that this gives.
    pub work_began: unsafe extern "C" fn(*const (), &Work<'_>) -> u64,
    /// The work of this number ended.
    #[sabi(last_prefix_field)]
    pub work_ended: unsafe extern "C" fn(*const (), u64),
}

/// A log event.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct Event<'a> {
    /// The module that logs.
    pub target: RStr<'a>,
    /// The sentence.
    pub message: RStr<'a>,
    /// The fields, with values as text.
    pub fields: RSlice<'a, Pair<'a>>,
    /// 1 is error, 2 warning, 3 information, 4 debug, 5 trace.
    pub level: u8,
}

/// A name and its value.
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
    /// What it is, for people.
    pub name: RStr<'a>,
    /// Whose it is; may be empty.
    pub tenant: RStr<'a>,
    /// Whether it is a job, which no deploy interrupts, rather than a task that a drain deadline ends.
    pub job: bool,
}
