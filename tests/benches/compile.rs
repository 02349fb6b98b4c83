//! What an author waits for: the builds of a new plugin, their size, and the time from a saved file
//! to its first answer.
//!
//! ```text
//! cargo bench -p handover-tests --bench compile             # writes docs/benchmarks
//! cargo bench -p handover-tests --bench compile -- --quick  # debug builds only, fewer rounds; writes nothing
//! ```
//!
//! The plugin is what `handover new` makes, built in a folder of its own with the versions of this
//! workspace.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use handover_tests::{
    bench::{
        self,
        builds::{Profile, build},
        figures::Spread,
        report,
        server::{Server, free_address, program},
    },
    plugins::workspace,
};
use serde_json::json;

/// What the scaffold answers, with another word each time.
const WORD: &str = "Hello from ";

/// Runs the compiler as cargo asked for it, and writes down what processor time it took for which
/// crate.
const METER: &str = r#"#!/bin/sh
"$@"
status=$?
times > "$METER_LOG.$$"
echo "${CARGO_PKG_NAME:-} ${CARGO_PKG_VERSION:-} $(tail -n 1 "$METER_LOG.$$")" >> "$METER_LOG"
rm "$METER_LOG.$$"
exit $status
"#;

/// How many crates are named as those that take the most.
const NAMED: usize = 8;

/// One build.
struct Built {
    took: Duration,
    /// Of cargo, its compilers and linkers.
    processor: Duration,
    /// Crates that were compiled.
    crates: usize,
    /// Seconds of processor time that the compiler took for each, by name and version.
    by_crate: BTreeMap<String, f64>,
}

/// A plugin crate outside of the workspace.
struct Project {
    folder: PathBuf,
    target: PathBuf,
    meter: PathBuf,
    source: String,
    words: u32,
}

fn main() {
    if !bench::asked_for(&["--quick"]) {
        return;
    }
    let quick = bench::flag("--quick");
    let home = Server::home();
    let handover = build("handover", "handover", Profile::Release);
    let mut project = Project::new(&handover, home.path());
    let (mut rows, mut figures, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    let (all, without_abi_stable) = (project.crates(&[]), project.crates(&["--prune=abi_stable"]));
    let abi_stable: BTreeSet<_> = all.difference(&without_abi_stable).collect();
    let profiles: &[&str] = if quick { &["dev"] } else { &["dev", "release"] };
    for profile in profiles {
        let clean = project.build(profile);
        let again: Vec<_> = (0..if quick { 1 } else { 5 })
            .map(|_| {
                project.change();
                project.build(profile)
            })
            .collect();
        let seconds = |built: &Built| built.took.as_secs_f64();
        let incremental = Spread::of(again.iter().map(seconds));
        let library = project.library(profile);
        let size = fs::metadata(&library).map_or(0, |file| file.len());
        let stripped = stripped(&library, home.path());
        let mb = |bytes: u64| format!("{:.2}", bytes as f64 / 1e6);
        rows.push(vec![
            (*profile).to_owned(),
            format!("{:.1}", seconds(&clean)),
            format!("{:.1}", clean.processor.as_secs_f64()),
            clean.crates.to_string(),
            incremental.text(2),
            mb(size),
            stripped.map_or_else(|| "–".to_owned(), mb),
        ]);
        let whole: f64 = clean.by_crate.values().sum();
        assert!(whole > 1.0, "the meter says {:?}", clean.by_crate);
        let its: f64 = clean
            .by_crate
            .iter()
            .filter(|(name, _)| abi_stable.contains(name))
            .map(|(_, seconds)| seconds)
            .sum();
        let mut most: Vec<_> = clean.by_crate.iter().collect();
        most.sort_by(|one, other| other.1.total_cmp(one.1));
        let most: Vec<_> = most
            .iter()
            .take(NAMED)
            .map(|(name, seconds)| format!("{name} {seconds:.1}"))
            .collect();
        shares.push(format!(
            "In the profile {profile}, abi_stable and the {} crates that only it needs take {its:.1} s of the compiler's {whole:.1} s. The most take: {}.\n",
            abi_stable.len() - 1,
            most.join(", ")
        ));
        figures.push(json!({
            "profile": profile,
            "abi_stable_processor_s": its,
            "compiler_processor_s": whole,
            "clean_s": seconds(&clean),
            "clean_processor_s": clean.processor.as_secs_f64(),
            "crates": clean.crates,
            "incremental_s": incremental.json(),
            "library_bytes": size,
            "stripped_bytes": stripped,
        }));
    }
    let saved = project.dev(&handover, if quick { 2 } else { 9 });
    let head = [
        "profile",
        "from clean, s",
        "processor time, s",
        "crates",
        "after a change, s",
        "library, MB",
        "stripped, MB",
    ];
    let text = format!(
        "The plugin that `handover new` makes:\n\n{}\n{}\nFrom a saved file to the first new answer in `handover dev`: {} s, build included.\n",
        report::table(&head, &rows),
        shares.join("\n"),
        saved.text(2)
    );
    println!("{text}");
    if !quick {
        let value = json!({ "builds": figures, "saved_to_served_s": saved.json() });
        report::write("compile", value, &[("compile", text)]);
    }
}

impl Project {
    fn new(handover: &Path, home: &Path) -> Self {
        let folder = home.join("fresh");
        let made = Command::new(handover).arg("new").arg(&folder).output();
        let made = made.expect("it was built");
        assert!(made.status.success(), "{made:?}");
        // Or the newest versions of the day would be compared with those of another.
        fs::copy(workspace().join("Cargo.lock"), folder.join("Cargo.lock"))
            .expect("the folder is ours");
        let source = fs::read_to_string(folder.join("src/lib.rs")).expect("it was made");
        assert!(source.contains(WORD), "the scaffold greets");
        let meter = home.join("meter");
        fs::write(&meter, METER).expect("the folder is ours");
        fs::set_permissions(&meter, fs::Permissions::from_mode(0o755)).expect("the folder is ours");
        Self {
            target: home.join("target"),
            meter,
            folder,
            source,
            words: 0,
        }
    }

    /// Has it answer something else; gives what.
    fn change(&mut self) -> String {
        self.words += 1;
        let word = format!("Hello number {} from ", self.words);
        let source = self.source.replace(WORD, &word);
        fs::write(self.folder.join("src/lib.rs"), source).expect("the folder is ours");
        word
    }

    /// The crates that it is built from, by name and version. `only` narrows it down, in the words
    /// of `cargo tree`.
    fn crates(&self, only: &[&str]) -> BTreeSet<String> {
        let output = Command::new(env!("CARGO"))
            .args(["tree", "--prefix=none", "--edges=normal,build"])
            .args(only)
            .current_dir(&self.folder)
            .output()
            .expect("cargo can be run");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| {
                let (name, version) = line.split_once(" v")?;
                Some(format!("{name} {}", version.split(' ').next()?))
            })
            .collect()
    }

    fn build(&self, profile: &str) -> Built {
        let log = self.meter.with_extension("log");
        let _ = fs::remove_file(&log); // there is none before the first build
        let (began, spent) = (Instant::now(), spent_by_children());
        let output = Command::new(env!("CARGO"))
            .args(["build", "--profile", profile])
            .env("CARGO_TARGET_DIR", &self.target)
            .env("RUSTC_WRAPPER", &self.meter)
            .env("METER_LOG", &log)
            .env("CARGO_TERM_COLOR", "never")
            .env_remove("HANDOVER_VERSION")
            // As an author has it, whatever whoever measures set.
            .env_remove("CARGO_INCREMENTAL")
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .output()
            .expect("cargo can be run");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success(),
            "the scaffold does not build: {told}"
        );
        Built {
            took: began.elapsed(),
            processor: spent_by_children().saturating_sub(spent),
            crates: told.matches("Compiling ").count(),
            by_crate: metered(&fs::read_to_string(&log).expect("the compiler was run")),
        }
    }

    fn library(&self, profile: &str) -> PathBuf {
        let folder = if profile == "dev" { "debug" } else { profile };
        self.target.join(folder).join("libfresh.so")
    }

    /// Seconds from a saved file to its first answer.
    fn dev(&mut self, handover: &Path, rounds: usize) -> Spread {
        let address = free_address();
        let mut command = Command::new(handover);
        command
            .arg("dev")
            .arg(&self.folder)
            .args(["--listen", &address.to_string()])
            .env("CARGO_TARGET_DIR", &self.target)
            .env_remove("HANDOVER_VERSION")
            .env_remove("HANDOVER_CONTROL");
        let _dev = Server::start(Server::home(), address, vec![command]);
        let measured = (0..rounds).map(|_| {
            let began = Instant::now();
            let word = self.change();
            let deadline = began + Duration::from_secs(300);
            while !answers(address, &word) {
                assert!(Instant::now() < deadline, "`{word}` was never answered");
                std::thread::sleep(Duration::from_millis(2));
            }
            began.elapsed().as_secs_f64()
        });
        Spread::of(measured.collect::<Vec<_>>())
    }
}

/// What the meter wrote down: the name, the version, and the times of user and system as `times`
/// prints them, such as `0m1.250000s`.
fn metered(log: &str) -> BTreeMap<String, f64> {
    let seconds = |time: &str| {
        let (minutes, seconds) = time.strip_suffix('s')?.split_once('m')?;
        Some(minutes.parse::<f64>().ok()? * 60.0 + seconds.parse::<f64>().ok()?)
    };
    let mut by_crate = BTreeMap::new();
    for line in log.lines() {
        let [name, version, user, system] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("the meter wrote {line}");
        };
        if name.is_empty() {
            continue; // cargo asked the compiler about itself
        }
        let took = seconds(user).zip(seconds(system)).expect("sh tells times");
        *by_crate.entry(format!("{name} {version}")).or_default() += took.0 + took.1;
    }
    by_crate
}

/// The size without symbols, if there is a program that takes them out.
fn stripped(library: &Path, home: &Path) -> Option<u64> {
    let copy = home.join("stripped.so");
    let done = Command::new(program("strip")?)
        .arg("--strip-all")
        .arg("-o")
        .arg(&copy)
        .arg(library)
        .status()
        .ok()?;
    done.success()
        .then(|| fs::metadata(copy).ok())?
        .map(|file| file.len())
}

fn answers(address: SocketAddr, word: &str) -> bool {
    let asked = || {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer.contains(word))
    };
    asked().unwrap_or(false)
}

/// The processor time of all children that have ended and were waited for, and of theirs.
fn spent_by_children() -> Duration {
    /// `USER_HZ`, the same on every Linux.
    const TICK: Duration = Duration::from_millis(10);
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    // cutime and cstime are the 16th and 17th fields, the first behind the name is the third.
    let ticks = fields
        .split_whitespace()
        .skip(13)
        .take(2)
        .filter_map(|field| field.parse::<u32>().ok());
    ticks.map(|ticks| TICK * ticks).sum()
}
