//! `shutdown`: the end of the host.

use super::{
    args::{self, Global},
    exit::Failure,
    output,
};

/// `handover shutdown`: asks, and waits until the host is gone.
pub(super) async fn shutdown(global: &Global, args: args::Shutdown) -> Result<(), Failure> {
    let client = global.client();
    // A connection that only the end of the host closes: no asking again and again.
    let mut gone = client.events(true).await?;
    let answer = client.shutdown(args.now).await?;
    if !global.json {
        output::line(&if args.now {
            format!("host {} ends", answer.pid)
        } else {
            format!("host {} finishes what is in flight, then ends", answer.pid)
        });
    }
    while let Ok(Some(_)) = gone.next().await {}
    output::line(&if global.json {
        // Our own type of numbers: this cannot fail.
        serde_json::to_string(&answer).unwrap_or_default()
    } else {
        format!("host {} has ended", answer.pid)
    });
    Ok(())
}
