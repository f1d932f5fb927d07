//! Requests so large that they are moved in slices.
#![expect(clippy::unwrap_used, reason = "tests")]

mod driver;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use driver::*;
use sealblk_engine::{EngineConfig, OnError};
use sealblk_virtqueue::QueueHost;
use sealblk_volume::{FaultyVolume, LaneOp, Shape, Verdict, Volume};

const LARGE: usize = 1 << 20;

/// Posts a large request; its data lies where no other's does.
fn post_large(driver: &mut Driver, n: u16, kind: u32) {
    let gpa = DATA + u64::from(n) * LARGE as u64;
    if kind == OUT {
        driver.memory.write(gpa, &pattern(LARGE, n.into())).unwrap();
    }
    let sector = u64::from(n) * LARGE as u64 / 512;
    driver.post(n * 3, kind, sector, &[Data { gpa, len: LARGE as u32 }]);
}

#[test]
fn small_requests_pass_large_ones() {
    for kind in [OUT, IN] {
        let volume = volume(512);
        let mut disk = disk(&volume, 4096, &config());
        let mut driver = Driver::new(default_features());
        for n in 0..8 {
            post_large(&mut driver, n, kind);
        }
        let gpa = DATA + 8 * LARGE as u64;
        driver.post(24, IN, CAPACITY - 8, &[Data { gpa, len: 4096 }]);
        // All of them are there before the queue starts, so it takes them in one turn.
        driver.start(&mut disk, 0);
        let back: Vec<u16> = (0..9).map(|_| driver.wait().0).collect();
        assert_eq!(back[0], 24, "the small one waited behind the large ones: {back:?}");
        assert!((0..9).all(|n| driver.status(n * 3) == 0));
        assert_eq!(back[1..], [0, 3, 6, 9, 12, 15, 18, 21], "large ones keep their order");
    }
}

#[test]
fn a_large_request_goes_out_in_pieces_that_suit_its_volume() {
    for (shape, pieces) in [(Shape::LOCAL, 4), (Shape::NETWORK, 1)] {
        let longest = Arc::new(AtomicU32::new(0));
        let judge = {
            let longest = longest.clone();
            move |op: &LaneOp| {
                if let LaneOp::Read { buffer, .. } | LaneOp::Write { buffer, .. } = op {
                    longest.fetch_max(buffer.len_bytes(), SeqCst);
                }
                Verdict::Pass
            }
        };
        let path: Arc<dyn Volume> = Arc::new(FaultyVolume::new(volume(512), judge).shaped(shape));
        let mut disk = disk(&path, 512, &config());
        let mut driver = Driver::new(default_features());
        driver.start(&mut disk, 0);
        assert_eq!(driver.write(0, &pattern(LARGE, 1)), 0);
        assert!(driver.read(0, LARGE) == (0, pattern(LARGE, 1)));
        assert_eq!(longest.load(SeqCst), LARGE as u32 / pieces);
    }
}

#[test]
fn a_large_request_that_fails_in_the_middle_ends_alone() {
    let reads = Arc::new(AtomicU32::new(0));
    let path: Arc<dyn Volume> = Arc::new(FaultyVolume::new(volume(512), {
        let reads = reads.clone();
        move |op| match op {
            LaneOp::Read { .. } if reads.fetch_add(1, SeqCst) == 1 => Verdict::Fail(libc::EIO),
            _ => Verdict::Pass,
        }
    }));
    let mut disk = disk(&path, 512, &config());
    let mut driver = Driver::new(default_features());
    driver.start(&mut disk, 0);
    assert_eq!(driver.write(0, &pattern(3 * LARGE, 1)), 0);
    for n in 0..3 {
        post_large(&mut driver, n, IN);
    }
    driver.kick();
    let mut back: Vec<u16> = (0..3).map(|_| driver.wait().0).collect();
    back.sort_unstable();
    assert_eq!(back, [0, 3, 6]);
    let statuses = [0, 3, 6].map(|head| driver.status(head));
    assert_eq!(statuses.iter().filter(|status| **status == 1).count(), 1, "{statuses:?}");
    assert!(driver.read(0, 3 * LARGE) == (0, pattern(3 * LARGE, 1)));
}

#[test]
fn large_requests_that_are_held_at_a_stop_are_replayed() {
    let failing = Arc::new(AtomicBool::new(true));
    let inner = volume(512);
    let path: Arc<dyn Volume> = Arc::new(FaultyVolume::new(inner.clone(), {
        let failing = failing.clone();
        move |_| if failing.load(SeqCst) { Verdict::Fail(libc::EIO) } else { Verdict::Pass }
    }));
    // Room for one of them, so that the rest waits for it.
    let hold = EngineConfig { on_error: OnError::Hold, bounce_bytes: LARGE, ..config() };
    let mut first = disk(&path, 4096, &hold);
    let mut driver = Driver::new(default_features());
    for n in 0..4 {
        post_large(&mut driver, n, OUT);
    }
    driver.start(&mut first, 0);
    while first.stats()[0].counts().held == 0 {
        std::thread::yield_now();
    }
    let base = first.stop(0);
    drop(first);
    assert!(driver.used().is_none(), "a request ended although the storage is away");
    failing.store(false, SeqCst);
    let mut second = disk(&path, 4096, &hold);
    driver.start(&mut second, base);
    let mut back: Vec<u16> = (0..4).map(|_| driver.wait().0).collect();
    back.sort_unstable();
    assert_eq!(back, [0, 3, 6, 9]);
    assert_eq!(second.stats()[0].counts().replayed, 4);
    for n in 0..4u16 {
        let sector = u64::from(n) * LARGE as u64 / 512;
        let plain = pattern(LARGE, n.into());
        assert!(on_volume(&inner, sector, LARGE) == sealed(&plain, sector, 4096), "request {n}");
    }
}
