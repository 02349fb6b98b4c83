//! `tenants`, `move`: tenants that stay on a version that was replaced.

use std::{io, time::Duration};

use handover_api::{TenantStatus, query};

use super::{
    args::{Global, Move, OfApp},
    exit::Failure,
    output::{self, Cell, Row},
};
use crate::{human, shown};

/// `handover tenants`
pub(super) async fn tenants(global: &Global, args: OfApp) -> Result<(), Failure> {
    let client = global.client();
    let list = client.tenants(&query::OfApp { app: args.app }).await?;
    output::line(&if global.json {
        // Our own types of strings and numbers: this cannot fail.
        serde_json::to_string(&list).unwrap_or_default()
    } else {
        let colour = output::colour(&io::stdout(), global);
        text(&list.tenants, colour, output::width())
    });
    Ok(())
}

/// `handover move`
pub(super) async fn move_on(global: &Global, args: Move) -> Result<(), Failure> {
    let query = query::Move {
        app: args.app,
        tenant: args.tenant,
        now: args.now,
        by: None,
    };
    let done = global.client().move_tenant(&query).await?;
    output::line(&if global.json {
        serde_json::to_string(&done).unwrap_or_default()
    } else {
        output::done(&done.message, output::colour(&io::stdout(), global))
    });
    Ok(())
}

fn text(tenants: &[TenantStatus], colour: bool, width: Option<usize>) -> String {
    if tenants.is_empty() {
        return "Every tenant is on the live version.".to_owned();
    }
    let rows: Vec<_> = tenants
        .iter()
        .map(|tenant| {
            let first = tenant.holders.first();
            let what = first.map_or_else(String::new, |holder| {
                let more = match tenant.holders.len() {
                    1 => String::new(),
                    many => format!(" and {} more", many - 1),
                };
                format!(
                    "{} {}, {}{more}",
                    holder.kind,
                    shown::harmless(&holder.name),
                    human::age(Duration::from_millis(holder.age_ms))
                )
            });
            Row::Cells(vec![
                Cell::from(tenant.app.as_str()),
                Cell::from(shown::harmless(&tenant.tenant)),
                Cell::from(tenant.generation.to_string()),
                Cell::from(what),
            ])
        })
        .collect();
    output::table(&["APP", "TENANT", "GEN>", "HOLDS"], &rows, colour, width)
}
