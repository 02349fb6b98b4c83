//! All apps of the host, by name, and where the requests of each go.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use handover_api::{AppName, EventKind, GenerationId, OperationResult, Outcome};
use parking_lot::Mutex;

use super::app::App;
use crate::{
    assets::AppAssets,
    config::Config,
    dispatch::Routes,
    operations::operation::no_app,
    records::{
        app_record::{self, Saved},
        events::Events,
        room::Room,
    },
    state::Stores,
    work::WorkRegistry,
};

/// The apps. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Arc<ArcSwap<Config>>,
    /// `<state>/apps`.
    records: PathBuf,
    /// `<state>/assets`.
    assets: PathBuf,
    /// `<state>/data`, absolute; none where it has no such name.
    data: Option<PathBuf>,
    room: Arc<Room>,
    events: Events,
    routes: Arc<Routes>,
    apps: Mutex<BTreeMap<AppName, Arc<App>>>,
    /// Held while the routes of all apps are gathered and published, so that no cutover is undone
    /// by another one.
    publishing: Mutex<()>,
    stores: Stores,
    work: WorkRegistry,
}

impl Registry {
    /// Opens the apps of `config` and those that `state` remembers, none of them serving yet.
    ///
    /// Blocks on the disk. Must be called within the host's runtime.
    ///
    /// # Errors
    /// When the state directory cannot be read or written.
    pub(crate) fn open(
        config: Config,
        state: &Path,
        room: Arc<Room>,
        routes: Arc<Routes>,
    ) -> io::Result<Self> {
        let records = state.join("apps");
        std::fs::create_dir_all(&records)?;
        let remembered = app_record::known(&records)?;
        let config = Arc::new(ArcSwap::from_pointee(config));
        let stores = Stores::new(state.join("state"), {
            let config = Arc::clone(&config);
            move |app| config.load().app(app).state
        });
        let work = WorkRegistry::new(stores.clone(), {
            let config = Arc::clone(&config);
            move |app| {
                let settings = config.load().app(app);
                (settings.jobs, settings.mirrors())
            }
        });
        let registry = Self(Arc::new(Inner {
            records,
            assets: state.join("assets"),
            data: std::path::absolute(state.join("data")).ok(),
            room,
            events: Events::new(),
            routes,
            apps: Mutex::default(),
            publishing: Mutex::default(),
            stores,
            work,
            config,
        }));
        let configured = registry.config();
        for name in configured.apps.keys().cloned().chain(remembered) {
            registry.app(&name);
        }
        registry.publish();
        Ok(registry)
    }

    /// Returns the configuration of the host, as it is now.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.0.config.load_full()
    }

    /// Has all apps go by `config` from now on, those that it names for the first time as well. To
    /// be called within the host's runtime. Reads records of apps.
    pub(crate) fn retune(&self, config: Config) {
        let publishing = self.publishing().lock();
        self.0.config.store(Arc::new(config));
        let config = self.config();
        for app in self.all() {
            app.retune(config.app(&app.name));
        }
        for name in config.apps.keys() {
            self.app(name);
        }
        self.0.stores.retune();
        self.0.work.retune();
        self.publish_locked(&publishing);
    }

    /// Returns what the apps keep in the host.
    pub(crate) fn stores(&self) -> &Stores {
        &self.0.stores
    }

    /// Returns the work of the apps that outlives their code.
    pub(crate) fn work(&self) -> &WorkRegistry {
        &self.0.work
    }

    /// Returns the log of events.
    pub(crate) fn events(&self) -> &Events {
        &self.0.events
    }

    /// Returns the room that is kept on the disk for records.
    pub(crate) fn room(&self) -> &Room {
        &self.0.room
    }

    /// Returns the folder for the files of the app of that name. Nobody has made it yet.
    pub(crate) fn data_dir(&self, app: &AppName) -> Option<PathBuf> {
        Some(self.0.data.as_ref()?.join(app.as_str()))
    }

    pub(crate) fn routes(&self) -> &Routes {
        &self.0.routes
    }

    pub(super) fn publishing(&self) -> &Mutex<()> {
        &self.0.publishing
    }

    /// Returns the app of that name, new if nobody knew it. A new one reads its record from the
    /// disk.
    pub(crate) fn app(&self, name: &AppName) -> Arc<App> {
        let mut apps = self.0.apps.lock();
        if let Some(app) = apps.get(name) {
            return Arc::clone(app);
        }
        let (saved, trouble) = Saved::open(&self.0.records, name, Arc::clone(&self.0.room));
        let settings = self.config().app(name);
        let assets = self.0.assets.join(name.as_str());
        let assets = AppAssets::open(name.clone(), assets, settings.assets());
        let app = Arc::new(App::new(name.clone(), settings, saved, assets));
        apps.insert(name.clone(), Arc::clone(&app));
        drop(apps);
        if let Some(trouble) = trouble {
            self.record_event(EventKind::State, &app, None, trouble);
        }
        app
    }

    /// Returns the app of that name, if it exists.
    pub(crate) fn known(&self, name: &AppName) -> Option<Arc<App>> {
        self.0.apps.lock().get(name).cloned()
    }

    /// Returns the app of that name.
    ///
    /// # Errors
    /// The result of an operation about an app that does not exist.
    pub(crate) fn known_or_fail(&self, name: &AppName) -> Result<Arc<App>, Box<OperationResult>> {
        self.known(name).ok_or_else(|| {
            let message = match self.names() {
                none if none.is_empty() => format!("there is no app {name}, and no other either"),
                names => format!("there is no app {name}: there is {names}"),
            };
            Box::new(no_app(Outcome::Failed, message))
        })
    }

    /// Returns every app, by name, those included whose first deploy was refused.
    pub(crate) fn all(&self) -> Vec<Arc<App>> {
        self.0.apps.lock().values().cloned().collect()
    }

    /// Returns every app that people are to see, by name.
    pub(crate) fn shown(&self) -> Vec<Arc<App>> {
        let mut all = self.all();
        let config = self.config();
        all.retain(|app| config.apps.contains_key(&app.name) || app.has_anything());
        all
    }

    /// Returns the names of the apps that people are to see, as a list for a sentence.
    pub(crate) fn names(&self) -> String {
        let names: Vec<String> = self
            .shown()
            .iter()
            .map(|app| app.name.to_string())
            .collect();
        names.join(", ")
    }

    /// Records an event about `app`.
    pub(crate) fn record_event(
        &self,
        kind: EventKind,
        app: &App,
        generation: Option<GenerationId>,
        message: impl Into<String>,
    ) {
        self.0
            .events
            .record(kind, Some(&app.name), generation, message);
    }
}
