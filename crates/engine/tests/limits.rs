//! A disk with limits, from its guest's side. Waits that a test must not wait out last an hour: with
//! one byte per second the first request goes, and owes so much that no other does.
#![expect(clippy::unwrap_used, reason = "tests")]

mod driver;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use driver::*;
use sealblk_block::Extent;
use sealblk_engine::{Disk, EngineConfig, Limits, OnError, Rate};
use sealblk_virtqueue::QueueHost;
use sealblk_volume::{FaultyVolume, Verdict, Volume};

fn rate(per_second: u64) -> Option<Rate> {
    Some(Rate { per_second, burst: None })
}

fn writes_stand() -> Limits {
    Limits { write_bytes: rate(1), ..Limits::default() }
}

fn all_stands() -> Limits {
    Limits { total_bytes: rate(1), ..Limits::default() }
}

fn served(limits: Limits) -> (Arc<dyn Volume>, Disk, Driver) {
    let volume = volume(512);
    let mut disk = disk(&volume, 512, &EngineConfig { limits, ..config() });
    let driver = Driver::new(default_features());
    driver.start(&mut disk, 0);
    (volume, disk, driver)
}

fn post(driver: &mut Driver, head: u16, kind: u32, fill: u8) {
    let gpa = DATA + u64::from(head) * 4096;
    driver.memory.write(gpa, &[fill; 4096]).unwrap();
    driver.post(head, kind, u64::from(head) * 8, &[Data { gpa, len: 4096 }]);
}

/// Posts so many writes, with heads 0, 3, 6 and so on.
fn post_writes(driver: &mut Driver, count: u16) {
    for head in heads(count) {
        post(driver, head, OUT, head as u8 + 1);
    }
    driver.kick();
}

fn heads(count: u16) -> impl Iterator<Item = u16> {
    (0..count).map(|n| n * 3)
}

fn wait_throttled(disk: &Disk, count: u64) {
    while disk.stats()[0].throttled.get() < count {
        thread::yield_now();
    }
}

/// What came back, in order of heads, each without an error.
fn back(driver: &mut Driver, count: usize) -> Vec<u16> {
    let mut heads: Vec<u16> = (0..count).map(|_| driver.wait().0).collect();
    heads.sort_unstable();
    assert!(heads.iter().all(|&head| driver.status(head) == 0));
    heads
}

/// The volume has what `post_writes` wrote.
fn assert_written(volume: &Arc<dyn Volume>, count: u16) {
    for head in heads(count) {
        let (sector, plain) = (u64::from(head) * 8, [head as u8 + 1; 4096]);
        assert!(on_volume(volume, sector, 4096) == sealed(&plain, sector, 512), "request {head}");
    }
}

#[test]
fn reads_and_flushes_pass_writes_that_wait() {
    let (volume, mut disk, mut driver) = served(writes_stand());
    post_writes(&mut driver, 12);
    assert_eq!(driver.wait().0, 0, "the first goes, and owes");
    post(&mut driver, 40, IN, 0);
    driver.post(43, FLUSH, 0, &[]);
    driver.post(46, GET_ID, 0, &[Data { gpa: DATA + (8 << 20), len: 20 }]);
    driver.kick();
    assert_eq!(back(&mut driver, 3), [40, 43, 46]);
    assert!(driver.used().is_none() && driver.status(3) == UNTOUCHED);
    let counts = disk.stats()[0].counts();
    assert_eq!((counts.writes, counts.reads, counts.flushes), (1, 1, 1));
    assert_eq!((counts.throttled, counts.throttled_ns, counts.in_flight), (11, 0, 11));
    disk.stop(0);
    assert_eq!(back(&mut driver, 11).len(), 11);
    assert_written(&volume, 12);
}

#[test]
fn a_limit_of_both_directions_holds_both_but_no_flush() {
    let (_volume, disk, mut driver) = served(all_stands());
    post_writes(&mut driver, 1);
    assert_eq!(driver.wait().0, 0);
    post(&mut driver, 3, IN, 0);
    post(&mut driver, 6, OUT, 1);
    driver.post(9, FLUSH, 0, &[]);
    driver.kick();
    assert_eq!(driver.wait().0, 9);
    wait_throttled(&disk, 2);
    assert!(driver.used().is_none());
}

#[test]
fn a_queue_stops_at_once_and_the_guest_owes_what_it_got() {
    for tracked in [true, false] {
        let (volume, mut disk, mut driver) = served(all_stands());
        if !tracked {
            disk.stop(0);
            driver.inflight = None;
            driver.start(&mut disk, 0);
        }
        post_writes(&mut driver, 20);
        wait_throttled(&disk, 19);
        // Nineteen hours, if it waited for the limit.
        let base = disk.stop(0);
        assert_eq!(base, 20);
        assert_eq!(back(&mut driver, 20), heads(20).collect::<Vec<_>>());
        assert_written(&volume, 20);
        let counts = disk.stats()[0].counts();
        assert_eq!((counts.throttled, counts.in_flight), (19, 0));
        assert!(counts.throttled_ns > 0);
        // A reset is no way around a limit.
        driver.start(&mut disk, base);
        post_writes(&mut driver, 1);
        wait_throttled(&disk, 20);
        assert!(driver.used().is_none());
    }
}

#[test]
fn a_disk_that_goes_does_not_wait_for_its_limit() {
    let (volume, disk, mut driver) = served(writes_stand());
    post_writes(&mut driver, 5);
    wait_throttled(&disk, 4);
    drop(disk);
    assert_eq!(back(&mut driver, 5).len(), 5);
    assert_written(&volume, 5);
}

#[test]
fn what_is_replayed_counts() {
    let failing = Arc::new(AtomicBool::new(true));
    let volume = volume(512);
    let path: Arc<dyn Volume> = Arc::new(FaultyVolume::new(volume.clone(), {
        let failing = failing.clone();
        move |_| if failing.load(SeqCst) { Verdict::Fail(libc::EIO) } else { Verdict::Pass }
    }));
    // Leaves its requests in the in-flight region, as one that was killed does.
    let mut first = disk(&path, 512, &EngineConfig { on_error: OnError::Hold, ..config() });
    let mut driver = Driver::new(default_features());
    driver.start(&mut first, 0);
    post_writes(&mut driver, 3);
    while first.stats()[0].held.get() < 3 {
        thread::yield_now();
    }
    first.stop(0);
    drop(first);
    failing.store(false, SeqCst);
    let mut second = disk(&path, 512, &EngineConfig { limits: writes_stand(), ..config() });
    driver.start(&mut second, 0);
    assert_eq!(back(&mut driver, 1).len(), 1);
    wait_throttled(&second, 2);
    let counts = second.stats()[0].counts();
    assert_eq!((counts.replayed, counts.throttled, counts.writes), (3, 2, 1));
    assert!(driver.used().is_none());
    second.stop(0);
    assert_eq!(back(&mut driver, 2).len(), 2);
    assert_written(&volume, 3);
}

#[test]
fn limits_change_under_a_guest() {
    let (volume, mut disk, mut driver) = served(writes_stand());
    post_writes(&mut driver, 6);
    wait_throttled(&disk, 5);
    assert_eq!(driver.wait().0, 0);
    // Others that are as tight let one more go, for its debt was with the old ones.
    disk.set_limits(&all_stands());
    assert_eq!(driver.wait().0, 3);
    post(&mut driver, 40, IN, 0);
    driver.kick();
    wait_throttled(&disk, 6);
    assert!(driver.used().is_none(), "reads wait, too, now");
    disk.set_limits(&Limits::default());
    assert_eq!(back(&mut driver, 5), [6, 9, 12, 15, 40]);
    assert_written(&volume, 6);
    // And back, with nothing in work; what is answered behind it tells that it has been taken.
    disk.set_limits(&writes_stand());
    disk.set_writeback(true).unwrap();
    post_writes(&mut driver, 2);
    assert_eq!(driver.wait().0, 0);
    wait_throttled(&disk, 7);
    assert!(driver.used().is_none());
}

#[test]
fn a_rotation_does_not_wait_for_writes_that_wait_for_a_limit() {
    let (_volume, mut disk, mut driver) = served(writes_stand());
    post_writes(&mut driver, 4);
    wait_throttled(&disk, 3);
    assert_eq!(driver.wait().0, 0);
    let mut switch = disk.switchboard().key_switch();
    switch.hold_writes(Extent::new(0, 1024)).unwrap();
    // Now they touch the zone: they are parked by the fence once the limit lets them go.
    disk.set_limits(&Limits::default());
    while disk.stats()[0].parked.get() < 3 {
        thread::yield_now();
    }
    switch.publish(&[segment(512, true)]).unwrap();
    assert_eq!(back(&mut driver, 3), [3, 6, 9]);
    disk.stop(0);
}

#[test]
fn two_queues_never_move_more_than_the_disk_may() {
    const PER_SECOND: u64 = 32 << 20;
    const LEN: u64 = 64 << 10;
    const EACH: u64 = 8 << 20;
    for limits in [
        Limits { total_bytes: rate(PER_SECOND), ..Limits::default() },
        Limits { total_requests: rate(PER_SECOND / LEN), ..Limits::default() },
    ] {
        let volume = volume(512);
        let two = EngineConfig { queues: 2, limits, ..config() };
        let mut disk = disk(&volume, 512, &two);
        let drivers = [(0, OUT), (1, IN)].map(|(queue, kind)| {
            let driver = Driver::new(default_features());
            disk.start(queue, driver.setup(0)).unwrap();
            (driver, kind)
        });
        let began = Instant::now();
        thread::scope(|scope| {
            for (mut driver, kind) in drivers {
                scope.spawn(move || {
                    let post = |driver: &mut Driver, head: u16| {
                        let gpa = DATA + u64::from(head) * LEN;
                        driver.post(head, kind, 0, &[Data { gpa, len: LEN as u32 }]);
                        driver.kick();
                    };
                    heads(16).for_each(|head| post(&mut driver, head));
                    let rounds = EACH / LEN;
                    for round in 0..rounds {
                        let (head, _) = driver.wait();
                        assert_eq!(driver.status(head), 0);
                        if round + 16 < rounds {
                            post(&mut driver, head);
                        }
                    }
                });
            }
        });
        let elapsed = began.elapsed();
        let counts: Vec<_> = disk.stats().iter().map(|stats| stats.counts()).collect();
        let moved: u64 = counts.iter().map(|counts| counts.read_bytes + counts.written_bytes).sum();
        assert_eq!(moved, 2 * EACH);
        let allowed = (PER_SECOND / 10 + LEN) as f64 + PER_SECOND as f64 * elapsed.as_secs_f64();
        assert!(moved as f64 <= allowed, "{moved} bytes in {elapsed:?}");
        assert!(counts.iter().all(|counts| counts.throttled > 0 && counts.throttled_ns > 0));
    }
}

#[test]
fn a_queue_that_waits_for_a_limit_sleeps_until_its_timer() {
    let (_volume, disk, mut driver) = served(writes_stand());
    post_writes(&mut driver, 3);
    wait_throttled(&disk, 2);
    assert_eq!(driver.wait().0, 0);
    let sleeps = || {
        nap();
        disk.stats()[0].sleeps.get()
    };
    // It may poll a little before.
    let (mut before, mut now) = (sleeps(), sleeps());
    while now != before {
        (before, now) = (now, sleeps());
    }
    assert_eq!(sleeps(), now, "nothing wakes it");
    assert!(now < 100, "it has been sleeping");
}

#[expect(clippy::disallowed_methods, reason = "the absence of events can only be waited for")]
fn nap() {
    thread::sleep(Duration::from_millis(50));
}
