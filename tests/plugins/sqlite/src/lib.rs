//! An app that keeps what it was asked to in a SQLite database of its own, and opens files that may
//! be open only once.
//!
//! - `POST /write?id=N` commits one row and counts it, in one transaction
//! - `POST /job?id=N&rows=N` starts a job that commits as many, and enters each in the file
//!   `FOLDER/job-N` when it is committed
//! - `GET /rows` gives the ids of all rows, `GET /counted` the count, `GET /integrity` what SQLite
//!   says of the file

use std::{
    fs::File,
    io::Write as _,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    routing::{get, post},
};
use handover_plugin::{Context, Error};
use rusqlite::{Connection, TransactionBehavior};
use serde::Deserialize;

#[derive(Clone, Debug, Deserialize)]
struct Config {
    folder: PathBuf,
    /// `wal` or `delete`.
    journal: String,
    /// `flock` or `fcntl`: takes `FOLDER/once` for itself.
    #[serde(default)]
    once: String,
}

#[derive(Clone)]
struct App {
    database: Arc<Mutex<Connection>>,
    config: Config,
    context: Context,
    _once: Arc<Option<File>>,
}

#[derive(Deserialize)]
struct Asked {
    id: i64,
    #[serde(default)]
    rows: i64,
}

fn open(config: &Config) -> rusqlite::Result<Connection> {
    let database = Connection::open(config.folder.join("database"))?;
    database.busy_timeout(Duration::from_secs(60))?;
    database.pragma_update(None, "journal_mode", &config.journal)?;
    database.pragma_update(None, "synchronous", "normal")?;
    database.execute_batch(
        "begin immediate; create table if not exists counted (rows integer); \
         insert into counted select 0 where not exists (select 1 from counted); \
         create table if not exists kept (id integer primary key, filling blob); commit",
    )?;
    Ok(database)
}

/// Takes the file `once` as libraries do that let it be open only once.
fn take(folder: &Path, how: &str) -> Result<File, Error> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(folder.join("once"))?;
    match how {
        "flock" => file.try_lock()?,
        "fcntl" => {
            // SAFETY: a structure of integers.
            let mut lock = unsafe { std::mem::zeroed::<libc::flock>() };
            lock.l_type = libc::F_WRLCK as _;
            // SAFETY: the lock is valid.
            if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw mut lock) } != 0 {
                return Err(std::io::Error::last_os_error().into());
            }
        }
        how => return Err(std::io::Error::other(format!("no way to take a file: {how}")).into()),
    }
    Ok(file)
}

impl App {
    async fn with<T: Send + 'static>(
        &self,
        does: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, (StatusCode, String)> {
        let database = Arc::clone(&self.database);
        let done = tokio::task::spawn_blocking(move || {
            does(&mut database.lock().unwrap_or_else(PoisonError::into_inner))
        });
        match done.await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err((StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
            Err(error) => Err((StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        }
    }

    async fn keep(&self, id: i64) -> Result<(), (StatusCode, String)> {
        self.with(move |database| {
            let transaction = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute("update counted set rows = rows + 1", [])?;
            transaction.execute("insert into kept values (?, randomblob(200))", [id])?;
            transaction.commit()
        })
        .await
    }

    async fn job(&self, first: i64, rows: i64) {
        let entered = self.config.folder.join(format!("job-{first}"));
        let Ok(mut entered) = File::create(entered) else {
            return;
        };
        for id in first..first + rows {
            match self.keep(id).await {
                Ok(()) => drop(writeln!(entered, "{id}")),
                Err((_, error)) => drop(writeln!(entered, "failed: {error}")),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(writeln!(entered, "end"));
    }
}

/// Builds it.
#[handover_plugin::app]
async fn app(context: Context) -> Result<Router, Error> {
    let config: Config = context.config()?;
    let once = match config.once.as_str() {
        "" => None,
        how => Some(take(&config.folder, how)?),
    };
    if context.is_preflight() {
        return Ok(Router::new());
    }
    let app = App {
        database: Arc::new(Mutex::new(open(&config)?)),
        config,
        context,
        _once: Arc::new(once),
    };
    Ok(Router::new()
        .route(
            "/write",
            post(
                |State(app): State<App>, Query(asked): Query<Asked>| async move {
                    app.keep(asked.id).await
                },
            ),
        )
        .route(
            "/job",
            post(
                |State(app): State<App>, Query(asked): Query<Asked>| async move {
                    let working = app.clone();
                    app.context.jobs().spawn("import", "acme", async move {
                        working.job(asked.id, asked.rows).await;
                    });
                },
            ),
        )
        .route(
            "/rows",
            get(|State(app): State<App>| async move {
                app.with(|database| {
                    let mut kept = database.prepare("select id from kept order by id")?;
                    let ids = kept.query_map([], |row| row.get(0))?;
                    ids.collect::<Result<Vec<i64>, _>>()
                })
                .await
                .map(Json)
            }),
        )
        .route(
            "/counted",
            get(|State(app): State<App>| async move {
                app.with(|database| {
                    database.query_row("select rows from counted", [], |row| row.get::<_, i64>(0))
                })
                .await
                .map(Json)
            }),
        )
        .route(
            "/integrity",
            get(|State(app): State<App>| async move {
                app.with(|database| {
                    database.query_row("pragma integrity_check", [], |row| row.get::<_, String>(0))
                })
                .await
            }),
        )
        .with_state(app))
}
