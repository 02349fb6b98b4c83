//! Tenants that stay on a generation that was replaced, until they have nothing in flight there:
//! how long it stays for them, and who moves them.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use handover_api::{AppName, EventKind, HolderStatus, TenantStatus};

use crate::{
    apps::app::App,
    generation::Generation,
    human,
    report::holders,
    rollout::{Rollout, drain},
};

/// How often it is looked whether the last of them has moved.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Watches `generation`, which stays for its tenants, until they have moved, and has it drained
/// then.
pub(super) fn watch_later(rollout: &Rollout, app: &Arc<App>, generation: Arc<Generation>) {
    let (rollout, app) = (rollout.clone(), Arc::clone(app));
    tokio::spawn(async move { watch(&rollout, &app, &generation).await });
}

async fn watch(rollout: &Rollout, app: &Arc<App>, generation: &Arc<Generation>) {
    let spec = generation.spec();
    let tenants = generation.tenants();
    let message = format!(
        "generation {} ({}) stays for its tenants: {} of theirs in flight",
        spec.id,
        spec.version,
        tenants.in_flight()
    );
    let record = |message| {
        rollout
            .registry
            .record_event(EventKind::Tenants, app, Some(spec.id), message);
    };
    record(message);
    let began = Instant::now();
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let stays = app.running(|running| {
            let mut all = running.serving.staying().iter();
            all.any(|live| live.active.generation().spec().id == spec.id)
        });
        if !stays || rollout.is_closing() {
            // It was stopped, or the host ends, which drains it as well.
            return;
        }
        if tenants.in_flight() == 0 || tenants.is_released() {
            break;
        }
        let deadline = app.settings().tenant.move_deadline;
        if deadline.is_some_and(|deadline| began.elapsed() >= deadline) {
            tenants.release_all();
            record(format!(
                "generation {} reached its move_deadline: its tenants move with their next requests",
                spec.id
            ));
        }
    }
    let Some(replaced) = app.running(|running| running.end_stay(spec.id)) else {
        return;
    };
    rollout.registry.publish();
    record(format!(
        "no tenant stays on generation {} ({}) any more, after {}",
        spec.id,
        spec.version,
        human::duration(began.elapsed())
    ));
    drain::begin(rollout, app, replaced);
}

/// Has the oldest generation that stays for its tenants stay no longer.
pub(super) fn release_oldest(app: &App) {
    if let Some(oldest) = staying(app).first() {
        oldest.tenants().release_all();
    }
}

fn staying(app: &App) -> Vec<Arc<Generation>> {
    app.running(|running| {
        let all = running.serving.staying().iter();
        all.map(|live| Arc::clone(live.active.generation()))
            .collect()
    })
}

/// Lists the tenants of `app` that stay on a generation that was replaced, by name, as far as what
/// they have there can be named.
pub(crate) fn list(app: &App) -> Vec<TenantStatus> {
    let mut all = Vec::new();
    for generation in staying(app) {
        let mut of: BTreeMap<String, Vec<HolderStatus>> = BTreeMap::new();
        for holder in holders::holders(&app.name, &generation, usize::MAX) {
            if !holder.tenant.is_empty() {
                of.entry(holder.tenant.clone()).or_default().push(holder);
            }
        }
        let named = of.into_iter().map(|(tenant, holders)| TenantStatus {
            app: app.name.clone(),
            tenant,
            generation: generation.spec().id,
            holders,
        });
        all.extend(named);
    }
    all
}

/// Moves `tenant` to what is live, whatever it has on generations that were replaced; `now` ends
/// what of that can be ended. Returns what was done; none when it stays nowhere.
pub(crate) fn move_on(app: &App, tenant: &str, now: bool) -> Option<String> {
    let (mut moved, mut ended) = (Vec::new(), 0_u64);
    for generation in staying(app) {
        if !generation.tenants().release(tenant) {
            continue;
        }
        moved.push(generation.spec().id.to_string());
        let holders = generation.holders(usize::MAX).into_iter().filter(|_| now);
        for holder in holders.filter(|one| one.tenant.as_deref() == Some(tenant)) {
            ended += u64::from(generation.cancel(holder.number).is_some());
        }
    }
    if moved.is_empty() {
        return None;
    }
    let ended = match now {
        true => format!(", and {} told to end", human::pluralize(ended, "request")),
        false => String::new(),
    };
    Some(format!(
        "{tenant} of {} moves with its next request, from generation {}{ended}",
        app.name,
        moved.join(", ")
    ))
}

/// The sentence of an error: `tenant` stays nowhere.
pub(crate) fn none_stays(app: &AppName, tenant: &str) -> String {
    format!(
        "{tenant} of {app} has nothing on a generation that was replaced: `handover tenants` shows who has"
    )
}
