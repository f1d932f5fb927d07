//! I/O that failed and is kept to be tried again (`on_error = "hold"`): what waits, and for how long.
// UNSAFETY: hands the ring a pointer to the time that lives here.
#![expect(unsafe_code, reason = "a timer's time is passed by address")]

use std::time::Duration;

use sealblk_ring::{Full, Ring, Token, types::Timespec};

use crate::OnError;

/// First wait after a failure.
const WAIT_MIN: Duration = Duration::from_millis(100);

/// Longest wait between two tries.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Chunks that wait to be tried again.
pub(crate) struct Hold {
    on_error: OnError,
    chunks: Vec<u32>,
    wait: Duration,
    timer_armed: bool,
    /// Boxed: the kernel reads it when the timer is submitted.
    time: Box<Timespec>,
}

impl Hold {
    pub(crate) fn new(on_error: OnError) -> Self {
        let time = Box::new(Timespec::new());
        Self { on_error, chunks: Vec::new(), wait: WAIT_MIN, timer_armed: false, time }
    }

    /// Whether an I/O that failed with `errno` is to be kept. Errors that a path coming back can't
    /// mend are reported in any case.
    pub(crate) fn keeps(&self, errno: i32) -> bool {
        self.on_error == OnError::Hold
            && !matches!(errno, libc::EINVAL | libc::EOPNOTSUPP | libc::EFAULT | libc::EACCES)
    }

    /// Keeps a chunk until the timer has run out.
    pub(crate) fn keep(&mut self, ring: &mut Ring, chunk: u32) -> Result<(), Full> {
        if !self.timer_armed {
            *self.time = Timespec::from(self.wait);
            // SAFETY: the time is boxed, and written again only after the timer has run out.
            unsafe { ring.timer(&raw const *self.time, Token::Timer(0)) }?;
            self.timer_armed = true;
            self.wait = (self.wait * 2).min(WAIT_MAX);
        }
        self.chunks.push(chunk);
        Ok(())
    }

    pub(crate) fn timer_ran_out(&mut self) {
        self.timer_armed = false;
    }

    /// Whether something failed since the storage last answered.
    pub(crate) fn is_holding(&self) -> bool {
        self.wait != WAIT_MIN
    }

    /// The storage answers: the next failure is a new one. Whether it had not before.
    pub(crate) fn works_again(&mut self) -> bool {
        std::mem::replace(&mut self.wait, WAIT_MIN) != WAIT_MIN
    }

    /// The next chunk to try again, if the timer has run out.
    pub(crate) fn due(&mut self) -> Option<u32> {
        if self.timer_armed { None } else { self.chunks.pop() }
    }

    /// The next chunk, timer or not: the queue stops.
    pub(crate) fn abandon(&mut self) -> Option<u32> {
        self.chunks.pop()
    }
}
