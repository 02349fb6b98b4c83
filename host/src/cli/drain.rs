//! `drain`: who holds generations that were replaced, and waiting until they have ended.

use std::{io, time::Duration};

use handover_api::{
    AppName, Client, EventKind, GenerationId, GenerationState, HolderStatus, Outcome, Status, query,
};

use super::{
    args::{Drain, Global},
    exit::Failure,
    output::{self, Cell, Row},
    status::check_known,
};
use crate::{human, shown};

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How often it is told what still holds.
const TOLD_EVERY: u32 = 25;

/// `handover drain`
pub(super) async fn drain(global: &Global, args: Drain) -> Result<(), Failure> {
    let client = global.client();
    let status = client.status().await?;
    if let Some(app) = &args.app {
        check_known(&status, app)?;
    }
    let query = query::Holders {
        app: args.app.clone(),
        generation: args.generation,
        limit: None,
    };
    let list = client.holders(&query).await?;
    if global.json && !args.wait {
        output::line(&serde_json::to_string(&list).unwrap_or_default());
        return Ok(());
    }
    if !global.json {
        let colour = output::colour(&io::stdout(), global);
        output::line(&text(&list.holders, colour, output::width()));
    }
    if !args.wait {
        return Ok(());
    }
    wait(global, &client, &args, &status, query).await
}

/// Waits until the generations that drain now have ended.
async fn wait(
    global: &Global,
    client: &Client,
    args: &Drain,
    status: &Status,
    query: query::Holders,
) -> Result<(), Failure> {
    let all = |status: &Status| -> Vec<(AppName, GenerationId)> {
        let apps = status.apps.iter();
        let chosen = apps.filter(|app| args.app.as_ref().is_none_or(|name| app.name == *name));
        chosen
            .flat_map(|app| {
                let old = app.generations.iter().filter(|one| match args.generation {
                    Some(number) => {
                        one.generation.0 == number && one.state != GenerationState::Retained
                    }
                    None => one.state == GenerationState::Draining,
                });
                old.map(|one| (app.name.clone(), one.generation))
            })
            .collect()
    };
    let waited_for = all(status);
    let mut looks = 0_u32;
    let mut left = waited_for.clone();
    while !left.is_empty() {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = tokio::signal::ctrl_c() => {
                return Err(Failure::with_code(super::exit::INTERRUPTED, "interrupted: the drain goes on"));
            }
        }
        let now = all(&client.status().await?);
        left.retain(|one| now.contains(one));
        looks += 1;
        if looks.is_multiple_of(TOLD_EVERY) && !left.is_empty() && !global.json {
            let holders = client.holders(&query).await?.holders.len();
            output::line(&format!(
                "{} left",
                human::pluralize(holders as u64, "holder")
            ));
        }
    }
    let mut events = client.events(false).await?;
    let mut cut = Vec::new();
    while let Some(event) = events.next().await? {
        let event = event.value;
        let is_cut = matches!(
            event.kind,
            EventKind::DeadlinePassed | EventKind::StreamsEnded
        );
        if let (Some(app), Some(id)) = (event.app, event.generation)
            && is_cut
            && waited_for.contains(&(app, id))
        {
            cut.push(event.message);
        }
    }
    if cut.is_empty() {
        if !global.json {
            output::line("drained: nothing that was replaced has anything left");
        }
        return Ok(());
    }
    Err(Failure::with_code(
        Outcome::DeadlinePassed.exit_code(),
        cut.join("; "),
    ))
}

fn text(holders: &[HolderStatus], colour: bool, width: Option<usize>) -> String {
    if holders.is_empty() {
        return "Nothing that was replaced has anything left.".to_owned();
    }
    let rows: Vec<_> = holders
        .iter()
        .map(|holder| {
            let who = match (&holder.client, holder.tenant.as_str()) {
                (Some(client), _) => client.clone(),
                (None, tenant) => shown::harmless(tenant),
            };
            Row::Cells(vec![
                Cell::from(holder.app.as_str()),
                Cell::from(holder.generation.to_string()),
                Cell::from(holder.kind.as_str()),
                Cell::from(shown::harmless(&holder.name)),
                Cell::from(who),
                Cell::from(human::age(Duration::from_millis(holder.age_ms))),
                Cell::from(holder.id.clone().unwrap_or_default()),
            ])
        })
        .collect();
    let headings = ["APP", "GEN>", "KIND", "WHAT", "WHOSE", "AGE>", "ID"];
    output::table(&headings, &rows, colour, width)
}
