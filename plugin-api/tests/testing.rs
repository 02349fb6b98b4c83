//! A host in memory is one: what an app does with its state, its jobs and its leases ends as it
//! would with a real host.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::time::Duration;

use handover_plugin::{
    Error, JobContext, JobError, StateError,
    testing::{MemoryHost, context},
};
use serde::Deserialize;

#[handover_plugin::job]
async fn effect(cx: JobContext, key: String) -> Result<i64, JobError> {
    cx.complete_with(|tx| {
        let key = key.clone();
        async move { Ok(tx.add(key, 1).await?) }
    })
    .await
}

#[handover_plugin::job(max_attempts = 3, backoff = "1h")]
async fn failing(cx: JobContext, times: u32) -> Result<u32, JobError> {
    match cx.attempt() {
        attempt if attempt > times => Ok(attempt),
        2 => panic!("the second attempt panics"),
        attempt => Err(JobError::msg(format_args!("attempt {attempt} failed"))),
    }
}

#[handover_plugin::job(timeout = "1m", max_attempts = 1)]
async fn endless(cx: JobContext, _payload: ()) -> Result<(), JobError> {
    cx.progress(0.5, "half of it");
    cx.cancelled().await;
    Err(JobError::msg("told to end"))
}

#[test]
fn what_a_constructor_hands_over_is_found() {
    let host = MemoryHost::new();
    let cx = host.context();
    cx.assets("/assets", [("js/app.3f9c2a17.js", b"let x;")])
        .unwrap();
    let found = host.asset("/assets/js/app.3f9c2a17.js");
    assert_eq!(found.as_deref(), Some(&b"let x;"[..]));
    assert_eq!(host.asset("/js/app.3f9c2a17.js"), None);
    assert!(cx.assets("assets", [("a.js", "")]).is_err());
}

#[test]
fn a_context_says_who_it_is_and_what_it_was_given() {
    #[derive(Deserialize)]
    struct Settings {
        title: String,
    }
    let config = serde_json::json!({ "title": "a shop" });
    let host = MemoryHost::new().config(&config).env("KEY", "secret");
    let first = host.context();
    assert_eq!(first.app(), "handover-plugin");
    assert_eq!(first.config::<Settings>().unwrap().title, "a shop");
    assert_eq!(
        (first.env("KEY"), first.env("HOME")),
        (Some("secret"), None)
    );
    assert!(!first.is_preflight());
    assert_eq!((first.generation(), host.context().generation()), (1, 2));
    assert!(MemoryHost::new().preflight().context().is_preflight());
}

#[tokio::test]
async fn state_is_seen_by_all_generations_and_keeps_its_rules() {
    let host = MemoryHost::new();
    let (old, new) = (host.context().state(), host.context().state());
    old.put("a", "one").await.unwrap();
    assert_eq!(new.get::<String>("a").await.unwrap().unwrap(), "one");
    assert_eq!(new.add("n", 2).await.unwrap(), 2);
    assert_eq!(old.add("n", -5).await.unwrap(), -3);
    assert_eq!(old.add("a", 1).await, Err(StateError::NoCounter));
    assert_eq!(old.get::<u32>("other").await.unwrap(), None);
    let apart = old.namespace("apart");
    apart.put("a", &7).await.unwrap();
    let keys = |all: Vec<(Vec<u8>, serde_json::Value)>| {
        let keys = all.into_iter().map(|(key, _)| String::from_utf8(key));
        keys.collect::<Result<Vec<_>, _>>().unwrap().join(" ")
    };
    for key in ["b/1", "b/2", "b/3", "c"] {
        old.put(key, &0).await.unwrap();
    }
    let found = old.scan("b/").take(2).await.unwrap();
    assert_eq!(keys(found), "b/1 b/2");
    let found = old.scan("b/").after("b/1").take(9).await.unwrap();
    assert_eq!(keys(found), "b/2 b/3");
    let found = old.scan_range("a", "c").reverse().take(9).await.unwrap();
    assert_eq!(keys(found), "b/3 b/2 b/1 a");
    assert!(matches!(
        old.namespace("Not One").put("a", &1).await,
        Err(StateError::Invalid(_))
    ));
    assert!(matches!(
        old.put_bytes("big", &vec![0; (16 << 20) + 1]).await,
        Err(StateError::TooLarge(_))
    ));
    assert_eq!(context().state().get::<String>("a").await.unwrap(), None);
}

#[tokio::test]
async fn transactions_count_each_of_many_once_and_watches_hear_of_all() {
    let state = context().state();
    let mut watch = state.watch("count");
    let mut adding = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let state = state.clone();
        adding.spawn(async move {
            let add = |tx: handover_plugin::Transaction| async move {
                let before = tx.get::<u64>("count").await?.unwrap_or(0);
                tokio::task::yield_now().await;
                tx.put("count", &(before + 1))
            };
            state.transaction(add).await
        });
    }
    while let Some(added) = adding.join_next().await {
        added.unwrap().unwrap();
    }
    assert_eq!(state.get::<u64>("count").await.unwrap(), Some(8));
    let mut heard = 0;
    while heard < 8 {
        let changes = watch.next().await.unwrap();
        assert!(!changes.missed);
        heard += changes.changes.len();
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_a_time_to_live_is_gone_after_it() {
    let state = context().state();
    state
        .put_ttl("a", &1, Duration::from_secs(60))
        .await
        .unwrap();
    tokio::time::advance(Duration::from_secs(59)).await;
    assert_eq!(state.get::<u32>("a").await.unwrap(), Some(1));
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(state.get::<u32>("a").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn jobs_run_once_live_are_tried_again_and_leave_their_effect() {
    let host = MemoryHost::new();
    let cx = host.context();
    let id = cx.jobs().enqueue("effect", "a").key("only").await.unwrap();
    let same = cx.jobs().enqueue("effect", "a").key("only").await.unwrap();
    assert_eq!(id, same);
    tokio::task::yield_now().await;
    let waiting = cx.jobs().find(&id).await.unwrap().unwrap();
    assert_eq!(waiting.state, "waiting", "nothing is live");
    host.go_live(&cx);
    let done = host.finished(&id).await.unwrap();
    assert_eq!((done.state.as_str(), done.attempt), ("done", 1));
    assert_eq!(done.result::<i64>().unwrap(), Some(1));
    assert_eq!(cx.state().get::<i64>("a").await.unwrap(), Some(1));
    for (times, state, attempt) in [(2, "done", 3), (9, "dead", 3)] {
        let id = cx.jobs().enqueue("failing", &times).await.unwrap();
        let ended = host.finished(&id).await.unwrap();
        assert_eq!((ended.state.as_str(), ended.attempt), (state, attempt));
    }
    let enqueue = |tx: handover_plugin::Transaction| async move {
        tx.put("order", &1)?;
        tx.enqueue("effect", "b")
            .delay(Duration::from_secs(3600))
            .await
    };
    let id = cx.state().transaction(enqueue).await.unwrap();
    assert_eq!(host.finished(&id).await.unwrap().state, "done");
    assert_eq!(cx.state().get::<i64>("b").await.unwrap(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn jobs_are_cancelled_and_time_out() {
    let host = MemoryHost::new();
    let cx = host.context();
    host.go_live(&cx);
    let id = cx.jobs().enqueue("endless", &()).await.unwrap();
    let late = host.finished(&id).await.unwrap();
    assert_eq!(late.state, "dead");
    assert_eq!(
        late.error.as_deref(),
        Some("it did not end within its timeout")
    );
    let id = cx.jobs().enqueue("endless", &()).await.unwrap();
    while cx
        .jobs()
        .find(&id)
        .await
        .unwrap()
        .unwrap()
        .progress
        .is_none()
    {
        tokio::task::yield_now().await;
    }
    assert!(cx.jobs().cancel(&id).await.unwrap());
    assert_eq!(host.finished(&id).await.unwrap().state, "cancelled");
    assert!(!cx.jobs().cancel(&id).await.unwrap(), "it has ended");
}

#[tokio::test]
async fn a_newer_generation_takes_over_workers_and_leases() {
    let host = MemoryHost::new();
    let (old, new) = (host.context(), host.context());
    let (stopped, stops) = tokio::sync::oneshot::channel();
    old.worker("sweeper", async move |stop| {
        stop.requested().await;
        let _ = stopped.send(());
    });
    host.go_live(&old);
    let mut lease = old.lease("poller").await.unwrap();
    let waiting = tokio::spawn(async move { new.lease("poller").await.unwrap().fence() });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    host.drain(&old);
    stops.await.unwrap();
    assert!(old.is_draining());
    lease.asked_back().await;
    let fence = lease.fence();
    drop(lease);
    assert!(waiting.await.unwrap() > fence);
}

#[tokio::test]
async fn settings_are_checked_seen_at_once_and_the_same_for_later_generations() {
    let host = MemoryHost::new().setting("rate", 5);
    let cx = host.context();
    let settings = cx.settings();
    assert_eq!(settings.get::<u32>("rate").unwrap(), Some(5));
    assert_eq!(settings.get::<String>("theme").unwrap(), None);
    let wrong = settings.get::<String>("rate").unwrap_err().to_string();
    assert!(wrong.contains("the setting `rate` does not fit"), "{wrong}");
    settings
        .validate(|setting| match setting.key() {
            "rate" => setting.value::<u32>().map(drop),
            key => Err(Error::msg(format_args!("there is no setting `{key}`"))),
        })
        .unwrap();
    let mut changes = settings.subscribe();
    host.set(&cx, "rate", 7).unwrap();
    changes.changed().await;
    assert_eq!(settings.get::<u32>("rate").unwrap(), Some(7));
    let refused = host.set(&cx, "theme", "dark").unwrap_err().to_string();
    assert_eq!(refused, "there is no setting `theme`");
    host.set(&cx, "rate", "many").unwrap_err();
    assert_eq!(settings.keys(), ["rate"]);

    let next = host.context().settings();
    assert_eq!(next.get::<u32>("rate").unwrap(), Some(7));
    // A version that cannot run with what is set says so.
    let never = next.validate(|_| Err::<(), _>(Error::msg("not with me")));
    assert_eq!(never.unwrap_err().to_string(), "not with me");
}

#[tokio::test]
async fn a_message_is_answered_by_what_the_constructor_declared() {
    let host = MemoryHost::new();
    let cx = host.context();
    let silent = host.send::<String>(&cx, "flush").await.unwrap_err();
    assert!(silent.to_string().contains("takes no messages"));
    cx.on_message(async |message| match message.text() {
        "flush" => Ok(3),
        other => Err(Error::msg(format_args!("there is no command `{other}`"))),
    });
    assert_eq!(host.send::<u32>(&cx, "flush").await.unwrap(), 3);
    let refused = host.send::<u32>(&cx, "dance").await.unwrap_err();
    assert_eq!(refused.to_string(), "there is no command `dance`");
}
