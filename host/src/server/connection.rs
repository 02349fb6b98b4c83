//! One connection. It belongs to no generation: each of its requests finds its own.

use std::{convert::Infallible, pin::Pin, sync::Arc, task};

use http::{Request, Response};
use hyper::{body::Incoming, service::Service};

use crate::dispatch::{AnswerBody, Dispatched, Origin, Routes, dispatch};

/// Answers the requests of one connection.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    pub(super) routes: Arc<Routes>,
    pub(super) origin: Origin,
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        Answering(dispatch(&self.routes, request, self.origin))
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
