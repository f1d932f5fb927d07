//! A running split virtqueue (virtio 1.2 section 2.7): taking heads, giving them back, and the art
//! of not notifying.
//!
//! Contract: the ring is the guest's. What can't be true of it (an index too far ahead, a head out
//! of range or still in use) ends the queue with a [`QueueError`], for good: where such a ring goes
//! on is unknowable.
//!
//! Invariant: a head is in the in-flight region from before [`Virtqueue::pop`] gives it out until
//! after [`Virtqueue::push_used`] has shown the guest its used element.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::blk::{F_RING_EVENT_IDX, F_RING_INDIRECT_DESC};
use crate::chain::{self, Chain, ChainError, DESC_BYTES, DescTable, Limits};
use crate::mapping::Window;
use crate::{GuestMemory, InflightError, InflightQueue, QueueSetup};

/// Largest split virtqueue (virtio 1.2 section 2.7).
const SIZE_MAX: u16 = 32768;

/// `struct virtq_avail`: flags u16, idx u16, ring u16 × size, used_event u16.
const AVAIL_FLAGS: usize = 0;
const AVAIL_IDX: usize = 2;
const AVAIL_RING: usize = 4;
/// `struct virtq_used`: flags u16, idx u16, ring (id u32, len u32) × size, avail_event u16.
const USED_FLAGS: usize = 0;
const USED_IDX: usize = 2;
const USED_RING: usize = 4;
const USED_ELEM_BYTES: usize = 8;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`
const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY`
const USED_F_NO_NOTIFY: u16 = 1;

/// The guest's ring can't be; the queue takes nothing from it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// More buffers available than the ring has descriptors.
    #[error("available index {avail} is more than {size} ahead of {next}")]
    AvailIndex {
        /// The ring's index.
        avail: u16,
        /// The next index to take.
        next: u16,
        /// Descriptors in the ring.
        size: u16,
    },
    /// A head that is no descriptor.
    #[error("available entry {next} names descriptor {head} of {size}")]
    Head {
        /// The next index to take.
        next: u16,
        /// What stands there.
        head: u16,
        /// Descriptors in the ring.
        size: u16,
    },
    /// A head that was taken and not given back.
    #[error("available entry {next} names descriptor {head}, which is still in use")]
    HeadBusy {
        /// The next index to take.
        next: u16,
        /// What stands there.
        head: u16,
    },
}

/// A queue that can't be started.
#[derive(Debug, thiserror::Error)]
pub enum QueueSetupError {
    /// Not a power of two up to 32768.
    #[error("a virtqueue of {0} descriptors is impossible")]
    Size(u16),
    /// A part of the ring outside guest memory, across regions, or misaligned.
    #[error("{part} at front-end address {addr:#x} is misaligned or not all in guest memory")]
    Address {
        /// Which part.
        part: &'static str,
        /// Where it should be.
        addr: u64,
    },
    /// The in-flight region is for smaller queues.
    #[error("the in-flight region has room for {room} descriptors, the virtqueue has {size}")]
    InflightRoom {
        /// Descriptors in the region.
        room: u16,
        /// Descriptors in the ring.
        size: u16,
    },
    /// The in-flight region makes no sense.
    #[error(transparent)]
    Inflight(#[from] InflightError),
}

/// One running split virtqueue.
#[derive(Debug)]
pub struct Virtqueue {
    memory: Arc<GuestMemory>,
    table: DescTable,
    avail: Window,
    used: Window,
    size: u16,
    limits: Limits,
    event_idx: bool,
    /// Next index to take from the available ring.
    next_avail: u16,
    /// The available index as last read: entries up to it are there.
    seen_avail: u16,
    /// Next index to fill in the used ring.
    next_used: u16,
    /// `next_used` when the guest was last told; None: it may have missed that.
    called_at: Option<u16>,
    /// A bit per head that was taken and not given back.
    busy: Box<[u64]>,
    inflight: Option<InflightQueue>,
    broken: Option<QueueError>,
}

impl Virtqueue {
    /// Starts the queue. Also gives the heads to replay, oldest first: taken by a predecessor and
    /// not answered. They count as taken; read their chains and answer them like popped ones.
    ///
    /// With an in-flight region the queue resumes behind those, else at the setup's `base`.
    pub fn new(setup: &QueueSetup) -> Result<(Self, Vec<u16>), QueueSetupError> {
        let size = setup.size;
        if !size.is_power_of_two() || size > SIZE_MAX {
            return Err(QueueSetupError::Size(size));
        }
        let entries = usize::from(size);
        let part = |part, addr, bytes, align| {
            let window = setup.memory.window_user(addr, bytes, align);
            window.ok_or(QueueSetupError::Address { part, addr })
        };
        let table = part("descriptor table", setup.desc_addr, entries * DESC_BYTES, DESC_BYTES)?;
        let avail = part("available ring", setup.avail_addr, AVAIL_RING + entries * 2 + 2, 2)?;
        let used_bytes = USED_RING + entries * USED_ELEM_BYTES + 2;
        let used = part("used ring", setup.used_addr, used_bytes, 4)?;
        let mut this = Self {
            memory: Arc::clone(&setup.memory),
            table: DescTable::from_window(table, size),
            size,
            limits: Limits {
                // Linux keeps to the queue's size with indirect tables, too, but some drivers
                // only to seg_max; a chain is bounded either way.
                descriptors_max: u32::from(size).max(DESCRIPTORS_MAX),
                indirect: setup.features & F_RING_INDIRECT_DESC != 0,
            },
            event_idx: setup.features & F_RING_EVENT_IDX != 0,
            next_avail: setup.base,
            seen_avail: setup.base,
            next_used: used.load_u16(USED_IDX, Ordering::Acquire),
            called_at: None,
            busy: vec![0; entries.div_ceil(64)].into(),
            inflight: None,
            broken: None,
            avail,
            used,
        };
        let replay = this.resume(setup)?;
        Ok((this, replay))
    }

    fn resume(&mut self, setup: &QueueSetup) -> Result<Vec<u16>, QueueSetupError> {
        let Some(inflight) = &setup.inflight else { return Ok(Vec::new()) };
        let (room, size) = (inflight.size(), self.size);
        if room < size {
            return Err(QueueSetupError::InflightRoom { room, size });
        }
        let mut inflight = inflight.share();
        let avail = self.avail.load_u16(AVAIL_IDX, Ordering::Acquire);
        let replay = inflight.recover(avail, self.next_used, size)?;
        // Not the front-end's base: after our crash it only knows the used index.
        self.next_avail = self.next_used.wrapping_add(replay.len() as u16);
        self.seen_avail = self.next_avail;
        for head in &replay {
            self.set_busy(*head);
        }
        self.inflight = Some(inflight);
        Ok(replay)
    }

    /// Guest memory as it was when the queue was started.
    #[inline]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Descriptors in the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The index at which a successor goes on.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Whether unanswered requests outlive this process.
    pub fn is_tracked(&self) -> bool {
        self.inflight.is_some()
    }

    /// Whether there is something to take: a cheap look, for polling.
    #[inline]
    pub fn has_avail(&self) -> bool {
        self.broken.is_none()
            && (self.seen_avail != self.next_avail
                || self.avail.load_u16(AVAIL_IDX, Ordering::Relaxed) != self.next_avail)
    }

    /// Takes the next head, noted as in flight. Err: the ring is broken, now and for ever.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<u16>, QueueError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        let (next, size) = (self.next_avail, self.size);
        if self.seen_avail == next {
            // Acquire: entries and descriptors are read after the index that published them.
            let avail = self.avail.load_u16(AVAIL_IDX, Ordering::Acquire);
            if avail == next {
                return Ok(None);
            }
            if avail.wrapping_sub(next) > size {
                return self.give_up(QueueError::AvailIndex { avail, next, size });
            }
            self.seen_avail = avail;
        }
        let entry = AVAIL_RING + usize::from(next & (size - 1)) * 2;
        let head = self.avail.load_u16(entry, Ordering::Relaxed);
        if head >= size {
            return self.give_up(QueueError::Head { next, head, size });
        }
        if !self.set_busy(head) {
            return self.give_up(QueueError::HeadBusy { next, head });
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.begin(head);
        }
        self.next_avail = next.wrapping_add(1);
        Ok(Some(head))
    }

    #[cold]
    fn give_up(&mut self, error: QueueError) -> Result<Option<u16>, QueueError> {
        self.broken = Some(error);
        Err(error)
    }

    /// Collects the chain of a head that was popped or is replayed.
    #[inline]
    pub fn read_chain(&self, head: u16, out: &mut Chain) -> Result<(), ChainError> {
        chain::walk(&self.memory, &self.table, head, self.limits, out)
    }

    /// Gives a taken head back; the device has written the first `len_bytes` of its writable
    /// memory. All writes to that memory must have happened. Tell the guest after the batch: see
    /// [`Virtqueue::needs_call`].
    #[inline]
    pub fn push_used(&mut self, head: u16, len_bytes: u32) {
        assert!(self.clear_busy(head), "a head is given back that was not taken");
        if let Some(inflight) = &mut self.inflight {
            inflight.complete_prepare(head);
        }
        let slot = usize::from(self.next_used & (self.size - 1));
        let elem = USED_RING + slot * USED_ELEM_BYTES;
        self.used.store_u32(elem, u32::from(head));
        self.used.store_u32(elem + 4, len_bytes);
        self.next_used = self.next_used.wrapping_add(1);
        self.used.store_u16(USED_IDX, self.next_used);
        if let Some(inflight) = &mut self.inflight {
            inflight.complete_done(head, self.next_used);
        }
    }

    /// Asks for a kick with the next buffer. True: there is one already that may come without a
    /// kick; look again before sleeping.
    pub fn enable_kick(&mut self) -> bool {
        if self.event_idx {
            let avail_event = USED_RING + usize::from(self.size) * USED_ELEM_BYTES;
            self.used.store_u16(avail_event, self.next_avail);
        } else {
            self.used.store_u16(USED_FLAGS, 0);
        }
        // Our wish must be visible before we look, as the driver's index is before it looks at
        // our wish: store-load, so nothing less than a full fence will do.
        fence(Ordering::SeqCst);
        self.has_avail()
    }

    /// Asks for no kicks. A hint: some may come.
    pub fn disable_kick(&mut self) {
        // With EVENT_IDX the wish expires by itself once the driver's index has passed it.
        if !self.event_idx {
            self.used.store_u16(USED_FLAGS, USED_F_NO_NOTIFY);
        }
    }

    /// Whether the guest wants to be told of what was pushed since this last said yes or no. Always
    /// the first time: a predecessor may have died before telling.
    ///
    /// To be asked at least once per 65535 used elements, which a queue can't reach in one batch.
    pub fn needs_call(&mut self) -> bool {
        // The used index must be visible before we read the driver's wish: see `enable_kick`.
        fence(Ordering::SeqCst);
        let now = self.next_used;
        let Some(before) = self.called_at.replace(now) else { return true };
        if self.event_idx {
            let used_event = AVAIL_RING + usize::from(self.size) * 2;
            need_event(self.avail.load_u16(used_event, Ordering::Relaxed), now, before)
        } else {
            now != before
                && self.avail.load_u16(AVAIL_FLAGS, Ordering::Relaxed) & AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// The guest may have missed what it was told: [`Virtqueue::needs_call`] says yes next.
    pub fn announce_again(&mut self) {
        self.called_at = None;
    }

    #[inline]
    fn set_busy(&mut self, head: u16) -> bool {
        let Some(word) = self.busy.get_mut(usize::from(head / 64)) else { return false };
        let bit = 1 << (head % 64);
        let free = *word & bit == 0;
        *word |= bit;
        free
    }

    #[inline]
    fn clear_busy(&mut self, head: u16) -> bool {
        let Some(word) = self.busy.get_mut(usize::from(head / 64)) else { return false };
        let bit = 1 << (head % 64);
        let busy = *word & bit != 0;
        *word &= !bit;
        busy
    }
}

/// Descriptors in a chain if the queue is smaller: QEMU's own limit (`VIRTQUEUE_MAX_SIZE`).
const DESCRIPTORS_MAX: u32 = 1024;

/// Whether the step from `before` to `now` passes `event`: `vring_need_event` (virtio 1.2 section
/// 2.7.7.2).
#[inline]
fn need_event(event: u16, now: u16, before: u16) -> bool {
    now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before)
}

#[cfg(test)]
mod tests;
