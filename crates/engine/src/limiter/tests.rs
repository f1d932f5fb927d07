use std::sync::atomic::AtomicBool;

use super::*;
use crate::limits::Burst;

const SECOND: u64 = TICKS_PER_SECOND;
const MS: u64 = SECOND / 1000;

fn rate(per_second: u64) -> Option<Rate> {
    Some(Rate { per_second, burst: None })
}

fn bursts(per_second: u64, burst: u64, seconds: u64) -> Option<Rate> {
    Some(Rate { per_second, burst: Some(Burst { per_second: burst, seconds }) })
}

fn limiter(limits: Limits) -> Limiter {
    Limiter::new(&limits).unwrap()
}

/// When each of so many equal requests goes, if each comes when the one before it has gone.
fn one_by_one(
    limiter: &Limiter,
    direction: Direction,
    bytes: u64,
    from: u64,
    n: usize,
) -> Vec<u64> {
    let mut now = from;
    let mut next = || {
        now = limiter.reserve(direction, bytes, now);
        now
    };
    (0..n).map(|_| next()).collect()
}

/// Fails if any stretch of time has more than the bucket, the rate and one request allow.
fn never_more(mut gone: Vec<(u64, u64)>, per_second: u64, bucket: u64) {
    // The one that goes over the bucket's size is the last to be charged, not always to go.
    let one = gone.iter().map(|&(_, bytes)| bytes).max().unwrap();
    gone.sort_unstable();
    for first in 0..gone.len() {
        let mut sum = 0;
        for last in first..gone.len() {
            let time = gone[last].0 - gone[first].0;
            let leaked = u128::from(per_second) * u128::from(time) / u128::from(SECOND);
            let allowed = u128::from(bucket) + leaked + u128::from(one) + 1;
            sum += gone[last].1;
            assert!(u128::from(sum) <= allowed, "{sum} > {allowed} within {time} ticks");
        }
    }
}

#[test]
fn no_limits_are_no_limiter_and_a_rate_of_zero_is_none() {
    assert!(Limiter::new(&Limits::default()).is_none());
    let zero = Limits { read_bytes: rate(0), total_requests: bursts(0, 0, 0), ..Limits::default() };
    assert!(Limiter::new(&zero).is_none());
}

#[test]
fn a_rate_is_kept_after_a_tenth_of_a_second_at_once() {
    let limiter = limiter(Limits { total_requests: rate(100), ..Limits::default() });
    let gone = one_by_one(&limiter, Direction::Read, 4096, 0, 100);
    // Ten are in the bucket, and one more finds it not yet over its size.
    assert!(gone[..11].iter().all(|&at| at == 0), "{gone:?}");
    for (n, &at) in gone.iter().enumerate().skip(11) {
        assert_eq!(at, (n as u64 - 10) * 10 * MS);
    }
}

#[test]
fn what_was_not_used_is_there_again_but_no_more_than_a_bucketful() {
    let limiter = limiter(Limits { write_bytes: rate(1_000_000), ..Limits::default() });
    let at_once = |from| {
        let gone = one_by_one(&limiter, Direction::Write, 10_000, from, 50);
        gone.iter().filter(|&&at| at == from).count()
    };
    assert_eq!(at_once(0), 11);
    assert_eq!(at_once(10 * SECOND), 11);
    assert_eq!(at_once(86_400 * SECOND), 11, "a day's rest is no credit");
}

#[test]
fn in_the_long_run_no_capacity_is_lost() {
    for (per_second, bytes) in [(3, 1), (1_000_000, 4096), (7_777_777, 512), (40_000_000_000, 512)]
    {
        let limiter = limiter(Limits { total_bytes: rate(per_second), ..Limits::default() });
        let n = 1000;
        let last = *one_by_one(&limiter, Direction::Read, bytes, 0, n).last().unwrap();
        // All but the last have leaked, down to a full bucket.
        let exact =
            u128::from(bytes) * (n as u128 - 1) * u128::from(SECOND) / u128::from(per_second);
        let exact = exact.saturating_sub(u128::from(SECOND / 10));
        let late = u128::from(last) - exact;
        assert!(late <= n as u128, "{per_second}/s: {late} ticks late");
    }
}

#[test]
fn a_burst_lasts_as_long_as_it_says_and_keeps_its_own_rate() {
    // 2000 per second for 60 s, then 100: the bucket has 120000, and leaks meanwhile.
    let limiter = limiter(Limits { total_requests: bursts(100, 2000, 60), ..Limits::default() });
    let gone = one_by_one(&limiter, Direction::Write, 0, 0, 140_000);
    let within = |seconds: u64| gone.iter().filter(|&&at| at < seconds * SECOND).count();
    assert!(within(1) <= 2000 + 200 + 1, "{}", within(1));
    assert!((120_000..=120_300).contains(&within(60)), "{}", within(60));
    // Some 3 s longer, for what has leaked, then the rate.
    assert!((126_000..=126_400).contains(&within(64)), "{}", within(64));
    let rest = within(74) - within(64);
    assert!((999..=1001).contains(&rest), "{rest}");
}

#[test]
fn a_burst_of_a_second_may_come_at_once() {
    let limiter = limiter(Limits { read_bytes: bursts(1000, 5000, 1), ..Limits::default() });
    let gone = one_by_one(&limiter, Direction::Read, 1000, 0, 10);
    let seconds: Vec<u64> = gone.iter().map(|at| at / SECOND).collect();
    assert_eq!(seconds, [0, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
}

#[test]
fn a_request_larger_than_the_bucket_goes_and_is_owed() {
    let limiter = limiter(Limits { write_bytes: rate(1000), ..Limits::default() });
    assert_eq!(limiter.reserve(Direction::Write, 1 << 20, 0), 0);
    let due = limiter.reserve(Direction::Write, 512, 0);
    assert_eq!(due, (1 << 20) * (SECOND / 1000) - SECOND / 10);
}

#[test]
fn no_debt_makes_anybody_wait_for_ever() {
    let limiter = limiter(Limits { total_bytes: rate(1), ..Limits::default() });
    let hour = 3600 * SECOND;
    let mut now = 0;
    for _ in 0..1000 {
        assert!(limiter.reserve(Direction::Read, u64::MAX / 512, now) <= now + hour);
        now += MS;
    }
}

#[test]
fn directions_have_their_own_limits_and_share_the_total() {
    let limiter = limiter(Limits {
        write_requests: rate(1),
        total_bytes: rate(1_000_000),
        ..Limits::default()
    });
    assert_eq!(limiter.reserve(Direction::Write, 1000, 0), 0);
    assert!(limiter.reserve(Direction::Write, 1000, 0) > 0);
    for _ in 0..98 {
        assert_eq!(limiter.reserve(Direction::Read, 1000, 0), 0, "reads pass a limit of writes");
    }
    assert_eq!(limiter.reserve(Direction::Read, 1000, 0), 0);
    assert!(limiter.reserve(Direction::Read, 1000, 0) > 0, "but not that of both");
}

#[test]
fn what_moves_no_bytes_does_not_wait_for_those_that_do() {
    let limiter = limiter(Limits { write_bytes: rate(1), ..Limits::default() });
    assert_eq!(limiter.reserve(Direction::Write, 1 << 20, 0), 0);
    assert_eq!(limiter.reserve(Direction::Write, 0, 0), 0);
    assert!(limiter.reserve(Direction::Write, 1, 0) > 0);
}

#[test]
fn several_threads_never_get_more_than_the_limit_and_nobody_is_overtaken() {
    const PER_SECOND: u64 = 1_000_000;
    let limiter = limiter(Limits { total_bytes: rate(PER_SECOND), ..Limits::default() });
    // The threads' common clock moves on when somebody is through.
    let clock = AtomicU64::new(0);
    let go = AtomicBool::new(false);
    let work = |seed: u64| {
        let mut random = seed;
        let mut gone = Vec::new();
        while !go.load(Relaxed) {
            std::hint::spin_loop();
        }
        for _ in 0..400 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let bytes = 512 * (1 + random % 64);
            let direction = if random & 1 == 0 { Direction::Read } else { Direction::Write };
            let due = limiter.reserve(direction, bytes, clock.load(Relaxed));
            gone.push((due, bytes));
            clock.fetch_max(due, Relaxed);
            if random.is_multiple_of(97) {
                clock.fetch_add(300 * MS, Relaxed);
            }
        }
        gone
    };
    let each: Vec<Vec<(u64, u64)>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=4).map(|n| scope.spawn(move || work(n * 0x9e37_79b9))).collect();
        go.store(true, Relaxed);
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let gone: Vec<(u64, u64)> = each.concat();
    never_more(gone.clone(), PER_SECOND, PER_SECOND / 10);
    // What is charged once is charged whole: none of it is lost between the threads.
    let moved: u64 = gone.iter().map(|(_, bytes)| bytes).sum();
    let empty_at = limiter.buckets[0].empty_at.load(Relaxed);
    assert!(u128::from(empty_at) >= u128::from(moved) * u128::from(SECOND / PER_SECOND));
}

#[test]
fn a_queue_with_few_requests_stands_behind_one_request_of_a_busy_one() {
    let limiter = limiter(Limits { total_requests: rate(1000), ..Limits::default() });
    one_by_one(&limiter, Direction::Write, 4096, 0, 500);
    let now = 399 * MS;
    let busy = limiter.reserve(Direction::Write, 4096, now);
    let quiet = limiter.reserve(Direction::Read, 4096, now);
    assert_eq!(quiet - busy, MS);
    assert_eq!(limiter.reserve(Direction::Write, 4096, busy) - quiet, MS);
}

#[test]
fn large_requests_count_as_several_where_a_size_is_given() {
    let sized = |request_bytes| {
        let limits = Limits { total_requests: rate(1), request_bytes, ..Limits::default() };
        let limiter = limiter(limits);
        limiter.reserve(Direction::Read, 6144, 0);
        limiter.reserve(Direction::Read, 512, 0) + SECOND / 10
    };
    assert_eq!([0, 8192, 6144, 4096, 512].map(sized), [2, 2, 2, 3, 24].map(|n| n * SECOND / 2));
}

#[test]
fn absurd_numbers_do_not_overflow() {
    let most = Some(Rate {
        per_second: u64::MAX,
        burst: Some(Burst { per_second: u64::MAX, seconds: u64::MAX }),
    });
    let least = bursts(1, u64::MAX, u64::MAX);
    for rate in [most, least] {
        let limiter =
            limiter(Limits { total_bytes: rate, total_requests: rate, ..Limits::default() });
        for now in [0, SECOND, u64::MAX] {
            assert!(limiter.reserve(Direction::Write, u64::MAX, now) >= now);
        }
    }
}

#[test]
fn instants_are_counted_from_the_beginning_and_times_never_rounded_down() {
    let limiter = limiter(Limits { total_requests: rate(1), ..Limits::default() });
    let later = limiter.epoch + Duration::from_millis(3);
    assert_eq!(limiter.at(later), 3 * MS);
    assert_eq!(limiter.at(limiter.epoch - Duration::from_millis(3)), 0);
    assert_eq!(until(17, 0), Duration::from_nanos(2));
    assert_eq!(until(0, 17), Duration::ZERO);
}
