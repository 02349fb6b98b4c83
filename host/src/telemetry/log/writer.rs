//! The queue of lines, and the thread that writes them.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use super::{
    destination::Destination,
    line::{self, Style},
};

/// How many bytes of lines wait at most. What comes beyond that is dropped and counted.
const MOST_BYTES: usize = 4 << 20;
/// How many bytes of lines are written at once: a whole one, so that lines of two processes do not
/// mix.
const BATCH_BYTES: usize = 64 << 10;

/// Where lines are put to be written. Putting one there neither blocks on who reads the log nor
/// panics.
#[derive(Clone, Debug)]
pub(super) struct Writer(Arc<Shared>);

/// How it is told that lines were lost.
#[derive(Clone, Debug)]
pub(super) enum Losses {
    /// In a line of this look among the others, as soon as one goes through.
    InLine(Style),
    /// By somebody else, who reads this count.
    Counted(Arc<AtomicU64>),
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// There is something to do.
    work: Condvar,
    /// Everything is written.
    idle: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Lines that found no room since that was last told.
    dropped: u64,
    reopen: bool,
    /// The thread is writing what it has taken.
    writing: bool,
}

impl Writer {
    /// Starts the thread `name` that writes to `destination`.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn start(name: &str, destination: Destination, losses: Losses) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let writer = Self(Arc::clone(&shared));
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || shared.write_all(destination, &losses))?;
        Ok(writer)
    }

    /// Puts `line` into the queue, or drops it where there is no room.
    pub(super) fn write(&self, line: Vec<u8>) {
        let mut queue = self.0.queue.lock();
        if queue.bytes + line.len() > MOST_BYTES {
            queue.dropped += 1;
            return;
        }
        queue.bytes += line.len();
        queue.lines.push_back(line);
        drop(queue);
        self.0.work.notify_one();
    }

    /// Waits until everything is written, for `deadline` at the longest. Blocks.
    pub(super) fn flush(&self, deadline: Duration) {
        let by = Instant::now() + deadline;
        let mut queue = self.0.queue.lock();
        while queue.writing || !queue.lines.is_empty() {
            if self.0.idle.wait_until(&mut queue, by).timed_out() {
                return;
            }
        }
    }

    /// Has the destination opened again before the next line.
    pub(super) fn reopen(&self) {
        self.0.queue.lock().reopen = true;
        self.0.work.notify_one();
    }
}

impl Losses {
    /// Tells that `lost` lines are lost; returns how many of them are still to be told of.
    fn tell(&self, lost: u64, destination: &mut Destination) -> u64 {
        match self {
            Self::Counted(count) => {
                count.fetch_add(lost, Ordering::Relaxed);
                0
            }
            Self::InLine(style) => {
                let lines = if lost == 1 { "line" } else { "lines" };
                let told = line::of_log(
                    &format!("{lost} {lines} of this log could not be written, and are lost"),
                    *style,
                );
                match destination.write(&[told]) {
                    0 => 0,
                    _ => lost,
                }
            }
        }
    }
}

impl Shared {
    fn write_all(&self, mut destination: Destination, losses: &Losses) {
        let mut lost = 0;
        loop {
            let (batch, reopen, dropped) = self.next();
            if reopen {
                destination.reopen();
            }
            lost += dropped;
            // What was lost came after what waits and before what comes next.
            if !batch.is_empty() {
                lost += destination.write(&batch);
            }
            if lost > 0 {
                lost = losses.tell(lost, &mut destination);
            }
            let mut queue = self.queue.lock();
            queue.writing = false;
            if queue.lines.is_empty() {
                drop(queue);
                self.idle.notify_all();
            }
        }
    }

    /// Waits for something to do: lines, whether to open the destination again, and how many lines
    /// found no room.
    fn next(&self) -> (Vec<Vec<u8>>, bool, u64) {
        let mut queue = self.queue.lock();
        while queue.lines.is_empty() && !queue.reopen && queue.dropped == 0 {
            self.work.wait(&mut queue);
        }
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(line) = queue.lines.pop_front() {
            bytes += line.len();
            queue.bytes -= line.len();
            batch.push(line);
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        queue.writing = true;
        // Told when the queue is empty again: until then more may be lost.
        let dropped = if queue.lines.is_empty() {
            std::mem::take(&mut queue.dropped)
        } else {
            0
        };
        (batch, std::mem::take(&mut queue.reopen), dropped)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use std::{
        io::{PipeReader, Read},
        os::fd::OwnedFd,
    };

    use super::*;

    const STYLE: Style = Style::Text { colour: false };

    fn pipe() -> (PipeReader, Writer) {
        let (reader, writer) = io::pipe().unwrap();
        let destination = Destination::of(OwnedFd::from(writer));
        let losses = Losses::InLine(STYLE);
        (reader, Writer::start("log", destination, losses).unwrap())
    }

    #[test]
    fn a_reader_that_does_not_read_blocks_nobody_and_hears_how_much_it_missed() {
        let (mut reader, writer) = pipe();
        let line = vec![b'x'; 1 << 10];
        let sent = 3 * MOST_BYTES / line.len();
        for _ in 0..sent {
            writer.write(line.clone());
        }
        writer.flush(Duration::from_millis(10));
        let mut read = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        while !String::from_utf8_lossy(&read).contains(" are lost\n") {
            let length = reader.read(&mut buffer).unwrap();
            read.extend_from_slice(&buffer[..length]);
        }
        let text = String::from_utf8(read).unwrap();
        let written = text.matches('x').count() / line.len();
        let lost: usize = text
            .rsplit_once(" lines of this log")
            .and_then(|(before, _)| before.rsplit_once(' '))
            .unwrap()
            .1
            .parse()
            .unwrap();
        assert_eq!(written + lost, sent);
        assert!(lost > 0);
    }

    #[test]
    fn a_reader_that_left_costs_lines_and_nothing_else() {
        let (reader, writer) = pipe();
        drop(reader);
        for _ in 0..100 {
            writer.write(b"nobody reads this\n".to_vec());
        }
        writer.flush(Duration::from_secs(10));
        let queue = writer.0.queue.lock();
        assert!(queue.lines.is_empty());
    }
}
