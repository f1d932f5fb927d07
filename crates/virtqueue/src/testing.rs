//! A guest for tests: memory, a ring in it, and the driver's side of both.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::mapping::Window;
use crate::{GuestMemory, InflightQueue, QueueSetup, Region};

pub(crate) const BASE: u64 = 0x10_0000;
pub(crate) const DESC: u64 = BASE;
pub(crate) const AVAIL: u64 = BASE + 0x8000;
pub(crate) const USED: u64 = BASE + 0x9000;
/// Where tests put buffers; up to `END`.
pub(crate) const DATA: u64 = BASE + 0x1_0000;
pub(crate) const END: u64 = BASE + 0x4_0000;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

pub(crate) fn memory() -> Arc<GuestMemory> {
    let region = Region::anonymous(BASE, END - BASE).unwrap();
    Arc::new(GuestMemory::new(vec![region]).unwrap())
}

pub(crate) fn put_desc(memory: &GuestMemory, at: u64, gpa: u64, len: u32, flags: u16, next: u16) {
    memory.write(at, &gpa.to_le_bytes()).unwrap();
    memory.write(at + 8, &len.to_le_bytes()).unwrap();
    memory.write(at + 12, &flags.to_le_bytes()).unwrap();
    memory.write(at + 14, &next.to_le_bytes()).unwrap();
}

pub(crate) fn null() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

/// The driver of a ring at [`DESC`], [`AVAIL`], [`USED`].
pub(crate) struct Driver {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) size: u16,
    avail: Window,
    used: Window,
    next: u16,
}

impl Driver {
    /// A ring on which `start` buffers came and went.
    pub(crate) fn new(size: u16, start: u16) -> Self {
        let memory = memory();
        let entries = usize::from(size);
        let avail = memory.window(AVAIL, 6 + entries * 2, 2).unwrap();
        let used = memory.window(USED, 6 + entries * 8, 4).unwrap();
        avail.store_u16(2, start);
        used.store_u16(2, start);
        Self { memory, size, avail, used, next: start }
    }

    /// A driver of the same ring that has yet to offer its `start`th buffer.
    pub(crate) fn over(other: &Self, start: u16) -> Self {
        let (memory, size) = (Arc::clone(&other.memory), other.size);
        Self { memory, size, avail: other.avail.clone(), used: other.used.clone(), next: start }
    }

    pub(crate) fn setup(&self, features: u64, inflight: Option<InflightQueue>) -> QueueSetup {
        QueueSetup {
            size: self.size,
            desc_addr: DESC,
            avail_addr: AVAIL,
            used_addr: USED,
            base: self.next,
            features,
            memory: Arc::clone(&self.memory),
            inflight,
            kick: null(),
            call: None,
        }
    }

    pub(crate) fn offer(&mut self, head: u16) {
        self.avail.store_u16(4 + usize::from(self.next & (self.size - 1)) * 2, head);
        self.next = self.next.wrapping_add(1);
        self.avail.store_u16(2, self.next);
    }

    pub(crate) fn set_avail_idx(&self, index: u16) {
        self.avail.store_u16(2, index);
    }

    pub(crate) fn set_used_event(&self, index: u16) {
        self.avail.store_u16(4 + usize::from(self.size) * 2, index);
    }

    pub(crate) fn set_avail_flags(&self, flags: u16) {
        self.avail.store_u16(0, flags);
    }

    pub(crate) fn used_idx(&self) -> u16 {
        self.used.load_u16(2, Ordering::Acquire)
    }

    pub(crate) fn used_flags(&self) -> u16 {
        self.used.load_u16(0, Ordering::Acquire)
    }

    pub(crate) fn avail_event(&self) -> u16 {
        self.used.load_u16(4 + usize::from(self.size) * 8, Ordering::Acquire)
    }

    /// Head and length of the used element at `index`.
    pub(crate) fn used_elem(&self, index: u16) -> (u32, u32) {
        let mut raw = [0; 8];
        let slot = u64::from(index & (self.size - 1));
        self.memory.read(USED + 4 + slot * 8, &mut raw).unwrap();
        let words = u64::from_le_bytes(raw);
        (words as u32, (words >> 32) as u32)
    }
}
