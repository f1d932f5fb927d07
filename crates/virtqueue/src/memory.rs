//! Guest memory as the front-end shared it: regions, and three kinds of address.
//!
//! Contract: *guest* addresses (`gpa`) stand in descriptors, *user* addresses (the front-end's
//! virtual ones) in vhost-user messages, *host* addresses in [`Span`]s: ours. All lengths in bytes.
//!
//! Invariant: a [`GuestMemory`] never changes. Memory comes and goes by making another one that
//! shares the regions; the last holder unmaps. A `Span` is good as long as its holder keeps the
//! `GuestMemory` it came from.

use std::os::fd::AsFd;
use std::sync::Arc;

use sealblk_block::Span;

use crate::mapping::{MapError, Mapping, Window};

/// Regions cannot be mapped or don't fit together.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The region's file can't be mapped as the front-end says.
    #[error("guest memory at {guest_addr:#x}, {size_bytes} bytes: cannot map its file: {reason}")]
    Map {
        /// Guest address of the region.
        guest_addr: u64,
        /// Its size.
        size_bytes: u64,
        /// What is wrong with the file.
        reason: String,
    },
    /// The region's end is no address.
    #[error("guest memory at {guest_addr:#x}/{user_addr:#x}: {size_bytes} bytes overflow")]
    Overflow {
        /// Guest address of the region.
        guest_addr: u64,
        /// Front-end address of the region.
        user_addr: u64,
        /// Its size.
        size_bytes: u64,
    },
    /// Two regions share addresses.
    #[error("guest memory regions at guest addresses {0:#x} and {1:#x} overlap")]
    Overlap(u64, u64),
    /// More regions than [`GuestMemory::REGIONS_MAX`].
    #[error("{0} guest memory regions, at most {max} are possible", max = GuestMemory::REGIONS_MAX)]
    TooMany(usize),
    /// A region to remove that isn't there.
    #[error("no guest memory region at {guest_addr:#x} with {size_bytes} bytes to remove")]
    NoSuchRegion {
        /// Guest address asked for.
        guest_addr: u64,
        /// Size asked for.
        size_bytes: u64,
    },
}

/// An address range that isn't all guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at guest address {gpa:#x} are not all guest memory")]
pub struct OutsideMemory {
    /// Start of the range.
    pub gpa: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// One contiguous piece of guest memory, mapped here.
#[derive(Debug)]
pub struct Region {
    guest_addr: u64,
    user_addr: u64,
    mapping: Arc<Mapping>,
}

impl Region {
    /// Maps `size_bytes` of `file` from `mmap_offset`: what `SET_MEM_TABLE` and `ADD_MEM_REG` give.
    ///
    /// Refused: empty or overflowing ranges, and a file that ends before the region does (touching
    /// it there would kill us).
    pub fn map(
        file: impl AsFd,
        guest_addr: u64,
        user_addr: u64,
        size_bytes: u64,
        mmap_offset: u64,
    ) -> Result<Arc<Self>, MemoryError> {
        let mapping = Mapping::file(file, mmap_offset, size_bytes);
        Self::new(guest_addr, user_addr, size_bytes, mapping)
    }

    /// Zeroed memory of our own whose user address equals its guest address: for tests, fuzzing and
    /// benchmarks.
    pub fn anonymous(guest_addr: u64, size_bytes: u64) -> Result<Arc<Self>, MemoryError> {
        Self::new(guest_addr, guest_addr, size_bytes, Mapping::anonymous(size_bytes))
    }

    fn new(
        guest_addr: u64,
        user_addr: u64,
        size_bytes: u64,
        mapping: Result<Mapping, MapError>,
    ) -> Result<Arc<Self>, MemoryError> {
        let reason = |error: MapError| error.to_string();
        let mapping = mapping.map_err(|error| MemoryError::Map {
            guest_addr,
            size_bytes,
            reason: reason(error),
        })?;
        if guest_addr.checked_add(size_bytes).is_none()
            || user_addr.checked_add(size_bytes).is_none()
        {
            return Err(MemoryError::Overflow { guest_addr, user_addr, size_bytes });
        }
        Ok(Arc::new(Self { guest_addr, user_addr, mapping: Arc::new(mapping) }))
    }

    /// Guest address of the first byte.
    pub fn guest_addr(&self) -> u64 {
        self.guest_addr
    }

    /// The front-end's address of the first byte.
    pub fn user_addr(&self) -> u64 {
        self.user_addr
    }

    /// Length in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.mapping.len() as u64
    }

    #[inline]
    fn guest_end(&self) -> u64 {
        self.guest_addr + self.mapping.len() as u64
    }

    /// Bytes from the region's start to the span's, if the span lies in the region.
    #[inline]
    fn offset_of(&self, span: Span) -> Option<usize> {
        let offset = span.addr.checked_sub(self.mapping.addr())?;
        (offset <= self.mapping.len() && span.len <= self.mapping.len() - offset).then_some(offset)
    }
}

/// All of a guest's memory at one time.
#[derive(Debug, Default)]
pub struct GuestMemory {
    /// Sorted by guest address, disjoint.
    regions: Vec<Arc<Region>>,
}

impl GuestMemory {
    /// As many as QEMU's KVM has slots for (`hw/virtio/vhost-user.c`, x86).
    pub const REGIONS_MAX: usize = 509;

    /// A memory of these regions, in any order. They must share neither guest nor user addresses.
    pub fn new(mut regions: Vec<Arc<Region>>) -> Result<Self, MemoryError> {
        if regions.len() > Self::REGIONS_MAX {
            return Err(MemoryError::TooMany(regions.len()));
        }
        let overlap = |sorted: &[Arc<Region>], start: fn(&Region) -> u64| {
            sorted.windows(2).find_map(|pair| match pair {
                [low, high] if start(low) + low.size_bytes() > start(high) => {
                    Some(MemoryError::Overlap(low.guest_addr, high.guest_addr))
                }
                _ => None,
            })
        };
        regions.sort_by_key(|region| region.user_addr);
        if let Some(error) = overlap(&regions, Region::user_addr) {
            return Err(error);
        }
        regions.sort_by_key(|region| region.guest_addr);
        match overlap(&regions, Region::guest_addr) {
            Some(error) => Err(error),
            None => Ok(Self { regions }),
        }
    }

    /// This memory and one more region (`ADD_MEM_REG`).
    pub fn with_added(&self, region: Arc<Region>) -> Result<Self, MemoryError> {
        let mut regions = self.regions.clone();
        regions.push(region);
        Self::new(regions)
    }

    /// This memory without the region that has exactly these addresses and this size
    /// (`REM_MEM_REG`).
    pub fn without(
        &self,
        guest_addr: u64,
        user_addr: u64,
        size_bytes: u64,
    ) -> Result<Self, MemoryError> {
        let is_it = |region: &Arc<Region>| {
            region.guest_addr == guest_addr
                && region.user_addr == user_addr
                && region.size_bytes() == size_bytes
        };
        if !self.regions.iter().any(is_it) {
            return Err(MemoryError::NoSuchRegion { guest_addr, size_bytes });
        }
        Ok(Self { regions: self.regions.iter().filter(|r| !is_it(r)).cloned().collect() })
    }

    /// The regions by guest address.
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// Index of the region that holds `gpa`.
    #[inline]
    fn find(&self, gpa: u64) -> Option<usize> {
        let above = self.regions.partition_point(|region| region.guest_addr <= gpa);
        let index = above.checked_sub(1)?;
        (gpa < self.regions.get(index)?.guest_end()).then_some(index)
    }

    /// Gives `each` the host memory of `[gpa, gpa + len)` in order, cut where regions meet. Nothing
    /// for an empty range. On an error some spans may have been given already.
    #[inline]
    pub fn each_span(
        &self,
        gpa: u64,
        len: u64,
        mut each: impl FnMut(Span),
    ) -> Result<(), OutsideMemory> {
        if len == 0 {
            return Ok(());
        }
        let outside = OutsideMemory { gpa, len };
        let end = gpa.checked_add(len).ok_or(outside)?;
        let first = self.find(gpa).ok_or(outside)?;
        let mut at = gpa;
        for region in self.regions.get(first..).unwrap_or_default() {
            if at < region.guest_addr {
                break;
            }
            let part = end.min(region.guest_end()) - at;
            let (Ok(offset), Ok(part_len)) =
                (usize::try_from(at - region.guest_addr), usize::try_from(part))
            else {
                break;
            };
            each(Span { addr: region.mapping.addr() + offset, len: part_len });
            at += part;
            if at == end {
                return Ok(());
            }
        }
        Err(outside)
    }

    /// Appends the host memory of `[gpa, gpa + len)` to `out`; on an error `out` is as before.
    #[inline]
    pub fn spans(&self, gpa: u64, len: u64, out: &mut Vec<Span>) -> Result<(), OutsideMemory> {
        let before = out.len();
        self.each_span(gpa, len, |span| out.push(span)).inspect_err(|_| out.truncate(before))
    }

    /// The host memory of the front-end's `[user_addr, user_addr + len)`, if one region holds it.
    pub fn from_user(&self, user_addr: u64, len: u64) -> Option<Span> {
        let (region, offset) = self.locate_user(user_addr, len)?;
        Some(Span { addr: region.mapping.addr() + offset, len: usize::try_from(len).ok()? })
    }

    fn locate_user(&self, user_addr: u64, len: u64) -> Option<(&Region, usize)> {
        self.regions.iter().find_map(|region| {
            let offset = user_addr.checked_sub(region.user_addr)?;
            let inside = offset.checked_add(len).is_some_and(|end| end <= region.size_bytes());
            if inside { Some((region.as_ref(), usize::try_from(offset).ok()?)) } else { None }
        })
    }

    /// The same as numbers to read and write, aligned to `align`; keeps the region mapped.
    pub(crate) fn window_user(&self, user_addr: u64, len: usize, align: usize) -> Option<Window> {
        let (region, offset) = self.locate_user(user_addr, len as u64)?;
        Window::new(&region.mapping, offset, len, align)
    }

    /// A window by guest address, in one region.
    pub(crate) fn window(&self, gpa: u64, len: usize, align: usize) -> Option<Window> {
        let region = self.regions.get(self.find(gpa)?)?;
        let offset = usize::try_from(gpa - region.guest_addr).ok()?;
        Window::new(&region.mapping, offset, len, align)
    }

    /// Copies `out.len()` bytes out of a span of this memory, reading each once. False: the span is
    /// shorter, or not this memory's.
    #[inline]
    #[must_use]
    pub fn read_span(&self, span: Span, out: &mut [u8]) -> bool {
        out.len() <= span.len
            && self.regions.iter().any(|region| {
                region.offset_of(span).is_some_and(|offset| region.mapping.read(offset, out))
            })
    }

    /// Copies `bytes` to the start of a span of this memory. False: the span is shorter, or not
    /// this memory's.
    #[inline]
    #[must_use]
    pub fn write_span(&self, span: Span, bytes: &[u8]) -> bool {
        bytes.len() <= span.len
            && self.regions.iter().any(|region| {
                region.offset_of(span).is_some_and(|offset| region.mapping.write(offset, bytes))
            })
    }

    /// Copies out what lies at `gpa`, reading each byte once.
    #[inline]
    pub fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), OutsideMemory> {
        let outside = OutsideMemory { gpa, len: out.len() as u64 };
        let mut done = 0;
        let mut copied = true;
        self.each_span(gpa, out.len() as u64, |span| {
            let part = out.get_mut(done..done + span.len).unwrap_or_default();
            copied &= self.read_span(span, part);
            done += span.len;
        })?;
        if copied { Ok(()) } else { Err(outside) }
    }

    /// Copies `bytes` to `gpa`. On an error part of it may have been written.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), OutsideMemory> {
        let outside = OutsideMemory { gpa, len: bytes.len() as u64 };
        let mut done = 0;
        let mut copied = true;
        self.each_span(gpa, bytes.len() as u64, |span| {
            copied &= self.write_span(span, bytes.get(done..done + span.len).unwrap_or_default());
            done += span.len;
        })?;
        if copied { Ok(()) } else { Err(outside) }
    }
}

#[cfg(test)]
mod tests;
