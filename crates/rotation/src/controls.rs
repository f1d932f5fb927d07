//! What an operator may tell a rotation at any time, and what it tells of itself.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest zone unless an operator wants another, in bytes.
pub const ZONE_BYTES: u64 = 8 << 20;

/// Zones longer than this no operator gets: a zone is in memory four times.
pub const ZONE_BYTES_MAX: u64 = 256 << 20;

/// What is wanted of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wishes {
    /// Stop between two zones and give the thread back: the process ends.
    pub stop: bool,
    /// Stop between two zones until told otherwise.
    pub pause: bool,
    /// Most bytes per second.
    pub rate_bytes: Option<u64>,
    /// The longest zone in bytes.
    pub zone_bytes: u64,
    /// Above this mean time of a guest's request, the rotation gives way.
    pub guest_latency_max: Option<Duration>,
}

impl Default for Wishes {
    fn default() -> Self {
        Self {
            stop: false,
            pause: false,
            rate_bytes: None,
            zone_bytes: ZONE_BYTES,
            guest_latency_max: None,
        }
    }
}

/// The wishes, shared between who has them and the rotation's thread.
#[derive(Debug, Clone, Default)]
pub struct Controls(Arc<(Mutex<Wishes>, Condvar)>);

impl Controls {
    /// What is wanted now.
    pub fn wishes(&self) -> Wishes {
        *self.lock()
    }

    /// Wants something else from now on: a rotation that rests looks at once.
    pub fn change(&self, change: impl FnOnce(&mut Wishes)) {
        change(&mut self.lock());
        self.0.1.notify_all();
    }

    /// Rests for `time`, or less when wishes change meanwhile; says what they are.
    pub fn rest(&self, time: Duration) -> Wishes {
        let wishes = self.lock();
        let before = *wishes;
        let result = self.0.1.wait_timeout_while(wishes, time, |now| *now == before);
        *result.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits for a change of wishes.
    pub fn wait(&self) -> Wishes {
        let wishes = self.lock();
        let before = *wishes;
        let result = self.0.1.wait_while(wishes, |now| *now == before);
        *result.unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Wishes> {
        // Wishes are plain data: whoever panicked while he held them left them whole.
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a rotation is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// It moves zones.
    #[default]
    Running,
    /// It rests, because of a limit or of guests.
    Throttled,
    /// An operator paused it.
    Paused,
    /// The storage fails; it tries to recover.
    Stuck,
    /// All data has the new key, and nothing of the old one is left.
    Done,
}

/// How far a rotation is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// Bytes of data that have the new key.
    pub done_bytes: u64,
    /// Bytes of data altogether.
    pub total_bytes: u64,
    /// Bytes per second, lately.
    pub rate_bytes: u64,
    /// Length of the last zone.
    pub zone_bytes: u64,
    /// Longest time that the data path held writes to a zone.
    pub held_max: Duration,
    /// What is wrong, for a person.
    pub trouble: Option<String>,
}

/// The progress, shared between the rotation's thread and who asks.
#[derive(Debug, Clone, Default)]
pub struct Watch(Arc<Mutex<Progress>>);

impl Watch {
    /// That of a rotation which is about to go on there.
    pub fn at(done_bytes: u64, total_bytes: u64) -> Self {
        let watch = Self::default();
        watch.update(|progress| {
            (progress.done_bytes, progress.total_bytes) = (done_bytes, total_bytes);
        });
        watch
    }

    /// How far it is now.
    pub fn progress(&self) -> Progress {
        self.lock().clone()
    }

    pub(crate) fn update(&self, update: impl FnOnce(&mut Progress)) {
        update(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes per second over the last seconds.
#[derive(Debug)]
pub(crate) struct Meter {
    since: Instant,
    bytes: u64,
    rate: u64,
}

impl Meter {
    /// The rate is told anew after this time.
    const SPAN: Duration = Duration::from_secs(1);

    pub(crate) fn new(now: Instant) -> Self {
        Self { since: now, bytes: 0, rate: 0 }
    }

    /// Counts; gives the rate.
    pub(crate) fn count(&mut self, bytes: u64, now: Instant) -> u64 {
        self.bytes += bytes;
        let span = now.saturating_duration_since(self.since);
        if span >= Self::SPAN {
            self.rate = (self.bytes as f64 / span.as_secs_f64()) as u64;
            (self.since, self.bytes) = (now, 0);
        } else if self.rate == 0 && !span.is_zero() {
            return (self.bytes as f64 / span.as_secs_f64()) as u64;
        }
        self.rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_ends_when_wishes_change() {
        let controls = Controls::default();
        let other = controls.clone();
        let changer = std::thread::spawn(move || other.change(|wishes| wishes.stop = true));
        while !controls.wishes().stop {
            controls.rest(Duration::from_secs(60));
        }
        changer.join().unwrap();
        assert!(controls.wishes().stop);
        assert!(controls.rest(Duration::from_millis(1)).stop);
    }

    #[test]
    fn the_rate_is_that_of_the_last_second() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(meter.count(1000, at(500)), 2000);
        assert_eq!(meter.count(1000, at(1000)), 2000);
        assert_eq!(meter.count(9000, at(1500)), 2000, "not told anew yet");
        assert_eq!(meter.count(0, at(2000)), 9000);
    }
}
