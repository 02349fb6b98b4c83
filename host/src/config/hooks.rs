//! Programs that are run at a deploy: `[app.NAME.hooks]`.

use std::{path::Path, time::Duration};

use serde::{Deserialize, Serialize};

use crate::values;

/// `[app.NAME.hooks]`
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hooks {
    /// Run first; a failure refuses the artifact. Default none, as of the others.
    pub pre_deploy: Option<Program>,
    /// Run when all checks have passed and the version is up, before its first request; a failure
    /// ends the deploy.
    pub migrate: Option<Program>,
    /// Run when the version is live.
    pub post_deploy: Option<Program>,
    /// Run when a deploy has failed.
    pub on_failure: Option<Program>,
    /// Run when something older is live again, or a canary was taken back.
    pub on_rollback: Option<Program>,
    /// How long each may take. Default 5 minutes.
    #[serde(with = "values::span")]
    pub deadline: Duration,
}

/// A program and its arguments: a text, or a list of texts.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(try_from = "Written", into = "Vec<String>")]
pub struct Program(Vec<String>);

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "write a program, or a list of a program and its arguments"
)]
enum Written {
    Alone(String),
    WithArguments(Vec<String>),
}

impl TryFrom<Written> for Program {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let words = match written {
            Written::Alone(program) => vec![program],
            Written::WithArguments(words) => words,
        };
        match words.first() {
            Some(program) if !program.is_empty() => Ok(Self(words)),
            _ => Err("there is no program"),
        }
    }
}

impl From<Program> for Vec<String> {
    fn from(program: Program) -> Self {
        program.0
    }
}

impl Program {
    /// Returns the program, its arguments behind it.
    pub fn words(&self) -> &[String] {
        &self.0
    }
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            pre_deploy: None,
            migrate: None,
            post_deploy: None,
            on_failure: None,
            on_rollback: None,
            deadline: Duration::from_secs(300),
        }
    }
}

impl Hooks {
    /// Makes paths with a slash those of `folder`; a name without one is looked for in `PATH`.
    pub(super) fn resolve(&mut self, folder: &Path) {
        let Self {
            pre_deploy,
            migrate,
            post_deploy,
            on_failure,
            on_rollback,
            deadline: _,
        } = self;
        let all = [pre_deploy, migrate, post_deploy, on_failure, on_rollback];
        for program in all.into_iter().flatten() {
            if let Some(first) = program.0.first_mut()
                && first.contains('/')
                && let Some(path) = folder.join(&*first).to_str()
            {
                *first = path.to_owned();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn a_program_is_a_text_or_a_list_and_a_path_is_that_of_the_file() {
        let text = "pre_deploy = \"./check\"\nmigrate = [\"sqlx\", \"migrate\", \"run\"]\npost_deploy = \"/bin/true\"\n";
        let mut hooks: Hooks = toml::from_str(text).unwrap();
        hooks.resolve(Path::new("/etc/handover"));
        let words = |program: &Option<Program>| program.clone().unwrap().0;
        assert_eq!(words(&hooks.pre_deploy), ["/etc/handover/./check"]);
        assert_eq!(words(&hooks.migrate), ["sqlx", "migrate", "run"]);
        assert_eq!(words(&hooks.post_deploy), ["/bin/true"]);
        assert_eq!(hooks.deadline, Duration::from_secs(300));
        for wrong in [
            "pre_deploy = \"\"",
            "pre_deploy = []",
            "pre_deploy = 1",
            "pre = \"x\"",
        ] {
            toml::from_str::<Hooks>(wrong).unwrap_err();
        }
    }
}
