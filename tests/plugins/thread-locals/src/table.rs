//! The table of the fixture. `host/tests/ledger.rs` includes this very file.

#![allow(unreachable_pub, reason = "included by two crates")]
#![allow(
    non_camel_case_types,
    reason = "abi_stable names the references to prefix types so"
)]

use std::sync::atomic::AtomicUsize;

use abi_stable::{StableAbi, library::RootModule, sabi_types::VersionStrings};

/// What the fixture counts, in memory of the host.
#[repr(C)]
#[derive(Debug, Default, StableAbi)]
pub struct Counts {
    /// Thread-locals that were made.
    pub made: AtomicUsize,
    /// Thread-locals whose destructor ran on the thread that made them.
    pub dropped: AtomicUsize,
    /// Destructors that ran on another thread.
    pub misplaced: AtomicUsize,
    /// Values of the fixture's own key whose destructor ran.
    pub values: AtomicUsize,
    /// Threads of the fixture that ran to their end.
    pub ended: AtomicUsize,
    /// While this is 0, the thread that [`Table::linger`] starts lives.
    pub release: AtomicUsize,
}

/// The functions of the fixture. None of them blocks but `stop`.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = Table_Ref)))]
#[sabi(missing_field(panic))]
pub struct Table {
    /// Starts a runtime with two workers.
    pub start: extern "C" fn(counts: &'static Counts),
    /// Does on the calling thread what a handler does: touches thread-locals, names the thread,
    /// sets a key's value, and polls a timer within the runtime.
    pub touch: extern "C" fn(),
    /// Starts a thread that ends by itself, with thread-locals whose destructors take a while.
    pub spawn: extern "C" fn(),
    /// The same without std, for a thread that nobody joins and that leaves by `pthread_exit`.
    pub spawn_raw: extern "C" fn(),
    /// Starts a thread named `lingerer` that lives until it is released.
    pub linger: extern "C" fn(),
    /// Handles SIGUSR1, and says whether it was handled by something before.
    pub handle_signal: extern "C" fn() -> bool,
    /// Drops the runtime.
    #[sabi(last_prefix_field)]
    pub stop: extern "C" fn(),
}

impl RootModule for Table_Ref {
    abi_stable::declare_root_module_statics! {Table_Ref}
    const BASE_NAME: &'static str = "thread_locals";
    const NAME: &'static str = "thread-locals";
    const VERSION_STRINGS: VersionStrings = VersionStrings::new("1.0.0");
}
