//! What a guest sees of a zone that a rotation has in work.
#![expect(clippy::unwrap_used, reason = "tests")]

mod driver;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use driver::*;
use sealblk_block::Extent;
use sealblk_cipher::{Algorithm, Implementation, SegmentSpec, encrypt_in_place, sector_cipher};
use sealblk_engine::{Disk, EngineConfig, OnError};
use sealblk_secret::SecretBytes;
use sealblk_virtqueue::QueueHost;
use sealblk_volume::{AlignedBuf, FaultyVolume, LaneOp, Verdict, Volume};

const ZONE: Extent = Extent::new(1024, 2048);
const NEW_KEY: [u8; 64] = *b"the new key's first half, 32 by.the new key's other half, 32 by.";

/// Everything below `boundary` under the new key.
fn segments(boundary: u64) -> Vec<SegmentSpec> {
    let new = Arc::new(SecretBytes::copy_from(&NEW_KEY).unwrap());
    let old = segment(512, true);
    let mut specs = Vec::new();
    if boundary > 0 {
        let crypt = Some((Algorithm::Aes256XtsPlain64, new));
        specs.push(SegmentSpec { sectors: boundary, crypt, ..old.clone() });
    }
    if boundary < CAPACITY {
        specs.push(SegmentSpec {
            start: boundary,
            sectors: CAPACITY - boundary,
            volume_start: HEADER_SECTORS + boundary,
            iv_start: boundary,
            ..old
        });
    }
    specs
}

fn sealed_new(plain: &[u8], sector: u64) -> Vec<u8> {
    let key = SecretBytes::copy_from(&NEW_KEY).unwrap();
    let mut cipher =
        sector_cipher(Algorithm::Aes256XtsPlain64, &key, 512, Implementation::Portable).unwrap();
    let mut bytes = plain.to_vec();
    encrypt_in_place(cipher.as_mut(), sector, &mut bytes);
    bytes
}

fn ciphertext(volume: &Arc<dyn Volume>, zone: Extent) -> Arc<AlignedBuf> {
    let bytes = on_volume(volume, zone.start, (zone.sectors * 512) as usize);
    let mut memory = AlignedBuf::new(bytes.len()).unwrap();
    memory.as_mut_slice().copy_from_slice(&bytes);
    Arc::new(memory)
}

/// A served disk whose first sectors have been written.
fn served(on_error: OnError) -> (Arc<dyn Volume>, Disk, Driver) {
    let volume = volume(512);
    let (disk, driver) = serve(&volume, on_error);
    (volume, disk, driver)
}

fn serve(volume: &Arc<dyn Volume>, on_error: OnError) -> (Disk, Driver) {
    let mut disk = disk(volume, 512, &EngineConfig { on_error, ..config() });
    let mut driver = Driver::new(default_features());
    driver.start(&mut disk, 0);
    assert_eq!(driver.write(0, &pattern(4 << 20, 1)), 0);
    (disk, driver)
}

/// Posts a write of `len` bytes without waiting for it.
fn post_write(driver: &mut Driver, head: u16, sector: u64, plain: &[u8]) {
    let gpa = DATA + (u64::from(head) << 20);
    driver.memory.write(gpa, plain).unwrap();
    driver.post(head, OUT, sector, &[Data { gpa, len: plain.len() as u32 }]);
    driver.kick();
}

#[test]
fn a_whole_zone_goes_from_the_old_key_to_the_new_under_a_guest() {
    let (volume, disk, mut driver) = served(OnError::Report);
    let mut switch = disk.switchboard().key_switch();
    switch.publish(&segments(ZONE.start)).unwrap();
    // What lies below the boundary is written anew under the new key.
    let below = pattern(1024 * 512, 2);
    assert_eq!(driver.write(0, &below), 0);
    assert!(on_volume(&volume, 0, below.len()) == sealed_new(&below, 0));

    switch.watch(ZONE).unwrap();
    assert!(!switch.hold_writes(ZONE).unwrap(), "nobody wrote to it");
    let old = ciphertext(&volume, ZONE);
    let plain = pattern(4 << 20, 1);
    let in_zone = |start: u64, len: usize| &plain[(start * 512) as usize..][..len];

    let write = pattern(8192, 3);
    post_write(&mut driver, 6, ZONE.start + 8, &write);
    assert!(driver.read(ZONE.start, 4096) == (0, in_zone(ZONE.start, 4096).to_vec()));
    switch.serve_from(&old).unwrap();
    // The volume's own content is no longer looked at.
    let new = sealed_new(in_zone(ZONE.start, 1 << 20), ZONE.start);
    volume.write_at((HEADER_SECTORS + ZONE.start) * 512, &new).unwrap();
    for (start, len) in [(ZONE.start, 4096), (ZONE.start - 8, 12 << 10), (3064, 8192)] {
        let (status, read) = driver.read(start, len);
        let mut expected = in_zone(start, len).to_vec();
        if start < ZONE.start {
            expected[..4096].copy_from_slice(&below[below.len() - 4096..]);
        }
        assert!(status == 0 && read == expected, "{len} bytes at {start}");
    }
    // A large read goes through the line, across both edges.
    let (status, read) = driver.read(1000, 1 << 20);
    assert_eq!(status, 0);
    assert!(read[24 * 512..] == in_zone(1024, (1 << 20) - 24 * 512)[..]);
    assert_eq!(driver.status(6), UNTOUCHED, "parked");
    assert_eq!(disk.stats()[0].parked_now.get(), 1);

    switch.publish(&segments(ZONE.start + ZONE.sectors)).unwrap();
    assert_eq!((driver.wait().0, driver.status(6)), (6, 0));
    let sealed = sealed_new(&write, ZONE.start + 8);
    assert!(on_volume(&volume, ZONE.start + 8, 8192) == sealed, "written under the new key");
    assert!(driver.read(ZONE.start + 8, 8192) == (0, write));
    let rest = ZONE.start + 24;
    assert!(driver.read(rest, 4096) == (0, in_zone(rest, 4096).to_vec()));
    assert_eq!(Arc::strong_count(&old), 1, "no queue keeps the zone's memory");
    assert_eq!(disk.stats()[0].parked.get(), 1);
    assert_eq!(disk.stats()[0].parked_now.get(), 0);
}

#[test]
fn a_zone_that_was_read_ahead_is_known_to_be_stale_when_a_guest_wrote_to_it() {
    let (_volume, disk, mut driver) = served(OnError::Report);
    let mut switch = disk.switchboard().key_switch();
    switch.watch(ZONE).unwrap();
    assert_eq!(driver.write(ZONE.start + ZONE.sectors - 8, &[7; 8192]), 0);
    assert!(switch.hold_writes(ZONE).unwrap());
    switch.publish(&segments(0)).unwrap();
    let next = Extent::new(ZONE.start + ZONE.sectors, ZONE.sectors);
    switch.watch(next).unwrap();
    assert_eq!(driver.write(0, &[7; 8192]), 0);
    assert!(!switch.hold_writes(next).unwrap(), "that write was elsewhere");
    assert!(switch.hold_writes(ZONE).unwrap(), "nobody watched this one");
}

#[test]
fn holding_waits_for_a_write_that_is_in_work() {
    let broken = Arc::new(AtomicBool::new(false));
    let judge = {
        let broken = broken.clone();
        move |op: &LaneOp| match op {
            LaneOp::Write { .. } if broken.load(SeqCst) => Verdict::Fail(libc::EIO),
            _ => Verdict::Pass,
        }
    };
    let volume: Arc<dyn Volume> = Arc::new(FaultyVolume::new(volume(512), judge));
    let (disk, mut driver) = serve(&volume, OnError::Hold);
    broken.store(true, SeqCst);
    let write = pattern(4096, 9);
    post_write(&mut driver, 6, ZONE.start, &write);
    while disk.stats()[0].held.get() == 0 {
        thread::yield_now();
    }
    let mut switch = disk.switchboard().key_switch();
    let holder = thread::spawn(move || {
        let dirty = switch.hold_writes(ZONE).unwrap();
        (switch, dirty)
    });
    assert!(driver.read(ZONE.start + 64, 4096).0 == 0);
    assert!(!holder.is_finished(), "the older write has not reached the volume");
    broken.store(false, SeqCst);
    assert_eq!((driver.wait().0, driver.status(6)), (6, 0));
    let (_switch, dirty) = holder.join().unwrap();
    assert!(dirty && on_volume(&volume, ZONE.start, 4096) == sealed(&write, ZONE.start, 512));
}

#[test]
fn a_stuck_rotation_fails_writes_to_its_zone_or_keeps_them() {
    for on_error in [OnError::Report, OnError::Hold] {
        let (_volume, disk, mut driver) = served(on_error);
        let mut switch = disk.switchboard().key_switch();
        switch.hold_writes(ZONE).unwrap();
        post_write(&mut driver, 6, ZONE.start, &[1; 4096]);
        assert_eq!(driver.read(0, 512).0, 0);
        switch.stuck();
        if on_error == OnError::Report {
            assert_eq!((driver.wait().0, driver.status(6)), (6, 1));
            assert_eq!(driver.write(ZONE.start + 8, &[1; 4096]), 1);
        }
        assert_eq!(driver.read(0, 512).0, 0);
        assert_eq!(driver.write(0, &[1; 4096]), 0, "elsewhere all is well");
        switch.publish(&segments(0)).unwrap();
        if on_error == OnError::Hold {
            assert_eq!((driver.wait().0, driver.status(6)), (6, 0));
        }
        assert_eq!(driver.write(ZONE.start + 8, &[1; 4096]), 0);
    }
}

#[test]
fn a_queue_that_stops_waits_for_what_is_parked() {
    let (volume, mut disk, mut driver) = served(OnError::Report);
    let mut switch = disk.switchboard().key_switch();
    switch.hold_writes(ZONE).unwrap();
    let write = pattern(4096, 5);
    post_write(&mut driver, 6, ZONE.start, &write);
    while disk.stats()[0].parked.get() == 0 {
        thread::yield_now();
    }
    let release = thread::spawn(move || switch.publish(&segments(ZONE.start + 8)).unwrap());
    disk.stop(0);
    release.join().unwrap();
    assert_eq!((driver.wait().0, driver.status(6)), (6, 0));
    assert!(on_volume(&volume, ZONE.start, 4096) == sealed_new(&write, ZONE.start));
}

#[test]
fn a_queue_that_stops_leaves_what_a_stuck_rotation_parks_to_its_successor() {
    for tracked in [true, false] {
        let volume = volume(512);
        let hold = EngineConfig { on_error: OnError::Hold, ..config() };
        let mut disk = disk(&volume, 512, &hold);
        let mut driver = Driver::new(default_features());
        if !tracked {
            driver.inflight = None;
        }
        driver.start(&mut disk, 0);
        let mut switch = disk.switchboard().key_switch();
        switch.hold_writes(ZONE).unwrap();
        post_write(&mut driver, 6, ZONE.start, &[3; 4096]);
        while disk.stats()[0].parked.get() == 0 {
            thread::yield_now();
        }
        switch.stuck();
        let base = disk.stop(0);
        if !tracked {
            assert_eq!((driver.wait().0, driver.status(6)), (6, 1), "nobody could replay it");
            assert_eq!(disk.stats()[0].parked_now.get(), 0);
            continue;
        }
        assert_eq!(driver.status(6), UNTOUCHED);
        switch.publish(&segments(ZONE.start + ZONE.sectors)).unwrap();
        driver.start(&mut disk, base);
        assert_eq!((driver.wait().0, driver.status(6)), (6, 0));
        assert!(on_volume(&volume, ZONE.start, 4096) == sealed_new(&[3; 4096], ZONE.start));
    }
}

#[test]
fn a_flush_that_failed_for_the_rotation_fails_for_the_guest_once() {
    let (_volume, disk, mut driver) = served(OnError::Hold);
    let mut switch = disk.switchboard().key_switch();
    assert_eq!(driver.request(FLUSH, 0, &[]).0, 0);
    switch.flush_failed();
    assert_eq!(driver.request(FLUSH, 0, &[]).0, 1);
    assert_eq!(driver.request(FLUSH, 0, &[]).0, 0);
}

#[test]
fn a_switch_that_outlives_its_disk_says_so() {
    let (_volume, disk, driver) = served(OnError::Report);
    let mut switch = disk.switchboard().key_switch();
    drop((disk, driver));
    assert!(switch.hold_writes(ZONE).is_err());
}

#[test]
fn times_are_taken_while_a_rotation_wants_them() {
    let (_volume, disk, mut driver) = served(OnError::Report);
    let mut switch = disk.switchboard().key_switch();
    for _ in 0..40 {
        assert_eq!(driver.read(0, 512).0, 0);
    }
    let load = switch.load();
    assert!(load.requests == 40 && load.timed > 0 && load.timed_ns > 0, "{load:?}");
    drop(switch);
    let timed = disk.stats()[0].timed.get();
    for _ in 0..40 {
        assert_eq!(driver.read(0, 512).0, 0);
    }
    assert_eq!(disk.stats()[0].timed.get(), timed);
}
