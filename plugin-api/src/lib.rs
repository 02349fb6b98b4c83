//! Everything between a handover host and its plugins: the ABI that both compile, and the SDK to
//! write a plugin with.
//!
//! ```ignore
//! use handover_plugin::{Context, Error};
//!
//! #[handover_plugin::app]
//! async fn app(cx: Context) -> Result<axum::Router, Error> {
//!     Ok(axum::Router::new().route("/", axum::routing::get(|| async { "hello" })))
//! }
//! ```
#![deny(unsafe_code)]

pub mod abi;
#[cfg(feature = "sdk")]
mod sdk;

#[cfg(feature = "sdk")]
pub use handover_plugin_macros::{app, db_revision, job, main, migration, on_live, schedule};
#[cfg(feature = "sessions")]
pub use sdk::sessions::Sessions;
#[cfg(feature = "testing")]
pub use sdk::testing;
#[cfg(feature = "sdk")]
pub use sdk::{
    app::App,
    body::Body,
    cache::Cache,
    connection::{Connection, Tls},
    context::Context,
    error::Error,
    jobs::{Enqueue, Enqueuing, JobContext, JobError, JobId, JobInfo, Jobs},
    lease::Lease,
    log::layer,
    rate_limit::{Decision, RateLimiter},
    serve::{ForEach, IncomingConnection, IntoApp, Itself, Listener, Serve, serve},
    settings::{Message, Setting, Settings, SettingsChanges},
    state::{
        Batch, BatchNamespace, Change, Changes, Scan, Snapshot, State, StateError, Transaction,
        Watch, Write,
    },
    trace::request_span,
    worker::{Stop, worker},
};

/// Gives the plugin that expands this a heap that leaves with it. Not for use by hand: `#[app]`
/// does.
#[cfg(all(feature = "sdk", feature = "own-heap"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __own_heap {
    () => {
        #[unsafe(no_mangle)]
        static HANDOVER_HEAP: $crate::abi::heap::HeapRoot = $crate::abi::heap::HeapRoot::new();

        #[global_allocator]
        static OWN_HEAP: $crate::abi::heap::OwnHeap = $crate::abi::heap::OwnHeap(&HANDOVER_HEAP);
    };
}

/// Nothing: the feature `own-heap` is off.
#[cfg(all(feature = "sdk", not(feature = "own-heap")))]
#[doc(hidden)]
#[macro_export]
macro_rules! __own_heap {
    () => {};
}

/// What the macros expand to. Not for use by hand, and not a promise.
#[cfg(feature = "sdk")]
#[doc(hidden)]
pub mod __private {
    pub use abi_stable::library::LibHeader;

    pub use crate::{
        abi::{
            declared::{Declared, line},
            export::{Entry, HostHandle, Plugin, header},
            lent::Lent,
            manifest::{Facts, says_dirty},
            root::Settings,
        },
        sdk::{
            app::start,
            db_revision::{DbRevision, RevisionFuture, run_db_revision},
            jobs::{JobHandler, run_job, run_scheduled},
            migration::{Migration, MigrationFuture, run_migration},
            on_live::{LiveFuture, OnLive, run_on_live},
            program::{Flavor, run, start as start_main},
        },
    };
}
