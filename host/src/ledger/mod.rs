//! What a generation holds in the host: everything that would make unloading its library unsafe or leaky.
//!
//! A plugin brings its own copy of std, tokio and whatever else it links. Those register things with the C library on the
//! threads of the host: destructors of thread-locals, thread-specific keys, threads, signal handlers. Each of them is an
//! address inside the library, so each of them is a jump into nothing after `dlclose`, or a reason for the C library to
//! never unmap it. Descriptors that it leaves open cost the process until it has none left. The host's executable therefore defines those functions itself ([`interpose`]); the dynamic linker
//! binds every plugin to them. What is not of a plugin goes straight on to libc.
//!
//! - [`interposed`]: how a function stands before libc's, and learns who called
//! - [`owner`]: whose code asks, by its address or by the thread it runs on
//! - [`interpose`]: the C functions for thread-locals, keys and signals that plugins call instead of libc's
//! - [`openers`]: those that give out descriptors
//! - [`descriptors`]: the descriptors that a library opened and has not closed
//! - [`ranges`]: whose address is this? Read on each of those calls, without a lock
//! - [`threads`]: the threads that a library started, or that were started for it, alive until the kernel says otherwise
//! - [`tasks`]: every thread that was seen to begin, and what the kernel lists
//! - [`stack`]: the modules whose code is on a thread's stack
//! - [`strangers`]: the tasks that nobody has entered, and which libraries they hold
//! - [`callbacks`]: what libraries want libc to call on threads of its own
//! - [`timers`]: the POSIX timers that libraries made
//! - [`requests`]: what libc does for libraries on threads of its own
//! - [`keys`]: the thread-specific keys that a library created
//! - [`visit`]: the host's own threads, what each of them still has to run for whom, and the running of it
//! - [`signals`]: the signal handlers that a library installed
//! - [`inside`]: which call into a library each thread is inside of, for those who look for calls that do not come back
//! - [`account`]: all of that for one library, and the proof that nothing is left
//! - [`held`]: what there is when that proof fails
//!
//! Invariant: no lock of the ledger is held while code of a plugin runs.
#![allow(
    unsafe_code,
    reason = "stands between plugins and the C library: raw function pointers in, raw calls out"
)]

mod account;
mod callbacks;
mod descriptors;
mod held;
mod inside;
mod interpose;
mod interposed;
mod keys;
mod openers;
mod owner;
mod ranges;
mod requests;
mod signals;
mod stack;
mod strangers;
mod tasks;
mod threads;
mod timers;
mod visit;

pub use self::{
    account::{Account, Left, Loading, Report, Unsettled, act_for, loading, others, visit_as_well},
    held::{Held, Holder},
    inside::{Call, SHARED_WORKER, inside, slots},
    interposed::armed,
    owner::Acting,
    visit::mark_worker,
};

/// The name of an account in the tables of the ledger: never zero, never used twice.
pub type AccountId = u64;
