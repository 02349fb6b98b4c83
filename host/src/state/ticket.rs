//! A commit on its way, and who waits for it.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use super::commit::{Committed, StateError};
use crate::wakers::{Promise, WakerCount};

/// What a commit ends with.
pub(super) type Outcome = Result<Committed, StateError>;

/// A commit on its way.
pub(super) type Ticket = Promise<Outcome>;

/// A commit that somebody in the host waits for. Dropping it leaves the commit on its way.
#[derive(Debug)]
pub struct Pending {
    pub(super) ticket: Arc<Ticket>,
    count: WakerCount,
}

impl Pending {
    pub(super) fn new(ticket: Arc<Ticket>) -> Self {
        Self {
            ticket,
            count: WakerCount::default(),
        }
    }
}

impl Future for Pending {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        self.ticket.poll(cx.waker(), &self.count)
    }
}
