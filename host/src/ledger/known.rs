//! Whose library an account is, for people.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::AccountId;
use handover_api::{AppName, GenerationId};

/// Whose a library is.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) app: AppName,
    pub(super) generation: GenerationId,
    pub(super) version: String,
}

static KNOWN: Mutex<Vec<(AccountId, Known)>> = Mutex::new(Vec::new());

fn lock() -> MutexGuard<'static, Vec<(AccountId, Known)>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says whose the library of `account` is. Once.
pub(super) fn add(account: AccountId, known: Known) {
    lock().push((account, known));
}

/// Returns whose the library of `account` is; none before that was said, and after the library is
/// unmapped.
pub(super) fn of(account: AccountId) -> Option<Known> {
    lock()
        .iter()
        .find(|(whose, _)| *whose == account)
        .map(|(_, known)| known.clone())
}

/// Forgets `account`: its library is unmapped.
pub(super) fn forget(account: AccountId) {
    lock().retain(|(whose, _)| *whose != account);
}
