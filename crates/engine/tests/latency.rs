//! Where requests spend their time, as a disk's counters tell it.
#![expect(clippy::unwrap_used, reason = "tests")]

mod driver;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use driver::*;
use sealblk_engine::{HistogramCounts, Kind, OnError, Stage, TIMED_ONE_IN};
use sealblk_virtqueue::QueueHost;
use sealblk_volume::{FaultyVolume, LaneOp, Verdict, Volume};

fn number(counts: &HistogramCounts) -> u64 {
    counts.counts.iter().sum()
}

#[test]
fn every_kind_has_its_own_times_and_no_stage_is_longer_than_the_whole() {
    let volume = volume(512);
    let mut disk = disk(&volume, 512, &config());
    let mut driver = Driver::new(default_features());
    driver.start(&mut disk, 0);
    let data = pattern(4096, 1);
    let rounds = 1600;
    for _ in 0..rounds {
        assert_eq!(driver.write(8, &data), 0);
        assert_eq!(driver.read(8, 4096).0, 0);
        assert_eq!(driver.request(FLUSH, 0, &[]).0, 0);
        assert_eq!(driver.request(GET_ID, 0, &[Data { gpa: DATA, len: 20 }]).0, 0);
    }
    let latency = &disk.stats()[0].latency;
    for kind in Kind::ALL {
        let total = latency.total(kind);
        let stages = Stage::ALL.map(|stage| latency.stage(kind, stage));
        assert!(stages.iter().all(|stage| number(stage) == number(&total)));
        if kind == Kind::Discard {
            assert_eq!(number(&total), 0);
            continue;
        }
        let expected = rounds / u64::from(TIMED_ONE_IN);
        let few = expected / 4..expected * 4;
        assert!(few.contains(&number(&total)), "{kind:?}: {}", number(&total));
        // One I/O per request: its stages follow each other.
        assert_eq!(stages.iter().map(|stage| stage.sum).sum::<u64>(), total.sum);
        assert!(stages[Stage::Volume as usize].sum > 0);
        let sealed = stages[Stage::Cipher as usize].sum;
        assert_eq!(sealed > 0, kind.moves_data(), "{kind:?}");
        let bytes = if kind.moves_data() { 4096 } else { 0 };
        assert_eq!(latency.bytes(kind).sum, number(&total) * bytes);
    }
}

#[test]
fn time_that_a_request_is_held_is_spent_in_the_queue() {
    let failures = Arc::new(AtomicU32::new(1));
    let fails = failures.clone();
    let volume: Arc<dyn Volume> = Arc::new(FaultyVolume::new(volume(512), move |op| match op {
        LaneOp::Read { .. }
            if fails.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() =>
        {
            Verdict::Fail(libc::EIO)
        }
        _ => Verdict::Pass,
    }));
    let engine = sealblk_engine::EngineConfig { on_error: OnError::Hold, ..config() };
    let mut disk = disk(&volume, 512, &engine);
    let mut driver = Driver::new(default_features());
    driver.start(&mut disk, 0);
    // A queue watches its first request.
    assert_eq!(driver.read(0, 512).0, 0);
    disk.stop(0);
    let latency = &disk.stats()[0].latency;
    assert_eq!(number(&latency.total(Kind::Read)), 1);
    // The first attempt follows after 100 ms.
    let (queue, total) =
        (latency.stage(Kind::Read, Stage::Queue).sum, latency.total(Kind::Read).sum);
    assert!(queue >= 90_000_000 && queue < total, "{queue} of {total} ns");
}
