//! A disk from the driver's side of the virtqueue to the bytes on the volume.
#![expect(clippy::unwrap_used, reason = "tests")]

mod driver;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use driver::*;
use sealblk_cipher::{Algorithm, Implementation, SegmentSpec, encrypt_in_place, sector_cipher};
use sealblk_engine::{Disk, EngineConfig, OnError};
use sealblk_ring::Level;
use sealblk_secret::SecretBytes;
use sealblk_virtqueue::QueueHost;
use sealblk_virtqueue::blk::{DiskProfile, RangeLimits};
use sealblk_volume::{FaultyVolume, LaneOp, MemoryVolume, Verdict, Volume};

const CAPACITY: u64 = 64 << 10;
const HEADER_SECTORS: u64 = 2048;
const KEY: [u8; 64] = *b"0123456789abcdefFEDCBA9876543210the other half of the key 64 byt";

fn volume(block_bytes: u32) -> Arc<dyn Volume> {
    Arc::new(MemoryVolume::new((HEADER_SECTORS + CAPACITY) * 512, block_bytes).unwrap())
}

fn segment(sector_bytes: u32, encrypted: bool) -> SegmentSpec {
    let key = || Arc::new(SecretBytes::copy_from(&KEY).unwrap());
    SegmentSpec {
        start: 0,
        sectors: CAPACITY,
        volume_start: HEADER_SECTORS,
        iv_start: 0,
        sector_bytes,
        crypt: encrypted.then(|| (Algorithm::Aes256XtsPlain64, key())),
    }
}

fn profile(block_bytes: u32) -> DiskProfile {
    let limits = Some(RangeLimits { sectors_max: 1 << 16, ranges_max: 8 });
    DiskProfile {
        capacity_sectors: CAPACITY,
        block_bytes,
        physical_block_bytes: 4096,
        queues: 1,
        seg_max: 62,
        size_max_bytes: 16 << 20,
        read_only: false,
        discard: limits,
        discard_alignment_sectors: 8,
        write_zeroes: limits,
        write_zeroes_may_unmap: false,
        serial: *b"a-serial-of-20-bytes",
    }
}

fn config() -> EngineConfig {
    EngineConfig { queue_size_max: QUEUE_SIZE, ..EngineConfig::default() }
}

fn disk(volume: &Arc<dyn Volume>, sector_bytes: u32, config: &EngineConfig) -> Disk {
    Disk::new(volume, &[segment(sector_bytes, true)], &profile(sector_bytes), config).unwrap()
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|n| (n.wrapping_mul(0x9e37_79b9).wrapping_add(seed) >> 7) as u8).collect()
}

/// What must lie on the volume for `plain` at `sector`, by another implementation.
fn sealed(plain: &[u8], sector: u64, sector_bytes: u32) -> Vec<u8> {
    let key = SecretBytes::copy_from(&KEY).unwrap();
    let mut cipher =
        sector_cipher(Algorithm::Aes256XtsPlain64, &key, sector_bytes, Implementation::Portable)
            .unwrap();
    let mut bytes = plain.to_vec();
    encrypt_in_place(cipher.as_mut(), sector, &mut bytes);
    bytes
}

fn on_volume(volume: &Arc<dyn Volume>, sector: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    volume.read_at((HEADER_SECTORS + sector) * 512, &mut bytes).unwrap();
    bytes
}

#[test]
fn what_is_written_lies_sealed_on_the_volume_and_reads_back() {
    for sector_bytes in [512, 1024, 4096] {
        for level in [Level::Plain, Level::Cooperative, Level::Deferred] {
            let volume = volume(512);
            let mut disk =
                disk(&volume, sector_bytes, &EngineConfig { ring_level: level, ..config() });
            let mut driver = Driver::new(default_features());
            driver.start(&mut disk, 0);
            for (sector, len) in [(0, 4096), (8, 8192), (CAPACITY - 8, 4096), (1024, 3 << 20)] {
                let plain = pattern(len, sector);
                assert_eq!(driver.write(sector, &plain), 0);
                assert!(
                    on_volume(&volume, sector, len) == sealed(&plain, sector, sector_bytes),
                    "{len} bytes at {sector}, encryption sectors of {sector_bytes}"
                );
                assert!(driver.read(sector, len) == (0, plain));
            }
            assert_eq!(on_volume(&volume, 16384, 512), [0; 512], "nothing else was touched");
        }
    }
}

#[test]
fn buffers_may_cut_sectors_anywhere() {
    let volume = volume(512);
    let mut disk = disk(&volume, 4096, &config());
    let mut driver = Driver::new(default_features());
    driver.start(&mut disk, 0);
    let plain = pattern(16384, 1);
    for cuts in [&[1, 511, 512, 3000, 12360][..], &[16383, 1], &[4095, 4097, 8192]] {
        let (mut at, mut gpa) = (0, DATA + 3);
        let mut pieces = Vec::new();
        for &len in cuts {
            driver.memory.write(gpa, &plain[at..at + len]).unwrap();
            pieces.push(Data { gpa, len: len as u32 });
            at += len;
            gpa += len as u64 + 77;
        }
        assert_eq!(driver.request(OUT, 80, &pieces).0, 0);
        assert!(on_volume(&volume, 80, plain.len()) == sealed(&plain, 80, 4096));
        for piece in &pieces {
            driver.memory.write(piece.gpa, &vec![0; piece.len as usize]).unwrap();
        }
        assert_eq!(driver.request(IN, 80, &pieces), (0, 16384 + 1));
        let mut read = Vec::new();
        for piece in &pieces {
            let mut bytes = vec![0; piece.len as usize];
            driver.memory.read(piece.gpa, &mut bytes).unwrap();
            read.extend(bytes);
        }
        assert!(read == plain);
    }
}

#[test]
fn a_full_queue_of_large_requests_waits_for_room_and_gets_it() {
    let volume = volume(512);
    let small = EngineConfig { bounce_bytes: 256 << 10, ..config() };
    let mut disk = disk(&volume, 512, &small);
    let mut driver = Driver::new(default_features());
    driver.start(&mut disk, 0);
    let len = 640 << 10;
    let heads: Vec<u16> = (0..QUEUE_SIZE / 3).map(|n| n * 3).collect();
    for round in [OUT, IN] {
        for (n, &head) in heads.iter().enumerate() {
            let gpa = DATA + (n * len) as u64;
            let bytes = if round == OUT { pattern(len, n as u64) } else { vec![0; len] };
            driver.memory.write(gpa, &bytes).unwrap();
            let sector = (n * len / 512) as u64;
            driver.post(head, round, sector, &[Data { gpa, len: len as u32 }]);
        }
        driver.kick();
        let mut back: Vec<u16> = heads.iter().map(|_| driver.wait().0).collect();
        back.sort_unstable();
        assert_eq!(back, heads, "each comes back once");
        assert!(heads.iter().all(|&head| driver.status(head) == 0));
    }
    for n in 0..heads.len() {
        let mut bytes = vec![0; len];
        driver.memory.read(DATA + (n * len) as u64, &mut bytes).unwrap();
        assert!(bytes == pattern(len, n as u64), "request {n}");
    }
}

#[test]
fn a_plain_disk_moves_the_same_bytes_direct_or_bounced() {
    let volume = volume(512);
    let mut disk = Disk::new(&volume, &[segment(512, false)], &profile(512), &config()).unwrap();
    let mut driver = Driver::new(default_features());
    driver.start(&mut disk, 0);
    let plain = pattern(64 << 10, 5);
    for skew in [0, 512, 1, 100] {
        let gpa = DATA + skew;
        driver.memory.write(gpa, &plain).unwrap();
        let data = [Data { gpa, len: 32 << 10 }, Data { gpa: gpa + (32 << 10), len: 32 << 10 }];
        assert_eq!(driver.request(OUT, 8 * skew, &data).0, 0);
        assert!(on_volume(&volume, 8 * skew, plain.len()) == plain);
        driver.memory.write(gpa, &vec![0; plain.len()]).unwrap();
        assert_eq!(driver.request(IN, 8 * skew, &data), (0, (64 << 10) + 1));
        let mut read = vec![0; plain.len()];
        driver.memory.read(gpa, &mut read).unwrap();
        assert!(read == plain);
    }
}

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
fn a_stopped_queue_touches_nothing_until_it_is_started_again() {
    let volume = volume(512);
    let mut disk = disk(&volume, 512, &config());
    let mut driver = Driver::new(default_features());
    driver.inflight = None;
    assert_eq!(disk.stop(0), 0, "stopping what never ran is fine");
    driver.start(&mut disk, 0);
    assert_eq!(driver.write(0, &[1; 512]), 0);
    assert_eq!(disk.stop(0), 1);
    assert_eq!(disk.stop(0), 1, "and again");
    driver.post(3, OUT, 8, &[Data { gpa: DATA, len: 512 }]);
    driver.kick();
    assert!(disk.start(1, driver.setup(0)).is_err(), "there is no queue 1");
    assert_eq!(driver.status(3), UNTOUCHED);
    driver.start(&mut disk, 1);
    assert!(disk.start(0, driver.setup(1)).is_err(), "it runs already");
    assert_eq!(driver.wait().0, 3);
}

#[test]
fn write_zeroes_reads_as_zeroes_and_lies_sealed_on_the_volume() {
    let volume = volume(512);
    let mut disk = disk(&volume, 512, &config());
    let mut driver = Driver::new(default_features());
    driver.start(&mut disk, 0);
    assert_eq!(driver.write(0, &vec![0xaa; 1 << 20]), 0);
    let mut range = [0; 16];
    range[..8].copy_from_slice(&8u64.to_le_bytes());
    range[8..12].copy_from_slice(&1024u32.to_le_bytes());
    driver.memory.write(DATA, &range).unwrap();
    assert_eq!(driver.request(WRITE_ZEROES, 0, &[Data { gpa: DATA, len: 16 }]), (0, 1));
    let len = 1024 * 512;
    assert!(driver.read(8, len) == (0, vec![0; len]));
    assert!(on_volume(&volume, 8, len) == sealed(&vec![0; len], 8, 512));
    assert!(driver.read(0, 4096) == (0, vec![0xaa; 4096]));
    assert!(driver.read(1032, 512) == (0, vec![0xaa; 512]));
}

#[test]
fn discard_frees_and_spares_the_neighbours() {
    let volume = volume(512);
    let mut disk = disk(&volume, 512, &config());
    let mut driver = Driver::new(default_features());
    driver.features |= sealblk_virtqueue::blk::F_DISCARD;
    driver.start(&mut disk, 0);
    assert_eq!(driver.write(0, &vec![0xaa; 64 << 10]), 0);
    let mut range = [0; 16];
    range[..8].copy_from_slice(&16u64.to_le_bytes());
    range[8..12].copy_from_slice(&64u32.to_le_bytes());
    driver.memory.write(DATA, &range).unwrap();
    assert_eq!(driver.request(DISCARD, 0, &[Data { gpa: DATA, len: 16 }]), (0, 1));
    assert_eq!(on_volume(&volume, 16, 64 * 512), vec![0; 64 * 512], "freed");
    assert!(driver.read(0, 8192) == (0, vec![0xaa; 8192]));
    assert!(driver.read(80, 4096) == (0, vec![0xaa; 4096]));
}

#[test]
fn the_serial_is_given_whole() {
    let volume = volume(512);
    let mut disk = disk(&volume, 512, &config());
    let mut driver = Driver::new(default_features());
    driver.start(&mut disk, 0);
    assert_eq!(driver.request(GET_ID, 0, &[Data { gpa: DATA, len: 20 }]), (0, 21));
    let mut serial = [0; 20];
    driver.memory.read(DATA, &mut serial).unwrap();
    assert_eq!(&serial, b"a-serial-of-20-bytes");
    assert_eq!(driver.request(GET_ID, 0, &[]).0, 1, "without a buffer");
}

#[test]
fn without_a_write_cache_every_write_is_durable() {
    let (durable, cached) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let watched: Arc<dyn Volume> = Arc::new(FaultyVolume::new(volume(512), {
        let (yes, no) = (durable.clone(), cached.clone());
        move |op| {
            if let LaneOp::Write { durable, .. } = op {
                if *durable { &yes } else { &no }.fetch_add(1, SeqCst);
            }
            Verdict::Pass
        }
    }));
    let mut disk = disk(&watched, 512, &config());
    let mut driver = Driver::new(default_features());
    driver.start(&mut disk, 0);
    let counts = || (durable.load(SeqCst), cached.load(SeqCst));
    assert_eq!(driver.write(0, &[1; 512]), 0);
    assert_eq!(counts(), (0, 1));
    disk.set_writeback(false).unwrap();
    assert_eq!(driver.write(0, &[1; 512]), 0);
    assert_eq!(counts(), (1, 1));
    disk.set_writeback(true).unwrap();
    assert_eq!(driver.write(0, &[1; 512]), 0);
    assert_eq!(counts(), (1, 2));
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
fn polling_or_not_gives_the_same_answers() {
    for poll_max in [Duration::ZERO, Duration::from_millis(5)] {
        let volume = volume(512);
        let mut disk = disk(&volume, 512, &EngineConfig { poll_max, ..config() });
        let mut driver = Driver::new(default_features());
        driver.start(&mut disk, 0);
        for n in 0..200u64 {
            assert_eq!(driver.write(n % 64, &pattern(512, n)), 0);
            assert!(driver.read(n % 64, 512) == (0, pattern(512, n)));
        }
    }
}

#[test]
fn an_idle_queue_does_not_run() {
    let volume = volume(512);
    let mut disk = disk(&volume, 512, &config());
    let mut driver = Driver::new(default_features());
    driver.start(&mut disk, 0);
    assert_eq!(driver.write(0, &[1; 512]), 0);
    let stats = disk.stats();
    // Polling ends by itself; from then on only a kick or a command wakes the thread. A command
    // does, once: what it does besides would show as more.
    let settle = || {
        let mut last = stats[0].counts().sleeps;
        loop {
            disk_nap();
            let now = stats[0].counts().sleeps;
            if now == last {
                return now;
            }
            last = now;
        }
    };
    let before = settle();
    disk_nap();
    assert_eq!(stats[0].counts().sleeps, before, "an idle queue sleeps through");
}

#[expect(clippy::disallowed_methods, reason = "the absence of events can only be waited for")]
fn disk_nap() {
    std::thread::sleep(Duration::from_millis(50));
}

#[test]
fn a_notifier_that_comes_late_is_told_what_it_missed() {
    for features in
        [default_features(), default_features() | sealblk_virtqueue::blk::F_RING_EVENT_IDX]
    {
        let volume = volume(512);
        let mut disk = disk(&volume, 512, &config());
        let mut driver = Driver::new(features);
        // QEMU starts a queue with a notifier that nobody hears, and exchanges it afterwards.
        let mut setup = driver.setup(0);
        setup.call = None;
        disk.start(0, setup).unwrap();
        driver.post(0, OUT, 0, &[Data { gpa: DATA, len: 512 }]);
        driver.kick();
        while disk.stats()[0].counts().writes == 0 {
            std::thread::yield_now();
        }
        disk.set_call(0, driver.setup(0).call);
        driver.wait_call();
        assert_eq!(driver.used(), Some((0, 1)));
    }
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
