//! What is done with each request of a listener beside giving it to its app. A listener that has
//! none of it gives requests to apps with one look at that.

use std::sync::Arc;

use http::{Request, Response};

use super::policy::{Admitted, IsHttps, Policy};
use crate::{
    dispatch::{ConnectionInfo, ResponseBody},
    health::Health,
};

/// What is done with each request of a listener.
#[derive(Debug)]
pub(crate) struct Middleware {
    policy: Option<Policy>,
    /// What is answered for the health of the node. None: apps have all paths.
    health: Option<Health>,
}

impl Middleware {
    /// None where there is nothing to be done.
    pub(crate) fn new(policy: Option<Policy>, health: Option<Health>) -> Option<Self> {
        (policy.is_some() || health.is_some()).then_some(Self { policy, health })
    }

    /// Looks at `request`, which came over `connection`, and changes what its app is to see of it.
    pub(super) fn admit<B>(
        &self,
        request: &mut Request<B>,
        connection: &Arc<ConnectionInfo>,
    ) -> Admitted {
        // Before the policy: balancers may ask without TLS, and by any name of the host.
        if let Some(health) = &self.health
            && let Some(answer) = health.answer(request.method(), request.uri().path())
        {
            return Admitted::Answer(Box::new(answer.map(ResponseBody::full)));
        }
        match &self.policy {
            Some(policy) => policy.admit(request, connection),
            None => Admitted::Dispatch(Arc::clone(connection), IsHttps::default()),
        }
    }

    /// Completes the answer to a request.
    pub(super) fn complete(&self, is_https: IsHttps, answer: &mut Response<ResponseBody>) {
        if let Some(policy) = &self.policy {
            policy.complete(is_https, answer);
        }
    }
}
