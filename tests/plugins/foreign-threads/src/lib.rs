//! Threads that Rust does not start: those of C++, of a C library that comes along, of libc for
//! this library, and such that libc does not know of. `habit` in the configuration chooses, `GET
//! /habit` does it.

use std::{
    convert::Infallible,
    ffi::{CString, c_char, c_int},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    routing::{get, post},
};
use futures_util::stream::unfold;
use handover_plugin::{Context, Error};
use serde::Deserialize;

/// Compiled in, so that an answer proves which code made it.
const VERSION: &str = match option_env!("HANDOVER_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

#[derive(Clone, Debug, Deserialize)]
struct Config {
    habit: String,
    /// The threads end when this file is there.
    until: String,
}

type Habit = unsafe extern "C" fn(*const c_char) -> c_int;

unsafe extern "C" {
    fn cpp_thread(until: *const c_char) -> c_int;
    fn hidden_thread(until: *const c_char) -> c_int;
    fn a_clone(until: *const c_char) -> c_int;
    fn hidden_clone(until: *const c_char) -> c_int;
    fn timer_thread(until: *const c_char) -> c_int;
    fn timer_signal(until: *const c_char) -> c_int;
    fn timers_deleted(until: *const c_char) -> c_int;
    fn told_of_messages(until: *const c_char) -> c_int;
    fn reading(until: *const c_char) -> c_int;
    fn reading_calls(until: *const c_char) -> c_int;
    fn looking_up(until: *const c_char) -> c_int;
    fn called() -> c_int;
    fn came_along_subscribe(call: extern "C" fn(), until: *const c_char) -> c_int;
    fn came_along_hide(until: *const c_char) -> c_int;
    fn came_along_register(call: extern "C" fn()) -> c_int;
    fn came_along_register_briefly(call: extern "C" fn()) -> c_int;
}

static CALLS: AtomicU64 = AtomicU64::new(0);

extern "C" fn told() {
    CALLS.fetch_add(1, Ordering::Relaxed);
}

unsafe extern "C" fn subscribed(until: *const c_char) -> c_int {
    // SAFETY: the caller's promise; `told` may be called on any thread.
    unsafe { came_along_subscribe(told, until) }
}

unsafe extern "C" fn registered(_: *const c_char) -> c_int {
    // SAFETY: `told` may be called on any thread.
    unsafe { came_along_register(told) }
}

unsafe extern "C" fn registered_briefly(_: *const c_char) -> c_int {
    // SAFETY: as above.
    unsafe { came_along_register_briefly(told) }
}

#[handover_plugin::app]
async fn app(cx: Context) -> Result<Router, Error> {
    let config = cx.config::<Config>()?;
    Ok(Router::new()
        .route("/version", get(async || VERSION))
        .route("/echo", post(async |body: Bytes| body))
        .route("/stream", get(stream))
        .route("/habit", get(habit))
        .route("/calls", get(calls))
        .with_state(config))
}

/// Four lines with a pause between them.
async fn stream() -> Body {
    Body::from_stream(unfold(0, |n| async move {
        if n == 4 {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        Some((Ok::<_, Infallible>(format!("{VERSION}\n")), n + 1))
    }))
}

async fn habit(State(config): State<Config>) -> Result<(), String> {
    let habit: Habit = match config.habit.as_str() {
        "cpp-thread" => cpp_thread,
        "came-along" => subscribed,
        "came-along-hidden" => came_along_hide,
        "registered" => registered,
        "registered-briefly" => registered_briefly,
        "hidden-thread" => hidden_thread,
        "clone" => a_clone,
        "hidden-clone" => hidden_clone,
        "timer-thread" => timer_thread,
        "timer-signal" => timer_signal,
        "timers-deleted" => timers_deleted,
        "told-of-messages" => told_of_messages,
        "reading" => reading,
        "reading-calls" => reading_calls,
        "looking-up" => looking_up,
        other => return Err(format!("there is no habit {other}")),
    };
    let until = CString::new(config.until).map_err(|error| error.to_string())?;
    // SAFETY: each may be called by any thread at any time, and copies the name of the file.
    match unsafe { habit(until.as_ptr()) } {
        0 => Ok(()),
        failed => Err(format!("{}: error {failed}", config.habit)),
    }
}

async fn calls() -> String {
    // SAFETY: reads a counter.
    let called = unsafe { called() };
    (u64::try_from(called).unwrap_or_default() + CALLS.load(Ordering::Relaxed)).to_string()
}
