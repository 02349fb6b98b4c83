//! State that outlives code: what apps keep in the host, over swaps and restarts.
//!
//! - [`place`]: namespaces and keys, checked once at the edge and encoded in the order of their
//!   keys
//! - [`engine`]: what a storage engine does, as traits; [`redb`] is the first one
//! - [`commit`]: the atomic commit: checks and mutations, applied in a transaction of any engine
//! - [`partition`]: one engine with its writer thread: group commit, snapshots for readers, expiry
//! - [`clock`]: the time that records expire by
//! - [`changes`]: what was committed last, for watchers and for checks of ranges
//! - [`ticket`]: a commit on its way, and who waits for it
//! - [`store`]: the state of one app, and the stores of all apps
//! - [`session`]: a store as one generation sees it, over the ABI
//! - [`schema`]: which version of its schema it has
//! - [`dump`]: entries as JSON lines, for export, import, backup and restore
//!
//! Data flow: a reader takes the snapshot that was published last and reads on its own thread,
//! without a lock. A writer hands a [`Commit`] to the partition's thread, which applies all that
//! came in while the last one was synced in one transaction of the engine, syncs, publishes a new
//! snapshot, and then lets all of them know. No code of a plugin runs inside that transaction.

mod changes;
mod clock;
mod commit;
#[cfg(test)]
mod conformance;
mod dump;
mod engine;
mod partition;
mod place;
mod redb;
mod schema;
mod session;
mod store;
mod ticket;

pub(crate) use self::{
    commit::{Check, Commit, Mutation, StateError},
    dump::{
        DumpError, Footer, read_dump, restore_entries, text_or_base64, verify_dump, write_dump,
    },
    partition::{Marking, Query, Settings, Snapshot},
    place::{Bounds, Namespace, Place},
    schema::Schema,
    session::{Session, owned_commit},
    store::{Store, Stores},
};
