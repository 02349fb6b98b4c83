//! The files that one generation hands over.

use std::{collections::BTreeMap, sync::Arc};

use handover_api::GenerationId;
use handover_plugin::abi::{
    assets::{Asset, AssetsService},
    lent::Lent,
};
use parking_lot::Mutex;
use semver::Version;

use super::{app::AppAssets, file::File, name};
use crate::artifact::Sha256;

/// The files of one generation.
#[derive(Debug)]
pub(super) struct Collection {
    pub(super) generation: GenerationId,
    pub(super) artifact: Sha256,
    pub(super) version: Version,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// No more are taken: its generation answers requests.
    is_sealed: bool,
    /// What the paths begin with, each with a slash at its end.
    prefixes: Vec<String>,
    files: BTreeMap<String, Arc<File>>,
    /// How large they are together.
    size: u64,
}

impl Collection {
    pub(super) fn new(generation: GenerationId, artifact: Sha256, version: Version) -> Self {
        Self {
            generation,
            artifact,
            version,
            inner: Mutex::default(),
        }
    }

    /// Takes no more files. Returns what their paths begin with, and all that there are by path.
    pub(super) fn seal(&self) -> (Vec<String>, BTreeMap<String, Arc<File>>) {
        let mut inner = self.inner.lock();
        inner.is_sealed = true;
        (inner.prefixes.clone(), inner.files.clone())
    }
}

/// What a generation hands its files to.
#[derive(Debug)]
pub(crate) struct Session {
    app: Arc<AppAssets>,
    collection: Arc<Collection>,
}

impl Session {
    /// That of a generation of `app`.
    pub(crate) fn new(
        app: Arc<AppAssets>,
        generation: GenerationId,
        artifact: Sha256,
        version: Version,
    ) -> Self {
        let collection = Arc::new(Collection::new(generation, artifact, version));
        app.begin(&collection);
        Self { app, collection }
    }
}

impl AssetsService for Session {
    fn put(&self, asset: Lent<'_, Asset<'_>>) -> Result<(), String> {
        let (prefix, path) = name::whole(asset.prefix.as_str(), asset.path.as_str())?;
        if name::is_document(&path) {
            return Ok(());
        }
        let bytes = asset.bytes.as_slice();
        let most = self.app.max_size();
        // Before the lock: whoever publishes takes both in the other order.
        let file = self.app.file(&path, bytes);
        let mut inner = self.collection.inner.lock();
        if inner.is_sealed {
            return Err("this version is live: hand it over in the constructor".to_owned());
        }
        let size = inner.size + bytes.len() as u64;
        if size > most {
            return Err(format!(
                "with it the assets of this version are larger than assets_max_size, {}: raise that, or serve large files from \
                 another place",
                crate::human::file_size(most)
            ));
        }
        if let Some(known) = inner.files.get(&path) {
            if known.sha256 == file.sha256 {
                return Ok(());
            }
            return Err("another file was handed over at this path".to_owned());
        }
        if !inner.prefixes.contains(&prefix) {
            inner.prefixes.push(prefix);
        }
        inner.size = size;
        inner.files.insert(path, file);
        Ok(())
    }
}
