//! An app whose database is a file with a number in it, its revision; and which may have a file
//! that only one version can have open.

use std::{
    fs::{self, File},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::{Path, State},
    routing::get,
};
use handover_plugin::{Context, Error};
use serde::Deserialize;

/// What the operator sets.
#[derive(Debug, Deserialize)]
struct Config {
    /// The database.
    database: PathBuf,
    /// While this file is there, nothing is migrated.
    unmigrated: PathBuf,
    /// What only one version can have open.
    exclusive: Option<PathBuf>,
}

/// What is open once.
struct Exclusive {
    version: String,
    _file: Option<File>,
}

/// The revision that this version migrates to.
const OWN: u64 = if cfg!(feature = "second") { 2 } else { 1 };

#[cfg_attr(not(feature = "second"), handover_plugin::db_revision(1..=2))]
#[cfg_attr(feature = "second", handover_plugin::db_revision(2..=3))]
async fn revision(cx: Context) -> Result<u64, Error> {
    let database = cx.config::<Config>()?.database;
    if fs::exists(database.with_extension("hangs"))? {
        std::future::pending::<()>().await;
    }
    Ok(fs::read_to_string(database)?.trim().parse()?)
}

#[handover_plugin::on_live]
async fn migrate(cx: Context) -> Result<(), Error> {
    let Config {
        database,
        unmigrated,
        ..
    } = cx.config()?;
    if !unmigrated.exists() && revision(cx).await? < OWN {
        fs::write(database, OWN.to_string())?;
    }
    Ok(())
}

async fn version(State(own): State<Arc<Exclusive>>) -> String {
    own.version.clone()
}

async fn slow(State(own): State<Arc<Exclusive>>, Path(ms): Path<u64>) -> String {
    tokio::time::sleep(Duration::from_millis(ms)).await;
    own.version.clone()
}

#[handover_plugin::app]
fn app(cx: Context) -> Result<Router, Error> {
    let path = cx.config::<Config>()?.exclusive;
    let file = path.map(File::create).transpose()?;
    if let Some(file) = &file
        && file.try_lock().is_err()
    {
        return Err(Error::msg("another version has it open"));
    }
    let own = Arc::new(Exclusive {
        version: cx.version().to_owned(),
        _file: file,
    });
    Ok(Router::new()
        .route("/version", get(version))
        .route("/slow/{ms}", get(slow))
        .with_state(own))
}
