//! A body whose bytes come from a bounded channel: progress lines on their way out, an artifact on
//! its way in.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::sync::mpsc;

/// The reading end of a channel as an HTTP body. It ends when every sender is dropped.
///
/// Unlike the one of `http-body-util`, its sender can wait for [`mpsc::Sender::closed`], so whoever
/// follows events for a client that left learns it at once and not at the next event.
#[derive(Debug)]
pub struct ChannelBody<E>(pub mpsc::Receiver<Result<Bytes, E>>);

impl<E> Body for ChannelBody<E> {
    type Data = Bytes;
    type Error = E;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, E>>> {
        self.0
            .poll_recv(cx)
            .map(|next| next.map(|bytes| bytes.map(Frame::data)))
    }
}
