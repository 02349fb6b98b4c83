//! A host in memory: contexts for unit tests, without a process and without a file.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    path::PathBuf,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use tokio::runtime::{Handle, Runtime};

use super::{
    state::MemoryState,
    work::{MemoryWork, Session},
};
use crate::{
    Context, Error, JobId, JobInfo,
    abi::{
        assets::{Asset, AssetsService},
        host::{Event, Pair, Work},
        import::{HostServices, offer},
        lent::{Lent, Size},
        root::{MoreSettings, Settings},
        state::StateService,
        version::ABI,
        work::WorkService,
    },
};

/// A [`Context`] of a host in memory, with an empty state: [`MemoryHost`] with its defaults.
pub fn context() -> Context {
    MemoryHost::new().context()
}

/// A host in memory, for tests that call constructors, handlers and jobs as the functions they are.
///
/// Its state and its leases are those of one app, and every [`context`](Self::context) is one more
/// generation of that. They obey the rules of a real host, but for what is about disks: nothing has
/// a quota, and nothing outlives the value. Times (`put_ttl`, pauses of jobs) are those of
/// tokio's clock, which `tokio::time::advance` moves.
///
/// ```ignore
/// let host = MemoryHost::new().env("SHOP_KEY", "secret");
/// let cx = host.context();
/// host.go_live(&cx); // workers begin, jobs run
/// let id = cx.jobs().enqueue("invoice", &order).await?;
/// assert_eq!(host.finished(&id).await?.state, "done");
/// ```
#[derive(Debug)]
pub struct MemoryHost {
    app: String,
    version: String,
    config: String,
    env: BTreeMap<String, String>,
    preflight: bool,
    generations: AtomicU64,
    state: MemoryState,
    work: MemoryWork,
    assets: MemoryAssets,
    data: DataFolder,
}

/// The files that constructors handed over, by their paths.
#[derive(Clone, Debug, Default)]
struct MemoryAssets(Arc<Mutex<BTreeMap<String, Vec<u8>>>>);

impl AssetsService for MemoryAssets {
    fn put(&self, asset: Lent<'_, Asset<'_>>) -> Result<(), String> {
        let (prefix, path) = (asset.prefix.as_str(), asset.path.as_str());
        if !prefix.starts_with('/') {
            return Err(format!("the prefix `{prefix}` does not begin with `/`"));
        }
        let (prefix, path) = (prefix.trim_end_matches('/'), path.trim_start_matches('/'));
        let bytes = asset.bytes.as_slice().to_vec();
        self.0.lock().insert(format!("{prefix}/{path}"), bytes);
        Ok(())
    }
}

/// The folder for the files of the app, which a context makes when it is asked for; deleted with
/// the host.
#[derive(Debug)]
struct DataFolder(PathBuf);

impl DataFolder {
    fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("handover-test-{}-{number}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for DataFolder {
    fn drop(&mut self) {
        // Most tests never make it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Default for MemoryHost {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryHost {
    /// A host with an empty state, for an app of the name and version of the package that is
    /// tested.
    pub fn new() -> Self {
        let state = MemoryState::default();
        let of_package = |name, default: &str| std::env::var(name).unwrap_or(default.to_owned());
        Self {
            app: of_package("CARGO_PKG_NAME", "app"),
            version: of_package("CARGO_PKG_VERSION", "0.0.0"),
            config: "{}".to_owned(),
            env: BTreeMap::new(),
            preflight: false,
            generations: AtomicU64::new(0),
            work: MemoryWork::new(state.clone()),
            state,
            assets: MemoryAssets::default(),
            data: DataFolder::new(),
        }
    }

    /// Gives its contexts this configuration, as `[app.NAME.config]` does.
    ///
    /// # Panics
    /// When it cannot be JSON.
    #[must_use]
    pub fn config(self, config: impl Serialize) -> Self {
        match serde_json::to_string(&config) {
            Ok(config) => Self { config, ..self },
            Err(error) => panic!("the configuration cannot be JSON: {error}"),
        }
    }

    /// Lets its contexts read this variable by [`Context::env`].
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Has its contexts begin with this setting, as after `handover set`.
    ///
    /// # Panics
    /// When the value cannot be JSON.
    #[must_use]
    pub fn setting(self, key: &str, value: impl Serialize) -> Self {
        match serde_json::to_value(value) {
            Ok(value) => self.work.set(key, value),
            Err(error) => panic!("the setting cannot be JSON: {error}"),
        }
        self
    }

    /// Has its contexts be those of a preflight check.
    #[must_use]
    pub fn preflight(self) -> Self {
        Self {
            preflight: true,
            ..self
        }
    }

    /// The context of the next generation. What it spawns runs on the runtime that this is called
    /// in, or on one of its own.
    pub fn context(&self) -> Context {
        static OWN: LazyLock<std::io::Result<Runtime>> = LazyLock::new(Runtime::new);
        let runtime = Handle::try_current().unwrap_or_else(|_| match &*OWN {
            Ok(runtime) => runtime.handle().clone(),
            Err(error) => panic!("no runtime can be started: {error}"),
        });
        let generation = self.generations.fetch_add(1, Ordering::Relaxed) + 1;
        let env: Vec<_> = self
            .env
            .iter()
            .map(|(name, value)| Pair {
                name: name.as_str().into(),
                value: value.as_str().into(),
            })
            .collect();
        let settings = Settings {
            size: Size::of::<Settings<'_>>(),
            host: ABI,
            app: self.app.as_str().into(),
            version: self.version.as_str().into(),
            generation,
            config: self.config.as_str().into(),
            env: env.as_slice().into(),
            runtime_threads: 1,
            preflight: self.preflight,
        };
        // A context may be kept for ever, and so its host is.
        let services: &'static Services = Box::leak(Box::new(Services {
            state: self.state.clone(),
            work: Session {
                work: self.work.clone(),
                generation,
            },
            assets: self.assets.clone(),
            works: AtomicU64::new(0),
        }));
        let data = self.data.0.to_str().unwrap_or_default();
        let more = MoreSettings {
            data_dir: data,
            ..MoreSettings::default()
        };
        settings.lend(&more, |settings| {
            Context::new(settings, runtime, offer(services))
        })
    }

    /// Has the generation of `context` be live: its workers begin, and jobs run that functions with
    /// [`job`](macro@crate::job) handle.
    pub fn go_live(&self, context: &Context) {
        context.activate();
    }

    /// Tells the generation of `context` that a newer one has taken over: its workers are asked to
    /// stop, its leases are asked back, and it begins no more jobs.
    pub fn drain(&self, context: &Context) {
        self.work.drain(context.generation());
        context.start_draining();
    }

    /// Changes a setting, as `handover set` does: the app of `context` checks it first, and has it
    /// when this returns.
    ///
    /// # Errors
    /// What the app refuses it with.
    pub fn set(&self, context: &Context, key: &str, value: impl Serialize) -> Result<(), Error> {
        let value = serde_json::to_value(value)?;
        context.settings().set(key, value.clone())?;
        self.work.set(key, value);
        Ok(())
    }

    /// Sends a message to the app of `context`, as `handover send` does, and returns its answer.
    ///
    /// # Errors
    /// That of the app; or its answer is not of the shape of `T`.
    pub async fn send<T: DeserializeOwned>(
        &self,
        context: &Context,
        text: impl Into<String>,
    ) -> Result<T, Error> {
        let answer = context.settings().answer(text.into()).await?;
        Ok(serde_json::from_value(answer)?)
    }

    /// Returns the file that a constructor handed over at this path, as [`Context::assets`] has it:
    /// `/assets/app.3f9c2a17.js`.
    pub fn asset(&self, path: &str) -> Option<Vec<u8>> {
        self.assets.0.lock().get(path).cloned()
    }

    /// Waits until a job is `done`, `dead` or `cancelled`, and says what is known of it. One that
    /// no live generation has a handler for never is.
    ///
    /// # Errors
    /// When there is no job of this identity.
    pub async fn finished(&self, id: &JobId) -> Result<JobInfo, Error> {
        let ended = poll_fn(|cx| self.work.poll_ended(id.as_str(), cx)).await;
        let (text, result) =
            ended.ok_or_else(|| Error::msg(format_args!("there is no job {id}")))?;
        Ok(JobInfo::read(&text, result)?)
    }
}

/// What one generation is offered.
#[derive(Debug)]
struct Services {
    state: MemoryState,
    work: Session,
    assets: MemoryAssets,
    works: AtomicU64,
}

impl HostServices for Services {
    fn log_enabled(&self, _level: u8) -> bool {
        // What is logged goes to the subscriber of the test.
        false
    }

    fn log(&self, _event: Lent<'_, Event<'_>>) {}

    fn panicked(&self, _message: &str) {}

    fn work_began(&self, _work: Lent<'_, Work<'_>>) -> u64 {
        self.works.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn work_ended(&self, _number: u64) {}

    fn state(&self) -> Option<&dyn StateService> {
        Some(&self.state)
    }

    fn durable_work(&self) -> Option<&dyn WorkService> {
        Some(&self.work)
    }

    fn assets(&self) -> Option<&dyn AssetsService> {
        Some(&self.assets)
    }

    fn figure(&self, _number: u32, _value: u64) {}
}
