//! What a host that runs says of itself.

use std::path::Path;

use handover_api::{Client, ClientError, Status};

use super::Finding;
use crate::{human, open_files, process};

/// From here on the kernel may end the host for want of memory.
const MOST_OF_MEMORY: f64 = 0.8;

/// What answers at the control socket.
#[derive(Debug)]
pub(super) enum Running {
    /// Nobody.
    None,
    /// A host that does not hear this user.
    Denies(String),
    /// Somebody, but not as a host does.
    Fails(String),
    /// A host.
    Answers(Box<Status>),
}

impl Running {
    /// Where it listens, with scheme or without.
    pub(super) fn addresses(&self) -> Vec<String> {
        match self {
            Self::Answers(status) => {
                let host = &status.host;
                host.listen.iter().chain(&host.metrics).cloned().collect()
            }
            Self::None | Self::Denies(_) | Self::Fails(_) => Vec::new(),
        }
    }
}

/// Asks the host at `control`, if there is one.
pub(super) async fn ask(control: &Path) -> Running {
    match Client::new(control).status().await {
        Ok(status) => Running::Answers(Box::new(status)),
        Err(ClientError::Unreachable { .. }) => Running::None,
        Err(error @ (ClientError::Denied(_) | ClientError::Refused(_))) => {
            Running::Denies(error.to_string())
        }
        Err(error) => Running::Fails(error.to_string()),
    }
}

pub(super) fn check(host: &Running) -> Vec<Finding> {
    const CHECK: &str = "host";
    let Running::Answers(status) = host else {
        return Vec::new();
    };
    let (host, own) = (&status.host, env!("CARGO_PKG_VERSION"));
    let mut findings = vec![if host.version == own {
        Finding::ok(CHECK, format!("{own} runs as process {}", host.pid))
    } else {
        Finding::warning(
            CHECK,
            format!(
                "{} runs as process {}, and this is {own}",
                host.version, host.pid
            ),
            "restart the host where it was upgraded",
        )
    }];
    if let Some(why) = &host.not_ready {
        findings.push(Finding::warning(
            CHECK,
            format!("it is not ready: {why}"),
            "`handover status` says more",
        ));
    }
    for app in &status.apps {
        if let Some(why) = &app.not_durable {
            findings.push(Finding::problem(
                CHECK,
                format!("what is live of {} is not on the disk: {why}", app.name),
                "make room, or let the host write there: it tries again each second",
            ));
        }
    }
    if let Some(limit) = host.max_open_files.filter(|limit| *limit < open_files::FEW) {
        findings.push(Finding::warning(
            CHECK,
            format!("it can have only {limit} files and connections open"),
            open_files::RAISE_IT,
        ));
    }
    let limit = process::memory_limit_of(&host.pid.to_string());
    if let Some(limit) =
        limit.filter(|limit| host.rss_bytes as f64 > *limit as f64 * MOST_OF_MEMORY)
    {
        findings.push(Finding::warning(
            CHECK,
            format!(
                "it has {} of the {} that it may have in memory",
                human::memory(host.rss_bytes),
                human::memory(limit)
            ),
            "give it more, before the kernel ends it",
        ));
    }
    let (holds, may) = (&host.leaks, &host.leak_budget);
    if holds.retained > may.retained
        || holds.bytes > may.bytes
        || holds.descriptors > may.descriptors
    {
        findings.push(Finding::warning(
            CHECK,
            "replaced generations hold more than the leak budget",
            "`handover events` says whose; a restart gives it back",
        ));
    }
    findings
}
