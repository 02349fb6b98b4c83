//! The attribute macros of handover-plugin.

mod app;
mod db_revision;
mod declared;
mod job;
mod migration;
mod on_live;
mod provenance;

use proc_macro::TokenStream;

/// Makes a function the constructor of an app.
///
/// The function is `async` (or not), takes a `Context`, and gives a `Result` of a `tower::Service`
/// over `http` types, for instance an `axum::Router`. It is called once in each load.
///
/// - `name = "…"`: the app's name. Default: the name of the package.
/// - `schema = N`: the version of its state schema. Default: 0.
///
/// The version is that of the package, or of the environment variable `HANDOVER_VERSION` at build
/// time. An optimised build carries the commit that git names, whether files of the workspace
/// differ from it, and the hash of `Cargo.lock`; `HANDOVER_COMMIT` at build time goes before that.
///
/// ```ignore
/// #[handover_plugin::app(name = "shop")]
/// async fn app(cx: Context) -> Result<axum::Router, Error> {
///     Ok(axum::Router::new())
/// }
/// ```
#[proc_macro_attribute]
pub fn app(attribute: TokenStream, item: TokenStream) -> TokenStream {
    tokens(app::expand(attribute.into(), item.into()))
}

/// Makes the `main` of a program the constructor of an app as well: the crate is both, and one line
/// of it differs.
///
/// In a program it is what `tokio::main` is, whose arguments `flavor` and `worker_threads` it
/// takes. In a plugin it runs on a thread of its own until the generation is over, and the app is
/// what it gives to `handover_plugin::serve`; an error before that keeps the old code live. `name`
/// and `schema` are those of [`macro@app`].
///
/// ```ignore
/// #[handover_plugin::main]
/// async fn main() -> anyhow::Result<()> {
///     let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
///     handover_plugin::serve(listener, axum::Router::new()).await?;
///     Ok(())
/// }
/// ```
#[proc_macro_attribute]
pub fn main(attribute: TokenStream, item: TokenStream) -> TokenStream {
    tokens(app::expand_main(attribute.into(), item.into()))
}

/// Declares the handler of a durable job: an `async fn` that takes a `JobContext` and a payload
/// (anything that serde reads), and gives a `Result<R, JobError>`, whose `R` serde writes.
///
/// `cx.jobs().enqueue("name", &payload).await` keeps such a job. It runs on the version that is
/// live when an attempt begins, and stays there to its end, however many deploys there are. An
/// attempt that fails, panics, or dies with the host is followed by another.
///
/// - `name = "…"`: the name. Default: that of the function. One name is declared once.
/// - `concurrency = N`: how many run at a time. Default: as many as the app may run.
/// - `tenant_concurrency = N`: how many of them for one tenant. Default: no limit of its own.
/// - `max_attempts = N`: after so many it is a dead letter. Default: 20.
/// - `timeout = "15m"`: how long an attempt may take. Default: for ever.
/// - `backoff = "1s"`, `longest_backoff = "1h"`: the pause after the first attempt that failed, and
///   up to what it doubles. These are the defaults.
///
/// ```ignore
/// #[handover_plugin::job(timeout = "15m")]
/// async fn invoice(cx: JobContext, order: Order) -> Result<(), JobError> {
///     let pages = render(&order).await?;
///     cx.complete_with(|tx| {
///         let pages = pages.clone();
///         async move { Ok(tx.put(format!("invoices/{}", order.id), &pages)?) }
///     })
///     .await
/// }
/// ```
#[proc_macro_attribute]
pub fn job(attribute: TokenStream, item: TokenStream) -> TokenStream {
    tokens(job::expand_job(attribute.into(), item.into()))
}

/// Declares the handler of a schedule: an `async fn` that takes a `JobContext`, and gives a
/// `Result<R, JobError>`. A durable job is made at each time, exactly one, over deploys, restarts
/// and crashes.
///
/// The first argument is a cron expression of five fields (minute, hour, day, month, weekday), or
/// `every = "15m"` is there instead.
///
/// - `tz = "Europe/Berlin"`: where the clock of a cron expression hangs. Default: UTC.
/// - `missed = "none" | "one" | "all"`: what is done of the times that went by while the host was
///   down. Default: one.
/// - `name`, `max_attempts`, `timeout`, `backoff`, `longest_backoff`, `concurrency`: as those of
///   [`macro@job`], but that one runs at a time by default.
///
/// ```ignore
/// #[handover_plugin::schedule("0 3 * * *", tz = "Europe/Berlin")]
/// async fn nightly(cx: JobContext) -> Result<(), JobError> {
///     sweep(cx.state()).await
/// }
/// ```
#[proc_macro_attribute]
pub fn schedule(attribute: TokenStream, item: TokenStream) -> TokenStream {
    tokens(job::expand_schedule(attribute.into(), item.into()))
}

/// Declares what a version does once, when it has passed all checks and before its first request:
/// an `async fn` that takes a `Context`, and gives a `Result<(), E>` of any error.
///
/// The constructor runs in preflight too, on a version that may be refused yet. This runs in the
/// host only; an error fails the deploy, and what is live stays live. So it is the place for a
/// migration. Where a crate has several they run one after the other, in no order that is promised.
/// It runs again at a restart of the host.
///
/// ```ignore
/// #[handover_plugin::on_live]
/// async fn migrate(cx: Context) -> Result<(), Error> {
///     let pool = PgPool::connect(cx.env("DATABASE_URL").unwrap_or_default()).await?;
///     sqlx::migrate!().run(&pool).await?;
///     Ok(())
/// }
/// ```
#[proc_macro_attribute]
pub fn on_live(attribute: TokenStream, item: TokenStream) -> TokenStream {
    tokens(on_live::expand(attribute.into(), item.into()))
}

/// Declares which revisions of its database a version runs with, by a function that says which one
/// the database is at: an `async fn` that takes a `Context`, and gives a `Result` of a number.
///
/// The attribute has the range: `3..=5`, `3..` or `3`. The host asks before the version goes live
/// and once more after its migrations. A database that is further than the version knows fails a
/// deploy, a promotion or a rollback before anything was done; one that the migrations have not
/// brought into the range fails it before the first request. At a restart of the host what was live
/// serves, with a warning.
///
/// ```ignore
/// #[handover_plugin::db_revision(20260101..=20260315)]
/// async fn revision(cx: Context) -> Result<i64, Error> {
///     let pool = PgPool::connect(cx.env("DATABASE_URL").unwrap_or_default()).await?;
///     let newest = "SELECT coalesce(max(version), 0) FROM _sqlx_migrations WHERE success";
///     Ok(sqlx::query_scalar(newest).fetch_one(&pool).await?)
/// }
/// ```
#[proc_macro_attribute]
pub fn db_revision(attribute: TokenStream, item: TokenStream) -> TokenStream {
    tokens(db_revision::expand(attribute.into(), item.into()))
}

/// Declares a migration of the state of the app, from one version of its schema
/// (`#[app(schema = 3)]`) to another: an `async fn` that takes a `Snapshot` of the state as it is
/// and a `&mut Batch` for what is to change, and gives a `Result<(), E>` of any error.
///
/// The host runs it when a version with another schema than that of the state is to go live: first
/// on a copy, in preflight; then at the cutover, when what was live has ended what it had, with new
/// requests held. Several are run in the order of their schemas, and all of them happen, or none:
/// when one fails, panics or takes too long, the state is what it was, and the version that was
/// live goes on. One that goes down (`from = 3, to = 2`) lets `handover rollback` go back.
///
/// ```ignore
/// #[handover_plugin::migration(from = 2, to = 3)]
/// async fn with_hits(old: Snapshot, new: &mut Batch) -> Result<(), Error> {
///     let mut links = old.scan::<String>("link/");
///     while let Some((key, target)) = links.next().await? {
///         new.put(key, &Link { target, hits: 0 }).await?;
///     }
///     Ok(())
/// }
/// ```
#[proc_macro_attribute]
pub fn migration(attribute: TokenStream, item: TokenStream) -> TokenStream {
    tokens(migration::expand(attribute.into(), item.into()))
}

/// What a macro expands to: an error where its author meets it.
fn tokens(expanded: syn::Result<proc_macro2::TokenStream>) -> TokenStream {
    expanded
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}
