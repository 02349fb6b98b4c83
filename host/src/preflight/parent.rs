//! The host's side of preflight: starts the child, listens, and turns whatever becomes of it into a
//! verdict.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream as StdUnixStream, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use handover_api::AppName;
use parking_lot::Mutex;
use rustix::{
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    process::{Pid, Signal, WaitId, WaitIdOptions, waitid},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader, Interest},
    net::UnixStream,
    process::{Child, Command},
    runtime::Handle,
    sync::{Semaphore, oneshot},
    task::JoinSet,
};

use super::{
    Answer, CHILD, Passed, Scope, Verdict,
    report::{LONGEST, Line, Stage, Task},
};
use crate::{
    artifact::{Artifact, Remark, Topic},
    background,
    config::{self, Leave},
    ledger,
    loader::Companion,
    origin::origin,
    process,
    process_group::ProcessGroup,
    shortage,
};

/// How many children may run at once: they start whole runtimes, and the host has users to serve.
static AT_ONCE: Semaphore = Semaphore::const_new(2);

/// How much of what a child printed goes into a reason, in bytes.
const TAIL: usize = 4 * 1024;

/// How long a child that ended may take to be read to its end. Only a process that it left behind
/// can use it up.
const AFTERWARDS: Duration = Duration::from_millis(500);

/// Checks `artifact` in a child process as `app` with its settings, and with the backup
/// of its state that is at `state` or an empty one; its migrations are run on that where it has
/// another schema.
///
/// The child and everything it started is gone when this returns, or when its future is dropped.
///
/// # Errors
/// The host's fault (exit code 1): no child could be started, or it could not read what the host
/// stored.
pub(crate) async fn check(
    artifact: &Artifact,
    app: &AppName,
    settings: &config::App,
    scope: Scope,
    state: Option<&Path>,
) -> io::Result<Verdict> {
    let task = Task {
        state: state.map(Path::to_owned),
        ..task(artifact, app, settings, scope)
    };
    carry_out(artifact, settings, task).await
}

/// Starts `artifact` in a child as a restart of the host would, with the backup of its state that
/// is at `state`, and returns the verdict with what it answers to the smoke requests.
///
/// # Errors
/// When the child cannot do its work for a reason that is not the artifact's.
pub(crate) async fn boot(
    artifact: &Artifact,
    app: &AppName,
    settings: &config::App,
    state: Option<PathBuf>,
) -> io::Result<Verdict> {
    let task = Task {
        start: true,
        leave: Leave::Off,
        answers: true,
        state,
        ..task(artifact, app, settings, Scope::All)
    };
    carry_out(artifact, settings, task).await
}

fn task(artifact: &Artifact, app: &AppName, settings: &config::App, scope: Scope) -> Task {
    Task {
        parent: std::process::id(),
        artifact: artifact.path.clone(),
        sha256: artifact.sha256,
        app: app.clone(),
        config: settings.config.clone(),
        env: settings.readable_env(),
        check_env: settings.check.env.clone(),
        given_env: settings.given_env.clone(),
        listed: settings.env.clone(),
        arguments: settings.arguments(app),
        assets_max_size: settings.assets_max_size,
        runtime_threads: settings.runtime_threads.get(),
        start: settings.check.start && scope == Scope::All,
        requests: settings.check.requests.clone(),
        leave: match scope {
            Scope::All => settings.check.leave,
            Scope::Again => Leave::Off,
        },
        scope,
        answers: false,
        state: None,
        data_dir: None,
    }
}

async fn carry_out(artifact: &Artifact, settings: &config::App, task: Task) -> io::Result<Verdict> {
    let _permit = AT_ONCE.acquire().await.map_err(io::Error::other)?;
    let scope = task.scope;
    let deadline = settings.check.deadline;
    let lender = artifact.clone();
    let image = background::run("lend", move || lender.lend_image())
        .await?
        .map_err(io::Error::other)?;
    // Deleted with what the child has put there.
    let data = tempfile::Builder::new()
        .prefix("handover-check-")
        .tempdir()
        .ok();
    let task = Task {
        data_dir: data.as_ref().map(|data| data.path().to_owned()),
        ..task
    };
    let mut running = Running::spawn().await?;
    running.hand_over(image).await?;
    let mut child_report = ChildReport::default();
    let ended = running.listen(&task, &mut child_report, deadline).await?;
    let status = running.end().await?;
    let said = running.output.text();
    match ended {
        Ended::Reported => {}
        Ended::ByItself => {
            tracing::debug!(%status, stage = ?child_report.stage, "a preflight child ended")
        }
        Ended::AtDeadline => {
            tracing::debug!(stage = ?child_report.stage, "a preflight child reached its deadline")
        }
    }
    if scope == Scope::Again && says_nothing(ended, status) {
        let during = child_report.stage.during();
        return Err(io::Error::other(format!(
            "the child was ended {during}, by the deadline or from outside"
        )));
    }
    child_report.verdict(ended, status, deadline, task.leave, &said)
}

/// Whether the end of a child may be due to the machine: it was too slow, or out of memory.
fn says_nothing(ended: Ended, status: ExitStatus) -> bool {
    match ended {
        Ended::Reported => false,
        Ended::ByItself => status.signal() == Some(Signal::KILL.as_raw()),
        Ended::AtDeadline => true,
    }
}

/// A child, and what is needed to end it for certain.
struct Running {
    child: Child,
    group: ProcessGroup,
    /// Comes when the child has ended, and leaves its exit status and with it its process id.
    ended: oneshot::Receiver<()>,
    socket: UnixStream,
    output: Output,
}

fn spawn_child(socket: StdUnixStream) -> io::Result<Child> {
    let mut command = process::own_program()?;
    // A plugin that lives here may have changed what this process would pass on.
    origin().pass_on(&mut command);
    Command::from(command)
        .arg(CHILD)
        .stdin(OwnedFd::from(socket))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

impl Running {
    async fn spawn() -> io::Result<Self> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let socket = UnixStream::from_std(ours)?;
        let (tell, started) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let runtime = Handle::current();
        // Starting a process holds up the thread that does it, so it is none that serves; and the
        // child ends with that thread, so it stays until then.
        background::start("preflight", move || {
            let _runtime = runtime.enter();
            let child = spawn_child(theirs);
            let pid = child.as_ref().ok().and_then(Child::id);
            let pid = pid.and_then(|pid| Pid::from_raw(pid.cast_signed()));
            // Dropped when nobody wants it any more, and killed by that.
            let _ = tell.send(child);
            if let Some(pid) = pid {
                // An error means that somebody took its status already, so it has ended.
                let _ = waitid(
                    WaitId::Pid(pid),
                    WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
                );
            }
            let _ = end.send(()); // nobody waits any more
        })?;
        let mut child = started.await.map_err(io::Error::other)??;
        let group = ProcessGroup::of(child.id());
        let mut output = Output::default();
        output.read(child.stdout.take());
        output.read(child.stderr.take());
        Ok(Self {
            child,
            group,
            ended,
            socket,
            output,
        })
    }

    /// Gives the child the bytes that it is to check: those that the host will map.
    async fn hand_over(&self, image: OwnedFd) -> io::Result<()> {
        let image = [image.as_fd()];
        let sent = self
            .socket
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut with = SendAncillaryBuffer::new(&mut space);
                with.push(SendAncillaryMessage::ScmRights(&image));
                let byte = [IoSlice::new(&[0])];
                Ok(sendmsg(
                    &self.socket,
                    &byte,
                    &mut with,
                    SendFlags::NOSIGNAL,
                )?)
            })
            .await;
        match sent {
            // A child that died before is found by its end.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            sent => sent.map(|_| ()),
        }
    }

    /// Gives the child its task and hears it until its last line, its end, or the deadline.
    async fn listen(
        &mut self,
        task: &Task,
        child_report: &mut ChildReport,
        deadline: Duration,
    ) -> io::Result<Ended> {
        let Self { socket, ended, .. } = self;
        let (from, mut to) = socket.split();
        let mut lines = BufReader::new(from);
        let mut task = serde_json::to_vec(task)?;
        task.push(b'\n');
        let talk = async {
            // A child that died before it read its task is found by its end.
            if to.write_all(&task).await.is_ok() {
                child_report.listen(&mut lines).await;
            }
            if child_report.last.is_none() && !child_report.garbled {
                std::future::pending::<()>().await;
            }
        };
        let ended = tokio::select! {
            biased;
            () = talk => Ended::Reported,
            _ = ended => Ended::ByItself,
            () = tokio::time::sleep(deadline) => Ended::AtDeadline,
        };
        if ended == Ended::ByItself {
            // What it said just before is still in the socket.
            let _ = tokio::time::timeout(AFTERWARDS, child_report.listen(&mut lines)).await;
        }
        // A child ends right after its last line, so its end may be seen before that.
        if child_report.last.is_some() {
            return Ok(Ended::Reported);
        }
        Ok(ended)
    }

    /// Ends whatever still runs and takes the exit status of the child.
    async fn end(&mut self) -> io::Result<ExitStatus> {
        drop(self.group.take());
        let status = self.child.wait().await?;
        self.output.finish().await;
        Ok(status)
    }
}

/// Why the host stopped listening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The child said its last line.
    Reported,
    /// The child ended.
    ByItself,
    /// It was ended.
    AtDeadline,
}

/// What the child said.
#[derive(Debug, Default)]
struct ChildReport {
    stage: Stage,
    checked: Vec<String>,
    remarks: Vec<Remark>,
    companions: Vec<Companion>,
    answers: Vec<Answer>,
    last: Option<Line>,
    /// It said what is no line of ours: code of the plugin wrote to its socket.
    garbled: bool,
}

impl ChildReport {
    /// Hears lines until the last one, or until nothing more comes.
    async fn listen(&mut self, lines: &mut (impl AsyncBufReadExt + Unpin)) {
        while self.last.is_none() {
            let mut line = Vec::new();
            match (&mut *lines)
                .take(LONGEST as u64)
                .read_until(b'\n', &mut line)
                .await
            {
                Ok(read) if read > 0 && line.ends_with(b"\n") => {}
                Ok(LONGEST) => {
                    self.garbled = true;
                    return;
                }
                Ok(_) | Err(_) => return,
            }
            match serde_json::from_slice(&line) {
                Ok(Line::Begins { stage }) => self.stage = stage,
                Ok(Line::Checked { what }) => self.checked.push(what),
                Ok(Line::Remarked { remark }) => self.remarks.push(remark),
                Ok(Line::Beside { companion }) => self.companions.push(companion),
                Ok(Line::Answered { answer }) => self.answers.push(answer),
                Ok(last) => self.last = Some(last),
                Err(_) => {
                    self.garbled = true;
                    return;
                }
            }
        }
    }

    /// The verdict, with what the child printed before it ended.
    fn verdict(
        mut self,
        ended: Ended,
        status: ExitStatus,
        deadline: Duration,
        leave: Leave,
        printed: &str,
    ) -> io::Result<Verdict> {
        let during = self.stage.during();
        let with_output = |reason: String| match printed {
            "" => reason,
            printed => format!("{reason}; it printed last:\n{printed}"),
        };
        match self.last {
            Some(Line::Passed) => return Ok(self.passed(leave)),
            // No fault of the artifact: a lock that somebody else has says the same, and is named.
            Some(Line::Rejected { reason, refused })
                if refused.is_empty() && shortage::is_named(&reason) =>
            {
                return Err(io::Error::other(with_output(reason)));
            }
            Some(Line::Rejected { reason, refused }) => {
                let reason = ledger::explained(&reason, &refused);
                return Ok(Verdict::Rejected(with_output(reason)));
            }
            Some(Line::Unhealthy { reason }) => return Ok(Verdict::Unhealthy(with_output(reason))),
            Some(Line::Broken { reason }) => return Err(io::Error::other(with_output(reason))),
            // Not last lines: `listen` keeps none of them.
            Some(
                Line::Begins { .. }
                | Line::Checked { .. }
                | Line::Remarked { .. }
                | Line::Answered { .. }
                | Line::Beside { .. },
            )
            | None => {}
        }
        if self.garbled {
            return Ok(Verdict::Rejected(with_output(format!(
                "it wrote into a descriptor that is not its own, the one of preflight, {during}"
            ))));
        }
        if ended == Ended::AtDeadline {
            let limit = humantime::format_duration(deadline);
            let mut reason =
                format!("it did not end within {limit} {during} (check.deadline sets the limit)");
            if matches!(self.stage, Stage::Starting) {
                reason.push_str(
                    "; one that serves by itself, as `axum::serve` does, never ends: \
                     `handover_plugin::serve` gives the app to the host",
                );
            }
            return Ok(match self.stage {
                Stage::Smoke { .. } => Verdict::Unhealthy(with_output(reason)),
                Stage::Preparing
                | Stage::Reading
                | Stage::Mapping
                | Stage::Migrating { .. }
                | Stage::Starting => Verdict::Rejected(with_output(reason)),
                // Everything was right until then.
                Stage::Leaving => {
                    self.remarks.push(Remark::warning(
                        Topic::SlowEnd,
                        format!("replaced, its end takes long: {reason}"),
                    ));
                    self.passed(leave)
                }
            });
        }
        let what = match (status.signal(), status.code()) {
            (Some(signal), _) => {
                let memory = match signal == Signal::KILL.as_raw() {
                    true => " (out of memory?)",
                    false => "",
                };
                format!(
                    "it crashed with {}{memory} {during}",
                    crate::signals::name(signal)
                )
            }
            (None, Some(code)) => format!("it called exit({code}) {during}"),
            (None, None) => format!("it ended {during}"),
        };
        match self.stage {
            // None of its code had run.
            Stage::Preparing | Stage::Reading => Err(io::Error::other(with_output(what))),
            _ if shortage::is_named(printed) => Err(io::Error::other(with_output(what))),
            Stage::Mapping | Stage::Migrating { .. } | Stage::Starting | Stage::Smoke { .. } => {
                Ok(Verdict::Rejected(with_output(what)))
            }
            Stage::Leaving => Ok(Verdict::Rejected(with_output(format!(
                "{what}: replaced, it would take the whole host with it (check.leave = \"off\" rehearses no end)"
            )))),
        }
    }

    /// The verdict on what has failed nowhere.
    fn passed(self, leave: Leave) -> Verdict {
        let Self {
            checked,
            remarks,
            companions,
            answers,
            ..
        } = self;
        let retained: Vec<_> = remarks
            .iter()
            .filter(|remark| remark.topic.is_retained())
            .map(|remark| remark.message.as_str())
            .collect();
        if leave == Leave::Refuse && !retained.is_empty() {
            let retained = retained.join("; ");
            return Verdict::Rejected(format!(
                "{retained} (check.leave = \"refuse\" refuses that)"
            ));
        }
        Verdict::Passed(Passed {
            checks: checked,
            remarks,
            companions,
            answers,
        })
    }
}

/// The end of what a child prints, read so that it never waits for a reader.
#[derive(Default)]
struct Output {
    tail: Arc<Mutex<VecDeque<u8>>>,
    /// Ended when this is dropped.
    readers: JoinSet<()>,
}

impl Output {
    fn read(&mut self, stream: Option<impl AsyncRead + Send + Unpin + 'static>) {
        let Some(mut stream) = stream else { return };
        let tail = Arc::clone(&self.tail);
        self.readers.spawn(async move {
            let mut buffer = vec![0; TAIL];
            while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                let mut tail = tail.lock();
                tail.extend(&buffer[..read]);
                let beyond = tail.len().saturating_sub(TAIL);
                tail.drain(..beyond);
            }
        });
    }

    /// Reads what is left. A process that left the group may hold the pipe open: it is not waited
    /// for.
    async fn finish(&mut self) {
        let all = async { while self.readers.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(AFTERWARDS, all).await;
        self.readers.abort_all();
    }

    fn text(&self) -> String {
        let tail: Vec<u8> = self.tail.lock().iter().copied().collect();
        String::from_utf8_lossy(&tail).trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    async fn child_report(lines: &str) -> ChildReport {
        let mut child_report = ChildReport::default();
        child_report
            .listen(&mut BufReader::new(lines.as_bytes()))
            .await;
        child_report
    }

    fn exited(code: i32) -> ExitStatus {
        ExitStatus::from_raw(code << 8)
    }

    fn killed(signal: i32) -> ExitStatus {
        ExitStatus::from_raw(signal)
    }

    const STARTING: &str = "{\"line\":\"begins\",\"stage\":\"starting\"}\n";
    const DEADLINE: Duration = Duration::from_secs(30);

    fn rejected(verdict: io::Result<Verdict>, parts: &[&str]) {
        let Verdict::Rejected(reason) = verdict.unwrap() else {
            panic!("not rejected")
        };
        for part in parts {
            assert!(reason.contains(part), "{reason}");
        }
    }

    #[tokio::test]
    async fn a_crash_names_its_signal_and_stage_and_last_words() {
        let verdict = child_report(STARTING).await.verdict(
            Ended::ByItself,
            killed(11),
            DEADLINE,
            Leave::Warn,
            "oh no",
        );
        rejected(
            verdict,
            &["SIGSEGV", "in the constructor", "printed last:\noh no"],
        );
    }

    #[tokio::test]
    async fn an_exit_names_its_code_even_when_it_is_zero() {
        for code in [0, 3] {
            let verdict = child_report(STARTING).await.verdict(
                Ended::ByItself,
                exited(code),
                DEADLINE,
                Leave::Warn,
                "",
            );
            rejected(verdict, &[&format!("exit({code}) in the constructor")]);
        }
    }

    #[tokio::test]
    async fn a_hang_is_a_rejection_and_in_a_smoke_request_unhealthy() {
        let verdict = child_report(STARTING).await.verdict(
            Ended::AtDeadline,
            killed(9),
            DEADLINE,
            Leave::Warn,
            "",
        );
        rejected(
            verdict,
            &[
                "did not end within 30s",
                "in the constructor",
                "`handover_plugin::serve`",
            ],
        );
        let smoke = "{\"line\":\"begins\",\"stage\":{\"smoke\":{\"path\":\"/health\"}}}\n";
        let verdict = child_report(smoke).await.verdict(
            Ended::AtDeadline,
            killed(9),
            DEADLINE,
            Leave::Warn,
            "",
        );
        assert!(
            matches!(verdict.unwrap(), Verdict::Unhealthy(reason) if reason.contains("GET /health"))
        );
    }

    #[tokio::test]
    async fn what_was_checked_is_told_in_order() {
        let lines = "{\"line\":\"checked\",\"what\":\"a\"}\n{\"line\":\"checked\",\"what\":\"b\"}\n{\"line\":\"passed\"}\n";
        let verdict = child_report(lines).await.verdict(
            Ended::Reported,
            killed(9),
            DEADLINE,
            Leave::Warn,
            "noise",
        );
        assert_eq!(
            verdict.unwrap(),
            Verdict::Passed(Passed {
                checks: vec!["a".into(), "b".into()],
                ..Passed::default()
            })
        );
    }

    const LEAVING: &str = "{\"line\":\"begins\",\"stage\":\"leaving\"}\n";

    #[tokio::test]
    async fn an_end_that_crashes_is_refused_and_one_that_lasts_is_a_warning() {
        let verdict = child_report(LEAVING).await.verdict(
            Ended::ByItself,
            killed(11),
            DEADLINE,
            Leave::Warn,
            "",
        );
        rejected(verdict, &["SIGSEGV", "rehearsed", "leave"]);
        let late = async |leave| {
            child_report(LEAVING)
                .await
                .verdict(Ended::AtDeadline, killed(9), DEADLINE, leave, "")
        };
        let Verdict::Passed(passed) = late(Leave::Warn).await.unwrap() else {
            panic!("not passed")
        };
        assert_eq!(passed.remarks[0].topic, Topic::SlowEnd);
        assert!(passed.remarks[0].warning);
        rejected(
            late(Leave::Refuse).await,
            &["did not end within 30s", "refuse"],
        );
    }

    #[tokio::test]
    async fn what_would_be_retained_is_refused_where_that_is_wanted() {
        let remark = |topic| Line::Remarked {
            remark: Remark::warning(topic, "it stays"),
        };
        for (topic, is_refused) in [(Topic::Retained, true), (Topic::LeftOpen, false)] {
            let line = serde_json::to_string(&remark(topic)).unwrap();
            let verdict = child_report(&format!("{line}\n{{\"line\":\"passed\"}}\n"))
                .await
                .verdict(Ended::Reported, killed(9), DEADLINE, Leave::Refuse, "")
                .unwrap();
            assert_eq!(matches!(verdict, Verdict::Rejected(_)), is_refused);
        }
    }

    #[tokio::test]
    async fn a_verdict_that_is_cut_off_is_none() {
        let verdict = child_report(&format!("{STARTING}{{\"line\":\"passed\"}}"))
            .await
            .verdict(Ended::ByItself, exited(0), DEADLINE, Leave::Warn, "");
        rejected(verdict, &["exit(0)"]);
    }

    #[tokio::test]
    async fn what_is_no_report_is_refused_and_not_waited_for() {
        for said in ["hello\n".to_owned(), "x".repeat(LONGEST + 1)] {
            let child_report = child_report(&format!("{STARTING}{said}")).await;
            let verdict =
                child_report.verdict(Ended::Reported, killed(9), DEADLINE, Leave::Warn, "");
            rejected(verdict, &["not its own", "in the constructor"]);
        }
    }

    #[tokio::test]
    async fn a_child_that_never_came_up_is_the_hosts_fault() {
        let verdict =
            child_report("")
                .await
                .verdict(Ended::ByItself, exited(101), DEADLINE, Leave::Warn, "");
        assert!(verdict.is_err());
    }

    #[tokio::test]
    async fn only_the_end_of_what_it_prints_is_kept() {
        let mut output = Output::default();
        let long: &'static [u8] = Box::leak(vec![b'x'; 1_000_000].into_boxed_slice());
        output.read(Some(long));
        output.finish().await;
        assert_eq!(output.text().len(), TAIL);
    }
}
