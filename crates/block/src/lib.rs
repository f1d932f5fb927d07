//! The words every crate shares: extents, operations, status, geometry, errors.
//!
//! Contract: addresses and lengths on the guest's side are in 512-byte *sectors* (virtio's unit,
//! virtio 1.2 section 5.2.6); a name that ends in `_bytes` is in bytes. Everything here is plain
//! data: no I/O, no `unsafe`, no dependency on another crate of the workspace.

mod error;
mod extent;
mod span;

pub use error::{ErrorKind, VolumeError, in_one_line};
pub use extent::{Extent, SECTOR_BYTES, sectors_of};
pub use span::Span;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Volume to guest.
    Read,
    /// Guest to volume.
    Write,
    /// Everything acknowledged before is durable when this completes.
    Flush,
    /// The range's content is no longer needed; what it reads as afterwards is unspecified.
    Discard,
    /// The range reads as zeroes afterwards; `unmap` allows the volume to free it.
    WriteZeroes {
        /// The guest allows the range to be deallocated.
        unmap: bool,
    },
    /// The disk's serial, 20 bytes.
    GetId,
}

/// How a request ended, as the guest sees it (the status byte of virtio 1.2 section 5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// `VIRTIO_BLK_S_OK`
    Ok = 0,
    /// `VIRTIO_BLK_S_IOERR`
    IoErr = 1,
    /// `VIRTIO_BLK_S_UNSUPP`
    Unsupported = 2,
}

/// What a volume is, fixed while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the whole volume (header included) in bytes.
    pub size_bytes: u64,
    /// Smallest unit of I/O, in bytes: offsets, lengths and (for local volumes) memory addresses
    /// are multiples of it. A power of two, at least 512.
    pub block_bytes: u32,
    /// The unit that the storage prefers, in bytes; at least `block_bytes`.
    pub physical_block_bytes: u32,
    /// What a power cut leaves whole: an aligned write of this size is on the storage altogether or
    /// not at all. At least `block_bytes`, and that where nobody promises more.
    pub atomic_write_bytes: u32,
    /// Whether [`Op::Discard`] is understood.
    pub discard: bool,
    /// Opened without the right to write.
    pub read_only: bool,
}
