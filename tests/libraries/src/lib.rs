//! An app whose every answer is made by a library that nobody here wrote, chosen by a feature.
//!
//! The library is used from C (`native/NAME.c`), as its own documentation does it: once in a
//! handler on a worker of the host, once on a thread that blocks, and four times for a stream. With
//! `tidy` in the configuration it is shut down when the app is dropped; without, never, as most
//! authors have it.

use std::{convert::Infallible, path::PathBuf, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use futures_util::stream::unfold;
use handover_plugin::{Context, Error};
use serde::Deserialize;

// Compiled from source and linked statically.
#[cfg(feature = "git2-static")]
use libgit2_sys as _;
#[cfg(feature = "rdkafka-static")]
use rdkafka_sys as _;

#[cfg(feature = "jemalloc-allocator")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Debug, Deserialize)]
struct Config {
    /// Whether the library is shut down.
    tidy: bool,
    /// Where generations make folders of their own.
    folder: PathBuf,
    /// The shared library, for one that is opened by its path.
    #[serde(default)]
    file: String,
    /// A server on this machine, for a client.
    #[serde(default)]
    url: String,
}

/// The started library, and the version that says so.
#[derive(Debug)]
struct Library {
    tidy: bool,
    version: String,
}

#[handover_plugin::app]
async fn app(cx: Context) -> Result<Router, Error> {
    let config = cx.config::<Config>()?;
    // The child process of preflight has folders apart from the host's.
    let folder = config
        .folder
        .join(format!("{}-{}", std::process::id(), cx.generation()));
    std::fs::create_dir_all(&folder).map_err(Error::msg)?;
    native::start(&folder.to_string_lossy(), &config.file, &config.url).map_err(Error::msg)?;
    let library = Library {
        tidy: config.tidy,
        version: cx.version().to_owned(),
    };
    Ok(Router::new()
        .route("/version", get(here))
        .route("/echo", post(elsewhere))
        .route("/stream", get(stream))
        .with_state(Arc::new(library)))
}

impl Drop for Library {
    fn drop(&mut self) {
        if self.tidy {
            native::stop();
        }
    }
}

/// Uses the library on the thread of the host that asks.
async fn here(State(library): State<Arc<Library>>) -> Result<String, (StatusCode, String)> {
    native::used().map_err(|why| (StatusCode::INTERNAL_SERVER_ERROR, why))?;
    Ok(library.version.clone())
}

/// Uses the library on a thread that may block.
async fn elsewhere(
    State(_library): State<Arc<Library>>,
    body: Bytes,
) -> Result<Bytes, (StatusCode, String)> {
    let used = tokio::task::spawn_blocking(native::used).await;
    used.unwrap_or_else(|error| Err(error.to_string()))
        .map_err(|why| (StatusCode::INTERNAL_SERVER_ERROR, why))?;
    Ok(body)
}

/// Four lines, one each millisecond, and the library for each of them.
async fn stream(State(library): State<Arc<Library>>) -> Body {
    Body::from_stream(unfold(0, move |n| {
        let library = Arc::clone(&library);
        async move {
            if n == 4 {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
            let line = match native::used() {
                Ok(()) => format!("{}\n", library.version),
                Err(why) => format!("{why}\n"),
            };
            Some((Ok::<_, Infallible>(line), n + 1))
        }
    }))
}

/// The three functions of `native/library.h`.
#[cfg(feature = "native")]
mod native {
    use std::ffi::{CString, c_char, c_int};

    unsafe extern "C" {
        fn library_start(
            folder: *const c_char,
            file: *const c_char,
            url: *const c_char,
            error: *mut c_char,
            size: usize,
        ) -> c_int;
        fn library_use(error: *mut c_char, size: usize) -> c_int;
        fn library_stop();
    }

    /// Calls `call` with room for an error.
    fn told(call: impl FnOnce(*mut c_char, usize) -> c_int) -> Result<(), String> {
        let mut error = [0u8; 512];
        if call(error.as_mut_ptr().cast(), error.len()) == 0 {
            return Ok(());
        }
        let text = error.split(|byte| *byte == 0).next().unwrap_or_default();
        Err(String::from_utf8_lossy(text).into_owned())
    }

    pub(super) fn start(folder: &str, file: &str, url: &str) -> Result<(), String> {
        let [folder, file, url] =
            [folder, file, url].map(|text| CString::new(text).unwrap_or_default());
        // SAFETY: the texts end in a zero and outlive the call, the room for the error is as long
        // as said.
        told(|error, size| unsafe {
            library_start(folder.as_ptr(), file.as_ptr(), url.as_ptr(), error, size)
        })
    }

    pub(super) fn used() -> Result<(), String> {
        // SAFETY: the library is started before there is a router, and stopped after the last
        // request.
        told(|error, size| unsafe { library_use(error, size) })
    }

    pub(super) fn stop() {
        // SAFETY: the state of the router is dropped once, after the last request.
        unsafe { library_stop() }
    }
}

#[cfg(not(feature = "native"))]
mod native {
    pub(super) fn start(_: &str, _: &str, _: &str) -> Result<(), String> {
        Ok(())
    }

    pub(super) fn used() -> Result<(), String> {
        Ok(())
    }

    pub(super) fn stop() {}
}
