//! Who holds a generation: requests, streams, connections, the work that it has spawned, and the
//! leases that it has.

use std::{str::FromStr, sync::Arc};

use handover_api::{AppName, GenerationId, HolderStatus};

use crate::{
    apps::{app::App, registry::Registry},
    clock::millis,
    generation::Generation,
    shown,
};

/// The longest name that is shown whole, in bytes.
const NAME: usize = 200;

/// What can hold a generation.
const KINDS: [&str; 6] = ["request", "stream", "connection", "task", "job", "worker"];

/// The identity of a holder: `request:shop:3-17`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HolderId {
    /// One of [`KINDS`].
    kind: String,
    /// The app.
    pub(crate) app: AppName,
    /// The generation.
    pub(crate) generation: GenerationId,
    /// Its number there.
    pub(crate) number: u64,
}

impl FromStr for HolderId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (kind, rest) = text.split_once(':').ok_or(())?;
        let (app, numbers) = rest.split_once(':').ok_or(())?;
        let (generation, number) = numbers.split_once('-').ok_or(())?;
        if !KINDS.contains(&kind) {
            return Err(());
        }
        Ok(Self {
            kind: kind.to_owned(),
            app: app.parse().map_err(drop)?,
            generation: GenerationId(generation.parse().map_err(drop)?),
            number: number.parse().map_err(drop)?,
        })
    }
}

/// Lists who holds the old generations of `app`, or the generation that is named; the oldest first,
/// `most` at the most.
pub(crate) fn holders_of(
    app: &App,
    generation: Option<GenerationId>,
    most: usize,
) -> Vec<HolderStatus> {
    let chosen = match generation {
        None => replaced(app),
        Some(wanted) => {
            let mut all = app.running(|running| running.generations());
            all.retain(|(generation, _)| generation.spec().id == wanted);
            all.into_iter().map(|(generation, _)| generation).collect()
        }
    };
    let mut all: Vec<_> = chosen
        .iter()
        .flat_map(|generation| holders(&app.name, generation, most))
        .collect();
    all.sort_by_key(|holder| std::cmp::Reverse(holder.age_ms));
    all.truncate(most);
    all
}

/// Returns the generations of `app` that are not the live one.
pub(crate) fn replaced(app: &App) -> Vec<Arc<Generation>> {
    let (mut all, live) = app.running(|running| {
        let live = running.serving.generation().map(|live| live.spec().id);
        (running.generations(), live)
    });
    all.retain(|(generation, _)| Some(generation.spec().id) != live);
    all.into_iter().map(|(generation, _)| generation).collect()
}

/// Lists who holds `generation`: of requests, streams and connections `most` at the most, its work,
/// and its leases.
pub(crate) fn holders(app: &AppName, generation: &Generation, most: usize) -> Vec<HolderStatus> {
    let id = generation.spec().id;
    let mut holders = requests(app, generation, most);
    let work = generation.working().into_iter().map(|work| HolderStatus {
        id: Some(format!("{}:{app}:{id}-{}", work.kind.as_str(), work.number)),
        app: app.clone(),
        generation: id,
        kind: work.kind.as_str().to_owned(),
        name: shown::truncate(work.name, NAME),
        client: None,
        tenant: shown::truncate(work.tenant, NAME),
        age_ms: millis(work.since.elapsed()),
    });
    holders.extend(work);
    holders.extend(leases(app, generation));
    holders
}

/// Lists the leases among those. What takes one away is the call for leases.
pub(crate) fn leases(app: &AppName, generation: &Generation) -> impl Iterator<Item = HolderStatus> {
    let id = generation.spec().id;
    let leases = generation.leases().into_iter();
    leases.map(move |lease| HolderStatus {
        id: Some(lease.id),
        app: app.clone(),
        generation: id,
        kind: "lease".to_owned(),
        name: lease.name,
        client: None,
        tenant: String::new(),
        age_ms: lease.held_ms.unwrap_or_default(),
    })
}

/// Lists the requests, streams and connections among those, the oldest first, `most` at the most.
pub(crate) fn requests(app: &AppName, generation: &Generation, most: usize) -> Vec<HolderStatus> {
    let id = generation.spec().id;
    let requests = generation
        .holders(most)
        .into_iter()
        .map(|holder| HolderStatus {
            id: Some(format!(
                "{}:{app}:{id}-{}",
                holder.kind.as_str(),
                holder.number
            )),
            app: app.clone(),
            generation: id,
            kind: holder.kind.as_str().to_owned(),
            name: shown::truncate(holder.what, NAME),
            client: holder.client,
            tenant: shown::truncate(holder.tenant.unwrap_or_default(), NAME),
            age_ms: millis(holder.since.elapsed()),
        });
    requests.collect()
}

/// Ends a holder, as its drain deadline would. Returns what was done; none when there is no such
/// holder any more, or one that does not hear of it. To be called within the host's runtime.
pub(crate) async fn cancel(registry: &Registry, id: &HolderId) -> Option<String> {
    let app = registry.known(&id.app)?;
    let all = app.running(|running| running.generations());
    let generation: Arc<Generation> = all
        .into_iter()
        .map(|(generation, _)| generation)
        .find(|generation| generation.spec().id == id.generation)?;
    let text = format!("{}:{}:{}-{}", id.kind, id.app, id.generation, id.number);
    let holder = holders(&app.name, &generation, usize::MAX)
        .into_iter()
        .find(|holder| holder.id.as_deref() == Some(&text))?;
    let is_told = match id.kind.as_str() {
        "request" | "stream" | "connection" => generation.cancel(id.number).is_some(),
        _ => generation.cancel_work(id.number).await,
    };
    is_told.then(|| {
        format!(
            "the {} {} of generation {} of {} is told to end",
            id.kind, holder.name, id.generation, id.app
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn an_identity_names_app_generation_and_number() {
        let id: HolderId = "stream:shop-eu:3-17".parse().unwrap();
        assert_eq!(
            (
                id.kind.as_str(),
                id.app.as_str(),
                id.generation.0,
                id.number
            ),
            ("stream", "shop-eu", 3, 17)
        );
        for wrong in [
            "",
            "stream",
            "lease:shop:poller",
            "stream:shop:3",
            "stream:Shop:3-1",
            "request:shop:x-1",
            "01hf3k8m2qz7r",
        ] {
            wrong.parse::<HolderId>().unwrap_err();
        }
    }
}
