//! HTTP clients that see cut connections and short answers for what they are.
//!
//! - [`http1`]: one HTTP/1.1 connection, byte by byte, over TCP or a unix socket
//! - [`http2`]: one HTTP/2 connection with prior knowledge, by the `h2` crate
//! - [`websocket`]: frames over a connection that was upgraded

pub mod http1;
pub mod http2;
pub mod tls;
pub mod websocket;

use std::time::Duration;

pub use self::{http1::Http1, http2::Http2, tls::TlsClient, websocket::WebSocket};

/// No answer takes longer in any test; past it a client gives up and says so.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The connection could not be made.
    Connect(String),
    /// The connection ended before the answer did; where.
    Cut(String),
    /// What came is not HTTP; what it was.
    Malformed(String),
    /// Nothing came for [`PATIENCE`].
    Silent,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect(why) => write!(f, "no connection: {why}"),
            Self::Cut(at) => write!(f, "cut {at}"),
            Self::Malformed(what) => write!(f, "not HTTP: {what}"),
            Self::Silent => write!(f, "no answer for {PATIENCE:?}"),
        }
    }
}

impl std::error::Error for Fault {}

/// A whole answer.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers in their order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// The trailers, names in lower case.
    pub trailers: Vec<(String, String)>,
}

impl Answer {
    /// The first header `name`, which is in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// The first trailer `name`, which is in lower case.
    pub fn trailer(&self, name: &str) -> Option<&str> {
        find(&self.trailers, name)
    }

    /// The generation that answered, as the host says.
    pub fn generation(&self) -> Option<u64> {
        self.header("handover-generation")?.parse().ok()
    }

    /// The version that answered, as the host says.
    pub fn version(&self) -> Option<&str> {
        self.header("handover-version")
    }

    /// The body as text; what is not UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is not.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }
}

fn find<'a>(fields: &'a [(String, String)], name: &str) -> Option<&'a str> {
    fields
        .iter()
        .find(|(field, _)| field == name)
        .map(|(_, value)| value.as_str())
}
