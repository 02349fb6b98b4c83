//! A crate that is a program and a plugin: its `main` is what `cargo run` runs, and in a plugin it
//! is the constructor, which goes on until the generation is over.

use std::{
    any::Any,
    error::Error as StdError,
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    runtime::{Builder, Handle},
    sync::watch,
};

use super::{
    app::{App, Running},
    context::Context,
    error::Error,
    log,
    runtime::AppRuntime,
    serve::Peer,
};
use crate::abi::{
    export::{HostHandle, Plugin, panic_message},
    lent::Lent,
    root::Settings,
};

/// The `main` of this generation. Taken away at its end: what is left in a static holds the
/// descriptors of the runtime.
static MAIN: Mutex<Option<Arc<Main>>> = Mutex::new(None);

struct Main {
    context: Context,
    /// What the first call of `serve` takes.
    start: Mutex<Option<(AppRuntime, mpsc::Sender<Begun>)>>,
    /// Whether the generation is over.
    over: watch::Sender<bool>,
    thread: Mutex<Option<(JoinHandle<()>, mpsc::Receiver<()>)>>,
}

/// What `main` came to.
enum Begun {
    Serving(Box<dyn Plugin>),
    Ended(Result<(), String>),
}

/// How the runtime of a program is made; a plugin has that of its settings.
#[derive(Clone, Copy, Debug)]
pub struct Flavor {
    /// Whether `main` and all tasks run on one thread.
    pub current_thread: bool,
    /// The threads of it; 0 is one for each processor.
    pub worker_threads: usize,
}

/// Runs `main` on a new runtime, as a program does.
///
/// # Panics
/// When the runtime cannot be made.
pub fn run<F: Future>(flavor: Flavor, main: impl FnOnce() -> F) -> F::Output {
    let mut builder = if flavor.current_thread {
        Builder::new_current_thread()
    } else {
        Builder::new_multi_thread()
    };
    if flavor.worker_threads > 0 {
        builder.worker_threads(flavor.worker_threads);
    }
    let runtime = builder
        .enable_all()
        .build()
        .unwrap_or_else(|error| panic!("the runtime could not be made: {error}"));
    runtime.block_on(main())
}

/// Runs `main` as the constructor of a plugin, on a new runtime and a thread of its own, until it
/// serves an app.
///
/// # Errors
/// Why it ended before.
pub fn start<F>(
    host: HostHandle,
    settings: Lent<'_, Settings<'_>>,
    main: impl FnOnce() -> F + Send + 'static,
) -> Result<Box<dyn Plugin>, String>
where
    F: Future<Output: Returned> + 'static,
{
    if let Some(migrated) = super::migration::asked_for(host, settings) {
        return migrated;
    }
    let (runtime, context) = super::app::prepare(host, settings)?;
    let handle = runtime.handle().clone();
    let (begun, begins) = mpsc::channel();
    let (ended, end) = mpsc::channel();
    let this = Arc::new(Main {
        context: context.clone(),
        start: Mutex::new(Some((runtime, begun.clone()))),
        over: watch::Sender::new(false),
        thread: Mutex::new(None),
    });
    *MAIN.lock() = Some(Arc::clone(&this));
    // A thread, since the future of a `main` need not be `Send`.
    let name = format!("{}#{} main", context.app(), context.generation());
    let over = this.over.subscribe();
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        let outcome = ended_as(&handle, main);
        let early = begun.send(Begun::Ended(outcome.clone())).is_err();
        drop(handle);
        tell_end(early && !*over.borrow(), &outcome);
        drop(ended);
    });
    let outcome = match thread {
        Ok(thread) => {
            *this.thread.lock() = Some((thread, end));
            match begins.recv() {
                Ok(Begun::Serving(plugin)) => return Ok(plugin),
                Ok(Begun::Ended(Err(reason))) => reason,
                Ok(Begun::Ended(Ok(()))) | Err(_) => {
                    "its main ended without `handover_plugin::serve(listener, app).await`"
                        .to_owned()
                }
            }
        }
        Err(error) => format!("the thread of its main could not be started: {error}"),
    };
    let deadline = Duration::from_secs(1);
    finish(deadline);
    if let Some((runtime, _)) = this.start.lock().take() {
        runtime.stop(deadline);
    }
    super::context::forget_current();
    Err(outcome)
}

/// Gives `app` to the host, if it is the first. Returns what ends when the generation is over.
///
/// # Errors
/// When another app was given before, or this plugin has another constructor than its `main`: the
/// app again.
pub(super) fn give<A: App>(
    app: A,
    names_peers: bool,
) -> Result<impl Future<Output = ()> + Send + use<A>, A> {
    let main = MAIN.lock().clone();
    let Some((main, (runtime, begun))) =
        main.and_then(|main| Some((Arc::clone(&main), main.start.lock().take()?)))
    else {
        return Err(app);
    };
    log::settle();
    let context = main.context.clone();
    if names_peers {
        context.client_address_as(|address| Peer(Some(address)));
    }
    let plugin = Box::new(Running {
        app,
        context,
        runtime,
    });
    let mut over = main.over.subscribe();
    // Who waits for it may have given up: then the generation ends at once.
    if begun.send(Begun::Serving(plugin)).is_err() {
        main.over.send_replace(true);
    }
    Ok(async move {
        let _ = over.wait_for(|over| *over).await;
    })
}

/// Has `main` go on after its `serve`, and waits until it has ended, at most for `deadline`.
/// Nothing where there is none.
pub(super) fn finish(deadline: Duration) -> Duration {
    let began = Instant::now();
    let Some(main) = MAIN.lock().take() else {
        return deadline;
    };
    main.over.send_replace(true);
    if let Some((thread, end)) = main.thread.lock().take() {
        // It sends nothing: its end is that of the sender.
        if end.recv_timeout(deadline) == Err(mpsc::RecvTimeoutError::Disconnected) {
            // It caught its panic.
            let _ = thread.join();
        }
    }
    deadline.saturating_sub(began.elapsed())
}

fn ended_as<F>(handle: &Handle, main: impl FnOnce() -> F) -> Result<(), String>
where
    F: Future<Output: Returned>,
{
    match catch_unwind(AssertUnwindSafe(|| {
        handle
            .block_on(log::constructing(async { main().await }))
            .returned()
    })) {
        Ok(outcome) => outcome,
        Err(payload) => {
            let text = format!("its main panicked: {}", panic_message(&*payload));
            // Its destructor may panic as well, and the hook has told.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(payload)));
            Err(text)
        }
    }
}

/// Tells of an end that nobody waits for.
fn tell_end(early: bool, outcome: &Result<(), String>) {
    match outcome {
        Ok(()) if early => log::warning("its main has ended; the app that it serves stays"),
        Err(reason) if early => log::error(&format!(
            "its main has ended, the app that it serves stays: {reason}"
        )),
        Err(reason) => log::error(&format!("its main ended with an error: {reason}")),
        Ok(()) => {}
    }
}

/// What a `main` returns.
pub trait Returned {
    /// Why it failed, with causes.
    ///
    /// # Errors
    /// When it failed.
    fn returned(self) -> Result<(), String>;
}

impl Returned for () {
    fn returned(self) -> Result<(), String> {
        Ok(())
    }
}

impl<T, E: fmt::Debug + 'static> Returned for Result<T, E> {
    fn returned(self) -> Result<(), String> {
        self.map(drop).map_err(|error| sentence(error))
    }
}

/// The sentence of an error. A program only wants `Debug` of what its `main` returns, and that is
/// no sentence, so the common types are known by name.
fn sentence<E: fmt::Debug + 'static>(error: E) -> String {
    let any: &dyn Any = &error;
    if let Some(error) = any.downcast_ref::<Box<dyn StdError + Send + Sync>>() {
        return with_causes(&**error);
    }
    if let Some(error) = any.downcast_ref::<Box<dyn StdError>>() {
        return with_causes(&**error);
    }
    if let Some(error) = any.downcast_ref::<std::io::Error>() {
        return with_causes(error);
    }
    if let Some(error) = any.downcast_ref::<Error>() {
        return error.to_string();
    }
    if let Some(error) = any.downcast_ref::<String>() {
        return error.clone();
    }
    if let Some(error) = any.downcast_ref::<&str>() {
        return (*error).to_owned();
    }
    // As anyhow writes it: the message, a blank line, "Caused by:", one cause a line, and perhaps a
    // backtrace.
    let text = format!("{error:?}");
    let text = text
        .split("\n\nStack backtrace:")
        .next()
        .unwrap_or_default();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut sentence = lines.next().unwrap_or_default().to_owned();
    for line in lines.filter(|line| *line != "Caused by:") {
        let cause = match line.split_once(": ") {
            Some((number, cause)) if number.parse::<usize>().is_ok() => cause,
            _ => line,
        };
        sentence = format!("{sentence}: {cause}");
    }
    sentence
}

fn with_causes(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Verbose(&'static str);

    impl fmt::Debug for Verbose {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    #[test]
    fn what_a_main_returns_becomes_a_sentence() {
        let boxed: Box<dyn StdError> = "no database".into();
        assert_eq!(sentence(boxed), "no database");
        assert_eq!(sentence(std::io::Error::other("no port")), "no port");
        assert_eq!(sentence("a text"), "a text");
        let one = "no database\n\nCaused by:\n    connection refused";
        assert_eq!(sentence(Verbose(one)), "no database: connection refused");
        let more = "no database\n\nCaused by:\n    0: no route\n    1: unplugged\n\nStack backtrace:\n   0: main";
        assert_eq!(sentence(Verbose(more)), "no database: no route: unplugged");
        assert_eq!(Ok::<_, Verbose>(1).returned(), Ok(()));
    }
}
