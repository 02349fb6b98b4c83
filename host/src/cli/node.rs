//! `drain-node`: whether balancers are to send more traffic here.

use std::io;

use handover_api::query;

use super::{
    args::{DrainNode, Global},
    exit::{FAILURE, Failure},
    output,
};
use crate::clock::millis;

/// `handover drain-node`
pub(super) async fn drain_node(global: &Global, args: &DrainNode) -> Result<(), Failure> {
    let query = query::DrainNode {
        undo: args.undo,
        wait_ms: args.wait.map(millis),
        by: None,
    };
    let answer = global.client().drain_node(&query).await?;
    let is_left = answer.is_quiet == Some(false);
    if global.json {
        // Our own type of strings and numbers: this cannot fail.
        output::line(&serde_json::to_string(&answer).unwrap_or_default());
    } else if !is_left {
        let colour = output::colour(&io::stdout(), global);
        output::line(&output::done(&answer.message, colour));
    }
    match (is_left, global.json) {
        (false, _) => Ok(()),
        (true, true) => Err(Failure::silent(FAILURE)),
        (true, false) => Err(Failure::new(format!(
            "{}; the node stays drained, and serves what comes",
            answer.message
        ))),
    }
}
