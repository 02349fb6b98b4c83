//! The body of a request.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::abi::body::{BodyError, BodyStream, Imported};

/// The body of a request, streamed from the client with back-pressure, trailers included.
///
/// axum's extractors take it like any other body.
#[derive(Debug, Default)]
pub struct Body(Option<Imported<()>>);

impl Body {
    /// A body without any bytes.
    pub fn empty() -> Self {
        Self(None)
    }

    pub(crate) fn of(stream: Option<BodyStream>) -> Self {
        Self(stream.map(|stream| stream.import(())))
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
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.0
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint)
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(http_body::Body::is_end_stream)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_body_may_be_shared() {
        fn shared<T: Sync>() {}
        shared::<super::Body>();
    }
}
