//! `stop`, `start`, `restart`, `pause`, `resume`: whether apps answer.

use std::{fs, io::Read};

use handover_api::{AppName, Client, query};

use super::{
    args::{Apps, Global, Operate, Pause, Stop},
    exit::Failure,
    operation::{How, show},
};
use crate::clock::millis;

/// The longest message of a stopped app, in bytes: it travels in the target of a request.
const MESSAGE: u64 = 16 << 10;

/// `handover stop`
pub(super) async fn stop(global: &Global, args: Stop) -> Result<(), Failure> {
    let message = match &args.page {
        Some(file) => {
            let mut text = String::new();
            let read = fs::File::open(file)
                .and_then(|file| file.take(MESSAGE + 1).read_to_string(&mut text));
            read.map_err(|error| {
                Failure::new(format!("{} cannot be read: {error}", file.display()))
            })?;
            Some(text)
        }
        None => args.message,
    };
    if message
        .as_ref()
        .is_some_and(|text| text.len() as u64 > MESSAGE)
    {
        return Err(Failure::new("the message is longer than 16 KiB"));
    }
    each(global, &args.apps, async |client, app, how| {
        let query = query::Stop {
            app,
            message: message.clone(),
            queue: args.queue,
            ..query::Stop::default()
        };
        show(global, how, client.operate(query::STOP, &query)).await
    })
    .await
}

/// `handover start`
pub(super) async fn start(global: &Global, args: Operate) -> Result<(), Failure> {
    operate(global, query::START, args).await
}

/// `handover restart`
pub(super) async fn restart(global: &Global, args: Operate) -> Result<(), Failure> {
    operate(global, query::RESTART, args).await
}

async fn operate(global: &Global, path: &str, args: Operate) -> Result<(), Failure> {
    each(global, &args.apps, async |client, app, how| {
        let query = query::Operation {
            app,
            queue: args.queue,
            ..query::Operation::default()
        };
        show(global, how, client.operate(path, &query)).await
    })
    .await
}

/// `handover pause`
pub(super) async fn pause(global: &Global, args: Pause) -> Result<(), Failure> {
    each(global, &args.apps, async |client, app, how| {
        let query = query::Pause {
            app,
            max_wait_ms: args.max_wait.map(millis),
            by: None,
        };
        show(global, how, client.operate(query::PAUSE, &query)).await
    })
    .await
}

/// `handover resume`
pub(super) async fn resume(global: &Global, apps: Apps) -> Result<(), Failure> {
    each(global, &apps, async |client, app, how| {
        let query = query::Operation {
            app,
            ..query::Operation::default()
        };
        show(global, how, client.operate(query::RESUME, &query)).await
    })
    .await
}

/// Does the same to each of `apps`, one after the other, whatever becomes of those before. Ends as
/// the last one that failed.
async fn each(
    global: &Global,
    apps: &Apps,
    call: impl AsyncFn(&Client, Option<AppName>, How) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let client = global.client();
    let names: Vec<_> = if apps.all {
        let status = client.status().await?;
        status.apps.into_iter().map(|app| Some(app.name)).collect()
    } else if apps.names.is_empty() {
        vec![None]
    } else {
        apps.names.iter().cloned().map(Some).collect()
    };
    let how = How {
        detach: false,
        several: names.len() > 1,
        strict_drain: false,
    };
    let mut ended = Ok(());
    for app in names {
        if let Err(failure) = call(&client, app, how).await
            && let Err(before) = std::mem::replace(&mut ended, Err(failure))
        {
            before.tell(global);
        }
    }
    ended
}
