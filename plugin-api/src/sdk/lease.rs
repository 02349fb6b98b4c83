//! Leases: what only one of an app's generations may do at a time.

use std::future::poll_fn;

use serde::Deserialize;

use super::{
    context::Context,
    jobs::{no_host, poll_work},
    state::StateError,
};
use crate::abi::work::{LEASE, WorkCall};

/// A lease that is held: see [`Context::lease`]. Dropped, it is given back.
#[derive(Debug)]
pub struct Lease {
    /// None in a preflight check.
    call: Option<WorkCall>,
    fence: u64,
    asked_back: bool,
}

impl Lease {
    /// A number that only grows from one holder to the next: who gets work under this lease may
    /// refuse it from one with a lower number.
    pub fn fence(&self) -> u64 {
        self.fence
    }

    /// Ends when it is to be given back: a newer generation has taken over, or the operator took it
    /// away. Drop the lease then, as soon as what it is for has stopped.
    pub async fn asked_back(&mut self) {
        if self.asked_back {
            return;
        }
        match &mut self.call {
            Some(call) => {
                poll_fn(|cx| poll_work(call, cx).map(|_| ())).await;
                self.asked_back = true;
            }
            None => std::future::pending().await,
        }
    }
}

/// What the host says when a lease is held.
#[derive(Deserialize)]
struct Granted {
    fence: u64,
}

/// Waits for the lease `name`.
pub(super) async fn acquire(context: &Context, name: &str) -> Result<Lease, StateError> {
    if context.is_preflight() {
        return Ok(Lease {
            call: None,
            fence: 0,
            asked_back: false,
        });
    }
    let work = context.durable_work().ok_or_else(no_host)?;
    let text = serde_json::json!({ "name": name }).to_string();
    let mut call = work.begin(LEASE, &text, &[], None);
    let (text, _) = poll_fn(|cx| poll_work(&mut call, cx)).await?;
    let Granted { fence } = serde_json::from_str(&text)
        .map_err(|_| StateError::Unavailable("the host gave no number of a holder".to_owned()))?;
    Ok(Lease {
        call: Some(call),
        fence,
        asked_back: false,
    })
}
