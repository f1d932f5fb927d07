//! The allocator over protected pages, and its process-wide instance.
//!
//! Contract: memory handed out is zero, aligned to at least [`GRANULE_BYTES`], and belongs to the
//! caller until given back; what is given back is wiped before anyone else can get it. Bookkeeping
//! lies outside the arena, so an overrun into it can't forge a block.
//! Invariant: per chunk, free ranges are sorted, disjoint, non-adjacent and all zero; free ranges
//! and live blocks together cover the chunk.
// UNSAFETY: blocks are raw memory by nature. All arithmetic is on offsets checked against a chunk;
// the only dereference is the wipe of a block that the bookkeeping says is live.
#![expect(unsafe_code, reason = "hands out and wipes raw memory")]

use std::alloc::Layout;
use std::collections::BTreeMap;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{io, ptr, slice};

use zeroize::Zeroize;

use crate::mapping::Mapping;
use crate::{Protection, SecretError};

/// Unit of allocation: a cache line, so that two secrets never share one.
const GRANULE_BYTES: usize = 64;

/// Size of the chunk that is there always, and the least that the arena grows by. Holds the key
/// schedules and passphrases of many volumes; small beside the usual 8 MiB of RLIMIT_MEMLOCK.
const CHUNK_BYTES: usize = 256 << 10;

/// Largest alignment served: the smallest page size there is.
const ALIGN_MAX_BYTES: usize = 4096;

static ARENA: Mutex<Arena> = Mutex::new(Arena::new());

fn arena() -> MutexGuard<'static, Arena> {
    // A panic inside can only be a failed assertion; in tests, others may go on with what is there.
    ARENA.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One mapping and what of it is free.
#[derive(Debug)]
struct Chunk {
    mapping: Mapping,
    /// Byte offsets.
    free: Vec<Range<usize>>,
}

impl Chunk {
    fn new(mapping: Mapping) -> Self {
        let whole = 0..mapping.len_bytes();
        Self { mapping, free: vec![whole] }
    }

    /// First fit. Both arguments are multiples of the granule.
    fn take(&mut self, size: usize, align: usize) -> Option<usize> {
        let (index, start, end) = self.free.iter().enumerate().find_map(|(index, range)| {
            let start = range.start.checked_next_multiple_of(align)?;
            let end = start.checked_add(size)?;
            (end <= range.end).then_some((index, start, end))
        })?;
        let range = self.free[index].clone();
        let rest = [range.start..start, end..range.end];
        self.free.splice(index..=index, rest.into_iter().filter(|range| !range.is_empty()));
        Some(start)
    }

    /// Takes a block back and joins it with its free neighbours.
    fn put(&mut self, mut block: Range<usize>) {
        let index = self.free.partition_point(|range| range.start < block.start);
        let mut joined = index..index;
        if let Some(next) = self.free.get(index) {
            assert!(block.end <= next.start, "secret arena: block freed twice");
            if block.end == next.start {
                block.end = next.end;
                joined.end = index + 1;
            }
        }
        if let Some(before) = index.checked_sub(1) {
            let previous = &self.free[before];
            assert!(previous.end <= block.start, "secret arena: block freed twice");
            if previous.end == block.start {
                block.start = previous.start;
                joined.start = before;
            }
        }
        self.free.splice(joined, [block]);
    }

    fn is_unused(&self) -> bool {
        self.free.first() == Some(&(0..self.mapping.len_bytes()))
    }
}

/// Chunks, live blocks, and the worst protection any chunk had.
#[derive(Debug)]
struct Arena {
    chunks: Vec<Chunk>,
    /// Address to length, both in bytes.
    live: BTreeMap<usize, usize>,
    protection: Option<Protection>,
}

impl Arena {
    const fn new() -> Self {
        Self { chunks: Vec::new(), live: BTreeMap::new(), protection: None }
    }

    fn take(&mut self, layout: Layout) -> Result<NonNull<u8>, SecretError> {
        let fail = |source: io::Error| SecretError::OutOfMemory { bytes: layout.size(), source };
        let size = layout.size().max(1).checked_next_multiple_of(GRANULE_BYTES);
        let size = size.ok_or_else(|| fail(io::ErrorKind::OutOfMemory.into()))?;
        let align = layout.align().max(GRANULE_BYTES);
        if align > ALIGN_MAX_BYTES {
            return Err(fail(io::ErrorKind::Unsupported.into()));
        }
        if self.protection.is_none() {
            self.grow(CHUNK_BYTES).map_err(fail)?;
        }
        if let Some(block) = self.take_from_chunks(size, align) {
            return Ok(block);
        }
        self.grow(size.max(CHUNK_BYTES)).map_err(fail)?;
        let block = self.take_from_chunks(size, align);
        block.ok_or_else(|| fail(io::ErrorKind::OutOfMemory.into()))
    }

    fn take_from_chunks(&mut self, size: usize, align: usize) -> Option<NonNull<u8>> {
        for chunk in &mut self.chunks {
            if let Some(offset) = chunk.take(size, align) {
                let block = NonNull::new(chunk.mapping.base().wrapping_add(offset))?;
                self.live.insert(block.addr().get(), size);
                return Some(block);
            }
        }
        None
    }

    fn grow(&mut self, bytes: usize) -> io::Result<()> {
        let (mapping, protection) = Mapping::best(bytes)?;
        self.chunks.push(Chunk::new(mapping));
        self.protection = Some(match self.protection.take() {
            Some(before) => before.weakest(protection),
            None => protection,
        });
        Ok(())
    }

    /// Wipes and frees the block that starts at `addr`; false if there is none.
    fn give_back(&mut self, addr: usize) -> bool {
        let Some(len) = self.live.remove(&addr) else { return false };
        let found =
            self.chunks.iter().enumerate().find_map(|(index, chunk)| {
                chunk.mapping.offset_of(addr).map(|offset| (index, offset))
            });
        let Some((index, offset)) = found else {
            unreachable!("secret arena: a live block lies in no chunk")
        };
        let chunk = &mut self.chunks[index];
        // SAFETY: the block was live, so its `len` bytes lie inside this chunk's pages, and its
        // owner has just given up the only access to them.
        unsafe { slice::from_raw_parts_mut(chunk.mapping.base().add(offset), len) }.zeroize();
        chunk.put(offset..offset + len);
        // The first chunk stays; others were for something big (key material of a keyslot).
        if index > 0 && chunk.is_unused() {
            self.chunks.remove(index);
        }
        true
    }
}

/// How the arena is protected. Maps its first chunk if that hasn't happened yet.
pub fn protection() -> Protection {
    let mut arena = arena();
    if arena.protection.is_none()
        && let Err(error) = arena.grow(CHUNK_BYTES)
    {
        return Protection::Unlocked(format!("no memory: {error}"));
    }
    arena.protection.clone().unwrap_or_else(|| Protection::Unlocked("no arena".to_owned()))
}

/// Zeroed memory in the arena, as an error or a block to be given to [`dealloc`].
pub(crate) fn take(layout: Layout) -> Result<NonNull<u8>, SecretError> {
    arena().take(layout)
}

/// Zeroed memory in the arena, or null. Alignments above 4096 are refused.
pub fn alloc(layout: Layout) -> *mut u8 {
    take(layout).map_or(ptr::null_mut(), NonNull::as_ptr)
}

/// Wipes and frees memory from [`alloc`].
///
/// # Safety
/// `ptr` came from [`alloc`] with the same `layout`, was not freed since, and is not used again.
pub unsafe fn dealloc(ptr: *mut u8, layout: Layout) {
    let mut arena = arena();
    let len = arena.live.get(&ptr.addr()).copied();
    assert!(
        len.is_some_and(|len| layout.size() <= len),
        "secret arena: freed what it never handed out"
    );
    arena.give_back(ptr.addr());
}

/// `malloc` for C libraries: zeroed memory in the arena, or null.
pub fn c_alloc(size_bytes: usize) -> *mut u8 {
    Layout::from_size_align(size_bytes, GRANULE_BYTES).map_or(ptr::null_mut(), alloc)
}

/// `free` for C libraries. Memory that isn't the arena's is left alone: a library may have
/// allocated it elsewhere before it was told to use the arena. Null is allowed.
///
/// # Safety
/// `ptr`, if it is the arena's, came from [`c_alloc`] or [`c_realloc`], was not freed since, and is
/// not used again.
pub unsafe fn c_free(ptr: *mut u8) {
    arena().give_back(ptr.addr());
}

/// `realloc` for C libraries. Null on failure (then `ptr` stays as it was), which includes memory
/// that isn't the arena's.
///
/// # Safety
/// As for [`c_free`], unless null is returned; `ptr` may be null.
pub unsafe fn c_realloc(ptr: *mut u8, size_bytes: usize) -> *mut u8 {
    if ptr.is_null() {
        return c_alloc(size_bytes);
    }
    let Some(old_bytes) = arena().live.get(&ptr.addr()).copied() else { return ptr::null_mut() };
    let new = c_alloc(size_bytes);
    if !new.is_null() {
        // SAFETY: the old block is live with `old_bytes`, the new one is ours alone, disjoint from
        // it and has `size_bytes`.
        unsafe { ptr::copy_nonoverlapping(ptr, new, old_bytes.min(size_bytes)) };
        // SAFETY: passed on from the caller.
        unsafe { c_free(ptr) };
    }
    new
}

#[cfg(test)]
mod tests;
