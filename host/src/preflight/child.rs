//! The child's side of preflight: `handover preflight-child`.
//!
//! It maps the very image that the host would, compares the layouts, runs the migrations on a copy
//! of the state, the constructor and the smoke requests, and rehearses the end: drain, stop,
//! unload. It says each step before it takes it, and kills itself at the end: nothing of the
//! plugin's runs after the verdict.

use std::{
    ffi::OsString,
    fmt::Write as _,
    fs::File,
    io::{self, BufRead, BufReader, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::unix::net::UnixStream,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use handover_api::{AppName, GenerationId};
use handover_plugin::abi::root::RootRef;
use http::Response;
use rustix::{
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    process::{
        Resource, Rlimit, Signal, getpid, getppid, kill_process_group,
        set_parent_process_death_signal, setrlimit,
    },
};

use super::{
    Answer, Scope,
    report::{Line, Stage, Task},
};
use crate::{
    artifact::{Artifact, Bundled, Image, MigrationPath, Remark, Topic, store::describe_image},
    assets::AppAssets,
    config::{self, Leave, SmokeRequest},
    dispatch,
    generation::{self, Active, Ended, Generation, Spec},
    human,
    ledger::{self, RetainReason},
    loader::{Companion, Layouts, Library},
    state::{Settings as StateSettings, Store, restore_entries},
    values::duration,
    workers,
};

/// Workers of the child: more than one, so that what a plugin leaves on another thread than the
/// last is found as in the host.
const WORKERS: usize = 2;

/// How long it may take to become quiet in the rehearsal. It has served nobody but the smoke
/// requests, so what is left is work that does not hear the draining signal.
const DRAIN_WITHIN: Duration = Duration::from_millis(500);

/// How long the rest of its end may take in the rehearsal. In the host it may take longer; a deploy
/// is not to wait for that twice.
const LEAVE_WITHIN: Duration = Duration::from_secs(3);

/// Reads the task from standard input, does it, reports on it, and ends.
pub(crate) fn main() -> ExitCode {
    let (report, image, task) = match prepare() {
        Ok(prepared) => prepared,
        Err(error) => {
            eprintln!(
                "preflight-child is what the host starts to check an artifact, not a command for people: {error}"
            );
            return ExitCode::from(2);
        }
    };
    let last = check(&report, image, task).unwrap_or_else(|last| last);
    report.write_line(&last);
    end()
}

/// Ends this process and what it started, without running anything of the plugin's at exit.
fn end() -> ! {
    let _ = kill_process_group(getpid(), Signal::KILL);
    // Not reached: the signal cannot be held.
    std::process::abort()
}

/// Makes this process safe to crash in, and takes its task.
fn prepare() -> io::Result<(ReportWriter, Image, Task)> {
    // Before anything can go wrong: the host's death is ours, and a crash writes no core unless the
    // system denies to limit that.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // Where memory runs out this is the process to end, not the host. Without /proc the kernel
    // chooses.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let no_core = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = setrlimit(Resource::Core, no_core);

    // The socket moves away from standard input, where a plugin could read it, and is not left to
    // its children.
    let socket = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?);
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;

    let image = receive(&socket)?;
    let mut reader = BufReader::new(socket.try_clone()?);
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line)?;
    let task: Task = serde_json::from_slice(&line)?;
    let parent = getppid().map(|pid| pid.as_raw_nonzero().get().cast_unsigned());
    if parent != Some(task.parent) {
        return Err(io::Error::other("the host has ended"));
    }
    // The signal above comes with the end of the thread that started us, this with the end of the
    // host.
    std::thread::Builder::new()
        .name("preflight-guard".to_owned())
        .spawn(move || {
            let _ = reader.read(&mut [0]);
            end()
        })?;
    Ok((ReportWriter(Arc::new(socket)), image, task))
}

/// Takes the image, which comes with the first byte.
fn receive(socket: &UnixStream) -> io::Result<Image> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut with = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let byte = &mut [IoSliceMut::new(&mut byte)];
    recvmsg(socket, byte, &mut with, RecvFlags::CMSG_CLOEXEC)?;
    let image = with
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        })
        .ok_or_else(|| io::Error::other("no image came"))?;
    Image::received(image).map_err(io::Error::other)
}

/// Says lines to the host.
#[derive(Clone)]
struct ReportWriter(Arc<UnixStream>);

impl ReportWriter {
    fn write_line(&self, line: &Line) {
        let Ok(text) = line.text() else {
            return;
        };
        // A host that does not listen any more kills us.
        let _ = (&*self.0).write_all(text.as_bytes());
    }

    fn begin(&self, stage: Stage) {
        self.write_line(&Line::Begins { stage });
    }

    fn checked(&self, what: String) {
        self.write_line(&Line::Checked { what });
    }

    fn remark(&self, remark: Remark) {
        self.write_line(&Line::Remarked { remark });
    }
}

/// Does the task. Both results are the last line; an error is one that came early.
fn check(report: &ReportWriter, image: Image, task: Task) -> Result<Line, Line> {
    report.begin(Stage::Reading);
    let artifact = read(report, image, &task)?;
    report.checked(format!(
        "{} {} for {}, ABI {}",
        artifact.manifest.app,
        artifact.manifest.version,
        artifact.elf.machine,
        artifact.manifest.abi_named()
    ));

    // Its migrations are run in loads of their own.
    let spare = match task.state {
        Some(_) => Some(artifact.duplicate().map_err(broken)?),
        None => None,
    };
    report.begin(Stage::Mapping);
    let library = Library::map(&artifact, Layouts::Check).map_err(Line::rejected)?;
    ledger::bind_nothing_known();
    library.surround(task.arguments.clone(), environment(&task));
    library.initialise().map_err(Line::rejected)?;
    library
        .root::<RootRef>()
        .map_err(|error| Line::rejected(format!("its layouts do not fit this host: {error}")))?;
    report.checked("layouts match".to_owned());
    for companion in Companion::all() {
        report.write_line(&Line::Beside { companion });
    }
    if !task.start && task.state.is_none() {
        return Ok(Line::Passed);
    }

    let runtime = workers::runtime(Some(WORKERS.try_into().map_err(broken)?)).map_err(broken)?;
    runtime.block_on(async {
        // On a worker, as in the host.
        let report = report.clone();
        tokio::spawn(async move { start_and_ask(&report, task, &artifact, spare, library).await })
            .await
            .map_err(broken)?
    })
}

fn read(report: &ReportWriter, image: Image, task: &Task) -> Result<Artifact, Line> {
    let bundled = match task.scope {
        Scope::All => image.bundled(),
        Scope::Again => Bundled::default(),
    };
    let artifact =
        describe_image(image, task.sha256, task.artifact.clone()).map_err(Line::rejected)?;
    match task.scope {
        Scope::All => artifact
            .acceptable()
            .and_then(|()| bundled.refusal.map_or(Ok(()), Err)),
        Scope::Again => artifact.runnable(),
    }
    .map_err(Line::rejected)?;
    if task.scope == Scope::All {
        let linkage = artifact.elf.linkage.remarks();
        for remark in linkage.into_iter().chain(bundled.remarks) {
            report.remark(remark);
        }
    }
    Ok(artifact)
}

async fn start_and_ask(
    report: &ReportWriter,
    task: Task,
    artifact: &Artifact,
    spare: Option<Artifact>,
    library: Library,
) -> Result<Line, Line> {
    let task_app = task.app.clone();
    let environment = environment(&task);
    let mut env = task.env;
    env.retain(|(name, _)| !task.check_env.contains_key(name));
    let is_listed = |name: &String| task.listed.contains(name) || task.given_env.contains_key(name);
    env.extend(
        task.check_env
            .into_iter()
            .filter(|(name, _)| is_listed(name)),
    );
    let state = state(&task_app, task.state).await?;
    let assets = AppAssets::scratch(task_app, task.assets_max_size);
    let spec = Spec {
        app: task.app,
        id: GenerationId(0),
        version: artifact.manifest.version.clone(),
        artifact: artifact.sha256,
        config: task.config,
        env,
        arguments: task.arguments,
        base_path: String::new(),
        data_dir: task.data_dir,
        environment,
        runtime_threads: task.runtime_threads,
        // The parent ends this process at the deadline, and says what it was at.
        start_deadline: Duration::MAX,
        preflight: true,
        state: Some(state),
        work: None,
        assets: Some(Arc::clone(&assets)),
        migration: None,
        handed_over: None,
        stays: None,
    };
    if let Some(spare) = spare {
        rehearse(report, &spare, &spec).await?;
    }
    if !task.start {
        return Ok(Line::Passed);
    }
    report.begin(Stage::Starting);
    let began = Instant::now();
    let started = generation::start(library, spec)
        .await
        .map_err(|error| Line::Rejected {
            reason: format!("it did not start: {error}"),
            refused: error.refused,
        })?;
    report.checked(format!(
        "constructor ended in {} ms",
        began.elapsed().as_millis()
    ));
    if let Some(names) = assets.without_hash() {
        report.remark(without_hash(&names));
    }
    let active = started.activate();
    for request in &task.requests {
        report.begin(Stage::Smoke {
            path: request.path.clone(),
        });
        ask(report, active.generation(), request, task.answers).await?;
    }
    if task.leave != Leave::Off {
        leave(report, artifact, active).await;
    }
    Ok(Line::Passed)
}

/// Brings the copy of the state that `spec` has to the schema of the version, and back where there
/// is a way back: then once more, as the app is to meet what it will meet.
async fn rehearse(report: &ReportWriter, artifact: &Artifact, spec: &Spec) -> Result<(), Line> {
    let Some(state) = &spec.state else {
        return Ok(());
    };
    let wanted = artifact.manifest.schema;
    let found = state.schema().map_err(broken)?;
    let Some(found) = found.filter(|found| !found.suits(wanted)) else {
        return Ok(());
    };
    let migrations = &artifact.migrations;
    let Some(way) = migrations.way(found.schema, wanted) else {
        return Err(Line::rejected(format!(
            "the state has schema {}, and it has no way from there to its schema {wanted}",
            found.schema
        )));
    };
    let stats = state.stats().map_err(broken)?;
    let up = migrate(report, artifact, spec, &way).await?;
    let mut told = format!(
        "{} ({}) of its state migrated from schema {} to {wanted} in {} ms",
        human::pluralize(stats.keys, "key"),
        human::file_size(stats.bytes),
        found.schema,
        up.as_millis()
    );
    if let Some(back) = migrations.way(wanted, found.schema) {
        let down = migrate(report, artifact, spec, &back).await?;
        migrate(report, artifact, spec, &way).await?;
        // Writing to a String does not fail.
        let _ = write!(told, ", and back in {} ms", down.as_millis());
    }
    report.checked(told);
    Ok(())
}

/// Runs migrations, each in a load of its own, as the host would. Returns how long that took.
async fn migrate(
    report: &ReportWriter,
    artifact: &Artifact,
    spec: &Spec,
    way: &[MigrationPath],
) -> Result<Duration, Line> {
    let began = Instant::now();
    for path in way {
        report.begin(Stage::Migrating { path: *path });
        let artifact = artifact.duplicate().map_err(broken)?;
        let library = generation::load(artifact, Duration::MAX)
            .await
            .map_err(Line::rejected)?;
        let spec = Spec {
            migration: Some((path.from, path.to)),
            ..spec.clone()
        };
        let migrated = generation::start(library, spec).await.map_err(|error| {
            Line::rejected(format!(
                "its migration of the state from schema {} to {} failed: {error}",
                path.from, path.to
            ))
        })?;
        drop(migrated.discard().await);
    }
    Ok(began.elapsed())
}

/// Returns what it has as its state, of which nothing stays: an empty one, or what is in the backup
/// at `path`.
async fn state(app: &AppName, path: Option<PathBuf>) -> Result<Arc<Store>, Line> {
    let settings = StateSettings {
        max_size: u64::MAX,
        ..StateSettings::default()
    };
    let Some(path) = path else {
        return Ok(Arc::new(Store::scratch(
            app.as_str(),
            StateSettings::default(),
        )));
    };
    let store = Arc::new(Store::scratch(app.as_str(), settings));
    let (filled, runtime) = (Arc::clone(&store), tokio::runtime::Handle::current());
    let restored = tokio::task::spawn_blocking(move || {
        let file = File::open(&path).map_err(broken)?;
        restore_entries(&filled, &runtime, BufReader::new(file)).map_err(broken)
    });
    restored.await.map_err(broken)??;
    Ok(store)
}

/// Rehearses its end, as the host would go about it after a cutover, and remarks on what would be
/// left.
async fn leave(report: &ReportWriter, artifact: &Artifact, active: Active) {
    report.begin(Stage::Leaving);
    let began = Instant::now();
    let draining = active.drain();
    if tokio::time::timeout(DRAIN_WITHIN, draining.quiet())
        .await
        .is_err()
    {
        report.remark(slow_drain(draining.generation()));
        draining.expire(true).await;
    }
    let generation = Arc::clone(draining.generation());
    let retired = tokio::time::timeout(LEAVE_WITHIN, draining.retire()).await;
    if generation.tasks_left() > 0 {
        report.remark(bare_tasks(generation.tasks_left()));
    }
    match retired {
        Ok(Ended::Unloaded(left)) => {
            report.checked(format!(
                "stopped and unloaded in {} ms",
                began.elapsed().as_millis()
            ));
            if !left.open.is_empty() {
                let open = left.open.join(", ");
                report.remark(Remark::warning(
                    Topic::LeftOpen,
                    format!(
                        "replaced, it leaves open what cannot be closed for it: {open}; close it when `draining()` ends"
                    ),
                ));
            }
        }
        Ok(Ended::Retained(retained)) => {
            let held = retained.held();
            // That was said, with what to do, when its file was read.
            if artifact.elf.linkage.never_unloads && held.reasons() == [RetainReason::Linker] {
                return;
            }
            report.remark(Remark::warning(
                Topic::Retained,
                format!("replaced, it would stay mapped (retained): {held}"),
            ));
        }
        Err(_) => report.remark(Remark::warning(
            Topic::SlowEnd,
            format!(
                "replaced, its end takes long: it was not stopped and unloaded within {} when that was rehearsed, so it would stay \
                 mapped (retained) for that long, or for ever",
                humantime::format_duration(LEAVE_WITHIN)
            ),
        )),
    }
}

fn bare_tasks(left: u64) -> Remark {
    let tasks = match left {
        1 => "1 task that nobody counts".to_owned(),
        left => format!("{left} tasks that nobody counts"),
    };
    Remark::warning(
        Topic::BareTasks,
        format!(
            "{tasks} (`tokio::spawn`) ran in this trial start as well, where what they take from a queue is lost, and would be cancelled \
             wherever they are with each deploy: begin with `cx.worker(name, async |stop| …)` what goes on for as long as the app"
        ),
    )
}

fn without_hash(names: &str) -> Remark {
    Remark::warning(
        Topic::AssetsWithoutHash,
        format!(
            "assets without a hash of their content in their names are asked for again with each page, and those of replaced versions \
             are gone: {names}; have the bundler name them as in `app.3f9c2a17.js`"
        ),
    )
}

fn slow_drain(generation: &Generation) -> Remark {
    let names: Vec<_> = generation
        .working()
        .into_iter()
        .map(|work| match work.name.as_str() {
            "" => "a task without a name".to_owned(),
            name => format!("`{name}`"),
        })
        .collect();
    let what = match names.as_slice() {
        [] => format!("{} in flight", generation.counts().in_flight),
        names => names.join(", "),
    };
    Remark::note(
        Topic::SlowDrain,
        format!(
            "told to drain, it had {what} still {} later: each replaced generation drains until that ends, or until drain_deadline or \
             job_deadline; end it when `draining()` does",
            humantime::format_duration(DRAIN_WITHIN)
        ),
    )
}

/// Returns the environment of the app: that of the host, but for what `[app.NAME.check]` says.
fn environment(task: &Task) -> Vec<(OsString, OsString)> {
    let mut given = task.given_env.clone();
    given.extend(task.check_env.clone());
    config::environment(&task.listed, &given)
}

/// Makes one smoke request. An answer that is not as wanted is the error.
async fn ask(
    report: &ReportWriter,
    generation: &Arc<Generation>,
    request: &SmokeRequest,
    is_told: bool,
) -> Result<(), Line> {
    let SmokeRequest { path, status, .. } = request;
    let within = request.within.as_deref().map(duration).transpose();
    let within = within.map_err(broken)?.unwrap_or(Duration::MAX);
    let asked = dispatch::smoke(generation, path, &request.send);
    let answered = tokio::time::timeout(within, asked).await;
    if is_told && let Ok(Ok(answer)) = &answered {
        let answer = Answer::of(path, answer);
        report.write_line(&Line::Answered { answer });
        // Whether it is right, what answers now decides.
        return Ok(());
    }
    let reason = match answered {
        Ok(Ok(answer)) => match differs(request, &answer) {
            None => {
                report.checked(format!("GET {path} answered {status}"));
                return Ok(());
            }
            Some(reason) => format!("GET {path} answered {reason}"),
        },
        Ok(Err(reason)) => format!("GET {path} was not answered: {reason}"),
        Err(_) => format!(
            "GET {path} was not answered within {}",
            humantime::format_duration(within)
        ),
    };
    Err(Line::Unhealthy { reason })
}

/// Says what of `answer` is not as `request` wants it, if anything is.
fn differs(request: &SmokeRequest, answer: &Response<Bytes>) -> Option<String> {
    let status = answer.status().as_u16();
    if status != request.status {
        return Some(format!("{status}, wanted {}", request.status));
    }
    for (name, wanted) in &request.headers {
        let values: Vec<_> = answer.headers().get_all(name).iter().collect();
        if !values
            .iter()
            .any(|value| value.as_bytes() == wanted.as_bytes())
        {
            let got = if values.is_empty() {
                format!("without `{name}`")
            } else {
                let values = values
                    .iter()
                    .map(|value| String::from_utf8_lossy(value.as_bytes()));
                format!("with `{name}: {}`", values.collect::<Vec<_>>().join(", "))
            };
            return Some(format!("{status} {got}, wanted `{wanted}`"));
        }
    }
    let wanted = request.body.as_deref()?;
    let body = String::from_utf8_lossy(answer.body());
    (!body.contains(wanted)).then(|| {
        let begins: String = body.chars().take(80).collect();
        format!("{status} with a body that has no `{wanted}`: it begins with `{begins}`")
    })
}

fn broken(cause: impl ToString) -> Line {
    Line::Broken {
        reason: cause.to_string(),
    }
}
