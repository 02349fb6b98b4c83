//! What an app knows of itself and of the host.

use std::{
    collections::HashMap,
    fmt,
    fs::DirBuilder,
    future::{Future, poll_fn},
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    pin::{Pin, pin},
    sync::{Arc, OnceLock},
    task::Poll,
};

use http::{Extensions, Request};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{runtime::Handle, sync::watch, task::JoinHandle};

use super::{
    connection::Connection,
    error::Error,
    jobs::{self, Jobs},
    lease::{self, Lease},
    settings::{Message, Settings},
    state::{State, StateError},
    work::{Kind, Works},
    worker::{Stop, Workers},
};
use crate::abi::{export::HostHandle, head::RequestHead, host, lent::Lent, root, work::WorkHandle};

/// What an app knows of itself and of the host. Cheap to clone; keep it in the state of your
/// router.
#[derive(Clone, Debug)]
pub struct Context(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    app: String,
    version: String,
    generation: u64,
    config: String,
    env: HashMap<String, String>,
    preflight: bool,
    base_path: String,
    data_dir: Option<PathBuf>,
    handed_over: Option<String>,
    hand_over: Mutex<Option<HandOver>>,
    runtime: Handle,
    works: Arc<Works>,
    workers: Workers,
    draining: watch::Sender<bool>,
    host: HostHandle,
    state: OnceLock<State>,
    settings: OnceLock<Settings>,
    client: OnceLock<TellClient>,
    connection: OnceLock<TellConnection>,
}

/// Gives what the next version begins with, as JSON.
struct HandOver(Box<dyn Fn() -> HandOverFuture + Send + Sync>);

type HandOverFuture = Pin<Box<dyn Future<Output = Result<String, Error>> + Send>>;

impl fmt::Debug for HandOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HandOver")
    }
}

/// Puts the address of a client into the extensions of its request.
struct TellClient(Box<Tell>);

type Tell = dyn Fn(SocketAddr, &mut Extensions) + Send + Sync;

/// Puts what is known of a connection into the extensions of its request.
struct TellConnection(Box<TellOfConnection>);

type TellOfConnection = dyn Fn(Connection, &mut Extensions) + Send + Sync;

impl fmt::Debug for TellConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TellConnection")
    }
}

impl fmt::Debug for TellClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TellClient")
    }
}

/// Adds the files in `folder`, and in the folders in it, in the order of their names.
fn files_in(folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let entries: Result<Vec<_>, _> = std::fs::read_dir(folder)?.collect();
    let mut entries = entries?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if path.is_dir() {
            files_in(&path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

/// The context of this generation, of which each copy of the SDK has one. Taken away at its end: it
/// holds the descriptors of the runtime.
static CURRENT: Mutex<Option<Context>> = Mutex::new(None);

/// Takes the context of this generation away.
pub(super) fn forget_current() {
    let current = CURRENT.lock().take();
    drop(current);
}

impl Context {
    /// The context of the generation that this code belongs to; none in a program of its own, in
    /// tests, and once the generation is over. For code that is not given one, as a `main`.
    pub fn current() -> Option<Self> {
        CURRENT.lock().clone()
    }

    pub(super) fn make_current(&self) {
        *CURRENT.lock() = Some(self.clone());
    }

    pub(super) fn new(
        settings: Lent<'_, root::Settings<'_>>,
        runtime: Handle,
        host: HostHandle,
    ) -> Self {
        let env = settings
            .env
            .iter()
            .map(|pair| (pair.name.into(), pair.value.into()))
            .collect();
        Self(Arc::new(Inner {
            app: settings.app.into(),
            version: settings.version.into(),
            generation: settings.generation,
            config: settings.config.into(),
            env,
            preflight: settings.preflight,
            base_path: settings.base_path().to_owned(),
            data_dir: settings.data_dir().map(PathBuf::from),
            handed_over: settings.handed_over().map(str::to_owned),
            hand_over: Mutex::new(None),
            runtime,
            works: Arc::new(Works::new(host)),
            workers: Workers::default(),
            draining: watch::Sender::new(false),
            host,
            state: OnceLock::new(),
            settings: OnceLock::new(),
            client: OnceLock::new(),
            connection: OnceLock::new(),
        }))
    }

    /// The app's name.
    pub fn app(&self) -> &str {
        &self.0.app
    }

    /// The version that this build's manifest names.
    pub fn version(&self) -> &str {
        &self.0.version
    }

    /// The number of this generation; it grows with each load of the app.
    pub fn generation(&self) -> u64 {
        self.0.generation
    }

    /// The table `[app.NAME.config]` of the host's configuration.
    ///
    /// # Errors
    /// When the table is not of the shape of `T`: which key, and what was expected.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_str(&self.0.config).map_err(|error| {
            Error::msg(format_args!(
                "[app.{}.config] does not fit: {error}",
                self.0.app
            ))
        })
    }

    /// An environment variable of the host that `[app.NAME] env` allows this app to read.
    pub fn env(&self, name: &str) -> Option<&str> {
        self.0.env.get(name).map(String::as_str)
    }

    /// The path that the app answers under, without a slash at its end: `/blog`, or nothing at the
    /// root. The host takes it off the path of each request, so that routes are written without it;
    /// links and redirects that the app makes begin with it. Of several routes it is the first.
    pub fn base_path(&self) -> &str {
        &self.0.base_path
    }

    /// The folder for the files of the app, absolute, which nobody else may read. All versions of
    /// the app have the same one, and it outlives the host. In a preflight check it is another one,
    /// which is empty and thrown away.
    ///
    /// # Errors
    /// When the folder cannot be made, or the host is older than ABI 1.4 and has none.
    pub fn data_dir(&self) -> Result<&Path, Error> {
        let Some(path) = &self.0.data_dir else {
            return Err(Error::msg(
                "this host gives an app no folder: it takes one with ABI 1.4, in a state directory whose path is UTF-8",
            ));
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| {
                Error::msg(format_args!("{} cannot be made: {error}", path.display()))
            })?;
        Ok(path)
    }

    /// Has `give` say what the next version begins with: a warm cache, say. It is called when
    /// another version of the app, or this one anew, is about to be constructed beside this one,
    /// which answers requests meanwhile; what it gives crosses as JSON. A second call replaces the
    /// first.
    ///
    /// ```ignore
    /// let cache = Arc::new(Cache::with(cx.handed_over()?.unwrap_or_default()));
    /// let given = Arc::clone(&cache);
    /// cx.on_handover(move || {
    ///     let cache = Arc::clone(&given);
    ///     async move { cache.entries() }
    /// });
    /// ```
    pub fn on_handover<F, W, T>(&self, give: F)
    where
        F: Fn() -> W + Send + Sync + 'static,
        W: Future<Output = T> + Send + 'static,
        T: Serialize,
    {
        let give = move || -> HandOverFuture {
            let given = give();
            Box::pin(async move { Ok(serde_json::to_string(&given.await)?) })
        };
        *self.0.hand_over.lock() = Some(HandOver(Box::new(give)));
    }

    /// What the version before hands over by [`on_handover`](Self::on_handover). None when it hands
    /// nothing over: at a start of the host, in a preflight check, or when it was too slow or it
    /// was too much. So an app does without.
    ///
    /// # Errors
    /// When it is of another type: what the version before gives is none of this version.
    pub fn handed_over<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        let Some(text) = &self.0.handed_over else {
            return Ok(None);
        };
        serde_json::from_str(text).map(Some).map_err(|error| {
            Error::msg(format_args!(
                "what the version before hands over is of another type: {error}"
            ))
        })
    }

    /// Asks for what the next version begins with.
    pub(super) fn hand_over(&self) -> Result<Option<String>, String> {
        let given = self.0.hand_over.lock().as_ref().map(|give| (give.0)());
        let Some(mut given) = given else {
            return Ok(None);
        };
        // Nobody waits for it any more once this generation is replaced.
        let mut draining = pin!(self.draining());
        let given = self.0.runtime.block_on(poll_fn(|cx| {
            if draining.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(None));
            }
            given.as_mut().poll(cx).map_ok(Some)
        }));
        given.map_err(|error| error.to_string())
    }

    /// Drops what it was given by [`on_handover`](Self::on_handover), which may have this context
    /// itself.
    pub(super) fn forget_hand_over(&self) {
        let given = self.0.hand_over.lock().take();
        drop(given);
    }

    /// Whether this is the trial start of a preflight check: it will be dropped again, and no user
    /// asks it.
    pub fn is_preflight(&self) -> bool {
        self.0.preflight
    }

    /// Whether a newer generation has taken over.
    pub fn is_draining(&self) -> bool {
        *self.0.draining.borrow()
    }

    /// Ends when a newer generation has taken over: the time for a stream to say good-bye, so that
    /// its client comes back to the new one.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let mut draining = self.0.draining.subscribe();
        async move {
            // The sender lives as long as the app; should it be gone, this generation is over as
            // well.
            let _ = draining.wait_for(|draining| *draining).await;
        }
    }

    /// The state of the app, which outlives this code: its namespace `default`. In a preflight
    /// check it is empty, and what is written to it is thrown away with that.
    pub fn state(&self) -> State {
        let begin = || State::new(self.0.host.state(), self.0.host.durable_work());
        self.0.state.get_or_init(begin).clone()
    }

    /// The live settings of the app, which an operator changes by `handover set` while it runs. All
    /// versions have the same ones, and they outlive the host. In a preflight check there are none.
    pub fn settings(&self) -> Settings {
        let open = || {
            let work = self.0.host.durable_work();
            Settings::open(&self.0.app, work, &self.0.works, &self.0.runtime)
        };
        self.0.settings.get_or_init(open).clone()
    }

    /// Has `handler` answer what an operator sends by `handover send`; to be called in the
    /// constructor. What it returns is JSON for the operator; so a text is one. It counts as a task
    /// of this generation.
    ///
    /// ```ignore
    /// cx.on_message(move |message| {
    ///     let cache = cache.clone();
    ///     async move {
    ///         match message.text() {
    ///             "flush" => Ok(cache.flush().await),
    ///             other => Err(Error::msg(format_args!("there is no command `{other}`"))),
    ///         }
    ///     }
    /// });
    /// ```
    pub fn on_message<F, W, R, E>(&self, handler: F)
    where
        F: Fn(Message) -> W + Send + Sync + 'static,
        W: Future<Output = Result<R, E>> + Send + 'static,
        R: Serialize,
        E: Into<Error>,
    {
        self.settings().on_message(handler);
    }

    /// Hands files to the host, which serves them below `prefix` itself: with headers for caches,
    /// compressed, without asking this code. Each file is its path below `prefix` and its bytes. To
    /// be called in the constructor.
    ///
    /// Those whose names have a hash of their content (`app.3f9c2a17.js`, `index-DiwrgTd4.css`) are
    /// immutable, and outlive this version: a page that was loaded before a deploy finds its
    /// script. Every other request for such a name below `prefix` gets 404 from the host. HTML is
    /// left to the app.
    ///
    /// ```ignore
    /// #[derive(rust_embed::Embed)]
    /// #[folder = "dist/assets"]
    /// struct Dist;
    ///
    /// cx.assets("/assets", Dist::iter().filter_map(|path| {
    ///     let bytes = Dist::get(&path)?.data;
    ///     Some((path, bytes))
    /// }))?;
    /// ```
    ///
    /// # Errors
    /// When the host does not take a file: which, and why.
    pub fn assets<P, B>(
        &self,
        prefix: &str,
        files: impl IntoIterator<Item = (P, B)>,
    ) -> Result<(), Error>
    where
        P: AsRef<str>,
        B: AsRef<[u8]>,
    {
        let assets = self
            .0
            .host
            .assets()
            .ok_or_else(|| Error::msg("this host serves no assets: it does with ABI 1.4"))?;
        for (path, bytes) in files {
            let path = path.as_ref();
            assets
                .put(prefix, path, bytes.as_ref())
                .map_err(|why| Error::msg(format_args!("the asset {path} is not taken: {why}")))?;
        }
        Ok(())
    }

    /// Hands all files in `folder`, and in the folders in it, to the host: see
    /// [`assets`](Self::assets). They are read once, now. An absolute path: a relative one is one
    /// of the host.
    ///
    /// # Errors
    /// When a file cannot be read, or the host does not take it.
    pub fn assets_in(&self, prefix: &str, folder: impl AsRef<Path>) -> Result<(), Error> {
        let folder = folder.as_ref();
        let mut paths = Vec::new();
        files_in(folder, &mut paths).map_err(|error| {
            Error::msg(format_args!("{} cannot be read: {error}", folder.display()))
        })?;
        for path in paths {
            let bytes = std::fs::read(&path).map_err(|error| {
                Error::msg(format_args!("{} cannot be read: {error}", path.display()))
            })?;
            let below = path.strip_prefix(folder).unwrap_or(&path);
            self.assets(prefix, [(below.to_string_lossy(), bytes)])?;
        }
        Ok(())
    }

    /// Runs `future` beside the requests. The generation counts it as in flight: it is unloaded
    /// only after the task's end, and a task that still runs at the drain deadline is cancelled.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.spawn_work("task", "", Kind::Task, future)
    }

    /// Runs `work`, called `name`, beside the requests for as long as this generation is live: a
    /// loop over a queue, a timer that sweeps. It begins when the version is live, so never in
    /// preflight nor in a version that is refused, and is told to stop by what it is given when a
    /// newer generation has taken over. Until it has ended it counts as in flight; at the drain
    /// deadline it is cancelled.
    ///
    /// ```ignore
    /// cx.worker("mail", async move |stop| {
    ///     while let Some(mail) = stop.or(queue.next()).await {
    ///         send(mail).await; // begun, so it is finished
    ///     }
    /// });
    /// ```
    pub fn worker<F, W>(&self, name: &str, work: F)
    where
        F: FnOnce(Stop) -> W + Send + 'static,
        W: Future<Output = ()> + Send + 'static,
    {
        if self.is_preflight() {
            return;
        }
        let (name, stop) = (name.to_owned(), Stop::new(self.0.draining.subscribe()));
        let (works, runtime) = (Arc::clone(&self.0.works), self.0.runtime.clone());
        self.0.workers.begin(move || {
            // What it does before it first waits runs on the runtime as well.
            let work = async move { work(stop).await };
            works.spawn(&runtime, &name, "", Kind::Worker, work);
        });
    }

    /// Jobs: work that no deploy interrupts.
    pub fn jobs(&self) -> Jobs<'_> {
        Jobs(self)
    }

    /// Waits for the lease `name`, which one holder of the app has at a time, whatever number of
    /// its generations run. An older generation is asked to give it back when a newer one takes
    /// over.
    ///
    /// ```ignore
    /// cx.worker("mail-poller", async move |stop| {
    ///     let mut lease = cx.lease("mail-poller").await?;
    ///     while !stop.is_requested() {
    ///         tokio::select! {
    ///             () = lease.asked_back() => break,
    ///             mail = next_mail() => deliver(mail, lease.fence()).await,
    ///         }
    ///     }
    /// });
    /// ```
    ///
    /// # Errors
    /// When this generation is being replaced, or the number of the holder cannot be written.
    pub async fn lease(&self, name: &str) -> Result<Lease, StateError> {
        lease::acquire(self, name).await
    }

    pub(super) fn durable_work(&self) -> Option<WorkHandle> {
        self.0.host.durable_work()
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.0.runtime
    }

    pub(super) fn spawn_work<F>(
        &self,
        name: &str,
        tenant: &str,
        kind: Kind,
        future: F,
    ) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.0
            .works
            .spawn(&self.0.runtime, name, tenant, kind, future)
    }

    /// Puts the address of the client into the extensions of each request, as what `into` makes of
    /// it; to be called in the constructor, once. With axum, `cx.client_address_as(ConnectInfo)` is
    /// what the extractor `ConnectInfo<SocketAddr>` looks for.
    ///
    /// It is the address of the connection, or the one that a proxy names whom the operator trusts.
    /// Without this call, requests pay nothing for it.
    pub fn client_address_as<T: Clone + Send + Sync + 'static>(
        &self,
        into: impl Fn(SocketAddr) -> T + Send + Sync + 'static,
    ) {
        let tell = move |address, extensions: &mut Extensions| {
            extensions.insert(into(address));
        };
        // The first one counts: requests may have been told by it already.
        let _ = self.0.client.set(TellClient(Box::new(tell)));
    }

    /// Puts what is known of the connection into the extensions of each request, as what `into`
    /// makes of it; to be called in the constructor, once. With axum, after
    /// `cx.connection_as(|connection| connection)` a handler takes `Extension<Connection>`.
    ///
    /// That is where the client connected to, the version of TLS, the name of the host that it
    /// asked for, and its certificate. There is none from a host that is older than ABI 1.2.
    /// Without this call, requests pay nothing for it.
    pub fn connection_as<T: Clone + Send + Sync + 'static>(
        &self,
        into: impl Fn(Connection) -> T + Send + Sync + 'static,
    ) {
        let tell = move |connection, extensions: &mut Extensions| {
            extensions.insert(into(connection));
        };
        // The first one counts, as above.
        let _ = self.0.connection.set(TellConnection(Box::new(tell)));
    }

    /// Tells a request who its client is and what its connection, if the app wants that.
    #[inline]
    pub(super) fn tell_client<B>(&self, head: Lent<'_, RequestHead<'_>>, request: &mut Request<B>) {
        if let Some(TellConnection(tell)) = self.0.connection.get()
            && let Some(connection) = head.connection()
        {
            tell(Connection::of(connection), request.extensions_mut());
        }
        if let Some(TellClient(tell)) = self.0.client.get()
            && let Some(address) = head.peer()
        {
            tell(address, request.extensions_mut());
        }
    }

    pub(super) fn activate(&self) {
        self.0.workers.activate();
        jobs::listen(self, &self.0.works, Stop::new(self.0.draining.subscribe()));
    }

    pub(super) fn start_draining(&self) {
        self.0.workers.drain();
        self.0.draining.send_replace(true);
    }

    /// The host asks nothing any more.
    pub(super) fn close_settings(&self) {
        if let Some(settings) = self.0.settings.get() {
            settings.close();
        }
    }

    /// What the app has declared of its settings is dropped with it.
    pub(super) fn forget_settings(&self) {
        if let Some(settings) = self.0.settings.get() {
            settings.forget();
        }
    }

    pub(super) fn tell_tasks_left(&self, left: u64) {
        self.0.works.host().figure(host::TASKS_LEFT, left);
    }

    pub(super) fn cancel_one(&self, number: u64) -> bool {
        self.0.works.cancel_one(number)
    }

    pub(super) fn cancel_work(&self, jobs: bool) -> u64 {
        self.0.works.cancel(jobs)
    }
}
