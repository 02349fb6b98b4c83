//! What a request needs to know of the connection that it came on.

use std::{net::SocketAddr, sync::Arc};

use handover_plugin::abi::head::Peer;

use crate::generation::Cut;

/// What a request needs to know of the connection that it came on. One for all requests of a connection.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// The address of the client, as it crosses to the app.
    pub peer: Peer,
    /// Where the client connected to; none over a unix socket.
    pub local: Option<SocketAddr>,
    /// Whether answers name the version that they are from.
    pub name_version: bool,
    /// The switch of the connection, for what is streamed over it.
    pub cut: Option<Arc<Cut>>,
}
