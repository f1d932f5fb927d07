//! What a disk is to the guest: feature bits and the configuration space.
//!
//! Contract: the layout is `struct virtio_blk_config` (virtio 1.2 section 5.2.4), little-endian, up
//! to and with write-zeroes.

use sealblk_block::SECTOR_BYTES;

use super::{
    F_BLK_SIZE, F_CONFIG_WCE, F_DISCARD, F_FLUSH, F_MQ, F_PROTOCOL_FEATURES, F_RING_EVENT_IDX,
    F_RING_INDIRECT_DESC, F_RO, F_SEG_MAX, F_SIZE_MAX, F_TOPOLOGY, F_VERSION_1, F_WRITE_ZEROES,
};

/// Length of a serial (`VIRTIO_BLK_ID_BYTES`, section 5.2.6).
pub const SERIAL_BYTES: usize = 20;

/// Length of the configuration space; what lies behind it reads as zeroes.
pub const CONFIG_BYTES: usize = 60;

/// Offset of `writeback`, the only field that a driver may write.
pub const CONFIG_WRITEBACK: usize = 32;

/// Limits of discard or write-zeroes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeLimits {
    /// 512-byte sectors in one range.
    pub sectors_max: u32,
    /// Ranges in one request.
    pub ranges_max: u32,
}

/// A disk as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskProfile {
    /// Size in 512-byte sectors; a multiple of `block_bytes`.
    pub capacity_sectors: u64,
    /// Logical block: the unit of every request. A power of two, at least 512.
    pub block_bytes: u32,
    /// What the storage prefers, at least `block_bytes`. A power of two.
    pub physical_block_bytes: u32,
    /// Number of request queues.
    pub queues: u16,
    /// Data buffers in one request, at least 1.
    pub seg_max: u32,
    /// Bytes in one data buffer; at least a page.
    pub size_max_bytes: u32,
    /// Nothing may be written.
    pub read_only: bool,
    /// Discard is allowed, with these limits.
    pub discard: Option<RangeLimits>,
    /// The unit in which the storage can discard, in 512-byte sectors: a hint.
    pub discard_alignment_sectors: u32,
    /// Write-zeroes is offered, with these limits.
    pub write_zeroes: Option<RangeLimits>,
    /// A write-zeroes request may deallocate what it zeroes.
    pub write_zeroes_may_unmap: bool,
    /// What `GET_ID` answers, padded with NUL.
    pub serial: [u8; SERIAL_BYTES],
}

impl DiskProfile {
    /// Number of request queues.
    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// The features to offer, [`F_PROTOCOL_FEATURES`] among them.
    pub fn features(&self) -> u64 {
        let when = |condition: bool, bits: u64| if condition { bits } else { 0 };
        F_VERSION_1
            | F_PROTOCOL_FEATURES
            | F_RING_INDIRECT_DESC
            | F_RING_EVENT_IDX
            | F_SIZE_MAX
            | F_SEG_MAX
            | F_BLK_SIZE
            | F_TOPOLOGY
            | F_FLUSH
            | F_CONFIG_WCE
            | when(self.queues > 1, F_MQ)
            | when(self.read_only, F_RO)
            | when(self.discard().is_some(), F_DISCARD)
            | when(self.write_zeroes().is_some(), F_WRITE_ZEROES)
    }

    /// The limits of discard, where it is possible.
    pub(super) fn discard(&self) -> Option<RangeLimits> {
        self.discard.filter(|_| !self.read_only)
    }

    /// The limits of write-zeroes, where it is possible.
    pub(super) fn write_zeroes(&self) -> Option<RangeLimits> {
        self.write_zeroes.filter(|_| !self.read_only)
    }

    /// Sectors in a logical block.
    pub(super) fn block_sectors(&self) -> u64 {
        u64::from(self.block_bytes).max(SECTOR_BYTES) / SECTOR_BYTES
    }

    /// The configuration space, with the write cache on or off.
    pub fn config(&self, writeback: bool) -> [u8; CONFIG_BYTES] {
        let none = RangeLimits { sectors_max: 0, ranges_max: 0 };
        let discard = self.discard().unwrap_or(none);
        let zeroes = self.write_zeroes().unwrap_or(none);
        let blocks_per_physical = (self.physical_block_bytes / self.block_bytes.max(1)).max(1);
        let physical_block_exp = blocks_per_physical.ilog2() as u8;
        let min_io_blocks = u16::try_from(blocks_per_physical).unwrap_or(u16::MAX);
        let mut space = Fields::default();
        space.put(0, &self.capacity_sectors.to_le_bytes());
        space.put(8, &self.size_max_bytes.to_le_bytes());
        space.put(12, &self.seg_max.to_le_bytes());
        // 16: geometry, not offered.
        space.put(20, &self.block_bytes.to_le_bytes());
        space.put(24, &[physical_block_exp, 0]);
        space.put(26, &min_io_blocks.to_le_bytes());
        // 28: opt_io_size, no preference.
        space.put(CONFIG_WRITEBACK, &[u8::from(writeback)]);
        space.put(34, &self.queues.to_le_bytes());
        space.put(36, &discard.sectors_max.to_le_bytes());
        space.put(40, &discard.ranges_max.to_le_bytes());
        space.put(44, &self.discard_alignment_sectors.to_le_bytes());
        space.put(48, &zeroes.sectors_max.to_le_bytes());
        space.put(52, &zeroes.ranges_max.to_le_bytes());
        space.put(56, &[u8::from(self.write_zeroes_may_unmap)]);
        space.0
    }
}

struct Fields([u8; CONFIG_BYTES]);

impl Default for Fields {
    fn default() -> Self {
        Self([0; CONFIG_BYTES])
    }
}

impl Fields {
    fn put(&mut self, offset: usize, field: &[u8]) {
        for (to, from) in self.0.iter_mut().skip(offset).zip(field) {
            *to = *from;
        }
    }
}

/// The write cache that a driver chooses by writing `bytes` at `offset` of the configuration space.
/// None: it may not write that.
pub fn parse_set_config(offset: usize, bytes: &[u8]) -> Option<bool> {
    match bytes {
        [value @ (0 | 1)] if offset == CONFIG_WRITEBACK => Some(*value == 1),
        _ => None,
    }
}
