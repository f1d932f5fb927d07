//! The ring's file table: files by index, so that the kernel takes no reference per request.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// A file that a ring knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSlot {
    /// By index in the ring's table.
    Fixed(u32),
    /// By descriptor: this kernel (or a full table) gave no index.
    Raw(RawFd),
}

/// Entries in the table: volume, kick and control of a queue, with room for several volumes.
pub(crate) const TABLE_LEN: u32 = 16;

/// Which indices are taken. Bit set: free.
#[derive(Debug)]
pub(crate) struct FileTable {
    free: u32,
}

impl FileTable {
    /// A table whose every entry is free, or with none where the kernel has no sparse table.
    pub(crate) fn new(registered: bool) -> Self {
        Self { free: if registered { (1 << TABLE_LEN) - 1 } else { 0 } }
    }

    pub(crate) fn add(&mut self, uring: &io_uring::IoUring, fd: BorrowedFd<'_>) -> FileSlot {
        let raw = fd.as_raw_fd();
        if self.free == 0 {
            return FileSlot::Raw(raw);
        }
        let index = self.free.trailing_zeros();
        match uring.submitter().register_files_update(index, &[raw]) {
            Ok(_) => {
                self.free &= !(1 << index);
                FileSlot::Fixed(index)
            }
            Err(_) => FileSlot::Raw(raw),
        }
    }

    pub(crate) fn remove(&mut self, uring: &io_uring::IoUring, slot: FileSlot) {
        if let FileSlot::Fixed(index) = slot {
            // -1 empties the entry (io_uring_register(2)). Failing leaves a reference to the file
            // until the ring closes, and an entry that isn't used again: harmless.
            if uring.submitter().register_files_update(index, &[-1]).is_ok() {
                self.free |= 1 << index;
            }
        }
    }
}

/// Applies an opcode's constructor to a slot: the crate's `Fd` and `Fixed` are different types.
#[macro_export]
macro_rules! on_file {
    ($slot:expr, |$file:ident| $entry:expr) => {
        match $slot {
            $crate::FileSlot::Fixed(index) => {
                let $file = $crate::types::Fixed(index);
                $entry
            }
            $crate::FileSlot::Raw(fd) => {
                let $file = $crate::types::Fd(fd);
                $entry
            }
        }
    };
}
