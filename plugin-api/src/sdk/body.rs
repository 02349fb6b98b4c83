//! The body of a request.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;

use crate::abi::body::{BodyError, BodyStream, Imported};

/// The body of a request, streamed from the client with back-pressure, trailers included.
///
/// axum's extractors take it like any other body.
#[derive(Debug, Default)]
pub struct Body(Source);

/// Where a body comes from.
#[derive(Debug, Default)]
enum Source {
    #[default]
    Nowhere,
    Host(Imported<()>),
    /// A connection of a program of its own.
    Own(Box<Incoming>),
}

impl Body {
    /// A body without any bytes.
    pub fn empty() -> Self {
        Self(Source::Nowhere)
    }

    pub(crate) fn of(stream: Option<BodyStream>) -> Self {
        Self(stream.map_or(Source::Nowhere, |stream| Source::Host(stream.import(()))))
    }

    pub(crate) fn own(body: Incoming) -> Self {
        Self(Source::Own(Box::new(body)))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            Source::Host(body) => Pin::new(body).poll_frame(cx),
            Source::Nowhere => Poll::Ready(None),
            Source::Own(body) => Pin::new(body).poll_frame(cx).map(|next| {
                next.map(|next| next.map_err(|error| BodyError::Failed(error.to_string())))
            }),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::Host(body) => body.size_hint(),
            Source::Nowhere => SizeHint::with_exact(0),
            Source::Own(body) => body.size_hint(),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Host(body) => body.is_end_stream(),
            Source::Nowhere => true,
            Source::Own(body) => body.is_end_stream(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_may_be_shared() {
        fn shared<T: Sync>() {}
        shared::<Body>();
    }

    #[test]
    fn a_body_of_another_connection_takes_no_more_room() {
        assert_eq!(size_of::<Body>(), size_of::<Imported<()>>());
    }
}
