//! A verdict on an artifact, found in a child process: whatever its code does there, the host never
//! notices.
//!
//! - [`parent`]: starts the child, listens, and turns its end into a verdict
//! - [`child`]: does the checks
//! - [`report`]: what they say to each other

pub(crate) mod child;
mod parent;
mod report;

pub(crate) use self::parent::{boot, check};

use std::collections::BTreeMap;

use bytes::Bytes;
use http::Response;
use serde::{Deserialize, Serialize};

use crate::{
    artifact::{Remark, Sha256},
    dispatch::VOLATILE,
    loader::Companion,
};

/// The argument with which a program that is a host is started again, to try an artifact where a
/// crash of it hurts nobody.
pub(crate) const CHILD: &str = "preflight-child";

/// What preflight is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Scope {
    /// All that the settings of the app say.
    All,
    /// Of what was live before under another version of the host: whether this one can run it.
    /// Nothing is started, and nothing that a deploy is refused for otherwise counts.
    Again,
}

/// What preflight found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may be loaded.
    Passed(Passed),
    /// It may not be loaded, exit code 4: the reason.
    Rejected(String),
    /// Its smoke requests failed, exit code 5: the reason.
    Unhealthy(String),
}

/// What was found of an artifact that may be loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Passed {
    /// What was checked, for people.
    pub checks: Vec<String>,
    /// What people should know of it.
    pub remarks: Vec<Remark>,
    /// The libraries that were mapped beside it.
    pub(crate) companions: Vec<Companion>,
    /// What it answered to the smoke requests, where that was asked for.
    pub(crate) answers: Vec<Answer>,
}

/// An answer, as far as it can be compared with another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// The path that was asked for.
    pub(crate) path: String,
    /// Its status.
    pub(crate) status: u16,
    /// Its header fields, but for those that differ from answer to answer.
    pub(crate) headers: BTreeMap<String, String>,
    /// The SHA-256 of its body.
    pub(crate) body: Sha256,
    /// The length of that, in bytes.
    pub(crate) length: u64,
}

impl Answer {
    /// Returns `answer` to a request for `path`.
    pub(crate) fn of(path: &str, answer: &Response<Bytes>) -> Self {
        let mut headers = BTreeMap::<String, String>::new();
        for (name, value) in answer.headers() {
            if VOLATILE.contains(&name.as_str()) {
                continue;
            }
            let value = String::from_utf8_lossy(value.as_bytes());
            let all = headers.entry(name.as_str().to_owned()).or_default();
            if !all.is_empty() {
                all.push_str(", ");
            }
            all.push_str(&value);
        }
        Self {
            path: path.to_owned(),
            status: answer.status().as_u16(),
            headers,
            body: Sha256::of(answer.body()),
            length: answer.body().len() as u64,
        }
    }

    /// Returns how `other`, to the same request, differs from it, each difference a sentence.
    pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
        let path = &self.path;
        let mut found = Vec::new();
        if self.status != other.status {
            found.push(format!(
                "GET {path}: {}, then {}",
                self.status, other.status
            ));
        }
        for name in self.headers.keys().chain(other.headers.keys()) {
            let (one, two) = (self.headers.get(name), other.headers.get(name));
            let text =
                |value: Option<&String>| value.map_or("none".to_owned(), |v| format!("`{v}`"));
            let told = format!("GET {path}: `{name}` is {}, then {}", text(one), text(two));
            if one != two && !found.contains(&told) {
                found.push(told);
            }
        }
        if self.body != other.body {
            found.push(match (self.length, other.length) {
                (one, two) if one == two => {
                    format!("GET {path}: {one} bytes of body, then {two} others")
                }
                (one, two) => format!("GET {path}: {one} bytes of body, then {two}"),
            });
        }
        found
    }
}
