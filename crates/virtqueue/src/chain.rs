//! Descriptor chains: from a head descriptor to the pieces of host memory it stands for.
//!
//! Contract: any table content ends in bounded time (each descriptor counts against a limit) and
//! yields only spans inside guest memory. Each descriptor is read once. Fresh and replayed heads
//! take this same path.
//!
//! A chain whose *links* are broken is a [`ChainError`]: where its status byte would be is unknown.
//! A chain with sound links but a bad buffer (an address outside memory, readable after writable)
//! is delivered as [`Chain::is_faulty`], so that its status byte can still be written.

use std::sync::Arc;

use sealblk_block::Span;

use crate::GuestMemory;
use crate::mapping::Window;

/// `VIRTQ_DESC_F_NEXT` (virtio 1.2 section 2.7.5).
const F_NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`: the device writes it.
const F_WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`
const F_INDIRECT: u16 = 4;

/// Bytes of `struct virtq_desc`.
pub(crate) const DESC_BYTES: usize = 16;

/// Pieces of memory in a chain: a descriptor can be cut by every region's end, and buffers must not
/// grow by a guest's whim.
const SPANS_MAX: usize = 4096;

/// A chain whose links make no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Links to a descriptor that isn't there.
    #[error("descriptor {index} of a table of {len}")]
    Index {
        /// The index.
        index: u16,
        /// Descriptors in the table.
        len: u32,
    },
    /// More descriptors than allowed: a loop, or a driver that ignores the queue's size.
    #[error("more than {limit} descriptors: a loop?")]
    TooLong {
        /// Descriptors allowed.
        limit: u32,
    },
    /// An indirect table that isn't allowed here: not negotiated, in an indirect table, or with a
    /// descriptor after it.
    #[error("an indirect descriptor where none may be")]
    Indirect,
    /// An indirect table of no or a broken number of descriptors.
    #[error("an indirect table of {bytes} bytes")]
    TableBytes {
        /// Its length.
        bytes: u32,
    },
    /// An indirect table outside guest memory.
    #[error("an indirect table outside guest memory, at {gpa:#x}")]
    TableAddress {
        /// Its guest address.
        gpa: u64,
    },
}

/// What a chain may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Descriptors in a chain, those of an indirect table included.
    pub descriptors_max: u32,
    /// `VIRTIO_F_RING_INDIRECT_DESC` was negotiated.
    pub indirect: bool,
}

/// A queue's descriptor table.
#[derive(Debug, Clone)]
pub struct DescTable {
    window: Window,
    size: u16,
}

impl DescTable {
    /// The table of `size` descriptors at guest address `gpa`, a multiple of 16 inside one region.
    pub fn new(memory: &Arc<GuestMemory>, gpa: u64, size: u16) -> Option<Self> {
        let bytes = usize::from(size) * DESC_BYTES;
        Some(Self::from_window(memory.window(gpa, bytes, DESC_BYTES)?, size))
    }

    pub(crate) fn from_window(window: Window, size: u16) -> Self {
        Self { window, size }
    }

    #[inline]
    fn get(&self, index: u16) -> Result<Descriptor, ChainError> {
        if index >= self.size {
            return Err(ChainError::Index { index, len: u32::from(self.size) });
        }
        let at = usize::from(index) * DESC_BYTES;
        Ok(Descriptor::new(self.window.load_u64(at), self.window.load_u64(at + 8)))
    }
}

#[derive(Debug, Clone, Copy)]
struct Descriptor {
    gpa: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    /// From the descriptor's two little-endian words.
    #[inline]
    fn new(gpa: u64, rest: u64) -> Self {
        Self { gpa, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }

    #[inline]
    fn next(&self) -> Option<u16> {
        (self.flags & F_NEXT != 0).then_some(self.next)
    }
}

/// A chain's memory: what the device reads, then what it writes. A buffer to use again and again:
/// once it has grown to the longest chain nothing is allocated.
///
/// The spans are good as long as the memory they were resolved in is held.
#[derive(Debug, Default, Clone)]
pub struct Chain {
    /// Readable spans, then writable ones; none is empty.
    spans: Vec<Span>,
    /// First span that was not taken from the front.
    start: usize,
    /// First writable span.
    split: usize,
    readable_bytes: u64,
    writable_bytes: u64,
    descriptors: u32,
    largest_bytes: u32,
    /// Guest address of the very last writable byte.
    last_writable: Option<u64>,
    faulty: bool,
}

impl Chain {
    /// With room for `spans` pieces of memory.
    pub fn with_capacity(spans: usize) -> Self {
        Self { spans: Vec::with_capacity(spans), ..Self::default() }
    }

    /// What the device reads.
    #[inline]
    pub fn readable(&self) -> &[Span] {
        self.spans.get(self.start..self.split).unwrap_or_default()
    }

    /// What the device writes.
    #[inline]
    pub fn writable(&self) -> &[Span] {
        self.spans.get(self.split..).unwrap_or_default()
    }

    /// Length of [`Chain::readable`].
    pub fn readable_bytes(&self) -> u64 {
        self.readable_bytes
    }

    /// Length of [`Chain::writable`].
    pub fn writable_bytes(&self) -> u64 {
        self.writable_bytes
    }

    /// Descriptors with a length, indirect ones included.
    pub fn descriptors(&self) -> u32 {
        self.descriptors
    }

    /// Length of the largest descriptor.
    pub fn largest_bytes(&self) -> u32 {
        self.largest_bytes
    }

    /// Some buffer is not where or what a buffer can be: the spans are not the whole chain.
    pub fn is_faulty(&self) -> bool {
        self.faulty
    }

    fn clear(&mut self) {
        let mut spans = std::mem::take(&mut self.spans);
        spans.clear();
        *self = Self { spans, ..Self::default() };
    }

    /// Copies the first readable bytes out and takes them off the chain. False: there are fewer;
    /// the chain is then of no use.
    #[inline]
    #[must_use]
    pub(crate) fn take_front(&mut self, memory: &GuestMemory, out: &mut [u8]) -> bool {
        let mut done = 0;
        while let Some(left) = out.get_mut(done..).filter(|left| !left.is_empty()) {
            let Some(span) = self.spans.get_mut(self.start..self.split).and_then(<[_]>::first_mut)
            else {
                return false;
            };
            let part = span.len.min(left.len());
            let Some(to) = left.get_mut(..part) else { return false };
            if !memory.read_span(*span, to) {
                return false;
            }
            *span = span.slice(part, usize::MAX);
            if span.len == 0 {
                self.start += 1;
            }
            self.readable_bytes -= part as u64;
            done += part;
        }
        true
    }

    /// Takes the last writable byte off the chain: where the status goes. None: the device may
    /// write nothing, or that byte is outside memory.
    #[inline]
    pub(crate) fn take_status(&mut self, memory: &GuestMemory) -> Option<Span> {
        if self.faulty {
            let mut status = None;
            memory.each_span(self.last_writable?, 1, |span| status = Some(span)).ok()?;
            return status;
        }
        let last = self.spans.get_mut(self.split..)?.last_mut()?;
        let rest = last.len - 1;
        let status = last.slice(rest, 1);
        *last = last.slice(0, rest);
        if rest == 0 {
            self.spans.pop();
        }
        self.writable_bytes -= 1;
        Some(status)
    }

    #[inline]
    fn push(&mut self, memory: &GuestMemory, desc: &Descriptor) {
        let len = u64::from(desc.len);
        // Nothing to read or write: tolerated, as other devices do.
        if len == 0 {
            return;
        }
        self.descriptors += 1;
        self.largest_bytes = self.largest_bytes.max(desc.len);
        if desc.flags & F_WRITE != 0 {
            self.writable_bytes += len;
            self.last_writable = desc.gpa.checked_add(len - 1);
        } else {
            // "The driver MUST place any device-writable descriptor elements after any
            // device-readable ones" (virtio 1.2 section 2.7.4.2).
            self.faulty |= self.writable_bytes > 0;
            self.readable_bytes += len;
        }
        self.faulty = self.faulty
            || memory.spans(desc.gpa, len, &mut self.spans).is_err()
            || self.spans.len() > SPANS_MAX;
        if desc.flags & F_WRITE == 0 {
            self.split = self.spans.len();
        }
    }
}

/// Collects the chain that starts at descriptor `head` of `table` into `out`, whatever it held.
pub fn walk(
    memory: &GuestMemory,
    table: &DescTable,
    head: u16,
    limits: Limits,
    out: &mut Chain,
) -> Result<(), ChainError> {
    out.clear();
    let mut index = head;
    let mut count = 0;
    loop {
        count_one(&mut count, limits.descriptors_max.min(u32::from(table.size)))?;
        let desc = table.get(index)?;
        if desc.flags & F_INDIRECT != 0 {
            if !limits.indirect || desc.flags & F_NEXT != 0 {
                return Err(ChainError::Indirect);
            }
            return walk_indirect(memory, &desc, count, limits, out);
        }
        out.push(memory, &desc);
        match desc.next() {
            Some(next) => index = next,
            None => return Ok(()),
        }
    }
}

fn walk_indirect(
    memory: &GuestMemory,
    indirect: &Descriptor,
    mut count: u32,
    limits: Limits,
    out: &mut Chain,
) -> Result<(), ChainError> {
    let bytes = indirect.len;
    if bytes == 0 || !bytes.is_multiple_of(DESC_BYTES as u32) {
        return Err(ChainError::TableBytes { bytes });
    }
    let len = bytes / DESC_BYTES as u32;
    let outside = ChainError::TableAddress { gpa: indirect.gpa };
    // The table may cross regions, so its descriptors are found by guest address; nearly always one
    // span holds them all.
    indirect.gpa.checked_add(u64::from(bytes)).ok_or(outside)?;
    let mut whole = None;
    memory
        .each_span(indirect.gpa, u64::from(bytes), |span| whole = whole.or(Some(span)))
        .map_err(|_| outside)?;
    let first = whole.ok_or(outside)?;
    let mut index = 0u16;
    let mut entries = 0;
    loop {
        count_one(&mut count, limits.descriptors_max)?;
        // A loop inside the table, however large the limit.
        count_one(&mut entries, len)?;
        if u32::from(index) >= len {
            return Err(ChainError::Index { index, len });
        }
        let mut raw = [0; DESC_BYTES];
        let at = usize::from(index) * DESC_BYTES;
        let read = if at + DESC_BYTES <= first.len {
            memory.read_span(first.slice(at, DESC_BYTES), &mut raw)
        } else {
            memory.read(indirect.gpa + at as u64, &mut raw).is_ok()
        };
        if !read {
            return Err(outside);
        }
        let words = u128::from_le_bytes(raw);
        let desc = Descriptor::new(words as u64, (words >> 64) as u64);
        if desc.flags & F_INDIRECT != 0 {
            return Err(ChainError::Indirect);
        }
        out.push(memory, &desc);
        match desc.next() {
            Some(next) => index = next,
            None => return Ok(()),
        }
    }
}

#[inline]
fn count_one(count: &mut u32, limit: u32) -> Result<(), ChainError> {
    if *count >= limit {
        return Err(ChainError::TooLong { limit });
    }
    *count += 1;
    Ok(())
}

#[cfg(test)]
mod tests;
