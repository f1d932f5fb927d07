//! When a volume's key is rotated by itself: pure functions of the wall clock, the key's age and the
//! configuration.
//!
//! Contract: [`decide`] remembers nothing. Whoever acts on it asks again at least every
//! [`ASK_AGAIN`], with the wall clock of that moment, and sleeps no longer: a clock that jumps is
//! then noticed within that time. Times are whole seconds since 1970, UTC.
//! Invariant: a rotation that this says is to run is due (or under way already) and within a window;
//! none is ever begun by a clock that was not set ([`CLOCK_SET_AFTER`]).
//! Deliberately absent: time zones with rules (a window may have a fixed offset), the clock, and the
//! rotation itself, whose place is kept by the volume's header.

mod calendar;
mod units;
mod window;

use std::time::Duration;

pub use calendar::{utc_date, utc_time};
pub use units::{parse_duration, parse_size};
pub use window::{Window, Windows};

/// Longest time between two questions.
pub const ASK_AGAIN: Duration = Duration::from_secs(60);

/// A clock before this (2024-01-01) was never set: this program is younger.
pub const CLOCK_SET_AFTER: u64 = 1_704_067_200;

/// What is configured for a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Schedule {
    /// How old a volume key may become; none: nothing is rotated by itself.
    pub max_key_age: Option<Duration>,
    /// When rotations may run.
    pub windows: Windows,
    /// What an unknown age counts as.
    pub unknown_age: UnknownAge,
}

/// What the age of a key counts as that nobody knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UnknownAge {
    /// Too old.
    #[default]
    Due,
    /// In use since it was first seen, which is to be remembered.
    FirstSight,
}

/// Whether a volume key must be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Not yet, or never.
    No,
    /// It is too old.
    Yes,
    /// The clock was never set: nobody knows.
    Unknown,
}

/// What is strange about the times; for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Oddity {
    /// The clock was never set.
    #[error(
        "the clock says {}, so it was never set: no rotation begins before it is",
        utc_time(*now)
    )]
    ClockNotSet {
        /// What it says.
        now: u64,
    },
    /// The key's age is negative.
    #[error(
        "the volume key is said to be in use since {}, and it is {} now: a clock was wrong, or the \
         header was tampered with; the key counts as new",
        utc_time(*since),
        utc_time(*now)
    )]
    SinceInFuture {
        /// Since when it is said to be in use.
        since: u64,
        /// What the clock says.
        now: u64,
    },
}

/// What to do now, and when to expect what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Whether the key must be replaced.
    pub due: Due,
    /// When it must be, or had to be; none: never, or its age is unknown.
    pub due_at: Option<u64>,
    /// A rotation is to begin or to go on now. Otherwise one that runs is to stop at its next
    /// committed boundary, and stays under way.
    pub run_now: bool,
    /// When it is to stop; none: it doesn't run, or no window ends.
    pub stop_at: Option<u64>,
    /// When one will begin or go on, as far as can be told now: the present when it runs.
    pub next_run_at: Option<u64>,
    /// The volume key was seen for the first time: to be remembered as in use since then. (It counts
    /// so already.)
    pub remember_since: Option<u64>,
    /// What is strange; the same again for as long as it is.
    pub oddity: Option<Oddity>,
}

/// What to do at `now` with a volume key that has been in use since `since` (none: unknown), and
/// whose rotation has begun or not. A rotation that an operator began is not to be asked about here:
/// windows are not for it.
pub fn decide(now: u64, since: Option<u64>, schedule: &Schedule, under_way: bool) -> Decision {
    let windows = &schedule.windows;
    let nothing = Decision {
        due: Due::No,
        due_at: None,
        run_now: false,
        stop_at: None,
        next_run_at: None,
        remember_since: None,
        oddity: None,
    };
    if now < CLOCK_SET_AFTER {
        // What has begun and may run at any time needs no clock.
        let run_now = under_way && windows.are_any_time();
        return Decision {
            due: Due::Unknown,
            run_now,
            next_run_at: run_now.then_some(now),
            oddity: Some(Oddity::ClockNotSet { now }),
            ..nothing
        };
    }
    let aged = match schedule.max_key_age {
        None => nothing,
        Some(max_age) => aged(now, since, max_age, schedule.unknown_age, nothing),
    };
    let wanted = under_way || aged.due == Due::Yes;
    let run_now = wanted && windows.are_open_at(now);
    Decision {
        run_now,
        stop_at: if run_now { windows.open_until(now) } else { None },
        next_run_at: if wanted {
            windows.next_open(now)
        } else {
            aged.due_at.and_then(|at| windows.next_open(at))
        },
        ..aged
    }
}

/// What the key's age comes to.
fn aged(
    now: u64,
    since: Option<u64>,
    max_age: Duration,
    unknown: UnknownAge,
    nothing: Decision,
) -> Decision {
    let (since, remember_since, oddity) = match (since, unknown) {
        (None, UnknownAge::Due) => {
            return Decision { due: Due::Yes, ..nothing };
        }
        (None, UnknownAge::FirstSight) => (now, Some(now), None),
        (Some(since), _) if since > now => (now, None, Some(Oddity::SinceInFuture { since, now })),
        (Some(since), _) => (since, None, None),
    };
    let due_at = since.saturating_add(max_age.as_secs());
    let due = if now >= due_at { Due::Yes } else { Due::No };
    Decision { due, due_at: Some(due_at), remember_since, oddity, ..nothing }
}

#[cfg(test)]
mod tests;
