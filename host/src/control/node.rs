//! `drain-node`: the node says that no more traffic should come, and waits until none does.

use std::time::Duration;

use handover_api::{EventKind, NodeDrain, query};
use tokio::time::Instant;

use super::server::Host;
use crate::human;

/// How often it is looked whether traffic is left.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long nothing may have come for the traffic to be gone: balancers that have not noticed yet
/// still send some.
const QUIET: Duration = Duration::from_secs(2);

/// What is under way on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Traffic {
    in_flight: u64,
    busy_connections: u64,
    /// How many requests apps were ever given.
    requests: u64,
}

/// Drains the node, or ends that, and waits if that is asked for. A caller that leaves takes
/// nothing back.
pub(super) async fn drain(host: &Host, asked: query::DrainNode) -> NodeDrain {
    let drained = !asked.undo;
    if host.health.set_drained(drained) {
        let (kind, message) = if drained {
            (
                EventKind::NodeDrained,
                "the node is drained: /readyz answers 503, and what comes is still served",
            )
        } else {
            (
                EventKind::NodeResumed,
                "the node is no longer drained: traffic may come",
            )
        };
        host.orchestrator.record(kind, message);
    }
    if asked.undo {
        return told(host, None, "the node is no longer drained".to_owned());
    }
    let Some(wait) = asked.wait_ms.map(Duration::from_millis) else {
        return told(host, None, "the node is drained".to_owned());
    };
    if is_quiet(host, wait).await {
        return told(
            host,
            Some(true),
            "the node is drained, and its traffic has gone".to_owned(),
        );
    }
    let left = match (host.health.is_drained(), Traffic::of(host)) {
        (false, _) => "somebody has ended the drain meanwhile".to_owned(),
        (true, left) if left.is_none() => "requests still come".to_owned(),
        (true, left) => format!(
            "{} and {} are left",
            human::pluralize(left.in_flight, "request"),
            human::pluralize(left.busy_connections, "busy connection")
        ),
    };
    let waited = humantime::format_duration(wait);
    told(host, Some(false), format!("after {waited}, {left}"))
}

/// Waits for `wait` at the most until nothing is under way and nothing has come for a while.
/// Returns whether that came to be.
async fn is_quiet(host: &Host, wait: Duration) -> bool {
    let by = Instant::now() + wait;
    let (mut before, mut since) = (Traffic::of(host), Instant::now());
    loop {
        let now = Traffic::of(host);
        if !now.is_none() || now != before {
            (before, since) = (now, Instant::now());
        } else if since.elapsed() >= QUIET {
            return true;
        }
        if Instant::now() >= by || !host.health.is_drained() {
            return false;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

impl Traffic {
    fn of(host: &Host) -> Self {
        let (in_flight, requests) = host.orchestrator.traffic();
        Self {
            in_flight,
            busy_connections: host.connections.busy(),
            requests,
        }
    }

    fn is_none(self) -> bool {
        self.in_flight == 0 && self.busy_connections == 0
    }
}

fn told(host: &Host, is_quiet: Option<bool>, message: String) -> NodeDrain {
    let traffic = Traffic::of(host);
    NodeDrain {
        drained: host.health.is_drained(),
        in_flight: traffic.in_flight,
        busy_connections: traffic.busy_connections,
        is_quiet,
        message,
    }
}
