//! The recipes for packages, containers and workflows: what they name is there, and the commands in
//! them are commands.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use handover_tests::{host::handover, plugins::workspace};
use saphyr::{LoadableYamlNode, Yaml};
use toml::Value;

fn read(path: impl AsRef<Path>) -> String {
    let path = workspace().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn toml(path: &str) -> toml::Table {
    read(path).parse().unwrap()
}

fn texts(value: &Value) -> Vec<&str> {
    let texts = value.as_array().unwrap().iter();
    texts.map(|text| text.as_str().unwrap()).collect()
}

/// Fails unless `line` is a command of the program with arguments that it takes.
async fn assert_understood(line: &str) {
    let words = line.replace(['"', '\''], "");
    let words = words.split_whitespace().skip(1).chain(["--help"]);
    let said = handover(words).await;
    assert_eq!(said.code, Some(0), "{line}: {}", said.text());
}

async fn assert_configuration(path: &str) {
    let file = workspace().join(path);
    handover(["config", "check", file.to_str().unwrap()])
        .await
        .expect_code(0);
}

/// What lies at `pattern`, whose last part may begin with a star.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    let Some((_, end)) = pattern.to_str().unwrap().rsplit_once("/*") else {
        return pattern
            .exists()
            .then(|| pattern.to_owned())
            .into_iter()
            .collect();
    };
    let folder = fs::read_dir(pattern.parent().unwrap()).unwrap();
    let paths = folder.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.to_str().unwrap().ends_with(end))
        .collect()
}

#[tokio::test]
async fn a_command_that_is_none_is_found_out() {
    handover(["deploy", "a.so", "--no-such-flag", "--help"])
        .await
        .expect_code(2);
    handover(["deploy", "a.so", "--timeout", "soon", "--help"])
        .await
        .expect_code(2);
}

#[tokio::test]
async fn the_debian_package_has_all_that_it_names() {
    let manifest = toml("host/Cargo.toml");
    let deb = &manifest["package"]["metadata"]["deb"];
    let made = tempfile::tempdir().unwrap();
    // As `.ci/run deb` makes it.
    let pages = made.path().join("man");
    handover(["man", pages.to_str().unwrap()])
        .await
        .expect_code(0);
    fs::create_dir(made.path().join("completions")).unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = handover(["completions", shell]).await.expect_code(0);
        fs::write(made.path().join("completions").join(shell), script.stdout).unwrap();
    }
    let mut installed = Vec::new();
    for asset in deb["assets"].as_array().unwrap() {
        let [source, target, mode] = texts(asset)[..] else {
            panic!("{asset}")
        };
        assert!(["644", "755"].contains(&mode), "{asset}");
        let found = if source == "target/release/handover" {
            vec![PathBuf::from(source)]
        } else if let Some(name) = source.strip_prefix("../target/deb/") {
            matching(&made.path().join(name))
        } else {
            matching(&workspace().join("host").join(source))
        };
        assert!(!found.is_empty(), "nothing is at {source}");
        installed.extend(found.iter().map(|path| match target.ends_with('/') {
            true => format!("/{target}{}", path.file_name().unwrap().to_str().unwrap()),
            false => format!("/{target}"),
        }));
    }
    for file in texts(&deb["conf-files"]) {
        assert!(installed.iter().any(|path| path == file), "{file}");
    }
    assert_configuration("docs/debian/handover.toml").await;

    let scripts = workspace()
        .join("host")
        .join(deb["maintainer-scripts"].as_str().unwrap());
    for name in ["postinst", "postrm"] {
        let script = scripts.join(name);
        // Where cargo-deb puts what systemd has to be told.
        assert!(read(&script).contains("\n#DEBHELPER#\n"), "{name}");
        let parsed = Command::new("sh").arg("-n").arg(&script).status().unwrap();
        assert!(parsed.success(), "{name}");
    }
    let units = deb["systemd-units"]["unit-scripts"].as_str().unwrap();
    let units = workspace().join("host").join(units);
    assert!(units.join("handover.socket").exists());
    for file in [units.join("handover.service"), scripts.join("package.conf")] {
        let text = read(&file);
        let commands = text
            .lines()
            .filter_map(|line| line.strip_prefix("ExecStart="));
        let commands: Vec<_> = commands.filter(|line| !line.is_empty()).collect();
        assert_eq!(commands.len(), 1, "{}", file.display());
        assert_understood(commands[0]).await;
    }
    // The one of the package runs the program that the package has.
    let text = read(scripts.join("package.conf"));
    let program = text.lines().find_map(|line| {
        let line = line.strip_prefix("ExecStart=/")?;
        line.split(' ').next()
    });
    let program = format!("/{}", program.unwrap());
    assert!(installed.contains(&program), "{program} in {installed:?}");
}

#[tokio::test]
async fn the_container_is_made_of_what_is_there() {
    let recipe = read("docs/container/Containerfile").replace("\\\n", " ");
    let steps: Vec<(&str, &str)> = recipe
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(verb, _)| *verb != "#")
        .collect();
    let with = |verb| steps.iter().filter(move |step| step.0 == verb);
    for (_, rest) in with("COPY").filter(|step| !step.1.starts_with("--from=")) {
        let words: Vec<_> = rest.split_whitespace().collect();
        for source in &words[..words.len() - 1] {
            assert!(workspace().join(source).exists(), "COPY {source}");
        }
    }
    // All that a workspace needs to be one.
    let manifest = toml("Cargo.toml");
    for member in texts(&manifest["workspace"]["members"]) {
        let folder = member.split('/').next().unwrap();
        let line = format!("{folder} {folder}");
        assert!(with("COPY").any(|step| step.1 == line), "{member}");
    }
    let version = manifest["workspace"]["package"]["rust-version"].as_str();
    let from = format!("docker.io/library/rust:{}-", version.unwrap());
    assert!(with("FROM").any(|step| step.1.starts_with(&from)), "{from}");
    let command = |text: &str| -> Vec<String> { serde_json::from_str(text).unwrap() };
    let entry = command(with("ENTRYPOINT").next().unwrap().1);
    let arguments = command(with("CMD").next().unwrap().1);
    assert_understood(&[entry, arguments].concat().join(" ")).await;
    let health = with("HEALTHCHECK").next().unwrap().1;
    let health = command(health.split_once("CMD ").unwrap().1);
    assert_understood(&health.join(" ")).await;
    assert_configuration("docs/container/handover.toml").await;
}

/// The steps of all jobs of a workflow, each with its `run`, if it has one.
fn runs(path: &str) -> Vec<Option<String>> {
    let text = read(path);
    let documents = Yaml::load_from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"));
    assert_eq!(documents.len(), 1, "{path}");
    assert!(documents[0].as_mapping_get("on").is_some(), "{path}");
    let jobs = documents[0].as_mapping_get("jobs").unwrap();
    let jobs = jobs.as_mapping().unwrap().values();
    jobs.flat_map(|job| {
        assert!(job.as_mapping_get("runs-on").is_some(), "{path}");
        let steps = job.as_mapping_get("steps").unwrap();
        steps.as_vec().unwrap()
    })
    .map(|step| {
        let run = step.as_mapping_get("run");
        let uses = step.as_mapping_get("uses");
        assert!(run.is_some() != uses.is_some(), "{path}: {step:?}");
        Some(run?.as_str().unwrap().to_owned())
    })
    .collect()
}

#[tokio::test]
async fn the_workflow_that_deploys_an_app_has_commands_that_are_understood() {
    let mut commands = 0;
    for run in runs("docs/ci/deploy.yml").into_iter().flatten() {
        let parsed = Command::new("sh")
            .args(["-n", "-c", &run])
            .status()
            .unwrap();
        assert!(parsed.success(), "{run}");
        for line in run.lines().filter(|line| line.starts_with("handover ")) {
            assert_understood(line).await;
            commands += 1;
        }
    }
    assert!(commands >= 4, "{commands}");
    // Ours is one, too.
    assert!(!runs(".github/workflows/ci.yml").is_empty());
}
