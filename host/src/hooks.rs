//! Programs that the operator has run at a deploy: each in a process group of its own, with a
//! deadline, and with its output read so that it never waits for a reader.

use std::{
    collections::VecDeque,
    io,
    os::unix::process::ExitStatusExt,
    process::{Command as StdCommand, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    runtime::Handle,
    sync::oneshot,
    task::JoinSet,
};

use crate::{background, human, origin::origin, process_group::ProcessGroup, signals};

/// How many of the last lines are kept.
const LINES: usize = 50;

/// The longest line that is kept whole, in bytes.
const LONGEST: usize = 500;

/// How long the output is read after the end: what the program has left behind may hold it open.
const AFTERWARDS: Duration = Duration::from_millis(200);

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// None: it was ended at its deadline.
    status: Option<ExitStatus>,
    deadline: Duration,
    /// The last lines that it printed, in their order.
    pub(crate) lines: Vec<String>,
    /// The last line on standard output.
    pub(crate) last: Option<String>,
}

impl Finished {
    /// Returns why it is no success.
    pub(crate) fn failure(&self) -> Option<String> {
        let status = match self.status {
            Some(status) if status.success() => return None,
            None => {
                return Some(format!(
                    "did not end within {}",
                    human::duration(self.deadline)
                ));
            }
            Some(status) => status,
        };
        Some(match (status.code(), status.signal()) {
            (Some(code), _) => format!("ended with {code}"),
            (None, Some(signal)) => format!("was ended by {}", signals::name(signal)),
            (None, None) => "ended in an unknown way".to_owned(),
        })
    }
}

#[derive(Debug, Default)]
struct Said {
    lines: VecDeque<String>,
    last: Option<String>,
}

/// Runs `program`, its arguments behind it, with `variables` beside the environment that the host
/// began with, until it ends or for `deadline`. To be called within a runtime.
///
/// # Errors
/// When it cannot be started.
pub(crate) async fn run(
    program: &[String],
    variables: Vec<(&'static str, String)>,
    deadline: Duration,
) -> io::Result<Finished> {
    let Some((name, arguments)) = program.split_first() else {
        return Err(io::Error::other("there is no program"));
    };
    let mut command = StdCommand::new(name);
    // A plugin that lives here may have changed what this process would pass on.
    origin().pass_on(&mut command);
    command.args(arguments).envs(variables);
    let (tell, started) = oneshot::channel();
    let runtime = Handle::current();
    // Starting a process holds up the thread that does it, so it is none that serves.
    background::start("hook", move || {
        let _runtime = runtime.enter();
        let _ = tell.send(spawn(command)); // nobody waits any more
    })?;
    let mut child = started.await.map_err(io::Error::other)??;
    let group = ProcessGroup::of(child.id());
    let said = Arc::new(Mutex::new(Said::default()));
    let mut readers = JoinSet::new();
    readers.spawn(read(child.stdout.take(), Arc::clone(&said), true));
    readers.spawn(read(child.stderr.take(), Arc::clone(&said), false));
    let status = match tokio::time::timeout(deadline, child.wait()).await {
        Ok(status) => Some(status?),
        Err(_) => None,
    };
    if status.is_none() {
        drop(group);
        let _ = child.wait().await; // it was killed
    } else {
        // What it left behind has its place no longer, and its number may be another's by now.
        group.forget();
    }
    let rest = async { while readers.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(AFTERWARDS, rest).await;
    let said = std::mem::take(&mut *said.lock());
    Ok(Finished {
        status,
        deadline,
        lines: said.lines.into(),
        last: said.last,
    })
}

fn spawn(command: StdCommand) -> io::Result<Child> {
    Command::from(command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
}

/// Reads lines until the end; of one that is too long the beginning.
async fn read(
    stream: Option<impl AsyncRead + Send + Unpin + 'static>,
    said: Arc<Mutex<Said>>,
    is_output: bool,
) {
    let Some(stream) = stream else { return };
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        let (taken, is_end) = match stream.fill_buf().await {
            Ok([]) | Err(_) => break,
            Ok(bytes) => match bytes.iter().position(|byte| *byte == b'\n') {
                Some(at) => {
                    push(&mut line, &bytes[..at]);
                    (at + 1, true)
                }
                None => {
                    push(&mut line, bytes);
                    (bytes.len(), false)
                }
            },
        };
        stream.consume(taken);
        if is_end {
            keep(&said, &mut line, is_output);
        }
    }
    if !line.is_empty() {
        keep(&said, &mut line, is_output);
    }
}

fn push(line: &mut Vec<u8>, bytes: &[u8]) {
    let room = LONGEST.saturating_sub(line.len());
    line.extend(&bytes[..bytes.len().min(room)]);
}

fn keep(said: &Mutex<Said>, line: &mut Vec<u8>, is_output: bool) {
    let text = String::from_utf8_lossy(line).trim_end().to_owned();
    line.clear();
    let mut said = said.lock();
    if is_output && !text.is_empty() {
        said.last = Some(text.clone());
    }
    said.lines.push_back(text);
    while said.lines.len() > LINES {
        said.lines.pop_front();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    async fn shell(script: &str, deadline: Duration) -> Finished {
        let program = ["/bin/sh", "-c", script].map(str::to_owned);
        let variables = vec![("HANDOVER_APP", "shop".to_owned())];
        run(&program, variables, deadline).await.unwrap()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn what_it_says_and_how_it_ends_is_known() {
        let good = shell("echo $HANDOVER_APP; echo no >&2; echo", LONG).await;
        assert_eq!(good.failure(), None);
        assert_eq!(good.last.as_deref(), Some("shop"));
        assert!(good.lines.contains(&"no".to_owned()));
        let bad = shell("exit 3", LONG).await;
        assert_eq!(bad.failure().as_deref(), Some("ended with 3"));
        let killed = shell("kill -9 $$", LONG).await;
        assert_eq!(killed.failure().as_deref(), Some("was ended by SIGKILL"));
    }

    #[tokio::test]
    async fn one_that_hangs_is_ended_with_what_it_started() {
        let script = "sleep 600 & echo $!; sleep 600";
        let hangs = shell(script, Duration::from_millis(300)).await;
        assert!(hangs.failure().unwrap().contains("did not end within"));
        let child = hangs.last.unwrap();
        let is_gone = || {
            let status = std::fs::read_to_string(format!("/proc/{child}/status"));
            status.map_or(true, |status| status.contains("State:\tZ"))
        };
        while !is_gone() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn one_that_says_much_or_leaves_a_process_is_not_waited_for() {
        let much = shell("yes 0123456789 | head -n 1000000; echo end", LONG).await;
        assert_eq!(much.lines.len(), LINES);
        assert_eq!(much.last.as_deref(), Some("end"));
        let long = shell("head -c 100000 /dev/zero | tr '\\0' x", LONG).await;
        assert_eq!(long.lines[0].len(), LONGEST);
        let leaves = shell("sleep 5 & echo left", LONG).await;
        assert_eq!(leaves.failure(), None);
        assert_eq!(leaves.last.as_deref(), Some("left"));
    }

    #[tokio::test]
    async fn what_cannot_be_started_is_an_error() {
        let program = ["/there/is/no/such".to_owned()];
        run(&program, Vec::new(), LONG).await.unwrap_err();
        run(&[], Vec::new(), LONG).await.unwrap_err();
    }
}
