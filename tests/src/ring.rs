//! A split virtqueue seen from the driver's side (virtio 1.2 section 2.7), without any manners:
//! descriptors are written as they are given.

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Descriptor flags (virtio 1.2 section 2.7.5).
pub mod flags {
    /// Another descriptor follows.
    pub const NEXT: u16 = 1;
    /// The device writes into it.
    pub const WRITE: u16 = 2;
    /// It points to a table of descriptors.
    pub const INDIRECT: u16 = 4;
}

/// Request types and status values (virtio 1.2 section 5.2.6).
pub mod blk {
    /// `VIRTIO_BLK_T_IN`
    pub const READ: u32 = 0;
    /// `VIRTIO_BLK_T_OUT`
    pub const WRITE: u32 = 1;
    /// `VIRTIO_BLK_T_FLUSH`
    pub const FLUSH: u32 = 4;
    /// `VIRTIO_BLK_T_GET_ID`
    pub const GET_ID: u32 = 8;
    /// `VIRTIO_BLK_T_DISCARD`
    pub const DISCARD: u32 = 11;
    /// `VIRTIO_BLK_T_WRITE_ZEROES`
    pub const WRITE_ZEROES: u32 = 13;
    /// `VIRTIO_BLK_S_OK`
    pub const OK: u8 = 0;
    /// `VIRTIO_BLK_S_IOERR`
    pub const IOERR: u8 = 1;
    /// `VIRTIO_BLK_S_UNSUPP`
    pub const UNSUPP: u8 = 2;
    /// What the status byte holds while the device has not touched it.
    pub const UNTOUCHED: u8 = 0xff;
}

/// A descriptor, as it lies in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Desc {
    /// Guest physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// See [`flags`].
    pub flags: u16,
    /// Index of the next one, if the flag says so.
    pub next: u16,
}

impl Desc {
    /// What the device reads.
    pub fn readable(addr: u64, len: u32) -> Self {
        Self { addr, len, flags: 0, next: 0 }
    }

    /// What the device writes.
    pub fn writable(addr: u64, len: u32) -> Self {
        Self { addr, len, flags: flags::WRITE, next: 0 }
    }

    /// As it lies in memory.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// What the device put into the used ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// Head of the chain.
    pub id: u32,
    /// Bytes that the device says it wrote.
    pub len: u32,
}

/// A virtqueue and its two eventfds.
pub struct Ring {
    memory: GuestMemoryMmap,
    base: u64,
    size: u16,
    avail_index: u16,
    used_index: u16,
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
    interrupts: Epoll,
}

impl Ring {
    /// Bytes of guest memory that a ring takes.
    pub(crate) const BYTES: u64 = 64 << 10;
    const AVAIL: u64 = 32 << 10;
    const USED: u64 = 48 << 10;

    pub(crate) fn new(memory: &GuestMemoryMmap, base: u64, size: u16) -> Result<Self> {
        let zeroes = vec![0; usize::try_from(Self::BYTES)?];
        memory.write_slice(&zeroes, GuestAddress(base))?;
        let (kick, call) = (EventFd::new(0)?, EventFd::new(EFD_NONBLOCK)?);
        let interrupts = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN, 0);
        interrupts.ctl(ControlOperation::Add, call.as_raw_fd(), event)?;
        let memory = memory.clone();
        Ok(Self { memory, base, size, avail_index: 0, used_index: 0, kick, call, interrupts })
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    pub(crate) fn desc_table(&self) -> u64 {
        self.base
    }

    pub(crate) fn avail_ring(&self) -> u64 {
        self.base + Self::AVAIL
    }

    pub(crate) fn used_ring(&self) -> u64 {
        self.base + Self::USED
    }

    /// Next index that the driver will write into the available ring.
    pub fn avail_index(&self) -> u16 {
        self.avail_index
    }

    /// Next index that the driver will read from the used ring.
    pub fn used_index(&self) -> u16 {
        self.used_index
    }

    /// Writes one descriptor as it is.
    pub fn put(&self, index: u16, desc: Desc) -> Result<()> {
        let at = self.desc_table() + u64::from(index) * 16;
        Ok(self.memory.write_slice(&desc.to_bytes(), GuestAddress(at))?)
    }

    /// Writes descriptors from `first` on, linked in this order.
    pub fn put_chain(&self, first: u16, chain: &[Desc]) -> Result<()> {
        for (index, desc) in (first..).zip(chain) {
            let last = usize::from(index - first) + 1 == chain.len();
            let mut desc = *desc;
            if !last {
                desc.flags |= flags::NEXT;
                desc.next = index + 1;
            }
            self.put(index, desc)?;
        }
        Ok(())
    }

    /// Makes the chain at `head` available, without telling the device.
    pub fn publish(&mut self, head: u16) -> Result<()> {
        let slot = u64::from(self.avail_index % self.size);
        let ring = self.avail_ring();
        self.memory.write_slice(&head.to_le_bytes(), GuestAddress(ring + 4 + slot * 2))?;
        self.avail_index = self.avail_index.wrapping_add(1);
        self.memory.store(self.avail_index.to_le(), GuestAddress(ring + 2), Ordering::SeqCst)?;
        Ok(())
    }

    /// Puts the available index where it should not be, and the counter with it.
    pub fn jump_avail_index(&mut self, index: u16) -> Result<()> {
        self.avail_index = index;
        self.memory.store(index.to_le(), GuestAddress(self.avail_ring() + 2), Ordering::SeqCst)?;
        Ok(())
    }

    /// Tells the device.
    pub fn kick(&self) -> Result<()> {
        Ok(self.kick.write(1)?)
    }

    /// What has been used and not yet been taken, if anything.
    pub fn take(&mut self) -> Result<Option<Completion>> {
        let ring = self.used_ring();
        let index: u16 = self.memory.load(GuestAddress(ring + 2), Ordering::SeqCst)?;
        if u16::from_le(index) == self.used_index {
            return Ok(None);
        }
        let slot = u64::from(self.used_index % self.size);
        let mut element = [0; 8];
        self.memory.read_slice(&mut element, GuestAddress(ring + 4 + slot * 8))?;
        self.used_index = self.used_index.wrapping_add(1);
        let [a, b, c, d, e, f, g, h] = element;
        let (id, len) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        Ok(Some(Completion { id, len }))
    }

    /// Waits for the device to use something; it must also send an interrupt.
    pub fn wait(&mut self, limit: Duration) -> Result<Completion> {
        let end = Instant::now() + limit;
        loop {
            if let Some(completion) = self.take()? {
                return Ok(completion);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("the device used nothing within {} s", limit.as_secs());
            }
            let timeout_ms = i32::try_from(left.as_millis())?.max(1);
            self.interrupts.wait(timeout_ms, &mut [EpollEvent::default()])?;
            self.call.read().ok();
        }
    }

    /// Waits for exactly this head.
    pub fn wait_for(&mut self, head: u16, limit: Duration) -> Result<Completion> {
        let completion = self.wait(limit)?;
        ensure!(completion.id == u32::from(head), "{completion:?} where {head} was expected");
        Ok(completion)
    }
}
