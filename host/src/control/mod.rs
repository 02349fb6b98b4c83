//! The control socket: how an operator, a script or `curl` talks to a running host.
//!
//! - [`audit`]: what the audit log says of a call
//! - [`calls`]: the table of calls, and what each answers
//! - [`dashboard_door`]: how a call asks the dashboard for a link
//! - [`logs`]: the last records of the log, and those to come
//! - [`metrics_endpoint`]: `GET /metrics` and the health of the node over TCP
//! - [`node`]: the node drained
//! - [`server`]: the host's side, HTTP/1.1 over a unix socket
//! - [`socket`]: the file that both meet at
//! - [`shutdown`]: how a call ends the host

mod audit;
mod calls;
pub(crate) mod dashboard_door;
mod logs;
pub(crate) mod metrics_endpoint;
mod node;
pub(crate) mod server;
pub(crate) mod shutdown;
pub(crate) mod socket;
mod state;
mod work;

pub(crate) use self::{
    calls::{Asked, ControlResponse, Refusal, answer, lines, missed_events},
    server::{Backend, Caller},
    shutdown::Shutdown,
};
pub use self::{
    dashboard_door::DashboardDoor,
    server::{Host, serve},
    shutdown::ShutdownHandle,
    socket::ControlSocket,
};
