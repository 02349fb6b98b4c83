//! The instant new requests go to the new generation, and where apps answer.

use std::sync::Arc;

use parking_lot::MutexGuard;

use super::{
    Apps,
    app::{App, Live},
    saved::Assigned,
};
use crate::{config::RoutePrefix, dispatch::Route, generation::Generation, names::AppName};

impl Apps {
    /// `overlap`: makes `live` what answers new requests of `app`, at once, and gives what did before.
    ///
    /// The one that is given back still takes requests until it is drained, so those that chose it before the
    /// routes changed are answered.
    pub(super) fn cut_over(&self, app: &App, live: Live) -> Option<Live> {
        let replaced = app.running(|running| running.live.replace(live));
        let publishing = self.0.publishing.lock();
        if app.settings.routes.is_empty() && app.saved.read(|record| record.assigned.is_none()) {
            let at = self.assign(app);
            // On disk together with HEAD, right after this.
            app.saved.edit(|record| record.assigned = Some(at));
        }
        self.publish_in_turn(&publishing);
        replaced
    }

    /// Publishes the routes of all apps as they are now.
    pub(super) fn publish(&self) {
        self.publish_in_turn(&self.0.publishing.lock());
    }

    fn publish_in_turn(&self, _turn: &MutexGuard<'_, ()>) {
        let mut routes = Vec::new();
        for app in self.all() {
            let active = app.running(|running| {
                running
                    .live
                    .as_ref()
                    .map(|live| Arc::clone(live.active.generation()))
            });
            routes.extend(routes_of(&app, active));
        }
        self.0.routes.publish(routes);
    }

    /// Where an app that is about to serve for the first time answers, if the configuration leaves it to the host: the
    /// first such app at `/` and `/NAME`, others at `/NAME`.
    fn assign(&self, app: &App) -> Assigned {
        let taken = self.all().iter().any(|other| {
            other.name != app.name
                && if other.settings.routes.is_empty() {
                    other
                        .saved
                        .read(|record| record.assigned == Some(Assigned::Root))
                } else {
                    other.settings.routes.iter().any(is_root)
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
pub(super) fn prefixes(app: &App) -> Vec<(RoutePrefix, bool)> {
    if app.settings.routes.is_empty() {
        app.saved
            .read(|record| record.assigned)
            .map_or_else(Vec::new, |at| assigned(&app.name, at))
    } else {
        app.settings
            .routes
            .iter()
            .map(|prefix| (prefix.clone(), false))
            .collect()
    }
}

fn routes_of(app: &App, active: Option<Arc<Generation>>) -> impl Iterator<Item = Route> {
    prefixes(app).into_iter().map(move |(prefix, strip)| Route {
        prefix,
        strip,
        app: app.name.clone(),
        active: active.clone(),
    })
}

fn assigned(name: &AppName, at: Assigned) -> Vec<(RoutePrefix, bool)> {
    let own = (
        RoutePrefix {
            host: None,
            path: format!("/{name}"),
        },
        true,
    );
    match at {
        Assigned::Root => vec![
            (
                RoutePrefix {
                    host: None,
                    path: "/".to_owned(),
                },
                false,
            ),
            own,
        ],
        Assigned::Name => vec![own],
    }
}

fn is_root(prefix: &RoutePrefix) -> bool {
    prefix.host.is_none() && prefix.path == "/"
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn the_first_app_has_the_root_and_every_app_its_name() {
        let name: AppName = "shop".parse().unwrap();
        let paths = |at| -> Vec<(String, bool)> {
            assigned(&name, at)
                .into_iter()
                .map(|(prefix, strip)| (prefix.path, strip))
                .collect()
        };
        assert_eq!(
            paths(Assigned::Root),
            [("/".to_owned(), false), ("/shop".to_owned(), true)]
        );
        assert_eq!(paths(Assigned::Name), [("/shop".to_owned(), true)]);
    }
}
