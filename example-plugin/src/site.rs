//! What every handler knows: which version it is, how it is configured, its links, and when it has
//! to leave.
//!
//! This is all that the rest of the crate knows of the host, so that the rest is tested without
//! one.

use std::pin::Pin;

use serde::Deserialize;

use crate::accent::Accent;
use crate::assets::Assets;
use crate::store::Store;

/// Resolves when the generation starts to drain; never, where nothing is ever drained.
pub(crate) type Draining = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One generation of the app.
pub(crate) struct Site {
    /// Who answers.
    pub(crate) identity: Identity,
    /// What the operator chose.
    pub(crate) settings: Settings,
    /// The files that its pages ask for.
    pub(crate) assets: Assets,
    /// The links.
    pub(crate) store: Store,
    draining: Box<dyn Fn() -> Draining + Send + Sync>,
}

/// Which code answers: shown on each page, and by `/version`.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Identity {
    /// The app's name, as the host calls it.
    pub(crate) app: String,
    /// The version of the artifact.
    pub(crate) version: String,
    /// The number of this load of it.
    pub(crate) generation: u64,
    /// The commit it was built from, where the build was told it (`HANDOVER_COMMIT`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) commit: Option<&'static str>,
}

/// `[app.example-plugin.config]` of the host's configuration; every key may be left out.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// What the site calls itself. Default `Baton`.
    pub(crate) title: String,
    /// Its colour, as `#rrggbb`. Default a warm red.
    pub(crate) accent: Accent,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            title: "Baton".to_owned(),
            accent: Accent::default(),
        }
    }
}

impl Site {
    /// A site with the links of `store`. `draining` is called once for each stream that has to end
    /// in time.
    pub(crate) fn new(
        identity: Identity,
        settings: Settings,
        store: Store,
        draining: impl Fn() -> Draining + Send + Sync + 'static,
    ) -> Self {
        Self {
            assets: Assets::new(&identity.version, settings.accent),
            identity,
            settings,
            store,
            draining: Box::new(draining),
        }
    }

    /// Waits for the moment from which new requests go to another generation.
    pub(crate) fn draining(&self) -> Draining {
        (self.draining)()
    }
}
