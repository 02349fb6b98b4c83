//! Code that runs outside of requests (initialisers, destructors, drops, wakers), each of which
//! blocks as long as a file of its name is in the folder that `SLOW_ENDS` names.

use std::{
    cell::RefCell,
    convert::Infallible,
    ffi::{CString, c_char},
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll, Wake, Waker},
    thread,
};

use axum::{Router, body::Body, extract::State, routing::get};
use bytes::Bytes;
use futures_util::Stream;
use handover_plugin::{Context, Error};

/// Compiled in, so that an answer proves which code made it.
const VERSION: &str = match option_env!("HANDOVER_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

unsafe extern "C" {
    fn slow_ends_wait(name: *const c_char);
}

fn wait(name: &str) {
    let name = CString::new(name).unwrap_or_default();
    // SAFETY: reads the string only.
    unsafe { slow_ends_wait(name.as_ptr()) };
}

/// Blocks when it is dropped, as long as the file of its name is there.
#[derive(Debug)]
struct SlowDrop(&'static str);

impl Drop for SlowDrop {
    fn drop(&mut self) {
        wait(self.0);
    }
}

thread_local! {
    static LOCAL: RefCell<Option<SlowDrop>> = const { RefCell::new(None) };
}

#[handover_plugin::app]
async fn app(cx: Context) -> Result<Router, Error> {
    Ok(Router::new()
        .route("/version", get(async || VERSION))
        .route("/drop", get(drop_slowly))
        .route("/body", get(body))
        .route("/bytes", get(bytes))
        .route("/local", get(local))
        .route("/hook", get(hook))
        .route("/thread", get(stay))
        .with_state(cx))
}

async fn drop_slowly() -> &'static str {
    let _slow = SlowDrop("drop");
    std::future::pending::<()>().await;
    "never"
}

async fn body() -> Body {
    Body::from_stream(SlowBody {
        begun: false,
        _slow: SlowDrop("body"),
    })
}

async fn bytes() -> Bytes {
    Bytes::from_owner(SlowBytes {
        bytes: vec![b'x'; 64 << 10],
        _slow: SlowDrop("bytes"),
    })
}

/// One piece, and then nothing for ever.
struct SlowBody {
    begun: bool,
    _slow: SlowDrop,
}

impl Stream for SlowBody {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, _cx: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::replace(&mut self.begun, true) {
            return Poll::Pending;
        }
        Poll::Ready(Some(Ok(Bytes::from_static(b"begin\n"))))
    }
}

struct SlowBytes {
    bytes: Vec<u8>,
    _slow: SlowDrop,
}

impl AsRef<[u8]> for SlowBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

async fn local() -> &'static str {
    LOCAL.with_borrow_mut(|local| local.get_or_insert(SlowDrop("local")).0)
}

/// Blocks whoever wakes it.
struct SlowWaker;

impl Wake for SlowWaker {
    fn wake(self: Arc<Self>) {
        wait("hook");
    }
}

/// From now on the app blocks whoever tells it to drain.
async fn hook(State(cx): State<Context>) -> &'static str {
    let mut draining = Box::pin(cx.draining());
    let waker = Waker::from(Arc::new(SlowWaker));
    if draining
        .as_mut()
        .poll(&mut TaskContext::from_waker(&waker))
        .is_ready()
    {
        return "it drains already";
    }
    // Kept as long as the app is: it holds the place in the list of those who are told.
    tokio::spawn(async move {
        let _draining = draining;
        std::future::pending::<()>().await;
    });
    "done"
}

/// A thread that lives as long as the file `thread` does.
async fn stay() -> &'static str {
    let thread = thread::Builder::new().name("stays".to_owned());
    match thread.spawn(|| wait("thread")) {
        Ok(_) => "done",
        Err(_) => "no thread",
    }
}
