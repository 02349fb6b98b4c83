//! Signals, timers, the environment and the working directory, as C code and tokio use them: what
//! to do is in the path.

use std::{
    ffi::{CString, c_char, c_int},
    os::unix::process::CommandExt,
    path::Path as FilePath,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use axum::{
    Router,
    extract::{Path, Query, State},
    routing::get,
};
use handover_plugin::{Context, Error};
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};

/// Compiled in, so that an answer proves which code made it.
const VERSION: &str = match option_env!("HANDOVER_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

unsafe extern "C" {
    fn signals_listen(way: *const c_char, signal: c_int) -> c_int;
    fn signals_hold_until(path: *const c_char);
    safe fn signals_ask(signal: c_int) -> c_int;
    safe fn signals_heard(signal: c_int) -> c_int;
    safe fn signals_arm(milliseconds: c_int) -> c_int;
    safe fn signals_is_armed() -> c_int;
    safe fn signals_tell_thread(signal: c_int) -> c_int;
    safe fn signals_listen_to_faults() -> c_int;
    safe fn signals_fault() -> c_int;
    fn signals_fault_on(path: *const c_char) -> c_int;
    safe fn signals_block(signal: c_int) -> c_int;
    safe fn signals_give_stack() -> c_int;
    safe fn signals_stack_is_there() -> c_int;
    safe fn surroundings_put() -> c_int;
    fn surroundings_set(name: *const c_char, value: *const c_char) -> c_int;
    fn surroundings_go(path: *const c_char) -> c_int;
    safe fn surroundings_mask(mask: c_int);
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Config {
    /// The constructor fails in preflight when this environment variable is set.
    refuse_in_preflight: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Options {
    /// How to do it, or the name of a variable.
    way: String,
    /// A number of a signal, or of milliseconds.
    number: c_int,
    /// A file or a value.
    value: String,
}

/// What tokio's streams have heard.
static STREAMED: AtomicU32 = AtomicU32::new(0);

#[handover_plugin::app]
async fn app(cx: Context) -> Result<Router, Error> {
    let config: Config = cx.config()?;
    let refused = &config.refuse_in_preflight;
    if cx.is_preflight() && !refused.is_empty() && std::env::var_os(refused).is_some() {
        return Err(Error::msg(format!("{refused} is set in preflight")));
    }
    let routes = Router::new()
        .route("/version", get(async || VERSION))
        .route("/wait", get(wait))
        .route("/do/{what}", get(act))
        .with_state(cx);
    Ok(Router::new().nest("/other", routes.clone()).merge(routes))
}

/// Answers when a file is there.
async fn wait(Query(options): Query<Options>) -> &'static str {
    while !FilePath::new(&options.value).exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    "waited"
}

fn text(number: c_int) -> String {
    match number {
        -1 => std::io::Error::last_os_error().to_string(),
        number => number.to_string(),
    }
}

fn kind(number: c_int) -> String {
    match number {
        0 => "default".to_owned(),
        1 => "ignored".to_owned(),
        2 => "own".to_owned(),
        3 => "foreign".to_owned(),
        other => text(other),
    }
}

fn c(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|error| error.to_string())
}

async fn act(
    State(cx): State<Context>,
    Path(what): Path<String>,
    Query(options): Query<Options>,
) -> Result<String, String> {
    let Options { way, number, value } = options;
    Ok(match what.as_str() {
        "listen" => {
            let way = c(&way)?;
            // SAFETY: a C string.
            kind(unsafe { signals_listen(way.as_ptr(), number) })
        }
        "hold" => {
            let path = c(&value)?;
            // SAFETY: a C string.
            unsafe { signals_hold_until(path.as_ptr()) };
            // SAFETY: a C string.
            kind(unsafe { signals_listen(c"hold".as_ptr(), number) })
        }
        "stream" => {
            let mut stream = signal(SignalKind::from_raw(number)).map_err(|e| e.to_string())?;
            tokio::spawn(async move {
                while stream.recv().await.is_some() {
                    STREAMED.fetch_add(1, Ordering::SeqCst);
                }
            });
            "listens".to_owned()
        }
        "streamed" => STREAMED.load(Ordering::SeqCst).to_string(),
        "ask" => kind(signals_ask(number)),
        "heard" => text(signals_heard(number)),
        "arm" => text(signals_arm(number)),
        "is-armed" => text(signals_is_armed()),
        "tell-thread" => text(signals_tell_thread(number)),
        "listen-to-faults" => text(signals_listen_to_faults()),
        "fault" => text(signals_fault()),
        "fault-on" => {
            let path = c(&value)?;
            // SAFETY: a C string.
            text(unsafe { signals_fault_on(path.as_ptr()) })
        }
        "crash" => {
            // SAFETY: none, which is the point.
            unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(1) };
            "lives".to_owned()
        }
        "block" => text(signals_block(number)),
        "give-stack" => text(signals_give_stack()),
        "stack-is-there" => text(signals_stack_is_there()),
        "child" => child().await.map_err(|error| error.to_string())?,
        "ignored-by-child" => ignored_by_child().map_err(|error| error.to_string())?,
        "put" => text(surroundings_put()),
        "set" => {
            let (name, value) = (c(&way)?, c(&value)?);
            // SAFETY: two C strings.
            text(unsafe { surroundings_set(name.as_ptr(), value.as_ptr()) })
        }
        "get" => std::env::var(&way).unwrap_or_default(),
        #[expect(clippy::disallowed_methods, reason = "what an app may do all the same")]
        "set-var" => {
            // SAFETY: nobody else of this library reads or writes a variable meanwhile.
            unsafe { std::env::set_var(&way, &value) };
            "set".to_owned()
        }
        "vars" => {
            let names = std::env::vars().map(|(name, value)| format!("{name}={value}"));
            let mut names: Vec<_> = names.filter(|name| name.starts_with(&way)).collect();
            names.sort();
            names.join(" ")
        }
        "args" => std::env::args().collect::<Vec<_>>().join(" "),
        "echo" => echo(&way, &value).map_err(|error| error.to_string())?,
        "read" => std::fs::read_to_string(&value).map_err(|error| error.to_string())?,
        "given" => cx.env(&way).unwrap_or_default().to_owned(),
        "go" => {
            let path = c(&value)?;
            // SAFETY: a C string.
            text(unsafe { surroundings_go(path.as_ptr()) })
        }
        "mask" => {
            surroundings_mask(number);
            "0".to_owned()
        }
        other => return Err(format!("no habit {other}")),
    })
}

/// Two children, by tokio and by std.
async fn child() -> std::io::Result<String> {
    let one = tokio::process::Command::new("true").status().await?;
    let mut three = tokio::process::Command::new("sh");
    let three = three.args(["-c", "exit 3"]).status().await?;
    Ok(format!("{:?} {:?}", one.code(), three.code()))
}

/// What children have as the variable `name`: one that inherits it, and one that is given `value`;
/// by both ways to start one.
fn echo(name: &str, value: &str) -> std::io::Result<String> {
    let mut heard = Vec::new();
    for forked in [false, true] {
        for given in [false, true] {
            let mut command = std::process::Command::new("sh");
            command.arg("-c").arg(format!("echo ${name}"));
            if given {
                command.env(name, value);
            }
            if forked {
                // SAFETY: does nothing in the child.
                unsafe { command.pre_exec(|| Ok(())) };
            }
            let output = command.output()?;
            heard.push(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
    }
    Ok(heard.join(" "))
}

/// The signals that a child finds ignored, forked and not spawned.
fn ignored_by_child() -> std::io::Result<String> {
    let mut command = std::process::Command::new("grep");
    command.args(["SigIgn", "/proc/self/status"]);
    // SAFETY: does nothing in the child.
    unsafe { command.pre_exec(|| Ok(())) };
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .split_whitespace()
        .last()
        .unwrap_or_default()
        .to_owned())
}
