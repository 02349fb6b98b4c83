//! The control socket: how an operator, a script or `curl` talks to a running host.
//!
//! - [`calls`]: the table of calls, and what each answers
//! - [`metrics_endpoint`]: `GET /metrics` over TCP
//! - [`server`]: the host's side, HTTP/1.1 over a unix socket
//! - [`socket`]: the file that both meet at
//! - [`access`]: who may call what
//! - [`shutdown`]: how a call ends the host

pub mod access;
mod calls;
pub mod metrics_endpoint;
pub mod server;
pub mod shutdown;
pub mod socket;
mod state;

pub use self::{
    access::Access,
    server::{Host, serve},
    shutdown::{Shutdown, ShutdownHandle},
    socket::{ControlSocket, SocketError},
};
