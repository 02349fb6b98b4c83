//! What browsers are shown of a build in `dev`: how it goes while nothing serves, and when there is
//! something new to load.

use std::{process, sync::Arc, time::SystemTime};

use tokio::sync::watch;

/// What browsers are shown. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Preview(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Whether pages of the app load themselves anew.
    reloads: bool,
    shown: watch::Sender<Shown>,
}

/// What is to be seen now.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    /// Differs whenever a page is to be loaded anew, from one run of the host to the next too.
    pub(crate) token: String,
    /// What answers.
    pub(crate) page: Page,
}

/// What answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    /// Nothing yet: it is built.
    Building,
    /// Nothing: this is why.
    Failed(String),
    /// The app.
    App,
    /// Nothing any more.
    Ended,
}

impl Preview {
    /// That of an app that is being built. `reloads`: whether its pages load themselves anew.
    pub(crate) fn new(reloads: bool) -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let run = format!(
            "{}.{}",
            since.map_or(0, |since| since.as_millis()),
            process::id()
        );
        let shown = watch::Sender::new(Shown {
            token: format!("{run}.0"),
            page: Page::Building,
        });
        Self(Arc::new(Inner { reloads, shown }))
    }

    /// Whether pages of the app load themselves anew.
    pub(crate) fn reloads(&self) -> bool {
        self.0.reloads
    }

    /// What is to be seen now.
    pub(crate) fn now(&self) -> Shown {
        self.0.shown.borrow().clone()
    }

    /// Hears of what is to be seen.
    pub(crate) fn follow(&self) -> watch::Receiver<Shown> {
        self.0.shown.subscribe()
    }

    /// A build has begun, after which there may be something that answers.
    pub(crate) fn building(&self) {
        self.unless_app(Page::Building);
    }

    /// There is nothing that answers: `why`.
    pub(crate) fn failed(&self, why: &str) {
        self.unless_app(Page::Failed(why.to_owned()));
    }

    /// New code of the app answers.
    pub(crate) fn app(&self) {
        self.show(Page::App);
    }

    /// The host ends.
    pub(crate) fn end(&self) {
        self.show(Page::Ended);
    }

    fn unless_app(&self, page: Page) {
        let is_shown = {
            let shown = self.0.shown.borrow();
            shown.page == Page::App || shown.page == page
        };
        if !is_shown {
            self.show(page);
        }
    }

    fn show(&self, page: Page) {
        self.0.shown.send_modify(|shown| {
            let (run, number) = shown.token.rsplit_once('.').unwrap_or_default();
            let next = number.parse::<u64>().unwrap_or_default() + 1;
            *shown = Shown {
                token: format!("{run}.{next}"),
                page,
            };
        });
    }
}

impl PartialEq for Preview {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_loaded_anew_for_new_code_and_for_no_failed_build_beside_it() {
        let preview = Preview::new(true);
        let begun = preview.now().token;
        preview.building();
        assert_eq!(preview.now().token, begun);
        preview.failed("why");
        let failed = preview.now();
        assert_eq!(failed.page, Page::Failed("why".to_owned()));
        assert_ne!(failed.token, begun);
        preview.app();
        let live = preview.now();
        preview.building();
        preview.failed("why");
        assert_eq!(
            (preview.now().token, preview.now().page),
            (live.token.clone(), Page::App)
        );
        preview.app();
        assert_ne!(preview.now().token, live.token);
    }
}
