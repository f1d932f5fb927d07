//! Memory whose address suits O_DIRECT.
// UNSAFETY: maps anonymous memory and hands it out as a slice.
#![expect(unsafe_code, reason = "anonymous mapping")]

use std::io;
use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// The processor's large page in bytes (x86-64, and arm64 with pages of 4 KiB).
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Page-aligned, zeroed memory.
#[derive(Debug)]
pub struct AlignedBuf {
    addr: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone; a plain byte buffer may move between threads.
unsafe impl Send for AlignedBuf {}

// SAFETY: through a shared reference the bytes are only read.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// `len` zeroed bytes (at least 1). Pages become resident when they are touched.
    pub fn new(len: usize) -> io::Result<Self> {
        let len = len.max(1);
        // SAFETY: a fresh private anonymous mapping; no existing memory is affected.
        let addr = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        if len >= HUGE_PAGE_BYTES {
            // One page fault instead of 512 when a ring registers the buffer, and one piece for the
            // kernel where a large I/O would have 64. Without huge pages it works as well.
            // SAFETY: the mapping just made; the advice changes no content.
            let _ = unsafe { madvise(addr, len, Advice::LinuxHugepage) };
        }
        let addr = NonNull::new(addr.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { addr, len })
    }

    /// Start of the memory.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.addr.as_ptr()
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: there is at least one byte.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: mapped for `len` bytes, initialised (zeroed by the kernel), borrowed from self.
        unsafe { std::slice::from_raw_parts(self.addr.as_ptr(), self.len) }
    }

    /// The bytes, to write.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.addr.as_ptr(), self.len) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `new`; nobody can reach it any more. It can only
        // fail for arguments that `new` would have refused.
        let _ = unsafe { munmap(self.addr.as_ptr().cast(), self.len) };
    }
}
