//! The control socket of handover, without the host: the JSON of its calls and a [`Client`].
//!
//! The calls are HTTP/1.1 over a unix socket; [`types`] has the table of them.
//!
//! ```no_run
//! # async fn example() -> Result<(), handover_api::ClientError> {
//! let client = handover_api::Client::new(".handover/control.sock".as_ref());
//! for app in client.status().await?.apps {
//!     println!("{} is {}", app.name, app.state);
//! }
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod body;
mod client;
mod config;
mod names;
pub mod query;
mod shares;
pub mod socket;
pub mod types;
mod words;
mod work;

pub use self::{
    body::ChannelBody,
    client::{Client, ClientError, Line, Lines},
    config::*,
    names::{AppName, GenerationId, InvalidAppName, InvalidLabel, Label},
    query::Wait,
    shares::{InvalidPercent, InvalidSteps, Percent, Steps},
    types::*,
    words::{
        AppState, AuditSource, Cause, ConfigEffect, EventKind, GenerationState, JobState, LogLevel,
    },
    work::*,
};
