//! The cipher is the copy: between a guest's scattered memory and a contiguous bounce buffer.
//!
//! Guest buffers may cut an encryption sector anywhere. Runs of whole sectors go through the cipher
//! directly; a sector that lies in several spans is gathered in (or scattered from) a scratch, so
//! that a bounce buffer never holds plaintext on the way out.
// UNSAFETY: spans are addresses that the caller vouches for; a cursor hands out each byte of them
// once, in order, never past a span's end.
#![expect(unsafe_code, reason = "reads and writes guest memory")]

use std::mem::MaybeUninit;

use sealblk_block::Span;

use crate::{SECTOR_BYTES_MAX, SectorCipher, iv_step};

/// Encrypts what `src` holds into `dst` (a write: guest to bounce buffer). `iv` as in
/// [`SectorCipher::encrypt`].
///
/// # Safety
/// Every span is mapped and readable, `dst` is writable for `len` bytes, no span overlaps it, and
/// no reference to any of this memory is live.
///
/// # Panics
/// If `len` isn't the spans' total or no whole number of encryption sectors.
pub unsafe fn seal(cipher: &mut dyn SectorCipher, iv: u64, src: &[Span], dst: *mut u8, len: usize) {
    let encrypt = |iv, guest: *mut u8, done: usize, bytes, cipher: &mut dyn SectorCipher| {
        // SAFETY: `walk` passes guest memory (or its scratch) of `bytes` bytes and an offset with
        // `done + bytes <= len`; the caller vouches for both sides.
        unsafe { cipher.encrypt(iv, guest, dst.add(done), bytes) };
    };
    // SAFETY: passed on from the caller; the spans are only read from.
    unsafe { walk(cipher, iv, src, len, Flow::FromSpans, encrypt) };
}

/// Decrypts `src` into what `dst` names (a read: bounce buffer to guest). `iv` as in
/// [`SectorCipher::encrypt`].
///
/// # Safety
/// `src` is readable for `len` bytes, every span is mapped and writable, no span overlaps `src`,
/// and no reference to any of this memory is live.
///
/// # Panics
/// If `len` isn't the spans' total or no whole number of encryption sectors.
pub unsafe fn open(
    cipher: &mut dyn SectorCipher,
    iv: u64,
    src: *const u8,
    dst: &[Span],
    len: usize,
) {
    let decrypt = |iv, guest: *mut u8, done: usize, bytes, cipher: &mut dyn SectorCipher| {
        // SAFETY: as in `seal`.
        unsafe { cipher.decrypt(iv, src.add(done), guest, bytes) };
    };
    // SAFETY: passed on from the caller.
    unsafe { walk(cipher, iv, dst, len, Flow::ToSpans, decrypt) };
}

/// Copies what `src` holds to `dst`.
///
/// # Safety
/// As for [`seal`].
///
/// # Panics
/// If `len` isn't the spans' total.
pub unsafe fn copy_in(src: &[Span], dst: *mut u8, len: usize) {
    let mut cursor = Cursor::new(src);
    // SAFETY: passed on from the caller.
    unsafe { cursor.transfer(dst, len, Flow::FromSpans) };
    cursor.assert_end();
}

/// Copies `src` to what `dst` names.
///
/// # Safety
/// As for [`open`].
///
/// # Panics
/// If `len` isn't the spans' total.
pub unsafe fn copy_out(src: *const u8, dst: &[Span], len: usize) {
    let mut cursor = Cursor::new(dst);
    // SAFETY: passed on from the caller; the flow only reads from `src`.
    unsafe { cursor.transfer(src.cast_mut(), len, Flow::ToSpans) };
    cursor.assert_end();
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    FromSpans,
    ToSpans,
}

/// Calls `transform(iv, guest memory or scratch, offset in the buffer, bytes, cipher)` for every run
/// of whole sectors, and for every sector in pieces.
///
/// # Safety
/// Every span is mapped, readable or writable as `flow` says, and no reference to it is live.
/// `transform` reads (or writes, as `flow` says) no more than the bytes it is told.
unsafe fn walk(
    cipher: &mut dyn SectorCipher,
    mut iv: u64,
    spans: &[Span],
    len: usize,
    flow: Flow,
    transform: impl Fn(u64, *mut u8, usize, usize, &mut dyn SectorCipher),
) {
    let sector_bytes = cipher.sector_bytes();
    assert!(len.is_multiple_of(sector_bytes), "{len} bytes are no whole encryption sectors");
    assert!(sector_bytes <= SECTOR_BYTES_MAX, "encryption sector beyond the scratch");
    let mut cursor = Cursor::new(spans);
    let mut done = 0;
    while done < len {
        let whole = cursor.run_bytes().min(len - done) / sector_bytes * sector_bytes;
        let bytes = if whole > 0 {
            transform(iv, cursor.take(whole), done, whole, cipher);
            whole
        } else {
            let mut scratch = MaybeUninit::<[u8; SECTOR_BYTES_MAX]>::uninit();
            let scratch = scratch.as_mut_ptr().cast::<u8>();
            if flow == Flow::FromSpans {
                // SAFETY: the scratch has room for a sector; the spans are the caller's.
                unsafe { cursor.transfer(scratch, sector_bytes, flow) };
            }
            transform(iv, scratch, done, sector_bytes, cipher);
            if flow == Flow::ToSpans {
                // SAFETY: `transform` has just written the whole sector; the spans as above.
                unsafe { cursor.transfer(scratch, sector_bytes, flow) };
            }
            sector_bytes
        };
        done += bytes;
        iv = iv.wrapping_add(iv_step(bytes));
    }
    cursor.assert_end();
}

/// A position in a list of spans.
struct Cursor<'a> {
    /// What is left; the first span has been used up to `offset`.
    spans: &'a [Span],
    offset: usize,
}

impl<'a> Cursor<'a> {
    fn new(spans: &'a [Span]) -> Self {
        Self { spans, offset: 0 }
    }

    /// Contiguous bytes from here, 0 only at the end; steps over empty spans.
    fn run_bytes(&mut self) -> usize {
        while let [first, rest @ ..] = self.spans {
            if self.offset < first.len {
                return first.len - self.offset;
            }
            (self.spans, self.offset) = (rest, 0);
        }
        0
    }

    /// The next `bytes` bytes, no more than [`Self::run_bytes`] has just said.
    fn take(&mut self, bytes: usize) -> *mut u8 {
        let Some(first) = self.spans.first() else {
            unreachable!("spans are shorter than the request")
        };
        let piece = first.slice(self.offset, bytes);
        assert!(piece.len == bytes, "spans are shorter than the request");
        self.offset += bytes;
        piece.as_mut_ptr()
    }

    /// Copies the next `len` bytes between the spans and `buffer`.
    ///
    /// # Safety
    /// The spans are mapped, `buffer` has `len` bytes and overlaps none of them; each side is
    /// readable or writable as `flow` says, and no reference to it is live.
    unsafe fn transfer(&mut self, buffer: *mut u8, len: usize, flow: Flow) {
        let mut done = 0;
        while done < len {
            let bytes = self.run_bytes().min(len - done);
            assert!(bytes > 0, "spans are shorter than the request");
            let guest = self.take(bytes);
            // SAFETY: `done + bytes <= len`, and `guest` has `bytes` bytes in one span. A guest
            // that writes meanwhile changes data only.
            unsafe {
                let buffer = buffer.add(done);
                match flow {
                    Flow::FromSpans => buffer.copy_from_nonoverlapping(guest, bytes),
                    Flow::ToSpans => buffer.copy_to_nonoverlapping(guest, bytes),
                }
            }
            done += bytes;
        }
    }

    fn assert_end(&mut self) {
        assert!(self.run_bytes() == 0, "spans are longer than the request");
    }
}

#[cfg(test)]
mod tests;
