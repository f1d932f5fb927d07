//! The guest's side of a split virtqueue (virtio 1.2 section 2.7), made to cost little: requests
//! are laid out once, and a finished one is made available again as it is.
//!
//! Each request is an indirect chain of header, data and status, as Linux makes them. Header and
//! status share a cache line. The queue has 256 descriptors.
//!
//! Invariant: what the engine may read at the same time is written by single atomic stores.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use sealblk_virtqueue::{GuestMemory, InflightRegion, QueueSetup, Region, blk};
use vm_memory::{AtomicAccess, Bytes, FileOffset, MmapRegion, VolatileMemory};

/// Descriptors of a queue; so many requests can be in flight.
pub(crate) const QUEUE_SIZE: u16 = 256;
/// A call that doesn't come in this time never will.
const LIMIT: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

const DESC: u64 = 0;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x4000;
/// A request's header (16 bytes) and status byte.
const REQUESTS: u64 = 0x8000;
const REQUEST_BYTES: u64 = 64;
/// Indirect tables of three descriptors.
const TABLES: u64 = 0x10000;
const TABLE_BYTES: u64 = 64;
const DATA: u64 = 0x10_0000;

const NEXT: u16 = 1;
const WRITABLE: u16 = 2;
const INDIRECT: u16 = 4;
/// What a status byte holds before the device writes it.
const UNTOUCHED: u8 = 0xff;

/// What the requests do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Requests {
    pub(crate) write: bool,
    pub(crate) block_bytes: u32,
    /// How many there are.
    pub(crate) depth: u16,
    /// Of the disk; they are spread over it.
    pub(crate) capacity_sectors: u64,
}

/// The driver of one queue.
pub(crate) struct Driver {
    memory: MmapRegion,
    guest: Arc<GuestMemory>,
    inflight: InflightRegion,
    kick: OwnedFd,
    call: OwnedFd,
    depth: u16,
    avail_idx: u16,
    used_idx: u16,
}

impl Driver {
    /// Lays the requests out; none is available yet.
    pub(crate) fn new(requests: Requests) -> Result<Self> {
        ensure!((1..=QUEUE_SIZE).contains(&requests.depth), "1 to {QUEUE_SIZE} requests");
        let block = u64::from(requests.block_bytes);
        let size = DATA + block * u64::from(requests.depth);
        let file = File::from(memfd_create("sealblk-bench-guest", MemfdFlags::CLOEXEC)?);
        file.set_len(size)?;
        let region = Region::map(&file, 0, 0, size, 0)?;
        let memory = MmapRegion::from_file(FileOffset::new(file, 0), usize::try_from(size)?)?;
        let this = Self {
            memory,
            guest: Arc::new(GuestMemory::new(vec![region])?),
            inflight: InflightRegion::create(1, QUEUE_SIZE)?.0,
            kick: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            call: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            depth: requests.depth,
            avail_idx: 0,
            used_idx: 0,
        };
        for head in 0..requests.depth {
            this.lay_out(head, requests)?;
        }
        Ok(this)
    }

    fn lay_out(&self, head: u16, requests: Requests) -> Result<()> {
        let n = u64::from(head);
        let (request, table) = (REQUESTS + n * REQUEST_BYTES, TABLES + n * TABLE_BYTES);
        let blocks = requests.capacity_sectors * 512 / u64::from(requests.block_bytes);
        // Spread, and none next to another: nothing to gain from coalescing.
        let block = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % blocks;
        self.store(request, u32::from(requests.write))?;
        self.store(request + 8, block * (u64::from(requests.block_bytes) / 512))?;
        self.store(request + 16, UNTOUCHED)?;
        let data = DATA + n * u64::from(requests.block_bytes);
        // Touches every page.
        let bytes: Vec<u8> = (0..requests.block_bytes).map(|i| (i ^ (i >> 8)) as u8).collect();
        self.memory.as_volatile_slice().write_slice(&bytes, usize::try_from(data)?)?;
        let data_flags = if requests.write { NEXT } else { NEXT | WRITABLE };
        self.descriptor(table, request, 16, NEXT, 1)?;
        self.descriptor(table + 16, data, requests.block_bytes, data_flags, 2)?;
        self.descriptor(table + 32, request + 16, 1, WRITABLE, 0)?;
        self.descriptor(DESC + n * 16, table, 48, INDIRECT, 0)
    }

    fn descriptor(&self, at: u64, gpa: u64, len: u32, flags: u16, next: u16) -> Result<()> {
        self.store(at, gpa)?;
        self.store(at + 8, len)?;
        self.store(at + 12, flags)?;
        self.store(at + 14, next)
    }

    fn store<T: AtomicAccess>(&self, at: u64, value: T) -> Result<()> {
        Ok(self.memory.as_volatile_slice().store(value, at as usize, Relaxed)?)
    }

    fn load<T: AtomicAccess>(&self, at: u64) -> Result<T> {
        Ok(self.memory.as_volatile_slice().load(at as usize, Relaxed)?)
    }

    /// What the engine needs to start the queue.
    pub(crate) fn setup(&self) -> Result<QueueSetup> {
        Ok(QueueSetup {
            size: QUEUE_SIZE,
            desc_addr: DESC,
            avail_addr: AVAIL,
            used_addr: USED,
            base: self.avail_idx,
            features: blk::F_VERSION_1
                | blk::F_RING_INDIRECT_DESC
                | blk::F_RING_EVENT_IDX
                | blk::F_FLUSH,
            memory: self.guest.clone(),
            inflight: Some(self.inflight.queue(0).context("the in-flight region has no queue 0")?),
            kick: self.kick.try_clone()?,
            call: Some(self.call.try_clone()?),
        })
    }

    /// Requests.
    pub(crate) fn depth(&self) -> u16 {
        self.depth
    }

    /// Makes all requests available; none is in flight.
    pub(crate) fn post_all(&mut self) -> Result<()> {
        for head in 0..self.depth {
            self.avail_slot(self.avail_idx.wrapping_add(head), head)?;
        }
        self.publish(self.depth)
    }

    fn avail_slot(&self, index: u16, head: u16) -> Result<()> {
        self.store(AVAIL + 4 + u64::from(index % QUEUE_SIZE) * 2, head)
    }

    /// Makes the next `count` slots visible, and kicks if the engine wants it (section 2.7.13.4.1).
    fn publish(&mut self, count: u16) -> Result<()> {
        let old = self.avail_idx;
        self.avail_idx = old.wrapping_add(count);
        self.memory.as_volatile_slice().store(self.avail_idx, AVAIL as usize + 2, Release)?;
        fence(SeqCst);
        let event: u16 = self.load(USED + 4 + u64::from(QUEUE_SIZE) * 8)?;
        if self.avail_idx.wrapping_sub(event).wrapping_sub(1) < count {
            rustix::io::write(&self.kick, &1u64.to_ne_bytes())?;
        }
        Ok(())
    }

    /// Asks for a call once `count` more requests are used than have been taken. Too many: never.
    fn call_after(&self, count: u16) -> Result<()> {
        let event = self.used_idx.wrapping_add(count).wrapping_sub(1);
        self.store(AVAIL + 4 + u64::from(QUEUE_SIZE) * 2, event)
    }

    /// Takes what is used and, if `again`, makes it available again at once. How many.
    pub(crate) fn turn(&mut self, again: bool) -> Result<u16> {
        let used: u16 = self.memory.as_volatile_slice().load(USED as usize + 2, Acquire)?;
        let count = used.wrapping_sub(self.used_idx);
        ensure!(count <= self.depth, "the engine used more requests than there are");
        if count == 0 {
            return Ok(0);
        }
        for n in 0..count {
            let slot = self.used_idx.wrapping_add(n) % QUEUE_SIZE;
            let head: u32 = self.load(USED + 4 + u64::from(slot) * 8)?;
            if again {
                self.avail_slot(self.avail_idx.wrapping_add(n), head as u16)?;
            }
        }
        self.used_idx = used;
        // It polls: no calls.
        self.call_after(0x8000)?;
        if again {
            self.publish(count)?;
        }
        Ok(count)
    }

    /// Makes all requests available and sleeps until the last one is used.
    pub(crate) fn batch(&mut self) -> Result<()> {
        self.call_after(self.depth)?;
        self.post_all()?;
        let mut fds = [PollFd::new(&self.call, PollFlags::IN)];
        loop {
            ensure!(poll(&mut fds, Some(&LIMIT))? == 1, "the engine doesn't answer");
            rustix::io::read(&self.call, &mut [0; 8])?;
            let used: u16 = self.memory.as_volatile_slice().load(USED as usize + 2, Acquire)?;
            // The first call comes when the queue starts.
            if used.wrapping_sub(self.used_idx) == self.depth {
                self.used_idx = used;
                return Ok(());
            }
        }
    }

    /// Waits, polling, until every request is back; all were made available before.
    pub(crate) fn settle(&mut self) -> Result<()> {
        let limit = Instant::now() + Duration::from_secs(20);
        while self.used_idx != self.avail_idx {
            self.turn(false)?;
            ensure!(Instant::now() < limit, "the engine doesn't answer");
        }
        Ok(())
    }

    /// All requests that came back came back without an error.
    pub(crate) fn check(&self) -> Result<()> {
        for head in 0..u64::from(self.depth) {
            let status: u8 = self.load(REQUESTS + head * REQUEST_BYTES + 16)?;
            ensure!(status == 0, "request {head} ended with status {status:#x}");
        }
        Ok(())
    }
}
