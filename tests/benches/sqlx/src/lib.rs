//! The app of `tests/plugins/sqlite` by way of sqlx: a pool of connections, each with a thread of
//! its own.

use std::{fs::File, io::Write as _, path::PathBuf, time::Duration};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    routing::{get, post},
};
use handover_plugin::{Context, Error};
use serde::Deserialize;
use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

#[derive(Clone, Debug, Deserialize)]
struct Config {
    folder: PathBuf,
    /// `wal` or `delete`.
    journal: SqliteJournal,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SqliteJournal {
    Wal,
    Delete,
}

#[derive(Clone)]
struct App {
    pool: SqlitePool,
    config: Config,
    context: Context,
}

#[derive(Deserialize)]
struct Asked {
    id: i64,
    #[serde(default)]
    rows: i64,
}

type Failed = (StatusCode, String);

fn failed(error: sqlx::Error) -> Failed {
    (StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

async fn open(config: &Config) -> Result<SqlitePool, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(config.folder.join("database"))
        .create_if_missing(true)
        .busy_timeout(Duration::from_secs(60))
        .journal_mode(match config.journal {
            SqliteJournal::Wal => SqliteJournalMode::Wal,
            SqliteJournal::Delete => SqliteJournalMode::Delete,
        })
        .synchronous(SqliteSynchronous::Normal);
    let pool = SqlitePoolOptions::new()
        .max_connections(2)
        .acquire_timeout(Duration::from_secs(90))
        .connect_with(options)
        .await?;
    let mut transaction = pool.begin_with("begin immediate").await?;
    for statement in [
        "create table if not exists counted (rows integer)",
        "insert into counted select 0 where not exists (select 1 from counted)",
        "create table if not exists kept (id integer primary key, filling blob)",
    ] {
        sqlx::query(statement).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(pool)
}

impl App {
    async fn keep(&self, id: i64) -> Result<(), sqlx::Error> {
        let mut transaction = self.pool.begin_with("begin immediate").await?;
        sqlx::query("update counted set rows = rows + 1")
            .execute(&mut *transaction)
            .await?;
        sqlx::query("insert into kept values (?, randomblob(200))")
            .bind(id)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await
    }

    async fn job(&self, first: i64, rows: i64) {
        let entered = self.config.folder.join(format!("job-{first}"));
        let Ok(mut entered) = File::create(entered) else {
            return;
        };
        for id in first..first + rows {
            match self.keep(id).await {
                Ok(()) => drop(writeln!(entered, "{id}")),
                Err(error) => drop(writeln!(entered, "failed: {error}")),
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
    if context.is_preflight() {
        return Ok(Router::new());
    }
    let app = App {
        pool: open(&config).await?,
        config,
        context,
    };
    Ok(Router::new()
        .route(
            "/write",
            post(
                |State(app): State<App>, Query(asked): Query<Asked>| async move {
                    app.keep(asked.id).await.map_err(failed)
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
                let ids = sqlx::query_scalar::<_, i64>("select id from kept order by id");
                ids.fetch_all(&app.pool).await.map(Json).map_err(failed)
            }),
        )
        .route(
            "/counted",
            get(|State(app): State<App>| async move {
                let counted = sqlx::query_scalar::<_, i64>("select rows from counted");
                counted.fetch_one(&app.pool).await.map(Json).map_err(failed)
            }),
        )
        .route(
            "/integrity",
            get(|State(app): State<App>| async move {
                let check = sqlx::query_scalar::<_, String>("pragma integrity_check");
                check.fetch_one(&app.pool).await.map_err(failed)
            }),
        )
        .with_state(app))
}
