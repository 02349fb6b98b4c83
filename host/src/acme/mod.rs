//! Certificates that the host orders by itself (ACME, RFC 8555): one for each list of names in
//! `listen.tls.acme`, renewed long before its end.
//!
//! - [`client`]: the connection to the authority
//! - [`order`]: an account, and one order from its beginning to the certificate
//! - [`stored`]: what lies in the state directory
//! - [`schedule`]: when the next attempt is made
//!
//! A certificate is put into its file, where the listeners find it as they find any other that has
//! changed. Nothing here ends anything: what fails is told of, and tried again later.

mod client;
mod order;
mod schedule;
mod stored;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use handover_api::CertificateStatus;
use jiff::Timestamp;
use parking_lot::Mutex;

use self::{
    order::{Failed, Order},
    schedule::{Attempts, Suggested},
    stored::Stored,
};
use crate::{
    config::{Acme, AcmeChallenge, Config, ListenAddress, ListenSocket},
    net::challenges::Challenges,
    telemetry::exposition::{Exposition, Kind},
};

/// How often it is looked whether something is to be done.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long an attempt may take, with all that the authority makes it wait.
const ATTEMPT: Duration = Duration::from_secs(10 * 60);

/// The certificates that are ordered. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct OrderedCertificates(Arc<Mutex<BTreeMap<PathBuf, Known>>>);

/// What became of an attempt, as a sentence.
#[derive(Debug)]
pub(crate) enum Ordered {
    /// There is a new certificate.
    Issued(String),
    /// There is none, and what was there before goes on.
    Failed(String),
}

/// A certificate that is to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    names: Vec<String>,
    file: PathBuf,
}

/// What is known of one.
#[derive(Clone, Debug)]
struct Known {
    names: Vec<String>,
    stored: Option<Stored>,
    attempts: Attempts,
    /// What the authority suggests for its renewal.
    suggested: Suggested,
    /// When the next attempt is made, in seconds since 1970.
    next: i64,
    /// Before this none is made for a renewal alone, whatever the authority suggests.
    soonest: i64,
    issued: u64,
    failed: u64,
}

/// Seconds since 1970.
fn now() -> i64 {
    Timestamp::now().as_second()
}

fn wanted(config: &Config) -> Vec<Wanted> {
    let mut all: Vec<Wanted> = Vec::new();
    for tls in config.listeners().into_iter().filter_map(|one| one.tls) {
        if let Some(file) = tls.acme_file
            && all.iter().all(|other| other.file != file)
        {
            all.push(Wanted {
                names: tls.acme,
                file,
            });
        }
    }
    all
}

/// Returns the challenge that is taken first, and whether the other one can be as well.
fn challenge(config: &Config) -> (AcmeChallenge, bool) {
    if let Some(asked) = config.acme.challenge {
        return (asked, false);
    }
    let is_at = |socket: &ListenSocket, port| match socket {
        ListenSocket::Address(ListenAddress::Tcp(address)) => address.port() == port,
        _ => false,
    };
    let listeners = config.listeners();
    let mut plain = listeners.iter().filter(|one| one.tls.is_none());
    if plain.any(|one| one.http_to_https || is_at(&one.socket, 80)) {
        (AcmeChallenge::Http01, true)
    } else {
        (AcmeChallenge::TlsAlpn01, false)
    }
}

impl Known {
    fn read(wanted: &Wanted, acme: &Acme) -> Self {
        let stored = Stored::read(&wanted.file);
        let attempts = Attempts::read(&wanted.file);
        let next = match &stored {
            Some(stored) if stored.is_for(&wanted.names) => {
                schedule::renewal(stored, acme.renew_before)
            }
            _ => now(),
        };
        Self {
            names: wanted.names.clone(),
            stored,
            // What failed before this run counts as well, or restarts would ask without end.
            next: next.max(attempts.not_before()),
            attempts,
            suggested: Suggested::default(),
            soonest: 0,
            issued: 0,
            failed: 0,
        }
    }
}

impl OrderedCertificates {
    /// Orders and renews what the configuration wants, for as long as the future lives, and gives
    /// what became of each attempt to `tell`.
    pub(crate) async fn keep(
        self,
        config: impl Fn() -> Arc<Config>,
        challenges: Challenges,
        tell: impl Fn(Ordered),
    ) {
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let config = config();
            let all = wanted(&config);
            {
                let files: BTreeSet<_> = all.iter().map(|one| &one.file).collect();
                let mut known = self.0.lock();
                known.retain(|file, _| files.contains(file));
            }
            for one in all {
                self.look(&config, &one, &challenges, &tell).await;
            }
        }
    }

    async fn look(
        &self,
        config: &Config,
        wanted: &Wanted,
        challenges: &Challenges,
        tell: &impl Fn(Ordered),
    ) {
        let before = self.0.lock().get(&wanted.file).cloned();
        let is_gone = |known: &Known| known.stored.is_some() && !wanted.file.exists();
        let before = before.filter(|known| known.names == wanted.names && !is_gone(known));
        let mut known = match before {
            Some(known) => known,
            None => {
                let (sought, acme) = (wanted.clone(), config.acme.clone());
                let read = tokio::task::spawn_blocking(move || Known::read(&sought, &acme));
                let Ok(known) = read.await else { return };
                self.0.lock().insert(wanted.file.clone(), known.clone());
                known
            }
        };
        let order = |replaces: bool| {
            let (first, both) = challenge(config);
            Order {
                acme: &config.acme,
                folder: config.acme.folder(&config.server.state),
                names: &wanted.names,
                // Where one way is blocked, the other may not be.
                challenge: match (first, known.attempts.failures % 2) {
                    (AcmeChallenge::Http01, 1) if both => AcmeChallenge::TlsAlpn01,
                    (first, _) => first,
                },
                replaces: known.stored.as_ref().filter(|_| replaces),
            }
        };
        if now() >= known.suggested.look_at
            && let Some(stored) = &known.stored
            && stored.is_for(&wanted.names)
        {
            let suggested = order(false).suggestion(stored).await;
            if let Some(next) = known.suggested.take(suggested, stored) {
                known.next = next.max(known.soonest).max(known.attempts.not_before());
            }
            self.put(wanted, &known);
        }
        if now() < known.next {
            return;
        }
        // The authority may refuse an order for what another one has replaced: after a failure it
        // is asked as if there was nothing before.
        let replaces = known.suggested.is_known() && known.attempts.failures == 0;
        let ordered = order(replaces);
        let issued = match tokio::time::timeout(ATTEMPT, ordered.issue(challenges)).await {
            Ok(issued) => issued,
            Err(_) => Err(Failed::new(format!(
                "there was no certificate after {}",
                humantime::format_duration(ATTEMPT)
            ))),
        };
        let issued = match issued {
            Ok(pem) => keep(&wanted.file, pem).await,
            Err(failed) => Err(failed),
        };
        let names = wanted.names.join(", ");
        match issued {
            Ok(stored) => {
                known.attempts = Attempts::default();
                known.soonest = schedule::soonest(&stored);
                known.next = schedule::renewal(&stored, config.acme.renew_before);
                known.next = known.next.max(known.soonest);
                known.suggested = Suggested::default();
                known.issued += 1;
                tell(Ordered::Issued(format!(
                    "the certificate for {names} was issued, and is valid until {}",
                    shown(stored.not_after)
                )));
                known.stored = Some(stored);
            }
            Err(Failed { cause, retry_after }) => {
                known.failed += 1;
                known.attempts.failed(cause.clone(), retry_after);
                known.next = known.attempts.next();
                let goes_on = match &known.stored {
                    Some(stored) => format!(
                        "; the one before goes on, which is valid until {}",
                        shown(stored.not_after)
                    ),
                    None => "; clients that ask for it are refused until then".to_owned(),
                };
                tell(Ordered::Failed(format!(
                    "no certificate was issued for {names}: {cause}; it is tried again at {}{goes_on}",
                    shown(known.next)
                )));
            }
        }
        let (file, attempts) = (wanted.file.clone(), known.attempts.clone());
        // An error costs what a restart would have known.
        let _ = tokio::task::spawn_blocking(move || attempts.keep(&file)).await;
        self.put(wanted, &known);
    }

    fn put(&self, wanted: &Wanted, known: &Known) {
        self.0.lock().insert(wanted.file.clone(), known.clone());
    }

    /// Returns what is known of each.
    pub(crate) fn status(&self) -> Vec<CertificateStatus> {
        let known = self.0.lock();
        let of = |known: &Known| CertificateStatus {
            names: known.names.clone(),
            not_after: known.stored.as_ref().map(|stored| shown(stored.not_after)),
            next_try: shown(known.next),
            last_error: known.attempts.last_error.clone(),
        };
        known.values().map(of).collect()
    }

    /// Writes what Prometheus reads.
    pub(crate) fn write_metrics(&self, to: &mut Exposition) {
        let known = self.0.lock();
        if known.is_empty() {
            return;
        }
        let mut ends = to.family(
            "handover_certificate_expiry_timestamp_seconds",
            Kind::Gauge,
            "When an ordered certificate ends, in seconds since 1970; absent while there is none.",
        );
        for one in known.values() {
            if let (Some(stored), Some(name)) = (&one.stored, one.names.first()) {
                ends.sample(&[("name", name)], stored.not_after);
            }
        }
        let mut orders = to.family(
            "handover_certificate_orders_total",
            Kind::Counter,
            "Orders of certificates, by how they ended.",
        );
        for one in known.values() {
            let Some(name) = one.names.first() else {
                continue;
            };
            orders.sample(&[("name", name), ("result", &"issued")], one.issued);
            orders.sample(&[("name", name), ("result", &"failed")], one.failed);
        }
    }
}

/// Puts what was issued into its file, and returns what is known of it.
async fn keep(file: &Path, pem: String) -> Result<Stored, Failed> {
    let file = file.to_owned();
    let kept = tokio::task::spawn_blocking(move || {
        let stored = Stored::of_pem(pem.as_bytes())
            .ok_or_else(|| "what the authority sent is no certificate".to_owned())?;
        if !stored.is_valid_at(now()) {
            return Err(format!(
                "the certificate is valid from {} to {}, and that is not now: correct the clock of this machine, or ask the \
                 authority",
                shown(stored.not_before),
                shown(stored.not_after)
            ));
        }
        stored::write(&file, pem.as_bytes())
            .map_err(|cause| format!("{} cannot be written: {cause}", file.display()))?;
        Ok(stored)
    });
    match kept.await {
        Ok(kept) => kept.map_err(Failed::new),
        Err(cause) => Err(Failed::new(cause.to_string())),
    }
}

fn shown(second: i64) -> String {
    Timestamp::from_second(second).map_or_else(|_| "?".to_owned(), |time| time.to_string())
}
