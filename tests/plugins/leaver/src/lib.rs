//! The plugin that leaves badly: how is its habit, a text that the tests rewrite in the built file.
//!
//! | habit | what it does |
//! | --- | --- |
//! | `none` | leaves |
//! | `thread` | starts a thread that never ends |
//! | `task` | spawns a task that does not hear that it is to drain |
//! | `file` | leaves a file open |
//! | `drop-hang`, `drop-segv`, `drop-exit` | its app value does when it is dropped |
//! | `handler` | handles SIGUSR2 past the C library, so that nobody knows of it |
//! | `unload-segv` | crashes while it is unmapped |

use std::{fs::File, hint::black_box, sync::Arc};

use axum::{Router, extract::State, routing::get};
use handover_plugin::{Context, Error};

/// The mark that the tests look for, and 32 bytes of habit.
#[used]
static HABIT: [u8; 55] = *b"HANDOVER-FIXTURE-HABIT:none                            ";

/// Read-only data that the tests rewrite to what a library has there that somebody links into a
/// plugin.
#[used]
static TEXTS: [u8; 151] = *b"HANDOVER-FIXTURE-TEXTS:                                                                                                                                ";

fn habit() -> &'static str {
    // The compiler knows these bytes, but not that they are rewritten.
    let habit = &black_box(&HABIT)[23..];
    std::str::from_utf8(habit).unwrap_or_default().trim_end()
}

/// Runs inside `dlclose`.
#[used]
// SAFETY: `.fini_array` holds pointers to functions that take nothing and return nothing.
#[unsafe(link_section = ".fini_array")]
static ON_UNLOAD: extern "C" fn() = on_unload;

extern "C" fn on_unload() {
    if habit() == "unload-segv" {
        crash();
    }
}

struct Leaving;

impl Drop for Leaving {
    fn drop(&mut self) {
        match habit() {
            "drop-hang" => loop {
                std::thread::park();
            },
            "drop-segv" => crash(),
            "drop-exit" => std::process::exit(0),
            _ => {}
        }
    }
}

#[handover_plugin::app]
async fn app(cx: Context) -> Result<Router, Error> {
    match habit() {
        "thread" => {
            std::thread::Builder::new()
                .name("stayer".to_owned())
                .spawn(|| {
                    loop {
                        std::thread::park();
                    }
                })?;
        }
        "task" => {
            drop(cx.spawn(std::future::pending::<()>()));
        }
        "handler" => handle_past_libc(),
        "file" => std::mem::forget(File::open("/proc/self/exe")?),
        _ => {}
    }
    black_box(&TEXTS);
    let answer = async |State(_): State<Arc<Leaving>>| format!("leaver: {}", habit());
    Ok(Router::new()
        .route("/", get(answer))
        .with_state(Arc::new(Leaving)))
}

/// What the kernel takes for `struct sigaction`.
#[repr(C)]
struct KernelAction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

extern "C" fn handler(_: i32) {}

fn handle_past_libc() {
    const SA_RESTORER: u64 = 0x0400_0000;
    let before = std::mem::MaybeUninit::<KernelAction>::zeroed();
    // SAFETY: zeroes are a disposition.
    let mut action = unsafe { before.assume_init() };
    let all = size_of::<u64>();
    // SAFETY: what libc has set for SIGUSR1 is read, for the way back from a handler that it brings
    // along.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            libc::SIGUSR1,
            std::ptr::null::<KernelAction>(),
            &raw mut action,
            all,
        )
    };
    action.handler = handler as extern "C" fn(i32) as usize;
    action.flags = if action.restorer == 0 { 0 } else { SA_RESTORER };
    action.mask = 0;
    // SAFETY: none once this library is unmapped; this is the fault that the tests want.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            libc::SIGUSR2,
            &raw const action,
            std::ptr::null_mut::<KernelAction>(),
            all,
        )
    };
}

fn crash() {
    let nowhere = black_box(std::ptr::null::<u8>());
    // SAFETY: none; this is the crash that the tests want.
    let _ = black_box(unsafe { nowhere.read_volatile() });
}
