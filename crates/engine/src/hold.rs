//! I/O that failed and is kept to be tried again (`on_error = "hold"`): what waits, and for how long.
// UNSAFETY: hands the ring a pointer to the time that lives here.
#![expect(unsafe_code, reason = "a timer's time is passed by address")]

use std::time::Duration;

use sealblk_ring::{Full, Ring, Token, types::Timespec};

/// First wait after a failure.
const WAIT_MIN: Duration = Duration::from_millis(100);

/// Longest wait between two tries.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// The retry timer's id; others are those of [`crate::path`] and [`crate::throttle`].
pub(crate) const TIMER: u64 = 0;

/// Chunks that wait to be tried again.
pub(crate) struct Hold {
    chunks: Vec<u32>,
    /// Chunks that were kept and have not succeeded or ended since, whether they wait here or are
    /// being tried again.
    waiting: usize,
    wait: Duration,
    timer_armed: bool,
    /// Boxed: the kernel reads it when the timer is submitted.
    time: Box<Timespec>,
}

impl Hold {
    pub(crate) fn new() -> Self {
        let time = Box::new(Timespec::new());
        Self { chunks: Vec::new(), waiting: 0, wait: WAIT_MIN, timer_armed: false, time }
    }

    /// Keeps a chunk until the timer has run out, which it does after `longest` at the latest.
    pub(crate) fn keep(
        &mut self,
        ring: &mut Ring,
        chunk: u32,
        longest: Duration,
    ) -> Result<(), Full> {
        if self.waiting == 0 {
            // The storage answered since.
            self.wait = WAIT_MIN;
        }
        if !self.timer_armed {
            *self.time = Timespec::from(self.wait.min(longest));
            // SAFETY: the time is boxed, and written again only after the timer has run out.
            unsafe { ring.timer(&raw const *self.time, Token::Timer(TIMER)) }?;
            self.timer_armed = true;
            self.wait = (self.wait * 2).min(WAIT_MAX);
        }
        self.chunks.push(chunk);
        Ok(())
    }

    /// A chunk is kept for the first time.
    pub(crate) fn begins_to_wait(&mut self) {
        self.waiting += 1;
    }

    /// A chunk that was kept has succeeded, or ended.
    pub(crate) fn waits_no_more(&mut self) {
        self.waiting -= 1;
    }

    /// Chunks that were kept and have not succeeded or ended since.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(crate) fn timer_ran_out(&mut self) {
        self.timer_armed = false;
    }

    /// The next chunk to try again, if the timer has run out, or `at_once`.
    pub(crate) fn due(&mut self, at_once: bool) -> Option<u32> {
        if self.timer_armed && !at_once { None } else { self.chunks.pop() }
    }

    /// The next chunk, timer or not: the queue stops.
    pub(crate) fn abandon(&mut self) -> Option<u32> {
        self.chunks.pop()
    }
}
