//! An app whose database is a file with a number in it, its revision.

use std::{fs, path::PathBuf};

use axum::{Router, routing::get};
use handover_plugin::{Context, Error};
use serde::Deserialize;

/// What the operator sets.
#[derive(Debug, Deserialize)]
struct Config {
    /// The database.
    database: PathBuf,
    /// While this file is there, nothing is migrated.
    unmigrated: PathBuf,
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
    } = cx.config()?;
    if !unmigrated.exists() && revision(cx).await? < OWN {
        fs::write(database, OWN.to_string())?;
    }
    Ok(())
}

#[handover_plugin::app]
fn app(cx: Context) -> Result<Router, Error> {
    let version = cx.version().to_owned();
    Ok(Router::new().route("/version", get(async move || version)))
}
