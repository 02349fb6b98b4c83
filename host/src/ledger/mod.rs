//! What a generation holds in the host: everything that would make unloading its library unsafe or
//! leaky.
//!
//! A plugin brings its own copy of std, tokio and whatever else it links. Those register things
//! with the C library on the threads of the host: destructors of thread-locals, thread-specific
//! keys, threads, signal handlers. Each of them is an address inside the library, so each of them
//! is a jump into nothing after `dlclose`, or a reason for the C library to never unmap it.
//! Descriptors that it leaves open cost the process until it has none left. The host's executable
//! therefore defines those functions itself ([`interpose`]); the dynamic linker binds every plugin
//! to them. What is not of a plugin goes straight on to libc.
//!
//! - [`interposed`]: how a function stands before libc's, and learns who called
//! - [`owner`]: whose code asks, by its address or by the thread it runs on
//! - [`process`]: whether code runs in the process that loads libraries, or in a child that it
//!   forked
//! - [`interpose`]: the C functions for thread-locals and keys that plugins call instead of libc's
//! - [`fd_interposers`]: those that give out descriptors
//! - [`closers`]: those that close descriptors, and those that take locks on files
//! - [`record_locks`]: record locks for each generation, as two processes have them
//! - [`refused_locks`]: the locks that a library was refused, for the reason why it did not start
//! - [`descriptors`]: the descriptors that a library opened and has not closed
//! - [`ranges`]: whose address is this? Read on each of those calls, without a lock
//! - [`threads`]: the threads that a library started, or that were started for it, alive until the
//!   kernel says otherwise
//! - [`tasks`]: every thread that was seen to begin, and what the kernel lists
//! - [`mappings`]: what is mapped in this process
//! - [`stack`]: the modules whose code is on a thread's stack
//! - [`strangers`]: the tasks that nobody has entered, and which libraries they hold
//! - [`callbacks`]: what libraries want libc to call on threads of its own
//! - [`timers`]: the POSIX timers that libraries made
//! - [`requests`]: what libc does for libraries on threads of its own
//! - [`keys`]: the thread-specific keys that a library created
//! - [`tls_destructors`]: the host's own threads, what each of them still has to run for whom, and
//!   the running of it
//! - [`signals`]: what each library wants to be done on signals, and the one handler of the host
//!   that does it
//! - [`masks`]: blocked signals and alternate stacks that a library leaves on threads of the host
//! - [`interval_timers`]: which library armed the timers that a process has once
//! - [`environments`]: an environment for each library
//! - [`surroundings`]: the working directory and the mask of new files, which belong to all
//! - [`known`]: whose library an account is, for people
//! - [`notes`]: what libraries changed for everybody, for those who tell of it
//! - [`listeners`]: listening sockets that go from one generation to the next
//! - [`exits`]: `exit`, called by a library that was told to end
//! - [`errno`]: the error that C functions leave to their callers
//! - [`undisturbed`]: short sections that no signal interrupts
//! - [`call_slot`]: which call into a library each thread is inside of, for those who look for
//!   calls that do not come back
//! - [`account`]: all of that for one library, and the proof that nothing is left
//! - [`retain_reasons`]: what there is when that proof fails
//! - [`look`]: what there is of it, as far as can be seen at no cost to others
//!
//! Invariant: no lock of the ledger is held while code of a plugin runs.
#![allow(
    unsafe_code,
    reason = "stands between plugins and the C library: raw function pointers in, raw calls out"
)]

use std::ops::Range;

mod account;
mod call_slot;
mod callbacks;
mod closers;
mod descriptors;
mod environments;
mod errno;
mod exits;
mod fd_interposers;
mod interpose;
mod interposed;
mod interval_timers;
mod keys;
mod known;
mod listeners;
mod look;
mod mappings;
mod masks;
mod notes;
mod owner;
mod process;
mod ranges;
mod record_locks;
mod refused_locks;
mod requests;
mod retain_reasons;
mod signals;
mod stack;
mod strangers;
mod surroundings;
mod tasks;
mod threads;
mod timers;
mod tls_destructors;
mod undisturbed;

pub use self::tls_destructors::mark_worker;
pub(crate) use self::{
    account::{Account, Leftovers, Report, Unsettled, act_for, loading, others, visit_as_well},
    call_slot::{Call, SHARED_WORKER, enter_call, slots},
    environments::own_environment,
    exits::{ask_to_end, begin_end},
    interposed::armed,
    listeners::{bind_nothing_known, listening},
    look::Look,
    mappings::{Mapping, mappings},
    notes::{Changed, Note, take_notes},
    refused_locks::{RefusedLock, explained},
    retain_reasons::{RetainReason, RetainReasons},
    signals::{End, LAST_WORDS, LastWords, tell_exits, tell_last_words},
};

/// Whether a library that has an account is mapped at `address`.
pub(crate) fn is_library(address: usize) -> bool {
    ranges::lookup(address).is_some()
}

/// Where libc's records of the threads of this process lie, each above the stack of its thread.
/// Empty when the threads cannot be listed.
pub(crate) fn thread_records() -> Vec<Range<usize>> {
    let tids = tasks::all().unwrap_or_default();
    tids.into_iter().filter_map(stack::record).collect()
}

/// The name of an account in the tables of the ledger: never zero, never used twice.
pub(crate) type AccountId = u64;
