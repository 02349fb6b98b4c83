//! `handover status -w`: a screen that lives on a terminal, and plain lines elsewhere.
#![allow(
    clippy::unwrap_used,
    reason = "a test has nobody to return an error to"
)]

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use handover_tests::{
    client::Http1,
    host::Host,
    plugins::{fixture, handover},
};
use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};

/// A terminal of 80 columns with `handover status -w` in its foreground.
struct Terminal {
    keys: File,
    /// The end that the command has.
    side: File,
    shown: Arc<Mutex<Vec<u8>>>,
    child: Child,
}

impl Terminal {
    fn start(host: &Host, rows: u16, arguments: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        tcsetwinsize(
            &master,
            Winsize {
                ws_row: rows,
                ws_col: 80,
                ws_xpixel: 0,
                ws_ypixel: 0,
            },
        )
        .unwrap();
        let path = ptsname(&master, Vec::new()).unwrap();
        let side = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(i32::try_from(OpenptFlags::NOCTTY.bits()).unwrap())
            .open(path.to_str().unwrap())
            .unwrap();
        let end = || Stdio::from(side.try_clone().unwrap());
        let child = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .arg(handover())
            .args(["status", "-w"])
            .args(arguments)
            .env("HANDOVER_CONTROL", host.control())
            .env("TERM", "xterm")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let keys = File::from(master);
        let shown = Arc::<Mutex<Vec<u8>>>::default();
        let (mut reader, said) = (keys.try_clone().unwrap(), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = reader.read(&mut bytes) {
                said.lock().unwrap().extend_from_slice(&bytes[..read]);
            }
        });
        Self {
            keys,
            side,
            shown,
            child,
        }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// What was drawn last, as a whole.
    fn frame(&self) -> String {
        let shown = String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned();
        let frames: Vec<_> = shown.split("\x1b[H").collect();
        // The last one may be half there.
        frames[frames.len().saturating_sub(2)].to_owned()
    }

    /// Whether all that was shown ends with `end`.
    fn ends_with(&self, end: &str) -> bool {
        self.shown.lock().unwrap().ends_with(end.as_bytes())
    }

    fn echoes(&self) -> bool {
        let modes = tcgetattr(&self.side).unwrap().local_modes;
        modes.contains(LocalModes::ECHO | LocalModes::ICANON)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_terminal_shows_rates_and_drains_and_is_left_as_it_was() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    let mut terminal = Terminal::start(&host, 24, &[]);
    host.until("requests to show as a rate", async || {
        host.get("/version").await;
        let frame = terminal.frame();
        let line = frame
            .lines()
            .find(|line| line.contains(" requests a second"))?;
        (line.contains('█') && !line.contains(" 0 requests")).then_some(())
    })
    .await;
    assert!(!terminal.echoes());
    assert!(terminal.frame().contains("q quit"), "{}", terminal.frame());

    // One that goes on keeps its generation.
    let address = host.address;
    let slow = tokio::spawn(async move {
        let mut client = Http1::connect(address).await.unwrap();
        client.get("/slow?ms=600000").await
    });
    host.until("the request to be in flight", async || {
        let app = host.app("probe").await;
        (app.generations[0].in_flight > 0).then_some(())
    })
    .await;
    let next = fixture("probe", "2.0.0");
    let deploy = host.cli(["deploy", "--detach", next.to_str().unwrap()]);
    deploy.await.expect_code(0);
    host.until("the drain to show", async || {
        let frame = terminal.frame();
        frame.contains("generation 1 drains ░░░░").then_some(())
    })
    .await;
    slow.abort();

    terminal.press("q");
    host.until("the command to end", async || {
        terminal.child.try_wait().unwrap()
    })
    .await;
    assert!(terminal.echoes());
    host.until("the screen to be left", async || {
        terminal
            .ends_with("\x1b[?7h\x1b[?25h\x1b[?1049l")
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_has_no_room_is_scrolled_to() {
    let host = Host::serving(&fixture("probe", "1.0.0")).await;
    let mut terminal = Terminal::start(&host, 4, &[]);
    let shows = async |terminal: &Terminal, what: &str| {
        host.until(&format!("`{what}` to show"), async || {
            terminal.frame().contains(what).then_some(())
        })
        .await;
    };
    shows(&terminal, " below, 0 above").await;
    shows(&terminal, "handover 0.").await;
    terminal.press("\x1b[B");
    shows(&terminal, " below, 1 above").await;
    assert!(!terminal.frame().contains("handover 0."));
    terminal.press("\x1b[A");
    shows(&terminal, " below, 0 above").await;
}

#[tokio::test]
async fn a_signal_leaves_the_terminal_as_it_was() {
    let host = Host::serving(&fixture("hello", "1.0.0")).await;
    let mut terminal = Terminal::start(&host, 24, &["hello"]);
    host.until("the screen", async || {
        terminal.frame().contains("hello").then_some(())
    })
    .await;
    assert!(!terminal.echoes());
    // Ctrl-C, which the terminal makes a signal of.
    terminal.press("\x03");
    let ended = host
        .until("the command to end", async || {
            terminal.child.try_wait().unwrap()
        })
        .await;
    assert_eq!(ended.code(), Some(0));
    assert!(terminal.echoes());
}

#[tokio::test]
async fn without_a_terminal_the_lines_come_again_and_again() {
    let host = Host::serving(&fixture("hello", "1.0.0")).await;
    let mut child = Command::new(handover())
        .args(["status", "-w"])
        .env("HANDOVER_CONTROL", host.control())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let shown = Arc::<Mutex<Vec<u8>>>::default();
    let said = Arc::clone(&shown);
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(read @ 1..) = out.read(&mut bytes) {
            said.lock().unwrap().extend_from_slice(&bytes[..read]);
        }
    });
    let shows = async |what: &str| {
        host.until(&format!("`{what}` to be told"), async || {
            let text = String::from_utf8_lossy(&shown.lock().unwrap()).into_owned();
            text.contains(what).then_some(text)
        })
        .await
    };
    shows(" 1.0.0 ").await;
    host.deploy(&fixture("hello", "2.0.0")).await.expect_code(0);
    let text = shows(" 2.0.0 ").await;
    assert!(!text.contains('\x1b'), "{text}");
    child.kill().unwrap();
    child.wait().unwrap();
}
