//! The answer of an HTTP/2 stream, counted until the socket has taken it.
//!
//! hyper hands whole pieces to the stream, whose task ends with the last one. They may wait there
//! for a client that reads slowly, so each of them says that something is under way.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::{Response, header};
use hyper::body::{Body, Frame, SizeHint};

use super::{
    activity::{Activity, OpenStream},
    connection::Answering,
};
use crate::dispatch::{ResponseBody, body::ResponseBodyError};

/// A request of a stream on its way.
#[derive(Debug)]
pub(super) struct StreamAnswering {
    answering: Answering,
    /// Whether its answer has no body, whatever comes: hyper leaves one out with HTTP/1 only.
    is_head: bool,
    activity: Arc<Activity>,
}

/// The body of its answer.
#[derive(Debug)]
pub(super) struct StreamBody {
    body: ResponseBody,
    activity: Arc<Activity>,
}

/// A piece of it.
#[derive(Debug)]
pub(super) struct StreamBytes {
    bytes: Bytes,
    _stream: OpenStream,
}

impl StreamAnswering {
    pub(super) fn new(answering: Answering, is_head: bool, activity: &Arc<Activity>) -> Self {
        Self {
            answering,
            is_head,
            activity: Arc::clone(activity),
        }
    }
}

impl Future for StreamAnswering {
    type Output = Result<Response<StreamBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut response = ready!(Pin::new(&mut self.answering).poll(cx))?;
        if self.is_head {
            leave_out_body(&mut response);
        }
        let activity = Arc::clone(&self.activity);
        Poll::Ready(Ok(response.map(|body| StreamBody { body, activity })))
    }
}

/// Takes the body out of the answer to a HEAD, and leaves its length.
fn leave_out_body(response: &mut Response<ResponseBody>) {
    if response.body().is_end_stream() {
        return;
    }
    if let Some(length) = response.body().size_hint().exact() {
        let headers = response.headers_mut();
        headers
            .entry(header::CONTENT_LENGTH)
            .or_insert_with(|| length.into());
    }
    *response.body_mut() = ResponseBody::empty();
}

impl Body for StreamBody {
    type Data = StreamBytes;
    type Error = ResponseBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<StreamBytes>, ResponseBodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let counted = |bytes| StreamBytes {
            bytes,
            _stream: self.activity.stream(),
        };
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(counted))))
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

impl Buf for StreamBytes {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, number: usize) {
        self.bytes.advance(number);
    }
}
