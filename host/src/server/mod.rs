//! Sockets and connections: HTTP/1.1 and HTTP/2 on the same port.
//!
//! - [`listener`]: accepts, and keeps accepting whatever happens
//! - [`socket`]: bound here, or handed over by whoever started this process
//! - [`connection`]: one connection, whose requests each find their own generation

pub mod connection;
pub mod listener;
pub mod socket;

pub use self::listener::{Settings, serve};
