//! What a request asked for, kept for people as long as it holds its generation.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use http::{Method, Request, Uri};

use super::connection::ConnectionInfo;
use crate::generation::{Describe, TenantPlace};

/// What a request asked for.
#[derive(Debug)]
pub(super) struct Asked {
    method: Method,
    pub(super) uri: Uri,
    client: Option<SocketAddr>,
    since: Instant,
    /// That its tenant has it, where tenants move each by itself.
    place: Option<Arc<TenantPlace>>,
}

impl Asked {
    /// What `request` asks for, which begins now.
    pub(super) fn of<B>(
        request: &Request<B>,
        connection: &ConnectionInfo,
        place: &Option<Arc<TenantPlace>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            client: connection.client,
            since: Instant::now(),
            place: place.clone(),
        })
    }
}

impl Describe for Asked {
    /// The method and the path: what is behind `?` is not for everybody.
    fn what(&self) -> String {
        let path = match self.uri.authority() {
            Some(authority) if self.uri.path().is_empty() => authority.as_str(),
            _ => self.uri.path(),
        };
        format!("{} {path}", self.method)
    }

    fn client(&self) -> Option<String> {
        self.client.map(|client| client.ip().to_string())
    }

    fn tenant(&self) -> Option<String> {
        self.place.as_ref().map(|place| place.name().to_owned())
    }

    fn since(&self) -> Instant {
        self.since
    }
}
