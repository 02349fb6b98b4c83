//! What goes wrong in the day.

use std::{
    fs,
    io::Write,
    os::unix::net::UnixStream,
    path::PathBuf,
    pin::Pin,
    process::Stdio,
    time::{Duration, Instant},
};

use handover_tests::{client::Http1, host::DEADLINE, plugins::handover};
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    process::{Pid, Signal, kill_process},
};
use tokio::{io::AsyncWriteExt, net::TcpStream, process::Child};

use crate::{Day, HEALTHY, children, is_code};

/// What clients of healthy apps may see of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing.
    Unnoticed,
    /// What was in flight ends with the process, or there is nothing left to answer with.
    Deadly,
}

type Done<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + 'a>>;

/// One thing that goes wrong.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    does: for<'a> fn(&'a mut Day) -> Done<'a>,
}

impl Step {
    pub(crate) fn run<'a>(&self, day: &'a mut Day) -> Done<'a> {
        (self.does)(day)
    }
}

macro_rules! steps {
    ($($kind:ident $name:literal $does:ident),* $(,)?) => {
        /// All of them.
        pub(crate) const STEPS: &[Step] = &[$(Step {
            name: $name,
            kind: Kind::$kind,
            does: |day| Box::pin($does(day)),
        }),*];
    };
}

steps! {
    Unnoticed "a deploy" deploy,
    Unnoticed "three deploys at once" deploys_at_once,
    Unnoticed "a dropped file" drop_file,
    Unnoticed "a rollback and a deploy" rollback,
    Unnoticed "a reload, and SIGHUP" reload,
    Unnoticed "a deploy during streams" deploy_during_streams,
    Unnoticed "artifacts that are refused" refused,
    Unnoticed "a preflight that is killed" preflight_killed,
    Unnoticed "a conflict of two deploys" conflict,
    Unnoticed "a client killed in its deploy" client_killed,
    Unnoticed "an upload that is cut" upload_cut,
    Unnoticed "a crowd of silent clients" silent_clients,
    Unnoticed "clients that leave in the middle" leaving_clients,
    Unnoticed "clients that do not read" unread_answers,
    Unnoticed "signals without a meaning" signals,
    Unnoticed "the host stopped and continued" stopped,
    Unnoticed "the supervisor stopped and continued" supervisor_stopped,
    Unnoticed "the control socket deleted" control_deleted,
    Unnoticed "panics" panics,
    Unnoticed "handlers that block" blocked,
    Unnoticed "a storm of files" storm,
    Unnoticed "a file that is still written" still_written,
    Unnoticed "a pipe in the drop folder" pipe_dropped,
    Unnoticed "the clock jumps" clock_jumps,
    Unnoticed "a full disk" full_disk,
    Unnoticed "a read-only disk" read_only_disk,
    Deadly "every descriptor taken" descriptors_taken,
    Deadly "kill -9 of the host" kill_host,
    Deadly "kill -9 of the supervisor" kill_supervisor,
    Deadly "kill -9 of the host in a deploy" kill_host_in_deploy,
    Deadly "kill -9 of the host on a full disk" kill_on_full_disk,
    Deadly "kill -9 of the host on a read-only disk" kill_on_read_only_disk,
    Deadly "kill -9 of the host while its supervisor is stopped" kill_unseen,
    Deadly "SIGTERM to both, and a start" restart,
    Deadly "a shutdown in the middle of a deploy" shutdown_in_deploy,
    Deadly "a crash in a handler" crash,
    Deadly "crashes in a row" crashes,
    Deadly "a constructor that crashes at a start" crash_at_start,
    Deadly "a deploy that crashes the host" crash_in_deploy,
    Deadly "a crash while the host ends" crash_in_the_end,
}

fn healthy(day: &mut Day) -> &'static str {
    day.random.one(&HEALTHY).0
}

async fn deploy(day: &mut Day) -> Result<(), String> {
    let app = healthy(day);
    let bytes = day.artifact(app, "");
    day.deploy(app, &bytes).await?;
    expect_version(day, app).await
}

/// The version that was made last is live.
async fn expect_version(day: &Day, app: &str) -> Result<(), String> {
    let (is, wanted) = (day.host.active(app).await.version, day.last_version());
    if is == wanted {
        Ok(())
    } else {
        Err(format!("{app} {is} is live in place of {wanted}"))
    }
}

async fn deploys_at_once(day: &mut Day) -> Result<(), String> {
    let artifacts: Vec<_> = HEALTHY[..3]
        .iter()
        .map(|(app, _)| (*app, day.artifact(app, "")))
        .collect();
    let mut clients = Vec::new();
    for (app, bytes) in &artifacts {
        clients.push(begin_deploy(day, app, bytes, &["--queue"]));
    }
    for client in clients {
        ended(client, &[0]).await?;
    }
    Ok(())
}

/// `handover deploy` as a process.
fn begin_deploy(day: &Day, app: &str, bytes: &[u8], more: &[&str]) -> Child {
    let path = day.host.scratch(&format!("of-{app}.so"));
    fs::write(&path, bytes).expect("the temporary folder can be written");
    tokio::process::Command::new(handover())
        .args(["deploy", "--app", app])
        .arg(path)
        .args(more)
        .env("HANDOVER_CONTROL", day.host.control())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("it can be run")
}

async fn ended(client: Child, codes: &[i32]) -> Result<(), String> {
    let output = tokio::time::timeout(DEADLINE, client.wait_with_output()).await;
    let output = output
        .map_err(|_| "a client of the command line does not end".to_owned())?
        .map_err(|error| error.to_string())?;
    if output
        .status
        .code()
        .is_some_and(|code| codes.contains(&code))
    {
        return Ok(());
    }
    Err(format!(
        "{} in place of {codes:?}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}

async fn drop_file(day: &mut Day) -> Result<(), String> {
    let app = healthy(day);
    let bytes = day.artifact(app, "");
    let name = format!("{app}/{app}.so");
    let answer = day.host.plugins().join(format!("{name}.deployed"));
    let _ = fs::remove_file(&answer);
    day.host.drop_in(&name, &bytes);
    day.host.verdict(&name, "deployed").await;
    day.host.live(app, &day.last_version()).await;
    fs::remove_file(day.host.plugins().join(name)).map_err(|error| error.to_string())
}

async fn rollback(day: &mut Day) -> Result<(), String> {
    let app = healthy(day);
    // Twice, so that there is something to go back to, whatever was taken back before.
    for _ in 0..2 {
        let bytes = day.artifact(app, "");
        day.deploy(app, &bytes).await?;
    }
    is_code(&day.host.cli(["rollback", app]).await, &[0])?;
    let bytes = day.artifact(app, "");
    day.deploy(app, &bytes).await
}

async fn reload(day: &mut Day) -> Result<(), String> {
    is_code(&day.host.cli(["reload", "--queue"]).await, &[0])?;
    day.host.signal(Signal::HUP);
    is_code(&day.host.cli(["reload", "--queue"]).await, &[0])
}

async fn deploy_during_streams(day: &mut Day) -> Result<(), String> {
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut http = Http1::connect(day.host.address)
            .await
            .map_err(|fault| fault.to_string())?;
        http.send_head("GET", "/stream?n=40&every_ms=25", &[])
            .await
            .map_err(|fault| fault.to_string())?;
        streams.push(http);
    }
    let bytes = day.artifact("front", "");
    day.deploy("front", &bytes).await?;
    for mut http in streams {
        let answer = http
            .answer("GET")
            .await
            .map_err(|fault| format!("a stream: {fault}"))?;
        if answer.text().lines().count() != 40 {
            return Err(format!(
                "a stream of {} lines",
                answer.text().lines().count()
            ));
        }
    }
    Ok(())
}

async fn refused(day: &mut Day) -> Result<(), String> {
    for _ in 0..2 {
        let habits = [
            "start-error",
            "start-panic",
            "start-segv",
            "start-abort",
            "start-exit",
        ];
        let habit = day.random.one(&habits);
        let bytes = day.artifact("misfit", habit);
        is_code(&day.try_deploy("misfit", &bytes, &["--queue"]).await, &[4])
            .map_err(|why| format!("{habit}: {why}"))?;
    }
    let bytes = day.artifact("front", "");
    let cut = day.random.below(bytes.len() as u64 / 2) + 100;
    let cut = usize::try_from(cut).expect("it is a length");
    is_code(
        &day.try_deploy("front", &bytes[..cut], &["--queue"]).await,
        &[4],
    )?;
    is_code(
        &day.try_deploy("front", b"no plugin", &["--queue"]).await,
        &[4],
    )
}

/// Waits until a constructor runs in `pid`.
async fn constructs(pid: u32) -> Result<(), String> {
    until("a constructor to run", || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        let mut names = tasks.flatten().map(|task| task.path().join("comm"));
        names
            .any(|name| fs::read_to_string(name).is_ok_and(|name| name.trim() == "start"))
            .then_some(())
    })
    .await
}

async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T, String> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() > deadline {
            return Err(format!("waited in vain for {what}"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A deploy that is under way until its preflight child, whose process is returned, is killed.
async fn hanging(day: &mut Day) -> Result<(Child, u32), String> {
    let bytes = day.artifact("misfit", "start-hang");
    let client = begin_deploy(day, "misfit", &bytes, &["--queue"]);
    let host = day.host.pid();
    let child = until("a preflight child", || children(host).first().copied()).await?;
    constructs(child).await?;
    Ok((client, child))
}

fn kill(pid: u32) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("it is a process");
    let _ = kill_process(pid, Signal::KILL); // it may have ended
}

async fn preflight_killed(day: &mut Day) -> Result<(), String> {
    let (client, child) = hanging(day).await?;
    kill(child);
    ended(client, &[1, 4]).await
}

async fn conflict(day: &mut Day) -> Result<(), String> {
    let (client, child) = hanging(day).await?;
    let bytes = day.artifact("misfit", "none");
    is_code(&day.try_deploy("misfit", &bytes, &[]).await, &[8])?;
    let waits = begin_deploy(day, "misfit", &bytes, &["--queue"]);
    // Another app is not held up.
    deploy(day).await?;
    kill(child);
    ended(client, &[1, 4]).await?;
    ended(waits, &[0]).await
}

async fn client_killed(day: &mut Day) -> Result<(), String> {
    let bytes = day.artifact("front", "");
    let mut client = begin_deploy(day, "front", &bytes, &[]);
    let after = Duration::from_millis(day.random.below(400));
    tokio::time::sleep(after).await;
    let _ = client.start_kill(); // it may have ended
    let _ = client.wait().await;
    day.host
        .app_when("front", "nothing to be under way", |app| {
            app.state == "serving"
        })
        .await;
    Ok(())
}

async fn upload_cut(day: &mut Day) -> Result<(), String> {
    let bytes = day.artifact("front", "");
    let mut call = UnixStream::connect(day.host.control()).map_err(|error| error.to_string())?;
    let head = format!(
        "POST /v1/deploy?app=front HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        bytes.len()
    );
    call.write_all(head.as_bytes())
        .and_then(|()| call.write_all(&bytes[..bytes.len() / 2]))
        .map_err(|error| error.to_string())
}

async fn silent_clients(day: &mut Day) -> Result<(), String> {
    let heads: [&[u8]; 5] = [
        b"",
        b"GET / HTTP/1.1\r\nhost:",
        b"PRI * HT",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /sink HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhal",
    ];
    let mut crowd = Vec::new();
    for _ in 0..150 {
        let mut stream = TcpStream::connect(day.host.address)
            .await
            .map_err(|error| error.to_string())?;
        let bytes = day.random.one(&heads);
        stream
            .write_all(bytes)
            .await
            .map_err(|error| error.to_string())?;
        crowd.push(stream);
    }
    if day.random.below(2) == 0 {
        // Long enough for each of their deadlines.
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    Ok(())
}

async fn leaving_clients(day: &mut Day) -> Result<(), String> {
    for _ in 0..20 {
        let mut http = Http1::connect(day.host.address)
            .await
            .map_err(|fault| fault.to_string())?;
        let sent = match day.random.below(4) {
            0 => http.send(b"GET /ver").await,
            1 => {
                let length = [("content-length", "100000")];
                match http.send_head("POST", "/sink", &length).await {
                    Ok(()) => http.send(&[0; 1000]).await,
                    fault => fault,
                }
            }
            2 => http.send_head("GET", "/slow?ms=500", &[]).await,
            _ => http.send_head("GET", "/stream?n=100&every_ms=5", &[]).await,
        };
        sent.map_err(|fault| fault.to_string())?;
    }
    Ok(())
}

async fn unread_answers(day: &mut Day) -> Result<(), String> {
    let mut crowd = Vec::new();
    for _ in 0..8 {
        let mut http = Http1::connect(day.host.address)
            .await
            .map_err(|fault| fault.to_string())?;
        http.send_head("GET", "/whole?bytes=3000000", &[])
            .await
            .map_err(|fault| fault.to_string())?;
        crowd.push(http);
    }
    deploy(day).await
}

async fn signals(day: &mut Day) -> Result<(), String> {
    for signal in [
        Signal::USR1,
        Signal::USR2,
        Signal::ALARM,
        Signal::PIPE,
        Signal::WINCH,
        Signal::PROF,
        Signal::URG,
    ] {
        day.host.signal(signal);
        day.host.signal_inner(signal);
    }
    Ok(())
}

async fn stopped(day: &mut Day) -> Result<(), String> {
    day.host.signal_inner(Signal::STOP);
    tokio::time::sleep(Duration::from_millis(100 + day.random.below(900))).await;
    day.host.signal_inner(Signal::CONT);
    Ok(())
}

async fn supervisor_stopped(day: &mut Day) -> Result<(), String> {
    day.host.signal(Signal::STOP);
    let deployed = deploy(day).await;
    day.host.signal(Signal::CONT);
    deployed
}

async fn control_deleted(day: &mut Day) -> Result<(), String> {
    let control = day.host.control();
    fs::remove_file(&control).map_err(|error| error.to_string())?;
    until("the control socket", || control.exists().then_some(())).await?;
    is_code(&day.host.cli(["status"]).await, &[0])
}

async fn panics(day: &mut Day) -> Result<(), String> {
    for path in ["/panic", "/panic-with-panic"] {
        let answer = day.get(path).await?;
        if answer.status != 500 {
            return Err(format!("{path}: {}", answer.status));
        }
    }
    for path in ["/panic-in-spawn", "/panic-in-job", "/panic-in-body"] {
        let _ = day.get(path).await; // broken off, for a body
    }
    Ok(())
}

async fn blocked(day: &mut Day) -> Result<(), String> {
    let (one, other) = tokio::join!(day.get("/block?ms=700"), day.get("/shop/spin?ms=700"));
    for answer in [one, other] {
        let answer = answer?;
        if answer.status != 200 {
            return Err(format!("{}: {}", answer.status, answer.text()));
        }
    }
    Ok(())
}

async fn storm(day: &mut Day) -> Result<(), String> {
    let names: Vec<String> = (0..40).map(|n| format!("front/storm-{n}.so")).collect();
    for name in &names {
        day.host
            .drop_in(name, format!("no plugin, but {name}").as_bytes());
    }
    let bytes = day.artifact("front", "");
    day.host.drop_in("front/whole.so", &bytes);
    day.host.live("front", &day.last_version()).await;
    for name in &names {
        let file = day.host.plugins().join(name);
        let answer = PathBuf::from(format!("{}.failed", file.display()));
        until("the answer to a file of a storm", || {
            answer.exists().then_some(())
        })
        .await?;
        fs::remove_file(file).map_err(|error| error.to_string())?;
    }
    day.host.verdict("front/whole.so", "deployed").await;
    fs::remove_file(day.host.plugins().join("front/whole.so")).map_err(|error| error.to_string())
}

async fn still_written(day: &mut Day) -> Result<(), String> {
    let bytes = day.artifact("hello", "");
    let path = day.host.plugins().join("hello/slow.so");
    fs::create_dir_all(path.parent().expect("it lies in a folder"))
        .map_err(|error| error.to_string())?;
    let mut file = fs::File::create(&path).map_err(|error| error.to_string())?;
    let pieces = bytes.chunks(bytes.len() / 4 + 1);
    for piece in pieces {
        file.write_all(piece).map_err(|error| error.to_string())?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    drop(file);
    day.host.live("hello", &day.last_version()).await;
    day.host.verdict("hello/slow.so", "deployed").await;
    fs::remove_file(path).map_err(|error| error.to_string())
}

async fn pipe_dropped(day: &mut Day) -> Result<(), String> {
    let path = day.host.plugins().join("front").join("pipe.so");
    let _ = fs::create_dir_all(day.host.plugins().join("front"));
    mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).map_err(|error| error.to_string())?;
    is_code(&day.host.cli(["reload", "--queue"]).await, &[0, 1, 4])?;
    fs::remove_file(path).map_err(|error| error.to_string())
}

async fn clock_jumps(day: &mut Day) -> Result<(), String> {
    const DAY: i64 = 86_400;
    for _ in 0..3 {
        let jump = day
            .random
            .one(&[-3650 * DAY, -DAY, -60, 60, DAY, 3650 * DAY]);
        day.place.shift_clock(jump);
        deploy(day).await?;
    }
    day.place.shift_clock(0);
    deploy(day).await
}

/// Waits until nothing is only in memory.
async fn durable(day: &Day) -> Result<(), String> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let status = day.host.ask("GET", "/v1/status").await;
        let status = status.map_err(|fault| fault.to_string())?.json();
        let apps = status["apps"].as_array().cloned().unwrap_or_default();
        let Some(behind) = apps.iter().find(|app| !app["not_durable"].is_null()) else {
            return Ok(());
        };
        if Instant::now() > deadline {
            return Err(format!("it is not durable in spite of room: {behind}"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn refused_for_the_disk(day: &mut Day) -> Result<(), String> {
    let bytes = day.artifact("front", "");
    is_code(&day.try_deploy("front", &bytes, &["--queue"]).await, &[1])
}

async fn full_disk(day: &mut Day) -> Result<(), String> {
    day.place.fill_disk(&day.host);
    refused_for_the_disk(day).await?;
    day.clients.all_answered().await?;
    day.place.empty_disk(&day.host);
    durable(day).await?;
    deploy(day).await
}

async fn read_only_disk(day: &mut Day) -> Result<(), String> {
    day.place.remount(&day.host, "ro").await?;
    refused_for_the_disk(day).await?;
    is_code(&day.host.cli(["rollback", "shop"]).await, &[0, 1, 2])?;
    day.place.remount(&day.host, "rw").await?;
    durable(day).await?;
    // Whatever was taken back, it has something to go back to.
    for _ in 0..2 {
        let bytes = day.artifact("shop", "");
        day.deploy("shop", &bytes).await?;
    }
    Ok(())
}

async fn descriptors_taken(day: &mut Day) -> Result<(), String> {
    let bytes = day.artifact("misfit", "hungry");
    day.deploy("misfit", &bytes).await?;
    let mut http = Http1::connect(day.host.address)
        .await
        .map_err(|fault| fault.to_string())?;
    let opened = http.get("/misfit/open").await;
    let opened = opened.map_err(|fault| fault.to_string())?.text();
    let status = is_code(&day.host.cli(["status"]).await, &[0]);
    // That connection may have been the oldest idle one, which goes first.
    let deadline = Instant::now() + DEADLINE;
    while day.get("/misfit/close").await.is_err() {
        if Instant::now() > deadline {
            return Err("nobody gets through any more".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    status.map_err(|why| format!("with {opened} descriptors taken: {why}"))?;
    let bytes = day.artifact("misfit", "none");
    day.deploy("misfit", &bytes).await
}

async fn kill_host(day: &mut Day) -> Result<(), String> {
    day.host.signal_inner(Signal::KILL);
    day.host.came_back().await;
    Ok(())
}

async fn kill_supervisor(day: &mut Day) -> Result<(), String> {
    day.host.crash(|_| {}).await;
    Ok(())
}

async fn kill_host_in_deploy(day: &mut Day) -> Result<(), String> {
    let app = healthy(day);
    let bytes = day.artifact(app, "");
    let client = begin_deploy(day, app, &bytes, &["--queue"]);
    let after = Duration::from_millis(day.random.below(600));
    tokio::time::sleep(after).await;
    day.host.signal_inner(Signal::KILL);
    day.host.came_back().await;
    let _ = client.wait_with_output().await; // it may have been done
    Ok(())
}

async fn kill_on_full_disk(day: &mut Day) -> Result<(), String> {
    day.place.fill_disk(&day.host);
    for _ in 0..2 {
        kill_host(day).await?;
        day.clients.all_answered().await?;
    }
    day.place.empty_disk(&day.host);
    durable(day).await?;
    deploy(day).await
}

async fn kill_on_read_only_disk(day: &mut Day) -> Result<(), String> {
    day.place.remount(&day.host, "ro").await?;
    for _ in 0..2 {
        kill_host(day).await?;
        day.clients.all_answered().await?;
    }
    day.place.remount(&day.host, "rw").await?;
    durable(day).await?;
    deploy(day).await
}

async fn kill_unseen(day: &mut Day) -> Result<(), String> {
    day.host.signal(Signal::STOP);
    day.host.signal_inner(Signal::KILL);
    tokio::time::sleep(Duration::from_millis(300)).await;
    day.host.signal(Signal::CONT);
    day.host.came_back().await;
    Ok(())
}

async fn restart(day: &mut Day) -> Result<(), String> {
    match day.random.below(3) {
        0 => day.host.signal(Signal::TERM),
        1 => {
            day.host.signal(Signal::TERM);
            day.host.signal_inner(Signal::TERM);
        }
        _ => {
            day.host.signal_inner(Signal::TERM);
            day.host.signal(Signal::TERM);
        }
    }
    comes_again(day, 0).await
}

/// Waits for the end, and starts it again.
async fn comes_again(day: &mut Day, code: i32) -> Result<(), String> {
    let ended = day.host.ended().await;
    if ended != Some(code) {
        return Err(format!("it ended with {ended:?} in place of {code}"));
    }
    day.host.again().await;
    day.clients.ask_at(day.host.address);
    Ok(())
}

async fn shutdown_in_deploy(day: &mut Day) -> Result<(), String> {
    let (client, child) = hanging(day).await?;
    is_code(&day.host.cli(["shutdown"]).await, &[0])?;
    ended(client, &[1]).await?;
    let left = PathBuf::from(format!("/proc/{child}"));
    let gone = until("the preflight child to end", || {
        (!left.exists()).then_some(())
    })
    .await;
    comes_again(day, 0).await?;
    gone?;
    let history = day.host.cli(["history", "misfit"]).await;
    is_code(&history, &[0])?;
    if history.text().contains("which cut its preflight") {
        Ok(())
    } else {
        Err(format!(
            "what was cut is not in the history: {}",
            history.text()
        ))
    }
}

/// A way to end a process.
fn end(day: &mut Day) -> &'static str {
    let ways = [
        "/shop/segfault",
        "/shop/abort",
        "/shop/overflow",
        "/shop/exit",
    ];
    day.random.one(&ways)
}

async fn crash(day: &mut Day) -> Result<(), String> {
    let path = end(day);
    if let Ok(answer) = day.get(path).await {
        return Err(format!(
            "{path} was answered: {} {}",
            answer.status,
            answer.text()
        ));
    }
    day.host.came_back().await;
    // It may have been taken back as far as it goes.
    for _ in 0..2 {
        let bytes = day.artifact("shop", "");
        day.deploy("shop", &bytes).await?;
    }
    Ok(())
}

async fn crashes(day: &mut Day) -> Result<(), String> {
    for _ in 0..3 {
        let path = end(day);
        let _ = day.get(path).await;
        day.host.came_back().await;
        day.host
            .app_when("shop", "it to be up", |app| app.active.is_some())
            .await;
    }
    for _ in 0..3 {
        let bytes = day.artifact("shop", "");
        day.deploy("shop", &bytes).await?;
    }
    Ok(())
}

async fn crash_at_start(day: &mut Day) -> Result<(), String> {
    let habit = day.random.one(&["later-segv", "later-exit"]);
    let bytes = day.artifact("misfit", habit);
    day.deploy("misfit", &bytes).await?;
    let when = day.host.home().join("when");
    fs::write(&when, "").map_err(|error| error.to_string())?;
    day.host.signal_inner(Signal::KILL);
    // It crashes, and the start after that leaves it out.
    day.host.came_back().await;
    let answered = day.clients.all_answered().await;
    fs::remove_file(&when).map_err(|error| error.to_string())?;
    answered?;
    follow(day).await;
    let bytes = day.artifact("misfit", "none");
    day.deploy("misfit", &bytes).await
}

/// The process may be another one by now than that which was asked when it came back.
async fn follow(day: &mut Day) {
    day.host.is_followed().await;
}

async fn crash_in_deploy(day: &mut Day) -> Result<(), String> {
    let bytes = day.artifact("misfit", "live-segv");
    let output = day.try_deploy("misfit", &bytes, &["--queue"]).await;
    if output.code == Some(0) {
        return Err(format!("a crash went live: {}", output.text()));
    }
    day.host.came_back().await;
    Ok(())
}

async fn crash_in_the_end(day: &mut Day) -> Result<(), String> {
    let bytes = day.artifact("misfit", "end-segv");
    day.deploy("misfit", &bytes).await?;
    day.host.signal(Signal::TERM);
    comes_again(day, 70).await?;
    let bytes = day.artifact("misfit", "none");
    day.deploy("misfit", &bytes).await
}
