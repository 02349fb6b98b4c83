//! `doctor`: what of this machine would bite a host, and what to do about it.
//!
//! Each check does what the host would do, where that leaves nothing behind, and else reads what
//! the kernel says. It is the machine as the user sees it who calls.
//!
//! - [`machine`]: what the kernel grants a process
//! - [`folders`]: the state directory and the drop folder
//! - [`sockets`]: the addresses that are configured, and the control socket
//! - [`running`]: what a host that runs says of itself

mod folders;
mod machine;
mod running;
mod sockets;

use std::io;

use serde::Serialize;
use serde_json::json;

use super::{
    args::{self, Global},
    exit::{FAILURE, Failure},
    output::{self, Paint, paint},
};
use crate::{
    config::{Config, ConfigOrigin, Overrides},
    human,
    shown::harmless,
};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// It is as it should be.
    Ok,
    /// A host works, and less well than it could, or not for long.
    Warning,
    /// A host does not start, or does not deploy.
    Problem,
}

/// What one check has found.
#[derive(Debug, Serialize)]
struct Finding {
    /// A word for programs.
    check: &'static str,
    verdict: Verdict,
    message: String,
    /// What to do; none where it is fine.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Verdict::Ok,
            message: message.into(),
            advice: None,
        }
    }

    fn warning(check: &'static str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Warning,
            advice: Some(advice.into()),
            ..Self::ok(check, message)
        }
    }

    fn problem(check: &'static str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Problem,
            ..Self::warning(check, message, advice)
        }
    }

    /// An error of the host's own, which says what to do.
    fn error(check: &'static str, error: impl ToString) -> Self {
        Self {
            verdict: Verdict::Problem,
            ..Self::ok(check, error.to_string())
        }
    }

    fn text(&self, colour: bool) -> String {
        let (word, how) = match self.verdict {
            Verdict::Ok => ("ok", Paint::Green),
            Verdict::Warning => ("warning", Paint::Yellow),
            Verdict::Problem => ("problem", Paint::Red),
        };
        let mut text = format!(
            "{}{}  {:<14} {}",
            paint(colour, how, word),
            " ".repeat("problem".len() - word.len()),
            self.check,
            harmless(&self.message)
        );
        if let Some(advice) = &self.advice {
            text.push_str(": ");
            text.push_str(&harmless(advice));
        }
        text
    }
}

/// `handover doctor`
pub(super) async fn doctor(global: &Global, args: args::Doctor) -> Result<(), Failure> {
    if global.host.is_some() {
        return Err(Failure::new(
            "doctor looks at the machine that it runs on: run it there, as in `ssh box handover doctor`",
        ));
    }
    let origin = ConfigOrigin {
        file: args.config,
        overrides: Overrides {
            control: global.control.clone(),
            ..Overrides::default()
        },
        insecure_paths: false,
    };
    let (config, mut findings) = configuration(&origin);
    // Without a file the host of the system may be meant, where client commands look for it.
    let control = match origin.file {
        Some(_) => config.server.control.clone(),
        None => global.control(),
    };
    let host = running::ask(&control).await;
    findings.extend(machine::check(&config));
    findings.extend(folders::check(&config));
    findings.extend(sockets::check(&config, &control, &host));
    findings.extend(running::check(&host));
    tell(global, &findings)
}

/// The configuration that is meant, and whether there is one. One that cannot be read leaves the
/// rest to be looked at as if there were no file.
fn configuration(origin: &ConfigOrigin) -> (Config, Vec<Finding>) {
    const CHECK: &str = "configuration";
    match origin.read() {
        Ok(config) => {
            let found = match &origin.file {
                Some(file) => format!("{} is one", file.display()),
                None => "that of `handover run` without a file; --config names another".to_owned(),
            };
            (config, vec![Finding::ok(CHECK, found)])
        }
        Err(error) => {
            let mut config = Config::without_file();
            config.server.overrule(origin.overrides.clone());
            (config, vec![Finding::error(CHECK, error)])
        }
    }
}

fn tell(global: &Global, findings: &[Finding]) -> Result<(), Failure> {
    let count = |verdict| {
        let those = findings.iter().filter(|found| found.verdict == verdict);
        those.count()
    };
    let (warnings, problems) = (count(Verdict::Warning), count(Verdict::Problem));
    if global.json {
        let all = json!({ "findings": findings, "warnings": warnings, "problems": problems });
        output::line(&all.to_string());
    } else {
        let colour = output::colour(&io::stdout(), global);
        let width = output::width();
        for found in findings {
            output::line(&output::wrapped(&found.text(colour), width, "         "));
        }
        let (problems, warnings) = (problems as u64, warnings as u64);
        output::line(&format!(
            "{}, {}",
            human::pluralize(problems, "problem"),
            human::pluralize(warnings, "warning")
        ));
    }
    match problems {
        0 => Ok(()),
        _ => Err(Failure::silent(FAILURE)),
    }
}
