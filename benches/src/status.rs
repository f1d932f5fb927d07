//! How far the run is: a line that is written over on a terminal, else a line per step.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

/// What is done of what is planned, both as estimates of time.
pub(crate) struct Status {
    begin: Instant,
    planned: Duration,
    done: Duration,
    is_terminal: bool,
    last: String,
}

impl Status {
    pub(crate) fn new(planned: Duration) -> Self {
        let is_terminal = stderr().is_terminal();
        Self {
            begin: Instant::now(),
            planned,
            done: Duration::ZERO,
            is_terminal,
            last: String::new(),
        }
    }

    /// Something begins: `step` for everybody, `detail` for those who watch a terminal.
    pub(crate) fn show(&mut self, step: &str, detail: &str) {
        let percent = 100.0 * self.done.as_secs_f64() / self.planned.as_secs_f64().max(1e-9);
        let left = self.left().as_secs();
        let head = format!("[{:3.0} %, {}:{:02} left]", percent.min(99.0), left / 60, left % 60);
        if self.is_terminal {
            self.put(&format!("\r\x1b[K{head} {step}: {detail}"));
        } else if self.last != step {
            self.put(&format!("{head} {step}\n"));
        }
        self.last = step.into();
    }

    /// So much of the plan is done.
    pub(crate) fn advance(&mut self, by: Duration) {
        self.done += by;
    }

    /// The plan has grown: a work is measured again.
    pub(crate) fn extend(&mut self, by: Duration) {
        self.planned += by;
    }

    /// A line that stays.
    pub(crate) fn say(&mut self, line: &str) {
        self.put(&format!("{}{line}\n", if self.is_terminal { "\r\x1b[K" } else { "" }));
    }

    /// Leaves the terminal's line free.
    pub(crate) fn clear(&mut self) {
        if self.is_terminal {
            self.put("\r\x1b[K");
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    /// The estimate, corrected by how long the done part really took.
    fn left(&self) -> Duration {
        let left = self.planned.saturating_sub(self.done);
        let factor = self.begin.elapsed().as_secs_f64() / self.done.as_secs_f64().max(1e-9);
        let known = self.done.as_secs_f64() > 5.0;
        left.mul_f64(if known { factor.clamp(0.5, 4.0) } else { 1.0 })
    }

    fn put(&mut self, text: &str) {
        // Who closed the terminal doesn't want to see it.
        let _ = stderr().write_all(text.as_bytes());
    }
}
