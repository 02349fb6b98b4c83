//! Ten thousand connections that wait and a thousand streams that stay, over a swap.

use std::{
    fs,
    time::{Duration, Instant},
};

use handover_tests::bench::{
    builds::Builds,
    contender::{Contender, HandoverHost},
    crowd::{Crowd, Roll},
    figures::thousands,
    generate::{Ask, Load},
    operation::Control,
    report,
    server::{Server, free_address},
};
use serde_json::json;

use super::{Each, Section};

const WORKERS: usize = 2;

pub(super) fn run(builds: &Builds, quick: bool) -> Section {
    let (connections, streams) = if quick { (1000, 100) } else { (10_000, 1000) };
    let mut rows = Vec::new();
    let mut figures = Vec::new();
    for contender in [Contender::Bare, Contender::Twin] {
        let server = contender.start(builds, WORKERS, None);
        let mut crowd = Crowd::of(server.address);
        let each = idle(&server, &mut crowd, connections);
        rows.push(row(contender.name(), &each));
        figures.push(json!({ "contender": contender.name(), "idle_connection": each.json() }));
    }

    let hello = fs::read(&builds.hello[0]).expect("it was built");
    let server = HandoverHost::new(builds, WORKERS)
        .with(
            "[app.hello]\ndrain_deadline = \"1h\"\n",
            vec![("hello.so".to_owned(), hello)],
        )
        .start(free_address(), None);
    let mut crowd = Crowd::of(server.address);
    let each = idle(&server, &mut crowd, connections);
    rows.push(row("handover", &each));
    crowd.stream(streams);

    let load = Load::kept(Ask::get("/"), 8).start(server.address);
    let control = Control::of(&server);
    let second = fs::read(&builds.hello[1]).expect("it was built");
    let began = Instant::now();
    let deploying = control.deploy_beside(second);
    control.until(|status| status["apps"][0]["active"]["version"] == "2.0.0");
    let live = began.elapsed();
    let streaming = crowd.listen();
    let asked = crowd.ask("hello 2.0.0");
    // Once more: what the swap was to cut would be cut by now.
    let later = crowd.listen();
    crowd.leave_streams();
    let left = Instant::now();
    deploying
        .join()
        .expect("it does not panic")
        .expect("the swap ends well");
    let unloaded = left.elapsed();
    let tally = load.stop();
    let well = |roll: Roll| json!({ "well": roll.well, "lost": roll.lost, "ms": roll.took.as_millis() as u64 });
    figures.push(json!({
        "contender": "handover",
        "idle_connection": each.json(),
        "connections": connections,
        "streams": streams,
        "live_after_ms": live.as_secs_f64() * 1e3,
        "streams_after": well(streaming),
        "connections_after": well(asked),
        "streams_at_last": well(later),
        "unloaded_after_ms": unloaded.as_secs_f64() * 1e3,
        "requests_meanwhile": tally.answered,
        "requests_lost": tally.lost(),
    }));
    let head: Vec<_> = ["an idle connection"]
        .into_iter()
        .chain(Each::HEAD)
        .collect();
    let text = format!(
        "**{} idle connections and {} open streams**, over a swap, with {WORKERS} workers:\n\n{}\n\
         The new version was live {:.0} ms after the upload began. {} of {} streams said their next word after it, **{} were cut**; {} of {} \
         connections were answered by the new version on the same connection, **{} were lost**, in {:.0} ms one after the other. Of {} requests \
         meanwhile **{} were lost**. The old generation was unmapped {:.0} ms after its last stream had been closed.\n",
        thousands(connections as f64),
        thousands(streams as f64),
        report::table(&head, &rows),
        live.as_secs_f64() * 1e3,
        thousands(later.well as f64),
        thousands(streams as f64),
        streaming.lost + later.lost,
        thousands(asked.well as f64),
        thousands(connections as f64),
        asked.lost,
        asked.took.as_secs_f64() * 1e3,
        thousands(tally.answered as f64),
        tally.lost(),
        unloaded.as_secs_f64() * 1e3,
    );
    Section {
        text,
        json: json!(figures),
    }
}

/// What each of `number` connections costs that has asked once and waits.
fn idle(server: &Server, crowd: &mut Crowd, number: usize) -> Each {
    // The first some make what all share.
    crowd.connect(100);
    let before = server.footprint();
    crowd.connect(number - 100);
    std::thread::sleep(Duration::from_millis(500));
    Each::of(before, server.footprint(), number - 100)
}

fn row(name: &str, each: &Each) -> Vec<String> {
    [name.to_owned()].into_iter().chain(each.cells()).collect()
}
