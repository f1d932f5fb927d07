//! Memory shared with another process: mapping it, and the few ways to touch it.
//!
//! Contract: every access is checked against the mapping's bounds and is atomic or volatile, so a
//! writer on the other side can change what we read but not our program's meaning. No reference to
//! the bytes ever exists.
//!
//! Invariant: a [`Window`] keeps its [`Mapping`] mapped. The file behind a mapping was at least as
//! long as the mapping when it was mapped; who shares memory with us and then shortens the file
//! kills us with SIGBUS (the front-end could as well kill its own guest).
// UNSAFETY: mmap, and loads and stores in memory that another process writes at the same time.
#![expect(unsafe_code, reason = "mmap and access to memory shared with another process")]

use std::io;
use std::os::fd::AsFd;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use rustix::fs::{fstat, fstatfs};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// `f_type` of hugetlbfs (linux/magic.h).
const HUGETLBFS_MAGIC: u32 = 0x9584_58f6;

/// Why a file's range can't be mapped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MapError {
    /// Nothing to map, or more than there are addresses.
    #[error("a length of {len_bytes} bytes at offset {offset_bytes} makes no sense")]
    Range { offset_bytes: u64, len_bytes: u64 },
    /// Touching the end of the range would be a SIGBUS.
    #[error("the file has {file_bytes} bytes, the range ends at {end_bytes}")]
    ShortFile { file_bytes: u64, end_bytes: u64 },
    /// The kernel said no.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// A shared, readable and writable mapping; unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// Start of the whole mapping, page aligned, with exposed provenance.
    map_addr: usize,
    /// Length of the whole mapping, whole pages.
    map_len: usize,
    /// Address of the first byte asked for.
    addr: usize,
    /// Number of bytes asked for.
    len: usize,
}

impl Mapping {
    /// Maps `len_bytes` of `file` from `offset_bytes`, which need not be page aligned.
    ///
    /// hugetlbfs takes only whole huge pages in munmap and as mmap's offset, so the range is widened
    /// to the file system's page size.
    pub(crate) fn file(
        file: impl AsFd,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<Self, MapError> {
        let range = MapError::Range { offset_bytes, len_bytes };
        let Some(end_bytes) = offset_bytes.checked_add(len_bytes) else { return Err(range) };
        let file_bytes = u64::try_from(fstat(&file).map_err(io::Error::from)?.st_size).unwrap_or(0);
        if end_bytes > file_bytes {
            return Err(MapError::ShortFile { file_bytes, end_bytes });
        }
        let page = page_bytes(&file)?;
        let map_offset = offset_bytes - offset_bytes % page;
        let map_len = (end_bytes - map_offset).checked_next_multiple_of(page);
        let (Some(map_len), Ok(len), Ok(lead)) = (
            map_len.and_then(|len| usize::try_from(len).ok()),
            usize::try_from(len_bytes),
            usize::try_from(offset_bytes - map_offset),
        ) else {
            return Err(range);
        };
        if len == 0 || isize::try_from(map_len).is_err() {
            return Err(range);
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // NORESERVE: the front-end has reserved its huge pages already.
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses replaces nothing.
        let start =
            unsafe { mmap(ptr::null_mut(), map_len, access, flags, file.as_fd(), map_offset) }
                .map_err(io::Error::from)?;
        let this = Self::new(start.expose_provenance(), map_len, lead, len);
        // Core dumps must not hold what the guest works on. Best effort: the process isn't
        // dumpable anyway.
        // SAFETY: the range is the mapping just made; DONTDUMP changes no content.
        let _ = unsafe { madvise(start, map_len, Advice::LinuxDontDump) };
        Ok(this)
    }

    /// Zeroed memory of our own, for tests and fuzzing.
    pub(crate) fn anonymous(len_bytes: u64) -> Result<Self, MapError> {
        let range = MapError::Range { offset_bytes: 0, len_bytes };
        let Ok(len) = usize::try_from(len_bytes) else { return Err(range) };
        let Some(map_len) = len.checked_next_multiple_of(rustix::param::page_size()) else {
            return Err(range);
        };
        if len == 0 || isize::try_from(map_len).is_err() {
            return Err(range);
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses replaces nothing.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), map_len, access, flags) }
            .map_err(io::Error::from)?;
        Ok(Self::new(start.expose_provenance(), map_len, 0, len))
    }

    fn new(map_addr: usize, map_len: usize, lead: usize, len: usize) -> Self {
        assert!(lead + len <= map_len, "a mapping shorter than what was asked for");
        Self { map_addr, map_len, addr: map_addr + lead, len }
    }

    /// Address of the first byte asked for.
    pub(crate) fn addr(&self) -> usize {
        self.addr
    }

    /// Bytes asked for.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where `[offset, offset + len)` starts, if it lies inside.
    #[inline]
    fn locate(&self, offset: usize, len: usize) -> Option<usize> {
        (offset <= self.len && len <= self.len - offset).then(|| self.addr + offset)
    }

    /// Copies out what lies at `offset`, reading each byte once. False: not all of it is inside.
    #[inline]
    #[must_use]
    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) -> bool {
        let Some(addr) = self.locate(offset, out.len()) else { return false };
        if addr.is_multiple_of(8) && out.len().is_multiple_of(8) {
            for (at, word) in (addr..).step_by(8).zip(out.chunks_exact_mut(8)) {
                // SAFETY: `locate` has checked that the bytes lie in this live mapping, and the
                // address is a multiple of 8. Volatile, as others may write them.
                let value = unsafe { ptr::read_volatile(ptr::with_exposed_provenance::<u64>(at)) };
                word.copy_from_slice(&value.to_ne_bytes());
            }
        } else {
            for (at, byte) in (addr..).zip(out) {
                // SAFETY: `locate` has checked that the byte lies in this live mapping.
                *byte = unsafe { ptr::read_volatile(ptr::with_exposed_provenance::<u8>(at)) };
            }
        }
        true
    }

    /// Copies `bytes` to `offset`. False: not all of it is inside, nothing was written.
    #[inline]
    #[must_use]
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> bool {
        let Some(addr) = self.locate(offset, bytes.len()) else { return false };
        for (at, byte) in (addr..).zip(bytes) {
            // SAFETY: `locate` has checked that the byte lies in this live, writable mapping, of
            // which no reference exists.
            unsafe { ptr::write_volatile(ptr::with_exposed_provenance_mut::<u8>(at), *byte) };
        }
        true
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let start = ptr::with_exposed_provenance_mut(self.map_addr);
        // SAFETY: exactly the range that was mapped. Windows hold an Arc of this mapping, so none
        // is left; who dereferences a Span holds the GuestMemory that owns it.
        let unmapped = unsafe { munmap(start, self.map_len) };
        assert!(unmapped.is_ok(), "munmap of our own mapping failed");
    }
}

/// The unit of the file's mappings in bytes: huge pages on hugetlbfs.
fn page_bytes(file: impl AsFd) -> Result<u64, MapError> {
    let system = rustix::param::page_size() as u64;
    let fs = fstatfs(file).map_err(io::Error::from)?;
    let huge = u32::try_from(fs.f_type).is_ok_and(|magic| magic == HUGETLBFS_MAGIC);
    let page = u64::try_from(fs.f_bsize).ok().filter(|bytes| huge && bytes.is_power_of_two());
    Ok(page.map_or(system, |huge_page| huge_page.max(system)))
}

/// Part of a mapping that is read and written as little-endian numbers: a ring, a descriptor table,
/// a queue's in-flight table.
///
/// Offsets are the caller's own arithmetic: one outside, or misaligned, is a bug here and asserts.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    addr: usize,
    len: usize,
    _alive: Arc<Mapping>,
}

impl Window {
    /// The `len` bytes at `offset`, if they lie inside and start at a multiple of `align`.
    pub(crate) fn new(
        mapping: &Arc<Mapping>,
        offset: usize,
        len: usize,
        align: usize,
    ) -> Option<Self> {
        let addr = mapping.locate(offset, len).filter(|addr| addr.is_multiple_of(align))?;
        Some(Self { addr, len, _alive: Arc::clone(mapping) })
    }

    #[inline]
    fn at(&self, offset: usize, width: usize) -> usize {
        assert!(
            offset < self.len && width <= self.len - offset,
            "offset outside of the shared window"
        );
        let addr = self.addr + offset;
        assert!(addr.is_multiple_of(width), "misaligned offset in the shared window");
        addr
    }

    #[inline]
    fn u8(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: `at` has checked bounds; the window keeps the mapping alive as long as the
        // reference lives; all access to these bytes is atomic or volatile.
        unsafe { AtomicU8::from_ptr(ptr::with_exposed_provenance_mut(self.at(offset, 1))) }
    }

    #[inline]
    fn u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: as in `u8`, and `at` has checked the alignment.
        unsafe { AtomicU16::from_ptr(ptr::with_exposed_provenance_mut(self.at(offset, 2))) }
    }

    #[inline]
    fn u32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as in `u8`, and `at` has checked the alignment.
        unsafe { AtomicU32::from_ptr(ptr::with_exposed_provenance_mut(self.at(offset, 4))) }
    }

    #[inline]
    fn u64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as in `u8`, and `at` has checked the alignment.
        unsafe { AtomicU64::from_ptr(ptr::with_exposed_provenance_mut(self.at(offset, 8))) }
    }

    #[inline]
    pub(crate) fn load_u8(&self, offset: usize) -> u8 {
        self.u8(offset).load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn load_u16(&self, offset: usize, order: Ordering) -> u16 {
        u16::from_le(self.u16(offset).load(order))
    }

    #[inline]
    pub(crate) fn load_u64(&self, offset: usize) -> u64 {
        u64::from_le(self.u64(offset).load(Ordering::Relaxed))
    }

    // Stores are releases: they become visible, and survive our death, in program order.

    #[inline]
    pub(crate) fn store_u8(&self, offset: usize, value: u8) {
        self.u8(offset).store(value, Ordering::Release);
        #[cfg(test)]
        journal::record(self.addr + offset, &[value]);
    }

    #[inline]
    pub(crate) fn store_u16(&self, offset: usize, value: u16) {
        self.u16(offset).store(value.to_le(), Ordering::Release);
        #[cfg(test)]
        journal::record(self.addr + offset, &value.to_le_bytes());
    }

    #[inline]
    pub(crate) fn store_u32(&self, offset: usize, value: u32) {
        self.u32(offset).store(value.to_le(), Ordering::Release);
        #[cfg(test)]
        journal::record(self.addr + offset, &value.to_le_bytes());
    }

    #[inline]
    pub(crate) fn store_u64(&self, offset: usize, value: u64) {
        self.u64(offset).store(value.to_le(), Ordering::Release);
        #[cfg(test)]
        journal::record(self.addr + offset, &value.to_le_bytes());
    }
}

/// Every store of this thread in order, so that a test can die after any of them.
#[cfg(test)]
pub(crate) mod journal {
    use std::cell::RefCell;

    /// One store: address and bytes.
    pub(crate) type Store = (usize, Vec<u8>);

    thread_local!(static STORES: RefCell<Option<Vec<Store>>> = const { RefCell::new(None) });

    pub(super) fn record(addr: usize, bytes: &[u8]) {
        STORES.with_borrow_mut(|stores| {
            if let Some(stores) = stores {
                stores.push((addr, bytes.to_vec()));
            }
        });
    }

    /// The stores that `act` makes.
    pub(crate) fn of(act: impl FnOnce()) -> Vec<Store> {
        STORES.set(Some(Vec::new()));
        act();
        STORES.take().unwrap()
    }
}
