//! A disk from the driver's side of the virtqueue to the bytes on the volume.
#![expect(clippy::unwrap_used, reason = "tests")]

mod driver;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use driver::*;
use sealblk_engine::{Disk, EngineConfig};
use sealblk_ring::Level;
use sealblk_virtqueue::QueueHost;
use sealblk_volume::{FaultyVolume, LaneOp, MemoryVolume, Verdict, Volume};

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
fn a_disk_grows_under_its_guest() {
    for sector_bytes in [512, 4096] {
        let storage = Arc::new(MemoryVolume::new((HEADER_SECTORS + CAPACITY) * 512, 512).unwrap());
        let volume: Arc<dyn Volume> = storage.clone();
        let mut disk = disk(&volume, sector_bytes, &config());
        let mut driver = Driver::new(default_features());
        driver.start(&mut disk, 0);
        let (old_end, plain) = (CAPACITY - 8, pattern(8192, 3));
        assert_eq!(driver.write(old_end, &plain), 1, "past the end");
        let more = 1024;
        storage.resize_storage((HEADER_SECTORS + CAPACITY + more) * 512).unwrap();
        assert_eq!(driver.write(old_end, &plain), 1, "still past the end");
        volume.grow_to(volume.measure_size().unwrap());
        disk.grower().grow(CAPACITY + more).unwrap();
        for sector in [old_end, CAPACITY + more - 16] {
            assert_eq!(driver.write(sector, &plain), 0);
            let expected = sealed(&plain, sector, sector_bytes);
            assert!(on_volume(&volume, sector, 8192) == expected, "the same key and tweaks");
            assert!(driver.read(sector, 8192) == (0, plain.clone()));
        }
        assert_eq!(driver.write(CAPACITY + more - 8, &plain), 1, "past the new end");
        let grower = disk.grower();
        drop(disk);
        assert!(grower.grow(CAPACITY + more).is_err(), "nobody is left to be told");
    }
}
