//! `new`: a plugin crate to begin with, that builds, serves and passes its own test.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    args::{Global, New},
    exit::{Failure, USAGE},
    output,
};
use handover_api::AppName;

/// The version of the SDK that a new crate depends on, without a checkout.
const SDK_VERSION: &str = "1.4";

/// Names that cargo or rustc has taken: of Rust itself, and of the crates that the new one depends
/// on.
const TAKEN: [&str; 60] = [
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "axum",
    "become",
    "box",
    "break",
    "build",
    "const",
    "continue",
    "core",
    "crate",
    "deps",
    "do",
    "dyn",
    "else",
    "enum",
    "examples",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "handover-plugin",
    "if",
    "impl",
    "in",
    "incremental",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "proc-macro",
    "proc_macro",
    "pub",
    "ref",
    "return",
    "self",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "tokio",
    "tower",
    "trait",
    "true",
    "try",
    "type",
    "unsafe",
    "where",
    "while",
];

/// `handover new`
pub(super) fn new(global: &Global, args: &New) -> Result<(), Failure> {
    let name = name(&args.path).map_err(|reason| Failure::with_code(USAGE, reason))?;
    let failed = |error: &io::Error| {
        Failure::new(format!("{} cannot be made: {error}", args.path.display()))
    };
    match fs::read_dir(&args.path) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(Failure::new(format!(
                    "{} is there and not empty: choose another name, or an empty folder",
                    args.path.display()
                )));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(&error)),
    }
    for folder in ["src", "tests"] {
        fs::create_dir_all(args.path.join(folder)).map_err(|error| failed(&error))?;
    }
    for (file, text) in files(&name, sdk().as_deref()) {
        fs::write(args.path.join(file), text).map_err(|error| failed(&error))?;
    }
    if global.json {
        output::line(&serde_json::json!({ "app": name, "path": args.path }).to_string());
    } else {
        output::line(&next_steps(&name, &args.path));
    }
    Ok(())
}

/// The name of the crate and the app: the last part of the path.
fn name(path: &Path) -> Result<AppName, String> {
    let last = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let name: AppName = last
        .parse()
        .map_err(|error: handover_api::InvalidAppName| error.to_string())?;
    if !name
        .as_str()
        .starts_with(|first: char| first.is_ascii_lowercase())
    {
        return Err(format!("`{name}` cannot name a crate: begin with a letter"));
    }
    if TAKEN.contains(&name.as_str()) {
        return Err(format!(
            "`{name}` cannot name a crate: Rust or a dependency has taken it, so choose another"
        ));
    }
    Ok(name)
}

/// The SDK in the checkout that this binary was built from, while there is one.
fn sdk() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../plugin-api")
        .canonicalize()
        .ok()?;
    folder.join("Cargo.toml").is_file().then_some(folder)
}

/// The dependency on the SDK as a line of a section `[dependencies.handover-plugin]`.
pub(super) fn dependency_line() -> String {
    match sdk() {
        Some(folder) => format!("path = {:?}", folder.to_string_lossy()),
        None => format!("version = {:?}", SDK_VERSION),
    }
}

/// The value of the dependency on the SDK in a `Cargo.toml`, with these features more.
fn dependency_on(sdk: Option<&Path>, features: &[&str]) -> String {
    let source = match sdk {
        // A basic TOML string takes the same escapes as this debug form, for what a path can hold.
        Some(folder) => format!("path = {:?}", folder.to_string_lossy()),
        None if features.is_empty() => return format!("{SDK_VERSION:?}"),
        None => format!("version = {SDK_VERSION:?}"),
    };
    match features {
        [] => format!("{{ {source} }}"),
        features => format!("{{ {source}, features = {features:?} }}"),
    }
}

fn files(name: &AppName, sdk: Option<&Path>) -> [(&'static str, String); 5] {
    let fill = |template: &str| {
        template
            .replace("{{name}}", name.as_str())
            .replace("{{library}}", &name.as_str().replace('-', "_"))
            .replace("{{sdk}}", &dependency_on(sdk, &[]))
            .replace("{{sdk_for_tests}}", &dependency_on(sdk, &["testing"]))
    };
    [
        ("Cargo.toml", fill(include_str!("template/Cargo.toml.in"))),
        ("src/lib.rs", fill(include_str!("template/lib.rs.in"))),
        ("tests/swap.rs", fill(include_str!("template/swap.rs.in"))),
        ("README.md", fill(include_str!("template/README.md.in"))),
        (".gitignore", "/target\n".to_owned()),
    ]
}

fn next_steps(name: &AppName, path: &Path) -> String {
    format!(
        "made the plugin crate {name} in {path}

  handover dev {path}      serve it at http://127.0.0.1:8080, swap on each change
  cd {path} && cargo test  its tests",
        path = path.display()
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn make(path: &Path) -> Result<(), Failure> {
        new(
            &Global {
                control: None,
                host: None,
                json: true,
                no_color: true,
            },
            &New {
                path: path.to_owned(),
            },
        )
    }

    #[test]
    fn names_that_cannot_be_a_crate_and_an_app_are_refused() {
        for bad in [
            "", "..", "Shop", "1shop", "my shop", "fn", "axum", "-x", "ünder",
        ] {
            assert!(name(Path::new(bad)).is_err(), "{bad}");
        }
        for good in ["shop", "services/my-shop", "./a_2"] {
            assert!(name(Path::new(good)).is_ok(), "{good}");
        }
    }

    #[test]
    fn a_folder_with_something_in_it_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shop");
        fs::create_dir(&path).unwrap();
        make(&path).unwrap();
        let error = make(&path).unwrap_err();
        assert!(format!("{error:?}").contains("is there and not empty"));
    }

    #[test]
    fn the_manifest_is_sound_with_the_checkout_and_without() {
        let name: AppName = "my-shop".parse().unwrap();
        for sdk in [Some(Path::new("/a \"quoted\" path")), None] {
            let [(_, manifest), (_, source), ..] = files(&name, sdk);
            let manifest: toml::Table = manifest.parse().unwrap();
            assert_eq!(manifest["package"]["name"].as_str(), Some("my-shop"));
            assert!(
                manifest.contains_key("workspace"),
                "it builds inside any folder"
            );
            let dependency = &manifest["dependencies"]["handover-plugin"];
            match sdk {
                Some(path) => assert_eq!(dependency["path"].as_str(), path.to_str()),
                None => assert_eq!(dependency.as_str(), Some(SDK_VERSION)),
            }
            let for_tests = &manifest["dev-dependencies"]["handover-plugin"];
            assert_eq!(for_tests["features"][0].as_str(), Some("testing"));
            assert!(!source.contains("{{"), "{source}");
        }
    }
}
