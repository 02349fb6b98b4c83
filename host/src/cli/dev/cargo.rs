//! The crate as cargo describes it, and its builds: a child process in a group of its own, which
//! ends when nobody waits for it.

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsString,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::ChildStderr,
};

use super::advice::Ordinary;

/// What `cargo run` sets for the program that it runs. Inherited, it would tell the build of a
/// plugin about the package of the host, and change from run to run.
const OF_CARGO_RUN: [&str; 9] = [
    "CARGO",
    "CARGO_BIN_",
    "CARGO_CFG_",
    "CARGO_CRATE_NAME",
    "CARGO_FEATURE_",
    "CARGO_MANIFEST_",
    "CARGO_PKG_",
    "CARGO_PRIMARY_PACKAGE",
    "OUT_DIR",
];

/// How long the last words of a cargo that has ended are waited for.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How much is remembered of what cargo says, in bytes.
const LONGEST_SAID: usize = 64 * 1024;

/// What to build.
#[derive(Debug)]
pub(in crate::cli) struct Project {
    /// Where cargo is called.
    pub(in crate::cli) folder: PathBuf,
    /// With optimisations.
    pub(in crate::cli) release: bool,
    /// As cargo takes them.
    pub(in crate::cli) features: Vec<String>,
    /// The package, where the folder has several.
    pub(in crate::cli) package: Option<String>,
    /// Whether compile errors are coloured.
    pub(in crate::cli) colour: bool,
    /// The columns of the terminal, if there is one.
    pub(in crate::cli) width: Option<usize>,
}

/// What cargo says of the crate.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Crate {
    /// The package's name.
    pub(in crate::cli) name: String,
    /// Its folder.
    pub(in crate::cli) folder: PathBuf,
    /// Its folder, and those of the packages in the same workspace that it depends on by path.
    pub(in crate::cli) folders: BTreeSet<PathBuf>,
    /// The target folder.
    pub(in crate::cli) target: PathBuf,
    /// Whether one of those packages has a build script, which may read anything.
    pub(in crate::cli) has_build_script: bool,
    id: String,
    /// What it is as long as it is no plugin.
    ordinary: Option<Ordinary>,
}

/// How a build ended.
#[derive(Debug)]
pub(in crate::cli) enum Build {
    /// The library.
    Artifact(PathBuf),
    /// It does not compile; what cargo has said of it, without colour.
    Failed(String),
    /// It compiles, to something else than a plugin.
    NoPlugin,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    target_directory: PathBuf,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    manifest_path: PathBuf,
    targets: Vec<Target>,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Target {
    #[serde(default)]
    kind: Vec<String>,
    crate_types: Vec<String>,
    #[serde(default)]
    src_path: PathBuf,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    path: Option<PathBuf>,
}

impl Target {
    fn is_plugin(&self) -> bool {
        self.crate_types.iter().any(|kind| kind == "cdylib")
    }

    fn is_build_script(&self) -> bool {
        self.kind.iter().any(|kind| kind == "custom-build")
    }

    fn is_program(&self) -> bool {
        self.kind.iter().any(|kind| kind == "bin")
    }

    fn is_library(&self) -> bool {
        let kinds = ["lib", "rlib", "dylib", "cdylib", "staticlib"];
        self.kind.iter().any(|kind| kinds.contains(&kind.as_str()))
    }
}

impl Package {
    fn folder(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(&self.manifest_path)
    }

    fn is_plugin(&self) -> bool {
        self.targets.iter().any(Target::is_plugin)
    }

    fn depends_on(&self, name: &str) -> bool {
        self.dependencies
            .iter()
            .any(|dependency| dependency.name == name)
    }

    /// What it is as long as it is no plugin.
    fn ordinary(&self, others: &[Self]) -> Option<Ordinary> {
        if self.is_plugin() {
            return None;
        }
        let mut programs = self.targets.iter().filter(|target| target.is_program());
        Some(Ordinary {
            name: self.name.clone(),
            manifest: self.manifest_path.clone(),
            has_library: self.targets.iter().any(Target::is_library),
            program: programs.next().map(|program| program.src_path.clone()),
            is_used: others.iter().any(|other| other.depends_on(&self.name)),
            has_sdk: self.depends_on("handover-plugin"),
            has_axum: self.depends_on("axum"),
        })
    }
}

/// One line of cargo's output.
#[derive(Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
enum Message {
    CompilerArtifact {
        package_id: String,
        target: Target,
        filenames: Vec<PathBuf>,
    },
    #[serde(other)]
    Other,
}

impl Project {
    /// Asks cargo what the crate is. Blocks. The error is a sentence that says what to do.
    pub(in crate::cli) fn read(&self) -> Result<Crate, String> {
        let manifest = self.folder.join("Cargo.toml");
        if !manifest.is_file() {
            return Err(format!(
                "{} is not a crate: there is no Cargo.toml in it; name the folder of a plugin crate, or make one with `handover new NAME`",
                self.folder.display()
            ));
        }
        let folder = fs::canonicalize(&self.folder)
            .map_err(|error| format!("{}: {error}", self.folder.display()))?;
        let mut command = std::process::Command::new(cargo());
        clean(|name| {
            command.env_remove(name);
        });
        let output = command
            .args(["metadata", "--format-version=1", "--no-deps"])
            .current_dir(&folder)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| no_cargo(&error))?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(format!(
                "cargo does not understand {}:\n{reason}",
                self.folder.display()
            ));
        }
        let metadata = serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("what `cargo metadata` says is not understood: {error}"))?;
        choose(&metadata, &folder, self.package.as_deref())
    }

    /// Builds. Errors and warnings go to standard error as cargo shows them; `quiet` leaves out the
    /// rest.
    ///
    /// Cancelling it ends cargo and all its compilers.
    pub(in crate::cli) async fn build(&self, krate: &Crate, quiet: bool) -> Result<Build, String> {
        let mut command = tokio::process::Command::new(cargo());
        clean(|name| {
            command.env_remove(name);
        });
        command
            .args(self.arguments(krate, quiet))
            .current_dir(&krate.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        // Its standard error is passed on, so cargo does not see the terminal.
        if !quiet && let Some(width) = self.width {
            command
                .env("CARGO_TERM_PROGRESS_WHEN", "always")
                .env("CARGO_TERM_PROGRESS_WIDTH", width.to_string());
        }
        let mut child = command.spawn().map_err(|error| no_cargo(&error))?;
        let mut group = Group(
            child
                .id()
                .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)),
        );
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err("cargo has no output".to_owned());
        };
        // Ends when nobody writes there any more, which a process that a build script left may.
        let said = Arc::<Mutex<Said>>::default();
        let passing = tokio::spawn(pass_on(stderr, Arc::clone(&said)));
        let mut lines = BufReader::new(stdout).lines();
        let mut artifact = None;
        while let Some(line) = lines
            .next_line()
            .await
            .map_err(|error| format!("cargo cannot be read: {error}"))?
        {
            artifact = plugin_in(&line, &krate.id).or(artifact);
        }
        let status = child
            .wait()
            .await
            .map_err(|error| format!("cargo cannot be waited for: {error}"))?;
        group.0 = None;
        let _ = tokio::time::timeout(LAST_WORDS, passing).await;
        Ok(match artifact {
            _ if !status.success() => Build::Failed(said.lock().errors()),
            Some(artifact) => Build::Artifact(artifact),
            None => Build::NoPlugin,
        })
    }

    fn arguments(&self, krate: &Crate, quiet: bool) -> Vec<OsString> {
        let mut arguments: Vec<OsString> =
            ["build", "--lib", "--message-format=json-render-diagnostics"]
                .map(Into::into)
                .into();
        arguments.extend(["--package".into(), krate.name.as_str().into()]);
        arguments.push(
            if self.colour {
                "--color=always"
            } else {
                "--color=never"
            }
            .into(),
        );
        if quiet {
            arguments.push("--quiet".into());
        }
        if self.release {
            arguments.push("--release".into());
        }
        for features in &self.features {
            arguments.extend(["--features".into(), features.into()]);
        }
        arguments
    }
}

impl Crate {
    /// Says what to add to a crate that is no plugin.
    pub(in crate::cli) fn check_is_plugin(&self) -> Result<(), String> {
        let Some(ordinary) = &self.ordinary else {
            return Ok(());
        };
        // One that cannot be read is one that cargo has just read.
        let manifest = fs::read_to_string(&ordinary.manifest).unwrap_or_default();
        Err(ordinary.advice(&manifest))
    }
}

/// The package that is meant, and what it is built from.
fn choose(metadata: &Metadata, folder: &Path, package: Option<&str>) -> Result<Crate, String> {
    let names = || {
        metadata
            .packages
            .iter()
            .map(|package| package.name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let chosen = match package {
        Some(name) => metadata
            .packages
            .iter()
            .find(|package| package.name == name)
            .ok_or_else(|| {
                format!(
                    "there is no package `{name}`: the workspace has {}",
                    names()
                )
            })?,
        None => match metadata
            .packages
            .iter()
            .find(|package| package.folder() == folder)
        {
            Some(package) => package,
            None => {
                let mut plugins = metadata
                    .packages
                    .iter()
                    .filter(|package| package.is_plugin());
                match (plugins.next(), plugins.next()) {
                    (Some(plugin), None) => plugin,
                    _ => {
                        return Err(format!(
                            "{} is a workspace of several packages: name one of {} with --package",
                            folder.display(),
                            names()
                        ));
                    }
                }
            }
        },
    };
    let by_folder: HashMap<_, _> = metadata
        .packages
        .iter()
        .map(|package| (package.folder(), package))
        .collect();
    let mut folders = BTreeSet::new();
    let mut has_build_script = false;
    let mut to_visit = vec![chosen.folder().to_owned()];
    while let Some(folder) = to_visit.pop() {
        if !folders.insert(folder.clone()) {
            continue;
        }
        // Of a package outside of the workspace only the folder is known here; the build tells its
        // files.
        if let Some(package) = by_folder.get(folder.as_path()) {
            has_build_script |= package.targets.iter().any(Target::is_build_script);
            to_visit.extend(
                package
                    .dependencies
                    .iter()
                    .filter_map(|dependency| dependency.path.clone()),
            );
        }
    }
    Ok(Crate {
        name: chosen.name.clone(),
        folder: chosen.folder().to_owned(),
        folders,
        target: metadata.target_directory.clone(),
        has_build_script,
        id: chosen.id.clone(),
        ordinary: chosen.ordinary(&metadata.packages),
    })
}

/// What cargo has said on standard error: the end of it, if it is long.
#[derive(Debug, Default)]
struct Said(Vec<u8>);

impl Said {
    fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let beyond = self.0.len().saturating_sub(LONGEST_SAID);
        self.0.drain(..beyond);
    }

    /// As text without colour and without what was drawn over.
    fn errors(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let lines = text.lines().filter_map(|line| {
            let left = line
                .trim_end_matches('\r')
                .rsplit('\r')
                .next()
                .unwrap_or_default();
            let left = without_escapes(left);
            let is_status = ["Compiling", "Building", "Blocking", "Checking", "Finished"]
                .iter()
                .any(|word| left.trim_start().starts_with(word) && left.starts_with("   "));
            (!is_status).then_some(left)
        });
        lines.collect::<Vec<_>>().join("\n").trim().to_owned()
    }
}

/// `text` without the sequences that colour it or move the cursor.
fn without_escapes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        out.push_str(before);
        let end = after.find(|c: char| c.is_ascii_alphabetic());
        rest = end.map_or("", |end| &after[end + 1..]);
    }
    out.push_str(rest);
    out
}

/// Writes what comes to standard error, and remembers it.
async fn pass_on(mut from: ChildStderr, said: Arc<Mutex<Said>>) {
    let mut bytes = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        let _ = std::io::stderr().write_all(&bytes[..read]);
        said.lock().add(&bytes[..read]);
    }
}

/// The library of `package`, if this line of cargo's output tells of it.
fn plugin_in(line: &str, package: &str) -> Option<PathBuf> {
    match serde_json::from_str(line) {
        Ok(Message::CompilerArtifact {
            package_id,
            target,
            filenames,
        }) if package_id == package && target.is_plugin() => filenames
            .into_iter()
            .find(|file| file.extension().is_some_and(|extension| extension == "so")),
        _ => None,
    }
}

/// The files that `artifact` was built from, as cargo's dep-info file beside it says. None when
/// there is none.
pub(in crate::cli) fn sources_of(artifact: &Path) -> Vec<PathBuf> {
    fs::read_to_string(artifact.with_extension("d"))
        .map(|text| dep_info(&text))
        .unwrap_or_default()
}

/// `target: file file …`, where a space in a name is written `\ `.
fn dep_info(text: &str) -> Vec<PathBuf> {
    let Some((_, files)) = text.lines().find_map(|line| line.split_once(": ")) else {
        return Vec::new();
    };
    files
        .replace("\\ ", "\0")
        .split_ascii_whitespace()
        .map(|file| PathBuf::from(file.replace('\0', " ")))
        .collect()
}

fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn no_cargo(error: &std::io::Error) -> String {
    format!(
        "cargo cannot be run ({error}): install Rust, or name cargo in the environment variable CARGO"
    )
}

/// Names what the child must not inherit.
fn clean(mut remove: impl FnMut(&OsString)) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(of_cargo_run) {
            remove(&name);
        }
    }
}

fn of_cargo_run(name: &str) -> bool {
    OF_CARGO_RUN.iter().any(|known| {
        if known.ends_with('_') {
            name.starts_with(known)
        } else {
            name == *known
        }
    })
}

/// Cargo and its compilers, which end with this value.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // Whatever is left of them has ended by itself.
            let _ = rustix::process::kill_process_group(leader, Signal::TERM);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn metadata() -> Metadata {
        serde_json::from_str(
            r#"{"packages":[
              {"id":"path+file:///w/shop#1.0.0","name":"shop","manifest_path":"/w/shop/Cargo.toml",
               "targets":[{"crate_types":["cdylib"]}],
               "dependencies":[{"name":"axum"},{"name":"common","path":"/w/common"},{"name":"far","path":"/elsewhere/far"}]},
              {"id":"path+file:///w/common#1.0.0","name":"common","manifest_path":"/w/common/Cargo.toml",
               "targets":[{"crate_types":["lib"]}],"dependencies":[{"name":"deep","path":"/w/deep"}]},
              {"id":"path+file:///w/deep#1.0.0","name":"deep","manifest_path":"/w/deep/Cargo.toml",
               "targets":[{"crate_types":["lib"]}],"dependencies":[{"name":"common","path":"/w/common"}]},
              {"id":"path+file:///w/other#1.0.0","name":"other","manifest_path":"/w/other/Cargo.toml",
               "targets":[{"kind":["bin"],"crate_types":["bin"],"src_path":"/w/other/src/main.rs"}],"dependencies":[]}],
             "target_directory":"/w/target"}"#,
        )
        .unwrap()
    }

    #[test]
    fn what_a_crate_depends_on_by_path_is_part_of_its_source() {
        let chosen = choose(&metadata(), Path::new("/w/shop"), None).unwrap();
        let folders: Vec<_> = chosen
            .folders
            .iter()
            .map(|folder| folder.to_str().unwrap())
            .collect();
        assert_eq!(
            folders,
            ["/elsewhere/far", "/w/common", "/w/deep", "/w/shop"]
        );
        assert_eq!(chosen.target, Path::new("/w/target"));
    }

    #[test]
    fn a_workspace_with_one_plugin_needs_no_name() {
        assert_eq!(
            choose(&metadata(), Path::new("/w"), None).unwrap().name,
            "shop"
        );
        assert_eq!(
            choose(&metadata(), Path::new("/w"), Some("other"))
                .unwrap()
                .name,
            "other"
        );
        let error = choose(&metadata(), Path::new("/w"), Some("no")).unwrap_err();
        assert_eq!(
            error,
            "there is no package `no`: the workspace has shop, common, deep, other"
        );
    }

    #[test]
    fn a_crate_that_is_no_plugin_is_told_what_to_add() {
        let other = choose(&metadata(), Path::new("/w/other"), None).unwrap();
        assert!(
            other
                .check_is_plugin()
                .unwrap_err()
                .contains("crate-type = [\"cdylib\"]")
        );
    }

    #[test]
    fn the_library_is_found_among_what_cargo_says() {
        let line = |id: &str, kind: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"{id}","target":{{"crate_types":["{kind}"],"name":"shop"}},
                "filenames":["/t/libshop.rlib","/t/libshop.so"],"fresh":false}}"#
            )
        };
        assert_eq!(
            plugin_in(&line("a", "cdylib"), "a"),
            Some("/t/libshop.so".into())
        );
        assert_eq!(plugin_in(&line("b", "cdylib"), "a"), None);
        assert_eq!(plugin_in(&line("a", "lib"), "a"), None);
        assert_eq!(
            plugin_in(r#"{"reason":"build-finished","success":true}"#, "a"),
            None
        );
        assert_eq!(plugin_in("a build script's own line", "a"), None);
    }

    /// A crate of its own, without dependencies, whose source is `source`.
    fn project(folder: &Path, source: &str) -> Project {
        let manifest = "[package]\nname = \"handover-dev-test\"\nedition = \"2024\"\n[lib]\ncrate-type = [\"cdylib\"]\n[workspace]\n";
        fs::create_dir(folder.join("src")).unwrap();
        fs::write(folder.join("Cargo.toml"), manifest).unwrap();
        fs::write(folder.join("src/lib.rs"), source).unwrap();
        Project {
            folder: folder.to_owned(),
            release: false,
            features: Vec::new(),
            package: None,
            colour: false,
            width: None,
        }
    }

    #[tokio::test]
    async fn a_crate_is_built_and_broken_source_is_a_failed_build() {
        let folder = tempfile::tempdir().unwrap();
        let project = project(
            folder.path(),
            "#[unsafe(no_mangle)]\npub extern \"C\" fn f() {}",
        );
        let krate = project.read().unwrap();
        let Build::Artifact(file) = project.build(&krate, true).await.unwrap() else {
            panic!("it was not built")
        };
        assert!(file.is_file());
        let source = krate.folder.join("src/lib.rs");
        assert_eq!(sources_of(&file), std::slice::from_ref(&source));

        fs::write(&source, "fn f() {").unwrap();
        let Build::Failed(errors) = project.build(&krate, true).await.unwrap() else {
            panic!("it was built")
        };
        assert!(errors.contains("unclosed delimiter"), "{errors}");
    }

    #[tokio::test]
    async fn a_build_that_nobody_waits_for_ends_with_its_compiler() {
        let folder = tempfile::tempdir().unwrap();
        let project = project(folder.path(), "");
        // The build script says that it runs, and then never ends by itself.
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        let script = format!(
            "fn main() {{ let _p = std::fs::File::create({pipe:?}); loop {{ std::thread::park() }} }}"
        );
        fs::write(folder.path().join("build.rs"), script).unwrap();
        let krate = project.read().unwrap();
        let build = tokio::spawn(async move { project.build(&krate, true).await });
        let (started_tx, started) = tokio::sync::oneshot::channel();
        let reading = tokio::task::spawn_blocking(move || {
            // Opens when the script does, and ends when the script has ended.
            let mut pipe = fs::File::open(pipe).unwrap();
            started_tx.send(()).unwrap();
            std::io::Read::read_to_end(&mut pipe, &mut Vec::new()).unwrap();
        });
        started.await.unwrap();
        build.abort();
        reading.await.unwrap();
    }

    #[test]
    fn errors_are_told_without_progress_and_colour() {
        let mut said = Said::default();
        said.add(b"   \x1b[1m\x1b[92mCompiling\x1b[0m shop v1.0.0\n    Building [=> ] 1/2\r\x1b[K\x1b[1m\x1b[91merror\x1b[0m: no <b>\n  --> src/lib.rs\n");
        assert_eq!(said.errors(), "error: no <b>\n  --> src/lib.rs");
    }

    #[test]
    fn names_with_spaces_survive_dep_info() {
        let text = "/t/libshop.so: /w/src/lib.rs /w/my\\ pages/index.html\n";
        assert_eq!(
            dep_info(text),
            [
                Path::new("/w/src/lib.rs"),
                Path::new("/w/my pages/index.html")
            ]
        );
        assert!(dep_info("").is_empty());
    }

    #[test]
    fn what_cargo_run_sets_is_not_inherited_and_the_users_settings_are() {
        for gone in [
            "CARGO",
            "CARGO_PKG_NAME",
            "CARGO_MANIFEST_DIR",
            "CARGO_BIN_EXE_x",
            "OUT_DIR",
        ] {
            assert!(of_cargo_run(gone), "{gone}");
        }
        for kept in [
            "CARGO_HOME",
            "CARGO_TARGET_DIR",
            "CARGO_TERM_COLOR",
            "CARGO_NET_OFFLINE",
            "RUSTFLAGS",
            "PATH",
        ] {
            assert!(!of_cargo_run(kept), "{kept}");
        }
    }
}
