//! Runs the constructor of a loaded plugin.

use std::sync::Arc;

use handover_plugin::abi::{
    import::{AppHandle, HostServices},
    lent::Lent,
    root::{RootRef, Settings},
};

use crate::shown;

/// Runs the constructor of the plugin behind `root`, on this thread.
///
/// # Errors
/// The plugin's own reason, cut to what people can read: it may be a whole page.
pub(crate) fn start<O: HostServices>(
    root: RootRef,
    services: Arc<O>,
    settings: Lent<'_, Settings<'_>>,
) -> Result<AppHandle<O>, String> {
    // SAFETY: the layout was compared by preflight (`Layouts`). `generation`, the only caller,
    // counts in everything that comes out of the handle (`InFlight` goes with calls, bodies,
    // streams and bytes), begins nothing once the gate is closed and nothing is in flight, stops
    // the app after that, and only then closes the library. It has given the offer to the library
    // to keep (`Library::keep`).
    unsafe { AppHandle::start(root, services, settings) }
        .map_err(|reason| shown::truncate(reason, shown::SENTENCE))
}
