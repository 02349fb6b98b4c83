//! The live screen of `status -w`: the same lines as `status`, anew twice a second, with the
//! requests a second of each app and how far its drains are. Where standard output is no terminal,
//! the plain lines, again and again.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    io::{self, IsTerminal, Read, Write},
    thread,
    time::{Duration, Instant},
};

use handover_api::{AppName, AppStatus, Client, GenerationState, Status};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::MissedTickBehavior,
};

use super::{
    args::Global,
    exit::{Failure, may_come_back},
    output::{self, Paint, paint},
    status::{only, text},
};
use crate::human;

/// How often a terminal is drawn anew.
const REDRAW: Duration = Duration::from_millis(500);

/// How often the lines are printed where there is no terminal.
const PRINT_AGAIN: Duration = Duration::from_secs(2);

/// How many looks a sparkline has, one a column: half a minute.
const LOOKS: usize = 60;

/// The levels of a sparkline.
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// How many columns the bar of a drain has.
const BAR: usize = 20;

/// Another screen than the one with what was there before, without a cursor and without lines that
/// go on in the next.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
/// What was there before.
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

/// Shows the status until somebody has seen enough, also over restarts of the host.
pub(super) async fn watch(
    global: &Global,
    client: &Client,
    app: Option<&AppName>,
) -> Result<(), Failure> {
    // The first answer must come, so that a wrong socket or name is told at once.
    let first = only(client.status().await?, app)?;
    if !io::stdout().is_terminal() {
        return print(client, app, first).await;
    }
    let colour = output::colour(&io::stdout(), global);
    let failed = |error: io::Error| Failure::new(format!("the terminal cannot be used: {error}"));
    let mut screen = Screen::enter().map_err(failed)?;
    let mut signals = Signals::new().map_err(failed)?;
    let mut looks = tokio::time::interval(REDRAW);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks.tick().await; // the first one is done
    let mut seen = Seen::default();
    seen.look(&first, Instant::now());
    let mut status: Result<Status, String> = Ok(first);
    loop {
        let lines = match &status {
            Ok(status) => text(status, Some(&seen), colour, output::width()),
            Err(why) => paint(colour, Paint::Yellow, why),
        };
        if screen.draw(&lines, colour).is_err() {
            return Ok(()); // the terminal is gone
        }
        tokio::select! {
            _ = looks.tick() => {
                status = match client.status().await {
                    Ok(status) => {
                        let status = only(status, app)?;
                        seen.look(&status, Instant::now());
                        Ok(status)
                    }
                    Err(error) if may_come_back(&error) => {
                        Err(error.to_string())
                    }
                    Err(error) => return Err(error.into()),
                };
            }
            key = next(&mut screen.keys) => match key {
                Key::Quit => return Ok(()),
                key => screen.scroll(key),
            },
            changed = signals.next() => if changed == Changed::End {
                return Ok(()); // the way to end it, so not a failure
            },
        }
    }
}

/// The lines again and again, until nobody reads them.
async fn print(client: &Client, app: Option<&AppName>, first: Status) -> Result<(), Failure> {
    let mut shown = text(&first, None, false, None);
    loop {
        if !output::is_read(&format!("{shown}\n")) {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(PRINT_AGAIN) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
        shown = match client.status().await {
            Ok(status) => text(&only(status, app)?, None, false, None),
            Err(error) if may_come_back(&error) => error.to_string(),
            Err(error) => return Err(error.into()),
        };
    }
}

/// What was seen of the apps so far.
#[derive(Debug, Default)]
pub(super) struct Seen {
    last: Option<Instant>,
    apps: BTreeMap<AppName, AppSeen>,
}

/// What was seen of one app.
#[derive(Debug, Default)]
struct AppSeen {
    /// How many requests each generation had.
    requests: BTreeMap<u64, u64>,
    /// How many requests a second came, the last one last.
    rates: VecDeque<f64>,
    /// How many were in flight at most on each generation that drains.
    drains: BTreeMap<u64, u64>,
}

impl Seen {
    /// Takes a look of the time `at`.
    fn look(&mut self, status: &Status, at: Instant) {
        let took = self.last.map(|last| at.saturating_duration_since(last));
        self.last = Some(at);
        self.apps
            .retain(|name, _| status.apps.iter().any(|app| app.name == *name));
        for app in &status.apps {
            let seen = self.apps.entry(app.name.clone()).or_default();
            seen.look(app, took);
        }
    }

    /// What there is to say of `app` beside its status.
    pub(super) fn notes(&self, app: &AppStatus) -> Vec<(String, Paint)> {
        let Some(seen) = self.apps.get(&app.name) else {
            return Vec::new();
        };
        let drains = app.generations.iter().filter_map(|generation| {
            let id = generation.generation;
            let most = *seen.drains.get(&id.0)?;
            let ended = most - generation.in_flight.min(most);
            let filled = (ended as usize * BAR).checked_div(most as usize)?;
            let bar = "█".repeat(filled) + &"░".repeat(BAR - filled);
            let text = format!("generation {id} drains {bar} {ended} of {most} have ended");
            Some((text, Paint::Yellow))
        });
        seen.rate().into_iter().chain(drains).collect()
    }
}

impl AppSeen {
    fn look(&mut self, app: &AppStatus, took: Option<Duration>) {
        let requests: BTreeMap<u64, u64> = app
            .generations
            .iter()
            .map(|generation| (generation.generation.0, generation.requests))
            .collect();
        if let Some(took) = took.filter(|took| !took.is_zero()) {
            // A generation that has left takes its count along, and another run of the host begins
            // anew.
            let came = requests.iter().map(|(id, now)| {
                let before = self.requests.get(id).copied().unwrap_or_default();
                now.saturating_sub(before)
            });
            let came = came.sum::<u64>() as f64;
            self.rates.push_back(came / took.as_secs_f64());
            if self.rates.len() > LOOKS {
                self.rates.pop_front();
            }
        }
        self.requests = requests;
        let draining = app
            .generations
            .iter()
            .filter(|generation| generation.state == GenerationState::Draining);
        self.drains = draining
            .map(|generation| {
                let id = generation.generation.0;
                let before = self.drains.get(&id).copied().unwrap_or_default();
                (id, before.max(generation.in_flight))
            })
            .collect();
    }

    /// The sparkline, and the last rate as a number.
    fn rate(&self) -> Option<(String, Paint)> {
        let last = *self.rates.back()?;
        let most = self.rates.iter().copied().fold(1.0, f64::max);
        let line: String = self
            .rates
            .iter()
            .map(|rate| {
                let level = (rate / most * LEVELS.len() as f64) as usize;
                LEVELS[level.min(LEVELS.len() - 1)]
            })
            .collect();
        let number = if last > 0.0 && last < 10.0 {
            format!("{last:.1}")
        } else {
            format!("{last:.0}")
        };
        Some((format!("{line} {number} requests a second"), Paint::Green))
    }
}

/// What a person presses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Quit,
    Up,
    Down,
    PageUp,
    PageDown,
}

impl Key {
    /// The keys in what a terminal has sent. What is none of them is passed over.
    fn all(mut bytes: &[u8]) -> Vec<Self> {
        const KEYS: [(&[u8], Key); 11] = [
            (b"\x1b[A", Key::Up),
            (b"\x1bOA", Key::Up),
            (b"\x1b[B", Key::Down),
            (b"\x1bOB", Key::Down),
            (b"\x1b[5~", Key::PageUp),
            (b"\x1b[6~", Key::PageDown),
            (b" ", Key::PageDown),
            (b"k", Key::Up),
            (b"j", Key::Down),
            (b"q", Key::Quit),
            (b"Q", Key::Quit),
        ];
        let mut keys = Vec::new();
        while let [_, rest @ ..] = bytes {
            match KEYS.iter().find(|(sent, _)| bytes.starts_with(sent)) {
                Some((sent, key)) => {
                    keys.push(*key);
                    bytes = &bytes[sent.len()..];
                }
                None => bytes = rest,
            }
        }
        keys
    }
}

/// Waits for the next key; for ever where nobody can press one.
async fn next(keys: &mut Option<mpsc::Receiver<Key>>) -> Key {
    if let Some(pressed) = keys {
        match pressed.recv().await {
            Some(key) => return key,
            None => *keys = None,
        }
    }
    std::future::pending().await
}

/// The terminal, which is as it was when this is dropped.
#[derive(Debug)]
struct Screen {
    /// How the terminal was, where its keys are read.
    before: Option<Termios>,
    keys: Option<mpsc::Receiver<Key>>,
    /// How many lines are above the first one that is shown.
    above: usize,
    /// How many lines there were, and for how many there was room.
    last: (usize, usize),
}

impl Screen {
    /// # Errors
    /// When the terminal does not take it.
    fn enter() -> io::Result<Self> {
        // From here on dropping it leaves the terminal as it was.
        let mut screen = Self {
            before: give_each_key(),
            keys: None,
            above: 0,
            last: (0, 0),
        };
        if screen.before.is_some() {
            let (tx, keys) = mpsc::channel(16);
            screen.keys = Some(keys);
            thread::Builder::new()
                .name("keys".to_owned())
                .spawn(move || {
                    let mut bytes = [0; 64];
                    while let Ok(read @ 1..) = io::stdin().read(&mut bytes) {
                        for key in Key::all(&bytes[..read]) {
                            if tx.blocking_send(key).is_err() {
                                return;
                            }
                        }
                    }
                })?;
        }
        write(ENTER)?;
        Ok(screen)
    }

    /// Moves what is shown.
    fn scroll(&mut self, key: Key) {
        let (lines, room) = self.last;
        let page = room.saturating_sub(1).max(1);
        self.above = match key {
            Key::Up => self.above.saturating_sub(1),
            Key::Down => self.above + 1,
            Key::PageUp => self.above.saturating_sub(page),
            Key::PageDown => self.above + page,
            Key::Quit => self.above,
        };
        self.above = self.above.min(lines.saturating_sub(room));
    }

    /// Draws as many of the lines as there is room for, and what the keys are.
    ///
    /// # Errors
    /// When the terminal is gone.
    fn draw(&mut self, text: &str, colour: bool) -> io::Result<()> {
        let size = rustix::termios::tcgetwinsize(io::stdout())?;
        // Some terminals do not know.
        let rows = match size.ws_row {
            0 => 24,
            rows => usize::from(rows),
        };
        let lines: Vec<&str> = text.lines().collect();
        let room = rows.saturating_sub(1);
        self.last = (lines.len(), room);
        self.above = self.above.min(lines.len().saturating_sub(room));
        // Line by line over the old screen, clearing what is left of it: no flicker.
        let mut frame = String::from("\x1b[H");
        for line in lines.iter().skip(self.above).take(room) {
            // Writing to a string does not fail.
            let _ = write!(frame, "{line}\x1b[K\r\n");
        }
        frame.push_str("\x1b[J");
        let below = lines.len().saturating_sub(self.above + room);
        let mut help = if self.before.is_some() {
            "q quit · ↑ ↓ scroll".to_owned()
        } else {
            "Ctrl-C ends it".to_owned()
        };
        if self.above + below > 0 {
            let lines = human::pluralize(below as u64, "more line");
            let _ = write!(help, " · {lines} below, {} above", self.above);
        }
        let _ = write!(
            frame,
            "\x1b[{rows};1H{}\x1b[K",
            paint(colour, Paint::Dim, &help)
        );
        write(&frame)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing.
        let _ = write(LEAVE);
        if let Some(before) = &self.before {
            let _ = rustix::termios::tcsetattr(io::stdin(), OptionalActions::Flush, before);
        }
    }
}

/// Has the terminal give each key at once, and not show it. How it was before; none where standard
/// input is no terminal, or one that somebody else reads from.
fn give_each_key() -> Option<Termios> {
    let stdin = io::stdin();
    // Whoever reads in the background is stopped.
    let is_ours = stdin.is_terminal()
        && rustix::termios::tcgetpgrp(&stdin)
            .is_ok_and(|group| group == rustix::process::getpgrp());
    if !is_ours {
        return None;
    }
    let before = rustix::termios::tcgetattr(&stdin).ok()?;
    let mut now = before.clone();
    now.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
    now.special_codes[SpecialCodeIndex::VMIN] = 1;
    now.special_codes[SpecialCodeIndex::VTIME] = 0;
    // Stopped, it would leave the terminal as it has made it.
    now.special_codes[SpecialCodeIndex::VSUSP] = 0;
    rustix::termios::tcsetattr(&stdin, OptionalActions::Now, &now).ok()?;
    Some(before)
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// What a signal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Changed {
    /// The terminal has another size.
    Size,
    /// It is to end.
    End,
}

/// Signals after which the terminal has to be left, or drawn.
struct Signals {
    size: Signal,
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            size: signal(SignalKind::window_change())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Changed {
        tokio::select! {
            _ = self.size.recv() => Changed::Size,
            _ = self.interrupt.recv() => Changed::End,
            _ = self.terminate.recv() => Changed::End,
            _ = self.hangup.recv() => Changed::End,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn app(generations: &str) -> Status {
        let text = format!(
            r#"{{"apps":[{{"name":"shop","state":"serving","routes":[],"active":null,"staged":null,"generations":[{generations}]}}],
                "host":{{"version":"1","pid":1,"uptime_ms":1,"rss_bytes":1,"listen":[],"abi":"1.4"}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn generation(id: u64, state: &str, in_flight: u64, requests: u64) -> String {
        format!(
            r#"{{"generation":{id},"version":"1.0.0","artifact":"a","state":"{state}","in_flight":{in_flight},"jobs":0,
                "requests":{requests},"panics":0,"age_ms":1,"retained_because":null}}"#
        )
    }

    /// What is said after looks at these, a second apart.
    fn notes(looks: &[&str]) -> Vec<String> {
        let (mut seen, mut at, mut said) = (Seen::default(), Instant::now(), Vec::new());
        for generations in looks {
            let status = app(generations);
            seen.look(&status, at);
            at += Duration::from_secs(1);
            let notes = seen.notes(&status.apps[0]).into_iter();
            said = notes.map(|(text, _)| text).collect();
        }
        said
    }

    #[test]
    fn requests_a_second_are_those_between_two_looks_over_a_swap() {
        let old = generation(1, "active", 0, 1000);
        assert_eq!(notes(&[&old]), [""; 0]);
        let more = generation(1, "active", 0, 1100);
        assert_eq!(notes(&[&old, &more]), ["█ 100 requests a second"]);
        // The old one has left with its count, and the new one has begun at zero.
        let new = generation(2, "active", 0, 50);
        assert_eq!(notes(&[&old, &more, &new]), ["█▅ 50 requests a second"]);
        let same = generation(2, "active", 0, 50);
        assert_eq!(
            notes(&[&old, &more, &new, &same]),
            ["█▅▁ 0 requests a second"]
        );
    }

    #[test]
    fn a_drain_goes_on_from_the_most_that_was_in_flight() {
        let drains = |in_flight| generation(1, "draining", in_flight, 7);
        let said = notes(&[&drains(8), &drains(12), &drains(3)]);
        assert_eq!(
            said[1],
            "generation 1 drains ███████████████░░░░░ 9 of 12 have ended"
        );
        // Idle since it was first seen: there is nothing to show.
        assert_eq!(notes(&[&drains(0)]), [""; 0]);
    }

    #[test]
    fn keys_are_told_from_what_a_terminal_sends() {
        assert_eq!(
            Key::all(b"x\x1b[A\x1bOB\x1b[6~\x1b[1;5Aq"),
            [Key::Up, Key::Down, Key::PageDown, Key::Quit]
        );
    }
}
