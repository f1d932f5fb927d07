//! Adaptive polling: whether to look again before going to sleep, and for how long.
//!
//! Going to sleep and being woken costs more than a request does. Looking again is worth it while
//! requests follow each other closely, and a waste otherwise. So the window opens when a sleep
//! turned out shorter than polling may last, and closes when polling found nothing.
//! An idle queue sleeps without a timer: it costs nothing.

use std::time::{Duration, Instant};

/// The state of polling on one queue.
#[derive(Debug)]
pub(crate) struct Spin {
    max: Duration,
    /// How long to look before the next sleep. Zero: sleep at once.
    window: Duration,
    /// When looking began, if it has.
    since: Option<Instant>,
}

impl Spin {
    /// Polls for at most `max` before a sleep; zero never polls.
    pub(crate) fn new(max: Duration) -> Self {
        Self { max, window: Duration::ZERO, since: None }
    }

    /// Nothing to do: whether to look once more instead of sleeping.
    pub(crate) fn look_again(&mut self, now: impl FnOnce() -> Instant) -> bool {
        if self.window.is_zero() {
            return false;
        }
        let now = now();
        let since = *self.since.get_or_insert(now);
        if now.duration_since(since) < self.window {
            return true;
        }
        // Looked for the whole window in vain.
        self.since = None;
        self.window /= 2;
        if self.window < self.max / 8 {
            self.window = Duration::ZERO;
        }
        false
    }

    /// Whether looking again is worth it at all now.
    pub(crate) fn is_open(&self) -> bool {
        !self.window.is_zero()
    }

    /// Work was found without sleeping.
    pub(crate) fn found(&mut self) {
        self.since = None;
    }

    /// Woken after sleeping for `slept`.
    pub(crate) fn woken(&mut self, slept: Duration) {
        self.since = None;
        if slept < self.max {
            self.window = self.max;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_micros(40);

    #[test]
    fn an_idle_queue_sleeps_at_once() {
        let mut spin = Spin::new(MAX);
        assert!(!spin.look_again(Instant::now));
        spin.woken(Duration::from_secs(1));
        assert!(!spin.look_again(Instant::now));
    }

    #[test]
    fn polling_never_lasts_longer_than_its_limit_and_ends_when_it_is_in_vain() {
        let mut spin = Spin::new(MAX);
        let mut clock = Instant::now();
        let mut polled = Duration::ZERO;
        let mut rounds = 0;
        spin.woken(Duration::from_micros(10));
        loop {
            let start = clock;
            while spin.look_again(|| clock) {
                clock += Duration::from_micros(1);
            }
            assert!(clock - start <= MAX);
            if clock == start {
                break;
            }
            polled += clock - start;
            rounds += 1;
            spin.woken(Duration::from_secs(1));
        }
        assert!(rounds >= 2, "one miss doesn't end it");
        assert!(polled <= 2 * MAX, "misses end it soon");
    }

    #[test]
    fn work_keeps_the_window_open() {
        let mut spin = Spin::new(MAX);
        let mut clock = Instant::now();
        spin.woken(Duration::from_micros(10));
        for _ in 0..1000 {
            assert!(spin.look_again(|| clock));
            clock += Duration::from_micros(30);
            assert!(spin.look_again(|| clock));
            spin.found();
        }
    }

    #[test]
    fn zero_never_polls() {
        let mut spin = Spin::new(Duration::ZERO);
        spin.woken(Duration::ZERO);
        assert!(!spin.look_again(Instant::now));
    }
}
