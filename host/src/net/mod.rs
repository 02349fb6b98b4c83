//! Sockets and connections: HTTP/1.1 and HTTP/2 on the same port.
//!
//! - [`listeners`]: the listening sockets by key, handed from one process to the next
//! - [`client_listeners`]: those of clients, as long as they are open
//! - [`bind`]: one of them, bound here or handed over
//! - [`accept`]: the accept loop of every kind of listener
//! - [`serve`]: what the loop does with the connections of clients
//! - [`transport`]: the bytes of a connection, whatever carries them
//! - [`connections`]: the registry of open connections: how many there are and may be, and which go
//!   when others need their place
//! - [`ended`]: why the host ended or refused one
//! - [`connection`]: one connection, whose requests each find their own generation
//! - [`activity`]: what a connection is doing
//! - [`patience`]: how long its client is waited for
//! - [`preview`]: what a listener of `dev` answers itself, and adds to pages
//! - [`middleware`]: what is done with requests beside giving them to apps
//! - [`identity`]: ids of requests, and the context of traces
//! - [`observe`]: what is told of requests when they have ended
//! - [`policy`]: what a listener does with a request before it is dispatched
//! - [`tls`]: TLS of a listener, and its [`certificates`]
//! - [`challenges`]: what an authority is shown before it issues one
//! - [`proxy_protocol`]: the header that proxies send before the bytes of their client
//! - [`stream`]: the bytes of a connection, asked for once a turn
//! - [`streamed`]: the answer of an HTTP/2 stream, counted until the socket has taken it

pub(crate) mod accept;
mod activity;
pub(crate) mod bind;
mod certificates;
pub(crate) mod challenges;
pub(crate) mod client_listeners;
pub(crate) mod connection;
mod connections;
mod ended;
mod identity;
pub(crate) mod listeners;
mod middleware;
mod observe;
mod patience;
mod policy;
mod preview;
mod proxy_protocol;
mod serve;
mod stream;
mod streamed;
pub(crate) mod tls;
pub(crate) mod transport;

pub(crate) use self::{
    bind::SocketError,
    client_listeners::{Facilities, ReadyListeners},
    connection::Settings,
    listeners::{ListenerKey, Listeners},
    policy::Policy,
};
pub use self::{client_listeners::ClientListeners, connections::Connections};
