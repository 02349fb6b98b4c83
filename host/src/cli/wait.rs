//! `wait`: the end of an operation that somebody else watches, or nobody.

use super::{
    args::{Global, WaitFor},
    exit::Failure,
    operation::{How, show},
};

/// `handover wait`
pub(super) async fn wait(global: &Global, args: WaitFor) -> Result<(), Failure> {
    let client = global.client();
    let how = How {
        detach: false,
        several: true,
        strict_drain: args.strict_drain,
    };
    let ended = show(global, how, client.operation(&args.operation));
    match args.timeout {
        None => ended.await,
        Some(timeout) => tokio::time::timeout(timeout, ended)
            .await
            .unwrap_or_else(|_| {
                Err(Failure::new(format!(
                    "{} goes on: it has not ended within {}",
                    args.operation,
                    humantime::format_duration(timeout)
                )))
            }),
    }
}
