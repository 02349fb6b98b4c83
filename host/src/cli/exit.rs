//! How a command ends that did not do what it was asked: a code of the contract, and a sentence on
//! standard error.

use std::{io::Write, process::ExitCode};

use serde_json::json;

use handover_api::ClientError;

use super::{args::Global, output};
use crate::shown::harmless;

/// The exit code of a command that failed for a reason without a code of its own.
pub(super) const FAILURE: u8 = 1;
/// The exit code of a command line that makes no sense.
pub(super) const USAGE: u8 = 2;
/// The exit code of a command that no host has answered.
const UNREACHABLE: u8 = 3;
/// The exit code of a command that was interrupted while the host goes on with it: what a shell
/// reports for Ctrl-C.
pub(super) const INTERRUPTED: u8 = 130;

/// Why a command ends with another code than 0.
#[derive(Debug)]
pub(super) struct Failure {
    code: u8,
    /// None when everything has been said.
    sentence: Option<String>,
}

impl Failure {
    /// Exit code 1.
    pub(super) fn new(sentence: impl Into<String>) -> Self {
        Self::with_code(FAILURE, sentence)
    }

    /// Any exit code.
    pub(super) fn with_code(code: u8, sentence: impl Into<String>) -> Self {
        Self {
            code,
            sentence: Some(sentence.into()),
        }
    }

    /// Returns the exit code.
    pub(super) fn code(&self) -> u8 {
        self.code
    }

    /// The same with another exit code.
    pub(super) fn coded(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// An exit code alone: what there was to say has been said.
    pub(super) fn silent(code: u8) -> Self {
        Self {
            code,
            sentence: None,
        }
    }

    /// Says it, as JSON on standard output with `--json` (so that a script reads one stream), else
    /// as a sentence on standard error.
    pub(super) fn tell(self, global: &Global) -> ExitCode {
        if let Some(sentence) = self.sentence {
            if global.json {
                output::line(&json!({ "error": sentence, "exit_code": self.code }).to_string());
            } else {
                let colour = output::colour(&std::io::stderr(), global);
                let error = output::paint(colour, output::Paint::Red, "error:");
                // With nobody to read it, the code still tells.
                let _ = writeln!(std::io::stderr(), "{error} {}", harmless(&sentence));
            }
        }
        ExitCode::from(self.code)
    }
}

/// Whether the host was cut off or is not there, so that another run of it may answer later.
pub(super) fn may_come_back(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } | ClientError::Broken(_) => true,
        // By ssh it is not there either, or not yet.
        ClientError::Program(_, code) => *code == UNREACHABLE,
        _ => false,
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::with_code(error.exit_code(), error.to_string())
    }
}
