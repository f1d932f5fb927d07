//! When a request may go: the arithmetic of a disk's [`Limits`], shared by its queue threads.
//!
//! Each limit is a leaky bucket, and each bucket one number: the instant at which it will have
//! leaked empty (GCRA, the generic cell rate algorithm, calls it the theoretical arrival time). A
//! request that comes moves that instant by its cost, and may go once the bucket holds no more than
//! its size *without* it. So a request larger than the bucket goes, too, and the next one waits for
//! what it owes.
//!
//! Contract: [`Limiter::reserve`] charges the request at once and tells when it may go. Who comes
//! later, on whatever thread, stands behind it: nobody is overtaken by a busier queue. One
//! compare-exchange per bucket, no lock.
//! Invariant: what goes within any time is at most the bucket's size, plus rate times that time,
//! plus one request. Where several buckets hold a request, the time that it waits for one of them
//! counts for the others, too: there it is one request of each queue and direction.
//! Deliberately absent: timers and queues ([`crate::throttle`]), and a clock: it is handed in.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::{Limits, limits::Rate};

/// Instants and durations here are counted in sixteenths of a nanosecond, in which 64 bits have 36
/// years, and the rounding of a request's cost doesn't show.
const TICKS_PER_NS: u64 = 16;
const TICKS_PER_SECOND: u64 = 1_000_000_000 * TICKS_PER_NS;

/// Without a burst a bucket holds a second's worth by this much, as QEMU's does: with none at all
/// every other request of a guest that stays below its limit would wait.
const PER_SECOND_AT_ONCE: u64 = 10;

/// Largest bucket: a year's worth.
const DEPTH_MAX: u64 = 365 * 86_400 * TICKS_PER_SECOND;

/// Longest wait of a request, however much its predecessors owe: a limit so low that it matters is
/// a mistake, and a disk that never answers again is no limit.
const WAIT_MAX: u64 = 3600 * TICKS_PER_SECOND;

/// Which way data moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// What a bucket counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Bytes,
    Requests,
}

/// The limits of a disk at work.
#[derive(Debug)]
pub(crate) struct Limiter {
    buckets: Vec<Bucket>,
    /// Bytes of a request that counts as one; none: all do.
    request_bytes: Option<u64>,
    epoch: Instant,
}

#[derive(Debug)]
struct Bucket {
    unit: Unit,
    /// None: both.
    direction: Option<Direction>,
    per_second: u64,
    /// How long it leaks when it is full.
    depth: u64,
    /// When it will be empty.
    empty_at: AtomicU64,
}

impl Limiter {
    /// None: nothing is limited.
    pub(crate) fn new(limits: &Limits) -> Option<Self> {
        let rates = [
            (Unit::Bytes, None, limits.total_bytes),
            (Unit::Bytes, Some(Direction::Read), limits.read_bytes),
            (Unit::Bytes, Some(Direction::Write), limits.write_bytes),
            (Unit::Requests, None, limits.total_requests),
            (Unit::Requests, Some(Direction::Read), limits.read_requests),
            (Unit::Requests, Some(Direction::Write), limits.write_requests),
        ];
        let mut buckets = Vec::new();
        for (unit, direction, rate) in rates {
            let Some(rate) = rate.filter(|rate| rate.per_second > 0) else { continue };
            let bucket = |per_second, depth| {
                let empty_at = AtomicU64::new(0);
                Bucket { unit, direction, per_second, depth, empty_at }
            };
            buckets.push(bucket(rate.per_second, depth(&rate)));
            // A longer burst must keep to its own rate.
            if let Some(burst) = rate.burst.filter(|burst| burst.seconds > 1) {
                let depth = TICKS_PER_SECOND / PER_SECOND_AT_ONCE;
                buckets.push(bucket(burst.per_second.max(1), depth));
            }
        }
        let request_bytes = Some(limits.request_bytes).filter(|&bytes| bytes > 0);
        (!buckets.is_empty()).then(|| Self { buckets, request_bytes, epoch: Instant::now() })
    }

    /// An instant of the system's clock as one of here.
    pub(crate) fn at(&self, instant: Instant) -> u64 {
        let since = instant.saturating_duration_since(self.epoch).as_nanos();
        u64::try_from(since).unwrap_or(u64::MAX).saturating_mul(TICKS_PER_NS)
    }

    /// Charges a request that comes `now`; gives the instant at which it may go, `now` at the
    /// earliest.
    pub(crate) fn reserve(&self, direction: Direction, bytes: u64, now: u64) -> u64 {
        let concerned = |bucket: &&Bucket| bucket.direction.is_none_or(|one| one == direction);
        let buckets = self.buckets.iter().filter(concerned);
        buckets.fold(now, |due, bucket| {
            let (amount, of) = match (bucket.unit, self.request_bytes) {
                // What moves no data has nothing to do with bytes.
                (Unit::Bytes, _) if bytes == 0 => return due,
                (Unit::Bytes, _) => (bytes, 1),
                (Unit::Requests, Some(one)) if bytes > one => (bytes, one),
                (Unit::Requests, _) => (1, 1),
            };
            due.max(bucket.charge(amount, of, now))
        })
    }
}

/// Time from `now` until `due`, never less.
pub(crate) fn until(due: u64, now: u64) -> Duration {
    Duration::from_nanos(due.saturating_sub(now).div_ceil(TICKS_PER_NS))
}

impl Bucket {
    /// Charges `amount`, counted in parts of which `of` are one.
    fn charge(&self, amount: u64, of: u64, now: u64) -> u64 {
        let per_second = u128::from(self.per_second) * u128::from(of);
        let cost = ticks(u128::from(amount), per_second, u128::div_ceil);
        let most = now.saturating_add(self.depth).saturating_add(WAIT_MAX);
        let charged =
            |empty_at: u64| Some(empty_at.max(now).saturating_add(cost).min(most.max(empty_at)));
        let (Ok(before) | Err(before)) = self.empty_at.fetch_update(Relaxed, Relaxed, charged);
        before.saturating_sub(self.depth).max(now)
    }
}

/// How long a full bucket of this rate leaks.
fn depth(rate: &Rate) -> u64 {
    let Some(burst) = rate.burst else { return TICKS_PER_SECOND / PER_SECOND_AT_ONCE };
    let size = u128::from(burst.per_second) * u128::from(burst.seconds.max(1));
    ticks(size, u128::from(rate.per_second), |ticks, rate| ticks / rate).min(DEPTH_MAX)
}

/// How long so much takes at a rate.
fn ticks(amount: u128, per_second: u128, divide: impl Fn(u128, u128) -> u128) -> u64 {
    let ticks = amount.saturating_mul(u128::from(TICKS_PER_SECOND));
    u64::try_from(divide(ticks, per_second)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
