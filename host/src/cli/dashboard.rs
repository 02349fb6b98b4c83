//! `dashboard`: a link to the page that the host has for browsers.

use std::process::Stdio;

use super::{
    args::{self, Global},
    exit::{Failure, USAGE},
    output,
};

/// What opens a link in the browser of whoever sits here.
const OPENER: &str = "xdg-open";

/// `handover dashboard`
pub(super) async fn dashboard(global: &Global, args: args::Dashboard) -> Result<(), Failure> {
    if args.open && global.host.is_some() {
        return Err(Failure::with_code(
            USAGE,
            "--open opens a page of this machine: call it without --open, and go to the link through `ssh -L PORT:127.0.0.1:PORT HOST`",
        ));
    }
    let link = global.client().dashboard().await?;
    output::line(&if global.json {
        // Our own type of strings: this cannot fail.
        serde_json::to_string(&link).unwrap_or_default()
    } else {
        link.url.clone()
    });
    if args.open {
        open(&link.url).await?;
    }
    Ok(())
}

async fn open(url: &str) -> Result<(), Failure> {
    let ended = tokio::process::Command::new(OPENER)
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await;
    let why = match ended {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => format!("{OPENER} ended with {status}"),
        Err(error) => format!("{OPENER} cannot be run: {error}"),
    };
    Err(Failure::new(format!(
        "no browser was opened ({why}): open the link above"
    )))
}
