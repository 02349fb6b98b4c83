#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use handover_api::JobState;

use super::*;
use crate::{
    artifact::declared,
    state,
    work::{JobFilter, jobs},
};

fn declared(lines: &str) -> Declared {
    declared::from_section(lines.as_bytes()).unwrap().handlers
}

fn at(text: &str) -> u64 {
    let time: Timestamp = text.parse().unwrap();
    u64::try_from(time.as_millisecond()).unwrap()
}

fn times(line: &str, from: &str, to: &str) -> Vec<String> {
    let handlers = declared(line);
    let plan = Plan::of(handlers.values().next().unwrap())
        .unwrap()
        .unwrap();
    let due = plan.due_between(at(from), at(to));
    let text = |ms| Timestamp::from_millisecond(i64::try_from(ms).unwrap()).unwrap();
    due.into_iter().map(|ms| text(ms).to_string()).collect()
}

#[test]
fn daylight_saving_skips_nothing_and_repeats_nothing_at_a_fixed_time() {
    let daily = r#"{"job":"a","schedule":"30 2 * * *","tz":"Europe/Berlin"}"#;
    // In spring there is no half past two: it is due when that would have been, or at three.
    let spring = times(daily, "2026-03-28T00:00:00Z", "2026-03-31T00:00:00Z");
    assert_eq!(spring.len(), 3, "{spring:?}");
    assert_eq!(spring[0], "2026-03-28T01:30:00Z");
    assert!(spring[1].starts_with("2026-03-29T01:"), "{spring:?}");
    assert_eq!(spring[2], "2026-03-30T00:30:00Z");
    // In autumn it comes twice, and the job is due once.
    let autumn = times(daily, "2026-10-24T12:00:00Z", "2026-10-26T12:00:00Z");
    assert_eq!(autumn.len(), 2, "{autumn:?}");
    assert_eq!(autumn[1], "2026-10-26T01:30:00Z");
    // What is due each hour is due each hour, by the clock on no wall.
    let hourly = r#"{"job":"a","schedule":"0 * * * *","tz":"Europe/Berlin"}"#;
    for day in ["2026-03-29", "2026-10-25"] {
        let due = times(
            hourly,
            &format!("{day}T00:00:00Z"),
            &format!("{day}T06:00:00Z"),
        );
        let hours: Vec<_> = (1..=6)
            .map(|hour| format!("{day}T0{hour}:00:00Z"))
            .collect();
        assert_eq!(due, hours);
    }
}

#[test]
fn intervals_are_multiples_since_1970() {
    let due = times(
        r#"{"job":"a","every_ms":900000}"#,
        "2026-01-01T00:07:00Z",
        "2026-01-01T00:45:00Z",
    );
    assert_eq!(
        due,
        [
            "2026-01-01T00:15:00Z",
            "2026-01-01T00:30:00Z",
            "2026-01-01T00:45:00Z"
        ]
    );
}

#[test]
fn what_is_no_schedule_is_refused_by_name() {
    for (line, why) in [
        (r#"{"job":"a","schedule":"0 3 * *"}"#, "`a`"),
        (r#"{"job":"a","schedule":"61 3 * * *"}"#, "61 3 * * *"),
        (
            r#"{"job":"a","schedule":"0 3 * * *","tz":"Europe/Atlantis"}"#,
            "Europe/Atlantis",
        ),
        (
            r#"{"job":"a","schedule":"0 3 * * *","every_ms":60000}"#,
            "leave one of them out",
        ),
        (r#"{"job":"a","every_ms":10}"#, "more than once a second"),
    ] {
        let refused = check(&declared(line)).unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
    assert!(check(&declared(r#"{"job":"a"}"#)).is_ok());
}

/// Jobs of an app whose store is in memory.
fn schedules(store: &Arc<Store>) -> Schedules {
    let app: AppName = "shop".parse().unwrap();
    let runtime = Handle::current();
    let settings = jobs::Settings {
        keep_done: Duration::from_secs(86_400 * 365),
        ..jobs::Settings::default()
    };
    let jobs = Jobs::new(
        app.clone(),
        Arc::clone(store),
        settings,
        Arc::default(),
        runtime.clone(),
    );
    Schedules::new(app, Arc::clone(store), jobs, runtime)
}

/// The times for which jobs were made.
fn made(schedules: &Schedules) -> BTreeMap<String, Vec<u64>> {
    let filter = JobFilter {
        limit: usize::MAX,
        ..JobFilter::default()
    };
    let mut made: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for job in schedules.0.jobs.list(&filter).unwrap() {
        assert_eq!(job.state, JobState::Waiting);
        made.entry(job.name).or_default().push(job.due_ms);
    }
    made.values_mut().for_each(|due| due.sort_unstable());
    made
}

/// A month of simulated time over the change of the clocks, with swaps, restarts and looks by two
/// hosts at once: each due time has exactly one job.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_time_of_a_month_is_due_exactly_once_over_swaps_and_restarts() {
    for begin in ["2026-03-05T00:00:00Z", "2026-10-10T00:00:00Z"] {
        serve_a_month(at(begin)).await;
    }
}

async fn serve_a_month(begin: u64) {
    let store = Arc::new(Store::scratch("shop", state::Settings::default()));
    let lines = concat!(
        r#"{"job":"nightly","schedule":"30 2 * * *","tz":"Europe/Berlin","missed":"all"}"#,
        "\n",
        r#"{"job":"hourly","schedule":"0 * * * *","tz":"America/New_York","missed":"all"}"#,
        "\n",
        r#"{"job":"often","every_ms":1200000,"missed":"all"}"#,
    );
    let all = declared(lines);
    let end = begin + 31 * 86_400_000;
    let mut one = schedules(&store);
    one.replace_at(&all, false, begin);
    one.look(begin).await;
    let (mut now, mut step) = (begin, 0_u64);
    while now < end {
        // From some minutes up to three quarters of an hour, always otherwise.
        step += 1;
        now = (now + 137_000 + (step * 7919 % 41) * 60_000).min(end);
        if step.is_multiple_of(17) {
            // Another version with the same list.
            one.replace_at(&all, false, now);
        }
        if step.is_multiple_of(29) {
            // The host is started again.
            one = schedules(&store);
            one.replace_at(&all, true, now);
        }
        // A second look at the same time, as two hosts would have in a hand-over.
        let other = schedules(&store);
        other.replace_at(&all, true, now);
        tokio::join!(one.look(now), other.look(now));
        // Whoever lost looks again.
        one.look(now).await;
    }
    let made = made(&one);
    for (name, handler) in &all {
        let plan = Plan::of(handler).unwrap().unwrap();
        let mut due = Vec::new();
        let mut at = begin;
        while let Some(next) = plan.next_after(at).filter(|next| *next <= end) {
            due.push(next);
            at = next;
        }
        assert_eq!(made[name], due, "{name}");
    }
    assert_eq!(made["nightly"].len(), 31);
}

#[tokio::test]
async fn what_was_missed_is_made_as_the_schedule_says() {
    let store = Arc::new(Store::scratch("shop", state::Settings::default()));
    let lines = concat!(
        r#"{"job":"none","every_ms":3600000,"missed":"none"}"#,
        "\n",
        r#"{"job":"one","every_ms":3600000}"#,
        "\n",
        r#"{"job":"all","every_ms":3600000,"missed":"all"}"#,
    );
    let (all, begin) = (declared(lines), at("2026-01-01T00:10:00Z"));
    let before = schedules(&store);
    before.replace_at(&all, false, begin);
    before.look(begin).await;
    assert!(made(&before).is_empty());
    // Down for five hours.
    let later = begin + 5 * 3_600_000;
    let after = schedules(&store);
    after.replace_at(&all, true, later);
    after.look(later).await;
    let made_then = made(&after);
    assert_eq!(made_then.get("none"), None);
    assert_eq!(made_then["one"], [at("2026-01-01T05:00:00Z")]);
    assert_eq!(made_then["all"].len(), 5);
    // From then on each is due as always.
    after.look(later + 3_600_000).await;
    let made_later = made(&after);
    // More than two minutes have passed without a look: that is missed, too.
    assert_eq!(made_later.get("none"), None);
    assert_eq!(made_later["one"].len(), 2);
    assert_eq!(made_later["all"].len(), 6);
}

#[tokio::test]
async fn a_schedule_that_a_rollback_brings_back_begins_anew() {
    let store = Arc::new(Store::scratch("shop", state::Settings::default()));
    let (old, new) = (
        declared(r#"{"job":"a","every_ms":3600000,"missed":"all"}"#),
        declared(r#"{"job":"b","every_ms":3600000,"missed":"all"}"#),
    );
    let begin = at("2026-01-01T00:10:00Z");
    let schedules = schedules(&store);
    schedules.replace_at(&old, false, begin);
    schedules.look(begin).await;
    schedules.replace_at(&new, false, begin + 60_000);
    schedules.look(begin + 60_000).await;
    // While the other version was live, this was not due.
    let later = begin + 10 * 3_600_000;
    schedules.replace_at(&old, false, later);
    schedules.look(later).await;
    assert_eq!(made(&schedules).get("a"), None);
    schedules.look(later + 60_000 * 55).await;
    assert_eq!(made(&schedules)["a"], [at("2026-01-01T11:00:00Z")]);
}
