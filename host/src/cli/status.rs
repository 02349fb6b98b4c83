//! `status`: the apps, their generations, and what is in flight.

use std::{io, time::Duration};

use handover_api::{
    AppName, AppState, AppStatus, AssetsStatus, CanaryCounts, CanaryStatus, CertificateStatus,
    GenerationState, GenerationStatus, HostStatus, LeakStatus, LimitsStatus, Status,
};

use super::{
    args::{self, Global},
    exit::Failure,
    live::{self, Seen},
    output::{self, Cell, Paint, Row, paint},
};
use crate::{human, shown};

/// The exit code of an app of which nothing answers, as the LSB has it for init scripts.
const NOT_RUNNING: u8 = 3;

/// The exit code of an app that there is not.
const UNKNOWN: u8 = 4;

/// `handover status`
pub(super) async fn status(global: &Global, args: args::Status) -> Result<(), Failure> {
    let client = global.client();
    if args.watch {
        return live::watch(global, &client, args.app.as_ref()).await;
    }
    let status = only(client.status().await?, args.app.as_ref())?;
    output::line(&if global.json {
        json(&status)
    } else {
        text(
            &status,
            None,
            output::colour(&io::stdout(), global),
            output::width(),
        )
    });
    match (args.app, status.apps.as_slice()) {
        // As the LSB has it for init scripts.
        (Some(_), [app]) if app.active.is_none() => Err(Failure::silent(NOT_RUNNING)),
        _ => Ok(()),
    }
}

fn json(status: &Status) -> String {
    // Our own type of strings and numbers: this cannot fail.
    serde_json::to_string(status).unwrap_or_default()
}

/// The status of one app, where one was named.
pub(super) fn only(mut status: Status, app: Option<&AppName>) -> Result<Status, Failure> {
    if let Some(app) = app {
        check_known(&status, app).map_err(|failure| failure.coded(UNKNOWN))?;
        status.apps.retain(|found| found.name == *app);
    }
    Ok(status)
}

/// Fails with the names that there are when `app` is not one of them.
pub(super) fn check_known(status: &Status, app: &AppName) -> Result<(), Failure> {
    if status.apps.iter().any(|found| found.name == *app) {
        return Ok(());
    }
    let names: Vec<_> = status.apps.iter().map(|app| app.name.as_str()).collect();
    Err(Failure::new(match names.as_slice() {
        [] => format!("there is no app `{app}`: nothing has been deployed yet"),
        names => format!("there is no app `{app}`: the host has {}", names.join(", ")),
    }))
}

/// The status for people, with what was `seen` of it before.
pub(super) fn text(
    status: &Status,
    seen: Option<&Seen>,
    colour: bool,
    width: Option<usize>,
) -> String {
    let host = host(&status.host, colour);
    let mut text = if status.apps.is_empty() {
        format!(
            "{host}\n\nNothing has been deployed: put a plugin file into the drop folder, or `handover deploy FILE.so`."
        )
    } else {
        let mut rows = Vec::new();
        for app in &status.apps {
            app_rows(app, seen, &mut rows);
        }
        let headings = [
            "APP",
            "STATE",
            "VERSION",
            "GEN>",
            "IN FLIGHT>",
            "JOBS>",
            "REQUESTS>",
            "AGE>",
        ];
        let table = output::table(&headings, &rows, colour, width);
        format!("{host}\n\n{table}")
    };
    if let Some(leaks) = leaks(&status.host) {
        text.push_str("\n\n");
        text.push_str(&leaks.shown(colour, width));
    }
    text
}

fn host(host: &HostStatus, colour: bool) -> String {
    let listen: Vec<_> = host
        .listen
        .iter()
        .map(|address| output::url(address))
        .collect();
    let mut text = format!(
        "{} pid {}, up {}, {}, {}",
        paint(colour, Paint::Bold, &format!("handover {}", host.version)),
        host.pid,
        human::age(Duration::from_millis(host.uptime_ms)),
        human::file_size(host.rss_bytes),
        listen.join(" ")
    );
    if let Some(why) = &host.not_ready {
        let told = format!("\nnot ready for traffic: {why}");
        text.push_str(&paint(colour, Paint::Yellow, &shown::harmless(&told)));
    }
    for certificate in &host.certificates {
        text.push_str(&ordered(certificate, colour));
    }
    text
}

/// The line of a certificate that the host orders.
fn ordered(certificate: &CertificateStatus, colour: bool) -> String {
    let name = certificate.names.first().map_or("", String::as_str);
    let others = match certificate.names.len() {
        0 | 1 => String::new(),
        several => format!(
            " and {}",
            human::pluralize(several as u64 - 1, "other name")
        ),
    };
    let is = match &certificate.not_after {
        Some(end) => format!("valid until {end}"),
        None => "not there yet".to_owned(),
    };
    let next = &certificate.next_try;
    let told = format!("\ncertificate {name}{others}: {is}, ordered again at {next}");
    match &certificate.last_error {
        None => told,
        Some(why) => {
            let told = format!("{told}; the last order failed: {why}");
            paint(colour, Paint::Yellow, &shown::harmless(&told))
        }
    }
}

/// What replaced generations hold, if they hold anything, each beside what is tolerated of it.
fn leaks(host: &HostStatus) -> Option<Sentence> {
    let (is, may) = (&host.leaks, &host.leak_budget);
    if *is == LeakStatus::default() {
        return None;
    }
    let libraries = match is.retained {
        1 => "1 library".to_owned(),
        number => format!("{number} libraries"),
    };
    let over =
        is.retained > may.retained || is.descriptors > may.descriptors || is.bytes > may.bytes;
    let text = format!(
        "Replaced generations hold {libraries} (of {}), {} (of {}) and {}{} of heap (of {}){}",
        may.retained,
        human::pluralize(is.descriptors, "descriptor"),
        may.descriptors,
        if is.estimated > 0 { "about " } else { "" },
        human::memory(is.bytes),
        human::memory(may.bytes),
        if over {
            ": more than the leak budget; `handover events` says whose, a restart gives it back"
        } else {
            ""
        }
    );
    let paint = if over { Paint::Red } else { Paint::Yellow };
    Some(Sentence { text, paint })
}

/// A line of its own that wants to be seen.
struct Sentence {
    text: String,
    paint: Paint,
}

impl Sentence {
    fn shown(&self, colour: bool, width: Option<usize>) -> String {
        paint(
            colour,
            self.paint,
            &output::wrapped(&self.text, width, "  "),
        )
    }
}

/// The app: a row for each generation, the live one first, and below them what there is to say.
fn app_rows(app: &AppStatus, seen: Option<&Seen>, rows: &mut Vec<Row>) {
    let active = app.active.as_ref().map(|active| active.generation);
    let live = app
        .generations
        .iter()
        .find(|generation| Some(generation.generation) == active);
    let paint = match app.state {
        AppState::Serving => Paint::Green,
        AppState::Deploying => Paint::Yellow,
        _ => Paint::Dim,
    };
    let mut cells = vec![
        Cell::painted(app.name.as_str(), Paint::Bold),
        Cell::painted(app.state.as_str(), paint),
    ];
    cells.extend(live.map(numbers).unwrap_or_default());
    rows.push(Row::Cells(cells));
    let old = app.generations.iter().rev();
    for generation in old.filter(|generation| Some(generation.generation) != active) {
        let paint = match generation.state {
            GenerationState::Retained => Paint::Red,
            _ => Paint::Yellow,
        };
        let mut cells = vec![
            Cell::from(""),
            Cell::painted(generation.state.as_str(), paint),
        ];
        cells.extend(numbers(generation));
        rows.push(Row::Cells(cells));
    }
    for (text, paint) in seen.map(|seen| seen.notes(app)).unwrap_or_default() {
        rows.push(Row::Note(Cell::painted(text, paint)));
    }
    notes(app, &mut |text, paint| {
        rows.push(Row::Note(Cell::painted(text, paint)));
    });
}

/// What there is to say of an app.
fn notes(app: &AppStatus, say: &mut dyn FnMut(String, Paint)) {
    if !app.routes.is_empty() {
        say(format!("at {}", app.routes.join(", ")), Paint::Dim);
    }
    if !app.listening.is_empty() {
        let text = format!("listens by itself at {}", app.listening.join(", "));
        say(text, Paint::Dim);
    }
    if let Some(operation) = &app.operation {
        say(format!("{operation} is under way"), Paint::Yellow);
    }
    if !app.queue.is_empty() {
        let queue: Vec<_> = app.queue.iter().map(ToString::to_string).collect();
        say(format!("in the queue: {}", queue.join(", ")), Paint::Yellow);
    }
    if let Some(staged) = &app.staged {
        let text = format!(
            "staged {} ({}): `handover reload {}` activates it",
            staged.version,
            output::short(&staged.artifact),
            app.name
        );
        say(text, Paint::Yellow);
    }
    if let Some(message) = &app.stopped {
        let told = match message.as_str() {
            "" => String::new(),
            message => format!(", and clients are told: {}", shown::harmless(message)),
        };
        let text = format!("stopped until `handover start {}`{told}", app.name);
        say(text, Paint::Yellow);
    }
    if let Some(frozen) = &app.frozen {
        say(shown::harmless(frozen), Paint::Yellow);
    }
    if let Some(paused) = &app.paused {
        let text = format!(
            "paused until `handover resume {}`: {} wait, for {} at the longest",
            app.name,
            human::pluralize(paused.waiting, "request"),
            human::duration(Duration::from_millis(paused.max_wait_ms))
        );
        say(text, Paint::Yellow);
    }
    for lease in app.leases.iter().filter(|lease| lease.asked_back) {
        let whose = lease.generation.map_or(0, |generation| generation);
        let text = format!(
            "generation {whose} has the lease `{}` still, which was asked back: {} wait ({})",
            shown::harmless(&lease.name),
            lease.waiting.len(),
            lease.id
        );
        say(text, Paint::Yellow);
    }
    if let Some(held) = &app.held {
        let text = format!(
            "one version hands over to the next: {} held, for {} at the longest",
            human::pluralize(held.waiting, "request"),
            human::duration(Duration::from_millis(held.max_wait_ms))
        );
        say(text, Paint::Yellow);
    }
    if let Some(canary) = &app.canary {
        self::canary(canary, say);
    }
    if let Some(shadow) = &app.shadow {
        let text = format!(
            "shadow {} (generation {}) gets copies of {}% of the requests: {} of its answers differ, {} are the same",
            shadow.version, shadow.generation, shadow.percent, shadow.differ, shadow.same
        );
        let paint = if shadow.differ > 0 {
            Paint::Yellow
        } else {
            Paint::Dim
        };
        say(text, paint);
    }
    if let Some((text, paint)) = app.limits.as_ref().and_then(limits) {
        say(text, paint);
    }
    if let Some(found) = &app.assets {
        let (text, paint) = assets(found);
        say(text, paint);
    }
    for generation in app.generations.iter().rev() {
        let id = generation.generation;
        if let Some(label) = &generation.label {
            let left = generation.ends_in_ms.map_or_else(String::new, |left| {
                format!(" for {} more", human::age(Duration::from_millis(left)))
            });
            say(
                format!("generation {id} answers to `{label}`{left}"),
                Paint::Dim,
            );
        }
        if let Some(number) = generation.staying_for {
            let text = format!(
                "generation {id} stays for its tenants, who have {number} in flight there: `handover tenants {}`",
                app.name
            );
            say(text, Paint::Yellow);
        }
        if generation.panics > 0 {
            let panics = human::pluralize(generation.panics, "panic");
            say(format!("generation {id}: {panics}"), Paint::Red);
        }
        if generation.stalls > 0 {
            let stalls = human::pluralize(generation.stalls, "stall");
            say(
                format!("generation {id}: {stalls}, requests that held a worker for too long"),
                Paint::Red,
            );
        }
        for text in work(generation).into_iter().chain(holders(generation)) {
            say(format!("generation {id}: {text}"), Paint::Dim);
        }
        if let Some(reason) = &generation.retained_because {
            say(
                format!("generation {id} stays mapped: {reason}"),
                Paint::Red,
            );
        }
    }
}

/// What a trial is at, and what its figures say.
fn canary(canary: &CanaryStatus, say: &mut dyn FnMut(String, Paint)) {
    let left = match canary {
        CanaryStatus { paused: true, .. } => "paused".to_owned(),
        CanaryStatus {
            inconclusive: true, ..
        } => format!(
            "inconclusive: {} of the {} requests that it takes to go on",
            canary.canary.requests, canary.min_requests
        ),
        _ => format!("{} left", human::age(Duration::from_millis(canary.left_ms))),
    };
    say(
        format!(
            "canary {} (generation {}) gets {}% of the requests, step {} of {}, {left}",
            canary.version, canary.generation, canary.percent, canary.step, canary.steps
        ),
        Paint::Yellow,
    );
    let side = |counts: &CanaryCounts| {
        let p99 = counts.p99_us.map_or_else(String::new, |micros| {
            format!(", p99 {}", human::duration(Duration::from_micros(micros)))
        });
        format!(
            "{} failed in {}{p99}",
            counts.failed,
            human::pluralize(counts.requests, "request")
        )
    };
    let against = canary.failing.max(canary.slow);
    say(
        format!(
            "  canary: {}; live: {}; evidence against it {against:.2} of 100",
            side(&canary.canary),
            side(&canary.live)
        ),
        if against >= 10.0 {
            Paint::Red
        } else {
            Paint::Dim
        },
    );
    if let Some(rate) = canary.rate_at_most {
        let text = format!(
            "  none failed yet: at most {:.2}% do (95%)",
            (rate * 100.0).min(100.0)
        );
        say(text, Paint::Dim);
    }
    if canary.one_client && canary.canary.requests >= canary.min_requests {
        let text = "  all requests are of one client, whose failures count once: set `trusted_proxies`, or `client` of [app.NAME.canary]";
        say(text.to_owned(), Paint::Red);
    }
}

/// How many lines of work people are shown of a generation.
const WORK_SHOWN: usize = 10;

/// The work of a generation, a line each: ``job `invoice run` for acme, 4m``. Tasks have no name,
/// and are in the figures.
fn work(generation: &GenerationStatus) -> Vec<String> {
    let named = generation.work.iter().filter(|work| work.kind != "task");
    let mut lines: Vec<_> = named
        .map(|work| {
            let whose = match work.tenant.as_str() {
                "" => String::new(),
                tenant => format!(" for {}", shown::harmless(tenant)),
            };
            format!(
                "{} `{}`{whose}, {}",
                work.kind,
                shown::harmless(&work.name),
                human::age(Duration::from_millis(work.age_ms))
            )
        })
        .collect();
    let more = lines.len().saturating_sub(WORK_SHOWN);
    if more > 0 {
        lines.truncate(WORK_SHOWN);
        lines.push(format!("{more} more: `handover status --json`"));
    }
    lines
}

/// The requests, streams and connections that hold a generation, a line each.
fn holders(generation: &GenerationStatus) -> Vec<String> {
    let shown_ones = generation.holders.iter().take(WORK_SHOWN);
    let mut lines: Vec<_> = shown_ones
        .map(|holder| {
            let who = holder
                .client
                .as_ref()
                .map_or_else(String::new, |client| format!(" of {client}"));
            format!(
                "{} {}{who}, {}: {}",
                holder.kind,
                shown::harmless(&holder.name),
                human::age(Duration::from_millis(holder.age_ms)),
                holder.id.as_deref().unwrap_or_default()
            )
        })
        .collect();
    if generation.holders.len() > WORK_SHOWN {
        lines.push("more: `handover drain`".to_owned());
    }
    lines
}

/// The files that the host serves, and what was asked for in vain.
fn assets(assets: &AssetsStatus) -> (String, Paint) {
    let mut text = format!("assets: {}", human::pluralize(assets.files, "file"));
    if !assets.kept.is_empty() {
        let kept: Vec<_> = assets.kept.iter().map(ToString::to_string).collect();
        text.push_str(&format!(", and those of {}", kept.join(", ")));
    }
    text.push_str(&format!(" ({})", human::file_size(assets.bytes)));
    if assets.skewed == 0 {
        return (text, Paint::Dim);
    }
    let skewed = human::pluralize(assets.skewed, "request");
    text.push_str(&format!(
        "; {skewed} for files of versions that are not kept (404)"
    ));
    (text, Paint::Yellow)
}

/// The limits in force, and what they did.
fn limits(limits: &LimitsStatus) -> Option<(String, Paint)> {
    let mut parts = Vec::new();
    if let Some(most) = limits.max_concurrent {
        parts.push(format!("{} of {most} running", limits.running));
        if limits.queue > 0 {
            parts.push(format!("{} of {} waiting", limits.waiting, limits.queue));
        }
        parts.push(format!("{} refused (503)", limits.refused));
    }
    if limits.queued > 0 {
        parts.push(format!("{} waiting for others of one", limits.queued));
    }
    if limits.too_many > 0 {
        parts.push(format!("{} too many of one (429)", limits.too_many));
    }
    if let Some(timeout) = limits.request_timeout_ms {
        parts.push(format!(
            "{} over {} (504)",
            limits.timed_out,
            humantime::format_duration(Duration::from_millis(timeout))
        ));
    }
    let paint = match limits.refused + limits.too_many + limits.timed_out {
        0 => Paint::Dim,
        _ => Paint::Yellow,
    };
    (!parts.is_empty()).then(|| (format!("limits: {}", parts.join(", ")), paint))
}

fn numbers(generation: &GenerationStatus) -> Vec<Cell> {
    vec![
        generation.version.to_string().into(),
        generation.generation.to_string().into(),
        generation.in_flight.to_string().into(),
        generation.jobs.to_string().into(),
        generation.requests.to_string().into(),
        human::age(Duration::from_millis(generation.age_ms)).into(),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn example() -> Status {
        serde_json::from_str(
            r#"{"apps":[
              {"name":"shop","state":"deploying","routes":["/","api.example.org/v1"],
               "active":{"generation":7,"version":"1.1.0","artifact":"a1b2"},
               "operation":{"id":"op-12","what":"deploy of 1.3.0"},
               "queue":[{"id":"op-13","what":"rollback"},{"id":"op-14","what":"reload"}],
               "staged":{"version":"1.2.0","artifact":"0123456789abcdef"},
               "limits":{"max_concurrent":50,"queue":20,"request_timeout_ms":2000,"running":50,"waiting":3,"refused":12,"timed_out":1},
               "generations":[
                {"generation":5,"version":"0.9.0","artifact":"c","state":"retained","in_flight":0,"jobs":0,"requests":12,"panics":0,
                 "age_ms":90000000,"retained_because":"2 threads that it started still live: tid 4713 `pool`, tid 4714 `pool`"},
                {"generation":6,"version":"1.0.0","artifact":"b","state":"draining","in_flight":2,"jobs":1,"requests":900,"panics":3,
                 "age_ms":3720000,"work":[{"kind":"job","name":"invoice run","tenant":"acme","age_ms":240000},
                 {"kind":"worker","name":"mail","age_ms":3719000},{"kind":"task","name":"task","age_ms":100}],"retained_because":null},
                {"generation":7,"version":"1.1.0","artifact":"a1b2","state":"active","in_flight":3,"jobs":0,"requests":12034,"panics":0,
                 "stalls":1,"age_ms":123000,"retained_because":null}]},
              {"name":"example-plugin","state":"empty","routes":[],"active":null,"staged":null,"generations":[]}],
             "host":{"version":"0.1.0","pid":4711,"uptime_ms":7260000,"rss_bytes":34100000,"listen":["127.0.0.1:8080"],"abi":"1.1",
              "leaks":{"bytes":1300000,"descriptors":1,"retained":1},
              "leak_budget":{"bytes":67108864,"descriptors":64,"retained":8}}}"#,
        )
        .unwrap()
    }

    #[test]
    fn people_see_what_is_live_what_leaves_and_what_is_wrong() {
        let expected = "\
handover 0.1.0 pid 4711, up 2h 1m, 34.1 MB, http://127.0.0.1:8080

APP             STATE      VERSION  GEN  IN FLIGHT  JOBS  REQUESTS    AGE
shop            deploying  1.1.0      7          3     0     12034  2m 3s
                draining   1.0.0      6          2     1       900  1h 2m
                retained   0.9.0      5          0     0        12  1d 1h
  at /, api.example.org/v1
  op-12 (deploy of 1.3.0) is under way
  in the queue: op-13 (rollback), op-14 (reload)
  staged 1.2.0 (0123456789ab): `handover reload shop` activates it
  limits: 50 of 50 running, 3 of 20 waiting, 12 refused (503), 1 over 2s (504)
  generation 7: 1 stall, requests that held a worker for too long
  generation 6: 3 panics
  generation 6: job `invoice run` for acme, 4m 0s
  generation 6: worker `mail`, 1h 1m
  generation 5 stays mapped: 2 threads that it started still live: tid 4713
    `pool`, tid 4714 `pool`
example-plugin  empty

Replaced generations hold 1 library (of 8), 1 descriptor (of 64) and 1.2 MiB of
  heap (of 64 MiB)";
        assert_eq!(text(&example(), None, false, Some(80)), expected);
        assert!(expected.lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn an_overdrawn_budget_is_said() {
        let mut status = example();
        status.host.leaks.retained = 9;
        let text = text(&status, None, true, None);
        let last = text.lines().last().unwrap();
        assert!(last.starts_with("\x1b[31mReplaced generations hold 9 libraries (of 8)"));
        assert!(last.contains("more than the leak budget"), "{last}");
    }

    #[test]
    fn an_unknown_app_is_told_the_known_ones() {
        let error = only(example(), Some(&"nope".parse().unwrap())).unwrap_err();
        assert!(
            format!("{error:?}")
                .contains("there is no app `nope`: the host has shop, example-plugin")
        );
        assert_eq!(
            only(example(), Some(&"shop".parse().unwrap()))
                .unwrap()
                .apps
                .len(),
            1
        );
    }
}
