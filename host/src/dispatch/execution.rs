//! An app with threads of its own: `execution = "own"`. Its handlers and the bodies of its answers
//! run there, and nothing else does; a handler that blocks holds up its own app, and no worker of
//! the host.
//!
//! That costs two hand-overs between threads for each request. Sockets stay with the host's
//! workers: they only wait.

use std::{
    io,
    num::NonZeroUsize,
    pin::Pin,
    task::{Context, Poll},
    thread,
};

use bytes::Bytes;
use handover_api::AppName;
use http::Response;
use http_body::Body;
use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::JoinHandle,
};

use super::{body::ResponseBody, call::Dispatched};
use crate::{config, ledger};

/// The threads of an app.
#[derive(Debug)]
pub(super) struct Threads {
    /// None only while it is dropped.
    runtime: Option<Runtime>,
    handle: Handle,
}

impl Threads {
    /// Starts the threads of `app`, if its settings want some.
    pub(super) fn start(app: &AppName, settings: &config::App) -> io::Result<Option<Self>> {
        if settings.execution == config::Execution::Shared {
            return Ok(None);
        }
        let number = settings
            .execution_threads
            .or_else(|| thread::available_parallelism().ok())
            .map_or(1, NonZeroUsize::get);
        let runtime = Builder::new_multi_thread()
            .worker_threads(number)
            .thread_name(format!("own-{app}"))
            .on_thread_start(ledger::mark_worker)
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        // They run code of plugins, so they may owe it something when it leaves.
        ledger::visit_as_well(handle.clone());
        Ok(Some(Self {
            runtime: Some(runtime),
            handle,
        }))
    }

    /// Runs a request there.
    pub(super) fn run<B>(&self, dispatched: Dispatched<B>) -> OffloadedCall
    where
        B: Body<Data = Bytes, Error: std::fmt::Display> + Send + Unpin + 'static,
    {
        let answering = async move { dispatched.await.map(ResponseBody::pumped) };
        OffloadedCall(self.handle.spawn(answering))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting for threads is not for a thread that has others to serve.
            runtime.shutdown_background();
        }
    }
}

/// A request that runs on the threads of its app. Dropping it cancels it there.
#[derive(Debug)]
pub(super) struct OffloadedCall(JoinHandle<Response<ResponseBody>>);

impl OffloadedCall {
    /// The answer; none when there is none, because the host ends.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Response<ResponseBody>>> {
        Pin::new(&mut self.0).poll(cx).map(Result::ok)
    }
}

impl Drop for OffloadedCall {
    fn drop(&mut self) {
        self.0.abort();
    }
}
