//! The guest's side of a split virtqueue, as a driver would run it (virtio 1.2 section 2.7), for
//! tests: one request per descriptor chain, heads reused only after they come back.
#![allow(dead_code, reason = "each test program uses its part")]

mod setup;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use sealblk_engine::Disk;
use sealblk_virtqueue::{GuestMemory, InflightRegion, QueueHost, QueueSetup, Region, blk};
pub(crate) use setup::*;

pub(crate) const QUEUE_SIZE: u16 = 64;
const GUEST_BYTES: u64 = 64 << 20;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x8000;
const USED: u64 = 0xc000;
/// 16-byte request headers and status bytes, one of each per head.
const HEADERS: u64 = 0x10000;
const STATUS: u64 = 0x18000;
/// Data buffers from here on.
pub(crate) const DATA: u64 = 0x10_0000;

pub(crate) const IN: u32 = 0;
pub(crate) const OUT: u32 = 1;
pub(crate) const FLUSH: u32 = 4;
pub(crate) const GET_ID: u32 = 8;
pub(crate) const DISCARD: u32 = 11;
pub(crate) const WRITE_ZEROES: u32 = 13;

const NEXT: u16 = 1;
const WRITABLE: u16 = 2;
/// What a status byte holds before the device writes it.
pub(crate) const UNTOUCHED: u8 = 0xff;

/// One data descriptor.
#[derive(Clone, Copy)]
pub(crate) struct Data {
    pub(crate) gpa: u64,
    pub(crate) len: u32,
}

pub(crate) struct Driver {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) inflight: Option<InflightRegion>,
    pub(crate) features: u64,
    kick: OwnedFd,
    call: OwnedFd,
    avail_idx: u16,
    used_idx: u16,
}

impl Driver {
    pub(crate) fn new(features: u64) -> Self {
        let memory = GuestMemory::new(vec![Region::anonymous(0, GUEST_BYTES).unwrap()]).unwrap();
        let event = || eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        Self {
            memory: Arc::new(memory),
            inflight: Some(InflightRegion::create(1, QUEUE_SIZE).unwrap().0),
            features,
            kick: event(),
            call: event(),
            avail_idx: 0,
            used_idx: 0,
        }
    }

    pub(crate) fn setup(&self, base: u16) -> QueueSetup {
        QueueSetup {
            size: QUEUE_SIZE,
            desc_addr: DESC,
            avail_addr: AVAIL,
            used_addr: USED,
            base,
            features: self.features,
            memory: self.memory.clone(),
            inflight: self.inflight.as_ref().map(|region| region.queue(0).unwrap()),
            kick: self.kick.try_clone().unwrap(),
            call: Some(self.call.try_clone().unwrap()),
        }
    }

    pub(crate) fn start(&self, disk: &mut Disk, base: u16) {
        disk.start(0, self.setup(base)).unwrap();
    }

    /// Writes the chain of head `head` (chains use three descriptors and more from `3 * head` on;
    /// with many data pieces the caller leaves room) and makes it available, without a kick.
    pub(crate) fn post(&mut self, head: u16, kind: u32, sector: u64, data: &[Data]) {
        let header = HEADERS + u64::from(head) * 16;
        self.memory.write(header, &kind.to_le_bytes()).unwrap();
        self.memory.write(header + 4, &0u32.to_le_bytes()).unwrap();
        self.memory.write(header + 8, &sector.to_le_bytes()).unwrap();
        self.memory.write(STATUS + u64::from(head), &[UNTOUCHED]).unwrap();
        let data_flags = if matches!(kind, IN | GET_ID) { WRITABLE } else { 0 };
        let mut index = head;
        self.descriptor(index, header, 16, NEXT);
        for piece in data {
            index += 1;
            self.descriptor(index, piece.gpa, piece.len, NEXT | data_flags);
        }
        self.descriptor(index + 1, STATUS + u64::from(head), 1, WRITABLE);
        self.make_available(head);
    }

    pub(crate) fn descriptor(&self, index: u16, gpa: u64, len: u32, flags: u16) {
        let at = DESC + u64::from(index) * 16;
        self.memory.write(at, &gpa.to_le_bytes()).unwrap();
        self.memory.write(at + 8, &len.to_le_bytes()).unwrap();
        self.memory.write(at + 12, &flags.to_le_bytes()).unwrap();
        self.memory.write(at + 14, &(index + 1).to_le_bytes()).unwrap();
    }

    pub(crate) fn make_available(&mut self, head: u16) {
        let slot = AVAIL + 4 + u64::from(self.avail_idx % QUEUE_SIZE) * 2;
        self.memory.write(slot, &head.to_le_bytes()).unwrap();
        self.avail_idx = self.avail_idx.wrapping_add(1);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.memory.write(AVAIL + 2, &self.avail_idx.to_le_bytes()).unwrap();
    }

    pub(crate) fn kick(&self) {
        rustix::io::write(&self.kick, &1u64.to_ne_bytes()).unwrap();
    }

    /// The next used element, if there is one: head and length.
    pub(crate) fn used(&mut self) -> Option<(u16, u32)> {
        let mut idx = [0; 2];
        self.memory.read(USED + 2, &mut idx).unwrap();
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        if u16::from_le_bytes(idx) == self.used_idx {
            return None;
        }
        let mut element = [0; 8];
        let slot = USED + 4 + u64::from(self.used_idx % QUEUE_SIZE) * 8;
        self.memory.read(slot, &mut element).unwrap();
        self.used_idx = self.used_idx.wrapping_add(1);
        let word = |at: usize| u32::from_le_bytes(element[at..at + 4].try_into().unwrap());
        Some((word(0) as u16, word(4)))
    }

    /// Waits for the next used element by the call eventfd, as an interrupt handler would.
    pub(crate) fn wait(&mut self) -> (u16, u32) {
        loop {
            if let Some(used) = self.used() {
                return used;
            }
            self.wait_call();
        }
    }

    pub(crate) fn wait_call(&self) {
        let timeout = rustix::event::Timespec { tv_sec: 30, tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.call, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&timeout)).unwrap(), 1, "no notification within 30 s");
        rustix::io::read(&self.call, &mut [0; 8]).unwrap();
    }

    pub(crate) fn status(&self, head: u16) -> u8 {
        let mut status = [0];
        self.memory.read(STATUS + u64::from(head), &mut status).unwrap();
        status[0]
    }

    /// One request from start to end: status and used length.
    pub(crate) fn request(&mut self, kind: u32, sector: u64, data: &[Data]) -> (u8, u32) {
        self.post(0, kind, sector, data);
        self.kick();
        let (head, len) = self.wait();
        assert_eq!(head, 0);
        (self.status(0), len)
    }

    pub(crate) fn write(&mut self, sector: u64, bytes: &[u8]) -> u8 {
        self.memory.write(DATA, bytes).unwrap();
        self.request(OUT, sector, &[Data { gpa: DATA, len: bytes.len() as u32 }]).0
    }

    pub(crate) fn read(&mut self, sector: u64, len: usize) -> (u8, Vec<u8>) {
        let gpa = DATA + (16 << 20);
        self.memory.write(gpa, &vec![0xee; len]).unwrap();
        let (status, _) = self.request(IN, sector, &[Data { gpa, len: len as u32 }]);
        let mut bytes = vec![0; len];
        self.memory.read(gpa, &mut bytes).unwrap();
        (status, bytes)
    }
}

pub(crate) fn default_features() -> u64 {
    blk::F_VERSION_1 | blk::F_RING_INDIRECT_DESC | blk::F_FLUSH | blk::F_WRITE_ZEROES
}
