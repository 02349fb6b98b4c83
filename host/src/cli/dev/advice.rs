//! What makes an ordinary crate a plugin, as text that works when it is pasted.

use std::path::{Path, PathBuf};

use super::super::new;

/// A crate that is no plugin, as far as this matters.
#[derive(Clone, Debug)]
pub(super) struct Ordinary {
    /// Its name.
    pub(super) name: String,
    /// Its `Cargo.toml`.
    pub(super) manifest: PathBuf,
    /// Whether it has a library.
    pub(super) has_library: bool,
    /// The source of its program, if it has one.
    pub(super) program: Option<PathBuf>,
    /// Whether another package of the workspace depends on it.
    pub(super) is_used: bool,
    /// Whether it depends on the SDK.
    pub(super) has_sdk: bool,
    /// Whether it depends on axum.
    pub(super) has_axum: bool,
}

impl Ordinary {
    /// What to do. `manifest` is the text of its `Cargo.toml`.
    pub(super) fn advice(&self, manifest: &str) -> String {
        let file = self.manifest.display();
        let name = &self.name;
        let sdk = if self.has_sdk {
            String::new()
        } else {
            format!("\n{}\n", self.sdk())
        };
        let folder = self.manifest.parent().unwrap_or(Path::new(""));
        match &self.program {
            Some(program) if !self.has_library => {
                let source = program.strip_prefix(folder).unwrap_or(program).display();
                format!(
                    "{name} is a program, and no plugin yet: a host loads a cdylib. One file can be both. Add this to {file}:\n\n\
                     [lib]\npath = {:?}\ncrate-type = [\"cdylib\"]\n{sdk}\n\
                     and write two things in {source} otherwise:\n\n\
                     #[handover_plugin::main]                  instead of #[tokio::main]\n\
                     handover_plugin::serve(listener, app)     instead of axum::serve(listener, app)",
                    source.to_string()
                )
            }
            program => {
                let types = if program.is_some() || self.is_used {
                    "crate-type = [\"cdylib\", \"rlib\"]"
                } else {
                    "crate-type = [\"cdylib\"]"
                };
                let both = if program.is_some() || self.is_used {
                    " (rlib, since the program or another package uses the library as well)"
                } else {
                    ""
                };
                let (how, lines) = if has_section(manifest, "lib") {
                    (
                        format!("In {file}, have this line in the section [lib]{both}:"),
                        format!("{types}\n"),
                    )
                } else {
                    (
                        format!("Add this to {file}{both}:"),
                        format!("[lib]\n{types}\n"),
                    )
                };
                let more = if sdk.is_empty() {
                    String::new()
                } else if has_section(manifest, "lib") {
                    format!("\nand add this to it:\n{sdk}")
                } else {
                    sdk
                };
                format!(
                    "{name} is not a plugin yet: a host loads a cdylib. {how}\n\n{lines}{more}\n\
                     and mark the function that makes the app with #[handover_plugin::app]; `handover new NAME` makes an example"
                )
            }
        }
    }

    /// The dependency on the SDK, in a section of its own: it may stand anywhere in the file.
    fn sdk(&self) -> String {
        let features = if self.has_axum && !self.has_library {
            "\nfeatures = [\"axum\"]"
        } else {
            ""
        };
        format!(
            "[dependencies.handover-plugin]\n{}{features}",
            new::dependency_line()
        )
    }
}

/// Whether a `Cargo.toml` has a section of this name.
fn has_section(manifest: &str, name: &str) -> bool {
    manifest
        .parse::<toml::Table>()
        .is_ok_and(|table| table.contains_key(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordinary() -> Ordinary {
        Ordinary {
            name: "shop".to_owned(),
            manifest: "/w/shop/Cargo.toml".into(),
            has_library: true,
            program: None,
            is_used: false,
            has_sdk: true,
            has_axum: true,
        }
    }

    #[test]
    fn the_types_of_a_library_are_those_that_it_needs() {
        let alone = ordinary().advice("");
        assert!(
            alone.contains("[lib]\ncrate-type = [\"cdylib\"]\n"),
            "{alone}"
        );
        let used = Ordinary {
            is_used: true,
            ..ordinary()
        };
        let used = used.advice("[lib]\nname = \"x\"\n");
        assert!(
            used.contains("in the section [lib]") && used.contains("[\"cdylib\", \"rlib\"]"),
            "{used}"
        );
        assert!(!used.contains("[dependencies.handover-plugin]"), "{used}");
    }
}
