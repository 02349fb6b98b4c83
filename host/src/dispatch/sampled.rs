//! A request of an app with a version on trial: how it ends is told to the trial.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Response;
use http_body::Body;

use super::{body::ResponseBody, call::Dispatched};
use crate::canary::Sample;

/// A request that is told of. One that is dropped was left by its client, and is not.
#[derive(Debug)]
pub(super) struct Sampled<B> {
    dispatched: Dispatched<B>,
    sample: Arc<Sample>,
}

impl<B> Sampled<B>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Send + Unpin + 'static,
{
    pub(super) fn new(dispatched: Dispatched<B>, sample: Arc<Sample>) -> Self {
        Self { dispatched, sample }
    }

    /// The trial's ear, for whoever ends the request in another way.
    pub(super) fn sample(&self) -> &Arc<Sample> {
        &self.sample
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Response<ResponseBody>> {
        let response = ready!(Pin::new(&mut self.dispatched).poll(cx));
        self.sample.answered(response.status().is_server_error());
        Poll::Ready(response)
    }
}
