//! One leaky or hostile habit, chosen by `habit` in the configuration and done on `GET /habit`.

use std::{
    cell::RefCell,
    convert::Infallible,
    ffi::c_int,
    fs::File,
    net::UdpSocket,
    path::PathBuf,
    sync::{LazyLock, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    routing::{get, post},
};
use futures_util::stream::unfold;
use handover_plugin::{Context, Error};
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};

/// Compiled in, so that an answer proves which code made it.
const VERSION: &str = match option_env!("HANDOVER_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Habit {
    Nothing,
    TokioSignals,
    StaticClient,
    ThreadsThatEnd,
    ThreadsThatStay,
    ThreadLocals,
    CLibrary,
    AtExit,
    GlobalPool,
    LeakedBox,
    LeakedSocket,
    LeakedFile,
    Spin,
    Deadlock,
}

#[derive(Clone, Debug, Deserialize)]
struct Config {
    habit: Habit,
    /// Where a client finds the server.
    #[serde(default)]
    url: String,
    /// Spinning ends when this file is there.
    #[serde(default)]
    until: PathBuf,
}

unsafe extern "C" {
    fn zoo_touch() -> c_int;
    fn zoo_at_exit() -> c_int;
}

/// As everybody has one: it keeps connections, and nobody ever drops it.
static CLIENT: LazyLock<reqwest::Client> = LazyLock::new(reqwest::Client::new);

thread_local! {
    static LOCAL: RefCell<Vec<u8>> = RefCell::new(vec![1; 4096]);
}

#[handover_plugin::app]
async fn app(cx: Context) -> Result<Router, Error> {
    let config = cx.config::<Config>()?;
    Ok(Router::new()
        .route("/version", get(async || VERSION))
        .route("/echo", post(async |body: Bytes| body))
        .route("/stream", get(stream))
        .route("/habit", get(habit))
        .with_state((cx, config)))
}

/// Four lines with a pause between them.
async fn stream() -> Body {
    Body::from_stream(unfold(0, |n| async move {
        if n == 4 {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        Some((Ok::<_, Infallible>(format!("{VERSION}\n")), n + 1))
    }))
}

async fn habit(State((cx, config)): State<(Context, Config)>) -> Result<String, String> {
    let faulty = |error: &dyn std::fmt::Display| error.to_string();
    match config.habit {
        Habit::Nothing => {}
        Habit::TokioSignals => {
            let mut usr2 = signal(SignalKind::user_defined2()).map_err(|error| faulty(&error))?;
            tokio::spawn(async move { while usr2.recv().await.is_some() {} });
        }
        Habit::StaticClient => {
            let url = format!("{}/version", config.url);
            let answer = CLIENT
                .get(url)
                .send()
                .await
                .map_err(|error| faulty(&error))?;
            return answer.text().await.map_err(|error| faulty(&error));
        }
        Habit::ThreadsThatEnd => {
            let runtime = tokio::runtime::Handle::current();
            std::thread::spawn(move || runtime.block_on(cx.draining()));
        }
        Habit::ThreadsThatStay => {
            let stay = || {
                loop {
                    std::thread::park();
                }
            };
            std::thread::Builder::new()
                .name("stayer".to_owned())
                .spawn(stay)
                .map_err(|error| faulty(&error))?;
        }
        Habit::ThreadLocals => LOCAL.with_borrow_mut(|local| local.push(1)),
        Habit::CLibrary => {
            // SAFETY: may be called by any thread at any time.
            unsafe { zoo_touch() };
        }
        Habit::AtExit => {
            // SAFETY: registers functions of this library, which the C library forgets when it is
            // unmapped.
            if unsafe { zoo_at_exit() } != 0 {
                return Err("refused".to_owned());
            }
        }
        Habit::GlobalPool => rayon::scope(|scope| scope.spawn(|_| {})),
        Habit::LeakedBox => {
            Box::leak(vec![1u8; 1 << 20].into_boxed_slice());
        }
        Habit::LeakedSocket => {
            std::mem::forget(UdpSocket::bind("127.0.0.1:0").map_err(|error| faulty(&error))?)
        }
        Habit::LeakedFile => {
            std::mem::forget(File::open("/dev/zero").map_err(|error| faulty(&error))?)
        }
        Habit::Spin => {
            while !config.until.exists() {
                std::hint::spin_loop();
            }
        }
        Habit::Deadlock => {
            static LOCK: Mutex<()> = Mutex::new(());
            let _first = LOCK.lock();
            let _second = LOCK.lock();
        }
    }
    Ok("done".to_owned())
}
