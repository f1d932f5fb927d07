//! Where the time of a request goes, seen on some of them: [`crate::latency`] counts what comes out.
//!
//! Contract: one request in [`TIMED_ONE_IN`] is watched, at random, so that no rhythm of the guest (every
//! tenth request is a flush) hides or doubles a kind. A request that is not watched costs a
//! comparison where it begins and one at each later step; the clock is read for watched ones only.
//! Nothing is allocated after [`Stopwatch::new`].
//!
//! Deliberately absent: how long a request lay in the available ring before the thread took it. The
//! guest leaves no time there.

use std::time::{Duration, Instant};

use crate::latency::Taken;

/// On average one request of so many is watched: reading the clock five to seven times and counting in
/// five histograms costs as much as half of a request of 4 KiB.
pub const TIMED_ONE_IN: u32 = 64;

/// The requests of a queue that are watched.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    /// Requests to let pass before the next one is watched.
    pass: u32,
    random: u32,
    /// A bit for each head that is watched: all that a request which isn't touches.
    watched: Box<[u64]>,
    /// By head.
    times: Box<[Times]>,
}

/// A watched request.
#[derive(Debug, Clone, Copy)]
struct Times {
    began: Instant,
    /// Its I/Os at the volume, and since when there is one.
    out: u32,
    out_since: Instant,
    volume: Duration,
    cipher: Duration,
    /// The part of `cipher` during which none of its I/Os was at the volume.
    cipher_alone: Duration,
}

impl Stopwatch {
    /// For a queue with so many descriptors; `seed`: queues shall not watch in step.
    pub(crate) fn new(queue_size_max: u16, seed: u16) -> Self {
        let now = now();
        let times = vec![Times::at(now); usize::from(queue_size_max)].into_boxed_slice();
        let watched = vec![0; times.len().div_ceil(64)].into_boxed_slice();
        Self { pass: 0, random: 0x9e37_79b9 ^ u32::from(seed), watched, times }
    }

    /// A request begins.
    #[inline]
    pub(crate) fn begins(&mut self, head: u16) {
        if self.pass > 0 {
            self.pass -= 1;
            return;
        }
        self.watch(head);
    }

    #[cold]
    fn watch(&mut self, head: u16) {
        // xorshift32 (Marsaglia 2003).
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        // 0 to 2 TIMED_ONE_IN - 2 let pass: the mean is right.
        self.pass = self.random % (2 * TIMED_ONE_IN - 1);
        if let Some(times) = self.times.get_mut(usize::from(head))
            && let Some(word) = self.watched.get_mut(usize::from(head / 64))
        {
            *times = Times::at(now());
            *word |= 1 << (head % 64);
        }
    }

    #[inline]
    fn is_watched(&self, head: u16) -> bool {
        self.watched.get(usize::from(head / 64)).is_some_and(|word| word >> (head % 64) & 1 != 0)
    }

    /// An I/O of a request goes to the volume.
    #[inline]
    pub(crate) fn left(&mut self, head: u16) {
        if self.is_watched(head) {
            self.of(head).left();
        }
    }

    /// An I/O of a request came back, done or not.
    #[inline]
    pub(crate) fn came_back(&mut self, head: u16) {
        if self.is_watched(head) {
            self.of(head).came_back();
        }
    }

    /// The cipher begins on data of a request; the answer goes to [`Self::cipher_ends`].
    #[inline]
    pub(crate) fn cipher_begins(&mut self, head: u16) -> Option<Instant> {
        self.is_watched(head).then(now)
    }

    /// The cipher has done what it began.
    #[inline]
    pub(crate) fn cipher_ends(&mut self, head: u16, since: Option<Instant>) {
        if let Some(since) = since {
            self.of(head).sealed(since);
        }
    }

    /// A request ends; its times, if it was watched.
    #[inline]
    pub(crate) fn ends(&mut self, head: u16) -> Option<Taken> {
        if !self.is_watched(head) {
            return None;
        }
        if let Some(word) = self.watched.get_mut(usize::from(head / 64)) {
            *word &= !(1 << (head % 64));
        }
        Some(self.of(head).taken())
    }

    /// The times of a head that is watched.
    fn of(&mut self, head: u16) -> &mut Times {
        &mut self.times[usize::from(head)]
    }
}

/// Out of line: rare.
impl Times {
    fn at(now: Instant) -> Self {
        Self {
            began: now,
            out: 0,
            out_since: now,
            volume: Duration::ZERO,
            cipher: Duration::ZERO,
            cipher_alone: Duration::ZERO,
        }
    }

    #[cold]
    fn left(&mut self) {
        if self.out == 0 {
            self.out_since = now();
        }
        self.out += 1;
    }

    #[cold]
    fn came_back(&mut self) {
        self.out = self.out.saturating_sub(1);
        if self.out == 0 {
            self.volume += now().duration_since(self.out_since);
        }
    }

    #[cold]
    fn sealed(&mut self, since: Instant) {
        let took = now().duration_since(since);
        self.cipher += took;
        if self.out == 0 {
            self.cipher_alone += took;
        }
    }

    #[cold]
    fn taken(&self) -> Taken {
        let total = now().duration_since(self.began);
        Taken {
            total_ns: nanoseconds(total),
            queue_ns: nanoseconds(total.saturating_sub(self.volume + self.cipher_alone)),
            cipher_ns: nanoseconds(self.cipher),
            volume_ns: nanoseconds(self.volume),
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(not(test))]
#[inline]
fn now() -> Instant {
    Instant::now()
}

/// Tests turn the clock themselves.
#[cfg(test)]
fn now() -> Instant {
    tests::CLOCK.with(std::cell::Cell::get)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        pub(super) static CLOCK: Cell<Instant> = Cell::new(Instant::now());
    }

    fn pass(ns: u64) {
        CLOCK.with(|clock| clock.set(clock.get() + Duration::from_nanos(ns)));
    }

    /// A queue that watches the next request.
    fn watching() -> Stopwatch {
        let mut watch = Stopwatch::new(64, 0);
        watch.begins(7);
        watch
    }

    #[test]
    fn one_request_in_so_many_is_watched_whatever_the_rhythm() {
        for rhythm in [2, 3, 8, 16, 17] {
            let mut watch = Stopwatch::new(64, 3);
            let (mut all, mut on_the_beat) = (0u32, 0u32);
            let requests = 640_000;
            for n in 0..requests {
                watch.begins(n as u16 % 64);
                if watch.ends(n as u16 % 64).is_some() {
                    all += 1;
                    on_the_beat += u32::from(n % rhythm == 0);
                }
            }
            let near = |is: u32, expected: u32| is.abs_diff(expected) < expected / 10;
            assert!(near(all, requests / TIMED_ONE_IN), "{all}");
            assert!(near(on_the_beat, all / rhythm), "{rhythm}: {on_the_beat} of {all}");
        }
    }

    #[test]
    fn the_stages_of_a_read_add_up() {
        let mut watch = watching();
        pass(10);
        watch.left(7);
        pass(500);
        watch.came_back(7);
        pass(3);
        let cipher = watch.cipher_begins(7);
        pass(80);
        watch.cipher_ends(7, cipher);
        pass(1);
        let taken = watch.ends(7);
        let right = Taken { total_ns: 594, queue_ns: 14, cipher_ns: 80, volume_ns: 500 };
        assert_eq!(taken, Some(right));
        assert_eq!(watch.ends(7), None);
    }

    #[test]
    fn parts_that_overlap_are_counted_once_at_the_volume() {
        let mut watch = watching();
        for _ in 0..2 {
            let cipher = watch.cipher_begins(7);
            pass(100);
            watch.cipher_ends(7, cipher);
            watch.left(7);
            pass(1);
        }
        pass(1000);
        watch.came_back(7);
        pass(50);
        watch.came_back(7);
        let right = Taken { total_ns: 1252, queue_ns: 0, cipher_ns: 200, volume_ns: 1152 };
        assert_eq!(watch.ends(7), Some(right));
    }

    #[test]
    fn what_is_held_waits_in_the_queue() {
        let mut watch = watching();
        for _ in 0..2 {
            watch.left(7);
            pass(20);
            watch.came_back(7);
            pass(5000);
        }
        let right = Taken { total_ns: 10_040, queue_ns: 10_000, cipher_ns: 0, volume_ns: 40 };
        assert_eq!(watch.ends(7), Some(right));
    }

    #[test]
    fn a_request_that_is_not_watched_leaves_no_trace() {
        let mut watch = watching();
        watch.left(8);
        assert_eq!(watch.cipher_begins(8), None);
        watch.came_back(8);
        assert_eq!(watch.ends(8), None);
        assert!(watch.ends(7).is_some());
    }
}
