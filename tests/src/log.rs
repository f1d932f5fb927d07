//! The lines that a process prints, collected as they come; one can wait for one.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

#[derive(Default)]
struct State {
    lines: Vec<String>,
    ended: bool,
}

/// A growing list of lines, shared with the threads that read them.
#[derive(Clone, Default)]
pub struct Log(Arc<(Mutex<State>, Condvar)>);

impl Log {
    /// Reads `source` to its end in a thread of its own.
    pub fn follow(&self, source: impl Read + Send + 'static) {
        let log = self.clone();
        log.state().ended = false;
        std::thread::spawn(move || {
            for line in BufReader::new(source).split(b'\n') {
                let Ok(line) = line else { break };
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                log.state().lines.push(line);
                log.0.1.notify_all();
            }
            log.state().ended = true;
            log.0.1.notify_all();
        });
    }

    /// Everything so far.
    pub fn text(&self) -> String {
        self.state().lines.join("\n")
    }

    /// Number of lines so far: a place to wait from.
    pub fn mark(&self) -> usize {
        self.state().lines.len()
    }

    /// Waits for a line after `mark` that contains `what`; gives it and the mark behind it.
    pub fn wait_for(&self, what: &str, mark: usize, limit: Duration) -> Result<(String, usize)> {
        let end = Instant::now() + limit;
        let mut state = self.state();
        let mut seen = mark;
        loop {
            while let Some(line) = state.lines.get(seen) {
                seen += 1;
                if line.contains(what) {
                    return Ok((line.clone(), seen));
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || state.ended {
                let why = if state.ended { "the output ended" } else { "time is up" };
                bail!("{why} before a line with {what:?} came:\n{}", state.lines.join("\n"));
            }
            state = self.0.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
