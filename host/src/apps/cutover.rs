//! The instant new requests go to the new generation, and where apps answer.

use std::{sync::Arc, time::Instant};

use handover_api::{AppName, GenerationId, Label};
use parking_lot::MutexGuard;

use crate::{
    apps::{
        app::{App, Live, Replaced},
        registry::Registry,
        serving::{Labelled, Serving},
    },
    config::RoutePrefix,
    dispatch::{Down, Route, Targets},
    generation::Generation,
    records::app_record::{Assigned, Record},
};

/// Who is no longer live after a cutover.
#[derive(Debug, Default)]
pub(crate) struct CutOver {
    /// What was live, where it is to drain.
    pub(crate) replaced: Option<Replaced>,
    /// What was kept warm until then.
    pub(crate) previous: Option<Replaced>,
    /// What was live, where it is kept warm now.
    pub(crate) warm: Option<GenerationId>,
    /// What was live, where tenants stay on it.
    pub(crate) staying: Option<Arc<Generation>>,
}

impl Registry {
    /// Makes `live` what answers new requests of `app`. Returns what did before, which stays up
    /// under the label `previous` until `warm_until`, where that is given.
    ///
    /// The one that is replaced still takes requests until it is drained, so those that chose it
    /// before the routes changed are answered.
    pub(crate) fn cut_over(&self, app: &App, live: Live, warm_until: Option<Instant>) -> CutOver {
        let label = Label::of(Label::PREVIOUS);
        let tenants_move = app.settings().tenant.when_idle().is_some();
        let cut_over = app.running(|running| {
            let previous = running.unlabel(&label, |_| true);
            let has_tenants = |live: &Arc<Generation>| live.tenants().in_flight() > 0;
            if tenants_move && running.serving.generation().is_some_and(has_tenants) {
                let before = running.serving.replace(Some(live));
                let staying = before.map(|before| {
                    let generation = Arc::clone(before.active.generation());
                    running.serving.stay(before);
                    generation
                });
                return CutOver {
                    staying,
                    previous,
                    ..CutOver::default()
                };
            }
            let Some(until) = warm_until else {
                let replaced = running.replace(Some(live));
                return CutOver {
                    replaced,
                    previous,
                    ..CutOver::default()
                };
            };
            let warm = running.serving.replace(Some(live)).map(|live| {
                let (label, until) = (label.clone(), Some(until));
                let warm = Labelled { label, live, until };
                let id = warm.id();
                running.serving.add(warm);
                id
            });
            CutOver {
                previous,
                warm,
                ..CutOver::default()
            }
        });
        let publishing = self.publishing().lock();
        if app.settings().routes.is_empty() && app.saved.read(|record| record.assigned.is_none()) {
            let at = self.assign(app);
            // On disk together with HEAD, right after this.
            app.saved.edit(|record| record.assigned = Some(at));
        }
        self.publish_locked(&publishing);
        cut_over
    }

    /// Publishes the routes of all apps as they are now.
    pub(crate) fn publish(&self) {
        self.publish_locked(&self.publishing().lock());
    }

    pub(super) fn publish_locked(&self, _lock: &MutexGuard<'_, ()>) {
        let mut routes = Vec::new();
        for app in self.all() {
            app.running(|running| routes_of(&app, &running.serving, &mut routes));
        }
        self.routes().publish(routes);
    }

    /// Returns what is taken off the paths of the requests of `app`, also where it serves for the
    /// first time; of several routes what is taken off the first.
    pub(crate) fn base_path(&self, app: &App) -> String {
        let settings = app.settings();
        let first = match settings.routes.first() {
            Some(first) => first.clone(),
            None => {
                let known = app.saved.read(|record| record.assigned);
                assigned(&app.name, known.unwrap_or_else(|| self.assign(app)))
            }
        };
        if settings.strip_prefix && !is_bare(&first) {
            first.path
        } else {
            String::new()
        }
    }

    /// Where an app that is about to serve for the first time answers, if the configuration leaves
    /// it to the host: the first such app at `/`, others at `/NAME`.
    fn assign(&self, app: &App) -> Assigned {
        let taken = self.all().iter().any(|other| {
            other.name != app.name
                && if other.settings().routes.is_empty() {
                    other
                        .saved
                        .read(|record| record.assigned == Some(Assigned::Root))
                } else {
                    other.settings().routes.iter().any(is_root)
                }
        });
        if taken {
            Assigned::Name
        } else {
            Assigned::Root
        }
    }
}

/// The prefixes of `app`, and whether each is taken off the path.
pub(crate) fn prefixes(app: &App) -> Vec<(RoutePrefix, bool)> {
    let settings = app.settings();
    let prefixes = if settings.routes.is_empty() {
        let at = app.saved.read(|record| record.assigned);
        at.map(|at| assigned(&app.name, at)).into_iter().collect()
    } else {
        settings.routes.clone()
    };
    let all = prefixes.into_iter();
    all.map(|prefix| {
        let strip = settings.strip_prefix && !is_bare(&prefix);
        (prefix, strip)
    })
    .collect()
}

/// Adds the routes of `app`: where it answers, and there again under the host name of each label.
fn routes_of(app: &App, serving: &Serving, routes: &mut Vec<Route>) {
    let why = |record: &Record| match (&record.stopped, &record.head) {
        (Some(message), _) => Down::Stopped(message.as_str().into()),
        (None, Some(head)) => Down::Version(head.version.clone()),
        (None, None) => Down::Empty,
    };
    let down = match serving.generation() {
        Some(_) => Down::Empty,
        None => app.saved.read(why),
    };
    let (settings, limits) = (app.settings(), app.limits());
    serving.assign_roles();
    let (labels, targets) = (&settings.labels, serving.targets(&settings));
    let ids: Vec<_> = serving
        .members()
        .map(|live| live.active.generation().spec().id)
        .collect();
    let live = serving.generation().map(|generation| generation.spec().id);
    let assets = app.assets.publish(live, &ids);
    for (prefix, strip) in prefixes(app) {
        for labelled in serving.labelled() {
            let Some(host) = labels.host_of(&labelled.label) else {
                break;
            };
            routes.push(Route {
                prefix: RoutePrefix {
                    host: Some(host),
                    path: prefix.path.clone(),
                },
                strip,
                app: app.name.clone(),
                targets: Targets::One(Arc::clone(labelled.live.active.generation())),
                down: Down::Empty,
                limits: limits.clone(),
                assets: {
                    let own = [labelled.id()].into_iter();
                    app.assets
                        .served(&own.chain(ids.iter().copied()).collect::<Vec<_>>())
                },
                durations: Arc::clone(&app.durations),
            });
        }
        routes.push(Route {
            prefix,
            strip,
            app: app.name.clone(),
            targets: targets.clone(),
            down: down.clone(),
            limits: limits.clone(),
            assets: assets.clone(),
            durations: Arc::clone(&app.durations),
        });
    }
}

fn assigned(name: &AppName, at: Assigned) -> RoutePrefix {
    // Not its name as well for the app at the root: that would hide the paths of its own that begin
    // with it.
    let path = match at {
        Assigned::Root => "/".to_owned(),
        Assigned::Name => format!("/{name}"),
    };
    RoutePrefix { host: None, path }
}

/// Whether `prefix` is all of a host.
fn is_bare(prefix: &RoutePrefix) -> bool {
    prefix.path.len() <= 1
}

fn is_root(prefix: &RoutePrefix) -> bool {
    prefix.host.is_none() && prefix.path == "/"
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn the_first_app_has_the_root_and_others_their_name() {
        let name: AppName = "shop".parse().unwrap();
        assert_eq!(assigned(&name, Assigned::Root).path, "/");
        assert_eq!(assigned(&name, Assigned::Name).path, "/shop");
    }
}
