//! The plugin that does not fit: what it does wrong is its habit, a text that the tests rewrite in
//! the built file.
//!
//! | habit | what it does |
//! | --- | --- |
//! | `none` | nothing wrong |
//! | `load-segv` | crashes while it is loaded, before anything of it is called |
//! | `start-error`, `start-panic`, `start-segv`, `start-abort`, `start-exit`, `start-hang`, `start-spin` | its constructor does |
//! | `short` | its constructor finds too many files open, as long as the file `when` of its configuration is there |
//! | `live-short` | it does, but not in preflight |
//! | `eater`, `start-eat` | takes memory until there is none, for a request to `/eat` or in its constructor |
//! | `live-error`, `live-panic`, `live-hang` | its constructor does, but not in preflight |
//! | `start-wordy`, `live-wordy` | its constructor fails with an error of three mebibytes, the latter not in preflight |
//! | `live-orphan` | its constructor fails after it has started a thread that logs for ever, but not in preflight |
//! | `live-late` | its constructor takes four seconds, but not in preflight |
//! | `unhealthy` | starts, and answers everything with 500 |
//! | `leak-thread` | starts a thread that never ends |
//! | `hungry` | takes every descriptor that there is for a request to `/open`, and keeps them until one to `/close` |
//! | `end-segv`, `end-exit` | crashes, or calls `exit(0)`, when it is told to drain |
//! | `later-segv`, `later-exit`, `later-hang` | its constructor does, but not in preflight, once the file `when` of its configuration is there |

use std::{collections::BTreeMap, fs::File, hint::black_box, path::PathBuf, sync::Mutex};

use axum::{Router, http::StatusCode, routing::get};
use handover_plugin::{Context, Error};

/// The mark that the tests look for, and 32 bytes of habit.
#[used]
static HABIT: [u8; 55] = *b"HANDOVER-FIXTURE-HABIT:none                            ";

fn habit() -> &'static str {
    // The compiler knows these bytes, but not that they are rewritten.
    let habit = &black_box(&HABIT)[23..];
    std::str::from_utf8(habit).unwrap_or_default().trim_end()
}

/// Runs inside `dlopen`.
#[used]
// SAFETY: `.init_array` holds pointers to functions that take nothing they need and return nothing.
#[unsafe(link_section = ".init_array")]
static ON_LOAD: extern "C" fn() = on_load;

extern "C" fn on_load() {
    if habit() == "load-segv" {
        crash();
    }
}

#[handover_plugin::app]
async fn app(cx: Context) -> Result<Router, Error> {
    let habit = habit();
    let kind = match habit.strip_prefix("live-") {
        Some(_) if cx.is_preflight() => "",
        Some(kind) => kind,
        None => habit.strip_prefix("start-").unwrap_or_default(),
    };
    let kind = match habit.strip_prefix("later-") {
        Some(later) if !cx.is_preflight() => {
            let config = cx.config::<BTreeMap<String, PathBuf>>()?;
            let is_now = config.get("when").is_some_and(|file| file.exists());
            if is_now { later } else { "" }
        }
        _ => kind,
    };
    if habit == "short" {
        let config = cx.config::<BTreeMap<String, PathBuf>>()?;
        if config.get("when").is_some_and(|file| file.exists()) {
            return Err(std::io::Error::from_raw_os_error(24).into());
        }
    }
    match kind {
        "short" => return Err(std::io::Error::from_raw_os_error(24).into()),
        "error" => return Err(Error::msg("the database of the misfit is not there")),
        "panic" => panic!("the misfit panics"),
        "wordy" => {
            let page = "<p>\x1b[31mred</p>\n".repeat(192 << 10);
            return Err(Error::msg(format!("502 Bad Gateway\n{page}")));
        }
        "eat" => eat().await,
        "orphan" => {
            std::thread::Builder::new()
                .name("heartbeat".to_owned())
                .spawn(|| {
                    for beat in 0.. {
                        tracing::info!(beat, "the heart of the misfit beats");
                        std::thread::sleep(std::time::Duration::from_millis(5));
                    }
                })?;
            return Err(Error::msg("the database of the misfit is not there"));
        }
        "segv" => crash(),
        "abort" => std::process::abort(),
        "exit" => std::process::exit(0),
        "hang" => std::future::pending().await,
        "late" => tokio::time::sleep(std::time::Duration::from_secs(4)).await,
        "spin" => loop {
            std::hint::spin_loop();
        },
        _ => {}
    }
    if habit == "leak-thread" && !cx.is_preflight() {
        std::thread::Builder::new()
            .name("leaked".to_owned())
            .spawn(|| {
                loop {
                    std::thread::park()
                }
            })?;
    }
    if let Some(end) = habit.strip_prefix("end-") {
        let told = cx.clone();
        cx.spawn(async move {
            told.draining().await;
            match end {
                "segv" => crash(),
                _ => std::process::exit(0),
            }
        });
    }
    let status = if habit == "unhealthy" {
        StatusCode::INTERNAL_SERVER_ERROR
    } else {
        StatusCode::OK
    };
    Ok(Router::new()
        .route("/eat", get(eat))
        .route("/open", get(open_all))
        .route(
            "/close",
            get(async || OPEN.lock().map(|mut open| open.clear()).is_ok().to_string()),
        )
        .route("/", get(async move || (status, format!("misfit: {habit}")))))
}

static OPEN: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// Opens files until that fails, and answers how many.
async fn open_all() -> String {
    let Ok(mut open) = OPEN.lock() else {
        return String::new();
    };
    while habit() == "hungry"
        && let Ok(file) = File::open("/dev/null")
    {
        open.push(file);
    }
    open.len().to_string()
}

async fn eat() {
    let mut eaten = Vec::new();
    while matches!(habit(), "eater" | "start-eat") {
        eaten.push(vec![1_u8; 1 << 20]);
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

fn crash() {
    let nowhere = black_box(std::ptr::null::<u8>());
    // SAFETY: none; this is the crash that the tests want.
    let _ = black_box(unsafe { nowhere.read_volatile() });
}
