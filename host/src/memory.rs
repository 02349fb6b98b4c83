//! Memory that was freed goes back to the system.
//!
//! The C library keeps what is freed below something that is in use, and the heaps of libraries
//! keep what one thread freed of another's, for as long as nobody asks: a crowd of clients that has
//! gone would be paid for until the next restart. Nobody tells how much that is, so it is tried,
//! less and less often as long as nothing comes of it.

use std::{cell::Cell, time::Duration};

use tokio::{runtime::Handle, task::JoinSet};

use crate::{background, loader, process};

/// How long after something came of it, or the process grew, it is tried again; doubled each time
/// that nothing does, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What may stay with the process: giving back keeps whoever allocates waiting, and less than this
/// is soon needed again.
const KEPT: u64 = 64 << 20;

/// How many tasks for each worker make it likely that each has run one.
const TRIES: usize = 4;

thread_local! {
    /// The last round that this worker took part in.
    static ROUND: Cell<u64> = const { Cell::new(0) };
}

/// Gives back what was freed, whenever that is much, for as long as the future lives.
pub(crate) async fn give_back_what_is_free() {
    let (mut pause, mut known) = (FIRST_PAUSE, 0);
    for round in 1.. {
        tokio::time::sleep(pause).await;
        let before = process::private_bytes();
        if before < KEPT {
            pause = FIRST_PAUSE;
            continue;
        }
        collect_on_workers(round).await;
        // Without a thread there is another time.
        let _ = background::run("handover-memory", || {
            if loader::free_bytes() >= KEPT {
                loader::give_back();
            } else {
                loader::give_back_of_heaps();
            }
        })
        .await;
        let after = process::private_bytes();
        let given_back = before.saturating_sub(after);
        if given_back >= KEPT {
            tracing::info!(
                bytes = given_back,
                "memory that was freed went back to the system"
            );
        }
        pause = if given_back >= KEPT || before.saturating_sub(known) >= KEPT {
            FIRST_PAUSE
        } else {
            (2 * pause).min(LONGEST_PAUSE)
        };
        known = after;
    }
}

/// Has the workers look at what others freed of theirs.
async fn collect_on_workers(round: u64) {
    let mut visits = JoinSet::new();
    for _ in 0..TRIES * Handle::current().metrics().num_workers() {
        visits.spawn(async move {
            if ROUND.replace(round) != round {
                loader::collect_here();
            }
        });
    }
    while visits.join_next().await.is_some() {}
}
