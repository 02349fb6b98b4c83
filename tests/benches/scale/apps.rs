//! A hundred apps in one host: what each costs while nobody asks it, and how long the host takes to
//! start.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use handover_tests::{
    bench::{
        builds::Builds,
        contender::HandoverHost,
        figures::Spread,
        operation::Control,
        report,
        server::{Footprint, Server, free_address},
    },
    elf,
};
use serde_json::json;

use super::{Each, Section};

const WORKERS: usize = 2;

pub(super) fn run(builds: &Builds, quick: bool) -> Section {
    let (number, starts) = if quick { (20, 2) } else { (100, 7) };
    let hello = fs::read(&builds.hello[0]).expect("it was built");
    // Each of them an artifact of its own, so that none is shared.
    let plugins = |number: usize| -> Vec<_> {
        (0..number)
            .map(|n| {
                let mut bytes = hello.clone();
                elf::set_version(&mut bytes, &format!("1.0.{n}"));
                (format!("app-{n}/hello.so"), bytes)
            })
            .collect()
    };
    let (one, _) = start(builds, plugins(1));
    let before = settled(&one);
    drop(one);
    let (all, first) = start(builds, plugins(number));
    let after = settled(&all);
    let each = Each::of(before, after, number - 1);

    let mut home = all.end();
    let (mut to_first, mut to_last) = (Vec::new(), Vec::new());
    let mut restored = after;
    for n in 1..=starts {
        // What lies in the drop folder is live: it is looked at, and nothing is done.
        let address = free_address();
        let began = Instant::now();
        let server = HandoverHost::new(builds, WORKERS)
            .with("", Vec::new())
            .again(home)
            .start(address, None);
        to_first.push(milliseconds(began));
        all_answer(address, number);
        to_last.push(milliseconds(began));
        if n == starts {
            restored = settled(&server);
        }
        home = server.end();
    }
    let (to_first, to_last) = (Spread::of(to_first), Spread::of(to_last));
    let head: Vec<_> = ["an idle generation more"]
        .into_iter()
        .chain(Each::HEAD)
        .collect();
    let again = Each::of(before, restored, number - 1);
    let row = |name: &str, each: &Each| -> Vec<String> {
        [name.to_owned()].into_iter().chain(each.cells()).collect()
    };
    let rows = [
        row("deployed one after the other", &each),
        row("restored at a start", &again),
    ];
    let text = format!(
        "**{number} apps in one host**, each an artifact of its own ({:.2} MB), with {WORKERS} workers:\n\n{}\n\
         From exec to the last app's first answer: {:.0} ms the first time, when each is checked in a child process; then, at {starts} \
         restarts, {} ms to the first answer of the host and {} ms until every app has answered.\n",
        hello.len() as f64 / 1e6,
        report::table(&head, &rows),
        first.as_secs_f64() * 1e3,
        to_first.text(0),
        to_last.text(0),
    );
    Section {
        text,
        json: json!({
            "apps": number,
            "artifact_bytes": hello.len(),
            "idle_generation": each.json(),
            "idle_generation_restored": again.json(),
            "first_start_ms": first.as_secs_f64() * 1e3,
            "restart_to_first_answer_ms": to_first.json(),
            "restart_to_all_apps_ms": to_last.json(),
        }),
    }
}

/// A host with these apps, and the time until all of them had answered.
fn start(builds: &Builds, plugins: Vec<(String, Vec<u8>)>) -> (Server, Duration) {
    let (address, number) = (free_address(), plugins.len());
    let mut host =
        HandoverHost::new(builds, WORKERS).with("[app.app-0]\nroutes = [\"/\"]\n", plugins);
    let began = Instant::now();
    let server = host.start(address, None);
    all_answer(address, number);
    (server, began.elapsed())
}

/// Waits until each of the apps has answered.
fn all_answer(address: SocketAddr, number: usize) {
    let deadline = Instant::now() + Duration::from_secs(120);
    for n in 0..number {
        let path = if n == 0 {
            "/".to_owned()
        } else {
            format!("/app-{n}")
        };
        while !answers(address, &path, n) {
            assert!(Instant::now() < deadline, "app-{n} never answered");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Whether app `n` answers at `path`: with its greeting, since the path that it gets is its root.
fn answers(address: SocketAddr, path: &str, n: usize) -> bool {
    let asked = || {
        let mut stream = TcpStream::connect(address)?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer.ends_with(&format!("hello 1.0.{n}")))
    };
    asked().unwrap_or(false)
}

/// What it holds once threads that were only needed to start have ended.
fn settled(server: &Server) -> Footprint {
    let control = Control::of(server);
    control.until(|status| {
        status["apps"]
            .as_array()
            .is_some_and(|apps| apps.iter().all(|app| app["state"] == "serving"))
    });
    // tokio's blocking threads leave after ten seconds without work.
    std::thread::sleep(Duration::from_secs(12));
    server.footprint()
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
