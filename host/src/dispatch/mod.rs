//! One request's way into a generation.
//!
//! - [`route`]: which app, and what answers for it, read without a lock
//! - [`targets`]: the generations behind a route
//! - [`asked`]: what a request asked for, as long as it holds its generation
//! - [`call`]: the request as a future: through the table, polled on this worker
//! - [`connection`]: what a request needs to know of the connection that it came on
//! - [`body`]: bodies in both directions, each with the guard that counts it as in flight
//! - [`upgrade`]: the bytes of an upgraded connection
//! - [`execution`]: requests of an app that has threads of its own
//! - [`key`]: what of a request tells whose it is
//! - [`mirror`]: copies of requests to a version whose answers are compared and thrown away
//! - [`durations`]: how long requests took
//! - [`sampled`]: the request of an app with a version on trial
//! - [`limits`]: what an app may take: requests at a time, waiting ones, time
//! - [`rates`]: limits of requests by whose they are
//! - [`pause`]: requests of an app that is paused
//! - [`malformed`]: requests that no app is given
//! - [`error_response`]: the answers of the host itself

mod asked;
pub(crate) mod body;
pub(crate) mod call;
mod connection;
mod durations;
mod error_response;
mod execution;
mod key;
pub(crate) mod limits;
mod malformed;
pub(crate) mod mirror;
mod pause;
mod rates;
pub(crate) mod route;
mod sampled;
pub(crate) mod targets;
mod upgrade;

pub use self::route::Routes;
pub(crate) use self::{
    body::{ResponseBody, ResponseBodyError},
    call::{Dispatched, dispatch, smoke},
    connection::{ConnectionInfo, Tls},
    durations::{BOUNDS, Durations, RequestKind},
    error_response::{bad_request, redirect},
    limits::Limits,
    malformed::{Malformed, malformed},
    mirror::{Mirror, VOLATILE},
    pause::Pause,
    route::{Down, Route},
    targets::{ByTenant, OnTrial, Several, Targets},
};
