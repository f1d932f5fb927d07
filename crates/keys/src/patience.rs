//! How long a fetch may take, and when it is worth another attempt.
//!
//! Contract: everything that a fetch does ends by its [`Deadline`]: connecting, waiting, logging in
//! again, pauses between attempts. (Name resolution is the C library's, in a thread that is left
//! behind if it doesn't come to an end.) Another attempt is made only for failures that are marked
//! as passing; pauses double, with jitter, so that a thousand nodes don't come back in step.

use std::time::{Duration, Instant};

use crate::error::Failure;

/// First pause between two attempts.
const PAUSE: Duration = Duration::from_millis(200);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Time limits of one key manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Until a connection stands.
    pub(crate) connect: Duration,
    /// One question and its answer.
    pub(crate) exchange: Duration,
    /// All of a fetch, with its attempts.
    pub(crate) total: Duration,
    pub(crate) first_pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            exchange: Duration::from_secs(10),
            total: Duration::from_secs(30),
            first_pause: PAUSE,
        }
    }
}

/// When the fetch has to be over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    end: Instant,
    limits: Limits,
}

impl Deadline {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { end: Instant::now() + limits.total, limits }
    }

    /// What is left of it.
    pub(crate) fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// Time for an exchange that begins now. Never zero, which would mean "for ever" to a socket.
    pub(crate) fn exchange(&self) -> Duration {
        self.limits.exchange.min(self.left()).max(Duration::from_millis(1))
    }

    /// Time for a connection, as part of an exchange.
    pub(crate) fn connect(&self) -> Duration {
        self.limits.connect.min(self.exchange())
    }
}

/// Attempts until one succeeds, fails for good, or the time is over.
pub(crate) fn persist<T>(
    limits: Limits,
    mut attempt: impl FnMut(&Deadline) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let deadline = Deadline::new(limits);
    let mut pause = limits.first_pause;
    let mut attempts = 1;
    loop {
        let mut failure = match attempt(&deadline) {
            Err(failure) if failure.passing => failure,
            ended => return ended,
        };
        let asked = Duration::from_secs(failure.after_seconds.unwrap_or(0).into());
        let wait = jittered(pause).max(asked);
        if wait >= deadline.left() {
            let times = if attempts == 1 { "once".to_owned() } else { format!("{attempts} times") };
            failure.what.push_str(&format!(
                " (tried {times} within the {} s that a fetch may take)",
                limits.total.as_secs_f32()
            ));
            return Err(failure);
        }
        rest(wait);
        pause = (pause * 2).min(PAUSE_MAX);
        attempts += 1;
    }
}

#[expect(clippy::disallowed_methods, reason = "the fetch's own thread: nobody else waits for it")]
fn rest(pause: Duration) {
    std::thread::sleep(pause);
}

/// Half of it, and a random part of the other half.
fn jittered(pause: Duration) -> Duration {
    // Without randomness the pause is the same everywhere, no worse.
    let random = getrandom::u32().unwrap_or(u32::MAX);
    pause.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KeyErrorKind;

    fn quick() -> Limits {
        Limits { first_pause: Duration::from_micros(10), ..Limits::default() }
    }

    #[test]
    fn only_what_passes_is_tried_again() {
        let mut attempts = 0;
        let result = persist(quick(), |_| {
            attempts += 1;
            if attempts < 4 { Err(Failure::passing("busy")) } else { Ok(attempts) }
        });
        assert_eq!(result.unwrap(), 4);
        for failure in [Failure::denied, Failure::missing, Failure::malformed, Failure::unreachable]
            .map(|make: fn(&'static str) -> Failure| make)
        {
            let mut attempts = 0;
            let result: Result<(), _> = persist(quick(), |_| {
                attempts += 1;
                Err(failure("no"))
            });
            assert_eq!((result.unwrap_err().what.as_str(), attempts), ("no", 1));
        }
    }

    #[test]
    fn the_total_limit_ends_it_and_is_told() {
        let limits = Limits { total: Duration::from_millis(5), ..quick() };
        let mut attempts = 0;
        let failure = persist(limits, |deadline| {
            attempts += 1;
            assert!(deadline.exchange() <= limits.total && deadline.connect() <= limits.total);
            Err::<(), _>(Failure::passing("busy"))
        })
        .unwrap_err();
        assert_eq!(failure.kind, KeyErrorKind::Unreachable);
        let times = if attempts == 1 { "once".into() } else { format!("{attempts} times") };
        assert!(
            failure.what.contains(&format!("busy (tried {times} within the 0.005 s")),
            "{}",
            failure.what
        );
    }

    #[test]
    fn a_server_that_wants_more_time_than_there_is_ends_it() {
        let mut attempts = 0;
        let failure = persist(quick(), |_| {
            attempts += 1;
            Err::<(), _>(Failure { after_seconds: Some(3600), ..Failure::passing("busy") })
        })
        .unwrap_err();
        assert!(failure.what.contains("tried once"), "{}", failure.what);
        assert_eq!(attempts, 1);
    }

    #[test]
    fn a_pause_is_at_least_half_and_at_most_whole() {
        for _ in 0..100 {
            let pause = jittered(Duration::from_secs(2));
            assert!(
                (Duration::from_secs(1)..=Duration::from_secs(2)).contains(&pause),
                "{pause:?}"
            );
        }
    }
}
