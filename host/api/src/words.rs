//! The words of the JSON that programs compare: states, causes, kinds of events.
//!
//! Each list may grow. A client of an older version reads a word that it does not know as
//! `Unknown`.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! words {
    ($(#[$docs:meta])* $name:ident {
        $($(#[$variant_docs:meta])* $variant:ident = $word:literal,)*
    }) => {
        $(#[$docs])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_docs])* #[serde(rename = $word)] $variant,)*
            /// A word of a newer host.
            #[default]
            #[serde(other, rename = "unknown")]
            Unknown,
        }

        impl $name {
            /// Every word that this version knows.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Returns the word as it stands in the JSON.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                    Self::Unknown => "unknown",
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words! {
    /// Where a change was asked for.
    AuditSource {
        /// A call of the control socket.
        Control = "control",
        /// A button of the dashboard.
        Dashboard = "dashboard",
        /// A file in a drop folder.
        DropFolder = "drop-folder",
        /// A signal to the host.
        Signal = "signal",
        /// The host, about the log itself.
        Host = "host",
    }
}

words! {
    /// What an app does.
    AppState {
        /// A generation answers its requests.
        Serving = "serving",
        /// An operation is under way.
        Deploying = "deploying",
        /// Somebody has stopped it.
        Stopped = "stopped",
        /// Nothing has been deployed.
        Empty = "empty",
    }
}

words! {
    /// How much a record of the log matters, from what matters most.
    LogLevel {
        /// Something is wrong.
        Error = "error",
        /// Something may become wrong, or was and was dealt with.
        Warn = "warn",
        /// What happens.
        Info = "info",
        /// What happens in detail.
        Debug = "debug",
        /// What happens in all detail.
        Trace = "trace",
    }
}

words! {
    /// When a change of the configuration takes effect.
    ConfigEffect {
        /// When the configuration is reloaded.
        Now = "now",
        /// When the app gets its next generation.
        NextGeneration = "next-generation",
        /// When the host is started the next time.
        NextStart = "next-start",
    }
}

words! {
    /// What becomes of a durable job.
    JobState {
        /// It waits for its time, for others, or for its next attempt.
        Waiting = "waiting",
        /// A handler is at it.
        Running = "running",
        /// Its handler has done it.
        Done = "done",
        /// It was given up.
        Dead = "dead",
        /// Somebody cancelled it.
        Cancelled = "cancelled",
    }
}

words! {
    /// What a generation does.
    GenerationState {
        /// Its app is built, and gets no requests yet.
        Started = "started",
        /// New requests go to it.
        Active = "active",
        /// It finishes what it has.
        Draining = "draining",
        /// Its app value is dropped.
        Retired = "retired",
        /// Its library is unmapped.
        Unloaded = "unloaded",
        /// Its library could not be proven quiet, so it stays mapped.
        Retained = "retained",
    }
}

words! {
    /// What asked for a deploy.
    Cause {
        /// `handover deploy`.
        Deploy = "deploy",
        /// The drop folder.
        Drop = "drop",
        /// `handover reload`, or SIGHUP.
        Reload = "reload",
        /// `handover rollback`.
        Rollback = "rollback",
        /// `handover promote`.
        Promote = "promote",
        /// The host was started.
        Start = "start",
        /// The host crashed.
        Crash = "crash",
        /// `handover dev`.
        Dev = "dev",
    }
}

words! {
    /// The kind of an event.
    EventKind {
        /// A generation answers new requests.
        Active = "active",
        /// A replaced generation finishes what it has.
        Draining = "draining",
        /// It has finished.
        Drained = "drained",
        /// It was ended at its drain deadline.
        DeadlinePassed = "deadline_passed",
        /// Streams that would not end were ended at its drain deadline, which their clients
        /// understand.
        StreamsEnded = "streams_ended",
        /// Its library is unmapped.
        Unloaded = "unloaded",
        /// Its library stays mapped.
        Retained = "retained",
        /// The configuration was read again.
        ConfigLoaded = "config_loaded",
        /// The same, and something in it was wrong: nothing was changed.
        ConfigFailed = "config_failed",
        /// Replaced generations hold more than the leak budget.
        LeakBudget = "leak-budget",
        /// An artifact was refused.
        Rejected = "rejected",
        /// Its smoke requests failed.
        Unhealthy = "unhealthy",
        /// A deploy failed for a reason of the host.
        Failed = "failed",
        /// Preflight warned of an artifact that was taken.
        Warning = "warning",
        /// An artifact waits for `handover reload`.
        Staged = "staged",
        /// A version is up beside the live one, under a label.
        Labelled = "labelled",
        /// It was ended: by `abort`, by its TTL, or because another version took its label.
        LabelEnded = "label_ended",
        /// A version is on trial: its share of the requests is a new one, it stands still, or goes
        /// on.
        Canary = "canary",
        /// Too few of its requests were answered in its time to go on.
        CanaryInconclusive = "canary_inconclusive",
        /// It was ended, because the figures speak against it.
        CanaryAborted = "canary_aborted",
        /// A boot from nothing brought the same as what is live.
        Verified = "verified",
        /// It did not, or could not be made.
        VerifyFailed = "verify_failed",
        /// Somebody has stopped an app: nothing of it answers.
        Stopped = "stopped",
        /// Requests of an app wait.
        Paused = "paused",
        /// They went on.
        Resumed = "resumed",
        /// A generation that was replaced stays for its tenants, or they have left it.
        Tenants = "tenants",
        /// An artifact of a drop folder waits until it may be tried.
        Waiting = "waiting",
        /// The host before this one did not end cleanly.
        Crash = "crash",
        /// An artifact that was live was taken back.
        RolledBack = "rolled_back",
        /// An artifact has served long enough to be trusted.
        Proven = "proven",
        /// A call into a generation holds its worker.
        Stalled = "stalled",
        /// It came back.
        StallEnded = "stall_ended",
        /// A generation panicked.
        Panic = "panic",
        /// A generation wanted to change the working directory of the process, or relies on it.
        WorkingDirectory = "working_directory",
        /// A generation changed the mask for the modes of new files.
        FileMask = "file_mask",
        /// The certificates of a listener were read again.
        CertificateLoaded = "certificate_loaded",
        /// They have changed and cannot be used: those before go on.
        CertificateFailed = "certificate_failed",
        /// An authority has issued a certificate that the host ordered.
        CertificateIssued = "certificate_issued",
        /// It has not: the one before goes on, and it is tried again later.
        CertificateNotIssued = "certificate_not_issued",
        /// The node is drained: `/readyz` says that no more traffic should come.
        NodeDrained = "node_drained",
        /// It is not any more.
        NodeResumed = "node_resumed",
        /// Something is wrong with the host's own records.
        State = "state",
        /// The host began or ends.
        Host = "host",
        /// The reader of a stream of events was too slow for some of them.
        Missed = "missed",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn a_word_of_a_newer_host_is_unknown() {
        assert_eq!(
            serde_json::from_str::<EventKind>("\"teleported\"").unwrap(),
            EventKind::Unknown
        );
    }

    #[test]
    fn words_are_those_of_the_json() {
        for kind in EventKind::ALL {
            let json = serde_json::to_value(kind).unwrap();
            assert_eq!(json, kind.as_str());
            assert_eq!(serde_json::from_value::<EventKind>(json).unwrap(), *kind);
        }
        for cause in Cause::ALL {
            assert_eq!(serde_json::to_value(cause).unwrap(), cause.as_str());
        }
    }
}
