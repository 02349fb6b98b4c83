//! `status`: the apps, their generations, and what is in flight.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use super::{
    args::{self, Global},
    exit::{Failure, USAGE},
    output::{self, Cell, Paint, Row, paint},
};
use crate::{
    control::{
        Client, ClientError,
        api::{AppStatus, GenerationStatus, HostStatus, Status},
    },
    names::AppName,
};

/// How often `-w` looks.
const REDRAW: Duration = Duration::from_millis(500);

/// `handover status`
pub(super) async fn status(global: &Global, args: args::Status) -> Result<(), Failure> {
    let client = Client::new(&global.control());
    if args.watch {
        return watch(global, &client, args.app.as_ref()).await;
    }
    let status = only(client.status().await?, args.app.as_ref())?;
    output::line(&if global.json {
        json(&status)
    } else {
        text(&status, output::colour(&io::stdout(), global))
    });
    Ok(())
}

fn json(status: &Status) -> String {
    // Our own type of strings and numbers: this cannot fail.
    serde_json::to_string(status).unwrap_or_default()
}

/// The status again and again, in the same place, also over restarts of the host. Ends with Ctrl-C.
async fn watch(global: &Global, client: &Client, app: Option<&AppName>) -> Result<(), Failure> {
    if !io::stdout().is_terminal() {
        return Err(Failure::with_code(
            USAGE,
            "-w redraws a terminal, and this output is none: use `handover events -f`, or call status without -w",
        ));
    }
    let colour = output::colour(&io::stdout(), global);
    // The first answer must come, so that a wrong socket or name is told at once.
    let mut shown = text(&only(client.status().await?, app)?, colour);
    loop {
        // Line by line over the old screen, clearing what is left of it: no flicker.
        output::line(&format!(
            "\x1b[H{}\x1b[J",
            shown.replace('\n', "\x1b[K\n") + "\x1b[K"
        ));
        tokio::select! {
            () = tokio::time::sleep(REDRAW) => {}
            // The way to end it, so not a failure.
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
        shown = match client.status().await {
            Ok(status) => text(&only(status, app)?, colour),
            Err(error @ ClientError::Unreachable { .. }) => {
                paint(colour, Paint::Yellow, &error.to_string())
            }
            Err(error) => return Err(error.into()),
        };
    }
}

/// The status of one app, where one was named.
fn only(mut status: Status, app: Option<&AppName>) -> Result<Status, Failure> {
    if let Some(app) = app {
        check_known(&status, app)?;
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

/// The status for people.
fn text(status: &Status, colour: bool) -> String {
    let host = host(&status.host, colour);
    if status.apps.is_empty() {
        return format!(
            "{host}\n\nNothing has been deployed: put a plugin file into the drop folder, or `handover deploy FILE.so`."
        );
    }
    let mut rows = Vec::new();
    for app in &status.apps {
        app_rows(app, &mut rows);
    }
    let table = output::table(
        &[
            "APP",
            "STATE",
            "VERSION",
            "GEN>",
            "IN FLIGHT>",
            "JOBS>",
            "REQUESTS>",
            "PANICS>",
            "AGE>",
        ],
        &rows,
        colour,
    );
    format!("{host}\n\n{table}")
}

fn host(host: &HostStatus, colour: bool) -> String {
    let listen: Vec<_> = host
        .listen
        .iter()
        .map(|address| format!("http://{address}"))
        .collect();
    format!(
        "{} pid {}, up {}, {}, {}",
        paint(colour, Paint::Bold, &format!("handover {}", host.version)),
        host.pid,
        output::age(Duration::from_millis(host.uptime_ms)),
        output::size(host.rss_bytes),
        listen.join(" ")
    )
}

fn app_rows(app: &AppStatus, rows: &mut Vec<Row>) {
    let active = app.active.as_ref().map(|active| active.generation);
    let live = app
        .generations
        .iter()
        .find(|generation| Some(generation.generation) == active);
    let paint = match app.state.as_str() {
        "serving" => Paint::Green,
        "deploying" => Paint::Yellow,
        _ => Paint::Dim,
    };
    let mut cells = vec![
        Cell::painted(app.name.as_str(), Paint::Bold),
        Cell::painted(&app.state, paint),
    ];
    cells.extend(live.map(numbers).unwrap_or_default());
    rows.push(Row::Cells(cells));
    if !app.routes.is_empty() {
        rows.push(Row::Note(Cell::painted(
            format!("at {}", app.routes.join(", ")),
            Paint::Dim,
        )));
    }
    if let Some(staged) = &app.staged {
        rows.push(Row::Note(
            format!(
                "staged {} ({}): `handover reload {}` activates it",
                staged.version,
                output::short(&staged.artifact),
                app.name
            )
            .into(),
        ));
    }
    for generation in app
        .generations
        .iter()
        .rev()
        .filter(|generation| Some(generation.generation) != active)
    {
        let paint = match generation.state.as_str() {
            "retained" | "rejected" | "failed" => Paint::Red,
            _ => Paint::Yellow,
        };
        let mut cells = vec![Cell::from(""), Cell::painted(&generation.state, paint)];
        cells.extend(numbers(generation));
        rows.push(Row::Cells(cells));
        if let Some(reason) = &generation.retained_because {
            rows.push(Row::Note(Cell::painted(
                format!("kept mapped: {reason}"),
                Paint::Dim,
            )));
        }
    }
}

fn numbers(generation: &GenerationStatus) -> Vec<Cell> {
    let panics = generation.panics.to_string();
    vec![
        generation.version.to_string().into(),
        generation.generation.to_string().into(),
        generation.in_flight.to_string().into(),
        generation.jobs.to_string().into(),
        generation.requests.to_string().into(),
        if generation.panics > 0 {
            Cell::painted(panics, Paint::Red)
        } else {
            panics.into()
        },
        output::age(Duration::from_millis(generation.age_ms)).into(),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn example() -> Status {
        serde_json::from_str(
            r#"{"apps":[
              {"name":"shop","state":"serving","routes":["/","api.example.org/v1"],
               "active":{"generation":7,"version":"1.1.0","artifact":"a1b2"},
               "staged":{"version":"1.2.0","artifact":"0123456789abcdef"},
               "generations":[
                {"generation":5,"version":"0.9.0","artifact":"c","state":"retained","in_flight":0,"jobs":0,"requests":12,"panics":0,
                 "age_ms":90000000,"retained_because":"thread `worker` still runs"},
                {"generation":6,"version":"1.0.0","artifact":"b","state":"draining","in_flight":2,"jobs":1,"requests":900,"panics":3,
                 "age_ms":3720000,"retained_because":null},
                {"generation":7,"version":"1.1.0","artifact":"a1b2","state":"active","in_flight":3,"jobs":0,"requests":12034,"panics":0,
                 "age_ms":123000,"retained_because":null}]},
              {"name":"example-plugin","state":"empty","routes":[],"active":null,"staged":null,"generations":[]}],
             "host":{"version":"0.1.0","pid":4711,"uptime_ms":7260000,"rss_bytes":34100000,"listen":["127.0.0.1:8080"],"abi":"1.1"}}"#,
        )
        .unwrap()
    }

    #[test]
    fn people_see_what_is_live_what_leaves_and_what_stays_and_why() {
        let expected = "\
handover 0.1.0 pid 4711, up 2h 1m, 34.1 MB, http://127.0.0.1:8080

APP             STATE     VERSION  GEN  IN FLIGHT  JOBS  REQUESTS  PANICS    AGE
shop            serving   1.1.0      7          3     0     12034       0  2m 3s
  at /, api.example.org/v1
  staged 1.2.0 (0123456789ab): `handover reload shop` activates it
                draining  1.0.0      6          2     1       900       3  1h 2m
                retained  0.9.0      5          0     0        12       0  1d 1h
  kept mapped: thread `worker` still runs
example-plugin  empty";
        assert_eq!(text(&example(), false), expected);
        assert!(expected.lines().all(|line| line.chars().count() <= 80));
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
