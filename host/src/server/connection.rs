//! One connection. It belongs to no generation: each of its requests finds its own.

use std::{convert::Infallible, net::SocketAddr, pin::Pin, sync::Arc, task};

use http::{Request, Response};
use hyper::{body::Incoming, service::Service};

use crate::{
    dispatch::{AnswerBody, Dispatched, Origin, Routes, dispatch},
    generation::Cut,
};

/// Answers the requests of one connection.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    pub(super) routes: Arc<Routes>,
    pub(super) peer: Option<SocketAddr>,
    pub(super) cut: Arc<Cut>,
    pub(super) name_version: bool,
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        let origin = Origin {
            peer: self.peer,
            cut: Some(&self.cut),
            name_version: self.name_version,
        };
        Answering(dispatch(&self.routes, request, origin))
    }
}

/// A request on its way; there is always an answer.
#[derive(Debug)]
pub(super) struct Answering(Dispatched<Incoming>);

impl Future for Answering {
    type Output = Result<Response<AnswerBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> task::Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(Ok)
    }
}
