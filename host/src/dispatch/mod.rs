//! One request's way into a generation.
//!
//! - [`route`]: which app, and what answers for it, read without a lock
//! - [`targets`]: the generations behind a route
//! - [`call`]: the request as a future: through the table, polled on this worker
//! - [`connection`]: what a request needs to know of the connection that it came on
//! - [`body`]: bodies in both directions, each with the guard that counts it as in flight
//! - [`upgrade`]: the bytes of an upgraded connection
//! - [`execution`]: requests of an app that has threads of its own
//! - [`limits`]: what an app may take: requests at a time, waiting ones, time
//! - [`malformed`]: requests that no app is given
//! - [`error_response`]: the answers of the host itself

pub(crate) mod body;
pub(crate) mod call;
mod connection;
mod error_response;
mod execution;
pub(crate) mod limits;
mod malformed;
pub(crate) mod route;
pub(crate) mod targets;
mod upgrade;

pub use self::route::Routes;
pub(crate) use self::{
    body::ResponseBody,
    call::{Dispatched, dispatch, smoke},
    connection::{ConnectionInfo, Tls},
    error_response::{bad_request, redirect},
    limits::Limits,
    malformed::{Malformed, malformed},
    route::Route,
    targets::{ByLabel, Targets},
};
