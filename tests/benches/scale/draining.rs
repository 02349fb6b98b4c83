//! Many generations of one app that drain at once, each held by a client that stays.

use std::{
    fs,
    time::{Duration, Instant},
};

use handover_tests::{
    bench::{
        builds::Builds,
        contender::HandoverHost,
        crowd::Crowd,
        figures::{Spread, thousands},
        generate::{Ask, Load},
        operation::Control,
        report,
        server::{Server, free_address},
    },
    elf,
};
use serde_json::{Value, json};

use super::{Each, Section};

const WORKERS: usize = 2;

pub(super) fn run(builds: &Builds, quick: bool) -> Section {
    let number = if quick { 10 } else { 50 };
    let mut bytes = fs::read(&builds.hello[0]).expect("it was built");
    let mut host = HandoverHost::new(builds, WORKERS).with(
        "[app.hello]\nmax_old_generations = 1000\ndrain_deadline = \"1h\"\nkeep_artifacts = 2\n",
        vec![("hello.so".to_owned(), bytes.clone())],
    );
    let server = host.start(free_address(), None);
    let control = Control::of(&server);
    let mut crowd = Crowd::of(server.address);
    let quiet = rate(&server);
    crowd.stream(1);
    let before = server.footprint();

    let (mut deploys, mut took, mut lost) = (Vec::new(), Vec::new(), 0);
    let load = Load::kept(Ask::get("/"), 4).start(server.address);
    for n in 1..=number {
        let version = format!("1.0.{n}");
        elf::set_version(&mut bytes, &version);
        let began = Instant::now();
        deploys.push(control.deploy_beside(bytes.clone()));
        control.until(|status| status["apps"][0]["active"]["version"] == version.as_str());
        took.push(began.elapsed().as_secs_f64() * 1e3);
        crowd.stream(1);
    }
    lost += load.stop().expect_all_answered().lost();
    let draining = |status: &Value| {
        let generations = status["apps"][0]["generations"].as_array();
        generations.map_or(0, |all| {
            all.iter().filter(|one| one["state"] == "draining").count()
        })
    };
    assert_eq!(
        draining(&control.status()),
        number,
        "each is held by its stream"
    );
    let each = Each::of(before, server.footprint(), number);
    let busy = rate(&server);
    let streams = crowd.listen();

    let began = Instant::now();
    crowd.leave_streams();
    control.until(|status| {
        status["apps"][0]["generations"]
            .as_array()
            .is_some_and(|all| all.len() == 1)
    });
    let ended = began.elapsed();
    for deploy in deploys {
        deploy
            .join()
            .expect("it does not panic")
            .expect("the swap ends well");
    }
    let tenth = took.len() / 10 + 1;
    let (first, last) = (
        Spread::of(took[..tenth].iter().copied()),
        Spread::of(took[took.len() - tenth..].iter().copied()),
    );
    let head: Vec<_> = ["a draining generation more"]
        .into_iter()
        .chain(Each::HEAD)
        .collect();
    let row = ["".to_owned()]
        .into_iter()
        .chain(each.cells())
        .collect::<Vec<_>>();
    let text = format!(
        "**{number} generations of one app that drain at once**, each held by an open stream, with {WORKERS} workers:\n\n{}\n\
         Requests a second with them, to those without: {:.3} ({} to {}). From upload to live: {} ms for the first {tenth} swaps, {} ms for the \
         last {tenth}. {} requests were lost, {} streams cut. All {number} were unmapped {:.0} ms after their streams had been closed.\n",
        report::table(&head, &[row]),
        busy / quiet,
        thousands(busy),
        thousands(quiet),
        first.text(1),
        last.text(1),
        lost,
        streams.lost,
        ended.as_secs_f64() * 1e3,
    );
    Section {
        text,
        json: json!({
            "generations": number,
            "draining_generation": each.json(),
            "requests_per_second_quiet": quiet,
            "requests_per_second_draining": busy,
            "first_swaps_ms": first.json(),
            "last_swaps_ms": last.json(),
            "lost": lost,
            "streams_cut": streams.lost,
            "all_unloaded_after_ms": ended.as_secs_f64() * 1e3,
        }),
    }
}

/// Requests a second, now.
fn rate(server: &Server) -> f64 {
    let load = Load::kept(Ask::get("/"), 32).start(server.address);
    std::thread::sleep(Duration::from_millis(300));
    let (began, answered) = (Instant::now(), load.answered());
    std::thread::sleep(Duration::from_secs(2));
    let rate = (load.answered() - answered) as f64 / began.elapsed().as_secs_f64();
    load.stop().expect_all_answered();
    rate
}
