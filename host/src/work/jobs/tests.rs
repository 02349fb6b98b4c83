#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use handover_plugin::abi::{state::codes, work::SUPERSEDED};

use super::{finish::SMALL, *};
use crate::{artifact::declared, state, wakers::WakerCount};

fn job(name: &str) -> NewJob {
    serde_json::from_value(serde_json::json!({ "name": name })).unwrap()
}

fn finish(claimed: &serde_json::Value, outcome: &str) -> Finish {
    serde_json::from_value(serde_json::json!({
        "id": claimed["id"], "fence": claimed["fence"], "outcome": outcome,
    }))
    .unwrap()
}

struct App {
    jobs: Jobs,
    store: Arc<Store>,
}

impl App {
    fn new(max_size: u64) -> Self {
        let settings = state::Settings {
            max_size,
            ..state::Settings::default()
        };
        let store = Arc::new(Store::scratch("shop", settings));
        let jobs = Jobs::new(
            "shop".parse().unwrap(),
            Arc::clone(&store),
            Settings::default(),
            Arc::default(),
            Handle::current(),
        );
        Self { jobs, store }
    }

    async fn enqueue(&self, name: &str) -> JobId {
        let ids = self
            .jobs
            .enqueue_now(vec![job(name)], Commit::default(), false);
        ids.await.unwrap()[0]
    }

    fn live(&self, generation: u64) -> Arc<Listener> {
        let handlers = declared::from_section(br#"{"job":"a"}"#).unwrap().handlers;
        let listener = self.jobs.listen(handlers, generation);
        self.jobs.set_live(generation);
        listener
    }
}

/// The next job that `listener` is given.
async fn next(listener: &Listener) -> serde_json::Value {
    let count = WakerCount::default();
    let given = std::future::poll_fn(|cx| listener.poll_next(cx.waker(), &count)).await;
    serde_json::from_str(&given.unwrap().text).unwrap()
}

#[tokio::test]
async fn an_app_that_holds_all_that_it_may_still_runs_its_jobs() {
    let app = App::new(4000);
    app.enqueue("a").await;
    let place = "default".parse::<state::Namespace>().unwrap();
    let mut refused = false;
    for n in 0..200_u32 {
        let mutation = put(place.place(&n.to_be_bytes()).unwrap(), vec![0; 40], None);
        refused |= app.store.commit(false, Commit::of(mutation)).await.is_err();
    }
    assert!(refused, "the store is full");
    let listener = app.live(1);
    let claimed = next(&listener).await;
    // What a handler gives is the app's, and counts.
    let large = Bytes::from(vec![b'1'; SMALL + 1]);
    let refused = app
        .jobs
        .finish_now(finish(&claimed, "done"), large, Commit::default());
    assert_eq!(refused.await.unwrap_err().code, codes::QUOTA);
    let finished = app
        .jobs
        .finish_now(finish(&claimed, "done"), Bytes::new(), Commit::default());
    finished.await.unwrap();
    assert_eq!(app.jobs.counts().totals.done, 1);
}

#[tokio::test]
async fn a_job_is_given_to_what_is_live_and_an_older_attempt_counts_for_nothing() {
    let app = App::new(1 << 20);
    let id = app.enqueue("a").await;
    let old = app.live(1);
    let first = next(&old).await;
    // It is dropped without an end: another attempt begins, on what is live by then.
    let new = app.live(2);
    app.jobs.abandon(id, first["fence"].as_u64().unwrap());
    let second = next(&new).await;
    assert_eq!(
        (&second["id"], &second["attempt"]),
        (&first["id"], &2.into())
    );
    assert!(second["fence"].as_u64() > first["fence"].as_u64());
    let late = app
        .jobs
        .finish_now(finish(&first, "done"), Bytes::new(), Commit::default());
    assert_eq!(late.await.unwrap_err().code, SUPERSEDED);
    let done = app
        .jobs
        .finish_now(finish(&second, "done"), Bytes::new(), Commit::default());
    done.await.unwrap();
    let (info, _) = app.jobs.find(id).unwrap().unwrap();
    assert_eq!(info.state, JobState::Done);
}

#[tokio::test]
async fn what_was_given_and_not_begun_is_the_same_attempt_on_the_next_version() {
    let app = App::new(1 << 20);
    let old = app.live(1);
    app.enqueue("a").await;
    // Given, and nobody takes it.
    while old.inbox.lock().given.is_empty() {
        tokio::task::yield_now().await;
    }
    let new = app.live(2);
    assert_eq!(next(&new).await["attempt"], 1);
}

#[tokio::test]
async fn a_sentence_of_an_error_is_kept_up_to_a_length() {
    let app = App::new(1 << 20);
    let id = app.enqueue("a").await;
    let listener = app.live(1);
    let failed = Finish {
        error: Some("é".repeat(SMALL)),
        ..finish(&next(&listener).await, "dead")
    };
    let written = app.jobs.finish_now(failed, Bytes::new(), Commit::default());
    written.await.unwrap();
    let (info, _) = app.jobs.find(id).unwrap().unwrap();
    assert_eq!(info.error, Some("é".repeat(SMALL / 2)));
}
