//! `deploy`, `reload`, `rollback`: what changes what is live.

use std::path::Path;

use handover_api::{Client, Wait};

use super::{
    args::{Deploy, Global, Reload, Rollback},
    exit::Failure,
    operation::{How, show},
};
use crate::artifact::Signature;

/// `handover deploy`
pub(super) async fn deploy(global: &Global, args: Deploy) -> Result<(), Failure> {
    let signature = signature(&args.file, args.signature.as_deref())?;
    let client = Client::new(&global.control());
    let call = client.deploy(
        &args.file,
        args.app.as_ref(),
        args.timeout,
        signature.as_ref().map(Signature::to_header),
        Wait::from_query(args.queue, args.detach),
    );
    show(
        global,
        How {
            detach: args.detach,
            several: false,
        },
        call,
    )
    .await
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
    let client = Client::new(&global.control());
    show(
        global,
        How {
            detach: false,
            several: args.app.is_none(),
        },
        client.reload(args.app.as_ref(), Wait::from_query(args.queue, false)),
    )
    .await
}

/// `handover rollback`
pub(super) async fn rollback(global: &Global, args: Rollback) -> Result<(), Failure> {
    let client = Client::new(&global.control());
    show(
        global,
        How {
            detach: false,
            several: false,
        },
        client.rollback(
            args.app.as_ref(),
            args.to.as_deref(),
            Wait::from_query(args.queue, false),
        ),
    )
    .await
}
