//! `deploy`, `reload`, `rollback`: what changes what is live.

use super::{
    args::{Deploy, Global, Reload, Rollback},
    exit::Failure,
    operation::{How, show},
};
use crate::control::Client;

/// `handover deploy`
pub(super) async fn deploy(global: &Global, args: Deploy) -> Result<(), Failure> {
    let client = Client::new(&global.control());
    let call = client.deploy(&args.file, args.app.as_ref(), args.timeout);
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

/// `handover reload`
pub(super) async fn reload(global: &Global, args: Reload) -> Result<(), Failure> {
    let client = Client::new(&global.control());
    show(
        global,
        How {
            detach: false,
            several: args.app.is_none(),
        },
        client.reload(args.app.as_ref()),
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
        client.rollback(args.app.as_ref(), args.to.as_deref()),
    )
    .await
}
