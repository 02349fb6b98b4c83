//! Sockets and connections.
