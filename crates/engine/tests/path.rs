//! A disk whose storage path is lost: slowly, at once, for a while, and for good.
#![expect(clippy::unwrap_used, reason = "tests")]

mod driver;

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use driver::*;
use sealblk_engine::{EngineConfig, OnError, PathState, PathView, StoragePath};
use sealblk_volume::{FENCED, FaultyVolume, LaneOp, Verdict, Volume};

/// Fails every I/O with an errno, unless it is 0.
fn failing(errno: &Arc<AtomicI32>, tried: &Arc<AtomicU64>) -> Arc<dyn Volume> {
    let (errno, tried) = (errno.clone(), tried.clone());
    Arc::new(FaultyVolume::new(volume(512), move |_| {
        tried.fetch_add(1, SeqCst);
        match errno.load(SeqCst) {
            0 => Verdict::Pass,
            errno => Verdict::Fail(errno),
        }
    }))
}

fn wait_for(path: &StoragePath, state: PathState) -> PathView {
    loop {
        let view = path.view();
        if view.state == state {
            return view;
        }
        std::thread::yield_now();
    }
}

fn hold(limit: Option<Duration>) -> EngineConfig {
    EngineConfig { on_error: OnError::Hold, hold_limit: limit, ..config() }
}

#[test]
fn what_is_held_ends_at_the_limit_and_holding_starts_afresh_when_the_volume_answers() {
    let (errno, tried) = (Arc::new(AtomicI32::new(0)), Arc::new(AtomicU64::new(0)));
    let volume = failing(&errno, &tried);
    let mut disk = disk(&volume, 512, &hold(Some(Duration::from_millis(30))));
    let (path, stats) = (disk.path(), disk.stats());
    let mut driver = Driver::new(default_features());
    driver.start(&mut disk, 0);
    for loss in 1..=2 {
        errno.store(0, SeqCst);
        assert_eq!(driver.write(0, &[1; 4096]), 0);
        assert_eq!(path.view().state, PathState::Ok);
        let held = stats[0].counts().held;
        errno.store(libc::EIO, SeqCst);
        assert_eq!(driver.write(0, &[2; 4096]), 1);
        let view = path.view();
        assert_eq!((view.state, view.losses), (PathState::Reporting, loss));
        let kept = stats[0].counts().held - held;
        assert!(kept >= 1, "it was held first");
        assert_eq!(stats[0].counts().waiting, 0);
        // From here on nothing waits: one try each.
        let before = tried.load(SeqCst);
        for _ in 0..3 {
            assert_eq!(driver.write(0, &[3; 4096]), 1);
        }
        assert_eq!(tried.load(SeqCst), before + 3);
        assert_eq!(stats[0].counts().held, held + kept);
    }
    assert!(path.view().since.is_some());
}

#[test]
fn held_requests_are_seen_to_wait_until_the_volume_answers() {
    let (errno, tried) = (Arc::new(AtomicI32::new(libc::EIO)), Arc::new(AtomicU64::new(0)));
    let volume = failing(&errno, &tried);
    let mut disk = disk(&volume, 512, &hold(None));
    let (path, stats) = (disk.path(), disk.stats());
    let mut driver = Driver::new(default_features());
    driver.start(&mut disk, 0);
    for n in 0..3u16 {
        driver.post(n * 3, OUT, u64::from(n) * 8, &[Data { gpa: DATA, len: 4096 }]);
    }
    driver.kick();
    wait_for(&path, PathState::Holding);
    while stats[0].counts().waiting < 3 {
        std::thread::yield_now();
    }
    errno.store(0, SeqCst);
    for _ in 0..3 {
        driver.wait();
    }
    let view = wait_for(&path, PathState::Ok);
    assert_eq!((view.losses, view.since), (1, None));
    assert!(view.lost > Duration::ZERO);
    assert_eq!(stats[0].counts().waiting, 0);
}

#[test]
fn a_flush_that_fails_is_reported_at_once_and_begins_a_loss() {
    for on_error in [OnError::Report, OnError::Hold] {
        let (errno, tried) = (Arc::new(AtomicI32::new(libc::EIO)), Arc::new(AtomicU64::new(0)));
        let volume = failing(&errno, &tried);
        let mut disk = disk(&volume, 512, &EngineConfig { on_error, ..config() });
        let path = disk.path();
        let mut driver = Driver::new(default_features());
        driver.start(&mut disk, 0);
        assert_eq!(driver.request(FLUSH, 0, &[]).0, 1);
        assert_eq!(tried.load(SeqCst), 1);
        assert_ne!(path.view().state, PathState::Ok);
        errno.store(0, SeqCst);
        assert_eq!(driver.request(FLUSH, 0, &[]).0, 0);
        assert_eq!(path.view().state, PathState::Ok);
    }
}

#[test]
fn errors_that_no_path_can_mend_are_no_loss() {
    let (errno, tried) = (Arc::new(AtomicI32::new(libc::EOPNOTSUPP)), Arc::new(AtomicU64::new(0)));
    let volume = failing(&errno, &tried);
    let mut disk = disk(&volume, 512, &hold(None));
    let mut driver = Driver::new(default_features());
    driver.start(&mut disk, 0);
    assert_eq!(driver.write(0, &[1; 512]), 1);
    assert_eq!(disk.path().view(), PathView::default());
}

#[test]
fn a_volume_that_does_not_answer_is_noticed_and_its_io_left_alone() {
    for on_error in [OnError::Report, OnError::Hold] {
        let inner = volume(512);
        let silent = FaultyVolume::new(inner.clone(), |op| match op {
            LaneOp::Write { .. } => Verdict::Keep,
            _ => Verdict::Pass,
        });
        let kept = silent.kept().unwrap();
        let silent: Arc<dyn Volume> = Arc::new(silent);
        let silence = Duration::from_millis(5);
        let mut disk = disk(&silent, 512, &EngineConfig { on_error, silence, ..config() });
        let (path, stats) = (disk.path(), disk.stats());
        let mut driver = Driver::new(default_features());
        driver.start(&mut disk, 0);
        let plain = pattern(4096, 1);
        driver.memory.write(DATA, &plain).unwrap();
        driver.post(0, OUT, 8, &[Data { gpa: DATA, len: 4096 }]);
        driver.kick();
        let view = wait_for(&path, PathState::Silent);
        assert_eq!(view.losses, 1);
        while stats[0].counts().waiting != 1 {
            std::thread::yield_now();
        }
        assert!(driver.used().is_none());
        kept.release();
        assert_eq!(driver.wait().0, 0);
        assert_eq!(driver.status(0), 0);
        let view = wait_for(&path, PathState::Ok);
        assert_eq!(view.losses, 1);
        assert!(view.lost > Duration::ZERO);
        assert_eq!(stats[0].counts().waiting, 0);
        assert!(on_volume(&inner, 8, plain.len()) == sealed(&plain, 8, 512));
    }
}

#[test]
fn a_volume_that_another_client_took_is_never_written_again() {
    for on_error in [OnError::Report, OnError::Hold] {
        let (errno, tried) = (Arc::new(AtomicI32::new(FENCED)), Arc::new(AtomicU64::new(0)));
        let volume = failing(&errno, &tried);
        let mut disk = disk(&volume, 512, &EngineConfig { on_error, ..config() });
        let (path, stats) = (disk.path(), disk.stats());
        let mut driver = Driver::new(default_features() | sealblk_virtqueue::blk::F_DISCARD);
        driver.start(&mut disk, 0);
        assert_eq!(driver.write(0, &[1; 512]), 1);
        assert_eq!(tried.load(SeqCst), 1);
        assert_eq!(path.view().state, PathState::Fenced);
        // Even if it would answer now: it is somebody else's.
        errno.store(0, SeqCst);
        assert_eq!(driver.write(0, &[1; 512]), 1);
        assert_eq!(driver.read(0, 512).0, 1);
        assert_eq!(driver.request(FLUSH, 0, &[]).0, 1);
        let range: Vec<u8> = [&0u64.to_le_bytes()[..], &8u32.to_le_bytes(), &[0; 4]].concat();
        driver.memory.write(DATA, &range).unwrap();
        let piece = Data { gpa: DATA, len: 16 };
        assert_eq!(driver.request(DISCARD, 0, &[piece]).0, 1);
        assert_eq!(tried.load(SeqCst), 1, "nothing went there");
        assert_eq!(stats[0].counts().held, 0);
        let view = path.view();
        assert_eq!((view.state, view.losses), (PathState::Fenced, 1));
    }
}

#[test]
fn what_is_held_ends_at_once_when_another_client_takes_the_volume() {
    let (errno, tried) = (Arc::new(AtomicI32::new(libc::EIO)), Arc::new(AtomicU64::new(0)));
    let volume = failing(&errno, &tried);
    let mut disk = disk(&volume, 512, &hold(None));
    let path = disk.path();
    let mut driver = Driver::new(default_features());
    driver.start(&mut disk, 0);
    driver.post(0, OUT, 0, &[Data { gpa: DATA, len: 4096 }]);
    driver.kick();
    wait_for(&path, PathState::Holding);
    errno.store(FENCED, SeqCst);
    assert_eq!(driver.wait().0, 0);
    assert_eq!(driver.status(0), 1);
    assert_eq!(path.view().state, PathState::Fenced);
}
