//! The ABI: the types that both sides of the boundary compile.
//!
//! - [`version`]: what may run on what
//! - [`manifest`]: what a plugin says of itself in its own ELF section
//! - [`root`]: the table of a plugin's entry points, found by its symbol
//! - [`host`]: the table of what the host offers to a plugin
//! - [`call`]: one request on its way in, and its answer on its way out
//! - [`head`], [`headers`]: the head of a request and of a response
//! - [`body`], [`bytes`]: bodies as streams of frames, and bytes that cross without a copy
//! - [`upgrade`]: the byte stream of an upgraded connection
//! - [`waker`], [`poll`]: asynchrony
//! - [`lent`]: structs and tables that can grow
//! - [`state`]: what the app keeps in the host
//! - [`work`]: jobs, schedules and leases, which the host keeps
//! - [`assets`]: files of a version, which the host serves
//! - [`declared`]: what the functions of a plugin declare by their attributes
//! - [`heap`]: a heap that leaves with its plugin
//! - [`pool`]: memory that goes round from one head to the next
//! - `caught`: where panics end
//! - [`export`], [`import`]: the two halves over these tables, as safe traits and values
//!
//! Rules that hold for every function that crosses: no panic leaves it (the side that implements it
//! catches), no reference that it is given outlives the call, and what it gives back is freed by
//! the side that made it.
#![allow(
    unsafe_code,
    reason = "this is the boundary; every block says who keeps its invariant"
)]

pub mod assets;
pub mod body;
pub mod bytes;
pub mod call;
pub mod declared;
pub mod export;
pub mod head;
pub mod headers;
pub mod heap;
pub mod host;
pub mod import;
#[cfg(test)]
mod layout;
pub mod lent;
pub mod manifest;
pub(crate) mod panics;
pub mod poll;
pub mod pool;
pub mod root;
pub mod state;
pub mod upgrade;
pub mod version;
pub mod waker;
pub mod work;
