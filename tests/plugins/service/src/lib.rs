//! An app without a framework: a `tower::Service` written by hand, whose answers end with trailers.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    task::{Context as TaskContext, Poll},
};

use bytes::Bytes;
use handover_plugin::{Context, Error};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use tower_service::Service;

#[handover_plugin::app]
async fn app(_cx: Context) -> Result<Plain, Error> {
    Ok(Plain)
}

/// Answers everything with the method and the path, but `/fail` with an error of its own.
#[derive(Debug, Clone)]
struct Plain;

impl<B> Service<Request<B>> for Plain {
    type Response = Response<Parts>;
    type Error = &'static str;
    type Future = Ready<Result<Self::Response, &'static str>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), &'static str>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if request.uri().path() == "/fail" {
            return ready(Err("the service fails"));
        }
        let text = format!("{} {}", request.method(), request.uri().path());
        let mut trailers = HeaderMap::new();
        trailers.insert("x-length", HeaderValue::from(text.len()));
        let parts = Parts {
            data: Some(text.into()),
            trailers: Some(trailers),
        };
        let mut response = Response::new(parts);
        response
            .headers_mut()
            .insert("trailer", HeaderValue::from_static("x-length"));
        ready(Ok(response))
    }
}

/// One piece of data, then the trailers.
#[derive(Debug)]
struct Parts {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = self.data.take().map(Frame::data);
        let frame = data.or_else(|| self.trailers.take().map(Frame::trailers));
        Poll::Ready(frame.map(Ok))
    }
}
