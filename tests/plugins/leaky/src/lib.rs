//! Caches in statics, which are never dropped: one that a constructor fills, before the host knows
//! the library, and one that the first of its requests fills.

use std::sync::OnceLock;

use axum::{Router, routing::get};
use handover_plugin::{Context, Error};
use tokio::signal::unix::{SignalKind, signal};

const MIB: usize = 1 << 20;

static EARLY: OnceLock<Vec<u8>> = OnceLock::new();
static CACHE: OnceLock<Vec<u8>> = OnceLock::new();

extern "C" fn constructor() {
    EARLY.get_or_init(|| vec![1; 3 * MIB]);
}

/// Runs as the library is mapped.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;

#[handover_plugin::app]
async fn app(_: Context) -> Result<Router, Error> {
    // tokio's registry of signals is a static as well.
    drop(signal(SignalKind::user_defined2())?);
    Ok(Router::new()
        .route("/cache", get(cache))
        .route("/stay", get(stay)))
}

async fn cache() -> String {
    let cache = tokio::task::spawn_blocking(|| CACHE.get_or_init(|| vec![7; 8 * MIB]));
    let filled = cache.await.map_or(0, Vec::len);
    let early = EARLY.get().map_or(0, Vec::len);
    (filled + early).to_string()
}

/// Starts a thread that never ends.
async fn stay() -> &'static str {
    std::thread::spawn(|| {
        loop {
            std::thread::park();
        }
    });
    "stays"
}
