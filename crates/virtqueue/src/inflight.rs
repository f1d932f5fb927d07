//! The in-flight region: which requests were taken and not yet answered, in memory that survives us.
//!
//! Contract: the layout is the vhost-user specification's ("Inflight I/O tracking",
//! `struct QueueRegionSplit`), so a region that another back-end left behind is understood. The
//! region is the front-end's between our lives: all that is read from it is checked.
//!
//! Invariant: a head is noted before anything is done for it, and forgotten only after the guest
//! can see its used element. Killed between any two stores, [`InflightQueue::recover`] gives back
//! exactly the unanswered heads, in the order in which they were taken.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use crate::mapping::{Mapping, Window};

/// The header's `version` once the region is in use (vhost-user specification).
const VERSION: u16 = 1;

/// `struct QueueRegionSplit`: features u64, reserved and 0 in the specification; then these.
const HEADER_FEATURES: usize = 0;
const HEADER_VERSION: usize = 8;
const HEADER_DESC_NUM: usize = 10;
const HEADER_LAST_BATCH_HEAD: usize = 12;
const HEADER_USED_IDX: usize = 14;
const HEADER_BYTES: usize = 16;

/// Our one bit among the reserved features of the first queue's header: the driver switched the
/// write cache off. The front-end tells a back-end once only, and nobody else outlives us: a
/// successor that did not know would acknowledge writes that are not durable.
const FEATURE_WRITE_THROUGH: u64 = 1 << 63;

/// `struct DescStateSplit`: inflight u8, padding, next u16, counter u64.
const DESC_INFLIGHT: usize = 0;
const DESC_NEXT: usize = 6;
const DESC_COUNTER: usize = 8;
const DESC_BYTES: usize = 16;

/// Every queue's part starts at a multiple of it (vhost-user specification).
const QUEUE_ALIGN: usize = 64;

/// The in-flight region can't be used.
#[derive(Debug, thiserror::Error)]
pub enum InflightError {
    /// No memory for a new one.
    #[error("cannot create the in-flight region: {0}")]
    Create(#[source] io::Error),
    /// The front-end's can't be mapped.
    #[error("cannot map the in-flight region: {0}")]
    Map(String),
    /// Number or size of queues that no device has.
    #[error("an in-flight region for {queues} queues of {size} descriptors is impossible")]
    Shape {
        /// Number of queues.
        queues: u16,
        /// Descriptors per queue.
        size: u16,
    },
    /// The message's size is smaller than its queues need.
    #[error("the in-flight region has {size_bytes} bytes, its queues need {needed_bytes}")]
    Short {
        /// Size that the front-end gave.
        size_bytes: u64,
        /// Size that the layout needs.
        needed_bytes: u64,
    },
    /// Made for something else.
    #[error(
        "the in-flight region has version {version} and {desc_num} descriptors, not 1 and {size}"
    )]
    Header {
        /// `version` found.
        version: u16,
        /// `desc_num` found.
        desc_num: u16,
        /// Descriptors expected.
        size: u16,
    },
    /// It contradicts the ring: to replay from it could write anything anywhere.
    #[error(
        "the in-flight region is not of this ring: {inflight} requests in flight, \
         {available} taken from the ring or waiting there (used index {region_used} in the region, \
         {ring_used} in the ring); restart the guest"
    )]
    Stale {
        /// Requests in flight by the region.
        inflight: u16,
        /// Requests unanswered by the ring.
        available: u16,
        /// `used_idx` of the region.
        region_used: u16,
        /// Index of the used ring.
        ring_used: u16,
    },
}

/// The region of all queues of a disk.
#[derive(Debug, Clone)]
pub struct InflightRegion {
    mapping: Arc<Mapping>,
    queues: u16,
    queue_size: u16,
}

impl InflightRegion {
    /// A fresh region and its file for the front-end to keep (`GET_INFLIGHT_FD`), of fixed length.
    pub fn create(queues: u16, queue_size: u16) -> Result<(Self, OwnedFd), InflightError> {
        let size_bytes = Self::needed_bytes(queues, queue_size)?;
        let file = || -> rustix::io::Result<OwnedFd> {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = memfd_create("sealblk-inflight", flags)?;
            ftruncate(&file, size_bytes)?;
            fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
            Ok(file)
        };
        let file = file().map_err(|errno| InflightError::Create(errno.into()))?;
        let region = Self::map(&file, 0, size_bytes, queues, queue_size)?;
        Ok((region, file))
    }

    /// The region that the front-end kept (`SET_INFLIGHT_FD`): `size_bytes` at `offset_bytes`.
    pub fn map(
        file: impl AsFd,
        offset_bytes: u64,
        size_bytes: u64,
        queues: u16,
        queue_size: u16,
    ) -> Result<Self, InflightError> {
        let needed_bytes = Self::needed_bytes(queues, queue_size)?;
        if size_bytes < needed_bytes {
            return Err(InflightError::Short { size_bytes, needed_bytes });
        }
        let mapping = Mapping::file(file, offset_bytes, needed_bytes)
            .map_err(|error| InflightError::Map(error.to_string()))?;
        if !mapping.addr().is_multiple_of(QUEUE_ALIGN) {
            let reason = format!("offset {offset_bytes} is no multiple of {QUEUE_ALIGN}");
            return Err(InflightError::Map(reason));
        }
        Ok(Self { mapping: Arc::new(mapping), queues, queue_size })
    }

    /// Bytes of the region: what the reply to `GET_INFLIGHT_FD` says.
    pub fn size_bytes(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// The part of one queue, if the region has it.
    pub fn queue(&self, index: u16) -> Option<InflightQueue> {
        if index >= self.queues {
            return None;
        }
        let stride = queue_bytes(self.queue_size);
        let window = Window::new(&self.mapping, usize::from(index) * stride, stride, QUEUE_ALIGN)?;
        Some(InflightQueue { window, size: self.queue_size, counter: 0 })
    }

    /// Whether a predecessor noted that the driver had switched the write cache off.
    pub fn write_through(&self) -> bool {
        self.header()
            .is_some_and(|header| header.load_u64(HEADER_FEATURES) & FEATURE_WRITE_THROUGH != 0)
    }

    /// Notes for a successor whether the driver has switched the write cache off.
    pub fn set_write_through(&self, write_through: bool) {
        if let Some(header) = self.header() {
            let others = header.load_u64(HEADER_FEATURES) & !FEATURE_WRITE_THROUGH;
            let ours = if write_through { FEATURE_WRITE_THROUGH } else { 0 };
            header.store_u64(HEADER_FEATURES, others | ours);
        }
    }

    fn header(&self) -> Option<Window> {
        Window::new(&self.mapping, 0, HEADER_BYTES, QUEUE_ALIGN)
    }

    fn needed_bytes(queues: u16, size: u16) -> Result<u64, InflightError> {
        if queues == 0 || size == 0 || size > 32768 {
            return Err(InflightError::Shape { queues, size });
        }
        Ok(u64::from(queues) * queue_bytes(size) as u64)
    }
}

fn queue_bytes(size: u16) -> usize {
    (HEADER_BYTES + usize::from(size) * DESC_BYTES).next_multiple_of(QUEUE_ALIGN)
}

fn desc(head: u16, field: usize) -> usize {
    HEADER_BYTES + usize::from(head) * DESC_BYTES + field
}

/// One queue's part of the region.
///
/// Heads given to it are below [`InflightQueue::size`]: the [`crate::Virtqueue`] sees to that.
#[derive(Debug)]
pub struct InflightQueue {
    window: Window,
    size: u16,
    /// Order of the next request.
    counter: u64,
}

impl InflightQueue {
    /// Descriptors that it has room for; the ring may be smaller.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// A second handle, for the queue that is started with it.
    pub(crate) fn share(&self) -> Self {
        Self { window: self.window.clone(), size: self.size, counter: self.counter }
    }

    /// Notes a request that is about to be worked on.
    #[inline]
    pub(crate) fn begin(&mut self, head: u16) {
        self.window.store_u64(desc(head, DESC_COUNTER), self.counter);
        self.window.store_u8(desc(head, DESC_INFLIGHT), 1);
        self.counter = self.counter.wrapping_add(1);
    }

    /// Before the used ring's index moves on past this request.
    #[inline]
    pub(crate) fn complete_prepare(&mut self, head: u16) {
        self.window.store_u16(HEADER_LAST_BATCH_HEAD, head);
    }

    /// After the used ring's index has become `used_idx`.
    #[inline]
    pub(crate) fn complete_done(&mut self, head: u16, used_idx: u16) {
        self.window.store_u8(desc(head, DESC_INFLIGHT), 0);
        self.window.store_u16(HEADER_USED_IDX, used_idx);
    }

    /// Finishes what a killed predecessor left half done, and gives the unanswered heads, oldest
    /// first. `avail` and `used` are the ring's indices, `ring_size` its descriptors.
    pub(crate) fn recover(
        &mut self,
        avail: u16,
        used: u16,
        ring_size: u16,
    ) -> Result<Vec<u16>, InflightError> {
        let version = self.load_u16(HEADER_VERSION);
        let desc_num = self.load_u16(HEADER_DESC_NUM);
        if version == 0 {
            self.window.store_u16(HEADER_DESC_NUM, self.size);
            self.window.store_u16(HEADER_USED_IDX, used);
            // Last: a region without a version is initialised again.
            self.window.store_u16(HEADER_VERSION, VERSION);
        } else if version != VERSION || desc_num != self.size {
            return Err(InflightError::Header { version, desc_num, size: self.size });
        }
        let region_used = self.load_u16(HEADER_USED_IDX);
        // Answered, but not yet forgotten: the last batch (of one, if it was ours).
        let pending = used.wrapping_sub(region_used);
        let answered = if pending <= self.size { self.last_batch(pending) } else { Vec::new() };
        let mut heads: Vec<(u64, u16)> = (0..self.size)
            .filter(|head| self.window.load_u8(desc(*head, DESC_INFLIGHT)) != 0)
            .filter(|head| !answered.contains(head))
            .map(|head| (self.window.load_u64(desc(head, DESC_COUNTER)), head))
            .collect();
        heads.sort_unstable();
        let available = avail.wrapping_sub(used);
        let inflight = u16::try_from(heads.len()).unwrap_or(u16::MAX);
        let foreign = heads.iter().any(|(_, head)| *head >= ring_size);
        let contradicts =
            foreign || pending > self.size || inflight > available || available > ring_size;
        if inflight > 0 && contradicts {
            return Err(InflightError::Stale { inflight, available, region_used, ring_used: used });
        }
        for head in answered {
            self.window.store_u8(desc(head, DESC_INFLIGHT), 0);
        }
        self.window.store_u16(HEADER_USED_IDX, used);
        self.counter = heads.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Ok(heads.into_iter().map(|(_, head)| head).collect())
    }

    /// The `count` heads of the last batch, linked by `next`; fewer if the links leave the table.
    fn last_batch(&self, count: u16) -> Vec<u16> {
        let mut batch = Vec::new();
        let mut head = self.load_u16(HEADER_LAST_BATCH_HEAD);
        for _ in 0..count.min(self.size) {
            if head >= self.size {
                break;
            }
            batch.push(head);
            head = self.load_u16(desc(head, DESC_NEXT));
        }
        batch
    }

    fn load_u16(&self, offset: usize) -> u16 {
        self.window.load_u16(offset, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
