//! What is done with each request of a listener beside giving it to its app. A listener that has
//! none of it gives requests to apps with one look at that.

use std::sync::Arc;

use http::{HeaderValue, Request, Response};
use http_body::Body;

use super::{
    identity,
    policy::{Admitted, IsHttps, Policy},
};
use crate::{
    dispatch::{ConnectionInfo, ResponseBody, bad_request, malformed},
    health::Health,
};

/// What is done with each request of a listener.
#[derive(Debug)]
pub(crate) struct Middleware {
    pub(crate) policy: Option<Policy>,
    /// What is answered for the health of the node. None: apps have all paths.
    pub(crate) health: Option<Health>,
    /// Whether each request has an id.
    pub(crate) identifies: bool,
}

/// What is left to be done with the answer.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// None: the policy has nothing to do with it.
    is_https: Option<IsHttps>,
    identified: Option<Box<Identified>>,
}

/// A request that has an id.
#[derive(Debug)]
struct Identified {
    id: HeaderValue,
}

/// Where a request goes on: to its app, or back with an answer of the host.
pub(super) enum Verdict {
    /// It is dispatched as what came over this connection.
    Dispatch(Arc<ConnectionInfo>, Pending),
    /// It is answered without an app.
    Answer(Box<Response<ResponseBody>>, Pending),
}

impl Middleware {
    /// Returns it, if it does anything.
    pub(crate) fn if_any(self) -> Option<Self> {
        let is_any = self.policy.is_some() || self.health.is_some() || self.identifies;
        is_any.then_some(self)
    }

    /// Looks at `request`, which came over `connection`, and changes what its app is to see of it.
    pub(super) fn admit<B: Body>(
        &self,
        request: &mut Request<B>,
        connection: &Arc<ConnectionInfo>,
    ) -> Verdict {
        let refused = malformed(request);
        // Before the policy: balancers may ask without TLS, and by any name of the host.
        if refused.is_none()
            && let Some(health) = &self.health
            && let Some(answer) = health.answer(request.method(), request.uri().path())
        {
            let answer = Box::new(answer.map(ResponseBody::full));
            return Verdict::Answer(answer, Pending::default());
        }
        let id = self.identifies.then(|| {
            let policy = self.policy.as_ref();
            let is_trusted = policy.is_some_and(|policy| policy.trusts(connection));
            identity::identify(request.headers_mut(), is_trusted)
        });
        let admitted = match (refused, &self.policy) {
            (Some(why), _) => Admitted::Answer(Box::new(bad_request(request.version(), why))),
            (None, Some(policy)) => policy.admit(request, connection),
            (None, None) => Admitted::Dispatch(Arc::clone(connection), IsHttps::default()),
        };
        let identified = id.map(|id| Box::new(Identified { id }));
        let pending = |is_https| Pending {
            is_https,
            identified,
        };
        match admitted {
            Admitted::Dispatch(connection, is_https) => {
                Verdict::Dispatch(connection, pending(Some(is_https)))
            }
            Admitted::Answer(answer) => Verdict::Answer(answer, pending(None)),
        }
    }

    /// Completes the answer to a request.
    pub(super) fn complete(&self, pending: Pending, answer: &mut Response<ResponseBody>) {
        if let (Some(policy), Some(is_https)) = (&self.policy, pending.is_https) {
            policy.complete(is_https, answer);
        }
        if let Some(identified) = pending.identified {
            identity::tell(identified.id, answer.headers_mut());
        }
    }
}
