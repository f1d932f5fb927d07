//! From a chain to a request, and from a status to the guest.
//!
//! Contract: [`parse`] checks everything the guest says against the disk; what it lets through is
//! inside the capacity, in whole logical blocks, in the right direction. What it refuses has a
//! status and the used length to go with it, and harms nothing else. The header and ranges are
//! copied out of guest memory once, before they are looked at.
//!
//! `used.len` is what virtio 1.2 section 2.7.8.2 demands: the device has written *at least the
//! first* `len` bytes of the writable part. A failed read thus has 0, as its data (before the
//! status byte) may be unwritten; a write has 1, the status.

use sealblk_block::{Extent, Op, SECTOR_BYTES, Span, Status, sectors_of};

use super::config::{DiskProfile, RangeLimits, SERIAL_BYTES};
use super::{F_DISCARD, F_SEG_MAX, F_SIZE_MAX, F_WRITE_ZEROES};
use crate::{Chain, ChainError, GuestMemory};

/// `struct virtio_blk_req` up to `data`: type u32, reserved u32, sector u64 (section 5.2.6).
const HEADER_BYTES: usize = 16;
/// `struct virtio_blk_discard_write_zeroes`: sector u64, num_sectors u32, flags u32.
const RANGE_BYTES: usize = 16;
/// Its only flag, `unmap`: for write-zeroes.
const RANGE_F_UNMAP: u32 = 1;

// Request types of section 5.2.6.
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

/// Where a request's status byte goes, and how much room for data lies before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reply {
    status: Option<Span>,
    room_bytes: u64,
}

impl Reply {
    /// Writes the status; gives the used length when the first `written_bytes` of data are there.
    #[inline]
    fn finish(&self, memory: &GuestMemory, status: Status, written_bytes: u64) -> u32 {
        let told = self.status.is_some_and(|at| memory.write_span(at, &[status as u8]));
        let all = written_bytes >= self.room_bytes;
        u32::try_from(written_bytes + u64::from(told && all)).unwrap_or(u32::MAX)
    }
}

/// A request that may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// Bytes of data to move: the extent's length for reads and writes, the room for `GetId`, else
    /// 0.
    pub data_bytes: u64,
    reply: Reply,
}

impl Request {
    /// A request without data whose end nobody is told: for tests of who handles requests.
    pub fn unanswered(op: Op) -> Self {
        Self { op, data_bytes: 0, reply: Reply { status: None, room_bytes: 0 } }
    }

    /// The data's memory: to be read for a write, to be written for a read.
    #[inline]
    pub fn data<'a>(&self, chain: &'a Chain) -> &'a [Span] {
        match self.op {
            Op::Read | Op::GetId => chain.writable(),
            Op::Write => chain.readable(),
            Op::Flush | Op::Discard | Op::WriteZeroes { .. } => &[],
        }
    }

    /// Tells the guest how it ended: writes the status byte and gives the length for
    /// [`crate::Virtqueue::push_used`]. `Ok` says that all data of a read has been written.
    #[inline]
    pub fn finish(&self, memory: &GuestMemory, status: Status) -> u32 {
        let written = match (status, self.op) {
            (Status::Ok, Op::Read) => self.data_bytes,
            (Status::Ok, Op::GetId) => SERIAL_BYTES as u64,
            _ => 0,
        };
        self.reply.finish(memory, status, written)
    }
}

/// A request that may not be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    status: Status,
    reply: Reply,
}

impl Refusal {
    /// The status that the guest gets, if there is a place for it.
    pub fn status(&self) -> Status {
        self.status
    }

    /// Tells the guest, as far as it left room for that; gives the length for
    /// [`crate::Virtqueue::push_used`].
    pub fn answer(&self, memory: &GuestMemory) -> u32 {
        self.reply.finish(memory, self.status, 0)
    }
}

/// Where a broken chain's status byte would be is unknown: it is given back with length 0.
impl From<ChainError> for Refusal {
    fn from(_: ChainError) -> Self {
        Self { status: Status::IoErr, reply: Reply { status: None, room_bytes: 0 } }
    }
}

/// Reads the request in `chain`, which keeps only the data's spans. The sectors go to `ranges`
/// (whatever it held): one range for reads and writes, any number for discards and write-zeroes,
/// none for what has no sectors or none to do.
///
/// `features` are the driver's. A flush is always done: it can only make things safer.
pub fn parse(
    memory: &GuestMemory,
    chain: &mut Chain,
    disk: &DiskProfile,
    features: u64,
    ranges: &mut Vec<Extent>,
) -> Result<Request, Refusal> {
    ranges.clear();
    let status = chain.take_status(memory);
    let reply = Reply { status, room_bytes: chain.writable_bytes() };
    let parsed = match status {
        Some(_) if !chain.is_faulty() => interpret(memory, chain, disk, features, ranges),
        _ => Err(Status::IoErr),
    };
    match parsed {
        Ok((op, data_bytes)) => Ok(Request { op, data_bytes, reply }),
        Err(status) => Err(Refusal { status, reply }),
    }
}

fn interpret(
    memory: &GuestMemory,
    chain: &mut Chain,
    disk: &DiskProfile,
    features: u64,
    ranges: &mut Vec<Extent>,
) -> Result<(Op, u64), Status> {
    let mut header = [0; HEADER_BYTES];
    if !chain.take_front(memory, &mut header) {
        return Err(Status::IoErr);
    }
    let header = u128::from_le_bytes(header);
    let (kind, sector) = (header as u32, (header >> 64) as u64);
    let (readable, writable) = (chain.readable_bytes(), chain.writable_bytes());
    match kind {
        T_IN if readable == 0 => {
            data_range(chain, disk, features, sector, writable, ranges)?;
            Ok((Op::Read, writable))
        }
        T_OUT if writable == 0 && !disk.read_only => {
            data_range(chain, disk, features, sector, readable, ranges)?;
            Ok((Op::Write, readable))
        }
        T_IN | T_OUT => Err(Status::IoErr),
        T_FLUSH => Ok((Op::Flush, 0)),
        T_GET_ID if writable >= SERIAL_BYTES as u64 => Ok((Op::GetId, writable)),
        T_GET_ID => Err(Status::IoErr),
        T_DISCARD | T_WRITE_ZEROES if disk.read_only => Err(Status::IoErr),
        T_DISCARD => {
            let offered = disk.discard().filter(|_| features & F_DISCARD != 0);
            let limits = offered.ok_or(Status::Unsupported)?;
            read_ranges(memory, chain, disk, limits, 0, ranges)?;
            Ok((Op::Discard, 0))
        }
        T_WRITE_ZEROES => {
            let offered = disk.write_zeroes().filter(|_| features & F_WRITE_ZEROES != 0);
            let limits = offered.ok_or(Status::Unsupported)?;
            let unmap = read_ranges(memory, chain, disk, limits, RANGE_F_UNMAP, ranges)?;
            Ok((Op::WriteZeroes { unmap: unmap && disk.write_zeroes_may_unmap }, 0))
        }
        _ => Err(Status::Unsupported),
    }
}

/// The range of a read or write.
#[inline]
fn data_range(
    chain: &Chain,
    disk: &DiskProfile,
    features: u64,
    sector: u64,
    data_bytes: u64,
    ranges: &mut Vec<Extent>,
) -> Result<(), Status> {
    let sectors = sectors_of(data_bytes).ok_or(Status::IoErr)?;
    let extent = Extent::new(sector, sectors);
    check_extent(extent, disk)?;
    // The header and the status byte may have descriptors of their own.
    let segments_max = disk.seg_max.saturating_add(2);
    let too_many = features & F_SEG_MAX != 0 && chain.descriptors() > segments_max;
    let too_large = features & F_SIZE_MAX != 0 && chain.largest_bytes() > disk.size_max_bytes;
    // The used length (data and status) is 32 bits wide.
    if too_many || too_large || data_bytes >= u64::from(u32::MAX) {
        return Err(Status::IoErr);
    }
    if sectors > 0 {
        ranges.push(extent);
    }
    Ok(())
}

fn check_extent(extent: Extent, disk: &DiskProfile) -> Result<(), Status> {
    let block = disk.block_sectors();
    let aligned = extent.start.is_multiple_of(block) && extent.sectors.is_multiple_of(block);
    if aligned && extent.fits(disk.capacity_sectors) { Ok(()) } else { Err(Status::IoErr) }
}

/// The ranges of a discard or write-zeroes request; whether all have the unmap flag (which only
/// permits, so one range without it forbids it for all).
fn read_ranges(
    memory: &GuestMemory,
    chain: &mut Chain,
    disk: &DiskProfile,
    limits: RangeLimits,
    flags_known: u32,
    ranges: &mut Vec<Extent>,
) -> Result<bool, Status> {
    let bytes = chain.readable_bytes();
    let count = bytes / RANGE_BYTES as u64;
    let whole = bytes > 0 && bytes.is_multiple_of(RANGE_BYTES as u64);
    if !whole || count > u64::from(limits.ranges_max) || chain.writable_bytes() > 0 {
        return Err(Status::IoErr);
    }
    let mut unmap = true;
    for _ in 0..count {
        let mut raw = [0; RANGE_BYTES];
        if !chain.take_front(memory, &mut raw) {
            return Err(Status::IoErr);
        }
        let raw = u128::from_le_bytes(raw);
        let (start, sectors, flags) = (raw as u64, (raw >> 64) as u32, (raw >> 96) as u32);
        // "MUST set the status byte to VIRTIO_BLK_S_UNSUPP [...] if any unknown flag is set", and
        // for discards with the unmap flag (section 5.2.6.2).
        if flags & !flags_known != 0 {
            return Err(Status::Unsupported);
        }
        let extent = Extent::new(start, u64::from(sectors));
        check_extent(extent, disk)?;
        if sectors > limits.sectors_max {
            return Err(Status::IoErr);
        }
        unmap &= flags & RANGE_F_UNMAP != 0;
        if sectors > 0 {
            ranges.push(extent);
        }
    }
    Ok(unmap)
}

/// Writes the disk's serial into the data of a `GetId` request; the status to finish it with.
pub fn write_id(
    memory: &GuestMemory,
    request: &Request,
    chain: &Chain,
    disk: &DiskProfile,
) -> Status {
    let mut left = disk.serial.as_slice();
    for span in request.data(chain) {
        let (part, rest) = left.split_at(left.len().min(span.len));
        if !memory.write_span(*span, part) {
            return Status::IoErr;
        }
        left = rest;
    }
    if left.is_empty() { Status::Ok } else { Status::IoErr }
}

const _: () = assert!(SECTOR_BYTES == 512, "the capacity is in virtio's sectors");
