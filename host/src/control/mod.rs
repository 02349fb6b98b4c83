//! The control socket: how an operator, a script or `curl` talks to a running host.
//!
//! - [`api`]: the JSON, a contract
//! - [`server`]: the host's side, HTTP/1.1 over a unix socket
//! - [`state`]: the calls for the state of an app
//! - [`client`]: the side of the command line
//! - [`socket`]: the file that both meet at
//! - [`access`]: who may call what
//! - [`shutdown`]: how a call ends the host

pub mod access;
pub mod api;
mod body;
pub mod client;
pub mod server;
pub mod shutdown;
pub mod socket;
mod state;

pub use self::{
    access::Access,
    client::{Client, ClientError},
    server::serve,
    shutdown::{Shutdown, ShutdownHandle},
    socket::{ControlSocket, SocketError},
};
