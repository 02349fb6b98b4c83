//! The file beside a dropped artifact that says how it is to be deployed: `shop.toml` beside
//! `shop.so`.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use handover_api::{Label, Percent, Steps, query};
use serde::Deserialize;

use crate::{clock::millis, shown, values};

/// The largest that is read.
const LARGEST: u64 = 64 << 10;

/// Everything that can be said there, as `handover deploy` takes it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Sidecar {
    label: Option<Label>,
    #[serde(with = "values::limit")]
    ttl: Option<Duration>,
    canary: Option<Percent>,
    shadow: Option<Percent>,
    steps: Option<Steps>,
    #[serde(with = "values::limit")]
    bake: Option<Duration>,
    sticky: Option<String>,
    orphan_jobs: bool,
    by: Option<String>,
    message: Option<String>,
}

/// Returns where the sidecar of the artifact at `path` lies, if it has one.
pub(super) fn beside(path: &Path) -> PathBuf {
    path.with_extension("toml")
}

/// Reads what lies beside the artifact at `path`: nothing is what a plain deploy is. Blocks.
///
/// # Errors
/// The sentence for a person: what is wrong with it, and where.
pub(super) fn read(path: &Path) -> Result<query::Deploy, String> {
    let file = beside(path);
    let wrong = |why: &dyn std::fmt::Display| format!("its {}: {why}", shown::path(&file));
    let text = match text(&file) {
        Ok(text) => text,
        // A name of which there can be no file is that of none.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename
            ) =>
        {
            return Ok(query::Deploy::default());
        }
        Err(error) => return Err(wrong(&error)),
    };
    let Sidecar {
        label,
        ttl,
        canary,
        shadow,
        steps,
        bake,
        sticky,
        orphan_jobs,
        by,
        message,
    } = toml::from_str(&text).map_err(|error| wrong(&error.to_string().trim()))?;
    let canary = match canary {
        Some(first) => Some(Steps::beginning_with(first, steps).map_err(|error| wrong(&error))?),
        None if steps.is_some() || bake.is_some() || sticky.is_some() => {
            return Err(wrong(
                &"steps, bake and sticky are of a canary: add e.g. canary = \"5%\"",
            ));
        }
        None => None,
    };
    if ttl.is_some() && label.is_none() && shadow.is_none() {
        return Err(wrong(
            &"ttl is of a label or a shadow: add e.g. label = \"next\"",
        ));
    }
    Ok(query::Deploy {
        label,
        ttl_ms: ttl.map(millis),
        canary,
        shadow,
        bake_ms: bake.map(millis),
        sticky,
        orphan_jobs,
        by,
        message,
        ..query::Deploy::default()
    })
}

fn text(path: &Path) -> io::Result<String> {
    // Before it is opened: a pipe would not let go.
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut text = String::new();
    File::open(path)?
        .take(LARGEST + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST {
        return Err(io::Error::other("it is larger than 64 KiB"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    fn read_of(text: &str) -> Result<query::Deploy, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("shop.toml"), text).unwrap();
        read(&dir.path().join("shop.so"))
    }

    #[test]
    fn it_says_what_a_deploy_can_be_told() {
        let asked =
            read_of("canary = \"5%\"\nsteps = \"5%,50%\"\nbake = \"2m\"\nmessage = \"new prices\"")
                .unwrap();
        assert_eq!(asked.canary.unwrap().to_string(), "5%,50%");
        assert_eq!(asked.bake_ms, Some(120_000));
        assert_eq!(asked.message.unwrap(), "new prices");
        let asked = read_of("label = \"fix-12\"\nttl = \"2d\"").unwrap();
        assert_eq!(asked.label.unwrap().as_str(), "fix-12");
        assert_eq!(asked.ttl_ms, Some(2 * 86_400_000));
    }

    #[test]
    fn none_is_a_plain_deploy() {
        let dir = tempfile::tempdir().unwrap();
        let asked = read(&dir.path().join("shop.so")).unwrap();
        assert!(asked.label.is_none() && asked.canary.is_none() && asked.message.is_none());
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (text, part) in [
            ("label = \"a\"\ncanarry = \"5%\"", "line 2"),
            ("canary = \"500%\"", "no share of the requests"),
            ("steps = \"5%\"", "add e.g. canary"),
            ("canary = \"5%\"\nsteps = \"10%,50%\"", "must begin with"),
            ("ttl = \"1h\"", "add e.g. label"),
            ("label", "line 1"),
        ] {
            let error = read_of(text).unwrap_err();
            assert!(
                error.contains("shop.toml") && error.contains(part),
                "{error}"
            );
        }
    }
}
