//! What is done with each request of a listener beside giving it to its app. A listener that has
//! none of it gives requests to apps with one look at that.

use std::sync::Arc;

use http::{HeaderValue, Request, Response};
use http_body::Body;

use super::{
    challenges::Challenges,
    identity,
    observe::{Observed, Observer},
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
    /// What authorities may ask for. None: no certificate is ordered.
    pub(crate) challenges: Option<Challenges>,
    /// Whether each request has an id.
    pub(crate) identifies: bool,
    /// What is told of requests when they have ended.
    pub(crate) observer: Option<Observer>,
}

/// What is left to be done with the answer.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// None: the policy has nothing to do with it.
    is_https: Option<IsHttps>,
    told: Option<Box<Told>>,
}

/// A request that has an id, or is told of.
#[derive(Debug)]
struct Told {
    id: Option<HeaderValue>,
    observed: Option<Observed>,
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
        let answers = self.health.is_some() || self.challenges.is_some();
        let changes = self.policy.is_some() || self.identifies || self.observer.is_some();
        (answers || changes).then_some(self)
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
        // They ask without TLS, and a redirect would lead them to where no certificate is yet.
        if refused.is_none()
            && let Some(challenges) = &self.challenges
            && let Some(answer) = challenges.answer(request.method(), request.uri().path())
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
        let client = match &admitted {
            Admitted::Dispatch(of_client, _) => of_client,
            Admitted::Answer(_) => connection,
        };
        let observer = self.observer.as_ref();
        let observed = observer.map(|observer| observer.begin(request, client, id.as_ref()));
        let told = (id.is_some() || observed.is_some()).then(|| Box::new(Told { id, observed }));
        let pending = |is_https| Pending { is_https, told };
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
        let Some(told) = pending.told else { return };
        if let Some(id) = told.id {
            identity::tell(id, answer.headers_mut());
        }
        if let Some(observed) = told.observed {
            observed.answered(answer);
        }
    }
}
