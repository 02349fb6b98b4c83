//! Sockets and connections: HTTP/1.1 and HTTP/2 on the same port.
//!
//! - [`listener`]: accepts, and keeps accepting whatever happens
//! - [`socket`]: bound here, or handed over by whoever started this process
//! - [`open`]: the open connections, how many there may be, and which go when others need their
//!   place
//! - [`count`]: how many there are and were, and why the host ended or refused some
//! - [`activity`]: what a connection is doing
//! - [`patience`]: how long its client is waited for
//! - [`stream`]: the bytes of a connection, asked for once a turn
//! - [`streamed`]: the answer of an HTTP/2 stream, counted until the socket has taken it
//! - [`connection`]: one connection, whose requests each find their own generation

mod activity;
pub mod connection;
mod count;
pub mod listener;
mod open;
mod patience;
pub mod socket;
mod stream;
mod streamed;

pub use self::{connection::Settings, listener::serve, open::Connections};
