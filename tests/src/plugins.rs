//! Builds the fixture plugins and the host, once for all test binaries of a run.
//!
//! The fixtures are built apart from the workspace (`cargo build -p …`), as an author's plugin is:
//! built together with the host they would get the features that the host wants of their common
//! dependencies. Built plugins are kept under their name and version next to the test binaries, and
//! built again only when a source of them has changed.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{LazyLock, OnceLock},
};

use crate::elf;

/// One call of cargo: the packages, the version that they get, and a feature.
struct Build {
    packages: &'static [&'static str],
    version: &'static str,
    features: &'static [&'static str],
}

/// Every call names `probe`, which has the most dependencies: so cargo resolves the same features
/// of them each time, and compiles them once.
const BUILDS: &[Build] = &[
    Build {
        packages: &[
            "probe",
            "hello",
            "service",
            "leaver",
            "misfit",
            "misshapen",
            "no-manifest",
            "released",
            "foreign-threads",
        ],
        version: "1.0.0",
        features: &[],
    },
    Build {
        packages: &["probe", "hello", "foreign-threads"],
        version: "2.0.0",
        features: &[],
    },
];

/// Those that only some tests and benches need, which have them built: by the name of the package.
const APART: &[(&str, &[Build])] = &[
    // Dependencies with other features on purpose.
    (
        "zoo",
        &[build(&["zoo"], "1.0.0", &[]), build(&["zoo"], "2.0.0", &[])],
    ),
    (
        "slow-ends",
        &[
            build(&["slow-ends"], "1.0.0", &[]),
            build(&["slow-ends"], "2.0.0", &[]),
        ],
    ),
    // Without a heap of its own, and with one.
    (
        "leaky",
        &[
            build(&["leaky"], "1.0.0", &[]),
            build(&["leaky"], "2.0.0", &["own-heap"]),
        ],
    ),
    // It compiles SQLite.
    (
        "sqlite",
        &[
            build(&["sqlite"], "1.0.0", &[]),
            build(&["sqlite"], "2.0.0", &[]),
        ],
    ),
    (
        "signals",
        &[
            build(&["signals"], "1.0.0", &[]),
            build(&["signals"], "2.0.0", &[]),
        ],
    ),
    (
        "state",
        &[
            build(&["state"], "1.0.0", &[]),
            build(&["state"], "2.0.0", &[]),
        ],
    ),
    (
        "database",
        &[
            build(&["database"], "1.0.0", &[]),
            build(&["database"], "2.0.0", &["second"]),
        ],
    ),
    (
        "schema",
        &[
            build(&["schema"], "1.0.0", &[]),
            build(&["schema"], "2.0.0", &["second"]),
            build(&["schema"], "3.0.0", &["third"]),
        ],
    ),
    (
        "jobs",
        &[
            build(&["jobs"], "1.0.0", &[]),
            build(&["jobs"], "2.0.0", &[]),
        ],
    ),
    // No fixture, but it is an app with state as people write them.
    (
        "example-plugin",
        &[
            build(&["example-plugin"], "1.0.0", &[]),
            build(&["example-plugin"], "2.0.0", &[]),
        ],
    ),
    ("interposed", &[build(&["interposed"], "1.0.0", &[])]),
    (
        "subscriber",
        &[
            build(&["subscriber"], "1.0.0", &[]),
            build(&["subscriber"], "2.0.0", &[]),
        ],
    ),
    // With tokio's signals.
    (
        "background",
        &[
            build(&["background"], "1.0.0", &[]),
            build(&["background"], "2.0.0", &[]),
        ],
    ),
    ("assets", &[build(&["assets"], "1.0.0", &[])]),
    (
        "program",
        &[
            build(&["program"], "1.0.0", &[]),
            build(&["program"], "2.0.0", &[]),
        ],
    ),
];

const fn build(
    packages: &'static [&'static str],
    version: &'static str,
    features: &'static [&'static str],
) -> Build {
    Build {
        packages,
        version,
        features,
    }
}

/// The folder of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests are a member of a workspace")
}

/// The built `handover`.
pub fn handover() -> &'static Path {
    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| {
        let _alone = lock();
        // The whole workspace, for the features that `cargo test --workspace` has compiled the
        // dependencies with.
        let artifacts = cargo(&["build", "--workspace", "--bin", "handover"], "");
        let built = artifacts
            .into_iter()
            .find(|path| path.ends_with("handover"));
        built.expect("cargo says where it put the binary")
    });
    &BUILT
}

/// The fixture plugin `name` in `version`.
///
/// # Panics
/// When it is not among the built ones.
pub fn fixture(name: &str, version: &str) -> PathBuf {
    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| build_all(BUILDS, "stamp"));
    static BUILT_APART: [OnceLock<PathBuf>; APART.len()] = [const { OnceLock::new() }; APART.len()];
    let built = match APART.iter().position(|(package, _)| *package == name) {
        None => &*BUILT,
        Some(at) => {
            BUILT_APART[at].get_or_init(|| build_all(APART[at].1, &format!("stamp-{name}")))
        }
    };
    let path = built.join(format!("{name}-{version}.so"));
    assert!(
        path.exists(),
        "{} is not built: see BUILDS in tests/src/plugins.rs",
        path.display()
    );
    path
}

/// The program that the fixture plugin `name` in `version` is as well.
///
/// # Panics
/// When it is none.
pub fn fixture_program(name: &str, version: &str) -> PathBuf {
    let path = fixture(name, version).with_extension("program");
    assert!(path.exists(), "{name} has no target `bin`");
    path
}

/// The bytes of the fixture plugin `name` in version 1.0.0, rewritten.
pub fn rewritten(name: &str, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = fs::read(fixture(name, "1.0.0")).expect("the fixture was just built");
    change(&mut bytes);
    bytes
}

/// `hello` saying that it is `version`, for tests that ask the host and not the plugin.
pub fn hello_as(version: &str) -> Vec<u8> {
    rewritten("hello", |bytes| elf::set_version(bytes, version))
}

/// A `misfit` with the given habit.
pub fn misfit(habit: &str) -> Vec<u8> {
    rewritten("misfit", |bytes| elf::set_habit(bytes, habit))
}

/// A `leaver` with the given habit.
pub fn leaver(habit: &str) -> Vec<u8> {
    rewritten("leaver", |bytes| elf::set_habit(bytes, habit))
}

/// The target folder of the tests, for crates that are built as part of a test.
pub fn target_dir() -> PathBuf {
    profile_dir()
        .parent()
        .expect("PROFILE lies in the target folder")
        .to_owned()
}

/// Runs cargo in a crate outside of the workspace, and gives what it printed.
///
/// # Panics
/// When it fails.
pub async fn cargo_in(dir: &Path, arguments: &[&str]) -> String {
    let mut command = tokio::process::Command::new(env!("CARGO"));
    command
        .args(arguments)
        .current_dir(dir)
        .env("CARGO_TARGET_DIR", target_dir())
        .env("HANDOVER", handover())
        .env_remove("HANDOVER_VERSION");
    let output = command.output().await.expect("cargo can be run");
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.status.success(),
        "cargo {arguments:?} in {}:\n{text}",
        dir.display()
    );
    text
}

/// `target/debug` or whatever the tests themselves were built into.
fn profile_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("a test knows where it is");
    exe.ancestors()
        .nth(2)
        .expect("a test lies in PROFILE/deps")
        .to_owned()
}

/// Held by the one test process that builds.
fn lock() -> fs::File {
    let dir = profile_dir().join("fixtures");
    fs::create_dir_all(&dir).expect("the target folder can be written");
    let file = fs::File::create(dir.join("lock")).expect("the target folder can be written");
    file.lock().expect("the file system knows locks");
    file
}

fn build_all(builds: &[Build], stamp: &str) -> PathBuf {
    let _alone = lock();
    let dir = profile_dir().join("fixtures");
    let stamp = dir.join(stamp);
    let sources = fingerprint();
    if fs::read_to_string(&stamp).is_ok_and(|built| built == sources) {
        return dir;
    }
    for build in builds {
        let mut arguments = vec!["build"];
        arguments.extend(build.packages.iter().flat_map(|package| ["-p", package]));
        arguments.extend(
            build
                .features
                .iter()
                .flat_map(|feature| ["--features", feature]),
        );
        let artifacts = cargo(&arguments, build.version);
        for package in build.packages {
            let file = format!("lib{}.so", package.replace('-', "_"));
            let built = artifacts.iter().find(|path| path.ends_with(&file));
            let built = built.unwrap_or_else(|| panic!("cargo did not say where it put {file}"));
            // Not a hard link: the next variant is written over the same file.
            fs::copy(built, dir.join(format!("{package}-{}.so", build.version)))
                .expect("the target folder can be written");
            if let Some(program) = artifacts.iter().find(|path| path.ends_with(package)) {
                fs::copy(
                    program,
                    dir.join(format!("{package}-{}.program", build.version)),
                )
                .expect("the target folder can be written");
            }
        }
    }
    fs::write(stamp, sources).expect("the target folder can be written");
    dir
}

/// Runs cargo with the profile and target folder of the tests, and gives the files that it made.
fn cargo(arguments: &[&str], version: &str) -> Vec<PathBuf> {
    let profile_dir = profile_dir();
    let mut command = Command::new(env!("CARGO"));
    command
        .args(arguments)
        .arg("--message-format=json-render-diagnostics")
        .arg("--quiet");
    command.arg("--target-dir").arg(
        profile_dir
            .parent()
            .expect("PROFILE lies in the target folder"),
    );
    if profile_dir.ends_with("release") {
        command.arg("--release");
    }
    if version.is_empty() {
        command.env_remove("HANDOVER_VERSION")
    } else {
        command.env("HANDOVER_VERSION", version)
    };
    let output = command
        .current_dir(workspace())
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo can be run");
    assert!(output.status.success(), "cargo {arguments:?} failed");
    let lines = String::from_utf8(output.stdout).expect("cargo writes UTF-8");
    let messages = lines
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    messages
        .filter(|message| message["reason"] == "compiler-artifact")
        .flat_map(|message| message["filenames"].as_array().cloned().unwrap_or_default())
        .filter_map(|file| file.as_str().map(PathBuf::from))
        .collect()
}

/// Changes when a fixture could come out differently.
fn fingerprint() -> String {
    let mut hasher = DefaultHasher::new();
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTUP_TOOLCHAIN"] {
        std::env::var_os(name).hash(&mut hasher);
    }
    for part in [
        "Cargo.toml",
        "Cargo.lock",
        "plugin-api",
        "tests/plugins",
        "example-plugin",
        "tests/src/plugins.rs",
    ] {
        hash_tree(&workspace().join(part), &mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

fn hash_tree(path: &Path, hasher: &mut DefaultHasher) {
    if path.is_dir() {
        let mut entries: Vec<_> = fs::read_dir(path)
            .expect("the sources can be read")
            .flatten()
            .map(|entry| entry.path())
            .collect();
        entries.sort();
        entries.iter().for_each(|entry| hash_tree(entry, hasher));
    } else {
        path.hash(hasher);
        fs::read(path)
            .expect("the sources can be read")
            .hash(hasher);
    }
}
