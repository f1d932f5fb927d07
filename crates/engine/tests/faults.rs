//! A disk whose volume fails, or whose guest misbehaves.
#![expect(clippy::unwrap_used, reason = "tests")]

mod driver;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use driver::*;
use sealblk_engine::{EngineConfig, OnError};
use sealblk_virtqueue::QueueHost;
use sealblk_volume::{FaultyVolume, LaneOp, Verdict, Volume};

#[test]
fn short_io_is_continued() {
    let inner = volume(512);
    let short: Arc<dyn Volume> = Arc::new(FaultyVolume::new(inner.clone(), |op| match op {
        LaneOp::Read { .. } | LaneOp::Write { .. } => Verdict::Short(1536),
        _ => Verdict::Pass,
    }));
    let mut disk = disk(&short, 512, &config());
    let mut driver = Driver::new(default_features());
    driver.start(&mut disk, 0);
    let plain = pattern(100 << 10, 9);
    assert_eq!(driver.write(7, &plain), 0);
    assert!(on_volume(&inner, 7, plain.len()) == sealed(&plain, 7, 512));
    assert!(driver.read(7, plain.len()) == (0, plain));
}

#[test]
fn a_volume_that_ends_early_is_an_error_not_old_bytes() {
    let inner = volume(512);
    let ends: Arc<dyn Volume> = Arc::new(FaultyVolume::new(inner, |op| match op {
        LaneOp::Read { .. } => Verdict::Short(0),
        _ => Verdict::Pass,
    }));
    let mut disk = disk(&ends, 512, &config());
    let mut driver = Driver::new(default_features());
    driver.start(&mut disk, 0);
    let (status, bytes) = driver.read(0, 4096);
    assert_eq!(status, 1);
    assert!(bytes.iter().all(|byte| *byte == 0xee), "the guest's buffer is untouched");
}

#[test]
fn a_failed_io_is_reported_and_the_next_one_works() {
    let failing = Arc::new(AtomicBool::new(true));
    let broken: Arc<dyn Volume> = Arc::new(FaultyVolume::new(volume(512), {
        let failing = failing.clone();
        move |_| if failing.load(SeqCst) { Verdict::Fail(libc::EIO) } else { Verdict::Pass }
    }));
    let mut disk = disk(&broken, 512, &config());
    let mut driver = Driver::new(default_features());
    driver.start(&mut disk, 0);
    assert_eq!(driver.write(0, &[1; 4096]), 1);
    assert_eq!(driver.read(0, 1 << 20).0, 1);
    assert_eq!(driver.request(FLUSH, 0, &[]).0, 1);
    failing.store(false, SeqCst);
    assert_eq!(driver.write(0, &[1; 4096]), 0);
    assert!(driver.read(0, 4096) == (0, vec![1; 4096]));
    assert_eq!(disk.stats()[0].counts().volume_errors, 3);
}

#[test]
fn held_io_is_repeated_until_the_storage_is_back() {
    let failures = Arc::new(AtomicU32::new(5));
    let volume = volume(512);
    let path: Arc<dyn Volume> = Arc::new(FaultyVolume::new(volume.clone(), {
        let failures = failures.clone();
        move |op| {
            let fails = matches!(op, LaneOp::Write { .. })
                && failures.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok();
            if fails { Verdict::Fail(libc::EIO) } else { Verdict::Pass }
        }
    }));
    let mut disk = disk(&path, 512, &EngineConfig { on_error: OnError::Hold, ..config() });
    let mut driver = Driver::new(default_features());
    driver.start(&mut disk, 0);
    let plain = pattern(8192, 3);
    assert_eq!(driver.write(64, &plain), 0);
    assert_eq!(failures.load(SeqCst), 0);
    assert!(on_volume(&volume, 64, 8192) == sealed(&plain, 64, 512));
    assert_eq!(disk.stats()[0].counts().held, 5);
}

#[test]
fn a_failed_flush_is_reported_even_when_io_is_held() {
    let path: Arc<dyn Volume> = Arc::new(FaultyVolume::new(volume(512), |op| match op {
        LaneOp::Flush => Verdict::Fail(libc::EIO),
        _ => Verdict::Pass,
    }));
    let mut disk = disk(&path, 512, &EngineConfig { on_error: OnError::Hold, ..config() });
    let mut driver = Driver::new(default_features());
    driver.start(&mut disk, 0);
    assert_eq!(driver.request(FLUSH, 0, &[]), (1, 1));
}

#[test]
fn what_is_held_when_the_queue_stops_is_replayed_when_it_starts() {
    let failing = Arc::new(AtomicBool::new(true));
    let volume = volume(512);
    let path: Arc<dyn Volume> = Arc::new(FaultyVolume::new(volume.clone(), {
        let failing = failing.clone();
        move |_| if failing.load(SeqCst) { Verdict::Fail(libc::EIO) } else { Verdict::Pass }
    }));
    let hold = EngineConfig { on_error: OnError::Hold, ..config() };
    let mut first = disk(&path, 512, &hold);
    let mut driver = Driver::new(default_features());
    driver.start(&mut first, 0);
    for n in 0..3u16 {
        let gpa = DATA + u64::from(n) * 4096;
        driver.memory.write(gpa, &[n as u8 + 1; 4096]).unwrap();
        driver.post(n * 3, OUT, u64::from(n) * 8, &[Data { gpa, len: 4096 }]);
    }
    driver.kick();
    let stats = first.stats();
    while stats[0].counts().held < 3 {
        std::thread::yield_now();
    }
    assert_eq!(first.stop(0), 3, "all were taken");
    assert!(driver.used().is_none(), "none was acknowledged");
    drop(first);

    failing.store(false, SeqCst);
    // Another process would map the region anew and know nothing else.
    let mut second = disk(&path, 512, &hold);
    driver.start(&mut second, 0);
    let mut heads: Vec<u16> = (0..3).map(|_| driver.wait().0).collect();
    heads.sort_unstable();
    assert_eq!(heads, [0, 3, 6]);
    assert_eq!(second.stats()[0].counts().replayed, 3);
    for n in 0..3u64 {
        let plain = vec![n as u8 + 1; 4096];
        assert!(on_volume(&volume, n * 8, 4096) == sealed(&plain, n * 8, 512));
    }
    // And the ring goes on where it was.
    assert_eq!(driver.write(100, &[7; 512]), 0);
    assert_eq!(second.stop(0), 4);
}

#[test]
fn without_a_region_held_io_ends_with_an_error_at_the_stop() {
    let path: Arc<dyn Volume> =
        Arc::new(FaultyVolume::new(volume(512), |_| Verdict::Fail(libc::EIO)));
    let mut disk = disk(&path, 512, &EngineConfig { on_error: OnError::Hold, ..config() });
    let mut driver = Driver::new(default_features());
    driver.inflight = None;
    driver.start(&mut disk, 0);
    driver.post(0, OUT, 0, &[Data { gpa: DATA, len: 4096 }]);
    driver.kick();
    while disk.stats()[0].counts().held < 1 {
        std::thread::yield_now();
    }
    assert_eq!(disk.stop(0), 1);
    assert_eq!(driver.used(), Some((0, 1)));
    assert_eq!(driver.status(0), 1);
}

#[test]
fn a_bad_request_costs_itself_only() {
    let volume = volume(512);
    let mut disk = disk(&volume, 4096, &config());
    let mut driver = Driver::new(default_features());
    driver.start(&mut disk, 0);
    let good = Data { gpa: DATA, len: 4096 };
    let far = Data { gpa: 1 << 40, len: 4096 };
    let odd = Data { gpa: DATA, len: 4095 };
    let half = Data { gpa: DATA, len: 512 };
    for (what, kind, sector, data) in [
        ("past the end", OUT, CAPACITY - 7, good),
        ("far past the end", IN, u64::MAX, good),
        ("a buffer outside memory", OUT, 0, far),
        ("a length that is no sector", OUT, 0, odd),
        ("half a block", OUT, 0, half),
        ("between two blocks", IN, 1, good),
    ] {
        assert_eq!(driver.request(kind, sector, &[data]).0, 1, "{what}");
    }
    assert_eq!(driver.request(77, 0, &[good]).0, 2, "an unknown type");
    let before = on_volume(&volume, 0, 1 << 20);
    assert!(before.iter().all(|byte| *byte == 0), "nothing was written");
    assert_eq!(driver.write(0, &[1; 4096]), 0);
}

#[test]
fn a_broken_ring_stops_that_queue_and_a_reset_mends_it() {
    let volume = volume(512);
    let mut disk = disk(&volume, 512, &config());
    let mut driver = Driver::new(default_features());
    driver.inflight = None;
    driver.start(&mut disk, 0);
    assert_eq!(driver.write(0, &[1; 512]), 0);
    driver.make_available(QUEUE_SIZE);
    driver.kick();
    let stats = disk.stats();
    while stats[0].counts().broken == 0 {
        std::thread::yield_now();
    }
    disk.stop(0);
    let mut fresh = Driver::new(default_features());
    fresh.start(&mut disk, 0);
    assert!(fresh.read(0, 512) == (0, vec![1; 512]));
    assert_eq!(stats[0].counts().broken, 0);
}

#[test]
fn a_queue_stops_while_the_guest_keeps_kicking() {
    let volume = volume(512);
    let mut disk = disk(&volume, 512, &config());
    for level in 0..200 {
        let mut driver = Driver::new(default_features());
        let kicks = driver.setup(0).kick;
        driver.start(&mut disk, 0);
        let done = Arc::new(AtomicBool::new(false));
        let kicker = std::thread::spawn({
            let done = done.clone();
            move || {
                while !done.load(SeqCst) {
                    rustix::io::write(&kicks, &1u64.to_ne_bytes()).unwrap();
                }
            }
        });
        driver.post(0, OUT, level, &[Data { gpa: DATA, len: 4096 }]);
        assert!(disk.stop(0) <= 1);
        done.store(true, SeqCst);
        kicker.join().unwrap();
    }
}

#[test]
fn a_flush_that_failed_is_never_repeated() {
    for errno in [libc::EIO, libc::EINTR, libc::EAGAIN] {
        let flushes = Arc::new(AtomicU32::new(0));
        let path: Arc<dyn Volume> = Arc::new(FaultyVolume::new(volume(512), {
            let flushes = flushes.clone();
            move |op| match op {
                LaneOp::Flush if flushes.fetch_add(1, SeqCst) == 0 => Verdict::Fail(errno),
                _ => Verdict::Pass,
            }
        }));
        let mut disk = disk(&path, 512, &config());
        let mut driver = Driver::new(default_features());
        driver.start(&mut disk, 0);
        assert_eq!(driver.request(FLUSH, 0, &[]).0, 1);
        assert_eq!(flushes.load(SeqCst), 1);
        assert_eq!(driver.request(FLUSH, 0, &[]).0, 0, "the next one is the guest's choice");
    }
}

#[test]
fn a_guest_that_only_talks_nonsense_cannot_keep_the_queue_from_stopping() {
    let volume = volume(512);
    let mut disk = disk(&volume, 512, &config());
    let mut driver = Driver::new(default_features());
    driver.start(&mut disk, 0);
    let stats = disk.stats();
    let (stop, stopped) = std::sync::mpsc::channel();
    let stopper = std::thread::spawn(move || {
        while stats[0].counts().refused < 10_000 {
            std::thread::yield_now();
        }
        disk.stop(0);
        stop.send(()).unwrap();
    });
    // A request without a header, offered again and again without waiting for an answer.
    driver.descriptor(0, DATA, 1, 2);
    let (mut offered, mut answered) = (0u64, 0);
    while stopped.try_recv().is_err() {
        // Never more than the ring holds: that would break it, and end the game.
        if offered - answered < u64::from(QUEUE_SIZE) {
            driver.make_available(0);
            driver.kick();
            offered += 1;
        }
        while driver.used().is_some() {
            answered += 1;
        }
    }
    stopper.join().unwrap();
}
