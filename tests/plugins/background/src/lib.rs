//! What goes on beside requests: workers, bare tasks, and those who wait for Ctrl-C. Each writes a
//! line into a file when it begins and ends.

use std::{
    fs::OpenOptions,
    io::Write,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::State, routing::get};
use handover_plugin::{Context, Error};
use serde::Deserialize;

/// Compiled in, so that an answer proves which code made it.
const VERSION: &str = match option_env!("HANDOVER_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

/// What the constructor begins.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    /// Where lines are written.
    lines: PathBuf,
    /// A worker.
    worker: bool,
    /// A worker that does not hear that it is to stop.
    deaf: bool,
    /// A task that nobody counts.
    bare: bool,
    /// How it waits for Ctrl-C.
    listens: String,
}

impl Config {
    fn tell(&self, what: &str) {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.lines)
            .unwrap_or_else(|error| panic!("{}: {error}", self.lines.display()));
        let line = format!("{VERSION} {what}\n");
        // In one piece, since others write there as well.
        file.write_all(line.as_bytes())
            .unwrap_or_else(|error| panic!("{error}"));
    }
}

#[handover_plugin::app]
async fn app(cx: Context) -> Result<Router, Error> {
    let config: Config = cx.config()?;
    if config.worker {
        let config = config.clone();
        cx.worker("mill", async move |stop| {
            config.tell("mill begins");
            let mut turns = 0_u64;
            while stop
                .or(tokio::time::sleep(Duration::from_millis(1)))
                .await
                .is_some()
            {
                turns += 1;
            }
            config.tell("mill stops");
            assert!(stop.is_requested(), "after {turns} turns");
        });
    }
    if config.deaf {
        cx.worker("deaf mill", |_| std::future::pending());
    }
    if config.bare {
        let config = config.clone();
        tokio::spawn(async move {
            config.tell("bare begins");
            std::future::pending::<()>().await;
        });
    }
    listen(&config)?;
    Ok(Router::new()
        .route("/version", get(async || VERSION))
        .route("/bare", get(bare))
        .route("/job", get(job))
        .with_state((cx, config)))
}

/// A task that nobody counts.
async fn bare() -> &'static str {
    tokio::spawn(std::future::pending::<()>());
    VERSION
}

/// A job with a tenant.
async fn job(State((cx, _)): State<(Context, Config)>) -> &'static str {
    let draining = cx.draining();
    cx.jobs().spawn("invoice run", "acme", draining);
    VERSION
}

/// Waits for whatever asks a program to end.
fn listen(config: &Config) -> Result<(), Error> {
    let config = config.clone();
    match config.listens.as_str() {
        "" => {}
        "ctrl_c" => {
            tokio::spawn(async move {
                let _ = tokio::signal::ctrl_c().await;
                config.tell("heard ctrl_c");
            });
        }
        "ctrlc" => ctrlc::set_handler(move || config.tell("heard ctrlc"))?,
        "ctrlc exits" => ctrlc::set_handler(move || {
            config.tell("heard ctrlc");
            std::process::exit(0);
        })?,
        "signal-hook" => {
            let told = Arc::new(AtomicBool::new(false));
            // As its documentation has it: a second one would end the process.
            for signal in signal_hook::consts::TERM_SIGNALS {
                signal_hook::flag::register_conditional_shutdown(*signal, 1, Arc::clone(&told))?;
                signal_hook::flag::register(*signal, Arc::clone(&told))?;
            }
            tokio::spawn(async move {
                while !told.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                config.tell("heard signal-hook");
            });
        }
        other => return Err(Error::msg(format_args!("nobody listens by `{other}`"))),
    }
    Ok(())
}
