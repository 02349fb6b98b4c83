//! An operation shown while it runs: steps as they end, a bar for what still drains, one sentence
//! at the end.

use std::{
    collections::HashMap,
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use handover_api::{
    AppName, ClientError, GenerationId, Lines, Note, OperationResult, OperationStatus, Outcome,
    Progress,
};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{
    args::Global,
    exit::{self, Failure},
    output::{self, Paint, paint},
};
use crate::{human, shown::harmless};

/// How often a drain is told of where there is no bar.
const DRAIN_LINES: Duration = Duration::from_secs(1);

/// How an operation is shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    /// Whether it ends when the host has accepted the operation.
    pub(super) detach: bool,
    /// Whether lines name their app, because there may be several.
    pub(super) several: bool,
    /// Whether streams that had to be ended are a failure.
    pub(super) strict_drain: bool,
}

/// Calls the host, shows what it tells, and ends as the operation ends.
///
/// Ctrl-C ends the showing. What the host has begun, it finishes; what waits for its turn, it
/// drops.
pub(super) async fn show(
    global: &Global,
    how: How,
    call: impl Future<Output = Result<Lines<Progress>, ClientError>>,
) -> Result<(), Failure> {
    let mut at = At::Sending;
    let at = tokio::select! {
        ended = follow(global, how, call, &mut at) => return ended,
        _ = tokio::signal::ctrl_c() => at,
    };
    Err(Failure::with_code(
        exit::INTERRUPTED,
        match at {
            At::Sending => {
                "interrupted: what the host has not wholly received, it drops".to_owned()
            }
            At::Queued(id) => {
                format!("interrupted: operation {id} leaves the queue, and nothing was changed")
            }
            At::Begun(id) => format!(
                "interrupted: the host goes on with operation {id}, `handover events -f` shows how it ends"
            ),
        },
    ))
}

/// How far an operation is.
enum At {
    /// The host may not have all of it.
    Sending,
    /// It waits for its turn.
    Queued(String),
    /// The host does it.
    Begun(String),
}

async fn follow(
    global: &Global,
    how: How,
    call: impl Future<Output = Result<Lines<Progress>, ClientError>>,
    at: &mut At,
) -> Result<(), Failure> {
    let mut lines = call.await?;
    let mut display = Display::new(global, how.several);
    loop {
        let line = match lines.next().await {
            Ok(Some(line)) => line,
            Ok(None) | Err(ClientError::Broken(_)) => {
                return Err(Failure::new(
                    "the host ended before the operation did: once it runs again, `handover history` tells what became of it",
                ));
            }
            Err(error) => return Err(error.into()),
        };
        if global.json {
            output::line(&line.text);
        }
        if !matches!(line.value, Progress::Queued { .. })
            && let At::Queued(id) = at
        {
            *at = At::Begun(std::mem::take(id));
        }
        match line.value {
            Progress::Accepted { operation: id } => {
                if how.detach {
                    if !global.json {
                        output::line(&detached(&id, global));
                    }
                    return Ok(());
                }
                *at = At::Begun(id);
            }
            Progress::Queued { app, behind, ahead } => {
                if let At::Begun(id) = at {
                    *at = At::Queued(std::mem::take(id));
                }
                if !global.json {
                    display.queued(&app, &behind, ahead);
                }
            }
            Progress::Result(result) => {
                let streams = how.strict_drain && result.ended_streams > 0;
                let ended = if global.json {
                    code(result.outcome)
                } else {
                    display.end(&result)
                };
                return match ended {
                    Ok(()) if streams => code(Outcome::DeadlinePassed),
                    ended => ended,
                };
            }
            _ if global.json => {}
            Progress::Step {
                step,
                app,
                message,
                took_us,
                notes,
            } => {
                display.step(&step, &app, &message, Duration::from_micros(took_us));
                for note in &notes {
                    display.note(&app, note);
                }
            }
            Progress::Draining {
                app,
                generation,
                in_flight,
                jobs,
                deadline_ms,
            } => {
                let left = deadline_ms.map(Duration::from_millis);
                display.draining(
                    &app,
                    generation,
                    Drain {
                        in_flight,
                        jobs,
                        left,
                    },
                );
            }
        }
    }
}

fn detached(id: &str, global: &Global) -> String {
    let mut named = String::new();
    if let Some(host) = &global.host {
        named = format!("--host {host} ");
    }
    if let Some(socket) = &global.control {
        named += &format!("--control {} ", socket.display());
    }
    format!("accepted as operation {id}; to see how it ends:\n  handover {named}wait {id}")
}

fn code(outcome: Outcome) -> Result<(), Failure> {
    match outcome.exit_code() {
        0 => Ok(()),
        code => Err(Failure::silent(code)),
    }
}

/// What is left on a generation.
#[derive(Clone, Copy, Debug)]
struct Drain {
    in_flight: u64,
    jobs: u64,
    left: Option<Duration>,
}

impl Drain {
    /// `3 of 12 in flight (1 job), 24 s left`
    fn sentence(self, initial: u64) -> String {
        let mut text = match self.in_flight {
            all if all >= initial => format!("{all} in flight"),
            some => format!("{some} of {initial} in flight"),
        };
        match self.jobs {
            0 => {}
            1 => text.push_str(" (1 job)"),
            jobs => text.push_str(&format!(" ({jobs} jobs)")),
        }
        if let Some(left) = self.left {
            text.push_str(&format!(", {} left", human::age(left)));
        }
        text
    }
}

/// One generation on its way out.
struct Leaving {
    initial: u64,
    told: Option<Instant>,
    bar: Option<ProgressBar>,
}

struct Display {
    terminal: bool,
    colour: bool,
    several: bool,
    bars: MultiProgress,
    leaving: HashMap<(AppName, GenerationId), Leaving>,
}

impl Display {
    fn new(global: &Global, several: bool) -> Self {
        let stdout = io::stdout();
        Self {
            terminal: stdout.is_terminal(),
            colour: output::colour(&stdout, global),
            several,
            bars: MultiProgress::with_draw_target(ProgressDrawTarget::stdout()),
            leaving: HashMap::new(),
        }
    }

    fn say(&self, text: &str) {
        self.bars.suspend(|| output::line(text));
    }

    fn queued(&self, app: &AppName, behind: &OperationStatus, ahead: u64) {
        let app = if self.several {
            format!("{app} ")
        } else {
            String::new()
        };
        let more = match ahead {
            0 | 1 => String::new(),
            _ => format!(" ({ahead} ahead)"),
        };
        let text = format!("{app}queue: waits for {behind}{more}");
        self.say(&paint(self.colour, Paint::Yellow, &text));
    }

    fn step(&self, step: &str, app: &AppName, message: &str, took: Duration) {
        let took = paint(
            self.colour,
            Paint::Dim,
            &format!("({})", human::duration(took)),
        );
        let app = if self.several {
            format!("{app} ")
        } else {
            String::new()
        };
        self.say(&output::done(
            &format!("{app}{step}: {} {took}", harmless(message)),
            self.colour,
        ));
    }

    fn note(&self, app: &AppName, note: &Note) {
        let text = output::noted(note, self.colour);
        self.say(&match self.several {
            true => format!("{app} {text}"),
            false => text,
        });
    }

    fn draining(&mut self, app: &AppName, generation: GenerationId, drain: Drain) {
        let several = self.several;
        let leaving = self
            .leaving
            .entry((app.clone(), generation))
            .or_insert_with(|| Leaving {
                initial: drain.in_flight,
                told: None,
                bar: self.terminal.then(|| {
                    self.bars
                        .add(ProgressBar::new(drain.in_flight).with_style(bar_style()))
                }),
            });
        leaving.initial = leaving.initial.max(drain.in_flight);
        let sentence = drain.sentence(leaving.initial);
        let app = if several {
            format!("{app} ")
        } else {
            String::new()
        };
        if let Some(bar) = &leaving.bar {
            bar.set_length(leaving.initial);
            bar.set_prefix(format!("{app}generation {generation}"));
            bar.set_message(sentence);
            bar.set_position(leaving.initial - drain.in_flight);
            if drain.in_flight == 0 {
                bar.finish_and_clear();
            }
        } else if drain.in_flight > 0
            && leaving
                .told
                .is_none_or(|told| told.elapsed() >= DRAIN_LINES)
        {
            leaving.told = Some(Instant::now());
            output::line(&format!(
                "{app}drain: generation {generation} has {sentence}"
            ));
        }
    }

    fn end(&mut self, result: &OperationResult) -> Result<(), Failure> {
        for leaving in self.leaving.values() {
            if let Some(bar) = &leaving.bar {
                bar.finish_and_clear();
            }
        }
        let code = result.outcome.exit_code();
        match result.outcome {
            Outcome::Done | Outcome::Unchanged | Outcome::Staged => {
                self.say(&paint(self.colour, Paint::Bold, &harmless(&result.message)));
                Ok(())
            }
            // What was asked for is done, so the sentence is a result; the code says that it had a
            // price.
            Outcome::DeadlinePassed => {
                self.say(&paint(
                    self.colour,
                    Paint::Yellow,
                    &harmless(&result.message),
                ));
                Err(Failure::silent(code))
            }
            Outcome::Failed
            | Outcome::Rejected
            | Outcome::Unhealthy
            | Outcome::RolledBack
            | Outcome::Conflict
            | Outcome::Denied => Err(Failure::with_code(code, result.message.clone())),
        }
    }
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("  {prefix} drains [{bar:16}] {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_says_what_is_left_and_for_how_long() {
        let drain = Drain {
            in_flight: 3,
            jobs: 1,
            left: Some(Duration::from_millis(24_300)),
        };
        assert_eq!(drain.sentence(12), "3 of 12 in flight (1 job), 24 s left");
        let drain = Drain {
            in_flight: 2,
            jobs: 2,
            left: None,
        };
        assert_eq!(drain.sentence(2), "2 in flight (2 jobs)");
    }
}
