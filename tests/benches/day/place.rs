//! Where the host lives: a small disk of its own that outlives it, a clock that jumps, and few
//! descriptors.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use handover_tests::{
    host::{DEADLINE, Host, Setup},
    plugins::handover,
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Takes precedence over libc's: the time of day is shifted by as many seconds as the file says
/// that `CLOCK_SHIFT` names.
const SHIM: &str = r#"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    int answer = syscall(SYS_clock_gettime, clock, now);
    const char *path = getenv("CLOCK_SHIFT");
    if (answer == 0 && clock == CLOCK_REALTIME && path != NULL) {
        char text[32] = {0};
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if (file >= 0) {
            if (read(file, text, sizeof text - 1) > 0) now->tv_sec += atoll(text);
            close(file);
        }
    }
    return answer;
}
"#;

/// Six apps, and limits that a day can reach.
const CONFIG: &str = r#"
[server]
version_header = true
first_byte_timeout = "3s"
head_timeout = "3s"
body_timeout = "3s"
idle_timeout = "20s"
[trust]
insecure_paths = true
[log]
level = "warn"
[app.front]
routes = ["/"]
keep_artifacts = 2
[app.hello]
keep_artifacts = 2
[app.service]
keep_artifacts = 2
[app.sqlite]
keep_artifacts = 2
[app.misfit]
keep_artifacts = 1
[app.misfit.check]
leave = "off"
[app.misfit.config]
when = "HOME/when"
[app.sqlite.config]
folder = "HOME"
journal = "wal"
"#;

/// How many descriptors the host has. A plugin takes all of them in one step.
const DESCRIPTORS: u32 = 1500;

/// The surroundings of the host, as far as they are ours to change.
pub(crate) struct Place {
    folder: TempDir,
    /// Whether the state has a disk of its own.
    pub(crate) has_disk: bool,
    /// The process that holds that disk.
    holder: Option<u32>,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = TempDir::with_prefix("bad-day-").expect("there is a temporary folder");
        let at = |name: &str| folder.path().join(name);
        fs::write(at("shim.c"), SHIM).expect("it can be written");
        // A copy: others may build meanwhile.
        fs::create_dir(at("bin")).expect("it can be made");
        fs::copy(handover(), at("bin/handover")).expect("it was just built");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([at("shim.so"), at("shim.c")])
            .status();
        assert!(built.is_ok_and(|status| status.success()), "there is a cc");
        let may = Command::new("unshare")
            .args(["-rm", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"])
            .status();
        let has_disk = may.is_ok_and(|status| status.success());
        if !has_disk {
            println!(
                "no file system can be mounted here (unshare -rm): the disk is never full nor read-only"
            );
        }
        let place = Self {
            folder,
            has_disk,
            holder: None,
        };
        place.shift_clock(0);
        place
    }

    fn at(&self, name: &str) -> String {
        let path = self.folder.path().join(name);
        path.to_str().expect("a plain path").to_owned()
    }

    /// Sets the clock so many seconds ahead of what is true.
    pub(crate) fn shift_clock(&self, seconds: i64) {
        fs::write(self.at("next"), seconds.to_string()).expect("it can be written");
        fs::rename(self.at("next"), self.at("shift")).expect("it can be written");
    }

    /// A host that lives here.
    pub(crate) async fn start(&mut self) -> Host {
        let (program, holder) = (self.at("handover"), self.at("holder"));
        // The disk is held by a process of its own, so that it is there for the next host.
        let enter = if self.has_disk {
            format!(
                "if ! [ -e '{holder}' ]; then
    mkdir -p state
    (unshare -rm sh -c 'mount -t tmpfs -o size=800m,mode=700 tmpfs state && echo $$ > \"{holder}.new\" && mv \"{holder}.new\" \"{holder}\" && exec sleep 1000000' < /dev/null > /dev/null 2>&1 &)
    while ! [ -e '{holder}' ]; do sleep 0.05; done
fi
exec nsenter -U -m --preserve-credentials -t \"$(cat '{holder}')\""
            )
        } else {
            "exec".to_owned()
        };
        let text = format!(
            "#!/bin/sh\nulimit -n {DESCRIPTORS}\n{enter} '{}' \"$@\"\n",
            self.at("bin/handover")
        );
        fs::write(&program, text).expect("it can be written");
        fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("it is ours");
        let host = Setup::new()
            .config(CONFIG)
            .program(program.into())
            .argument("--control")
            .argument("HOME/control.sock")
            .env("LD_PRELOAD", &self.at("shim.so"))
            .env("CLOCK_SHIFT", &self.at("shift"))
            .start()
            .await;
        let held = fs::read_to_string(holder).ok();
        self.holder = held.and_then(|pid| pid.trim().parse().ok());
        host
    }

    /// The state directory as the host sees it.
    pub(crate) fn state(&self, host: &Host) -> PathBuf {
        match self.holder {
            Some(holder) => format!("/proc/{holder}/root{}", host.state().display()).into(),
            None => host.state(),
        }
    }

    /// Leaves no byte free.
    pub(crate) fn fill_disk(&self, host: &Host) {
        let mut filler = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.state(host).join("filler"))
            .expect("it can be made");
        for size in [1 << 20, 1 << 12, 1] {
            while filler.write_all(&vec![7; size]).is_ok() {}
        }
    }

    /// Gives room again.
    pub(crate) fn empty_disk(&self, host: &Host) {
        fs::remove_file(self.state(host).join("filler")).expect("it is there");
    }

    /// Makes the disk read-only, or writable again. The kernel refuses it while a file is being
    /// written.
    pub(crate) async fn remount(&self, host: &Host, how: &str) -> Result<(), String> {
        let holder = self.holder.unwrap_or_default().to_string();
        let deadline = Instant::now() + DEADLINE;
        loop {
            let done = Command::new("nsenter")
                .args(["-U", "-m", "--preserve-credentials", "-t", &holder])
                .args(["mount", "-o", &format!("remount,{how}")])
                .arg(host.state())
                .output();
            match done {
                Ok(output) if output.status.success() => return Ok(()),
                done if Instant::now() > deadline => {
                    return Err(format!("remount,{how}: {done:?}"));
                }
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let holder = self.holder.and_then(|pid| Pid::from_raw(pid.cast_signed()));
        if let Some(holder) = holder {
            let _ = kill_process(holder, Signal::KILL); // it may have ended
        }
    }
}
