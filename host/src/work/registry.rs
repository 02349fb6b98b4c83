//! The work of all apps, each made when it is first asked for.

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
};

use handover_api::AppName;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::{
    jobs::{Jobs, Settings},
    lease::Leases,
    schedule::Schedules,
    settings::LiveSettings,
};
use crate::{artifact::Declared, state::Stores};

/// What an app's section says of its work: the settings of jobs, and the files that are locked with
/// leases.
type SettingsOf = dyn Fn(&AppName) -> (Settings, BTreeMap<String, PathBuf>) + Send + Sync;

/// The work of all apps. Cheap to clone.
#[derive(Clone)]
pub(crate) struct WorkRegistry(Arc<Inner>);

struct Inner {
    stores: Stores,
    settings: Box<SettingsOf>,
    runtime: Handle,
    /// One job has an identity, whosever it is.
    last_id: Arc<AtomicU64>,
    apps: Mutex<BTreeMap<AppName, Arc<AppWork>>>,
}

/// The work of one app.
pub(crate) struct AppWork {
    /// Its durable jobs.
    pub(crate) jobs: Jobs,
    /// Its leases.
    pub(crate) leases: Leases,
    /// Its schedules.
    pub(crate) schedules: Schedules,
    /// Its live settings.
    pub(crate) settings: LiveSettings,
}

impl AppWork {
    /// `generation`, which declares this, is live from now on: it runs the jobs, gets the leases
    /// that it waits for, and its schedules are the app's. With `is_restart` it was live when the
    /// host ended.
    pub(crate) fn set_live(&self, generation: u64, declared: &Declared, is_restart: bool) {
        self.jobs.set_live(generation);
        self.leases.set_live(generation);
        self.schedules.replace(declared, is_restart);
    }
}

impl fmt::Debug for WorkRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkRegistry")
    }
}

impl fmt::Debug for AppWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AppWork")
    }
}

impl WorkRegistry {
    /// That of the apps whose state is in `stores`, each with its `settings`. To be called within
    /// the host's runtime.
    pub(crate) fn new(
        stores: Stores,
        settings: impl Fn(&AppName) -> (Settings, BTreeMap<String, PathBuf>) + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Inner {
            stores,
            settings: Box::new(settings),
            runtime: Handle::current(),
            last_id: Arc::default(),
            apps: Mutex::default(),
        }))
    }

    /// Has all work that was asked for go by the settings of its app as they are now.
    pub(crate) fn retune(&self) {
        for (app, work) in self.0.apps.lock().iter() {
            let (settings, mirrors) = (self.0.settings)(app);
            work.jobs.retune(settings);
            work.leases.retune(mirrors);
        }
    }

    /// The work of `app`. Nothing is read yet.
    pub(crate) fn of(&self, app: &AppName) -> Arc<AppWork> {
        let mut apps = self.0.apps.lock();
        if let Some(known) = apps.get(app) {
            return Arc::clone(known);
        }
        let store = self.0.stores.of(app);
        let (settings, mirrors) = (self.0.settings)(app);
        let (runtime, last_id) = (self.0.runtime.clone(), Arc::clone(&self.0.last_id));
        let jobs = Jobs::new(
            app.clone(),
            Arc::clone(&store),
            settings,
            last_id,
            runtime.clone(),
        );
        let work = Arc::new(AppWork {
            settings: LiveSettings::new(runtime.clone()),
            leases: Leases::new(app.clone(), Arc::clone(&store), mirrors, runtime.clone()),
            schedules: Schedules::new(app.clone(), store, jobs.clone(), runtime),
            jobs,
        });
        apps.insert(app.clone(), Arc::clone(&work));
        work
    }
}
