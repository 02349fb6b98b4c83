//! Calls that change something are taken down: who made them, with what, and how they ended.

use handover_api::{AuditEntry, OperationResult, Outcome, Progress};
use http::{Method, Request, StatusCode};

use super::{
    calls::{Asked, ControlResponse, Refusal},
    server::Backend,
    state,
};
use crate::records::audit::{self, Begun};

/// The operation whose lines an answer is.
#[derive(Clone, Debug)]
pub(super) struct OperationId(pub(super) String);

/// What the audit log is to say of `request`; none where it changes nothing.
pub(super) fn entry<T>(request: &Request<T>, asked: &Asked) -> Option<AuditEntry> {
    let (method, path) = (request.method(), request.uri().path());
    let of_state = state::parts(path);
    // A backup is tried beside the state.
    let only_tries = of_state.is_some_and(|(_, what)| what == "verify");
    if matches!(*method, Method::GET | Method::HEAD) || only_tries {
        return None;
    }
    let mut entry = audit::asked(asked.source, format!("{method} {path}"));
    audit::read_arguments(&mut entry, request.uri().query().unwrap_or_default());
    if let Some((app, _)) = of_state {
        entry.app = app.parse().ok();
    }
    entry.uid = (asked.peer.uid != u32::MAX).then_some(asked.peer.uid);
    entry.pid = asked.pid;
    Some(entry)
}

/// Takes down how a call was answered, and how the operation ends that it has begun.
pub(super) fn answered<B: Backend>(
    begun: Begun,
    answer: &Result<ControlResponse, Refusal>,
    backend: &B,
) {
    let response = match answer {
        Ok(response) => response,
        Err(refusal) => {
            let (status, error) = (refusal.status, refusal.problem.error.clone());
            return begun.ended(|entry| {
                entry.status = Some(status.as_u16());
                entry.outcome = Some(of_exit_code(refusal.problem.exit_code));
                entry.error = Some(error);
            });
        }
    };
    let status = response.status();
    if let Some(OperationId(id)) = response.extensions().get() {
        let operation = backend.operation(id);
        let id = id.clone();
        tokio::spawn(async move {
            let mut lines = operation.map(|operation| operation.lines);
            // Its interest is dropped: nobody waits for it here.
            let mut result = None;
            while let Some(lines) = &mut lines
                && result.is_none()
                && let Some(line) = lines.recv().await
            {
                if let Progress::Result(ended) = line {
                    result = Some(ended);
                }
            }
            begun.ended(|entry| {
                entry.operation = Some(id);
                operation_ended(entry, status, result.as_ref());
            });
        });
        return;
    }
    let result = response.extensions().get::<OperationResult>();
    begun.ended(|entry| match result {
        Some(_) => operation_ended(entry, status, result),
        None => {
            entry.status = Some(status.as_u16());
            let is_done = status.is_success();
            entry.outcome = Some(if is_done {
                Outcome::Done
            } else {
                Outcome::Failed
            });
        }
    });
}

fn operation_ended(entry: &mut AuditEntry, status: StatusCode, result: Option<&OperationResult>) {
    entry.status = Some(status.as_u16());
    let Some(result) = result else {
        entry.outcome = Some(Outcome::Failed);
        entry.error = Some("it is not known how it ended".to_owned());
        return;
    };
    audit::ended_as(entry, result);
}

fn of_exit_code(code: u8) -> Outcome {
    let mut failures = Outcome::ALL.iter().filter(|one| one.exit_code() != 0);
    failures
        .find(|one| one.exit_code() == code)
        .map_or(Outcome::Failed, |one| *one)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use handover_api::{AuditSource, query};

    use super::*;
    use crate::{access::Peer, control::ShutdownHandle};

    fn of(method: &str, target: &str) -> Option<AuditEntry> {
        let peer = Peer { uid: 7, gid: 7 };
        let asked = Asked::by(peer, Some(12), AuditSource::Control, ShutdownHandle::new());
        let request = Request::builder().method(method).uri(target);
        entry(&request.body(()).unwrap(), &asked)
    }

    #[test]
    fn what_changes_nothing_is_not_taken_down() {
        for path in [query::STATUS, query::METRICS, "/v1/state/shop/value?key=k"] {
            assert!(of("GET", path).is_none(), "{path}");
        }
        assert!(of("POST", "/v1/state/shop/verify").is_none());
    }

    #[test]
    fn a_change_has_its_app_and_its_caller() {
        let deploy = of("POST", "/v1/deploy?app=shop&by=ci&name=shop.so").unwrap();
        assert_eq!(deploy.call, "POST /v1/deploy");
        assert_eq!(deploy.app.unwrap().as_str(), "shop");
        assert_eq!(
            (deploy.by.as_deref(), deploy.uid, deploy.pid),
            (Some("ci"), Some(7), Some(12))
        );
        let put = of("PUT", "/v1/state/blog/value?key=k").unwrap();
        assert_eq!(put.app.unwrap().as_str(), "blog");
        assert_eq!(put.arguments["key"], "k");
    }

    #[test]
    fn a_refusal_ends_as_its_command_does() {
        assert_eq!(of_exit_code(9), Outcome::Denied);
        assert_eq!(of_exit_code(2), Outcome::Failed);
    }
}
