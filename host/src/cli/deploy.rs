//! `deploy`, `promote`, `abort`, `reload`, `rollback`: what changes what is live.

use std::{
    io::{self, Write},
    path::Path,
    time::{Duration, Instant},
};

use handover_api::{Label, Steps, Wait, query};

use super::{
    args::{CanaryCommand, Deploy, Global, Labelled, OfApp, Promote, Reload, Rollback},
    build,
    exit::Failure,
    operation::{How, show},
};
use crate::{
    artifact::Signature,
    clock::millis,
    shown,
    writers::{self, WriteLease, Writers, writers},
};

/// How long a file that somebody still writes is waited for, unless `--timeout` says less.
pub(super) const WRITTEN_WITHIN: Duration = Duration::from_secs(10);

/// How often it is looked at meanwhile.
const GLANCE: Duration = Duration::from_millis(50);

/// `handover deploy`
pub(super) async fn deploy(global: &Global, args: Deploy) -> Result<(), Failure> {
    let file = build::artifact(global, &args.file).await?;
    let signature = signature(&file, args.signature.as_deref())?;
    let client = global.client();
    let limit = args
        .timeout
        .map_or(WRITTEN_WITHIN, |timeout| timeout.min(WRITTEN_WITHIN));
    let whole = whole(&file, limit).await?;
    let label = args.label.or(args.stage.then(|| Label::of(Label::NEXT)));
    let asked = query::Deploy {
        app: args.app,
        timeout_ms: args.timeout.map(millis),
        ttl_ms: args.ttl.map(millis),
        label,
        shadow: args.shadow,
        canary: match args.canary {
            Some(first) => Some(
                Steps::beginning_with(first, args.steps)
                    .map_err(|error| Failure::with_code(2, error.to_string()))?,
            ),
            None => None,
        },
        bake_ms: args.bake.map(millis),
        sticky: args.sticky.as_ref().map(ToString::to_string),
        orphan_jobs: args.orphan_jobs,
        override_freeze: args.override_freeze,
        idempotency_key: args.idempotency_key,
        by: args.why.by,
        message: args.why.message,
        queue: args.queue,
        detach: args.detach,
        ..query::Deploy::default()
    };
    let call = async {
        let signature = signature.as_ref().map(Signature::to_header);
        let lines = client.deploy(&file, asked, signature).await;
        // The host has all of it.
        drop(whole);
        lines
    };
    show(
        global,
        How {
            detach: args.detach,
            several: false,
            strict_drain: args.strict_drain,
        },
        call,
    )
    .await
}

/// Waits, at most for `limit`, until nobody has `file` open for writing. Returns what keeps it as
/// it is where the system has that.
///
/// # Errors
/// When somebody has it open still: half of a plugin may look like a whole one.
pub(super) async fn whole(file: &Path, limit: Duration) -> Result<Option<WriteLease>, Failure> {
    let by = Instant::now() + limit;
    let mut is_told = false;
    loop {
        match writers(file) {
            Ok(Writers::Nobody(lease)) => return Ok(Some(lease)),
            // What cannot be opened is told by the one who reads it.
            Ok(Writers::Unknown) | Err(_) => return Ok(None),
            Ok(Writers::Somebody) => {}
        }
        let who = || writers::name_of_one(file).unwrap_or_else(|| "somebody".to_owned());
        if Instant::now() >= by {
            return Err(Failure::new(format!(
                "nothing was deployed: {} has {} open for writing, so it may not be whole; deploy it when it is closed",
                who(),
                shown::path(file)
            )));
        }
        if !is_told {
            is_told = true;
            // Beside what is told of the deploy. Where it cannot be written it is done without.
            let _ = writeln!(
                io::stderr(),
                "waiting for {}, which has {} open for writing",
                who(),
                shown::path(file)
            );
        }
        tokio::time::sleep(GLANCE).await;
    }
}

/// The signature in the file that is named, or in the one beside the artifact if there is one.
pub(super) fn signature(file: &Path, named: Option<&Path>) -> Result<Option<Signature>, Failure> {
    let path = named.map_or_else(|| Signature::beside(file), Path::to_owned);
    match Signature::read(&path) {
        Ok(None) if named.is_some() => {
            Err(Failure::new(format!("there is no file {}", path.display())))
        }
        Ok(signature) => Ok(signature),
        Err(error) => Err(Failure::new(format!(
            "the signature {} cannot be read: {error}",
            path.display()
        ))),
    }
}

/// `handover reload`
pub(super) async fn reload(global: &Global, args: Reload) -> Result<(), Failure> {
    let client = global.client();
    show(
        global,
        How {
            detach: false,
            several: args.app.is_none(),
            strict_drain: false,
        },
        client.reload(args.app.as_ref(), Wait::from_query(args.queue, false)),
    )
    .await
}

/// How an operation of one app is shown, until its end.
const ONE: How = How {
    detach: false,
    several: false,
    strict_drain: false,
};

/// `handover promote`
pub(super) async fn promote(global: &Global, args: Promote) -> Result<(), Failure> {
    let granted = (args.override_freeze, args.orphan_jobs);
    labelled(global, query::PROMOTE, args.what, granted).await
}

/// `handover abort`
pub(super) async fn abort(global: &Global, args: Labelled) -> Result<(), Failure> {
    labelled(global, query::ABORT, args, (false, false)).await
}

async fn labelled(
    global: &Global,
    path: &str,
    args: Labelled,
    (override_freeze, orphan_jobs): (bool, bool),
) -> Result<(), Failure> {
    let client = global.client();
    let query = query::Labelled {
        app: args.app,
        label: args.label,
        by: args.why.by,
        message: args.why.message,
        queue: args.queue,
        detach: false,
        override_freeze,
        orphan_jobs,
    };
    show(global, ONE, client.operate(path, &query)).await
}

/// `handover verify`
pub(super) async fn verify(global: &Global, args: OfApp) -> Result<(), Failure> {
    let client = global.client();
    let query = query::OfApp { app: args.app };
    show(global, ONE, client.operate(query::VERIFY, &query)).await
}

/// `handover canary`
pub(super) async fn canary(global: &Global, command: CanaryCommand) -> Result<(), Failure> {
    let client = global.client();
    match command {
        CanaryCommand::Pause(args) => {
            show(global, ONE, client.pause_canary(args.app.as_ref())).await
        }
        CanaryCommand::Resume(args) => {
            show(global, ONE, client.resume_canary(args.app.as_ref())).await
        }
    }
}

/// `handover rollback`
pub(super) async fn rollback(global: &Global, args: Rollback) -> Result<(), Failure> {
    let client = global.client();
    let query = query::Rollback {
        app: args.app,
        to: args.to,
        restore_snapshot: args.restore_snapshot,
        by: args.why.by,
        message: args.why.message,
        queue: args.queue,
        detach: false,
    };
    show(global, ONE, client.operate(query::ROLLBACK, &query)).await
}
