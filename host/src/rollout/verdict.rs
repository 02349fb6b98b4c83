//! The verdict of preflight, which counts for the host that gave it: another one asks again before
//! it loads what came to be in the store.

use std::{fs::File, sync::LazyLock};

use handover_api::{Cause, Note};

use crate::{
    artifact::{Remark, Sha256, elf, manifest::HOST_ABI},
    preflight::Scope,
    records::app_record::Record,
};

impl From<&Remark> for Note {
    fn from(remark: &Remark) -> Self {
        Self {
            kind: remark.topic.as_str().to_owned(),
            warning: remark.warning,
            message: remark.message.clone(),
        }
    }
}

/// This host, as its verdicts name it: its version and, where the linker wrote one, the build id of
/// its program, since two builds of one version may differ in what a plugin meets.
pub(crate) fn host() -> &'static str {
    static HOST: LazyLock<String> = LazyLock::new(|| {
        let version = env!("CARGO_PKG_VERSION");
        let build_id = File::open("/proc/self/exe")
            .ok()
            .and_then(|own| elf::read(&own).ok())
            .and_then(|own| own.facts.build_id);
        match build_id {
            Some(id) => {
                let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("{version} ({id})")
            }
            None => version.to_owned(),
        }
    });
    &HOST
}

/// What preflight is asked of an artifact of the store that is to be live again because of `cause`.
pub(crate) fn asked_again(record: &Record, artifact: Sha256, cause: Cause) -> Option<Scope> {
    let is_ours = record
        .verdict(artifact)
        .is_some_and(|verdict| verdict.host == host() && verdict.abi == HOST_ABI.to_string());
    if is_ours {
        return None;
    }
    Some(match cause {
        // A restart serves what was live, unless this host cannot run it: what has moved on
        // outside, such as a database that is not there yet, is no reason.
        Cause::Start | Cause::Crash => Scope::Again,
        _ => Scope::All,
    })
}

/// Which host said last that the artifact is good, for people.
pub(crate) fn last_host(record: &Record, artifact: Sha256) -> String {
    record.verdict(artifact).map_or_else(
        || "no verdict of an earlier host on it is kept".to_owned(),
        |verdict| {
            format!(
                "the last verdict on it is of handover {}, which offered ABI {}",
                verdict.host, verdict.abi
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_counts_for_the_host_and_the_abi_that_it_was_given_with() {
        let artifact = Sha256([7; 32]);
        let mut record = Record::default();
        let asked = |record: &Record, cause| asked_again(record, artifact, cause);
        assert_eq!(asked(&record, Cause::Start), Some(Scope::Again));
        record.passed(artifact, "0.0.9", HOST_ABI, Vec::new());
        assert_eq!(asked(&record, Cause::Crash), Some(Scope::Again));
        assert_eq!(asked(&record, Cause::Rollback), Some(Scope::All));
        record.passed(artifact, host(), HOST_ABI, Vec::new());
        assert_eq!(asked(&record, Cause::Start), None);
        assert_eq!(asked(&record, Cause::Rollback), None);
    }
}
