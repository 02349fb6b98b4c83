//! One load of one artifact: its states, its counters, its end. No HTTP, no files.
//!
//! - [`spec`]: who it is and what it is started with
//! - [`states`]: `Started → Active → Draining → Unloaded | Retained`, each a type
//! - [`shared`]: what all of them share, and the gate that requests come through
//! - [`in_flight`]: counting in and out, with [`worker`] and [`sync`]
//! - `endings`: how what never ends by itself is ended at the drain deadline
//! - [`holders`]: who holds a generation, each to be listed and ended
//! - [`tenants`]: which tenants have something in flight
//! - [`close_handle`]: the switch that ends a connection at the drain deadline
//! - [`services`]: what the host offers to its plugin: log, panics, work
//! - [`role`]: what a generation is to the requests that it answers
//! - [`lifecycle`]: the threads that constructors, destructors and hooks run on

pub(crate) mod close_handle;
mod endings;
pub(crate) mod holders;
pub(crate) mod in_flight;
mod lifecycle;
mod role;
pub(crate) mod services;
pub(crate) mod shared;
pub(crate) mod spec;
pub(crate) mod states;
mod sync;
pub(crate) mod tenants;
pub(crate) mod worker;

pub(crate) use self::{
    close_handle::{CloseHandle, CloseRequest, Upload},
    holders::{Describe, HolderKind, Registration},
    in_flight::{InFlight, KeepAlive},
    role::{AnsweredBy, Role},
    shared::{Counts, Generation},
    spec::{Spec, StartError},
    states::{Active, Draining, Ended, Retained, Started, answered, load, start},
    tenants::TenantPlace,
};
