//! One request's way into a generation.

use std::sync::Arc;

use crate::{config::RoutePrefix, generation::Generation, names::AppName};

/// Where an app answers, and with what.
#[derive(Clone, Debug)]
pub struct Route {
    /// The prefix.
    pub prefix: RoutePrefix,
    /// Whether the path prefix is taken off before the app sees the path.
    pub strip: bool,
    /// The app.
    pub app: AppName,
    /// What answers; none while nothing has been deployed.
    pub active: Option<Arc<Generation>>,
}

/// The routes of all apps, replaced as a whole at each cutover, read without a lock.
#[derive(Debug, Default)]
pub struct Routes;

impl Routes {
    /// Replaces all routes at once. The longest prefix wins, one with a host before one without.
    pub fn publish(&self, _routes: Vec<Route>) { todo!() }
}

/// Asks `generation` for `GET path`, as a client would, and gives the status. For smoke requests.
pub async fn smoke(_generation: &Arc<Generation>, _path: &str) -> Result<http::StatusCode, String> { todo!() }
