//! Sockets and connections: HTTP/1.1 and HTTP/2 on the same port.
//!
//! - [`listener`]: accepts, and keeps accepting whatever happens
//! - [`socket`]: bound here, or handed over by whoever started this process
//! - [`count`]: how many connections there are
//! - [`open`]: those of one listener that are open, which finish what they have when it closes
//! - [`head_timer`]: how long a client may take for the head of a request
//! - [`stream`]: the bytes of a connection, asked for once a turn
//! - [`connection`]: one connection, whose requests each find their own generation

pub mod connection;
pub mod count;
mod head_timer;
pub mod listener;
mod open;
pub mod socket;
mod stream;

pub use self::{connection::Settings, count::Connections, listener::serve};
