//! How fast a rotation goes: as fast as it can when nobody is there, and out of the way of guests.
//!
//! Pure: times come in as arguments. Between two zones it is told what the last one took and what
//! guests did meanwhile, and says how long to rest and how large a step to take next.

use std::time::Duration;

use crate::controls::Wishes;
use crate::gate::Load;

/// A zone beside busy guests, in bytes: what a write that hits it waits for.
const BUSY_ZONE_BYTES: u64 = 1 << 20;

/// Guests that do fewer requests per second than this are not disturbed.
const BUSY_PER_SECOND: f64 = 20.0;

/// The share of the time that a rotation works beside busy guests: at first, at least, at most.
const SHARE_START: f64 = 0.10;
const SHARE_MIN: f64 = 0.02;
const SHARE_MAX: f64 = 0.25;

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Step {
    /// Rest before it.
    pub(crate) rest: Duration,
    /// Longest zone.
    pub(crate) zone_bytes: u64,
    /// Guests are busy: short I/Os, nothing ahead of time.
    pub(crate) gentle: bool,
}

/// First wait before something that failed is tried again, and the longest.
const BACK_OFF_MIN: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);

/// Waits between attempts: each twice as long as the one before.
#[derive(Debug, Default)]
pub(crate) struct BackOff(Option<Duration>);

impl BackOff {
    /// Whether there was an attempt already.
    pub(crate) fn has_begun(&self) -> bool {
        self.0.is_some()
    }

    /// How long to wait before the next attempt.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.0.map_or(BACK_OFF_MIN, |last| (last * 2).min(BACK_OFF_MAX));
        self.0 = Some(wait);
        wait
    }
}

/// The pace of one rotation.
#[derive(Debug)]
pub(crate) struct Pace {
    share: f64,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self { share: SHARE_START }
    }

    /// The first step, of which nothing is known yet: a small one.
    pub(crate) fn first(wishes: &Wishes) -> Step {
        let zone_bytes = wishes.zone_bytes.min(BUSY_ZONE_BYTES);
        Step { rest: Duration::ZERO, zone_bytes, gentle: false }
    }

    /// What comes after a zone of `moved` bytes that took `worked`, where `since` has passed since the
    /// last time, and guests did `load`.
    pub(crate) fn next(
        &mut self,
        wishes: &Wishes,
        moved: u64,
        worked: Duration,
        since: Duration,
        load: &Load,
    ) -> Step {
        let per_second = load.requests as f64 / since.as_secs_f64().max(1e-3);
        let busy = per_second >= BUSY_PER_SECOND;
        let mut rest = Duration::ZERO;
        if busy {
            self.adapt(wishes.guest_latency_max, load);
            rest = worked.mul_f64(1.0 / self.share - 1.0);
        }
        if let Some(rate) = wishes.rate_bytes.filter(|rate| *rate > 0) {
            let due = Duration::from_secs_f64(moved as f64 / rate as f64);
            rest = rest.max(due.saturating_sub(worked));
        }
        let zone_bytes =
            if busy { wishes.zone_bytes.min(BUSY_ZONE_BYTES) } else { wishes.zone_bytes };
        Step { rest, zone_bytes, gentle: busy }
    }

    /// More while guests are well, half of it as soon as they are not.
    fn adapt(&mut self, limit: Option<Duration>, load: &Load) {
        let Some(limit) = limit else { return };
        let Some(mean_ns) = load.sampled_ns.checked_div(load.samples) else { return };
        self.share = if u128::from(mean_ns) > limit.as_nanos() {
            self.share / 2.0
        } else {
            self.share + 0.01
        }
        .clamp(SHARE_MIN, SHARE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const MIB: u64 = 1 << 20;

    fn wishes() -> Wishes {
        Wishes { zone_bytes: 16 * MIB, ..Wishes::default() }
    }

    fn load(requests: u64, mean: Duration) -> Load {
        Load { requests, samples: 2, sampled_ns: 2 * mean.as_nanos() as u64 }
    }

    #[test]
    fn attempts_come_less_and_less_often_but_never_end() {
        let mut back_off = BackOff::default();
        assert!(!back_off.has_begun());
        let waits: Vec<_> = (0..9).map(|_| back_off.next().as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
        assert!(back_off.has_begun());
    }

    #[test]
    fn an_idle_disk_is_rotated_without_rest_in_large_zones() {
        let step = Pace::new().next(&wishes(), MIB, 10 * MS, 10 * MS, &Load::default());
        assert_eq!(step, Step { rest: Duration::ZERO, zone_bytes: 16 * MIB, gentle: false });
    }

    #[test]
    fn beside_a_busy_guest_it_works_a_tenth_of_the_time_in_small_zones() {
        let step = Pace::new().next(&wishes(), MIB, 10 * MS, 100 * MS, &load(1000, MS));
        assert_eq!((step.zone_bytes, step.gentle), (MIB, true));
        assert!(step.rest > 89 * MS && step.rest < 91 * MS, "{step:?}");
    }

    #[test]
    fn it_gives_way_while_guests_wait_too_long_and_comes_back() {
        let wishes = Wishes { guest_latency_max: Some(5 * MS), ..wishes() };
        let mut pace = Pace::new();
        let mut rest = |mean| pace.next(&wishes, MIB, 10 * MS, 100 * MS, &load(1000, mean)).rest;
        let (first, second) = (rest(6 * MS), rest(6 * MS));
        assert!(second > first);
        let longest = (0..10).map(|_| rest(6 * MS)).max().unwrap();
        assert!(longest <= 491 * MS, "never less than a fiftieth: {longest:?}");
        assert!(rest(4 * MS) < longest);
        let shortest = (0..50).map(|_| rest(MS)).min().unwrap();
        assert!(shortest >= 29 * MS, "never more than a quarter: {shortest:?}");
    }

    #[test]
    fn the_operators_limit_holds_with_and_without_guests() {
        let wishes = Wishes { rate_bytes: Some(10 * MIB), ..wishes() };
        for load in [Load::default(), load(1000, MS)] {
            let step = Pace::new().next(&wishes, MIB, 10 * MS, 100 * MS, &load);
            assert!(step.rest >= 89 * MS, "{step:?}");
        }
        let unlimited = Wishes { rate_bytes: Some(0), ..wishes };
        let step = Pace::new().next(&unlimited, MIB, MS, MS, &Load::default());
        assert_eq!(step.rest, Duration::ZERO, "no division by nothing");
    }
}
