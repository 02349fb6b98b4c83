//! A file of the configuration: its text, and where in it something is.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use toml::de::{DeTable, DeValue};

use super::ConfigError;

/// A file, to say where in it something is wrong.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Source {
    /// Where it lies.
    pub(crate) path: PathBuf,
    /// What it held when it was read.
    pub(crate) text: String,
}

/// A step on the way from the top of a file to a value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step<'a> {
    /// Into a table.
    Key(&'a str),
    /// Into a list.
    At(usize),
}

impl Source {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// `FILE: why`.
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|error| {
            ConfigError(format!(
                "{}: cannot read the configuration: {error}",
                path.display()
            ))
        })?;
        Ok(Self {
            path: path.to_owned(),
            text,
        })
    }

    /// Returns the folder that relative paths in it are relative to, from the root on.
    pub(super) fn folder(&self) -> PathBuf {
        super::absolute(match self.path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        })
    }

    /// Returns what it says.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        toml::from_str(&self.text)
            .map_err(|error| self.error_in(error.span(), &with_suggestion(error.message())))
    }

    /// `FILE:LINE: listen`, of the table of a listener.
    pub(super) fn place(&self, steps: &[Step<'_>]) -> String {
        let line = self.span(steps).and_then(|span| self.line(span));
        let line = line.map_or(0, |line| line + 1);
        format!("{}:{line}: listen", self.path.display())
    }

    /// `FILE:LINE: KEY: what`, of the value that `steps` lead to.
    pub(super) fn error(&self, steps: &[Step<'_>], what: &str) -> ConfigError {
        self.error_in(self.span(steps), what)
    }

    fn error_in(&self, span: Option<Range<usize>>, what: &str) -> ConfigError {
        let file = self.path.display();
        let Some(line) = span.and_then(|span| self.line(span)) else {
            return ConfigError(format!("{file}: {what}"));
        };
        let key = match self.key(line) {
            Some(key) => format!("{key}: "),
            None => String::new(),
        };
        ConfigError(format!("{file}:{}: {key}{}", line + 1, what.trim_end()))
    }

    /// The number of the line in which `span` begins, from 0.
    fn line(&self, span: Range<usize>) -> Option<usize> {
        let before = self.text.get(..span.start)?;
        Some(before.matches('\n').count())
    }

    /// Where the value lies that `steps` lead to.
    fn span(&self, steps: &[Step<'_>]) -> Option<Range<usize>> {
        let table = DeTable::parse(&self.text).ok()?;
        let (first, rest) = steps.split_first()?;
        let mut value = match first {
            Step::Key(key) => table.get_ref().get(*key)?,
            Step::At(_) => return None,
        };
        for step in rest {
            value = match (step, value.get_ref()) {
                (Step::Key(key), DeValue::Table(table)) => table.get(*key)?,
                (Step::At(at), DeValue::Array(list)) => list.get(*at)?,
                _ => return None,
            };
        }
        Some(value.span())
    }

    /// The key that is set in `line` or before it, with the table it is in.
    fn key(&self, line: usize) -> Option<String> {
        let mut key = None;
        let lines: Vec<&str> = self.text.lines().take(line + 1).collect();
        for text in lines.iter().rev().map(|text| text.trim()) {
            if let Some(table) = text.strip_prefix('[').filter(|_| !text.contains('=')) {
                let table = table.split(']').next()?.trim_start_matches('[');
                return Some(key.map_or(table.to_owned(), |key| format!("{table}.{key}")));
            }
            if key.is_none()
                && let Some((left, _)) = text.split_once('=')
                && !left.trim().starts_with(['{', '#', '"'])
            {
                key = Some(left.trim());
            }
        }
        key.map(str::to_owned)
    }
}

/// Adds the nearest known name to ``unknown field `x`, expected one of `y`, `z` ``.
fn with_suggestion(message: &str) -> String {
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let (Some((wrong, known)), true) = (
        names.split_first(),
        message.starts_with("unknown field") || message.starts_with("unknown variant"),
    ) else {
        return message.to_owned();
    };
    let nearest = known
        .iter()
        .map(|name| (strsim::jaro_winkler(wrong, name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((likeness, name)) if likeness > 0.8 => {
            format!("there is no `{wrong}` here: did you mean `{name}`?")
        }
        _ => format!(
            "there is no `{wrong}` here: use one of {}",
            known.join(", ")
        ),
    }
}
