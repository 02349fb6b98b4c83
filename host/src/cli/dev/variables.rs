//! The environment variables that an app is given in `dev`: those of the file `.env` beside the
//! crate, of `[dev] env`, and of `--env`, each before the ones that came earlier.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::origin::origin;

/// The name of the file beside the crate.
const FILE: &str = ".env";

/// `--env NAME=VALUE`, or `--env NAME` for a variable of one's own environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Variable {
    name: String,
    value: Option<String>,
}

impl FromStr for Variable {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if name.is_empty() || text.contains('\0') {
            return Err("write NAME=VALUE, or NAME for a variable of your own environment");
        }
        Ok(Self {
            name: name.to_owned(),
            value,
        })
    }
}

/// Where the file of variables of a crate in `folder` is, if there is one.
pub(super) fn file_in(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

/// Returns what the app is given. What `dev` was started with goes before the file `.env` in
/// `folder`, as such files are read everywhere.
///
/// # Errors
/// The sentence for a person about a file that cannot be understood, or a variable that is not set.
pub(super) fn given(
    folder: &Path,
    configured: &BTreeMap<String, String>,
    asked: &[Variable],
) -> Result<BTreeMap<String, String>, String> {
    let mut given = read(&file_in(folder))?;
    for (name, value) in &mut given {
        if let Some(own) = origin().text(name) {
            *value = own;
        }
    }
    given.extend(configured.clone());
    for Variable { name, value } in asked {
        let value = match value {
            Some(value) => value.clone(),
            None => origin().text(name).ok_or_else(|| {
                format!(
                    "--env {name}: this variable is not set: set it, or write --env {name}=VALUE"
                )
            })?,
        };
        given.insert(name.clone(), value);
    }
    Ok(given)
}

fn read(file: &Path) -> Result<BTreeMap<String, String>, String> {
    let text = match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        text => text.map_err(|error| format!("{}: {error}", file.display()))?,
    };
    dotenvy::from_read_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| match error {
            // Its text is left out: it may be a password.
            dotenvy::Error::LineParse(line, _) => {
                // What is told is the line, or its end from the value on.
                let mut lines = text.lines();
                let number = lines.position(|one| one.trim_end().ends_with(line.trim()));
                format!(
                    "{}:{}: this line is no NAME=VALUE: put a value with spaces or `#` into quotes",
                    file.display(),
                    number.map_or(0, |number| number + 1)
                )
            }
            error => format!("{}: {error}", file.display()),
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn the_command_line_goes_before_the_configuration_and_that_before_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let text = "# of the shop\nSHOP_A=file\nexport SHOP_B='of the file'\nSHOP_C=\"file\"\n";
        fs::write(folder.path().join(".env"), text).unwrap();
        let configured = [("SHOP_A", "configured"), ("SHOP_C", "configured")];
        let configured = configured
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        let asked = ["SHOP_C=a=b".parse().unwrap(), "SHOP_D=".parse().unwrap()];
        let given = given(folder.path(), &configured, &asked).unwrap();
        let given: Vec<_> = given
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(
            given,
            [
                ("SHOP_A", "configured"),
                ("SHOP_B", "of the file"),
                ("SHOP_C", "a=b"),
                ("SHOP_D", "")
            ]
        );
    }

    #[test]
    fn a_line_that_is_not_understood_is_named_without_its_text() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(
            folder.path().join(".env"),
            "SHOP_A=1\n\nSHOP_KEY=very secret\n",
        )
        .unwrap();
        let error = given(folder.path(), &BTreeMap::new(), &[]).unwrap_err();
        assert!(
            error.contains(".env:3: ") && !error.contains("secret"),
            "{error}"
        );
        let unset = "SHOP_IS_NOT_SET".parse().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let error = given(elsewhere.path(), &BTreeMap::new(), &[unset]).unwrap_err();
        assert!(error.contains("SHOP_IS_NOT_SET=VALUE"), "{error}");
    }
}
