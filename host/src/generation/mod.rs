//! One load of one artifact: its states, its counters, its end. No HTTP, no files.
//!
//! - [`spec`]: who it is and what it is started with
//! - [`states`]: `Started → Active → Draining → Unloaded | Retained`, each a type
//! - [`core`]: what all of them share, and the gate that requests come through
//! - [`in_flight`]: counting in and out, with [`worker`] and [`sync`]
//! - `endings`: how what never ends by itself is ended at the drain deadline
//! - [`cut`]: the switch that ends a connection at the drain deadline
//! - [`offer`]: what the host offers to its plugin: log, panics, work
//! - [`lifecycle`]: the threads that constructors, destructors and hooks run on

pub mod core;
pub mod cut;
mod endings;
pub mod in_flight;
mod lifecycle;
pub mod offer;
pub mod spec;
pub mod states;
mod sync;
mod worker;

pub use self::{
    core::{Counts, Generation, State},
    cut::{Cut, Order},
    in_flight::{Hold, InFlight},
    spec::{Spec, StartError},
    states::{Active, Draining, Ended, Retained, Started, load, start},
};
