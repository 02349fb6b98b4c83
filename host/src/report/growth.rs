//! How much memory the live generations take while the process grows, so that the next host knows
//! who ate it all.
//!
//! The kernel kills the whole process, without a word about whose memory it was. So the heaps are
//! measured whenever the process has grown by a step, and the journal has the last figures. A
//! process that does not grow is asked for its size only.

use std::{sync::Weak, thread, time::Duration};

use handover_api::AppName;

use crate::{
    apps::registry::Registry,
    process,
    records::journal::{Journal, Written},
};

/// How often the size of the process is looked at: memory is eaten in seconds.
const TICK: Duration = Duration::from_millis(100);
/// By how much the process has to grow for its heaps to be measured.
const STEP: u64 = 16 << 20;
/// What an app may grow by without being to blame.
const MUCH: u64 = 32 << 20;

/// Starts to look, until nobody holds `alive` any more.
pub(crate) fn watch(registry: &Registry, journal: &Journal, alive: Weak<()>) {
    let (registry, journal) = (registry.clone(), journal.clone());
    let started = thread::Builder::new()
        .name("growth".to_owned())
        .spawn(move || {
            let mut largest = 0;
            while alive.strong_count() > 0 {
                look(&registry, &journal, &mut largest);
                thread::sleep(TICK);
            }
        });
    if let Err(error) = started {
        tracing::error!("no thread can be started to see which app grows: {error}");
    }
}

/// Looks once.
fn look(registry: &Registry, journal: &Journal, largest: &mut u64) {
    let size = process::private_bytes();
    if size < *largest + STEP {
        // What was given back may be eaten again.
        *largest = size.max(largest.saturating_sub(STEP)).min(*largest);
        return;
    }
    *largest = size;
    let heaps: Vec<_> = registry
        .all()
        .into_iter()
        .filter_map(|app| {
            let measured = app.running(|running| {
                let live = running.serving.primary()?;
                Some((
                    live.active.generation().spec().id,
                    live.active.heap_bytes()?,
                ))
            });
            measured.map(|(id, bytes)| (app.name.clone(), id, bytes))
        })
        .collect();
    if heaps.is_empty() {
        return; // nothing to write down
    }
    journal.change(|written| {
        for (app, id, bytes) in heaps {
            if let Some(lived) = written.live.get_mut(&app)
                && lived.generation == id
            {
                lived.heap.1 = bytes;
            }
        }
    });
}

/// The app that ate the memory of the host before, and the sentence about it; none when none grew
/// by much.
pub(crate) fn eater(before: &Written) -> Option<(AppName, String)> {
    let grown = before
        .live
        .iter()
        .map(|(app, lived)| (lived.heap.1.saturating_sub(lived.heap.0), app, lived));
    let (growth, app, lived) = grown.max_by_key(|(growth, ..)| *growth)?;
    let mib = |bytes: u64| bytes >> 20;
    (growth >= MUCH).then(|| {
        let place = format!(
            " while {app} {} ({}) grew from {} to {} MiB",
            lived.generation,
            lived.version,
            mib(lived.heap.0),
            mib(lived.heap.1)
        );
        (app.clone(), place)
    })
}
