//! One thread's data handle.
// UNSAFETY: an I/O names memory by address, because it may be a guest's.
#![expect(unsafe_code, reason = "the submit contract is about raw memory")]

use sealblk_ring::{Full, Ring};

/// The memory of a read or write.
#[derive(Debug, Clone, Copy)]
pub enum Buffer {
    /// One piece; `registered` if it lies in the ring's registered buffer of that index.
    Flat {
        /// Start.
        addr: *mut u8,
        /// Length in bytes.
        len_bytes: u32,
        /// Index of the registered buffer that contains it.
        registered: Option<u16>,
    },
    /// Several pieces.
    Vectored {
        /// First `iovec`.
        iovecs: *const libc::iovec,
        /// How many.
        count: u32,
        /// Sum of their lengths in bytes.
        len_bytes: u32,
    },
}

impl Buffer {
    /// Length in bytes.
    pub fn len_bytes(&self) -> u32 {
        match *self {
            Self::Flat { len_bytes, .. } | Self::Vectored { len_bytes, .. } => len_bytes,
        }
    }
}

/// What to do on the volume. Offsets and lengths are bytes, multiples of the volume's block.
#[derive(Debug, Clone, Copy)]
pub enum LaneOp {
    /// Volume to memory.
    Read {
        /// From where.
        offset_bytes: u64,
        /// To where.
        buffer: Buffer,
    },
    /// Memory to volume.
    Write {
        /// To where.
        offset_bytes: u64,
        /// From where.
        buffer: Buffer,
        /// Durable when it completes, as with `RWF_DSYNC`.
        durable: bool,
    },
    /// Makes every write durable that completed before this was submitted.
    Flush,
    /// The range isn't needed any more.
    Discard {
        /// From where.
        offset_bytes: u64,
        /// How much.
        len_bytes: u64,
    },
}

/// An I/O on its way.
#[derive(Debug, Clone, Copy)]
pub struct LaneIo {
    /// The caller's name for it; unique among those in flight on the lane.
    pub id: u32,
    /// What to do.
    pub op: LaneOp,
}

/// An I/O that came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneDone {
    /// As submitted.
    pub id: u32,
    /// Bytes moved (0 for flush and discard), possibly fewer than asked for; or a positive errno.
    pub result: Result<u32, i32>,
}

/// One thread's data handle; owned by exactly one thread, tied to that thread's ring.
pub trait Lane {
    /// Starts an I/O. It comes back exactly once, through [`Self::complete`]; [`Full`] means that
    /// it never started: reap, and try again.
    ///
    /// # Safety
    /// The memory that the I/O names stays mapped until it has come back.
    unsafe fn submit(&mut self, ring: &mut Ring, io: LaneIo) -> Result<(), Full>;

    /// Gets on its way what was submitted. Whoever submits calls it before the ring is entered: a
    /// driver that speaks over a socket sends a whole turn's I/O at once.
    fn push_out(&mut self, _ring: &mut Ring) {}

    /// Takes a completion that the ring gave for `Token::Lane(token)`; finished I/Os go to `done`.
    fn complete(&mut self, ring: &mut Ring, token: u64, result: i32, done: &mut Vec<LaneDone>);

    /// Takes the lane's files out of the ring, which otherwise holds them (and the claim on the
    /// volume) until some time after it is closed. Nothing is in flight any more.
    fn close(&mut self, ring: &mut Ring);
}
