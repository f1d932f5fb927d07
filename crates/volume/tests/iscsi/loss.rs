//! Lost connections and killed targets.

use std::time::Duration;

use sealblk_volume::{Buffer, LaneOp, OpenOptions, VolumeEvent};

use crate::proxy::Proxy;
use crate::rig::{Rig, STEP};
use crate::target::{Like, Target};

const DEPTH: u32 = 16;
const BLOCKS: usize = 512;

/// Writes with a queue full of them, and knows what each block may hold.
struct Load {
    rig: Rig,
    free: Vec<u32>,
    /// Block and byte of each write in flight.
    flying: Vec<Option<(usize, u8)>>,
    /// The last byte that each block was acknowledged to hold.
    acknowledged: Vec<u8>,
    next: usize,
    count: usize,
}

impl Load {
    fn new(uri: &str) -> Self {
        let rig = Rig::new(uri, &crate::patient(), DEPTH as usize);
        Self {
            rig,
            free: (0..DEPTH).collect(),
            flying: vec![None; DEPTH as usize],
            acknowledged: vec![0; BLOCKS],
            next: 0,
            count: 0,
        }
    }

    /// Fills the queue.
    fn stuff(&mut self) {
        while let Some(id) = self.free.pop() {
            // Each block at most once at a time: DEPTH is less than BLOCKS.
            let block = self.next % BLOCKS;
            let byte = (self.next / BLOCKS + block) as u8 | 1;
            self.next += 1;
            self.rig.fill(id, byte);
            self.flying[id as usize] = Some((block, byte));
            let op = self.rig.write(id, (block * STEP) as u64);
            self.rig.submit(id, op);
        }
    }

    /// Keeps the queue full until `count` more writes are acknowledged.
    fn run(&mut self, count: usize) {
        let goal = self.count + count;
        while self.count < goal {
            self.stuff();
            self.reap();
        }
    }

    fn reap(&mut self) {
        for done in self.rig.wait() {
            assert_eq!(done.result, Ok(STEP as u32));
            let (block, byte) = self.flying[done.id as usize].take().unwrap();
            self.acknowledged[block] = byte;
            self.free.push(done.id);
            self.count += 1;
        }
    }

    /// Waits for all writes and compares everything.
    fn check(&mut self) {
        while self.free.len() < DEPTH as usize {
            self.reap();
        }
        for block in 0..BLOCKS {
            let op = self.rig.read(0, (block * STEP) as u64);
            assert_eq!(self.rig.run(op), Ok(STEP as u32));
            let read = &self.rig.memory.as_slice()[..STEP];
            let expected = self.acknowledged[block];
            assert!(read.iter().all(|byte| *byte == expected), "block {block}: {}", read[0]);
        }
    }
}

#[test]
fn nothing_is_lost_when_the_target_is_killed_under_load() {
    let mut target = Target::new(Like::default());
    let mut load = Load::new(&target.uri());
    for _ in 0..3 {
        load.run(700);
        target.kill();
        assert!(matches!(load.rig.event(), VolumeEvent::PathLost { .. }));
        target.start();
        assert!(matches!(load.rig.event(), VolumeEvent::PathBack { .. }));
    }
    load.run(100);
    load.check();
    assert_eq!(load.rig.run(LaneOp::Flush), Ok(0));
}

#[test]
fn nothing_is_lost_or_late_when_connections_are_cut() {
    let target = Target::new(Like::default());
    let proxy = Proxy::new(target.address());
    let mut load = Load::new(&target.uri_at(proxy.address));
    for _ in 0..5 {
        load.run(300);
        proxy.cut();
    }
    load.run(600);
    load.check();
    // The target has let go of all but the one session that we have.
    let sessions = target.shown().matches("I_T nexus: ").count();
    assert_eq!(sessions, 1, "{}", target.shown());
}

#[test]
fn a_silent_path_is_noticed_and_what_it_held_back_changes_nothing() {
    let target = Target::new(Like::default());
    let proxy = Proxy::new(target.address());
    let mut load = Load::new(&target.uri_at(proxy.address));
    load.run(300);
    let before = proxy.accepted();
    proxy.stall();
    load.stuff();
    let lost = load.rig.event();
    let VolumeEvent::PathLost { why } = lost else { unreachable!("{lost:?}") };
    assert!(why.contains("sign of life"), "{why}");
    proxy.go_on();
    assert!(matches!(load.rig.event(), VolumeEvent::PathBack { .. }));
    assert!(proxy.accepted() > before);
    // What the path held back has reached the target by now, too; each block is written anew.
    load.run(3 * BLOCKS);
    load.check();
}

#[test]
fn an_idle_connection_that_ends_is_made_again() {
    let target = Target::new(Like::default());
    let proxy = Proxy::new(target.address());
    let mut rig = Rig::new(&target.uri_at(proxy.address), &crate::patient(), 1);
    let op = rig.write(0, 0);
    assert_eq!(rig.run(op), Ok(STEP as u32));
    proxy.cut();
    let VolumeEvent::PathLost { why } = rig.event() else { unreachable!() };
    assert!(why.contains("closed"), "{why}");
    assert!(matches!(rig.event(), VolumeEvent::PathBack { .. }));
    let op = rig.read(0, 0);
    assert_eq!(rig.run(op), Ok(STEP as u32));
}

#[test]
fn io_fails_after_its_time_and_works_when_the_path_is_back() {
    let mut target = Target::new(Like::default());
    let options = OpenOptions { io_timeout: Some(Duration::from_millis(400)), ..crate::patient() };
    let mut rig = Rig::new(&target.uri(), &options, 2);
    let op = rig.write(0, 0);
    assert_eq!(rig.run(op), Ok(STEP as u32));
    target.kill();
    for _ in 0..2 {
        assert_eq!(rig.run(op), Err(libc::ETIMEDOUT));
    }
    assert_eq!(rig.run(LaneOp::Flush), Err(libc::ETIMEDOUT));
    assert!(rig.volume.read_at(0, &mut [0; 10]).is_err());
    target.start();
    assert!(matches!(rig.event(), VolumeEvent::PathLost { .. }));
    assert!(matches!(rig.event(), VolumeEvent::PathBack { .. }));
    assert_eq!(rig.run(op), Ok(STEP as u32));
    rig.volume.read_at(0, &mut [0; 10]).unwrap();
}

#[test]
fn the_control_handle_waits_for_its_target() {
    let mut target = Target::new(Like::default());
    let rig = Rig::new(&target.uri(), &crate::patient(), 1);
    rig.volume.write_at(5, b"before").unwrap();
    target.kill();
    let volume = rig.volume.clone();
    let reader = std::thread::spawn(move || {
        let mut read = [0; 6];
        volume.read_at(5, &mut read).unwrap();
        read
    });
    target.start();
    assert_eq!(&reader.join().unwrap(), b"before");
}

#[test]
fn a_lane_that_opens_before_its_target_is_back_waits() {
    let mut target = Target::new(Like::default());
    let mut rig = Rig::new(&target.uri(), &crate::patient(), 1);
    target.kill();
    let op = rig.write(0, 0);
    rig.submit(0, op);
    rig.push_out();
    assert!(matches!(rig.event(), VolumeEvent::PathLost { .. }));
    target.start();
    assert_eq!(rig.wait()[0].result, Ok(STEP as u32));
}

#[test]
fn a_unit_that_has_grown_is_noticed() {
    let mut target = Target::new(Like::default());
    let mut rig = Rig::new(&target.uri(), &crate::patient(), 1);
    let op = rig.read(0, 0);
    assert_eq!(rig.run(op), Ok(STEP as u32));
    target.kill();
    std::fs::OpenOptions::new()
        .write(true)
        .open(target.image())
        .unwrap()
        .set_len(32 << 20)
        .unwrap();
    target.start();
    assert!(matches!(rig.event(), VolumeEvent::PathLost { .. }));
    assert!(matches!(rig.event(), VolumeEvent::PathBack { .. }));
    assert_eq!(rig.event(), VolumeEvent::Resized { size_bytes: 32 << 20 });
    assert_eq!(rig.volume.geometry().size_bytes, 16 << 20);
    let end = rig.volume.measure_size().unwrap();
    assert_eq!(end, 32 << 20);
    assert!(rig.volume.write_at(end - 4, b"last").is_err(), "not in use yet");
    rig.volume.grow_to(end);
    rig.volume.write_at(end - 4, b"last").unwrap();
}

#[test]
fn nothing_is_written_to_another_unit_behind_the_same_number() {
    let mut target = Target::new(Like::default());
    let options = OpenOptions { io_timeout: Some(Duration::from_secs(1)), ..crate::patient() };
    let mut rig = Rig::new(&target.uri(), &options, 1);
    let write = rig.write(0, 0);
    assert_eq!(rig.run(write), Ok(STEP as u32));
    target.kill();
    target.scsi_id = Some("another".to_owned());
    target.start();
    rig.fill(0, 7);
    assert_eq!(rig.run(write), Err(libc::ETIMEDOUT));
    let told: Vec<_> = rig.events.try_iter().collect();
    let about_it = |event: &VolumeEvent| matches!(event, VolumeEvent::PathLost { why } if why.contains("another than the one"));
    assert!(told.iter().any(about_it), "{told:?}");
    assert!(rig.volume.read_at(0, &mut [0; 10]).is_err());
    assert_eq!(std::fs::read(target.image()).unwrap()[0], 0);
}

/// Large writes leave data in libiscsi's queue when the connection goes.
#[test]
fn large_writes_that_are_cut_short_are_whole_in_the_end() {
    const LARGE: usize = 1 << 20;
    const COUNT: u32 = 4;
    let target = Target::new(Like::default());
    let proxy = Proxy::new(target.address());
    let depth = COUNT as usize * LARGE / STEP;
    let mut rig = Rig::new(&target.uri_at(proxy.address), &crate::patient(), depth);
    for round in 1..=5u8 {
        rig.memory.as_mut_slice().fill(round);
        for id in 0..COUNT {
            let first = rig.buffer(id * (LARGE / STEP) as u32);
            let Buffer::Flat { addr, .. } = first else { unreachable!() };
            let buffer = Buffer::Flat { addr, len_bytes: LARGE as u32, registered: None };
            let offset_bytes = u64::from(id) * LARGE as u64;
            rig.submit(id, LaneOp::Write { offset_bytes, buffer, durable: true });
        }
        rig.push_out();
        if round < 5 {
            proxy.cut();
        }
        let mut done = 0;
        while done < COUNT as usize {
            for each in rig.wait() {
                assert_eq!(each.result, Ok(LARGE as u32));
                done += 1;
            }
        }
        let image = std::fs::read(target.image()).unwrap();
        assert!(image[..COUNT as usize * LARGE].iter().all(|byte| *byte == round));
    }
}
